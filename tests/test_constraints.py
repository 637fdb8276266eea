import copy
import pickle

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from numbagru import constraints

CASES = [
    ("Constraint", {}),
    ("NonNeg", {}),
    ("MaxNorm", {}),
    ("MaxNorm", {"max_value": 0.7}),
    ("MaxNorm", {"max_value": 0}),
    ("MinMaxNorm", {}),
    ("MinMaxNorm", {"min_value": 0.5, "max_value": 0.9, "rate": 0.3}),
    ("MinMaxNorm", {"min_value": 3, "max_value": 3, "rate": 0}),
    ("UnitNorm", {}),
]
AXES = {
    (1,): [0, -1],
    (17,): [0],
    (0,): [0],
    (3, 7): [0, 1, -1, [0, 1], None],
    (0, 5): [0, 1],
    (5, 0): [0, 1],
    (1, 1): [0],
    (2, 33): [0],
    (2, 3, 5): [0, [0, 1], (1, 2)],
}
EPSILON = 1e-7

WEIGHTS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6),
    elements=st.floats(-100, 100).map(lambda v: round(v, 6)),
)


def weight(shape, dtype="float32", seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def norms_of(w):
    return np.sqrt(np.sum(np.square(w), axis=0))


def with_axis(name, options, axis):
    return options if name in ("Constraint", "NonNeg") else options | {"axis": axis}


@pytest.mark.parametrize(
    ("shape", "axis"), [(shape, axis) for shape, axes in AXES.items() for axis in axes]
)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_bits_of_keras(name, options, shape, axis):
    options = with_axis(name, options, axis)
    w = weight(shape)
    kept = w.copy()
    result = getattr(constraints, name)(**options)(w)
    expected = np.asarray(getattr(keras.constraints, name)(**options)(w))
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float32
    assert result.shape == shape
    np.testing.assert_array_equal(w, kept)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_float64_is_float64(name, options):
    """Keras on NumPy rounds float64 arrays to float32."""
    w = weight((5, 7), "float64")
    result = getattr(constraints, name)(**options)(w)
    assert result.dtype == np.float64
    expected = np.asarray(getattr(keras.constraints, name)(**options)(w))
    tolerance = 12 * np.finfo("float32").eps
    np.testing.assert_allclose(result, expected, rtol=tolerance)


def test_formulas_in_float64():
    w = weight((5, 7), "float64")
    norms = norms_of(w)
    exact = {"rtol": 4 * np.finfo("float64").eps}
    np.testing.assert_allclose(
        constraints.MaxNorm(0.7)(w),
        w * np.clip(norms, 0, 0.7) / (EPSILON + norms),
        **exact,
    )
    desired = 0.3 * np.clip(norms, 0.5, 0.9) + 0.7 * norms
    np.testing.assert_allclose(
        constraints.MinMaxNorm(0.5, 0.9, 0.3)(w),
        w * desired / (EPSILON + norms),
        **exact,
    )
    np.testing.assert_allclose(
        constraints.UnitNorm()(w), w / (EPSILON + norms), **exact
    )
    np.testing.assert_array_equal(constraints.NonNeg()(w), np.where(w > 0, w, 0))


@given(w=WEIGHTS, limit=st.floats(0, 50))
def test_max_norm_bounds_norms_and_keeps_directions(w, limit):
    result = constraints.MaxNorm(limit)(w)
    assert np.all(norms_of(result) <= limit * (1 + 1e-12))
    assert np.all(np.abs(result) <= np.abs(w) * (1 + 1e-12))
    assert np.all(result * w >= 0)


@given(w=WEIGHTS)
def test_max_norm_leaves_short_vectors_nearly_alone(w):
    """Epsilon shortens a vector of norm n by the factor n / (n + 1e-7), no more."""
    result = constraints.MaxNorm(1e4)(w)
    assert np.all(np.abs(result - w) <= EPSILON + 1e-12 * np.abs(w))


@given(w=WEIGHTS, low=st.floats(0.25, 5), width=st.floats(0, 5))
def test_min_max_norm_lands_in_the_interval(w, low, width):
    w = w[:, norms_of(w) > 1e-3]
    norms = norms_of(constraints.MinMaxNorm(low, low + width)(w))
    assert np.all(norms <= (low + width) * (1 + 1e-12))
    assert np.all(norms >= low * (1 - EPSILON / 1e-3))


@given(w=WEIGHTS)
def test_unit_norm_is_one_and_settles(w):
    w = w[:, norms_of(w) > 1e-3]
    once = constraints.UnitNorm()(w)
    np.testing.assert_allclose(norms_of(once), 1, rtol=EPSILON / 1e-3)
    np.testing.assert_allclose(
        constraints.UnitNorm()(once), once, rtol=2 * EPSILON / 1e-3
    )


@given(w=WEIGHTS)
def test_non_neg_is_a_projection(w):
    result = constraints.NonNeg()(w)
    assert np.all(result >= 0)
    np.testing.assert_array_equal(result[w >= 0], w[w >= 0])
    np.testing.assert_array_equal(result[w < 0], 0)
    np.testing.assert_array_equal(constraints.NonNeg()(result), result)


@pytest.mark.parametrize("name", ["MaxNorm", "MinMaxNorm", "UnitNorm"])
def test_zero_columns_stay_zero(name):
    w = np.array([[0.0, 3.0], [0.0, 4.0]], np.float32)
    result = getattr(constraints, name)()(w)
    np.testing.assert_array_equal(result[:, 0], [0, 0])
    assert result[1, 1] > 0


def test_axis_0_is_per_gate_and_unit():
    """On a matrix it is a column each, on a (3u,) bias the whole vector."""
    kernel, bias = weight((4, 6), seed=1), weight((6,), seed=2)
    columns = np.stack([constraints.UnitNorm()(c) for c in kernel.T], axis=1)
    np.testing.assert_array_equal(constraints.UnitNorm()(kernel), columns)
    norm = np.linalg.norm(constraints.UnitNorm()(bias))
    # Six squares, their sum, a root and a quotient.
    assert abs(norm - 1) <= 10 * np.finfo("float32").eps + EPSILON


@pytest.mark.parametrize("name", sorted(keras.src.constraints.ALL_OBJECTS_DICT))
def test_every_keras_name_gives_the_same_object(name):
    ours, theirs = constraints.get(name), keras.constraints.get(name)
    assert type(ours).__name__ == type(theirs).__name__
    assert constraints.serialize(ours) == keras.constraints.serialize(theirs)
    assert getattr(constraints, name) is type(ours)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("maxnorm", "MaxNorm"), ("nonneg", "NonNeg"), ("unitnorm", "UnitNorm")],
)
def test_older_names(name, expected):
    assert type(constraints.get(name)) is getattr(constraints, expected)
    assert getattr(constraints, name) is getattr(constraints, expected)
    config = {"class_name": name, "config": {}}
    assert type(constraints.get(config)) is getattr(constraints, expected)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_configs_round_trip_between_the_two(name, options):
    options = with_axis(name, options, [0])
    ours = getattr(constraints, name)(**options)
    config = constraints.serialize(ours)
    theirs = getattr(keras.constraints, name)(**options)
    assert config == keras.constraints.serialize(theirs)
    w = weight((3, 5))
    for twin in (
        constraints.get(config),
        constraints.get({"class_name": name, "config": config["config"]}),
        keras.constraints.get(config),
        type(ours).from_config(ours.get_config()),
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
    ):
        np.testing.assert_array_equal(twin(w), ours(w))


def test_none_instances_classes_and_callables():
    def half(w):
        return w / 2

    instance = constraints.NonNeg()
    assert constraints.get(None) is None
    assert constraints.serialize(None) is None
    assert constraints.get(instance) is instance
    assert isinstance(constraints.get(constraints.UnitNorm), constraints.UnitNorm)
    assert constraints.get(half) is half
    assert constraints.get("half", {"half": half}) is half
    assert constraints.get(constraints.serialize(half), {"half": half}) is half


@pytest.mark.parametrize(
    "identifier", ["nonsense", "Maxnorm", "", 2, [1], {"class_name": "x"}]
)
def test_unknown_identifiers(identifier):
    with pytest.raises(ValueError, match="Could not interpret constraint identifier: "):
        constraints.get(identifier)


BAD_NUMBERS = [np.nan, np.inf, -1, 1j, "1", None, [1.0], np.ones(1), True]


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("MaxNorm", "max_value"),
        ("MinMaxNorm", "min_value"),
        ("MinMaxNorm", "max_value"),
        ("MinMaxNorm", "rate"),
    ],
)
def test_bad_numbers(name, argument, value):
    with pytest.raises(ValueError, match=rf"`{argument}`: .*Received: {argument}="):
        getattr(constraints, name)(**{argument: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_value": 2, "max_value": 1}, "`max_value`: expected a number >= min_v"),
        ({"rate": 1.5}, r"`rate`: expected a number in \[0, 1\]"),
    ],
)
def test_bad_intervals(options, message):
    with pytest.raises(ValueError, match=message):
        constraints.MinMaxNorm(**options)


@pytest.mark.parametrize("axis", [0.5, "0", [0.5], "ab", {}])
@pytest.mark.parametrize("name", ["MaxNorm", "MinMaxNorm", "UnitNorm"])
def test_bad_axis(name, axis):
    with pytest.raises(ValueError, match="`axis` must be an integer, a list"):
        getattr(constraints, name)(axis=axis)


@pytest.mark.parametrize("axis", [1, -2, [0, 1], [0, 0]])
@pytest.mark.parametrize("name", ["MaxNorm", "MinMaxNorm", "UnitNorm"])
def test_axis_the_weight_does_not_have(name, axis):
    with pytest.raises(ValueError, match=rf"`axis` of {name}.*w.shape=\(3,\)"):
        getattr(constraints, name)(axis=axis)(np.ones(3))


def test_numpy_numbers_do_not_change_the_dtype():
    w = weight((3, 5))
    limit = np.float64(0.7)
    assert constraints.MaxNorm(limit)(w).dtype == np.float32
    rate = constraints.MinMaxNorm(limit, limit, limit)
    assert rate(w).dtype == np.float32
    assert isinstance(rate.get_config()["rate"], float)


@pytest.mark.parametrize("name", ["NonNeg", "MaxNorm", "MinMaxNorm", "UnitNorm"])
def test_weights_must_be_real(name):
    for w in (np.ones((2, 2), complex), np.array([["a"]]), np.array([[None]])):
        with pytest.raises(TypeError, match=r"`w` must hold real numbers.*w.dtype="):
            getattr(constraints, name)()(w)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="'nonsense'"):
        constraints.nonsense  # noqa: B018

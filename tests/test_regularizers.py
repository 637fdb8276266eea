import copy
import pickle

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from numbagru import regularizers

ELEMENTWISE = [
    ("L1", {}),
    ("L1", {"l1": 0.3}),
    ("L1", {"l1": 0}),
    ("L1", {"l1": None}),
    ("L2", {}),
    ("L2", {"l2": 0.3}),
    ("L2", {"l2": None}),
    ("L1L2", {}),
    ("L1L2", {"l1": 0.1, "l2": 0.3}),
    ("L1L2", {"l1": 0.1}),
    ("L1L2", {"l2": 0.3}),
    ("L1L2", {"l1": None, "l2": None}),
]
ORTHOGONAL = [
    ("OrthogonalRegularizer", {"factor": 0.3, "mode": mode})
    for mode in ("rows", "columns")
]
SHAPES = [(), (0,), (1,), (17,), (3, 7), (5, 0), (0, 5), (1, 1), (13, 11), (2, 3, 5)]
MATRICES = [(3, 7), (7, 3), (5, 5), (2, 1), (1, 2), (13, 11)]

# elements() keeps squares and products of factors away from overflow and underflow.
WEIGHTS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    elements=st.floats(-100, 100).map(lambda v: round(v, 6)),
)


def weight(shape, dtype="float64", seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def central_differences(function, w, step=1e-6):
    gradient = np.empty_like(w)
    for index in np.ndindex(w.shape):
        up, down = w.copy(), w.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "options"), ELEMENTWISE)
def test_values_have_the_bits_of_keras(name, options, shape):
    w = weight(shape, "float32")
    value = getattr(regularizers, name)(**options)(w)
    expected = getattr(keras.regularizers, name)(**options)(keras.Variable(w))
    assert value == expected
    assert isinstance(value, np.float32)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5), (2, 2), (13, 11)])
@pytest.mark.parametrize(("name", "options"), ORTHOGONAL)
def test_orthogonal_values_are_those_of_keras(name, options, shape):
    w = weight(shape, "float32")
    value = getattr(regularizers, name)(**options)(w)
    expected = getattr(keras.regularizers, name)(**options)(keras.Variable(w))
    # Keras copies before it multiplies, so BLAS takes another path: a cosine is a sum
    # of shape products of size <= 1, each rounded, and so is the sum of cosines.
    n = sum(shape) + 4
    np.testing.assert_allclose(value, expected, rtol=n * np.finfo("float32").eps)
    assert isinstance(value, np.float32)


@pytest.mark.parametrize(("name", "options"), ELEMENTWISE + ORTHOGONAL)
def test_float64_is_float64(name, options):
    """Keras on NumPy rounds float64 weights to float32 along the way."""
    regularizer = getattr(regularizers, name)(**options)
    w = weight((5, 7))
    value, gradient = regularizer(w), regularizer.gradient(w)
    assert isinstance(value, np.float64)
    assert gradient.dtype == np.float64
    in_float32 = regularizer(w.astype("float32"))
    expected = getattr(keras.regularizers, name)(**options)(keras.Variable(w))
    tolerance = 40 * np.finfo("float32").eps
    np.testing.assert_allclose(value, in_float32, rtol=tolerance)
    np.testing.assert_allclose(value, expected, rtol=tolerance)


def test_formulas_in_float64():
    w = weight((5, 7))
    factor = np.float64(np.float32(0.3))
    l1 = np.sum(np.abs(w))
    l2 = np.sum(w**2)
    exact = {"rtol": 10 * np.finfo("float64").eps}
    np.testing.assert_allclose(regularizers.L1(0.3)(w), factor * l1, **exact)
    np.testing.assert_allclose(regularizers.L2(0.3)(w), 0.3 * l2, **exact)
    both = regularizers.L1L2(0.1, 0.3)(w)
    np.testing.assert_allclose(both, 0.1 * l1 + 0.3 * l2, **exact)
    cosines = [
        abs(w[i] @ w[j]) / np.linalg.norm(w[i]) / np.linalg.norm(w[j])
        for i in range(5)
        for j in range(i)
    ]
    value = regularizers.OrthogonalRegularizer(0.3)(w)
    np.testing.assert_allclose(value, factor * np.mean(cosines), **exact)


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize(("name", "options"), ELEMENTWISE + ORTHOGONAL)
def test_gradients_against_central_differences(name, options, shape):
    regularizer = getattr(regularizers, name)(**options)
    w = weight(shape, seed=3)
    # No |.| in a formula changes its sign within a step of 1e-6.
    assert np.abs(w).min() > 1e-4
    expected = central_differences(regularizer, w)
    # Truncation is of order step**2; rounding of the value is eps * value / step.
    atol = 20 * max(regularizer(w), 1) * np.finfo("float64").eps / 1e-6
    np.testing.assert_allclose(regularizer.gradient(w), expected, rtol=1e-8, atol=atol)


@pytest.mark.parametrize(("name", "options"), ELEMENTWISE + ORTHOGONAL)
def test_float32_gradients(name, options):
    regularizer = getattr(regularizers, name)(**options)
    w = weight((5, 7), "float32")
    gradient, expected = regularizer.gradient(w), regularizer.gradient(w.astype(float))
    assert gradient.dtype == np.float32
    assert gradient.flags.c_contiguous
    error = np.abs(gradient - expected).max()
    assert error <= 20 * np.finfo("float32").eps * np.abs(expected).max()


@given(w=WEIGHTS)
def test_subgradient_at_zero_is_zero(w):
    np.testing.assert_array_equal(regularizers.L1(1.0).gradient(w)[w == 0], 0)
    np.testing.assert_array_equal(regularizers.L1(1.0).gradient(w), np.sign(w))


@given(w=WEIGHTS, l1=st.floats(0, 10), l2=st.floats(0, 10))
def test_penalties_are_even_non_negative_and_convex_at_zero(w, l1, l2):
    regularizer = regularizers.L1L2(l1, l2)
    assert regularizer(w) >= 0
    assert regularizer(w) == regularizer(-w)
    assert regularizer(np.zeros_like(w)) == 0
    np.testing.assert_array_equal(regularizer.gradient(-w), -regularizer.gradient(w))
    # Convex: the tangent plane at w lies below the value at 0, up to rounding.
    drop = np.sum(regularizer.gradient(w) * w)
    assert drop >= regularizer(w) * (1 - 1e-12)


@given(
    w=hnp.arrays(np.float64, (3, 5), elements=st.sampled_from([-1.0, -0.5, 0.25, 2.0])),
    scales=hnp.arrays(np.float64, (3, 1), elements=st.sampled_from([0.5, 1.0, 4.0])),
)
def test_orthogonal_ignores_the_lengths(w, scales):
    regularizer = regularizers.OrthogonalRegularizer(1.0)
    tolerance = 50 * np.finfo("float64").eps
    assert abs(regularizer(w) - regularizer(scales * w)) <= tolerance
    assert 0 <= regularizer(w) <= 1 + tolerance
    radial = np.sum(regularizer.gradient(w) * w, axis=1)
    np.testing.assert_allclose(radial, 0, atol=tolerance)


def test_orthogonal_of_orthogonal_rows_is_zero():
    regularizer = regularizers.OrthogonalRegularizer(1.0)
    w = np.diag([1.0, 2.0, 3.0])
    assert regularizer(w) == 0
    np.testing.assert_array_equal(regularizer.gradient(w), np.zeros((3, 3)))


def test_orthogonal_modes_are_transposes():
    w = weight((5, 7))
    rows = regularizers.OrthogonalRegularizer(0.3)
    columns = regularizers.OrthogonalRegularizer(0.3, mode="columns")
    np.testing.assert_allclose(rows(w), columns(np.ascontiguousarray(w.T)), rtol=1e-14)
    gradient = columns.gradient(np.ascontiguousarray(w.T))
    np.testing.assert_allclose(rows.gradient(w), gradient.T, rtol=1e-12, atol=1e-16)


def test_orthogonal_with_zero_and_tiny_rows():
    """Below a norm of 1e-7 a vector is divided by 1e-7, as in Keras."""
    regularizer = regularizers.OrthogonalRegularizer(0.3)
    w = weight((4, 3), "float32")
    w[1] = 0
    w[2] *= 1e-9
    with np.errstate(divide="ignore"):
        expected = keras.regularizers.OrthogonalRegularizer(0.3)(keras.Variable(w))
    np.testing.assert_allclose(
        regularizer(w), expected, rtol=11 * np.finfo("float32").eps
    )
    assert np.all(np.isfinite(regularizer.gradient(w)))


def test_gradient_of_a_tiny_row():
    regularizer = regularizers.OrthogonalRegularizer(0.3)
    w = weight((4, 3))
    w[2] *= 1e-9
    expected = central_differences(regularizer, w, step=1e-13)
    # Rounding of the value over the step; the other rows see steps far below their ulp.
    atol = 20 * np.finfo("float64").eps / 1e-13
    np.testing.assert_allclose(regularizer.gradient(w)[2], expected[2], atol=atol)
    assert np.abs(expected[2]).max() > 1e3 * atol


@pytest.mark.parametrize(("mode", "shape"), [("rows", (1, 5)), ("columns", (5, 1))])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_orthogonal_of_one_vector_has_no_pair(mode, shape, dtype):
    """Keras returns nan here."""
    regularizer = regularizers.OrthogonalRegularizer(mode=mode)
    w = np.ones(shape, dtype)
    value, gradient = regularizer(w), regularizer.gradient(w)
    assert value == 0
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, np.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize(("name", "options"), ELEMENTWISE + ORTHOGONAL)
def test_empty_weights(name, options, shape):
    regularizer = getattr(regularizers, name)(**options)
    w = np.zeros(shape, np.float32)
    assert regularizer(w) == 0
    assert regularizer.gradient(w).shape == shape


@pytest.mark.parametrize("method", ["__call__", "gradient"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 5)])
def test_orthogonal_needs_a_matrix(shape, method):
    with pytest.raises(ValueError, match=r"rank 2.*Received: w.shape="):
        getattr(regularizers.OrthogonalRegularizer(), method)(np.ones(shape))


@pytest.mark.parametrize("method", ["__call__", "gradient"])
@pytest.mark.parametrize(("name", "options"), ELEMENTWISE + ORTHOGONAL)
def test_weights_must_be_real(name, options, method):
    regularizer = getattr(regularizers, name)(**options)
    for w in (np.ones((2, 2), complex), np.array([["a"]]), np.array([[None]])):
        with pytest.raises(TypeError, match=r"`w` must hold real numbers.*w.dtype="):
            getattr(regularizer, method)(w)


@pytest.mark.parametrize("w", [[[1, 2], [3, 4]], np.arange(4).reshape(2, 2)])
def test_other_real_dtypes_become_float32(w):
    value = regularizers.L2(0.5)(w)
    assert isinstance(value, np.float32)
    assert value == 0.5 * np.sum(np.square(w))


def test_gradient_does_not_change_the_weight():
    for name, options in ELEMENTWISE + ORTHOGONAL:
        w = weight((5, 5), "float32")
        kept = w.copy()
        regularizer = getattr(regularizers, name)(**options)
        regularizer(w)
        regularizer.gradient(w)[:] = 9
        np.testing.assert_array_equal(w, kept)


@pytest.mark.parametrize("name", sorted(keras.src.regularizers.ALL_OBJECTS_DICT))
def test_every_keras_name_gives_the_same_object(name):
    ours, theirs = regularizers.get(name), keras.regularizers.get(name)
    assert type(ours).__name__ == type(theirs).__name__
    assert getattr(regularizers, name) is type(ours)
    if type(ours) is not regularizers.Regularizer:  # it has no config in Keras
        assert regularizers.serialize(ours) == keras.regularizers.serialize(theirs)


def test_a_zero_factor_ignores_infinite_weights():
    w = np.array([np.inf, 1], np.float32)
    assert regularizers.L1L2()(w) == 0
    np.testing.assert_array_equal(regularizers.L1L2().gradient(w), [0, 0])
    np.testing.assert_array_equal(regularizers.L1L2(l1=2.0).gradient(w), [2, 2])


def test_the_two_names_of_l1l2():
    """Keras 3 documents 0.01 for "l1_l2" and then refuses the name; tf.keras has it."""
    assert regularizers.get("l1_l2").get_config() == {"l1": 0.01, "l2": 0.01}
    assert regularizers.get("l1l2").get_config() == {"l1": 0.0, "l2": 0.0}
    assert regularizers.l1_l2 is regularizers.L1L2


def test_factors_are_rounded_where_keras_rounds():
    """L1 and OrthogonalRegularizer keep a float32 factor in Keras 3.15, L2 does not."""
    assert regularizers.L1().get_config() == {"l1": 0.009999999776482582}
    assert regularizers.L2().get_config() == {"l2": 0.01}


@pytest.mark.parametrize(("name", "options"), ELEMENTWISE + ORTHOGONAL)
def test_configs_round_trip_between_the_two(name, options):
    ours = getattr(regularizers, name)(**options)
    config = regularizers.serialize(ours)
    theirs = getattr(keras.regularizers, name)(**options)
    assert config == keras.regularizers.serialize(theirs)
    w = weight((3, 5), "float32")
    for twin in (
        regularizers.get(config),
        regularizers.get({"class_name": name, "config": config["config"]}),
        type(ours).from_config(ours.get_config()),
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
    ):
        assert twin(w) == ours(w)
        assert regularizers.serialize(twin) == config


def penalty(w):
    return 0.5 * np.sum(w)


def test_none_instances_classes_and_callables():
    instance = regularizers.L2()
    assert regularizers.get(None) is None
    assert regularizers.serialize(None) is None
    assert regularizers.get(instance) is instance
    assert isinstance(regularizers.get(regularizers.L1), regularizers.L1)
    assert regularizers.get(penalty) is penalty
    config = regularizers.serialize(penalty)
    assert config == keras.regularizers.serialize(penalty)
    assert regularizers.get(config, {"penalty": penalty}) is penalty
    assert not hasattr(regularizers.Regularizer(), "gradient")
    assert regularizers.Regularizer()(np.ones(3)) == 0


@pytest.mark.parametrize(
    "identifier", ["nonsense", "l3", "", 0.01, [1], {"class_name": "l3"}]
)
def test_unknown_identifiers(identifier):
    with pytest.raises(
        ValueError, match="Could not interpret regularizer identifier: "
    ):
        regularizers.get(identifier)


BAD_FACTORS = [-1, -1e-9, np.nan, np.inf, -np.inf, 1j, "0.1", [0.1], np.ones(1), True]


@pytest.mark.parametrize("value", BAD_FACTORS, ids=repr)
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("L1", "l1"),
        ("L2", "l2"),
        ("L1L2", "l1"),
        ("L1L2", "l2"),
        ("OrthogonalRegularizer", "factor"),
    ],
)
def test_factors_must_be_finite_and_non_negative(name, argument, value):
    message = rf"`{argument}`: expected a non-negative float\. Received: {argument}="
    with pytest.raises(ValueError, match=message):
        getattr(regularizers, name)(**{argument: value})


@pytest.mark.parametrize("mode", ["row", None, 1, ["rows"]])
def test_bad_mode(mode):
    with pytest.raises(ValueError, match=r"`mode`: expected 'rows' or 'columns'\. Rec"):
        regularizers.OrthogonalRegularizer(mode=mode)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="'l3'"):
        regularizers.l3  # noqa: B018


def test_repr_shows_the_call():
    assert repr(regularizers.L1L2(0.5, 2)) == "L1L2(l1=0.5, l2=2.0)"

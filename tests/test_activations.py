"""Activations against formulas in NumPy, Keras, differences and what must hold."""

import copy
import pickle

import keras
import numpy as np
import pytest
import scipy.special
from numba import njit

from differences import central_difference
from numbagru import activations
from numbagru.activations import Activation, get


def sigmoid(x):
    return scipy.special.expit(x)


def softplus(x):
    return np.logaddexp(x, 0)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def simplex_projection(x):
    """Nearest point of the simplex: max(x - tau, 0) with tau by bisection."""
    low, high = x.min(-1, keepdims=True) - 1, x.max(-1, keepdims=True)
    for _ in range(200):
        tau = (low + high) / 2
        above = np.maximum(x - tau, 0).sum(-1, keepdims=True) > 1
        low, high = np.where(above, tau, low), np.where(above, high, tau)
    return np.maximum(x - low, 0)


FORMULAS = {
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.maximum(x, 0.2 * x),
    "elu": elu,
    "celu": elu,
    "selu": lambda x: (
        1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * elu(x))
    ),
    "exponential": np.exp,
    "softplus": softplus,
    "log_sigmoid": lambda x: -softplus(-x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "silu": lambda x: x * sigmoid(x),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "tanh_shrink": lambda x: x - np.tanh(x),
    "soft_shrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "hard_shrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "squareplus": lambda x: (x + np.sqrt(x * x + 4)) / 2,
    "sparse_plus": lambda x: np.where(x >= 1, x, np.maximum(x + 1, 0) ** 2 / 4),
    "sparse_sigmoid": lambda x: np.clip((x + 1) / 2, 0, 1),
    "softmax": lambda x: scipy.special.softmax(x, axis=-1),
    "log_softmax": lambda x: scipy.special.log_softmax(x, axis=-1),
    "sparsemax": simplex_projection,
}
HARD_SIGMOID_TF = get("hard_sigmoid", era="tf_keras")
ALL = [*map(get, FORMULAS), HARD_SIGMOID_TF]
ELEMENTWISE = [act for act in ALL if not act.rowwise]
ROWWISE = ["softmax", "log_softmax", "sparsemax"]
# Where some derivative jumps.
KINKS = [-3, -2.5, -1, -0.5, 0, 0.5, 1, 2.5, 3, 6]


def label(act):
    return "hard_sigmoid_tf" if act == HARD_SIGMOID_TF else act.name


def formula(act):
    if act == HARD_SIGMOID_TF:
        return lambda x: np.clip(0.2 * x + 0.5, 0, 1)
    return FORMULAS[act.name]


def points(shape=(40, 51)):
    rng = np.random.default_rng(0)
    return rng.uniform(-8, 8, shape) * rng.choice([0.1, 1], shape)


def error(actual, exact, x):
    """Largest error in units of the larger of 1, argument and value."""
    scale = np.maximum(1, np.maximum(np.abs(x), np.abs(exact)))
    return (np.abs(actual - exact) / scale).max()


def test_every_name_of_keras_is_known():
    names = {name for name in dir(keras.activations) if not name.startswith("_")}
    names -= {"deserialize", "get", "serialize"}
    refused = {"glu", "threshold"}
    assert refused < names
    assert {get(name).name for name in names - refused} == set(FORMULAS)


@pytest.mark.parametrize("act", ALL, ids=label)
def test_values_in_float64(act):
    """Both sides make a handful of roundings, those of x itself among them."""
    x = points()
    y = act(x)
    assert y.dtype == np.float64
    assert error(y, formula(act)(x), x) <= 8 * np.finfo(np.float64).eps


# Keras' NumPy backend adds up the cumulative sums of the chosen entries instead of the
# entries (keras.src.backend.numpy.nn.sparsemax), so its rows do not add up to 1.
@pytest.mark.parametrize("name", [n for n in FORMULAS if n != "sparsemax"])
def test_values_in_float32_against_keras(name):
    x = points().astype(np.float32)
    exact = FORMULAS[name](x.astype(np.float64))
    theirs = np.asarray(getattr(keras.activations, name)(x))
    ours = get(name)(x)
    assert ours.dtype == np.float32
    eps = np.finfo(np.float32).eps
    assert error(ours, exact, x) <= 2 * error(theirs, exact, x) + 2 * eps


def test_values_in_float32_without_keras():
    for act in (get("sparsemax"), HARD_SIGMOID_TF):
        x = points().astype(np.float32)
        exact = formula(act)(x.astype(np.float64))
        assert error(act(x), exact, x) <= 4 * np.finfo(np.float32).eps


def test_the_two_hard_sigmoids():
    assert get("hard_sigmoid")([1.0]) == pytest.approx(2 / 3)
    assert HARD_SIGMOID_TF([1.0]) == pytest.approx(0.7)
    assert get("hard_sigmoid") != HARD_SIGMOID_TF
    assert activations.serialize(HARD_SIGMOID_TF) == "hard_sigmoid"


@pytest.mark.parametrize("act", ALL, ids=label)
def test_pullback_is_the_derivative(act):
    """The error of a difference is h^2 f''' / 6 + eps |f| / h, about 1e-9 at worst."""
    x = points((6, 5))
    x += 1e-3 * (np.abs(x[..., None] - KINKS).min(-1) < 1e-4)
    dy = np.random.default_rng(1).normal(size=x.shape)
    dx = act.pullback(x, act(x), dy)
    expected = central_difference(lambda v: (act(v) * dy).sum(), x)
    scale = np.maximum(1, np.abs(act(x)))
    assert (np.abs(dx - expected) / scale).max() <= 1e-8


@pytest.mark.parametrize("act", ALL, ids=label)
def test_pullback_in_float32(act):
    """A derivative from a rounded output errs by that rounding, times its slope."""
    x = points((6, 5)).astype(np.float32)
    dy = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    dx = act.pullback(x, act(x), dy)
    assert dx.dtype == np.float32
    wide = x.astype(np.float64)
    exact = act.pullback(wide, act(wide), dy)
    scale = np.maximum(1, np.maximum(np.abs(exact), np.abs(wide)))
    assert (np.abs(dx - exact) / scale).max() <= 16 * np.finfo(np.float32).eps


@pytest.mark.parametrize(
    ("name", "x", "slope"),
    [
        ("relu", 0, 0),
        ("relu6", [0, 6], 0),
        ("leaky_relu", 0, 0.2),
        ("elu", 0, 1),
        ("hard_sigmoid", 3, 0),
        ("hard_tanh", [-1, 1], 0),
        ("soft_shrink", [-0.5, 0.5], 0),
        ("hard_shrink", [-0.5, 0.5], 0),
        ("sparse_plus", [-1, 1], [0, 1]),
        ("sparse_sigmoid", [-1, 1], 0),
    ],
)
def test_slope_at_kinks_is_one_of_the_two(name, x, slope):
    x = np.array(x, float)
    act = get(name)
    dx = act.pullback(x, act(x), np.ones_like(x))
    np.testing.assert_array_equal(dx, np.broadcast_to(slope, x.shape))


@pytest.mark.parametrize("act", ELEMENTWISE, ids=label)
def test_bits_do_not_depend_on_the_neighbours(act):
    """Compiled loops run in vectors with a scalar rest; both give the same bits."""
    x = points((1, 67))[0].astype(np.float32)
    whole = act(x)
    slopes = act.pullback(x, whole, np.ones_like(x))
    for start, stop in [(0, 1), (5, 6), (3, 66), (1, 20)]:
        part = x[start:stop]
        np.testing.assert_array_equal(act(part), whole[start:stop])
        again = act.pullback(part, act(part), np.ones_like(part))
        np.testing.assert_array_equal(again, slopes[start:stop])


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("act", ALL, ids=label)
def test_nan_stays_nan(act, real):
    x = np.array([[np.nan, 1], [0.5, 2]], real)
    y = act(x)
    assert np.isnan(y[0, 0])
    assert np.isfinite(y[1]).all()


# Keras gives NaN where a formula multiplies inf with 0; so do we, but for what stands
# here the limits are numbers.
LIMITS = {
    "tanh": (-1, 1),
    "linear": (-np.inf, np.inf),
    "relu": (0, np.inf),
    "relu6": (0, 6),
    "leaky_relu": (-np.inf, np.inf),
    "elu": (-1, np.inf),
    "celu": (-1, np.inf),
    "selu": (-1.0507009873554805 * 1.6732632423543772, np.inf),
    "exponential": (0, np.inf),
    "softplus": (0, np.inf),
    "log_sigmoid": (-np.inf, 0),
    "hard_sigmoid": (0, 1),
    "hard_tanh": (-1, 1),
    "tanh_shrink": (-np.inf, np.inf),
    "soft_shrink": (-np.inf, np.inf),
    "hard_shrink": (-np.inf, np.inf),
    "sparse_plus": (0, np.inf),
    "sparse_sigmoid": (0, 1),
}


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("name", LIMITS)
def test_limits(name, real):
    y = get(name)(np.array([-np.inf, np.inf], real))
    np.testing.assert_allclose(y, LIMITS[name], rtol=np.finfo(real).eps)


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["silu", "hard_silu", "mish", "gelu"])
def test_gated_linear_units_vanish_far_below_zero(name, real):
    """The gate must be exactly zero there: any rest is multiplied with x."""
    x = np.array([-1e4, -1e15, np.finfo(real).min / 4], real)
    act = get(name)
    np.testing.assert_array_equal(act(x), [0, 0, 0])
    ours = act.pullback(x[:2], act(x[:2]), np.ones(2, real))
    np.testing.assert_array_equal(ours, [0, 0])


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["softmax", "sparsemax"])
def test_rows_are_distributions(name, real):
    x = (10 * points((30, 9))).astype(real)
    y = get(name)(x)
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(-1), 1, rtol=8 * np.finfo(real).eps * 10)
    np.testing.assert_array_equal(y.argmax(-1), x.argmax(-1))


@pytest.mark.parametrize("name", ROWWISE)
def test_rows_do_not_see_each_other(name):
    act = get(name)
    x = points((4, 3, 7))
    whole = act(x)
    for index in np.ndindex(4, 3):
        np.testing.assert_array_equal(act(x[index]), whole[index])


@pytest.mark.parametrize("name", ROWWISE)
def test_rows_of_any_length(name):
    act = get(name)
    only = 0.0 if name == "log_softmax" else 1.0
    np.testing.assert_array_equal(act([[3.0], [-1e30]]), [[only], [only]])
    assert act(np.zeros((3, 0))).shape == (3, 0)
    assert act(np.zeros((0, 3))).shape == (0, 3)


def test_softmax_neither_overflows_nor_loses_masked_entries():
    x = np.array([[1e4, 1e4, -np.inf], [-1e4, -1e4, -np.inf]])
    np.testing.assert_array_equal(get("softmax")(x), [[0.5, 0.5, 0]] * 2)
    expected = [[-np.log(2)] * 2 + [-np.inf]] * 2
    np.testing.assert_allclose(get("log_softmax")(x), expected)


def test_sparsemax_is_sparse_and_exact_on_the_simplex():
    x = np.array([[0.5, 0.25, 0.25, 0], [2.0, 0, 0, 0], [0.5] * 4, [-1e20] * 4])
    expected = [[0.5, 0.25, 0.25, 0], [1, 0, 0, 0], [0.25] * 4, [0.25] * 4]
    np.testing.assert_array_equal(get("sparsemax")(x), expected)


@pytest.mark.parametrize("name", ROWWISE)
def test_rowwise_needs_an_axis(name):
    with pytest.raises(ValueError, match=rf"`{name}` acts along the last axis"):
        get(name)(1.0)


@pytest.mark.parametrize("shape", [(), (5,), (0,), (2, 3, 4)])
def test_shapes_and_types_of_arrays(shape):
    act = get("tanh")
    x = np.ones(shape)
    assert act(x).shape == shape
    assert act.pullback(x, act(x), x).shape == shape
    for dtype in ("int64", "bool", "float16", "float32", ">f4"):
        assert act(x.astype(dtype)).dtype == np.float32
    for dtype in (">f8", np.longdouble):
        np.testing.assert_array_equal(act(x.astype(dtype)), act(x), strict=True)


def test_input_is_not_changed():
    x = points((3, 4))
    before = x.copy()
    for name in ("relu", "softmax", "silu"):
        act = get(name)
        act.pullback(x, act(x), x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("value", [[1j], ["a"], [None]])
def test_arrays_of_something_else_are_refused(value):
    with pytest.raises(TypeError, match=r"array of real numbers. Received: dtype="):
        get("tanh")(np.array(value))


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        (None, "linear"),
        ("swish", "silu"),
        ("hard_swish", "hard_silu"),
        ({"class_name": "function", "config": "relu"}, "relu"),
        (
            {
                "module": "builtins",
                "class_name": "function",
                "config": "tanh",
                "registered_name": "function",
            },
            "tanh",
        ),
    ],
)
def test_get(identifier, name):
    act = get(identifier)
    assert act.name == name
    assert act is get(name)
    assert get(act) is act
    assert activations.serialize(act) == name


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("glu", "'glu' cannot be used here: it halves the width"),
        ("threshold", "'threshold' cannot be used here: it takes two more"),
        ("Tanh", "Could not interpret activation function identifier: Tanh"),
        ("hard_sigmoid_tf", "Could not interpret activation function identifier"),
        ({"class_name": "x"}, "Could not interpret activation function identifier"),
        (3, "Could not interpret activation function identifier: 3"),
    ],
)
def test_get_refuses(identifier, message):
    with pytest.raises(ValueError, match=message):
        get(identifier)


@njit
def squash(x):
    return x / (1 + abs(x))


@njit
def d_squash(x):
    return 1 / (1 + abs(x)) ** 2


@pytest.mark.parametrize("function", [squash, squash.py_func])
def test_users_function(function):
    act = get(function)
    x = points((3, 4))
    np.testing.assert_allclose(act(x), FORMULAS["softsign"](x), rtol=1e-15)
    assert act(x.astype(np.float32)).dtype == np.float32
    assert act.name == "squash"
    assert not act.rowwise
    with pytest.raises(ValueError, match=r"`squash` has no derivative.*Pass"):
        act.pullback(x, act(x), x)


@pytest.mark.parametrize("derivative", [d_squash, d_squash.py_func])
def test_users_derivative(derivative):
    act = Activation(squash, derivative, name="mine")
    assert act.name == "mine"
    x, dy = points((3, 4)), points((3, 4))[::-1]
    expected = get("softsign").pullback(x, act(x), dy)
    np.testing.assert_allclose(act.pullback(x, act(x), dy), expected, rtol=1e-14)


def test_users_function_may_give_integers_or_booleans():
    act = Activation(lambda x: x > 0, lambda x: 0)
    np.testing.assert_array_equal(act([-1.0, 2.0]), [0, 1])
    np.testing.assert_array_equal(act.pullback([1.0], [1.0], [1.0]), [0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        lambda x: None,
        lambda x: (x, x),
        lambda x: x * 1j,
        lambda x: "x",
        np.tanh,
        keras.activations.tanh,
    ],
)
def test_users_mistakes_are_refused(function):
    with pytest.raises(TypeError, match=r"`function` must .*Received: "):
        get(function)
    with pytest.raises(TypeError, match=r"`derivative` must .*Received: "):
        Activation(squash, function)


def test_activation_needs_a_function():
    with pytest.raises(TypeError, match="`function` must be a scalar function"):
        Activation("tanh")


@pytest.mark.parametrize("act", ALL, ids=label)
def test_copies_are_equal(act):
    for copied in (pickle.loads(pickle.dumps(act)), copy.deepcopy(act)):
        assert copied == act
        assert copied.name == act.name
    assert act in {act: 1}


def test_users_activation_pickles():
    act = pickle.loads(pickle.dumps(Activation(squash, lambda x: x, name="mine")))
    assert act.name == "mine"
    np.testing.assert_array_equal(act([1.0]), [0.5])
    np.testing.assert_array_equal(act.pullback([3.0], [0.75], [1.0]), [3.0])

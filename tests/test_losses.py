import copy
import json
import pickle

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras.src.losses.loss import reduce_weighted_values

from differences import central_difference
from numbagru.training import losses

CASES = {
    "mse": ("MeanSquaredError", {}),
    "mae": ("MeanAbsoluteError", {}),
    "huber": ("Huber", {}),
    "huber-delta": ("Huber", {"delta": 0.3}),
    "binary": ("BinaryCrossentropy", {}),
    "binary-smooth": ("BinaryCrossentropy", {"label_smoothing": 0.2}),
    "binary-logits": ("BinaryCrossentropy", {"from_logits": True}),
    "binary-axis": ("BinaryCrossentropy", {"axis": 1, "label_smoothing": 0.1}),
    "categorical": ("CategoricalCrossentropy", {}),
    "categorical-smooth": ("CategoricalCrossentropy", {"label_smoothing": 0.2}),
    "categorical-logits": (
        "CategoricalCrossentropy",
        {"from_logits": True, "label_smoothing": 0.1},
    ),
    "categorical-axis": ("CategoricalCrossentropy", {"axis": 1, "from_logits": True}),
}
REDUCTIONS = ["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", None]
CLASS_OF = {
    "mean_squared_error": losses.MeanSquaredError,
    "mean_absolute_error": losses.MeanAbsoluteError,
    "huber": losses.Huber,
    "binary_crossentropy": losses.BinaryCrossentropy,
    "categorical_crossentropy": losses.CategoricalCrossentropy,
}


def operands(case, shape, seed=0):
    """Return targets and predictions that the loss of `case` is meant for."""
    rng = np.random.default_rng(seed)
    name, options = CASES[case]
    if "Cross" not in name:
        return rng.normal(size=shape), rng.normal(size=shape)
    y_true = rng.integers(0, 2, shape).astype(float)
    if options.get("from_logits"):
        return y_true, rng.normal(size=shape) * 2
    return y_true, rng.uniform(0.05, 0.95, shape)


def ours(case, **more):
    name, options = CASES[case]
    return getattr(losses, name)(**options, **more)


def theirs(case, **more):
    name, options = CASES[case]
    return getattr(keras.losses, name)(**options, **more)


def values(case, y_true, y_pred):
    """Return the values per sample in float64, from the formulas in Keras' texts."""
    name, options = CASES[case]
    axis, smooth = options.get("axis", -1), options.get("label_smoothing", 0)
    logits = options.get("from_logits", False)
    error = np.abs(y_true - y_pred)
    if name == "MeanSquaredError":
        return np.mean(error**2, axis=-1)
    if name == "MeanAbsoluteError":
        return np.mean(error, axis=-1)
    if name == "Huber":
        delta = options.get("delta", 1)
        outer = delta * error - delta**2 / 2
        return np.mean(np.where(error < delta, error**2 / 2, outer), axis=-1)
    if name == "BinaryCrossentropy":
        t = y_true * (1 - smooth) + smooth / 2
        p = 1 / (1 + np.exp(-y_pred)) if logits else y_pred
        return -np.mean(t * np.log(p) + (1 - t) * np.log1p(-p), axis=axis)
    t = y_true * (1 - smooth) + smooth / y_true.shape[-1]
    p = np.exp(y_pred) if logits else y_pred
    p = np.clip(p / np.sum(p, axis=axis, keepdims=True), 1e-7, 1 - 1e-7 * (not logits))
    return -np.sum(t * np.log(p), axis=axis)


def reduced(v, weights, reduction):
    if weights is not None:
        v = v * weights
    if reduction is None:
        return v
    if reduction == "sum":
        return np.sum(v)
    if reduction == "mean_with_sample_weight" and weights is not None:
        return np.sum(v) / np.sum(weights)
    return np.mean(v)


def assert_as_good_as_keras(case, y_true, y_pred, weights=None, reduction="mean"):
    """Compare with the formula in float64, and in float32 with Keras' own error."""
    y_true, y_pred = (a.astype("float32").astype("float64") for a in (y_true, y_pred))
    if weights is not None:
        weights = weights.astype("float32").astype("float64")
    pred = y_pred
    if y_true.ndim == y_pred.ndim + 1:
        pred = y_pred.reshape(y_true.shape)
    expected = values(case, y_true.reshape(pred.shape), pred)
    if weights is not None and weights.ndim > expected.ndim:
        expected = reduced(expected, weights[..., 0], reduction)
    else:
        expected = reduced(expected, weights, reduction)
    scale = 1 + np.abs(expected).max()

    exact = ours(case, reduction=reduction)(y_true, y_pred, weights)
    assert exact.dtype == np.float64
    assert np.abs(np.squeeze(exact - expected)).max() <= 32 * 2.3e-16 * scale

    arguments = (y_true.astype("float32"), y_pred.astype("float32"), weights)
    value = ours(case, reduction=reduction)(*arguments)
    assert value.dtype == np.float32
    keras_error = np.abs(theirs(case, reduction=reduction)(*arguments) - expected).max()
    assert keras_error <= 64 * 1.2e-7 * scale  # the formula is that of Keras
    assert np.abs(value - expected).max() <= 2 * keras_error + 2 * 1.2e-7 * scale


SHAPES = [(5, 3), (4, 1), (1, 1), (2, 6, 3), (2, 1, 3), (3, 4, 1), (2, 3, 4, 2)]


@pytest.mark.filterwarnings("ignore:In loss categorical_crossentropy:SyntaxWarning")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_keras(case, reduction, shape):
    assert_as_good_as_keras(case, *operands(case, shape), None, reduction)


@pytest.mark.parametrize("case", ["mse", "huber", "binary"])
@pytest.mark.parametrize(
    ("true", "pred"),
    [((5,), (5, 1)), ((5, 1), (5,)), ((3, 4), (3, 4, 1)), ((3, 4, 1), (3, 4))],
)
def test_a_last_axis_of_one_may_be_missing(case, true, pred):
    y_true, y_pred = operands(case, (5,) if 5 in true else (3, 4))
    y_true, y_pred = y_true.reshape(true), y_pred.reshape(pred)
    assert_as_good_as_keras(case, y_true, y_pred)
    assert ours(case).gradient(y_true, y_pred).shape == pred


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", None])
@pytest.mark.parametrize("weights", [(4,), (4, 1), (4, 5), (1, 5), (4, 5, 1)])
def test_sample_weights_are_those_of_keras(weights, reduction):
    rng = np.random.default_rng(1)
    shape = (4, 5, 3) if weights != (4,) else (4, 3)
    weights = rng.uniform(0, 2, weights)
    assert_as_good_as_keras("mse", *operands("mse", shape), weights, reduction)


def test_weights_per_row_reach_all_steps():
    # Keras refuses rank 1 beside (B, T) losses, or takes it for steps when B == T.
    y_true, y_pred = operands("mse", (4, 4, 3))
    weights = np.array([0.0, 1.0, 2.0, 3.0])
    loss = losses.MeanSquaredError()
    assert loss(y_true, y_pred, weights) == loss(y_true, y_pred, weights[:, None])


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)),
    case=st.sampled_from(["mse", "mae", "huber", "binary", "binary-logits"]),
    reduction=st.sampled_from(REDUCTIONS),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sequence_of_targets(shape, case, reduction, weighted, seed):
    y_true, y_pred = operands(case, shape, seed)
    weights = np.random.default_rng(seed).uniform(0.1, 2, shape[:2])
    weights = weights if weighted else None
    assert_as_good_as_keras(case, y_true, y_pred, weights, reduction)


@given(
    mask=st.lists(st.booleans(), min_size=12, max_size=12),
    reduction=st.sampled_from(REDUCTIONS),
    weighted=st.booleans(),
)
def test_masks_are_those_of_keras(mask, reduction, weighted):
    mask = np.array(mask).reshape(3, 4)
    y_true, y_pred = operands("mse", (3, 4, 2))
    weights = np.linspace(0.5, 2, 12).reshape(3, 4) if weighted else None
    loss = losses.MeanSquaredError(reduction=reduction)
    per_sample = values("mse", y_true, y_pred)
    with np.errstate(divide="ignore", invalid="ignore"):  # Keras divides, then selects
        expected = reduce_weighted_values(
            per_sample, weights, mask, reduction, "float32"
        )
    value = loss(y_true, y_pred, weights, mask)
    # 12 terms below 12 (weight 2, mask weight 12, sum 12 of them) in float32.
    np.testing.assert_allclose(value, expected, rtol=12 * 1.2e-7, atol=1e-12)
    assert np.array_equal(value, loss(y_true, y_pred, weights, mask[..., None]))


def test_masked_mean_is_the_mean_over_what_is_left():
    y_true, y_pred = operands("mse", (3, 4, 2))
    mask = np.arange(12).reshape(3, 4) % 3 > 0
    y_pred[~mask] = 1e6
    loss = losses.MeanSquaredError()
    expected = np.mean(np.square(y_true - y_pred)[mask])
    np.testing.assert_allclose(loss(y_true, y_pred, mask=mask), expected, rtol=1e-14)
    assert not loss.gradient(y_true, y_pred, mask=mask)[~mask].any()


@pytest.mark.parametrize("how", ["plain", "weights", "mask", "both"])
@pytest.mark.parametrize("reduction", [r for r in REDUCTIONS if r])
@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (2, 3, 3), (2, 1, 2), (2, 3, 1)])
@pytest.mark.parametrize("case", CASES)
def test_gradients_by_central_differences(case, shape, reduction, how):
    y_true, y_pred = operands(case, shape, seed=3)
    if case == "mae":  # away from the kink
        y_pred = y_true + np.sign(y_pred) * (0.1 + np.abs(y_pred))
    loss = ours(case, reduction=reduction)
    samples = values(case, y_true, y_pred).shape
    rng = np.random.default_rng(4)
    more = {}
    if how in ("weights", "both"):
        more["sample_weight"] = rng.uniform(0, 2, samples)
    if how in ("mask", "both"):
        more["mask"] = rng.random(samples) < 0.7
    gradient = loss.gradient(y_true, y_pred, **more)
    expected = central_difference(lambda p: loss(y_true, p, **more), y_pred)
    # Truncation h^2 f''' / 6 with f''' up to 2 / 0.05^3, rounding eps f / h.
    bound = 1e-10 / 6 * 2 / 0.05**3 + 2.3e-16 / 1e-5 * 10
    scale = max(1.0, np.abs(more.get("sample_weight", 1)).max() * len(gradient.ravel()))
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=bound * scale)
    value, again = loss.value_and_gradient(y_true, y_pred, **more)
    assert value == loss(y_true, y_pred, **more)
    assert np.array_equal(again, gradient)


@pytest.mark.parametrize("case", CASES)
def test_gradients_keep_dtype_and_shape(case):
    y_true, y_pred = operands(case, (3, 4, 2))
    loss = ours(case)
    for dtype in ("float32", "float64"):
        gradient = loss.gradient(y_true, y_pred.astype(dtype), np.ones(3))
        assert gradient.dtype == dtype
        assert gradient.shape == (3, 4, 2)
    assert loss(y_true, y_pred).dtype == np.float64
    assert loss(y_true.tolist(), y_pred.astype("float32")).dtype == np.float32
    assert loss(np.ones((3, 4, 2), int), np.ones((3, 4, 2), int)).dtype == np.float32


@given(st.floats(-700, 700), st.floats(0, 1))
def test_binary_logits_of_any_size(x, t):
    loss = losses.BinaryCrossentropy(from_logits=True)
    value, gradient = loss.value_and_gradient(np.array([[t]]), np.array([[x]]))
    expected = max(x, 0) - x * t + np.log1p(np.exp(-abs(x)))
    assert abs(value - expected) <= 8 * np.finfo(float).eps * (1 + abs(x))
    sigmoid = 1 / (1 + np.exp(-x)) if x > 0 else np.exp(x) / (1 + np.exp(x))
    assert abs(gradient[0, 0] - (sigmoid - t)) <= 8 * np.finfo(float).eps


def test_categorical_logits_of_any_size():
    loss = losses.CategoricalCrossentropy(from_logits=True)
    y_true, y_pred = np.array([[0.0, 1.0]]), np.array([[1e4, -1e4]], "float32")
    value, gradient = loss.value_and_gradient(y_true, y_pred)
    assert value == 2e4
    assert np.array_equal(gradient, [[1, -1]])


@pytest.mark.parametrize("case", ["binary", "categorical"])
def test_probabilities_of_zero_and_one(case):
    y_true, y_pred = np.float32([[[0, 1], [1, 0]], [[1, 0], [1, 0]]])
    value, gradient = ours(case).value_and_gradient(y_true, y_pred)
    assert value == theirs(case)(y_true, y_pred)
    assert np.isfinite(gradient).all()
    assert not gradient.any()  # the slope of the clip


def test_nothing_to_average():
    loss = losses.MeanSquaredError()
    value, gradient = loss.value_and_gradient(np.zeros((0, 2)), np.zeros((0, 2)))
    assert value == 0
    assert gradient.shape == (0, 2)
    y = np.ones((2, 2))
    weighted = losses.MeanSquaredError("mean_with_sample_weight")
    value, gradient = weighted.value_and_gradient(y, y + 1, np.zeros(2))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", CLASS_OF)
def test_functions_give_values_per_sample(name):
    case = {"mean_squared_error": "mse", "mean_absolute_error": "mae"}.get(
        name, name.split("_")[0]
    )
    y_true, y_pred = operands(case, (3, 4, 2))
    function = getattr(losses, name)
    np.testing.assert_allclose(
        function(y_true, y_pred), values(case, y_true, y_pred), rtol=1e-13, atol=1e-15
    )
    assert losses.get(name) is function
    assert type(losses.trainable_loss(name)) is CLASS_OF[name]
    assert type(losses.trainable_loss(function)) is CLASS_OF[name]


@pytest.mark.parametrize(
    "name", ["mse", "MSE", "mae", "MAE", "bce", "BCE", "MeanSquaredError", "Huber"]
)
def test_names_of_keras(name):
    found = [module.get(name) for module in (losses, keras.losses)]
    mine, expected = (getattr(f, "__name__", type(f).__name__) for f in found)
    assert mine == expected
    assert losses.get(None) is None


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case):
    name, options = CASES[case]
    loss = getattr(losses, name)(**options, reduction="sum", name="mine")
    saved = json.loads(json.dumps(losses.serialize(loss)))
    assert saved["module"] == "keras.losses"
    assert losses.get(saved).get_config() == loss.get_config()
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin.get_config() == loss.get_config()
    from_keras = losses.get(keras.losses.serialize(theirs(case)))
    assert isinstance(from_keras, getattr(losses, name))
    assert from_keras.name == ours(case).name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.MeanSquaredError("average"), "reduction"),
        (lambda: losses.MeanSquaredError(dtype="float16"), "dtype"),
        (lambda: losses.Huber(delta=0), "delta"),
        (lambda: losses.Huber(delta=np.inf), "delta"),
        (lambda: losses.BinaryCrossentropy(label_smoothing=1.5), "label_smoothing"),
        (lambda: losses.CategoricalCrossentropy(axis=True), "axis"),
        (lambda: losses.get("mean_squared"), "mean_squared"),
        (lambda: losses.trainable_loss(None), "loss"),
        (lambda: losses.trainable_loss(lambda y_true, y_pred: 0), "no gradient"),
        (lambda: losses.trainable_loss(losses.Huber(reduction=None)), "scalar"),
        (lambda: losses.MeanSquaredError(None).gradient([[1.0]], [[1.0]]), "scalar"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 3, 1), (4, 1), (1, 2)])
def test_targets_are_not_broadcast(shape):
    with pytest.raises(ValueError, match=r"same shape.*y_true\.shape"):
        losses.MeanSquaredError()(np.zeros(shape), np.zeros((4, 2)))


@pytest.mark.parametrize("name", ["sample_weight", "mask"])
@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 5, 3)])
def test_weights_and_masks_must_fit(name, shape):
    with pytest.raises(ValueError, match=name):
        losses.MeanSquaredError()(
            np.zeros((4, 5, 3)), np.zeros((4, 5, 3)), **{name: np.ones(shape)}
        )


@pytest.mark.parametrize("bad", [np.zeros((2, 2), complex), np.array([["a", None]])])
def test_arrays_must_be_real_numbers(bad):
    good = np.zeros(bad.shape)
    loss = losses.MeanSquaredError()
    with pytest.raises(TypeError, match="y_true"):
        loss(bad, good)
    with pytest.raises(TypeError, match="y_pred"):
        loss(good, bad)
    with pytest.raises(TypeError, match="sample_weight"):
        loss(good, good, bad)


class Cubic(losses.Loss):
    def call(self, y_true, y_pred):
        return np.abs(y_pred - y_true)[..., 0] ** 3


def test_a_loss_of_ones_own():
    assert Cubic()([[1.0]], [[3.0]]) == 8
    assert Cubic().name == "cubic"
    with pytest.raises(NotImplementedError, match="Cubic must define `pullback`"):
        Cubic().gradient([[1.0]], [[3.0]])
    assert isinstance(losses.trainable_loss(Cubic), Cubic)

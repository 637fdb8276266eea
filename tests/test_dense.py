import copy
import json
import pickle

import keras
import numpy as np
import pytest

from differences import central_difference
from numbagru import activations, constraints, initializers, regularizers
from numbagru.layers.dense import Dense

SHAPES = [(5, 3), (1, 3), (0, 3), (2, 4, 3), (2, 1, 3), (2, 3, 2, 3), (4, 1)]
ACTIVATIONS = [None, "tanh", "sigmoid", "relu", "silu", "softmax", "log_softmax"]
KERAS_ARRAY = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")


def data(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def layer_for(shape, units=4, dtype="float64", **options):
    """Return a built layer with random weights, the bias too."""
    options.setdefault("bias_initializer", initializers.RandomNormal(0.3, 1.0, seed=5))
    layer = Dense(units, dtype=dtype, **options)
    layer.build(shape)
    return layer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("use_bias", [True, False])
def test_outputs_are_those_of_keras(shape, activation, use_bias):
    x = data(shape, "float32")
    mine = layer_for(shape, 4, "float32", activation=activation, use_bias=use_bias)
    theirs = keras.layers.Dense(4, activation, use_bias)
    theirs.build(shape)
    theirs.set_weights(mine.get_weights())
    expected = np.asarray(theirs(x))
    y = mine(x)
    assert y.dtype == np.float32
    assert y.shape == expected.shape == mine.compute_output_shape(shape)
    # Sums of four products, then an activation of some units in the last place.
    np.testing.assert_allclose(y, expected, rtol=16 * 1.2e-7, atol=16 * 1.2e-7)


@KERAS_ARRAY
@pytest.mark.parametrize("kernel", ["GlorotUniform", "HeNormal", "Orthogonal"])
@pytest.mark.parametrize("bias", ["RandomUniform", "TruncatedNormal"])
def test_initial_values_have_the_bits_of_keras(kernel, bias):
    weights = []
    for module, layer in ((initializers, Dense), (keras.initializers, None)):
        options = {
            "kernel_initializer": getattr(module, kernel)(seed=3),
            "bias_initializer": getattr(module, bias)(seed=4),
        }
        built = (layer or keras.layers.Dense)(7, **options)
        built.build((None, 2, 5))
        weights.append(built.get_weights())
    for mine, theirs in zip(*weights, strict=True):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)
    assert [v.shape for v in weights[0]] == [(5, 7), (7,)]


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (2, 1, 3), (4, 1)])
@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["linear", "tanh", "silu", "softmax"])
def test_gradients_by_central_differences(shape, penalised, use_bias, activation):
    options = {}
    if penalised:
        options = {
            "kernel_regularizer": regularizers.L2(0.1),
            "bias_regularizer": regularizers.L1(0.2),
            "activity_regularizer": regularizers.L2(0.3),
        }
    layer = layer_for(shape, activation=activation, use_bias=use_bias, **options)
    x, c = data(shape, seed=1), data((*shape[:-1], 4), seed=2)

    def objective(*arguments):
        inputs, *weights = arguments
        layer.set_weights(weights)
        return np.sum(c * layer(inputs)) + (sum(layer.losses) if penalised else 0)

    arguments = [x, *(w.copy() for w in layer.get_weights())]
    y, pullback = layer.vjp(x)
    assert np.array_equal(y, layer(x))
    grads = pullback(c, include_losses=penalised)
    assert grads.initial_state is None
    again = pullback(c, include_losses=penalised)
    for i, gradient in enumerate([grads.inputs, *grads.weights]):
        expected = central_difference(
            lambda a, i=i: objective(*arguments[:i], a, *arguments[i + 1 :]),
            arguments[i],
        )
        # h^2 f''' / 6 + eps |f| / h, for sums of some dozens of terms of order one.
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-8)
        assert np.array_equal(gradient, [again.inputs, *again.weights][i])
    layer.set_weights(arguments[1:])


def test_a_pullback_without_cotangent():
    layer = layer_for((5, 3), kernel_regularizer=regularizers.L2(0.1))
    _, pullback = layer.vjp(data((5, 3)))
    assert not pullback(None).inputs.any()
    kernel, bias = pullback(None, include_losses=True).weights
    np.testing.assert_allclose(kernel, 0.2 * layer.kernel.value, rtol=1e-15)
    assert not bias.any()


def test_losses_are_those_of_keras():
    options = {
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
        "activity_regularizer": "l1",
    }
    x = data((5, 3), "float32")
    mine = layer_for((5, 3), dtype="float32", **options)
    theirs = keras.layers.Dense(4, **options)
    theirs.build((5, 3))
    theirs.set_weights(mine.get_weights())
    mine(x)
    theirs(x)
    assert len(mine.losses) == 3
    np.testing.assert_allclose(mine.losses, np.asarray(theirs.losses), rtol=32 * 1.2e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_of_any_kind_come_out_in_the_dtype(dtype):
    layer = layer_for((2, 3), dtype=dtype)
    for x in ([[1, 2, 3]], np.ones((1, 3), "int8"), np.ones((1, 3), bool), [[1.0] * 3]):
        assert layer(x).dtype == dtype
        y, pullback = layer.vjp(x)
        assert pullback(np.ones_like(y)).inputs.dtype == dtype


def test_masks_pass():
    layer = Dense(2)
    mask = np.ones((2, 4), bool)
    assert layer.supports_masking
    assert layer.compute_mask(np.ones((2, 4, 3)), mask) is mask
    assert layer(np.ones((2, 4, 3)), mask=mask).shape == (2, 4, 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias": False, "activation": "relu", "name": "mine", "trainable": False},
        {
            "kernel_initializer": initializers.HeNormal(seed=2),
            "kernel_regularizer": "l2",
            "bias_regularizer": "l1",
            "activity_regularizer": regularizers.L1L2(0.1, 0.2),
            "kernel_constraint": constraints.MaxNorm(3),
            "bias_constraint": "non_neg",
            "dtype": "float64",
        },
    ],
    ids=["default", "plain", "full"],
)
def test_config_goes_to_keras_and_back(options):
    layer = Dense(4, **options)
    config = json.loads(json.dumps(layer.get_config()))
    assert Dense.from_config(config).get_config() == layer.get_config()
    theirs = keras.layers.Dense.from_config(copy.deepcopy(config)).get_config()
    assert Dense.from_config(theirs).get_config() == layer.get_config()
    assert theirs == {**config, "quantization_config": None}


def test_copies_keep_weights_and_activation():
    layer = layer_for((2, 3), activation=activations.get("tanh"))
    x = data((2, 3))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert np.array_equal(twin(x), layer(x))
        twin.set_weights([0 * w for w in twin.get_weights()])
        assert not twin(x).any()
    assert layer(x).any()


@pytest.mark.parametrize("units", [0, -1, 2.5, True, "4", None])
def test_units_must_be_a_positive_integer(units):
    with pytest.raises(ValueError, match="units"):
        Dense(units)


def test_wrong_inputs():
    layer = layer_for((2, 3))
    with pytest.raises(ValueError, match="3 features"):
        layer(np.ones((2, 4)))
    with pytest.raises(ValueError, match="at least two axes"):
        layer(np.ones(3))
    with pytest.raises(TypeError, match="real numbers"):
        layer(np.ones((2, 3), complex))
    fresh = Dense(2)
    with pytest.raises(ValueError, match="at least two axes"):
        fresh(np.ones(3))
    with pytest.raises(ValueError, match="at least two axes"):
        fresh.build((3, None))
    assert not fresh.built
    assert not fresh.weights
    with pytest.raises(ValueError, match="quantization_config"):
        Dense.from_config({"units": 2, "quantization_config": {"mode": "int8"}})
    with pytest.raises(ValueError, match="activation"):
        Dense(2, "tanhh")

"""What all layers share: names, weights, losses, configurations."""

import copy
import json

import numpy as np
import pytest

from numbagru import activations
from numbagru.layers import (
    GRU,
    RNN,
    Bidirectional,
    Grads,
    GRUCell,
    Layer,
    Variable,
    deserialize,
    serialize,
)
from numbagru.layers.base import auto_name

X = np.random.default_rng(0).normal(size=(3, 4, 2)).astype("float32")


# ------------------------------------------------------------------ names and weights


def test_auto_names():
    assert auto_name("LongShortTermRNN") == "long_short_term_rnn"
    assert auto_name("LongShortTermRNN") == "long_short_term_rnn_1"
    first, second = GRU(2).name, GRU(2).name
    assert first.startswith("gru")
    assert first != second
    assert GRU(2, name="mine").name == "mine"
    assert GRU(2).cell.name == "gru_cell"


def test_names_and_shapes_of_the_weights():
    layer = GRU(3, name="g")
    layer.build((None, None, 2))
    assert [(v.path, v.shape) for v in layer.weights] == [
        ("g/gru_cell/kernel", (2, 9)),
        ("g/gru_cell/recurrent_kernel", (3, 9)),
        ("g/gru_cell/bias", (2, 9)),
    ]
    assert layer.count_params() == 2 * 9 + 3 * 9 + 2 * 9
    assert repr(layer) == "<GRU name=g, built=True>"
    assert repr(layer.weights[2]).startswith("<Variable path=g/gru_cell/bias, shape=(2")
    assert [len(v) for v in (layer.trainable_variables, layer.variables)] == [3, 4]
    assert [v.name for v in layer.non_trainable_variables] == ["seed_generator_state"]
    assert layer.non_trainable_weights == []


@pytest.mark.parametrize(
    ("kwargs", "bias"),
    [({"reset_after": False}, [(9,)]), ({"use_bias": False}, [])],
)
def test_shape_of_the_bias(kwargs, bias):
    layer = GRU(3, **kwargs)
    layer.build((1, 1, 2))
    assert [v.shape for v in layer.weights[2:]] == bias


def test_weights_are_set_all_or_none():
    layer = GRU(3)
    layer(X)
    old = layer.get_weights()
    refused = [
        (old[:2], ValueError, "weight list of length 2, but the layer was expecting 3"),
        ([*old[:2], old[2].T], ValueError, "weight shape .2, 9. is not compatible"),
        ([old[0] + 1, old[1], old[2] * 1j], TypeError, "must be real numbers"),
    ]
    for weights, error, words in refused:
        with pytest.raises(error, match=words):
            layer.set_weights(weights)
        for a, b in zip(layer.get_weights(), old, strict=True):
            assert a is b
    layer.set_weights([w.tolist() for w in old])
    for a, b in zip(layer.get_weights(), old, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="Build or call the layer first"):
        GRU(3).set_weights(old)


def test_weights_are_read_only_and_copied():
    layer = GRU(3)
    layer(X)
    mine = np.ones((2, 9), "float32")
    layer.cell.kernel.assign(mine)
    mine[0, 0] = 7
    assert layer.get_weights()[0][0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        layer.cell.kernel.value[0, 0] = 7
    with pytest.raises(ValueError, match=r"must have the shape \(2, 9\)"):
        layer.cell.kernel.assign(mine[:1])


def test_a_variable_works_where_arrays_do():
    v = Variable([[1, 2], [3, 4]], name="v")
    np.testing.assert_array_equal(np.ones(2) @ v, [4, 6])
    np.testing.assert_array_equal(v[:, 1], [2, 4])
    assert np.array(v, copy=True).flags.writeable
    assert (v.ndim, v.size, len(v), v.numpy().dtype) == (2, 4, 2, np.float32)


def test_counting_needs_weights():
    with pytest.raises(ValueError, match="isn't built"):
        GRU(3).count_params()


def test_freezing():
    layer = Bidirectional(GRU(3, kernel_regularizer="l2", activity_regularizer="l1"))
    layer(X)
    assert len(layer.losses) == 4
    layer.trainable = False
    assert layer.trainable_weights == []
    assert len(layer.non_trainable_weights) == 6
    assert len(layer.losses) == 2
    assert not layer.forward_layer.cell.trainable
    layer.trainable = True
    assert len(layer.trainable_weights) == 6
    assert not GRU(3, trainable=False).cell.trainable
    with pytest.raises(ValueError, match="boolean"):
        layer.trainable = 1


# ----------------------------------------------------------------------------- losses


def test_losses_in_the_order_of_keras():
    layer = GRU(
        3,
        return_sequences=True,
        return_state=True,
        kernel_regularizer="l1",
        recurrent_regularizer="l2",
        bias_regularizer=lambda b: np.float32(b.size),
        activity_regularizer=lambda y: np.sum(np.abs(y)),
    )
    y, h = layer(X)
    k, r, _ = layer.get_weights()
    expected = [
        np.abs(y).sum() / 3,
        np.abs(h).sum() / 3,
        0.01 * np.abs(k).sum(),
        0.01 * (r**2).sum(),
        18,
    ]
    np.testing.assert_allclose(layer.losses, expected, rtol=1e-5)
    layer(X)
    assert len(layer.losses) == 5
    layer.add_loss([1.0, 2.0])
    assert layer.losses[2:4] == [1.0, 2.0]
    layer(X)
    assert len(layer.losses) == 5


def test_added_losses_last_until_the_next_call():
    layer = GRU(3)
    layer(X)
    layer.add_loss(1.0)
    layer(X)
    assert layer.losses == []
    with pytest.raises(ValueError, match="scalar"):
        layer.add_loss(X)


def test_activity_losses_are_divided_by_rows():
    layer = GRU(3, return_sequences=True, activity_regularizer="l2", time_major=True)
    y = layer(X.swapaxes(0, 1))
    np.testing.assert_allclose(layer.losses, [0.01 * (y**2).sum() / 3], rtol=1e-6)
    layer(np.zeros((4, 0, 2)))
    assert layer.losses == [0]


def test_penalties_alone_and_projections_by_hand():
    layer = GRU(3, kernel_regularizer="l1", bias_constraint="non_neg")
    layer(X)
    (penalty,) = layer.regularization_losses()
    np.testing.assert_allclose(penalty, 0.01 * np.abs(layer.get_weights()[0]).sum())
    kernel, recurrent, _ = layer.get_weights()
    layer.cell.bias.assign(np.resize([1, -1], (2, 9)))
    assert layer.get_weights()[2].min() == -1
    layer.apply_constraints()
    after = layer.get_weights()
    assert (after[0] is kernel, after[1] is recurrent) == (True, True)
    np.testing.assert_array_equal(after[2], np.resize([1, 0], (2, 9)))


# -------------------------------------------------------------------- layers of users


class Scale(Layer):
    def build(self, input_shape):
        self.scale = self.add_weight((), "ones", name="scale", constraint="non_neg")
        self.frozen = self.add_weight(input_shape[-1:], "ones", trainable=False)

    def call(self, x):
        self.add_loss(np.float32(5))
        return x * self.scale.value

    def _vjp(self, x):
        def pullback(cotangent, include_losses):
            d = np.sum(cotangent * x)
            return Grads(cotangent * self.scale.value, None, [d, 0 * self.frozen.value])

        return self.call(x), pullback


def test_a_layer_of_a_user():
    layer = Scale(name="s", activity_regularizer="l2")
    y = layer(X, training=True, mask=None)
    np.testing.assert_array_equal(y, X)
    np.testing.assert_allclose(layer.losses, [5, 0.01 * (X**2).sum() / 3], rtol=1e-6)
    assert [v.name for v in layer.trainable_weights] == ["scale"]
    layer.trainable = False
    layer.trainable = True
    assert [v.name for v in layer.trainable_weights] == ["scale"]
    grads = layer.vjp(X)[1](X, include_losses=True)
    np.testing.assert_allclose(grads.inputs, X * (1 + 0.02 / 3), rtol=1e-6)
    config = layer.get_config()
    assert config["activity_regularizer"]["class_name"] == "L2"
    assert Scale.from_config(config).get_config() == config


def test_what_a_layer_must_implement():
    layer = Layer()
    with pytest.raises(NotImplementedError, match="call"):
        layer(X)
    with pytest.raises(NotImplementedError, match="_vjp"):
        layer.vjp(X)
    with pytest.raises(NotImplementedError, match="compute_output_shape"):
        layer.compute_output_shape((1, 2))


def test_an_initializer_of_the_wrong_shape():
    layer = GRU(3, kernel_initializer=lambda shape, dtype: np.zeros(3))
    with pytest.raises(ValueError, match="initializer of `kernel` must return"):
        layer(X)


# ---------------------------------------------------------------------- configuration

ARGUMENTS = {
    "activation": "relu",
    "use_bias": False,
    "kernel_initializer": {"class_name": "HeNormal", "config": {"seed": 3}},
    "recurrent_regularizer": {"class_name": "L1L2", "config": {"l1": 0.5, "l2": 0.25}},
    "bias_constraint": "max_norm",
    "dropout": 0.25,
    "seed": 7,
    "return_sequences": True,
    "zero_output_for_mask": True,
    "dtype": "float64",
    "name": "mine",
}


def test_round_trip():
    layer = GRU(4, **ARGUMENTS)
    config = layer.get_config()
    assert len(config) == 27
    twin = GRU.from_config(json.loads(json.dumps(config)))
    assert twin.get_config() == config
    np.testing.assert_array_equal(
        twin.config.kernel_initializer((2, 3)), layer.config.kernel_initializer((2, 3))
    )


def test_round_trip_of_what_keras_does_not_save():
    extra = {
        "time_major": True,
        "implementation": 1,
        "use_cudnn": False,
        "compat": "keras3-jax",
        "device": "cpu",
        "threads": 2,
    }
    config = GRU(4, **extra).get_config()
    assert set(config) - set(GRU(4).get_config()) == set(extra)
    twin = GRU.from_config(config)
    assert {name: getattr(twin, name) for name in extra} == extra


def test_options_set_later_are_saved():
    layer = GRU(4)
    layer.return_sequences = True
    layer.trainable = False
    layer.activity_regularizer = None
    config = layer.get_config()
    assert config["return_sequences"]
    assert not config["trainable"]
    assert config["activity_regularizer"] is None
    with pytest.raises(ValueError, match="return_state"):
        layer.return_state = "yes"
    with pytest.raises(AttributeError):
        layer.units = 3


def test_cell_config():
    cell = GRUCell(4, recurrent_dropout=0.5, seed=1)
    config = cell.get_config()
    assert len(config) == 20
    assert GRUCell.from_config(config).get_config() == config


@pytest.mark.parametrize("cls", [GRU, GRUCell])
@pytest.mark.parametrize("flavor", ["keras3", "tf_keras"])
def test_both_dialects_are_read(cls, flavor):
    layer = cls(4, recurrent_activation="tanh", dropout=0.5, name="g")
    saved = layer.to_keras_config(flavor)
    assert isinstance(saved["dtype"], dict) == (flavor == "keras3")
    twin = cls.from_config(saved)
    assert twin.to_keras_config(flavor) == saved
    assert twin.get_config() == layer.get_config()


def test_wrappers_speak_both_dialects():
    inner = RNN([GRUCell(3, name="c"), GRUCell(2, name="d")], name="r")
    layer = Bidirectional(inner, name="b")
    for flavor in ("keras3", "tf_keras"):
        saved = layer.to_keras_config(flavor)
        dtypes = [saved["dtype"], saved["layer"]["config"]["dtype"]]
        cell = saved["layer"]["config"]["cell"]["config"]["cells"][1]["config"]
        assert {type(d) for d in [*dtypes, cell["dtype"]]} == {type(dtypes[0])}
        assert ("implementation" in cell) == (flavor == "tf_keras")
        twin = Bidirectional.from_config(copy.deepcopy(saved))
        assert twin.to_keras_config(flavor) == saved
    assert saved["layer"]["config"]["name"] == "r"
    assert "backward_layer" not in saved


def test_leftovers_of_tensorflow_are_read():
    saved = GRU(4).to_keras_config("tf_keras")
    legacy = {"class_name": "GlorotUniform", "config": {"seed": None}}
    saved.update(
        kernel_initializer=legacy,
        implementation=0,
        batch_input_shape=(None, 3, 2),
        num_constants=0,
        rng_type="legacy",
        time_major=True,
    )
    layer = GRU.from_config(saved)
    assert layer.implementation == 1
    assert layer.time_major


def test_hard_sigmoid_keeps_its_meaning():
    saved = GRU(4, "hard_sigmoid").to_keras_config("keras3")
    saved_tf = {**GRU(4).to_keras_config("tf_keras"), "activation": "hard_sigmoid"}
    layer, layer_tf = GRU.from_config(saved), GRU.from_config(saved_tf)
    assert layer.activation == activations.get("hard_sigmoid")
    assert layer_tf.activation == activations.get("hard_sigmoid", era="tf_keras")
    for one, flavor in ((layer, "tf_keras"), (layer_tf, "keras3")):
        again = GRU.from_config(json.loads(json.dumps(one.get_config())))
        assert again.activation == one.activation
        with pytest.raises(ValueError, match="has another function"):
            one.to_keras_config(flavor)


def test_what_a_flavor_cannot_say():
    with pytest.raises(ValueError, match="no `time_major`"):
        GRU(4, time_major=True).to_keras_config()
    with pytest.raises(ValueError, match="`flavor` must be one of"):
        GRU(4).to_keras_config("torch")


def test_serialize():
    saved = serialize(Bidirectional(GRU(4, name="g"), name="b"))
    assert (saved["module"], saved["class_name"]) == ("keras.layers", "Bidirectional")
    twin = deserialize(copy.deepcopy(saved))
    assert serialize(twin) == saved
    legacy = {"class_name": "GRU", "config": {"units": 3}}
    assert deserialize(legacy).units == 3
    own = serialize(Scale(name="s"))
    assert own["registered_name"] == "Scale"
    assert isinstance(deserialize(own, {"Scale": Scale}), Scale)
    for unknown in (own, {"config": {}}, "GRU"):
        with pytest.raises(ValueError, match="Could not interpret the layer"):
            deserialize(unknown)

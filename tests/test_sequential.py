import copy
import json
import pickle

import keras
import numpy as np
import pytest

from numbagru.layers.base import Layer
from numbagru.layers.bidirectional import Bidirectional
from numbagru.layers.dense import Dense
from numbagru.layers.gru import GRU
from numbagru.training import Sequential, optimizers

KERAS_ARRAY = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
X = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")


def stack(**options):
    return Sequential(
        [
            GRU(4, return_sequences=True, name="low"),
            Bidirectional(GRU(3, name="high"), name="both"),
            Dense(2, "tanh", name="out"),
        ],
        **options,
    )


def equal(a, b):
    return all(np.array_equal(v, w) for v, w in zip(a, b, strict=True))


def test_layers_follow_one_another():
    model = stack()
    assert not model.built
    assert not model.weights
    y = model(X)
    low, both, out = model.layers
    assert np.array_equal(y, out(both(low(X))))
    assert y.shape == model.compute_output_shape(X.shape) == (3, 2)
    weights = [*low.weights, *both.weights, *out.weights]
    assert [id(v) for v in model.weights] == [id(v) for v in weights]
    assert model.count_params() == sum(v.size for v in weights)
    assert low.weights[0].path.startswith(f"{model.name}/low/")


@KERAS_ARRAY
def test_values_and_configuration_are_those_of_keras():
    theirs = keras.Sequential(
        [
            keras.layers.GRU(4, return_sequences=True, name="low"),
            keras.layers.Bidirectional(keras.layers.GRU(3, name="high"), name="both"),
            keras.layers.Dense(2, "tanh", name="out"),
        ]
    )
    theirs.build((None, 5, 2))
    config = json.loads(json.dumps(theirs.get_config()))
    mine = Sequential.from_config(config)
    assert mine.built
    mine.set_weights(theirs.get_weights())
    # Two layers of some dozens of float32 operations.
    np.testing.assert_allclose(mine(X), np.asarray(theirs(X)), rtol=0, atol=64 * 6e-8)
    back = keras.Sequential.from_config(json.loads(json.dumps(mine.get_config())))
    assert [v.shape for v in back.weights] == [v.shape for v in theirs.weights]
    assert [layer.name for layer in back.layers] == ["low", "both", "out"]


def test_config_round_trip():
    model = stack(name="mine", trainable=False)
    again = Sequential.from_config(json.loads(json.dumps(model.get_config())))
    assert not again.built
    assert again.get_config() == model.get_config()
    assert not again.trainable
    model.build((None, 5, 2))
    config = json.loads(json.dumps(model.get_config()))
    again = Sequential.from_config(config)
    assert config["build_input_shape"] == [None, 5, 2]
    assert [v.shape for v in again.weights] == [v.shape for v in model.weights]
    nested = Sequential([Sequential([Dense(3)], name="inner"), Dense(1)])
    nested.build((None, 2))
    again = Sequential.from_config(json.loads(json.dumps(nested.get_config())))
    assert again.layers[0].layers[0].units == 3
    with pytest.raises(ValueError, match="list `layers`"):
        Sequential.from_config({"name": "a"})
    with pytest.raises(ValueError, match="Conv9D"):
        Sequential.from_config({"layers": [{"class_name": "Conv9D", "config": {}}]})


def test_add_and_pop():
    model = Sequential()
    with pytest.raises(ValueError, match="no layers"):
        model.build((None, 3))
    with pytest.raises(ValueError, match="no layers to pop"):
        model.pop()
    model.add(Dense(4, name="a"))
    assert model(np.ones((2, 3))).shape == (2, 4)
    kernel = model.get_weights()[0]
    model.add(Dense(1, name="b"))
    assert not model.built
    assert model(np.ones((2, 3))).shape == (2, 1)
    assert model.get_weights()[0] is kernel
    assert model.pop().name == "b"
    assert model(np.ones((2, 3))).shape == (2, 4)
    model.layers.append("nothing")
    assert len(model.layers) == 1


def test_what_cannot_be_added():
    layer = Dense(1, name="a")
    model = Sequential([layer])
    for wrong in (Dense(2, name="a"), layer):
        with pytest.raises(ValueError, match="unique names"):
            model.add(wrong)
    with pytest.raises(ValueError, match="Only layers"):
        model.add(lambda x: x)
    assert model.layers == [layer]


def test_the_first_layer_gives_the_dtype():
    model = Sequential([Dense(2, dtype="float64"), Dense(1, dtype="float64")])
    x = np.random.default_rng(1).normal(size=(4, 3))
    y = model(x)
    assert y.dtype == np.float64
    a, b = model.layers
    assert np.array_equal(y, b(a(x)))


def test_names_are_numbered():
    first, second = Sequential(), Sequential()
    assert first.name.startswith("sequential")
    assert first.name != second.name


MASK = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 0], [0, 0, 1, 1, 1]], dtype=bool)


@KERAS_ARRAY
@pytest.mark.parametrize("sequences", [True, False])
def test_masks_reach_every_layer_as_in_keras(sequences):
    theirs = keras.Sequential(
        [
            keras.layers.Masking(-9.0),
            keras.layers.Dense(4, name="a"),
            keras.layers.GRU(3, return_sequences=True, name="b"),
            keras.layers.Dense(3, name="c"),
            keras.layers.GRU(2, return_sequences=sequences, name="d"),
            keras.layers.Dense(1, name="e"),
        ]
    )
    masked = np.where(MASK[..., None], X, np.float32(-9))
    expected = np.asarray(theirs(masked))
    model = Sequential(
        [
            Dense(4),
            GRU(3, return_sequences=True),
            Sequential([Dense(3), GRU(2, return_sequences=sequences)]),
            Dense(1),
        ]
    )
    model.build(X.shape)
    model.set_weights(theirs.get_weights())
    for mask in (MASK, MASK[..., None]):
        # A few layers of some dozens of float32 operations.
        np.testing.assert_allclose(model(X, mask=mask), expected, atol=64 * 6e-8)
        y, _ = model.vjp(X, mask=mask)
        assert np.array_equal(y, model(X, mask=mask))
    after = model.compute_mask(X, MASK)
    assert np.array_equal(after, MASK) if sequences else after is None
    assert model.compute_mask(X, None) is None


class Mean(Layer):
    def call(self, x):
        return x.mean(axis=1)

    def compute_output_shape(self, shape):
        return shape[0], shape[2]


def test_a_layer_without_masks_ends_the_mask():
    model = Sequential([GRU(3, return_sequences=True), Mean(name="mean"), Dense(1)])
    model(X)
    with pytest.warns(UserWarning, match="'mean' does not support masking"):
        y = model(X, mask=MASK)
    a, b, c = model.layers
    assert np.array_equal(y, c(b(a(X, mask=MASK))))
    assert model.compute_mask(X, MASK) is None
    with pytest.raises(NotImplementedError, match="Mean has a `call` of its own"):
        model.vjp(X)


def test_several_outputs_only_at_the_end():
    model = Sequential([GRU(3, return_state=True), Dense(1, name="out")])
    with pytest.raises(ValueError, match=r"Only the last layer .* before 'out'"):
        model(X)
    model = Sequential([GRU(3, return_sequences=True, return_state=True)])
    (y, h), pullback = model.vjp(X)
    assert np.array_equal(y[:, -1], h)
    assert pullback((None, np.ones_like(h))).inputs.shape == X.shape


def test_training_is_passed_on():
    model = Sequential([GRU(3, dropout=0.5, seed=1), Dense(1)])
    assert np.array_equal(model(X), model(X, training=False))
    assert not np.array_equal(model(X), model(X, training=True))


def test_frozen_layers_stay():
    model = stack()
    model.compile(optimizers.Adam(0.1), "mse")
    y = np.zeros((3, 2))
    model.fit(X, y, verbose=0)
    model.layers[0].trainable = False
    before = model.get_weights()
    model.fit(X, y, verbose=0)
    after = model.get_weights()
    frozen = len(model.layers[0].weights)
    assert len(model.trainable_weights) == len(model.weights) - frozen
    assert equal(before[:frozen], after[:frozen])
    assert not any(map(np.array_equal, before[frozen:], after[frozen:]))
    model.trainable = False
    model.fit(X, y, verbose=0)
    assert equal(after, model.get_weights())


def test_weights_of_a_changed_stack_need_a_new_optimizer():
    model = Sequential([Dense(2, name="a"), Dense(1, name="b")])
    model.compile("adam", "mse")
    x, y = np.ones((4, 3)), np.ones((4, 1))
    model.fit(x, y, verbose=0)
    model.pop()
    model.add(Dense(1, name="c"))
    with pytest.raises(ValueError, match=r"Unknown variable .*c/kernel"):
        model.fit(x, y, verbose=0)
    model.compile("adam", "mse")
    assert len(model.fit(x, y, verbose=0).epoch) == 1


def test_summary(capsys):
    model = stack(name="mine")
    model.summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'Model: "mine"'
    assert [line.split()[0] for line in lines[3:6]] == ["low", "both", "out"]
    assert all("?" in line and "not built" in line for line in lines[3:6])
    model(X)
    model.layers[2].trainable = False
    texts = []
    model.summary(print_fn=texts.append)
    assert capsys.readouterr().out == ""
    (text,) = texts
    assert "low (GRU)" in text
    assert "(None, 5, 4)" in text
    rows = {line.split()[0]: line.split()[-1] for line in text.splitlines()[3:]}
    assert rows["low"] == str(3 * 4 * (2 + 4 + 2))
    assert rows["out"] == str(2 * 7) == rows["Not"]
    assert rows["Trainable"] == f"{model.count_params() - 14:,}"
    assert max(map(len, text.splitlines())) < 80


def test_copies():
    model = stack()
    y = model(X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(twin(X), y)
        twin.set_weights([0 * w for w in twin.get_weights()])
        assert not twin(X).any()
    assert np.array_equal(model(X), y)

"""The habits of TensorFlow's Keras, beyond the numbers that test_goldens compares."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from numbagru import activations, layers
from numbagru.compat import v1, v2
from numbagru.random import dropout_mask

B, T, F, U = 3, 5, 2, 4
X = np.random.default_rng(0).normal(size=(B, T, F)).astype("float32")
H = np.random.default_rng(1).normal(size=(B, U)).astype("float32")
MASK = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)

both = pytest.mark.parametrize("module", [v1, v2])


def test_defaults_of_v1():
    layer = v1.GRU(U)
    layer(X)
    assert not layer.reset_after
    assert layer.implementation == 1
    hard = activations.get("hard_sigmoid", era="tf_keras")
    assert layer.recurrent_activation == hard
    assert [w.shape for w in layer.get_weights()] == [(F, 12), (U, 12), (12,)]


@both
def test_they_are_the_same_layers(module):
    layer = module.GRU(U, reset_after=True, recurrent_activation="sigmoid")
    plain = layers.GRU(U)
    plain.build(X.shape)
    y = layer(X)
    plain.set_weights(layer.get_weights())
    np.testing.assert_array_equal(plain(X), y)
    assert isinstance(layer, layers.GRU)
    assert isinstance(layer.cell, module.GRUCell)


@both
def test_order_of_call_arguments(module):
    layer = module.GRU(U)
    y = layer(X, MASK, False, H)
    np.testing.assert_array_equal(layer(X, mask=MASK, initial_state=H), y)
    pair = module.Bidirectional(layer)
    y = pair(X, False, MASK, [H, H])
    np.testing.assert_array_equal(pair(X, mask=MASK, initial_state=[H, H]), y)
    rnn = module.RNN(module.GRUCell(U))
    y = rnn(X, MASK, False, H)
    np.testing.assert_array_equal(rnn(X, mask=MASK, initial_state=H), y)


@both
def test_several_results_come_in_a_list(module):
    assert isinstance(module.GRU(U, return_state=True)(X), list)
    pair = module.Bidirectional(module.GRU(U, return_state=True), merge_mode=None)
    assert [type(pair(X)), len(pair(X))] == [list, 4]
    stack = module.RNN([module.GRUCell(3), module.GRUCell(U)], return_state=True)
    assert [np.shape(s) for s in stack(X)] == [(B, U), (B, 3), (B, U)]


@both
def test_initial_states(module):
    cell = module.GRUCell(U)
    assert cell.get_initial_state(X[:, 0]).shape == (B, U)
    assert cell.get_initial_state(batch_size=2, dtype="float64").dtype == np.float64
    with pytest.raises(ValueError, match="`batch_size` cannot be None"):
        cell.get_initial_state()
    (h,) = module.GRU(U).get_initial_state(X)
    np.testing.assert_array_equal(h, np.zeros((B, U)))
    (h,) = module.GRU(U, time_major=True).get_initial_state(X)
    assert h.shape == (T, U)
    stack = module.StackedRNNCells([cell, module.GRUCell(2)])
    assert [s.shape for s in stack.get_initial_state(X[:, 0])] == [(B, U), (B, 2)]


@both
def test_a_recorded_state_wins_unless_it_is_zero(module):
    layer, fresh = (module.GRU(U, stateful=True) for _ in range(2))
    first = layer(X, initial_state=H)
    second = layer(X, initial_state=H)
    assert np.any(first != second)
    fresh.build(X.shape)
    fresh.set_weights(layer.get_weights())
    fresh.reset_states(H)
    np.testing.assert_array_equal(fresh(X), first)
    np.testing.assert_array_equal(fresh(X), second)


@both
def test_resetting_is_strict(module):
    with pytest.raises(AttributeError, match="must be stateful"):
        module.GRU(U).reset_states()
    with pytest.raises(ValueError, match="batch size"):
        module.GRU(U, stateful=True).reset_states()


@pytest.mark.parametrize(
    ("build", "varies", "draws"),
    [
        (lambda: v2.GRU(U, dropout=0.5, seed=1), True, 1),
        (lambda: v2.GRU(U, dropout=0.5, seed=1, implementation=1), True, 1),
        (lambda: v2.GRU(U, dropout=0.5, seed=1, unroll=True), False, 1),
        (lambda: v2.GRU(U, dropout=0.5, seed=1, reset_after=False), False, 1),
        (lambda: v2.GRU(U, "linear", dropout=0.5, seed=1), False, 1),
        (lambda: v2.GRU(U, dropout=0.5, recurrent_dropout=0.5, seed=1), False, 6),
        (lambda: v2.RNN(v2.GRUCell(U, dropout=0.5, seed=1)), False, 1),
        (lambda: v1.GRU(U, dropout=0.5, seed=1), False, 3),
        (lambda: layers.GRU(U, dropout=0.5, seed=1), False, 1),
    ],
)
def test_input_dropout_over_time(build, varies, draws):
    layer = build()
    x = np.ones((3, 3, 40), "float32")  # B = T = 3, as many as gates
    layer.build(x.shape)
    state = layer.variables[-1]
    if layer.config.profile.flavor == "tf_keras":
        layer(x)
    assert state.value[1] == 0
    _, pullback = layer.vjp(x, training=True)
    assert state.value[1] == draws
    if draws == 1:
        shape = x.shape if varies else (3, 1, 40)
        kept = dropout_mask(shape, 0.5, (1, 0)) > 0
        gradient = pullback(np.ones((3, U))).inputs
        np.testing.assert_array_equal(gradient != 0, np.broadcast_to(kept, x.shape))


@both
def test_round_trip(module):
    layer = module.Bidirectional(module.RNN([module.GRUCell(3), module.GRUCell(2)]))
    config = layer.get_config()
    twin = module.Bidirectional.from_config(config)
    assert twin.get_config() == config
    assert type(twin.forward_layer) is module.RNN
    assert type(twin.forward_layer.cell.cells[0]) is module.GRUCell
    saved = layers.serialize(module.GRU(3, name="g"))
    assert saved["module"] == module.__name__
    assert type(layers.deserialize(saved)) is module.GRU


@both
def test_a_new_process_finds_the_classes(module):
    """They are imported when they are needed, not with the package."""
    layer = module.Bidirectional(module.GRU(3))
    saved = json.dumps(layers.serialize(layer))
    code = (
        "import json, pickle, sys; from numbagru import layers; "
        "print('numbagru.compat' in sys.modules); "
        f"layer = layers.deserialize(json.loads({saved!r})); "
        f"again = pickle.loads({pickle.dumps(layer)!r}); "
        "print(type(layer).__module__, type(again.forward_layer).__module__)"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", module.__name__, module.__name__]


def test_names_are_those_of_the_other_keras():
    assert v2.GRU(3, "silu").get_config()["activation"] == "swish"
    assert v2.GRU(3, "swish").activation == activations.get("silu")
    given = activations.get("hard_sigmoid")
    config = v2.GRU(3, given).get_config()
    assert v2.GRU.from_config(config).activation == given


@both
def test_keras3_reads_the_config(module):
    saved = module.GRU(3, dropout=0.5, name="g").get_config()
    layer = layers.GRU.from_config(saved)
    assert layer.to_keras_config("tf_keras") == saved
    assert layer.recurrent_activation == module.GRU(3).recurrent_activation

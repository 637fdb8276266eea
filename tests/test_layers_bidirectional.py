"""Bidirectional: how the two halves are made, joined, saved and refused."""

import copy

import numpy as np
import pytest

from numbagru.initializers import Constant
from numbagru.layers import GRU, RNN, Bidirectional, Dense, GRUCell

X = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")
MASK = np.array([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
MERGES = {
    "sum": lambda y, r: y + r,
    "mul": lambda y, r: y * r,
    "ave": lambda y, r: (y + r) / 2,
    "concat": lambda y, r: np.concatenate([y, r], -1),
    None: lambda y, r: (y, r),
}


def halves(layer, **kwargs):
    """Return the two GRUs that make up a Bidirectional layer."""
    pair = GRU(4, **kwargs), GRU(4, go_backwards=True, **kwargs)
    for one, part in zip(
        pair, (layer.forward_layer, layer.backward_layer), strict=True
    ):
        one.build(X.shape)
        one.set_weights(part.get_weights())
    return pair


def test_anchor():
    constant = {
        "kernel_initializer": Constant(0.01),
        "recurrent_initializer": Constant(0.02),
        "bias_initializer": Constant(0.03),
    }
    layer = Bidirectional(GRU(2, return_sequences=True, **constant), merge_mode="sum")
    y = layer(np.arange(24, dtype="float32").reshape(2, 3, 4))
    expected = [
        [0.20937867, 0.34462988, 0.40290534],
        [0.59829646, 0.6734641, 0.6479671],
    ]
    np.testing.assert_allclose(y, np.repeat(np.array(expected)[..., None], 2, 2), 1e-6)


@pytest.mark.parametrize("merge_mode", MERGES)
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("return_state", [False, True])
def test_joins_two_layers(merge_mode, return_sequences, return_state):
    kwargs = {"return_sequences": return_sequences, "return_state": return_state}
    layer = Bidirectional(GRU(4, **kwargs), merge_mode=merge_mode)
    layer.build(X.shape)
    one, other = halves(layer, zero_output_for_mask=return_sequences, **kwargs)
    states = [np.full((3, 4), v, "float32") for v in (0.5, -0.5)]
    call = {"mask": MASK}
    y = one(X, initial_state=states[0], **call)
    r = other(X, initial_state=states[1], **call)
    h = []
    if return_state:
        (y, h_y), (r, h_r) = y, r
        h = [h_y, h_r]
    joined = MERGES[merge_mode](y, r[:, ::-1] if return_sequences else r)
    expected = [*(joined if merge_mode is None else [joined]), *h]
    out = layer(X, initial_state=states, **call)
    assert isinstance(out, tuple) == (len(expected) > 1)
    parts = out if isinstance(out, tuple) else (out,)
    shapes = layer.compute_output_shape(X.shape)
    masks = layer.compute_mask(X, MASK)
    if len(parts) == 1:
        shapes, masks = [shapes], [masks]
    assert len(masks) == len(parts)
    for part, desired, shape in zip(parts, expected, shapes, strict=True):
        np.testing.assert_array_equal(part, desired)
        assert part.shape == shape
    n_outputs = 2 if merge_mode is None else 1
    assert all(m is None for m in masks[n_outputs:])
    assert all((m is MASK) == return_sequences for m in masks[:n_outputs])


def test_children_are_new_and_start_differently():
    given = GRU(4, name="mine", kernel_regularizer="l2", activity_regularizer="l1")
    layer = Bidirectional(given)
    layer(X)
    assert not given.built
    names = [layer.forward_layer.name, layer.backward_layer.name]
    assert names == ["forward_mine", "backward_mine"]
    paths = [v.path for v in layer.weights]
    assert paths[0] == f"{layer.name}/forward_mine/gru_cell/kernel"
    assert paths[3] == f"{layer.name}/backward_mine/gru_cell/kernel"
    weights = layer.get_weights()
    assert np.any(weights[0] != weights[3])
    assert np.any(weights[1] != weights[4])
    assert len(layer.losses) == 4
    assert layer.losses[2] == layer.forward_layer.losses[1]


def test_arguments_beyond_the_config_reach_the_children():
    given = GRU(4, use_cudnn=False, implementation=1, dropout=0.5, seed=3)
    layer = Bidirectional(given)
    for child in (layer.forward_layer, layer.backward_layer):
        assert child.use_cudnn is False
        assert child.implementation == 1
        assert child.seed == 3


def test_given_weights():
    source = Bidirectional(GRU(4))
    y = source(X)
    layer = Bidirectional(GRU(4), weights=source.get_weights())
    np.testing.assert_array_equal(layer(X), y)
    wrong = Bidirectional(GRU(4), weights=source.get_weights()[:3])
    with pytest.raises(ValueError, match="weight list of length 3"):
        wrong(X)


def test_backward_layer_of_its_own():
    backward = GRU(3, activation="relu", go_backwards=True, name="mine")
    layer = Bidirectional(GRU(4), backward_layer=backward)
    assert layer(X).shape == (3, 7)
    assert layer.backward_layer is backward


def test_cells_in_both_directions():
    layer = Bidirectional(RNN([GRUCell(4), GRUCell(3)], return_sequences=True))
    assert layer(X, mask=MASK).shape == (3, 5, 6)
    assert len(layer.weights) == 12


def test_stateful():
    layer = Bidirectional(GRU(4, stateful=True), merge_mode="sum")
    assert layer.states is None
    first = layer(X)
    assert np.any(layer(X) != first)
    layer.reset_state()
    np.testing.assert_array_equal(layer(X), first)
    states = [np.full((3, 4), v, "float32") for v in (0.5, -0.5)]
    layer.reset_states(states)
    for variable, state in zip(layer.states, states, strict=True):
        np.testing.assert_array_equal(variable, state)
    with pytest.raises(ValueError, match="expected shape"):
        layer.reset_states([states[0] + 1, np.zeros((2, 4))])
    np.testing.assert_array_equal(layer.states[0], states[0])
    with pytest.raises(AttributeError, match="must be stateful"):
        Bidirectional(GRU(4)).reset_state()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outputs_have_the_dtype_of_the_wrapper(dtype):
    assert Bidirectional(GRU(4, dtype="float64"), dtype=dtype)(X).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((lambda x: x,), "`layer` must be"),
        ((Dense(3),), "`layer` must be"),
        ((GRU(4), "mean"), "Invalid merge mode"),
        ((GRU(4), "sum", None, 3), "`backward_layer` must be"),
        ((GRU(4), "sum", None, GRU(4)), "different `go_backwards`"),
        ((GRU(4, go_backwards=True),), "different `go_backwards`"),
        (
            (GRU(4), "sum", None, GRU(4, go_backwards=True, return_state=True)),
            'attribute "return_state"',
        ),
        (
            (GRU(4, stateful=True), "sum", None, GRU(4, go_backwards=True)),
            'attribute "stateful"',
        ),
    ],
)
def test_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Bidirectional(*arguments)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"initial_state": np.zeros((3, 4))}, "`initial_state` must be a list"),
        ({"initial_state": [np.zeros((3, 4))] * 3}, "`initial_state` must be a list"),
        ({"initial_state": [np.zeros((3, 4)), np.zeros((1, 4))]}, "nothing is broadc"),
        ({"mask": MASK.T}, "`mask` must have"),
    ],
)
def test_a_refused_call_changes_nothing(kwargs, words):
    layer = Bidirectional(GRU(4, dropout=0.5, seed=1, stateful=True))
    layer(X)
    before = [np.array(v) for v in (*layer.variables, *layer.states)]
    for run in (layer, layer.vjp):
        with pytest.raises(ValueError, match=words):
            run(X, training=True, **kwargs)
    for old, variable in zip(before, (*layer.variables, *layer.states), strict=True):
        np.testing.assert_array_equal(old, variable)


def test_config():
    layer = Bidirectional(GRU(4, return_sequences=True), merge_mode="ave", name="both")
    config = layer.get_config()
    assert list(config) == [
        "name",
        "trainable",
        "dtype",
        "merge_mode",
        "layer",
        "backward_layer",
    ]
    twin = Bidirectional.from_config(copy.deepcopy(config))
    assert twin.get_config() == config
    del config["backward_layer"]
    assert Bidirectional.from_config(config).backward_layer.go_backwards

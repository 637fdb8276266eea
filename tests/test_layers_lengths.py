"""`lengths` beside `mask`, and lists of sequences of different lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbagru import layers
from numbagru.compat import v1, v2
from numbagru.layers.structure import flatten

B, T, F, U = 4, 5, 3, 2
X = np.random.default_rng(0).normal(size=(B, T, F)).astype("float32")
LENGTHS = np.array([3, 0, 5, 1])
MASK = np.arange(T) < LENGTHS[:, None]
ROWS = [row[:n] for row, n in zip(X, LENGTHS, strict=True)]
SEQUENCES = {"return_sequences": True, "return_state": True}


def equal(actual, desired):
    for a, b in zip(flatten(actual), flatten(desired), strict=True):
        np.testing.assert_array_equal(a, b)


class OwnCell(layers.GRUCell):
    """A cell that the layer must call at each step, since `call` is its own."""

    def call(self, inputs, states, training=False):
        return super().call(inputs, states, training)

    def _vjp(self, inputs, states, training=False):
        return super()._vjp(inputs, states, training)


LAYERS = {
    "last": lambda: layers.GRU(U),
    "all": lambda: layers.GRU(U, **SEQUENCES),
    "backwards": lambda: layers.GRU(U, go_backwards=True, **SEQUENCES),
    "zeros": lambda: layers.GRU(U, zero_output_for_mask=True, **SEQUENCES),
    "stateful": lambda: layers.GRU(U, stateful=True, **SEQUENCES),
    "dropout": lambda: layers.GRU(U, dropout=0.5, seed=1, **SEQUENCES),
    "stack": lambda: layers.RNN([layers.GRUCell(3), layers.GRUCell(U)], **SEQUENCES),
    "steps": lambda: layers.RNN(OwnCell(U), go_backwards=True, **SEQUENCES),
    "both": lambda: layers.Bidirectional(layers.GRU(U, **SEQUENCES)),
    "both last": lambda: layers.Bidirectional(layers.GRU(U), merge_mode="mul"),
    "v1": lambda: v1.GRU(U, **SEQUENCES),
    "v2": lambda: v2.Bidirectional(v2.RNN(v2.GRUCell(U), **SEQUENCES)),
}


def twins(kind):
    """Return two layers with equal weights and random states."""
    one, other = LAYERS[kind](), LAYERS[kind]()
    for layer in (one, other):
        layer.build(X.shape)
    other.set_weights(one.get_weights())
    return one, other


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("training", [False, True])
def test_lengths_are_a_mask(kind, training):
    one, other = twins(kind)
    for _ in range(2):
        desired = other(X, mask=MASK, training=training)
        equal(one(X, lengths=LENGTHS, training=training), desired)
    desired, pull_other = other.vjp(X, mask=MASK, training=training)
    actual, pull = one.vjp(X, lengths=LENGTHS, training=training)
    equal(actual, desired)
    equal(list(pull(actual)), list(pull_other(desired)))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("collect", [list, tuple])
def test_ragged_rows_are_padded(kind, collect):
    one, other = twins(kind)
    padded = np.where(MASK[..., None], X, 0)
    desired = other(padded, mask=MASK)
    equal(one(collect(ROWS)), desired)
    desired, pull_other = other.vjp(padded, mask=MASK)
    actual, pull = one.vjp(collect(ROWS))
    equal(actual, desired)
    equal(list(pull(actual)), list(pull_other(desired)))


def test_the_first_call_may_bring_lengths():
    layer = layers.GRU(U)
    y = layer(ROWS)
    equal(layer(X, lengths=LENGTHS), y)
    equal(layer(X, lengths=LENGTHS.tolist()), y)
    equal(layer(X, lengths=LENGTHS.astype("uint8")), y)
    equal(layer([row.tolist() if len(row) else row for row in ROWS]), y)
    assert layers.GRU(U)(ROWS).shape == (B, U)


def test_time_first():
    layer = layers.GRU(U, **SEQUENCES)
    y, h = layer(X, lengths=LENGTHS)
    layer.time_major = True
    y_major, h_major = layer(X.swapaxes(0, 1), lengths=LENGTHS, mask=MASK.T)
    equal([y_major.swapaxes(0, 1), h_major], [y, h])


def test_inner_loop():
    layer = layers.GRU(U, **SEQUENCES)
    y, h = layer(X, lengths=LENGTHS)
    last, outputs, states = layer.inner_loop(X, None, lengths=LENGTHS)
    equal([last, outputs, *states], [h, y, h])
    equal(layer.inner_loop(ROWS, None)[1], y)


@pytest.mark.parametrize("form", [MASK, MASK[..., None], MASK.astype(int), [MASK]])
def test_a_mask_that_agrees_may_come_along(form):
    layer = layers.GRU(U)
    equal(layer(X, mask=form, lengths=LENGTHS), layer(X, mask=MASK))
    assert layer(X, mask=[None], lengths=LENGTHS).shape == (B, U)


def test_what_lies_beyond_the_end_is_not_read():
    layer = layers.GRU(U, **SEQUENCES)
    y, h = layer(X, lengths=LENGTHS)
    spoiled = np.where(MASK[..., None], X, np.nan)
    equal(layer(spoiled, lengths=LENGTHS), (y, h))
    for i, n in enumerate(LENGTHS):
        if n:
            equal(layer(X[i : i + 1, :n])[1], h[i : i + 1])


def test_rows_of_one_length_are_stacked_as_ever():
    layer = layers.GRU(U)
    equal(layer(list(X)), layer(X))
    equal(layer(list(X), mask=MASK), layer(X, lengths=LENGTHS))
    equal(layer(list(X), lengths=LENGTHS), layer(X, lengths=LENGTHS))
    layer.time_major = True
    equal(layer(list(X.swapaxes(0, 1))), layer(X.swapaxes(0, 1)))


def test_no_rows_and_no_steps():
    layer = layers.GRU(U)
    layer.build(X.shape)
    assert layer(X[:0], lengths=[]).shape == (0, U)
    equal(layer(X[:, :0], lengths=[0] * B), np.zeros((B, U)))


@given(st.lists(st.integers(0, T), min_size=1, max_size=6), st.booleans())
def test_each_row_is_what_it_is_alone(lengths, backwards):
    x = np.random.default_rng(len(lengths)).normal(size=(len(lengths), T, F))
    layer = layers.GRU(
        U, dtype="float64", go_backwards=backwards, bias_initializer="ones"
    )
    h = layer(x, lengths=lengths)
    rows = [row[:n] for row, n in zip(x, lengths, strict=True)]
    for i, row in enumerate(rows):
        equal(h[i : i + 1], layer(row[None]) if len(row) else np.zeros((1, U)))
    equal(layer(rows), h)


ODD = [X[0], X[1, :2, :2]]
BAD_CALLS = [
    (X, {"lengths": [3, 0, 6, 1]}, ValueError, r"from 0 to 5.*lengths\[2\]=6"),
    (X, {"lengths": [3, -1, 5, 1]}, ValueError, r"from 0 to 5.*lengths\[1\]=-1"),
    (X, {"lengths": [3, 0, 5]}, ValueError, r"shape \(batch,\) = \(4,\).*\(3,\)"),
    (X, {"lengths": 3}, ValueError, r"`lengths` must have the shape \(batch,\)"),
    (X, {"lengths": [[3], [0], [5], [1]]}, ValueError, "`lengths` must have the shape"),
    (X, {"lengths": LENGTHS + 0.0}, TypeError, r"`lengths` must be integers.*float64"),
    (X, {"lengths": LENGTHS > 1}, TypeError, "`lengths` must be integers.*bool"),
    (X, {"lengths": ["3"] * B}, TypeError, "`lengths` must be integers"),
    (
        X,
        {"lengths": LENGTHS, "mask": np.ones((B, T))},
        ValueError,
        r"`mask` contradicts `lengths`.*lengths\[0\]=3 with 5 true",
    ),
    (X, {"lengths": LENGTHS, "mask": MASK[:, ::-1]}, ValueError, "contradicts"),
    (X, {"lengths": LENGTHS, "mask": np.ones((B, T + 1))}, ValueError, "`mask` must"),
    (ROWS, {"lengths": LENGTHS}, ValueError, "pass neither.*lengths is not None"),
    (ROWS, {"mask": MASK}, ValueError, "pass neither.*mask is not None"),
    (ODD, {}, ValueError, r"the same features.*sequences\[1\].shape=\(2, 2\)"),
    ([X[0, 0], X[0, 0, :2]], {}, ValueError, r"\(steps, features\)"),
    ([X[0], X[0, 0, 0]], {}, ValueError, r"\(steps, features\)"),
    ([X[0], 1j * X[0, :2]], {}, TypeError, "real numbers"),
    ([row[:, :2] for row in ROWS], {}, ValueError, "3 features"),
    (X[..., :2], {"lengths": LENGTHS}, ValueError, "3 features"),
    (X[0], {"lengths": LENGTHS}, ValueError, "ndim=3, found ndim=2"),
]


@pytest.mark.parametrize("kind", ["last", "stateful", "dropout", "both", "v2"])
@pytest.mark.parametrize(("x", "call", "error", "words"), BAD_CALLS)
def test_a_refused_call_changes_nothing(kind, x, call, error, words):
    layer = LAYERS[kind]()
    layer(X)
    states = flatten(getattr(layer, "states", None) or [])
    before = [np.array(v) for v in (*layer.variables, *states)]
    for run in (layer, layer.vjp):
        with pytest.raises(error, match=words):
            run(x, training=True, **call)
    for old, variable in zip(before, (*layer.variables, *states), strict=True):
        np.testing.assert_array_equal(old, variable)


@pytest.mark.parametrize("kind", ["last", "stack", "both"])
@pytest.mark.parametrize(("x", "call", "error", "words"), BAD_CALLS[:-3])
def test_a_refused_first_call_builds_nothing(kind, x, call, error, words):
    layer = LAYERS[kind]()
    for run in (layer, layer.vjp):
        with pytest.raises(error, match=words):
            run(x, **call)
    assert not layer.built
    assert layer.weights == []


def test_ragged_rows_come_before_time():
    layer = layers.GRU(U, time_major=True)
    with pytest.raises(ValueError, match=r"needs time_major=False.*time_major=True"):
        layer(ROWS)
    assert not layer.built

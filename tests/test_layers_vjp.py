"""The pullbacks of all layers against central differences."""

import numpy as np
import pytest

from differences import central_difference
from numbagru import layers
from numbagru.config import PROFILES
from numbagru.layers.structure import flatten, pack_like
from numbagru.regularizers import Regularizer

B, T, F, U = 2, 4, 3, 2
GAPS = np.array([[0, 1, 0, 1], [1, 1, 0, 0]], bool)
EMPTY = np.array([[1, 0, 1, 1], [0, 0, 0, 0]], bool)
PENALTIES = {
    "kernel_regularizer": "l2",
    "recurrent_regularizer": "l1",
    "bias_regularizer": {"class_name": "L1L2", "config": {"l1": 0.1, "l2": 0.2}},
    "activity_regularizer": {"class_name": "L1L2", "config": {"l1": 0.3, "l2": 0.5}},
}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def leaves(out):
    return flatten(out)


def check(layer, x, states, *, loss=True, seed=5, **kwargs):
    """Compare all gradients of <cotangent, outputs> + losses with differences.

    The error of a difference is about h^2 f''' / 6 + eps |f| / h = 1e-10 for h = 1e-5
    and derivatives of order one, of which a few hundred add up.
    """
    given = {"initial_state": states} if states is not None else {}
    layer.build(x.shape)
    layer.set_weights([0.7 * random(*v.shape, seed=9) for v in layer.weights])
    start = [np.array(v) for v in layer.variables]

    def rewind():
        for variable, value in zip(layer.variables, start, strict=True):
            variable.assign(value)

    out, pullback = layer.vjp(x, **given, **kwargs)
    rng = np.random.default_rng(seed)
    flat = [rng.normal(size=y.shape) for y in leaves(out)]
    cotangent = pack_like(out, flat)

    def objective(x, states, weights):
        rewind()
        layer.set_weights(weights)
        given = {"initial_state": states} if states is not None else {}
        ys = leaves(layer(x, **given, **kwargs))
        total = sum(np.sum(d * y) for d, y in zip(flat, ys, strict=True))
        return total + (sum(layer.losses) if loss else 0)

    weights = layer.get_weights()
    grads = pullback(cotangent, include_losses=loss)
    again = pullback(cotangent, include_losses=loss)
    close(
        grads.inputs,
        central_difference(lambda v: objective(v, states, weights), x),
    )
    for i, gradient in enumerate(grads.weights):
        np.testing.assert_array_equal(gradient, again.weights[i])

        def changed(w, i=i):
            return objective(x, states, [*weights[:i], w, *weights[i + 1 :]])

        close(gradient, central_difference(changed, weights[i]))
    if states is not None:
        flat_states = leaves(states)
        for i, gradient in enumerate(leaves(grads.initial_state)):

            def changed(h, i=i):
                new = [*flat_states[:i], h, *flat_states[i + 1 :]]
                return objective(x, pack_like(states, new), weights)

            close(gradient, central_difference(changed, flat_states[i]))
    rewind()


def close(gradient, difference):
    np.testing.assert_allclose(gradient, difference, rtol=1e-6, atol=1e-8)


def gru(**kwargs):
    return layers.GRU(U, dtype="float64", **kwargs)


BOTH = {"return_sequences": True, "return_state": True}


@pytest.mark.parametrize(
    ("kwargs", "call"),
    [
        ({}, {}),
        (BOTH, {"mask": GAPS}),
        ({"return_state": True}, {"mask": EMPTY}),
        ({**BOTH, "go_backwards": True}, {"mask": GAPS}),
        ({**BOTH, "zero_output_for_mask": True}, {"mask": EMPTY}),
        ({**BOTH, "compat": "keras3-jax"}, {"mask": EMPTY}),
        ({**BOTH, "reset_after": False}, {"mask": GAPS}),
        ({"use_bias": False}, {}),
        ({"dropout": 0.4, "seed": 1}, {"training": True}),
        ({"dropout": 0.4, "seed": 1}, {"training": False}),
        ({"dropout": 0.4, "seed": 1, "implementation": 1}, {"training": True}),
        (
            {**BOTH, "dropout": 0.3, "recurrent_dropout": 0.4, "seed": 3},
            {"training": True, "mask": GAPS},
        ),
        (
            {"recurrent_dropout": 0.4, "seed": 3, "reset_after": False},
            {"training": True},
        ),
        ({"dropout": 0.4, "seed": 1, "compat": "tf_keras"}, {"training": True}),
        (PENALTIES, {}),
        ({**PENALTIES, **BOTH}, {"mask": GAPS}),
        ({**PENALTIES, "trainable": False}, {}),
    ],
)
@pytest.mark.parametrize("with_state", [False, True])
def test_gru(kwargs, call, with_state):
    check(gru(**kwargs), random(B, T, F), random(B, U) if with_state else None, **call)


def test_time_major():
    layer = gru(time_major=True, activity_regularizer="l2", **BOTH)
    check(layer, random(T, B, F), random(B, U), mask=GAPS.T)


def test_losses_only_when_asked_for():
    check(gru(**PENALTIES), random(B, T, F), None, loss=False)


def test_the_recorded_state_is_the_initial_state():
    x = random(B, T, F)
    layer, plain = gru(stateful=True), gru()
    layer(x)
    plain.build(x.shape)
    plain.set_weights(layer.get_weights())
    h = np.array(layer.states[0])
    expected = plain.vjp(x, initial_state=h)[1](np.ones((B, U)))
    actual = layer.vjp(x)[1](np.ones((B, U)))
    for a, b in zip(leaves(list(actual)), leaves(list(expected)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(layer.states[0].value != h)


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (gru(), 1),
        (gru(dropout=0.5), 1),
        (layers.RNN(layers.GRUCell(U), dtype="float64"), 1),
        (layers.RNN([layers.GRUCell(U), layers.GRUCell(U)], dtype="float64"), 2),
        (layers.Bidirectional(gru(), dtype="float64"), 2),
    ],
)
@pytest.mark.parametrize("mask", [None, GAPS])
def test_states_that_nobody_gave_have_no_gradient(layer, count, mask):
    x = random(B, T, F)
    y, pullback = layer.vjp(x, mask=mask)
    ones = np.ones_like(y)
    none = pullback(ones)
    assert none.initial_state is None
    zeros = [np.zeros((B, U))] * count
    given = layer.vjp(x, initial_state=zeros, mask=mask)[1](ones)
    assert [np.shape(g) for g in leaves(given.initial_state)] == [(B, U)] * count
    np.testing.assert_array_equal(none.inputs, given.inputs)
    for one, other in zip(none.weights, given.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_of_a_cotangent_may_be_left_out():
    x, h0 = random(B, T, F), random(B, U)
    layer = gru(**BOTH)
    (y, h), pullback = layer.vjp(x, initial_state=h0)
    zero = pullback(None)
    for g in [zero.inputs, zero.initial_state, *zero.weights]:
        assert not np.any(g)
    total = pullback((y, h)).inputs
    parts = pullback((y, None)).inputs + pullback([None, h]).inputs
    np.testing.assert_allclose(total, parts, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "cotangent", [np.ones((B, U)), (None,), (np.ones((B, U)),) * 2]
)
def test_refused_cotangents(cotangent):
    _, pullback = gru(**BOTH).vjp(random(B, T, F))
    with pytest.raises(ValueError, match="`cotangent` must have the s"):
        pullback(cotangent)


def test_a_penalty_without_gradient():
    layer = gru(kernel_regularizer=lambda w: np.sum(np.abs(w)))
    _, pullback = layer.vjp(random(B, T, F))
    assert len(pullback(None).weights) == 3
    with pytest.raises(TypeError, match="no `gradient"):
        pullback(None, include_losses=True)


@pytest.mark.parametrize("compat", PROFILES)
def test_the_forward_result_is_that_of_a_call(compat):
    x = random(B, T, F)
    layer = gru(dropout=0.5, seed=2, activity_regularizer="l2", compat=compat, **BOTH)
    layer.build(x.shape)
    state = layer.variables[-1]
    before = state.value
    y, h = layer(x, mask=GAPS, training=True)
    losses, after = layer.losses, state.value
    state.assign(before)
    (y_vjp, h_vjp), _ = layer.vjp(x, mask=GAPS, training=True)
    np.testing.assert_array_equal(y, y_vjp)
    np.testing.assert_array_equal(h, h_vjp)
    np.testing.assert_array_equal(state.value, after)
    assert layer.losses == losses


# ----------------------------------------------------------- cells and what runs them


@pytest.mark.parametrize("wrap", [lambda h: h, lambda h: [h]])
def test_cell(wrap):
    x, h0 = random(B, F), random(B, U)
    cell = layers.GRUCell(
        U, dtype="float64", dropout=0.4, recurrent_dropout=0.3, seed=1
    )
    cell.build(x.shape)
    _, pullback = cell.vjp(x, wrap(h0), training=True)
    d_h, d_state = random(B, U, seed=1), random(B, U, seed=2)
    grads = pullback((d_h, wrap(d_state)))

    def objective(x, h0):
        y, state = cell(x, wrap(h0), training=True)
        return np.sum(d_h * y) + np.sum(d_state * leaves(state)[0])

    close(grads.inputs, central_difference(lambda v: objective(v, h0), x))
    close(grads.initial_state, central_difference(lambda v: objective(x, v), h0))
    assert len(grads.weights) == 3


@pytest.mark.parametrize(
    ("kwargs", "call"),
    [
        (BOTH, {"mask": GAPS}),
        ({**BOTH, "go_backwards": True}, {"mask": EMPTY}),
        ({"return_state": True, "zero_output_for_mask": True}, {"mask": EMPTY}),
        ({"activity_regularizer": "l2", "compat": "keras3-jax"}, {"mask": GAPS}),
    ],
)
def test_stack(kwargs, call):
    cells = [
        layers.GRUCell(3, dtype="float64", kernel_regularizer="l2"),
        layers.GRUCell(U, dtype="float64", dropout=0.4, seed=2),
    ]
    layer = layers.RNN(cells, dtype="float64", **kwargs)
    states = [random(B, 3, seed=1), [random(B, U, seed=2)]]
    check(layer, random(B, T, F), states, training=True, **call)


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_bidirectional(merge_mode, return_sequences):
    layer = layers.Bidirectional(
        gru(return_sequences=return_sequences, return_state=True, **PENALTIES),
        merge_mode=merge_mode,
        dtype="float64",
        activity_regularizer="l2",
    )
    states = [random(B, U, seed=1), random(B, U, seed=2)]
    check(layer, random(B, T, F), states, mask=GAPS)


def test_bidirectional_time_major():
    layer = layers.Bidirectional(gru(time_major=True, **BOTH), dtype="float64")
    check(layer, random(T, B, F), None, mask=GAPS.T)


class Sum(Regularizer):
    """A penalty whose gradient is one number."""

    def __call__(self, w):
        return w.sum()

    def gradient(self, w):
        return 1.0


def test_an_activity_gradient_may_be_one_number():
    layer = layers.GRU(3, return_state=True, activity_regularizer=Sum())
    plain = layers.GRU(3, return_state=True)
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype("float32")
    for one in (layer, plain):
        one.build(x.shape)
    plain.set_weights(layer.get_weights())
    _, pullback = layer.vjp(x)
    _, expected = plain.vjp(x)
    halves = np.full((2, 3), 1 / 2, "float32")  # divided by the rows
    found = pullback([None, halves], include_losses=True)
    right = expected([halves, 2 * halves])
    np.testing.assert_array_equal(found.inputs, right.inputs)
    for a, b in zip(found.weights, right.weights, strict=True):
        np.testing.assert_array_equal(a, b)

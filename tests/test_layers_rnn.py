"""GRUCell, RNN and StackedRNNCells: kernels against steps, and cells of users."""

import copy

import numpy as np
import pytest

from differences import central_difference
from numbagru.layers import GRU, RNN, Grads, GRUCell, Layer, StackedRNNCells
from numbagru.layers.structure import flatten

B, T, F = 3, 5, 2
LEFT = np.array([[0, 0, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


def random(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


class SteppedCell(GRUCell):
    """A GRUCell that the layer must call at each step, since `call` is its own."""

    def call(self, inputs, states, training=False):
        self.steps = getattr(self, "steps", 0) + 1
        return super().call(inputs, states, training)

    def _vjp(self, inputs, states, training=False):
        return super()._vjp(inputs, states, training)


def equal(actual, desired):
    actual, desired = flatten(actual), flatten(desired)
    for a, b in zip(actual, desired, strict=True):
        np.testing.assert_array_equal(a, b)


# --------------------------------------------------------------------------- GRUCell


def test_cell_is_one_step_of_the_layer():
    x = random(B, T, F)
    layer = GRU(4, return_sequences=True)
    y = layer(x)
    states = layer.cell.get_initial_state(B)
    for t in range(T):
        h, states = layer.cell(x[:, t], states)
        np.testing.assert_array_equal(h, y[:, t])
        assert states[0] is h


def test_cell_returns_states_as_they_came():
    cell = GRUCell(4)
    x, h0 = random(B, F), random(B, 4)
    h, state = cell(x, h0)
    assert state is h
    for nested in ([h0], (h0,)):
        again, states = cell(x, nested)
        assert isinstance(states, list)
        equal(states, [again])
        equal(again, h)
    assert cell.state_size == cell.output_size == cell.units == 4
    assert cell.compute_output_shape((B, F)) == ((B, 4), (B, 4))


def test_cell_keeps_its_masks_until_reset():
    cell = GRUCell(4, dropout=0.5, recurrent_dropout=0.5, seed=1)
    x, h0 = random(B, F), random(B, 4)
    first = cell(x, h0, training=True)
    equal(cell(x, h0, training=True), first)
    assert list(cell.variables[-1].value) == [1, 6]
    assert [m.shape for m in cell.get_dropout_mask(x)] == [(B, F)] * 3
    assert [m.shape for m in cell.get_recurrent_dropout_mask(h0)] == [(B, 4)] * 3
    cell.reset_dropout_mask()
    cell.reset_recurrent_dropout_mask()
    assert np.any(cell(x, h0, training=True)[0] != first[0])
    assert GRUCell(4).get_dropout_mask(x) is None
    assert GRUCell(4, dropout=0.5).get_dropout_mask(x).shape == (B, F)


@pytest.mark.parametrize(
    ("x", "h", "error", "words"),
    [
        (random(B, T, F), random(B, 4), ValueError, "ndim=2, found ndim=3"),
        (random(B, F + 1), random(B, 4), ValueError, f"{F} features"),
        (random(B, F), random(1, 4), ValueError, "`states` must have the shape"),
        (random(B, F), [random(B, 4)] * 2, ValueError, "`states` must hold 1"),
        (random(B, F) > 1j, random(B, 4), None, None),
        (random(B, F) * 1j, random(B, 4), TypeError, "real numbers"),
    ],
)
def test_refused_steps_draw_nothing(x, h, error, words):
    cell = GRUCell(4, dropout=0.5, seed=1)
    cell.build((None, F))
    if error is None:
        assert cell(x, h, training=True)[0].shape == (B, 4)
        return
    with pytest.raises(error, match=words):
        cell(x, h, training=True)
    assert cell.variables[-1].value[1] == 0


# ------------------------------------------------------------ stacks, kernels or steps


def twins(units, **kwargs):
    """Return a stack for the kernels and one with equal weights to step through."""
    options = {"dropout": 0.3, "recurrent_dropout": 0.4, "dtype": "float64"}
    fused = RNN([GRUCell(u, seed=u, **options) for u in units], **kwargs)
    stepped = RNN([SteppedCell(u, seed=u, **options) for u in units], **kwargs)
    for layer in (fused, stepped):
        layer.build((B, T, F) if not kwargs.get("time_major") else (T, B, F))
    stepped.set_weights(fused.get_weights())
    assert "python_loop" in stepped.explain((B, T, F))
    assert "python_loop" not in fused.explain((B, T, F))
    return fused, stepped


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_sequences": True, "return_state": True},
        {"return_sequences": True, "go_backwards": True},
        {"return_sequences": True, "zero_output_for_mask": True},
        {"return_sequences": True, "compat": "keras3-jax"},
        {"return_sequences": True, "return_state": True, "time_major": True},
        {"stateful": True, "return_state": True, "go_backwards": True},
        {"return_state": True, "compat": "tf_keras"},
    ],
)
@pytest.mark.parametrize("mask", [None, LEFT])
@pytest.mark.parametrize("units", [(4,), (4, 3)])
def test_kernels_give_what_steps_give(options, mask, units):
    fused, stepped = twins(units, dtype="float64", **options)
    x = random(B, T, F, dtype="float64")
    states = [random(B, u, seed=u, dtype="float64") for u in units]
    if options.get("time_major"):
        x, mask = x.swapaxes(0, 1), None if mask is None else mask.T
    for training in (False, True):
        for given in (None, states):
            call = {"mask": mask, "initial_state": given, "training": training}
            equal(fused(x, **call), stepped(x, **call))
    call = {"mask": mask, "initial_state": states, "training": True}
    (out, pull), (_, pull_stepped) = fused.vjp(x, **call), stepped.vjp(x, **call)
    actual, desired = pull(out), pull_stepped(out)
    pairs = zip(flatten(list(actual)), flatten(list(desired)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_a_call_of_a_users_own_is_called():
    layer = RNN(SteppedCell(4))
    layer(random(B, T, F))
    assert layer.cell.steps == T
    layer.vjp(random(B, T, F))

    class NoGradient(GRUCell):
        def call(self, inputs, states, training=False):
            return super().call(2 * inputs, states, training)

    with pytest.raises(NotImplementedError, match="NoGradient has a `call` of its own"):
        RNN(NoGradient(4)).vjp(random(B, T, F))


def test_mixed_stack_steps_through_its_cells():
    x = random(B, T, F)
    mixed = RNN([GRUCell(4), SteppedCell(3)], return_sequences=True)
    y = mixed(x)
    lower, upper = GRU(4, return_sequences=True), GRU(3, return_sequences=True)
    upper(lower(x))
    lower.set_weights(mixed.get_weights()[:3])
    upper.set_weights(mixed.get_weights()[3:])
    equal(upper(lower(x)), y)


def test_a_cell_that_stands_twice():
    cell = GRUCell(F, dtype="float64")
    layer = RNN([cell, cell], dtype="float64")
    x = random(B, T, F, dtype="float64")
    _, pullback = layer.vjp(x)
    assert len(layer.weights) == 3
    gradients = pullback(np.ones((B, F))).weights
    start = layer.get_weights()

    def objective(kernel):
        layer.set_weights([kernel, *start[1:]])
        return np.sum(layer(x))

    difference = central_difference(objective, start[0])
    np.testing.assert_allclose(gradients[0], difference, rtol=1e-6, atol=1e-8)


def test_states_of_a_stack_come_as_in_keras():
    x, h = random(B, T, F), [random(B, 4), random(B, 3)]
    layer = RNN([GRUCell(4), GRUCell(3)], return_state=True)
    assert [np.shape(s) for s in layer(x)[1:]] == [(1, B, 4), (1, B, 3)]
    assert [np.shape(s) for s in layer(x, initial_state=h)[1:]] == [(B, 4), (B, 3)]
    assert layer.compute_output_shape((B, T, F)) == ((B, 3), (B, 4), (B, 3))
    assert layer.state_size == [4, 3]
    assert len(RNN([GRUCell(4)], return_state=True)(x)[1]) == B


def test_stack_as_a_cell():
    stack = StackedRNNCells([GRUCell(4), GRUCell(3)])
    assert stack.state_size == [4, 3]
    assert stack.output_size == 3
    x = random(B, F)
    y, states = stack(x, stack.get_initial_state(B))
    equal(states[1], [y])
    assert [v.path.split("/")[1] for v in stack.weights[::3]] == [
        c.name for c in stack.cells
    ]


# --------------------------------------------------------------------- cells of users


class Decay:
    """Two states, an output that is neither, no weights; not even a layer."""

    state_size = (2, 2)
    output_size = 2

    def call(self, x_t, states):
        a = 0.5 * states[0] + x_t
        b = 0.25 * states[1] + a**2
        return 3 * b, [a, b]


class DecayWithGradient(Decay):
    def vjp(self, x_t, states):
        out = self.call(x_t, states)
        a = out[1][0]

        def pullback(cotangent):
            d_y, (d_a, d_b) = cotangent
            d_b = d_b + 3 * d_y
            d_a = d_a + 2 * a * d_b
            return Grads(d_a, [0.5 * d_a, 0.25 * d_b], [])

        return out, pullback


def decay(x, mask=None):
    a, b, y = np.zeros((B, 2)), np.zeros((B, 2)), np.zeros((B, 2))
    ys = []
    for t in range(T):
        keep = np.ones((B, 1), bool) if mask is None else mask[:, t, None]
        new_y, (new_a, new_b) = Decay().call(x[:, t], (a, b))
        a, b, y = (
            np.where(keep, n, o) for n, o in ((new_a, a), (new_b, b), (new_y, y))
        )
        ys.append(y)
    return np.stack(ys, 1), a, b


@pytest.mark.parametrize("mask", [None, LEFT])
def test_users_cell(mask):
    x = random(B, T, F, dtype="float64")
    layer = RNN(Decay(), return_sequences=True, return_state=True, dtype="float64")
    if mask is not None:
        expected = decay(x, mask)
        x = np.where(mask[..., None], x, np.nan)
    else:
        expected = decay(x)
    equal(layer(x, mask=mask), expected)
    assert layer.compute_output_shape((B, T, F)) == ((B, T, 2), (B, 2), (B, 2))
    assert layer.weights == []


@pytest.mark.parametrize("profile", ["keras3", "keras3-jax"])
@pytest.mark.parametrize("zero", [False, True])
def test_users_gradient(profile, zero):
    x, h = random(B, T, F, dtype="float64"), random(B, 2, dtype="float64")
    layer = RNN(
        DecayWithGradient(),
        return_sequences=True,
        dtype="float64",
        compat=profile,
        zero_output_for_mask=zero,
    )
    d_y = random(B, T, 2, dtype="float64", seed=1)

    def objective(x, h):
        return np.sum(d_y * layer(x, mask=LEFT, initial_state=[h, 2 * h]))

    _, pullback = layer.vjp(x, mask=LEFT, initial_state=[h, 2 * h])
    grads = pullback(d_y)
    d_h = grads.initial_state[0] + 2 * grads.initial_state[1]
    for actual, desired in (
        (grads.inputs, central_difference(lambda v: objective(v, h), x)),
        (d_h, central_difference(lambda v: objective(x, v), h)),
    ):
        np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=1e-8)
    assert layer.vjp(x, mask=LEFT)[1](d_y).initial_state is None


def test_no_gradient_through_a_cell_without_one():
    layer = RNN(Decay())
    with pytest.raises(NotImplementedError, match="Decay has no gradient: give it"):
        layer.vjp(random(B, T, F))


class Scaled(Layer):
    """h = h + scale * x * (2 in training): a layer of one weight."""

    state_size = F

    def build(self, input_shape):
        self.scale = self.add_weight((F,), "ones", name="scale", regularizer="l2")

    def call(self, inputs, states, training=False):
        h = states[0] + self.scale.value * inputs * (2 if training else 1)
        return h, [h]

    def _vjp(self, inputs, states, training=False):
        factor = 2 if training else 1

        def pullback(cotangent, include_losses):
            d = cotangent[0] + cotangent[1][0]
            scale = np.sum(d * inputs * factor, 0)
            return Grads(d * self.scale.value * factor, [d], [scale])

        return self.call(inputs, states, training), pullback


def test_a_layer_as_a_cell():
    x = random(B, T, F)
    layer = RNN(Scaled())
    np.testing.assert_allclose(layer(x), x.sum(1), rtol=1e-5)
    y, pullback = layer.vjp(x, training=True)
    np.testing.assert_allclose(y, 2 * x.sum(1), rtol=1e-5)
    assert [v.path for v in layer.weights] == [f"{layer.name}/{layer.cell.name}/scale"]
    d_y = random(B, F, seed=1)
    plain, penalized = pullback(d_y), pullback(d_y, include_losses=True)
    np.testing.assert_allclose(plain.weights[0], 2 * (d_y * x.sum(1)).sum(0), 1e-5)
    np.testing.assert_allclose(penalized.weights[0] - plain.weights[0], 0.02, 1e-4)


def test_no_steps():
    h = random(B, 2)
    layer = RNN(SteppedCell(2), return_sequences=True, return_state=True)
    y, state = layer(np.zeros((B, 0, F)), initial_state=h)
    assert y.shape == (B, 0, 2)
    equal(state, h)
    layer.return_sequences = False
    assert np.all(layer(np.zeros((B, 0, F)), initial_state=h)[0] == h)
    _, pullback = layer.vjp(np.zeros((B, 0, F)), initial_state=h)
    equal(pullback((h, None)).initial_state, h)


BAD_CELLS = [
    (object(), "should have a `call` method"),
    (type("NoSize", (), {"call": None})(), "should have a `state_size` attribute"),
    (type("Word", (), {"call": None, "state_size": "4"})(), "must be an integer, or a"),
    (
        type("Out", (), {"call": None, "state_size": 4, "output_size": "4"})(),
        "output_size must be an integer",
    ),
]


@pytest.mark.parametrize(("cell", "words"), BAD_CELLS)
def test_refused_cells(cell, words):
    with pytest.raises(ValueError, match=words):
        RNN(cell)
    with pytest.raises(ValueError, match=words):
        RNN([GRUCell(2), cell])
    with pytest.raises(ValueError, match="at least one cell"):
        RNN([])


# ----------------------------------------------------------------------- configuration


@pytest.mark.parametrize("cell", [lambda: GRUCell(3), lambda: [GRUCell(4), GRUCell(3)]])
def test_config(cell):
    layer = RNN(cell(), return_sequences=True, activity_regularizer="l2", name="deep")
    config = layer.get_config()
    twin = RNN.from_config(copy.deepcopy(config))
    assert twin.get_config() == config
    assert twin(random(B, T, F)).shape == (B, T, 3)


def test_config_with_a_users_cell():
    layer = RNN(Scaled(name="mine"))
    config = layer.get_config()
    with pytest.raises(ValueError, match="custom_objects"):
        RNN.from_config(config)
    twin = RNN.from_config(config, custom_objects={"Scaled": Scaled})
    assert isinstance(twin.cell, Scaled)
    with pytest.raises(TypeError, match="get_config"):
        RNN(Decay()).get_config()

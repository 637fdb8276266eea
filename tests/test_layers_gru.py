"""GRU as Keras users know it: anchors, arguments of a call, states, refusals."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from numbagru.initializers import Constant
from numbagru.layers import GRU, RNN

CONSTANT = {
    "kernel_initializer": Constant(0.01),
    "recurrent_initializer": Constant(0.02),
    "bias_initializer": Constant(0.03),
}


def constant_gru(units, **kwargs):
    return GRU(units, **CONSTANT, **kwargs)


def arange(*shape):
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


def random(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def same(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=2e-6)


# Keras' own test of GRU prints these numbers for the same layers.
@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, (0.5217289, 0.6371659, 0.39384964)),
        ({"go_backwards": True}, (0.24406259, 0.611516, 0.3928808)),
        ({"reset_after": False}, (0.51447755, 0.6426879, 0.40208298)),
        ({"use_bias": False}, (0.49988455, 0.64701194, 0.4103359)),
        ({"unroll": True}, (0.5217289, 0.6371659, 0.39384964)),
        ({"implementation": 0}, (0.5217289, 0.6371659, 0.39384964)),
        ({"implementation": 1}, (0.5217289, 0.6371659, 0.39384964)),
        ({"use_cudnn": False}, (0.5217289, 0.6371659, 0.39384964)),
    ],
)
def test_anchors(kwargs, expected):
    y = constant_gru(3, **kwargs)(arange(3, 6, 4))
    same(y, np.repeat(np.float32(expected)[:, None], 3, 1))


@pytest.mark.parametrize(
    ("backwards", "expected"),
    [
        (False, [[0.23774096, 0.33508456], [0.83659905, 1.0227708]]),
        (True, [[0.13486053, 0.23261218], [0.78257304, 0.9691353]]),
    ],
)
@pytest.mark.parametrize("wrap", [np.asarray, lambda h: [h], lambda h: ([h],)])
def test_anchor_initial_state(backwards, expected, wrap):
    layer = constant_gru(2, go_backwards=backwards)
    same(layer(arange(2, 4, 3), initial_state=wrap(arange(2, 2))), expected)


MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 1]])


@pytest.mark.parametrize(
    ("backwards", "expected"),
    [(False, (0.19393763, 0.30818558)), (True, (0.11669192, 0.28380975))],
)
def test_anchor_mask(backwards, expected):
    layer = constant_gru(2, go_backwards=backwards)
    same(layer(arange(2, 4, 3), mask=MASK), np.stack([expected] * 2, 1))


@pytest.mark.parametrize(("zero", "third"), [(False, 0.09497581), (True, 0)])
def test_anchor_masked_sequence(zero, third):
    layer = constant_gru(2, return_sequences=True, zero_output_for_mask=zero)
    y = layer(arange(2, 4, 3), mask=MASK)
    same(y[0, :, 0], [0.03606692, 0.09497581, third, 0.19393763])
    if not zero:
        same(y[1, :, 1], [0.16051409] * 3 + [0.30818558])


@pytest.mark.parametrize(("compat", "first"), [("keras3", 0), ("keras3-jax", 5)])
def test_anchor_masked_first_step(compat, first):
    layer = constant_gru(2, return_sequences=True, return_state=True, compat=compat)
    x, h0 = arange(1, 4, 3), np.full((1, 2), 5, "float32")
    y, h = layer(x, mask=[[False, True, True, True]], initial_state=h0)
    same(y[0, :2, 0], [first, 3.0826724])
    y, h = layer(x, mask=np.zeros((1, 4)), initial_state=h0)
    same(h, h0)
    same(y, np.full((1, 4, 2), first))


def test_anchor_stateful():
    layer = constant_gru(4, stateful=True)
    layer(arange(2, 3, 4))
    y = layer(arange(2, 3, 4))
    same(y, np.repeat([[0.29542392], [0.5885018]], 4, 1))
    layer.reset_state()
    same(layer(arange(2, 3, 4)), constant_gru(4)(arange(2, 3, 4)))


# ------------------------------------------------------------------ what comes back


def test_outputs():
    x = random(2, 5, 3)
    layer = GRU(4, return_sequences=True, return_state=True)
    y, h = layer(x)
    assert (y.shape, h.shape) == ((2, 5, 4), (2, 4))
    assert y.dtype == h.dtype == np.float32
    np.testing.assert_array_equal(y[:, -1], h)
    layer.return_sequences = False
    np.testing.assert_array_equal(layer(x)[0], h)
    layer.return_state = False
    np.testing.assert_array_equal(layer(x), h)


def test_go_backwards_returns_the_order_of_processing():
    x = random(2, 5, 3)
    layer = GRU(4, return_sequences=True)
    y = layer(x[:, ::-1])
    layer.go_backwards = True
    np.testing.assert_array_equal(layer(x), y)


def test_time_major_is_another_layout_of_the_same():
    x, mask = random(2, 5, 3), np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]])
    layer = GRU(4, return_sequences=True, return_state=True)
    y, h = layer(x, mask=mask)
    layer.time_major = True
    y_major, h_major = layer(x.swapaxes(0, 1), mask=mask.T)
    np.testing.assert_array_equal(y_major.swapaxes(0, 1), y)
    np.testing.assert_array_equal(h_major, h)
    assert layer.compute_output_shape((5, 2, 3)) == ((5, 2, 4), (2, 4))


@pytest.mark.parametrize("kind", ["float64", "float16", "int32", "bool"])
def test_inputs_are_cast_to_the_dtype_of_the_layer(kind):
    x = (4 * random(2, 3, 4)).astype(kind)
    layer = GRU(2)
    y = layer(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, layer(x.astype("float32")))
    np.testing.assert_array_equal(y, layer(x.tolist()))


def test_float64():
    layer = GRU(2, dtype="float64")
    assert layer(random(2, 3, 4)).dtype == np.float64
    assert all(w.dtype == np.float64 for w in layer.get_weights())


def test_no_steps_and_no_rows():
    layer = GRU(2, return_sequences=True, return_state=True)
    layer.build((None, None, 3))
    h0 = random(4, 2)
    y, h = layer(np.zeros((4, 0, 3)), initial_state=h0)
    assert y.shape == (4, 0, 2)
    np.testing.assert_array_equal(h, h0)
    y, h = layer(np.zeros((0, 5, 3)), mask=np.zeros((0, 5)))
    assert (y.shape, h.shape) == ((0, 5, 2), (0, 2))


@pytest.mark.parametrize("as_given", [lambda m: m[..., None], lambda m: [m, None]])
def test_other_forms_of_a_mask(as_given):
    x = random(2, 4, 3)
    layer = GRU(2)
    np.testing.assert_array_equal(layer(x, mask=as_given(MASK)), layer(x, mask=MASK))
    np.testing.assert_array_equal(layer(x, mask=[None]), layer(x))


def test_what_is_masked_is_not_read():
    x = random(2, 4, 3)
    layer = GRU(2, return_sequences=True)
    y = layer(x, mask=MASK)
    x[MASK == 0] = np.nan
    np.testing.assert_array_equal(layer(x, mask=MASK), y)


def test_shapes_masks_and_specs_without_computing():
    layer = GRU(2, return_sequences=True, return_state=True)
    assert layer.compute_output_shape((None, 4, 3)) == ((None, 4, 2), (None, 2))
    assert layer.compute_mask(None, MASK)[0] is MASK
    assert layer.compute_mask(None, MASK)[1] is None
    y, h = layer.symbolic_call(np.zeros((5, 4, 3)))
    assert (y.shape, h.shape, y.dtype) == ((5, 4, 2), (5, 2), "float32")
    layer.return_sequences = layer.return_state = False
    assert layer.compute_mask(None, MASK) is None
    assert layer.output_spec((5, 4, 3)).shape == (5, 2)
    assert layer.supports_masking


@pytest.mark.parametrize("name", ["input", "output"])
def test_no_symbolic_tensors(name):
    layer = GRU(2)
    layer(random(1, 2, 3))
    with pytest.raises(AttributeError, match=f"has no defined {name}"):
        getattr(layer, name)


def test_inner_loop():
    x, h0 = random(2, 4, 3), random(2, 2, seed=1)
    layer = GRU(2, return_sequences=True, return_state=True)
    with pytest.raises(ValueError, match="not built"):
        layer.inner_loop(x, h0, None)
    y, h = layer(x, initial_state=h0, mask=MASK)
    last, outputs, (state,) = layer.inner_loop(x, [h0], [MASK], training=False)
    np.testing.assert_array_equal(outputs, y)
    np.testing.assert_array_equal(last, y[:, -1])
    np.testing.assert_array_equal(state, h)
    layer.return_sequences = False
    assert layer.inner_loop(x, h0, MASK)[1].shape == (2, 1, 2)


def test_explain_says_which_kernel_and_why():
    layer = GRU(2, activation="softmax", recurrent_dropout=0.5)
    assert layer.explain((2, 4, 3)).startswith("cpu_tiles")
    assert "use_cudnn=False" not in layer.explain(random(2, 4, 3), training=True)
    assert "use_cudnn=False" in GRU(2, use_cudnn=False).explain((2, 4, 3))


# --------------------------------------------------------------------------- states


def test_stateful_pieces_equal_the_whole():
    x = random(3, 8, 2)
    whole = GRU(4, return_sequences=True)
    y = whole(x)
    pieces = GRU(4, return_sequences=True, stateful=True)
    pieces.build(x.shape)
    pieces.set_weights(whole.get_weights())
    parts = [pieces(x[:, a:b]) for a, b in ((0, 1), (1, 5), (5, 8))]
    np.testing.assert_array_equal(np.concatenate(parts, 1), y)


@pytest.mark.parametrize("options", [{}, {"return_sequences": True}])
@pytest.mark.parametrize("return_state", [False, True])
def test_what_a_stateful_layer_returns_belongs_to_the_caller(options, return_state):
    x = random(3, 8, 2)
    layer = GRU(4, stateful=True, return_state=return_state, **options)
    for _ in range(3):
        out = layer(x)
        recorded = layer.states[0].numpy().copy()
        for array in out if return_state else [out]:
            array[...] = 0
        np.testing.assert_array_equal(layer.states[0], recorded)


def test_recorded_states():
    layer = GRU(2, stateful=True, return_state=True)
    assert layer.states is None
    _, h = layer(random(3, 4, 2))
    (state,) = layer.states
    np.testing.assert_array_equal(state, h)
    assert state.path.endswith("/rnn_state")
    assert state not in layer.weights
    new = random(3, 2, seed=4)
    layer.reset_states(new)
    np.testing.assert_array_equal(state, new)
    layer.reset_states([2 * new], rows=[True, False, False])
    np.testing.assert_array_equal(state, [2 * new[0], new[1], new[2]])
    layer.reset_states(rows=np.array([False, True, True]))
    np.testing.assert_array_equal(state, [2 * new[0], 0 * new[1], 0 * new[2]])
    layer.build((3, 4, 2))
    assert not np.any(state)


def test_initial_state_wins_over_the_recorded_one():
    x, h0 = random(3, 4, 2), random(3, 2, seed=1)
    layer = GRU(2, stateful=True)
    first = layer(x, initial_state=h0)
    layer(x)
    np.testing.assert_array_equal(layer(x, initial_state=h0), first)


def test_resetting_what_is_not_there():
    GRU(2).reset_state()
    GRU(2).reset_states()
    layer = GRU(2, stateful=True)
    layer.reset_states()
    assert layer.states is None
    layer.reset_states(random(5, 2))
    np.testing.assert_array_equal(layer.states[0], random(5, 2))


@pytest.mark.parametrize(
    ("kwargs", "arguments", "error", "words"),
    [
        ({}, {"states": np.zeros((2, 2))}, AttributeError, "must be stateful"),
        ({"stateful": True}, {"rows": [True]}, ValueError, "batch size"),
    ],
)
def test_resetting_in_vain(kwargs, arguments, error, words):
    with pytest.raises(error, match=words):
        GRU(2, **kwargs).reset_states(**arguments)


def test_get_initial_state():
    layer = GRU(2, dtype="float64")
    (h,) = layer.get_initial_state(3)
    np.testing.assert_array_equal(h, np.zeros((3, 2)))
    assert h.dtype == np.float64
    with pytest.raises(ValueError, match="batch_size"):
        layer.get_initial_state()


# ----------------------------------------------------------------- what is refused

X, H = np.zeros((2, 4, 3)), np.zeros((2, 2))

BAD_CALLS = [
    (np.zeros((4, 3)), {}, ValueError, "ndim=3, found ndim=2"),
    (np.zeros((2, 4, 5)), {}, ValueError, "3 features"),
    (X.astype(complex), {}, TypeError, "real numbers"),
    (np.full((2, 4, 3), "a"), {}, TypeError, "real numbers"),
    (X, {"mask": np.ones((2, 5))}, ValueError, "`mask` must have the shape"),
    (X, {"mask": np.ones((4, 2))}, ValueError, "`mask` must have the shape"),
    (X, {"mask": np.ones((2, 4, 3))}, ValueError, "`mask` must have the shape"),
    (X, {"mask": np.ones(2)}, ValueError, "`mask` must have the shape"),
    (X, {"initial_state": H[:1]}, ValueError, "nothing is broadcast"),
    (X, {"initial_state": H[0]}, ValueError, "nothing is broadcast"),
    (X, {"initial_state": [H, H]}, ValueError, "1 array"),
    (X, {"initial_state": H.astype(complex)}, TypeError, "real numbers"),
    (np.zeros((3, 4, 3)), {}, ValueError, "batch size of the input sequences"),
]


@pytest.mark.parametrize(("x", "kwargs", "error", "words"), BAD_CALLS)
def test_a_refused_call_changes_nothing(x, kwargs, error, words):
    layer = GRU(2, stateful=True, dropout=0.5, recurrent_dropout=0.5, seed=1)
    layer(random(2, 4, 3))
    before = [np.array(v) for v in (*layer.variables, *layer.states)]
    for run in (layer, layer.vjp):
        with pytest.raises(error, match=words):
            run(x, training=True, **kwargs)
    for old, variable in zip(before, (*layer.variables, *layer.states), strict=True):
        np.testing.assert_array_equal(old, variable)


@pytest.mark.parametrize(("x", "kwargs", "error", "words"), BAD_CALLS[2:-1])
def test_a_refused_first_call_builds_nothing(x, kwargs, error, words):
    layer = GRU(2, dropout=0.5, seed=1)
    with pytest.raises(error):
        layer(x, training=True, **kwargs)
    assert not layer.built
    assert layer.weights == []
    assert layer.variables[0].value[1] == 0


@pytest.mark.parametrize(("x", "kwargs", "error", "words"), BAD_CALLS[:-1])
def test_the_short_way_refuses_too(x, kwargs, error, words):
    layer = GRU(2)
    layer(random(2, 4, 3))
    with pytest.raises(error):
        layer(x, **kwargs)


@pytest.mark.parametrize(
    ("states", "rows", "words"),
    [
        ([H, H], None, "expects 1 states, but it received 2"),
        (np.zeros((3, 2)), None, "expected shape=.2, 2. but found shape=.3, 2."),
        (H, [1, 0], "`rows` must be booleans"),
        (H, [True], "`rows` must be booleans"),
    ],
)
def test_refused_resets(states, rows, words):
    layer = GRU(2, stateful=True)
    layer(random(2, 4, 3))
    before = np.array(layer.states[0])
    with pytest.raises(ValueError, match=words):
        layer.reset_states(states, rows)
    np.testing.assert_array_equal(layer.states[0], before)


def test_stateful_needs_to_know_its_rows():
    with pytest.raises(ValueError, match="batch size must be static"):
        GRU(2, stateful=True).build((None, 4, 3))


def test_cudnn_by_demand_says_what_is_missing():
    layer = GRU(2, use_cudnn=True, dropout=0.5, seed=3)
    with pytest.raises(ValueError, match=r"not a CUDA array.*use_cudnn='auto'"):
        layer(random(2, 4, 3))
    assert not layer.built
    layer.use_cudnn = "auto"
    assert layer(random(2, 4, 3)).shape == (2, 2)


# -------------------------------------------------------------------------- dropout


def test_dropout_only_in_training():
    x = random(2, 4, 3)
    layer = GRU(2, dropout=0.5, recurrent_dropout=0.5, seed=1)
    plain = GRU(2)
    y = layer(x)
    plain.build(x.shape)
    plain.set_weights(layer.get_weights())
    np.testing.assert_array_equal(y, plain(x))
    assert np.any(layer(x, training=True) != y)


def test_same_state_of_the_seed_same_draws():
    x = random(2, 4, 3)
    layer = GRU(2, dropout=0.5, seed=1)
    layer.build(x.shape)
    state = layer.variables[-1]
    start = state.value
    first = layer(x, training=True)
    assert np.any(layer(x, training=True) != first)
    state.assign(start)
    np.testing.assert_array_equal(layer(x, training=True), first)


@pytest.mark.parametrize("implementation", [1, 2])
def test_dropout_of_everything_leaves_the_biases(implementation):
    x = random(2, 4, 3)
    layer = GRU(2, dropout=1.0, implementation=implementation, seed=1)
    y = layer(x, training=True)
    np.testing.assert_array_equal(y, layer(0 * x))


def test_masks_asked_for_beforehand_are_used_once():
    x = random(2, 4, 3)
    layer = GRU(2, dropout=0.5, seed=1)
    layer.build(x.shape)
    mask = layer.cell.get_dropout_mask(x[:, 0])
    y = layer(x, training=True)
    np.testing.assert_array_equal(y, layer(x * mask[:, None], training=False))
    assert layer.cell.get_dropout_mask(x[:, 0]) is not mask


# ------------------------------------------------------------------ keeping, sharing


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_copies_are_independent(again):
    x = random(2, 4, 3)
    layer = GRU(2, stateful=True, dropout=0.3, activity_regularizer="l2")
    layer(x)
    twin = again(layer)
    np.testing.assert_array_equal(twin(x, training=True), layer(x, training=True))
    assert twin.losses == layer.losses
    y = layer(x)
    twin.set_weights([0 * w for w in twin.get_weights()])
    np.testing.assert_array_equal(layer(x[:, :0], training=False), y)
    with pytest.raises(ValueError, match="read-only"):
        twin.get_weights()[0][0, 0] = 1


def test_the_first_call_goes_the_way_of_the_others(monkeypatch):
    """Two ways are two kernels to compile."""

    def long_way(*args):
        raise AssertionError

    monkeypatch.setattr(RNN, "__call__", long_way)
    layer = GRU(2)
    x = random(2, 5, 3)
    np.testing.assert_array_equal(layer(x), layer(x))


def test_threads_share_a_layer():
    layer = GRU(4, return_sequences=True, activity_regularizer="l2")
    batches = [random(2, 30, 3, seed=i) for i in range(24)]
    layer.build(batches[0].shape)
    alone = [layer(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(layer, batches))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_may_make_the_first_call():
    x = random(2, 5, 3)
    for _ in range(20):
        layer = GRU(4, bias_initializer="ones")
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(layer, [x] * 8))
        assert len(layer.weights) == 3
        for y in results:
            np.testing.assert_array_equal(y, layer(x))


def test_threads_never_share_a_draw():
    layer = GRU(2, dropout=0.5, recurrent_dropout=0.5, seed=2)
    x = random(2, 5, 3)
    layer.build(x.shape)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: layer(x, training=True), range(40)))
    assert list(layer.variables[-1].value) == [2, 40 * 6]


def test_weights_in_use_follow_an_assignment():
    x = random(2, 4, 3)
    layer = GRU(2)
    y = layer(x)
    layer.cell.kernel.assign(2 * layer.cell.kernel.value)
    np.testing.assert_allclose(layer(x / 2), y, rtol=1e-5)


def test_a_subclass_with_a_call_of_its_own():
    class Doubled(GRU):
        def call(self, sequences, initial_state=None, mask=None, training=None):
            return 2 * super().call(sequences, initial_state, mask, training)

    x = random(2, 4, 3)
    layer = Doubled(2)
    y = layer(x)
    np.testing.assert_array_equal(layer(x), y)
    plain = GRU(2)
    plain.build(x.shape)
    plain.set_weights(layer.get_weights())
    np.testing.assert_array_equal(2 * plain(x), y)
    with pytest.raises(NotImplementedError, match="implement `_vjp`"):
        layer.vjp(x)

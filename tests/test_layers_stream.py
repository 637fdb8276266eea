"""`GRU.stream`: one step at a time gives what the whole sequence gives."""

import tracemalloc

import numpy as np
import pytest

import numbagru as ng

VARIANTS = [
    {},
    {"reset_after": False},
    {"dtype": "float64"},
    {"use_bias": False},
    {"activation": "softmax"},
    {"use_cudnn": False},
    {"time_major": True},
    {"return_state": True, "return_sequences": True, "dropout": 0.5},
]


def make(units=7, features=3, **variant):
    layer = ng.GRU(units, seed=1, **variant)
    layer.build((None, None, features))
    return layer


def drawn(layer, B, T, F):
    x = np.random.default_rng(0).normal(size=(T, B, F))
    return x.astype(layer.dtype)


@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
@pytest.mark.parametrize(("B", "U"), [(1, 7), (1, 70), (5, 16), (17, 33)])
def test_steps_are_the_whole(variant, B, U):
    layer = make(U, **variant)
    x = drawn(layer, B, 9, 3)
    whole = make(U, **{**variant, "time_major": False, "return_sequences": True})
    whole.set_weights(layer.get_weights())
    expected = whole(x.swapaxes(0, 1))
    if variant.get("return_state"):
        expected = expected[0]
    stream = layer.stream(B)
    for t, x_t in enumerate(x):
        np.testing.assert_array_equal(stream.push(x_t), expected[:, t])
    np.testing.assert_array_equal(stream.state, expected[:, -1])


def test_initial_state_and_reset():
    layer = make()
    x = drawn(layer, 3, 2, 3)
    h0 = np.arange(21).reshape(3, 7) / 21
    stream = layer.stream(3, h0)
    expected = layer(x[:1].swapaxes(0, 1), initial_state=h0.astype("float32"))
    np.testing.assert_array_equal(stream.push(x[0]), expected)
    stream.reset(rows=[True, False, True])
    np.testing.assert_array_equal(stream.state[[0, 2]], 0)
    np.testing.assert_array_equal(stream.state[1], expected[1])
    stream.reset()
    assert not stream.state.any()
    np.testing.assert_array_equal(stream.push(x[1]), layer(x[1:].swapaxes(0, 1)))


def test_follows_the_weights():
    layer = make()
    stream = layer.stream()
    x = drawn(layer, 1, 1, 3)
    stream.push(x[0])
    layer.set_weights([2 * w for w in layer.get_weights()])
    stream.reset()
    np.testing.assert_array_equal(stream.push(x[0]), layer(x.swapaxes(0, 1)))


def test_streams_are_apart_and_the_layer_untouched():
    layer = ng.GRU(7, stateful=True)
    layer.build((2, None, 3))
    x = drawn(layer, 2, 2, 3)
    first, second = layer.stream(2), layer.stream(2)
    kept = first.push(x[0]).copy()
    np.testing.assert_array_equal(second.push(x[0]), kept)
    assert not layer.states[0].value.any()
    output = first.push(x[1])
    output[...] = np.nan  # what a caller does to the output is not the state's matter
    assert np.isfinite(first.state).all()


def test_inputs_of_any_layout():
    layer = make()
    x = drawn(layer, 4, 2, 3)
    expected = layer(x.swapaxes(0, 1))
    stream = layer.stream(4)
    for x_t in x:
        output = stream.push(np.asfortranarray(x_t))
    np.testing.assert_array_equal(output, expected)


def test_push_allocates_no_arrays():
    layer = make(64)
    stream = layer.stream(8)
    x_t = drawn(layer, 8, 1, 3)[0]
    for _ in range(3):
        first = stream.push(x_t)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(10):
            assert stream.push(x_t) is first
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < x_t.nbytes * 8  # less than one state of 8 x 64 numbers


@pytest.mark.parametrize(
    ("x_t", "error", "message"),
    [
        (np.ones((2, 3)), TypeError, "dtype float32, that of the layer.*float64"),
        (np.ones((2, 3), int), TypeError, "dtype float32.*Received: int64"),
        ([[1.0] * 3] * 2, TypeError, "dtype float32.*Received: list"),
        (None, TypeError, "dtype float32.*Received: NoneType"),
        (np.ones(3, "f"), ValueError, r"= \(2, 3\).*shape=\(3,\)"),
        (np.ones((1, 3), "f"), ValueError, r"= \(2, 3\).*shape=\(1, 3\)"),
        (np.ones((2, 1, 3), "f"), ValueError, r"= \(2, 3\).*shape=\(2, 1, 3\)"),
    ],
)
def test_bad_steps_change_nothing(x_t, error, message):
    stream = make().stream(2, np.ones((2, 7)))
    with pytest.raises(error, match=message):
        stream.push(x_t)
    np.testing.assert_array_equal(stream.state, 1)


def test_bad_streams():
    with pytest.raises(ValueError, match="not built"):
        ng.GRU(3).stream()
    with pytest.raises(ValueError, match="go_backwards=True"):
        make(go_backwards=True).stream()
    for bad in (0, -1):
        with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
            make().stream(bad)
    for bad in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match="`batch_size` must be an integer"):
            make().stream(bad)
    with pytest.raises(ValueError, match="initial_state"):
        make().stream(2, np.ones((1, 7)))
    with pytest.raises(ValueError, match="`rows` must be booleans"):
        make().stream(2).reset(rows=[True])

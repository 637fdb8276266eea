"""Layers on an emulated CUDA device: arrays in and out, and the bits of the CPU."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are written with numba-cuda")
pytest.importorskip("greenlet", reason="the emulator runs each thread as a greenlet")

from devicearrays import DeviceArray, EmulatedDriver
from numbagru import (
    GRU,
    RNN,
    Bidirectional,
    Dense,
    GRUCell,
    Sequential,
    dispatch,
    operands_cuda,
)
from numbagru.kernels.cuda import limits, passes
from numbagru.layers.bidirectional import MERGE_MODES
from numbagru.regularizers import Regularizer

B, T, F, U = 4, 3, 2, 5


@pytest.fixture
def device(monkeypatch):
    emulated = EmulatedDriver()
    monkeypatch.setattr(operands_cuda, "driver", lambda: emulated)
    passes._plans.clear()  # tests change limits
    dispatch.device_family.cache_clear()
    return emulated


def data(seed=0, shape=(B, T, F), dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


GAPS = np.arange(B * T).reshape(B, T) % 3 != 1
LAYERS = {
    "plain": ({}, {}),
    "sequences": ({"return_sequences": True, "return_state": True}, {}),
    "float64": ({"dtype": "float64", "return_sequences": True}, {}),
    "reset before": ({"reset_after": False, "return_sequences": True}, {}),
    "no bias": ({"use_bias": False}, {}),
    "mask": ({"return_sequences": True, "return_state": True}, {"mask": GAPS}),
    "backwards": ({"go_backwards": True, "return_sequences": True}, {"mask": GAPS}),
    "zeros": ({"zero_output_for_mask": True, "return_sequences": True}, {"mask": GAPS}),
    "relu": ({"activation": "relu"}, {}),
    "dropout": ({"dropout": 0.3, "return_sequences": True}, {}),
    "dropout per gate": ({"dropout": 0.3, "implementation": 1}, {}),
    "recurrent dropout": ({"recurrent_dropout": 0.3, "return_sequences": True}, {}),
    "dropout, reset before": (
        {"recurrent_dropout": 0.3, "dropout": 0.2, "reset_after": False},
        {"mask": GAPS},
    ),
}


def twins(name):
    """Make the layer on the CPU and on the device, with the same weights and draws."""
    arguments, call = LAYERS[name]
    pair = []
    for where in ("cpu", "cuda"):
        layer = GRU(U, seed=3, device=where, **arguments)
        layer.build((B, T, F))
        pair.append(layer)
    pair[1].set_weights(pair[0].get_weights())
    return (*pair, data(dtype=arguments.get("dtype", "float32")), call)


def listed(outputs):
    return outputs if isinstance(outputs, (list, tuple)) else [outputs]


def same(expected, found):
    assert type(found) is np.ndarray
    assert expected.dtype == found.dtype
    assert expected.shape == found.shape
    assert expected.tobytes() == found.tobytes()


@pytest.mark.parametrize("name", LAYERS)
def test_numpy_in_numpy_out(name, device):
    ours, theirs, x, call = twins(name)
    for training in (False, True):
        expected = listed(ours(x, training=training, **call))
        found = listed(theirs(x, training=training, **call))
        for right, result in zip(expected, found, strict=True):
            same(right, result)
    assert device.launched


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name, device):
    ours, theirs, x, call = twins(name)
    results = []
    for layer in (ours, theirs):
        y, pullback = layer.vjp(x, training=True, **call)
        results.append((listed(y), pullback(y)))
    (y_right, right), (y_found, found) = results
    for a, b in zip(y_right, y_found, strict=True):
        same(a, b)
    same(right.inputs, found.inputs)
    for a, b in zip(right.weights, found.weights, strict=True):
        same(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", LAYERS)
def test_arrays_of_the_device(name, device):
    ours, theirs, x, call = twins(name)
    theirs = GRU.from_config({**theirs.get_config(), "device": "auto"})
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    there = {key: device.put(value) for key, value in call.items()}
    expected, expected_pullback = ours.vjp(x, training=True, **call)
    found, pullback = theirs.vjp(device.put(x), training=True, **there)
    for right, result in zip(listed(expected), listed(found), strict=True):
        assert isinstance(result, DeviceArray)
        same(right, result.numbers)
    right = expected_pullback(expected)
    result = pullback(found)
    assert isinstance(result.inputs, DeviceArray)
    same(right.inputs, result.inputs.numbers)
    for a, b in zip(right.weights, result.weights, strict=True):
        assert isinstance(b, DeviceArray)
        same(np.asarray(a), b.numbers)


def test_stateful(device):
    ours, theirs = (GRU(U, stateful=True, device=where) for where in ("cpu", "cuda"))
    auto = GRU(U, stateful=True)
    for layer in (ours, theirs, auto):
        layer.build((B, T, F))
        layer.set_weights(ours.get_weights())
    for seed in range(2):
        x = data(seed)
        expected = ours(x)
        same(expected, theirs(x))
        same(expected, auto(device.put(x)).numbers)
        same(ours.states[0].value, auto.states[0].value)


def test_stacked_cells_and_training(device):
    x = data()
    models = [Sequential([GRU(U, device=where), Dense(1)]) for where in ("cpu", "cuda")]
    for model in models:
        model.compile("sgd", "mse")
        model.build((B, T, F))
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.fit(x, np.ones((B, 1), "float32"), epochs=2, verbose=0, shuffle=False)
    for ours, theirs in zip(*(m.get_weights() for m in models), strict=True):
        same(ours, theirs)
    stack = RNN([GRUCell(U), GRUCell(3)], return_sequences=True)
    same(stack(x), stack(device.put(x)).numbers)
    stack = RNN([GRUCell(U), GRUCell(3)], go_backwards=True)
    expected = stack(x, mask=GAPS)
    same(expected, stack(device.put(x), mask=device.put(GAPS)).numbers)


def same_gradients(right, result):
    same(right.inputs, result.inputs)
    for a, b in zip(right.weights, result.weights, strict=True):
        same(a, b)


def test_time_major(device):
    layers = [
        GRU(U, time_major=True, return_sequences=True, device=where)
        for where in ("cpu", "cuda")
    ]
    x = data(shape=(T, B, F))
    for layer in layers:
        layer.build(x.shape)
        layer.set_weights(layers[0].get_weights())
    (ours, pull_ours), (theirs, pull_theirs) = (layer.vjp(x) for layer in layers)
    same(ours, theirs)
    same(pull_ours(ours).inputs, pull_theirs(theirs).inputs)


@pytest.mark.parametrize("shape", [(0, T, F), (B, 0, F), (0, 0, F)])
def test_nothing_to_do(shape, device):
    ours, theirs, _, _ = twins("sequences")
    x = np.zeros(shape, "float32")
    for right, result in zip(ours(x), theirs(x), strict=True):
        same(right, result)


WIDE = [
    "sequences", "mask", "zeros", "backwards", "reset before", "dropout per gate",
    "recurrent dropout", "dropout, reset before",
]  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_wide_layers_with_many_rows(name, device, monkeypatch):
    monkeypatch.setitem(limits.MOST_RESIDENT, 32, U - 1)
    monkeypatch.setattr(dispatch, "TILED_FROM_ROWS", B)
    monkeypatch.setattr(device, "chip", lambda number: (1, 0, 0))  # no room at once
    ours, theirs, x, call = twins(name)
    assert theirs.explain(x).startswith("cuda_tiled")
    (y, pull), (y_there, pull_there) = (
        layer.vjp(x, training=True, **call) for layer in (ours, theirs)
    )
    assert len(device.launched) >= T
    for right, result in zip(listed(y), listed(y_there), strict=True):
        same(right, result)
    same_gradients(pull(y), pull_there(y_there))


@pytest.mark.parametrize("name", WIDE)
def test_units_divided_among_blocks(name, device, monkeypatch):
    monkeypatch.setitem(limits.MOST_RESIDENT, 32, U - 1)
    ours, theirs, x, call = twins(name)
    assert theirs.explain(x).startswith("cuda_grid")
    (y, pull), (y_there, pull_there) = (
        layer.vjp(x, training=True, **call) for layer in (ours, theirs)
    )
    for right, result in zip(listed(y), listed(y_there), strict=True):
        same(right, result)
    same_gradients(pull(y), pull_there(y_there))
    launched = len(device.launched)
    theirs(x, **call)
    assert len(device.launched) <= launched + 4  # whatever the steps


@pytest.mark.parametrize("name", ["mask", "reset before"])
def test_no_room_for_all_gates_on_the_way_back(name, device, monkeypatch):
    """Blocks that meet go forward; back it goes step by step."""
    monkeypatch.setitem(limits.MOST_RESIDENT, 32, U - 1)

    def without_room(bits, units, B, chip, copies=1, free=False):
        return limits.split(bits, units, B, chip) if copies == 1 else None

    monkeypatch.setattr(passes, "split", without_room)
    ours, theirs, x, call = twins(name)
    assert theirs.explain(x).startswith("cuda_grid")
    (y, pull), (y_there, pull_there) = (
        layer.vjp(x, training=True, **call) for layer in (ours, theirs)
    )
    launched = len(device.launched)
    same_gradients(pull(y), pull_there(y_there))
    assert len(device.launched) >= launched + T


def test_work_memory_is_used_again(device):
    _, layer, x, _ = twins("plain")
    layer(x)
    before = len(device.allocations)
    layer(x)
    assert len(device.allocations) == before


def test_wide_layers_explain_themselves(device):
    assert GRU(200).explain(device.put(data())).startswith("cuda_cached")
    device.chip = lambda number: (132, 228 * 1024, 227 * 1024)
    assert GRU(200).explain(device.put(data())).startswith("cuda_grid")


def layer_of(**arguments):
    layer = GRU(U, **arguments)
    layer.build((B, T, F))
    return layer


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda d, x: {"sequences": d.put(x.astype("float64"))},
            TypeError,
            "`sequences` must have the layer's dtype, float32.*float64",
        ),
        (
            lambda d, x: {"sequences": DeviceArray(d.put(x).numbers[:, ::2])},
            ValueError,
            "`sequences` must be contiguous",
        ),
        (
            lambda d, x: {"initial_state": d.put(data(1, (B, U)), device=1)},
            ValueError,
            "`initial_state` must be on the device of `sequences`, number 0.*device 1",
        ),
        (
            lambda d, x: {"initial_state": d.put(data(1, (B, U + 1)))},
            ValueError,
            "`initial_state` must have shape",
        ),
        (
            lambda d, x: {"mask": d.put(GAPS.astype("float32"))},
            TypeError,
            "`mask` must hold booleans.*float32",
        ),
        (
            lambda d, x: {"mask": d.put(GAPS[:, 1:])},
            ValueError,
            "`mask` must have",
        ),
    ],
)
def test_bad_arrays(change, error, message, device):
    x = data()
    arguments = {"sequences": device.put(x), **change(device, x)}
    with pytest.raises(error, match=message):
        layer_of()(**arguments)
    assert not device.launched


def test_too_little_memory_changes_nothing(device):
    layer = layer_of(stateful=True)
    x = device.put(data())
    layer(x)
    before = layer.states[0].value.copy()
    operands_cuda._spare.clear()
    device.left = 16
    with pytest.raises(MemoryError, match="bytes more on the CUDA device"):
        layer(x)
    same(before, layer.states[0].value)


@pytest.mark.parametrize("arguments", [{}, {"dropout": 0.3}, {"reset_after": False}])
@pytest.mark.parametrize("listing", [False, True])
def test_cell(arguments, listing, device):
    ours, theirs = (GRUCell(U, seed=3, **arguments) for _ in range(2))
    for cell in (ours, theirs):
        cell.build((B, F))
        cell.set_weights(ours.get_weights())
    x, h, d_h, d_state = (data(i, (B, F if i == 0 else U)) for i in range(4))
    state, there = ([h], [device.put(h)]) if listing else (h, device.put(h))
    same(ours(x, state)[0], theirs(device.put(x), there)[0].numbers)
    (y, s), expected_pullback = ours.vjp(x, state, training=True)
    (y_found, s_found), pullback = theirs.vjp(device.put(x), there, training=True)
    same(y, y_found.numbers)
    same(listed(s)[0], listed(s_found)[0].numbers)
    d = d_h, [d_state] if listing else d_state
    right = expected_pullback(d)
    put = [device.put(one) for one in (d_h, d_state)]
    for d_found in (
        (put[0], [put[1]] if listing else put[1]),
        (d_h, [put[1]] if listing else put[1]),
    ):
        result = pullback(d_found)
        same(right.inputs, result.inputs.numbers)
        same(np.asarray(right.initial_state), result.initial_state.numbers)
        for a, b in zip(right.weights, result.weights, strict=True):
            same(np.asarray(a), b.numbers)


class Sum(Regularizer):
    """A penalty whose gradient is one number."""

    def __call__(self, w):
        return w.sum()

    def gradient(self, w):
        return 1.0


@pytest.mark.parametrize("regularizer", ["l2", Sum()], ids=repr)
@pytest.mark.parametrize("state", [False, True])
def test_activity_regularizers(regularizer, state, device):
    layer = GRU(U, activity_regularizer=regularizer, return_state=state)
    layer.build((B, T, F))
    x, d = data(), data(1, (B, U))
    _, expected_pullback = layer.vjp(x)
    losses = layer.losses
    _, pullback = layer.vjp(device.put(x))
    assert layer.losses == losses
    layer(device.put(x))
    assert layer.losses == losses
    given, there = ([d, None], [device.put(d), None]) if state else (d, device.put(d))
    right = expected_pullback(given, include_losses=True)
    result = pullback(there, include_losses=True)
    same(right.inputs, result.inputs.numbers)
    for a, b in zip(right.weights, result.weights, strict=True):
        same(np.asarray(a), b.numbers)


def both_ways(**arguments):
    """Make a layer of two, one of them of two cells, or two GRUs."""
    inner = arguments.pop("inner", {})
    layer = (
        RNN([GRUCell(3), GRUCell(U)], **inner)
        if arguments.pop("stacked", False)
        else GRU(U, **inner)
    )
    layer = Bidirectional(layer, **arguments)
    rng = np.random.default_rng(0)
    layer.build((T, B, F) if layer.time_major else (B, T, F))
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


ALL = {"return_sequences": True}
BIDIRECTIONAL = {
    **{f"{mode}": ({"merge_mode": mode, "inner": ALL}, {}) for mode in MERGE_MODES},
    **{f"last {mode}": ({"merge_mode": mode}, {}) for mode in MERGE_MODES},
    "masked": ({"inner": ALL}, {"mask": GAPS}),
    "states": (
        {"inner": {**ALL, "return_state": True}, "merge_mode": "mul"},
        {"initial_state": [data(1, (B, U)), data(2, (B, U))]},
    ),
    "steps first": ({"inner": {**ALL, "time_major": True}, "merge_mode": "ave"}, {}),
    "float64": ({"inner": {**ALL, "dtype": "float64"}, "dtype": "float64"}, {}),
    "stacked": ({"inner": ALL, "stacked": True}, {}),
}


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_bidirectional(name, device):
    arguments, call = BIDIRECTIONAL[name]
    layer = both_ways(**arguments)
    x = data(dtype=layer.dtype)
    x = x.transpose(1, 0, 2) if layer.time_major else x
    there = {
        key: [device.put(one) for one in value]
        if isinstance(value, list)
        else device.put(value)
        for key, value in call.items()
    }
    x_there = device.put(x)
    expected, expected_pullback = layer.vjp(x, **call)
    found, pullback = layer.vjp(x_there, **there)
    called = layer(x_there, **there)
    for right, *results in zip(*map(listed, (expected, found, called)), strict=True):
        for result in results:
            assert isinstance(result, DeviceArray)
            same(np.ascontiguousarray(right), result.numbers)
    rng = np.random.default_rng(1)
    d = [rng.normal(size=y.shape).astype(layer.dtype) for y in listed(expected)]
    if isinstance(expected, np.ndarray):
        right, *results = expected_pullback(d[0]), pullback(d[0])
        results.append(pullback(device.put(d[0])))
    else:
        right, *results = expected_pullback(d), pullback(d)
        results.append(pullback([device.put(one) for one in d]))
        # None stands for zeros, and the others still count.
        right_last = expected_pullback([None, *d[1:]])
        last = pullback([None, *d[1:]])
        same(right_last.inputs, last.inputs.numbers)
    for result in results:
        same(right.inputs, result.inputs.numbers)
        assert (result.initial_state is None) == ("initial_state" not in call)
        for a, b in zip(
            right.initial_state or (), result.initial_state or (), strict=True
        ):
            same(a, b.numbers)
        for a, b in zip(right.weights, result.weights, strict=True):
            same(np.asarray(a), b.numbers)


def test_bidirectional_converts_nothing_on_a_device(device):
    layer = both_ways(dtype="float64", inner={"dtype": "float32"})
    assert layer(data()).dtype == np.float64
    with pytest.raises(TypeError, match="`outputs` must have the layer's dtype, float"):
        layer(device.put(data()))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: Dense(3)(x), "inputs"),
        (lambda x: layer_of().stream(B).push(x), "x_t"),
        (lambda x: Sequential([GRU(3)]).predict(x), "x"),
    ],
)
def test_who_takes_no_arrays_of_a_device(call, name, device):
    message = f"`{name}` is an array on a CUDA device.*Copy it to the host"
    with pytest.raises(TypeError, match=message):
        call(device.put(data()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_penalties_on_the_weights(dtype, device):
    layer = layer_of(
        dtype=dtype,
        kernel_regularizer="l2",
        recurrent_regularizer=Sum(),
        bias_regularizer="l1",
        seed=0,
    )
    x = data(dtype=dtype)
    layer(x)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    y, pullback = layer.vjp(x)
    desired = pullback(y, include_losses=True)
    y, pullback = layer.vjp(device.put(x))
    actual = pullback(y, include_losses=True)
    for found, wanted in zip(actual.weights, desired.weights, strict=True):
        assert isinstance(found, DeviceArray)
        same(found.numbers, wanted)
    without = pullback(y)
    for found, wanted in zip(without.weights, actual.weights, strict=True):
        assert not np.array_equal(found.numbers, wanted.numbers)


def test_the_program_that_checks_a_card(device, monkeypatch, capsys):
    sys.path.append(str(Path(__file__).parents[1]))
    from benchmarks import device_check

    shapes = device_check.Shape(2, 3, 2, 5), device_check.Shape(1, 2, 3, 4)
    monkeypatch.setattr(device_check, "CHECKED", {"cuda_resident": shapes})
    monkeypatch.setattr(device_check, "has_tf32", lambda: True)
    monkeypatch.setattr(limits, "cupy_found", lambda: True)
    assert device_check.check("cuda_resident")
    bits = 1 + len(device_check.VARIANTS) - len(device_check.FREE)
    assert capsys.readouterr().out.count("| yes |") == bits
    monkeypatch.setattr(device_check, "VARIANTS", {"default": {}})
    make = device_check.layer_for

    def wrong_on_the_device(shape, weights, where):
        activation = "relu" if where == "cuda" else "tanh"
        return make(shape, weights, "cpu", activation=activation)

    monkeypatch.setattr(device_check, "layer_for", wrong_on_the_device)
    assert not device_check.check("cuda_resident")


def test_sizes_of_32_bits(device):
    class Huge:
        kernel, signature, blocks, threads = None, (), (1,), 1
        arguments = (2**31,)

    place = operands_cuda.place_of(device.put(data()))
    with pytest.raises(ValueError, match="fewer rows or steps"):
        place.run([Huge])

"""The door to the kernels: what it refuses, what it takes, what it gives back."""

import pickle
from unittest.mock import Mock

import numpy as np
import pytest

from numbagru import functional
from numbagru.config import GRUConfig
from numbagru.functional import Weights, explain, gru, gru_vjp
from numbagru.kernels.weight_gradients import rows_per_part

B, T, F, U = 3, 4, 2, 5


def random(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def weights_of(dtype="float32", features=F, units=U, reset_after=True, bias=True):
    bias_shape = (2, 3 * units) if reset_after else (3 * units,)
    return Weights(
        random(features, 3 * units, seed=1, dtype=dtype),
        random(units, 3 * units, seed=2, dtype=dtype),
        random(*bias_shape, seed=3, dtype=dtype) if bias else None,
        reset_after,
    )


def config_of(**changes):
    return GRUConfig(units=U, return_sequences=True, name="mine", **changes)


WEIGHTS = weights_of()
X = random(B, T, F)
VALID = {
    "x": X,
    "initial_state": random(B, U, seed=4),
    "mask": np.random.default_rng(5).random((B, T)) < 0.6,
    "input_dropout": 2 * (random(B, F, seed=6) > 0),
    "recurrent_dropout": 2 * (random(3, B, U, seed=7) > 0),
}
REAL = r"must be an array of real numbers. Received: dtype={}.*Convert it first"
BAD_INPUTS = [
    ({"x": X[0]}, ValueError, r"'mine' .* expected ndim=3, \(batch, timesteps, fea"),
    ({"x": X[None]}, ValueError, r"found ndim=4. Full shape received: \(1, 3, 4, 2\)"),
    ({"x": X[0, 0, 0]}, ValueError, r"found ndim=0. Full shape received: \(\)"),
    ({"x": random(B, T, F + 1)}, ValueError, r"have 2 features, .*shape=\(3, 4, 3\)"),
    ({"x": X.astype(complex)}, TypeError, "`sequences` " + REAL.format("complex128")),
    ({"x": X.astype(object)}, TypeError, "`sequences` " + REAL.format("object")),
    ({"x": X.astype(str)}, TypeError, "`sequences` " + REAL.format("<U")),
    ({"x": X.astype("M8[s]")}, TypeError, "`sequences` " + REAL.format("datetime64")),
    ({"x": None}, TypeError, "`sequences` " + REAL.format("object")),
    ({"mask": np.ones((T, B))}, ValueError, r"\(3, 4\) or \(3, 4, 1\)\. Rec.*\(4, 3\)"),
    ({"mask": np.ones(T)}, ValueError, r"one entry per row and step.*shape=\(4,\)"),
    ({"mask": np.ones((B, T, F))}, ValueError, r"`mask` must have.*shape=\(3, 4, 2\)"),
    ({"mask": np.ones((B, T), complex)}, TypeError, "`mask` must .*dtype=complex128"),
    ({"mask": np.full((B, T), "y")}, TypeError, "`mask` must .* booleans.*dtype=<U1"),
    ({"mask": np.full((B, T), None)}, TypeError, "`mask` must .*dtype=object"),
    ({"initial_state": random(U)}, ValueError, r"\(3, 5\).*=\(5,\).*broadcast_to"),
    ({"initial_state": random(1, U)}, ValueError, r"`initial_state` .*shape=\(1, 5\)"),
    ({"initial_state": random(B, 1)}, ValueError, r"`initial_state` .*shape=\(3, 1\)"),
    (
        {"initial_state": np.ones((B, U), complex)},
        TypeError,
        "`initial_state` " + REAL.format("complex128"),
    ),
    ({"input_dropout": np.ones(F)}, ValueError, r"\(3, 2\), \(3, 4, 2\) or, with"),
    ({"input_dropout": np.ones((3, B, F))}, ValueError, r"implementation=1, \(3, 3"),
    (
        {"input_dropout": np.ones((B, F), complex)},
        TypeError,
        "`input_dropout` " + REAL.format("complex128"),
    ),
    ({"recurrent_dropout": np.ones((B, U))}, ValueError, r"\(3, 3, 5\)\. Rec.*3, 5"),
    (
        {"recurrent_dropout": np.ones((3, B, U), object)},
        TypeError,
        "`recurrent_dropout` " + REAL.format("object"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("function", [gru, gru_vjp])
@pytest.mark.parametrize(("change", "error", "message"), BAD_INPUTS)
def test_bad_inputs(change, error, message, function):
    with pytest.raises(error, match=message):
        function(config_of(), WEIGHTS, **{"x": X, **change})


def test_time_major_shapes_are_checked_as_such():
    config = config_of(time_major=True)
    with pytest.raises(ValueError, match=r"\(timesteps, batch, features\)"):
        gru(config, WEIGHTS, X[0])
    with pytest.raises(ValueError, match=r"shape \(4, 3\) or \(4, 3, 1\)"):
        gru(config, WEIGHTS, X.swapaxes(0, 1), mask=np.ones((B, T)))


@pytest.mark.parametrize("call", [{}, {"mask": np.ones((B, T))}])
@pytest.mark.parametrize(
    ("weights", "received"),
    [
        (weights_of("float64"), "float64 and float64"),
        (weights_of("float16"), "float16 and float16"),
        (weights_of(">f4"), ">f4 and >f4"),
        (weights_of(units=U + 1), r"\(2, 18\), \(6, 18\) and \(2, 18\)"),
        (weights_of(reset_after=False), r"\(15,\)"),
        (weights_of(bias=False), "None"),
        (Weights(random(F, 14), random(U, 15), random(2, 15), True), r"\(2, 14\)"),
        (Weights(random(F, 15), random(4, 15), random(2, 15), True), r"\(4, 15\)"),
    ],
)
def test_weights_of_another_layer(weights, received, call):
    """Kernels would read past their ends."""
    message = (
        rf"`weights` must have shapes .*, to fit the layer\. Received: .*{received}"
    )
    with pytest.raises(ValueError, match=message):
        gru(config_of(), weights, X, **call)


@pytest.mark.parametrize(
    ("cotangents", "error", "message"),
    [
        ((random(U), None, None), ValueError, r"`d_last_output` .*\(3, 5\).*=\(5,\)"),
        (
            (None, random(B, U), None),
            ValueError,
            r"`d_outputs` .*\(3, 4, 5\).*=\(3, 5\)",
        ),
        ((None, random(T, B, U), None), ValueError, r"`d_outputs` .*=\(4, 3, 5\)"),
        ((None, None, random(1, U)), ValueError, r"`d_state` .*shape of its output"),
        ((np.ones((B, U), complex), None, None), TypeError, "`d_last_output` must be"),
    ],
)
def test_bad_cotangents(cotangents, error, message):
    _, pullback = gru_vjp(config_of(), WEIGHTS, X)
    with pytest.raises(error, match=message):
        pullback(*cotangents)


def test_gradients_need_derivatives_before_anything_is_computed():
    config = config_of(activation=lambda x: x / (1 + abs(x)))
    with pytest.raises(ValueError, match="has no derivative"):
        gru_vjp(config, WEIGHTS, X)


def unaligned(array):
    """Copy to an address that no element may have."""
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    copied = buffer[1:].view(array.dtype).reshape(array.shape)
    copied[...] = array
    return copied


def inside_larger(array):
    """Make a view with gaps in all strides."""
    larger = np.full([2 * n for n in array.shape], 77, array.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def record_field(array):
    """Make a view whose strides are not multiples of an element."""
    records = np.zeros(array.shape, [("byte", "i1"), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def reversed_twice(array):
    return np.ascontiguousarray(array[::-1, ..., ::-1])[::-1, ..., ::-1]


SAME = {
    "Fortran": np.asfortranarray,
    "swapped axes": lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
    "inside a larger array": inside_larger,
    "negative strides": reversed_twice,
    "unaligned": unaligned,
    "field of records": record_field,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": read_only,
    "list": lambda a: a.tolist(),
    "longdouble": lambda a: a if a.dtype == bool else a.astype(np.longdouble),
}


def everything(config, given, weights=WEIGHTS):
    outputs, pullback = gru_vjp(config, weights, **given)
    gradients = pullback(*(random(*y.shape, seed=8) for y in outputs))
    return [*gru(config, weights, **given), *outputs, *gradients]


def assert_same(results, expected):
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, right, strict=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"return_sequences": False, "return_state": True},
        {"use_bias": False},
        {"reset_after": False},
        {"dtype": "float64", "threads": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [(0,), (1,), (2,), (0, 1, 2), ()], ids=str)
def test_whole_arrays_take_a_shorter_way_to_the_same_bits(changes, given, monkeypatch):
    config = GRUConfig(**{"units": U, "return_sequences": True, **changes})
    dtype = config.dtype
    weights = weights_of(dtype, reset_after=config.reset_after, bias=config.use_bias)
    x, h0 = X.astype(dtype), VALID["initial_state"].astype(dtype)
    general = Mock(wraps=functional._call)
    monkeypatch.setattr(functional, "_call", general)
    found = []
    for sequences in (x, x.tolist()):
        assert general.call_count == 0
        outputs, pullback = gru_vjp(config, weights, sequences, h0)
        cotangents = [
            None if y is None or i not in given else random(*y.shape, dtype=dtype)
            for i, y in enumerate(outputs)
        ]
        gradients = pullback(*cotangents)
        arrays = [*outputs, *gradients]
        found.append([array for array in arrays if array is not None])
    assert general.call_count == 1
    assert_same(*found)


@pytest.mark.parametrize("family", ["auto", False])
@pytest.mark.parametrize("way", SAME)
@pytest.mark.parametrize("names", [["x"], ["x", "initial_state", "mask"], [*VALID]])
def test_layout_of_inputs_changes_nothing(names, way, family):
    config = config_of(use_cudnn=family)
    plain = {name: VALID[name] for name in names}
    given = {name: SAME[way](value) for name, value in plain.items()}
    assert_same(everything(config, given), everything(config, plain))


@pytest.mark.parametrize("way", SAME)
def test_layout_of_cotangents_changes_nothing(way):
    outputs, pullback = gru_vjp(config_of(), WEIGHTS, X)
    plain = [random(*y.shape, seed=8) for y in outputs]
    assert_same(pullback(*map(SAME[way], plain)), pullback(*plain))


@pytest.mark.parametrize(
    "way", ["Fortran", "negative strides", "inside a larger array"]
)
def test_layout_of_time_major_inputs_changes_nothing(way):
    config = config_of(time_major=True)
    x, mask = X.swapaxes(0, 1), VALID["mask"].T
    plain = {"x": x.copy(), "mask": mask.copy()}
    given = {"x": SAME[way](x), "mask": SAME[way](mask)}
    assert_same(everything(config, given), everything(config, plain))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "bool", "float16"])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_types_of_inputs_are_cast(dtype, real):
    config, weights = config_of(dtype=real), weights_of(real)
    x = np.random.default_rng(0).integers(0, 2, X.shape).astype(dtype)
    state = np.ones((B, U), dtype)
    given = {"x": x, "initial_state": state}
    plain = {name: value.astype(real) for name, value in given.items()}
    assert_same(everything(config, given, weights), everything(config, plain, weights))
    assert gru(config, weights, x)[0].dtype == real


def test_float64_is_cast_to_float32_in_silence():
    wide = random(B, T, F, dtype="float64")
    assert_same(gru(config_of(), WEIGHTS, wide), gru(config_of(), WEIGHTS, X))


@pytest.mark.parametrize(
    "mask",
    [
        VALID["mask"][..., None],
        VALID["mask"].astype(int) * 7,
        VALID["mask"].astype(float),
        VALID["mask"].tolist(),
    ],
)
def test_forms_of_masks(mask):
    expected = gru(config_of(), WEIGHTS, X, mask=VALID["mask"])
    assert_same(gru(config_of(), WEIGHTS, X, mask=mask), expected)


def test_broadcast_inputs():
    x = np.broadcast_to(X[:1], X.shape)
    assert_same(gru(config_of(), WEIGHTS, x), gru(config_of(), WEIGHTS, x.copy()))


@pytest.mark.parametrize("family", ["auto", False])
def test_inputs_are_not_written_to(family):
    given = {name: value.copy() for name, value in VALID.items()}
    everything(config_of(use_cudnn=family), given)
    for name, value in given.items():
        np.testing.assert_array_equal(value, VALID[name], strict=True)
    fresh = weights_of()
    np.testing.assert_array_equal(WEIGHTS.kernel, fresh.kernel)
    np.testing.assert_array_equal(WEIGHTS.recurrent_kernel, fresh.recurrent_kernel)
    np.testing.assert_array_equal(WEIGHTS.bias, fresh.bias)


@pytest.mark.parametrize("names", [["x"], ["x", "initial_state", "mask"]])
def test_results_belong_to_the_caller(names):
    """Writing into them changes neither inputs nor later results."""
    config = config_of(return_state=True)
    given = {name: VALID[name].copy() for name in names}
    expected = everything(config, given)
    (last, outputs, state), pullback = gru_vjp(config, WEIGHTS, **given)
    cotangents = [random(*y.shape, seed=8) for y in (last, outputs, state)]
    for array in (last, outputs, state):
        array[...] = np.nan
    for _ in range(2):
        gradients = pullback(*cotangents)
        assert_same(gradients, expected[6:])
        for array in gradients:
            if array is not None:
                array[...] = np.nan
    for array in gru(config, WEIGHTS, **given):
        array[...] = np.nan
    assert_same(everything(config, given), expected)


def test_results_do_not_share_memory():
    given = {"x": X, "initial_state": np.zeros((B, 5), "float32")}
    masked = {**given, "mask": np.zeros((B, T))}
    for call in (given, masked):
        # The last output may be the state: no layer returns it besides all outputs.
        results = everything(config_of(return_state=True), call)
        arrays = [*results[1:3], *results[4:], *call.values()]
        for i, one in enumerate(arrays):
            for other in arrays[:i]:
                assert not np.shares_memory(one, other)


def test_last_and_state_are_apart_where_both_are_returned():
    config = GRUConfig(units=U, return_state=True)
    last, outputs, state = gru(config, WEIGHTS, X)
    assert outputs is None
    assert not np.shares_memory(last, state)
    np.testing.assert_array_equal(last, state)


@pytest.mark.parametrize("shape", [(0, T), (B, 0), (0, 0)])
@pytest.mark.parametrize("family", ["auto", False])
@pytest.mark.parametrize("masked", [False, True])
def test_no_rows_or_no_steps(shape, family, masked):
    rows = shape[0]
    x, h0 = np.zeros((*shape, F)), random(rows, U)
    mask = np.ones(shape, bool) if masked else None
    config = config_of(use_cudnn=family)
    (last, outputs, state), pullback = gru_vjp(config, WEIGHTS, x, h0, mask)
    assert outputs.shape == (*shape, U)
    np.testing.assert_array_equal(last, h0)
    np.testing.assert_array_equal(state, h0)
    gradients = pullback(None, None, np.ones((rows, U)))
    assert gradients.inputs.shape == x.shape
    np.testing.assert_array_equal(gradients.initial_state, np.ones((rows, U)))
    for gradient in gradients[2:]:
        assert not gradient.any()
    zeros = gru(config, WEIGHTS, x, mask=mask)
    assert [array.shape for array in zeros] == [(rows, U), (*shape, U), (rows, U)]
    assert not zeros[0].any()


def test_no_cotangent_gives_zeros():
    _, pullback = gru_vjp(config_of(), WEIGHTS, X, VALID["initial_state"])
    for gradient in pullback():
        assert not gradient.any()


@pytest.mark.parametrize("shape", [(B, T), (B, 1), (0, T), (B, 0)])
@pytest.mark.parametrize("family", ["auto", False])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_of_what_was_given(shape, family, masked):
    config = config_of(use_cudnn=family, use_bias=False)
    weights = Weights(WEIGHTS.kernel, WEIGHTS.recurrent_kernel, None, True)
    x, mask = random(*shape, F), np.ones(shape, bool) if masked else None
    d_y = random(*shape, U)
    given, none = (
        gru_vjp(config, weights, x, h0, mask)[1](None, d_y)
        for h0 in (np.zeros((shape[0], U), "float32"), None)
    )
    assert given.initial_state.shape == (shape[0], U)
    assert none.initial_state is None
    assert given.bias is None
    assert none.bias is None
    assert_same((none.inputs, *none[2:4]), (given.inputs, *given[2:4]))


@pytest.mark.parametrize(
    "names", [[], ["initial_state"], ["mask"], ["initial_state", "mask"]], ids=repr
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reset_after": False},
        {"use_bias": False, "activation": "softmax"},
        {"return_sequences": False, "return_state": True, "zero_output_for_mask": True},
    ],
    ids=repr,
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 4), (9, 5)])
def test_calls_bound_before_are_the_general_ones(shape, changes, names, monkeypatch):
    rows, units = shape[0], 16
    config = GRUConfig(units=units, **{"return_sequences": True, **changes})
    bias, after = config.use_bias, config.reset_after
    given = {
        "x": random(*shape, F),
        "initial_state": random(rows, units, seed=4),
        "mask": np.random.default_rng(5).random(shape) < 0.6,
    }
    given = {name: given[name] for name in ["x", *names]}
    d_y = random(*shape, units, seed=6) if config.return_sequences else None
    d_last, d_state = (random(rows, units, seed=seed) for seed in (7, 8))

    def results():
        weights = weights_of(units=units, reset_after=after, bias=bias)
        outputs, pullback = gru_vjp(config, weights, **given)
        return *outputs, *pullback(d_last, d_y, d_state), *pullback(None, d_y)

    with monkeypatch.context() as patch:
        patch.setattr(functional, "_call", Mock(side_effect=AssertionError))
        bound = results()
    monkeypatch.setattr(functional, "training", lambda *_: None)
    assert_same(results(), bound)


def test_weights_are_one_thing_for_many_configs():
    """What is prepared for one config must not be used for another."""
    two = config_of(), config_of(activation="sigmoid")
    fresh = [gru(config, weights_of(), X) for config in two]
    for _ in range(2):
        for config, expected in zip(two, fresh, strict=True):
            assert_same(gru(config, WEIGHTS, X), expected)


def test_weights_pickle():
    weights = weights_of()
    expected = gru(config_of(), weights, X)
    copied = pickle.loads(pickle.dumps(weights))
    assert_same(gru(config_of(), copied, X), expected)


def test_explain():
    assert explain(config_of()).startswith("cpu_tiles: ")
    text = explain(config_of(use_cudnn=False))
    assert text.startswith("cpu_plain: ")
    assert "not cpu_tiles: use_cudnn=False forbids the fused kernels" in text


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("units", [1, 64, 256, 4096])
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 17, 100, 10_000])
@pytest.mark.parametrize("steps", [0, 1, 2, 1000])
def test_parts_of_rows_fill_tiles_and_stay_small(rows, steps, units, itemsize):
    per_part = rows_per_part(rows, steps, 10, units, itemsize)
    parts = -(-rows // per_part)
    assert per_part >= 1
    assert per_part < 8 or per_part % 8 == 0 or parts == 1
    assert parts <= 64
    size = (10 + units) * 3 * units * itemsize
    assert parts <= 2 or parts * size <= 64 * 2**20

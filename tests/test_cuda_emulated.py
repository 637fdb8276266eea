"""The CUDA kernels in an emulator of a grid: the bits of the CPU's plain kernel."""

from dataclasses import replace

import numpy as np
import pytest
from numba import types

pytest.importorskip("numba_cuda", reason="kernels are written with numba-cuda")
pytest.importorskip("greenlet", reason="the emulator runs each thread as a greenlet")

from gridemu import Grid, as_pointer
from numbagru import functional, operands
from numbagru.kernels import backward_cpu, forward_cpu, plain_cpu, weight_gradients
from numbagru.kernels.call import Cotangents, Results, rows_by_end
from numbagru.kernels.cuda import (
    backward_cuda,
    backward_grid,
    backward_rows,
    forward_cuda,
    forward_grid,
    forward_rows,
    grid_parts,
    library,
    limits,
)
from numbagru.kernels.cuda.launch import Products
from numbagru.kernels.cuda.ptx import cuda
from test_kernels import CASES, Case, arguments, by_time, problem_of

# Of the shapes, one of everything, primes and one past what a vector and a warp take.
NAMES = [
    "0x2x3x5", "2x0x3x5", "1x1x1x1", "2x5x3x8", "3x2x1x15", "7x2x8x17", "left mask",
    "gaps", "empty row", "all masked", "mask, no state", "only the last output",
    "backwards, gaps", "no bias", "zeros", "zeros, empty row", "state first",
    "state first, empty row", "state first, zeros", "no steps, state first",
    "time major, gaps, backwards", "dropout", "dropout per gate", "recurrent dropout",
    "both dropouts",
]  # fmt: skip
CHOSEN = {
    **{name: CASES[name] for name in NAMES},
    # Past a tile of samples, of columns and of features.
    "past the tiles": Case((13, 5, 17, 22), mask="gaps"),
    "kept sums": Case(
        (3, 4, 2, 11), activation="silu", recurrent_activation="gelu", mask="gaps"
    ),
    "of the user": Case((3, 4, 2, 5), activation="softsign"),
    "three of them": Case(
        (3, 4, 2, 5), activation="linear", recurrent_activation="hard_sigmoid"
    ),
}


def emulate(launches, seed):
    for launch in launches:
        if isinstance(launch, Products):
            launch.function(np, *launch.arguments)
            continue
        grid = Grid(launch.blocks, launch.threads, seed, launch.shared_bytes)
        grid.run(launch.kernel, *map(as_pointer, launch.arguments))


def poisoned(shape, dtype):
    return np.full(shape, np.nan, dtype)


def outputs(call):
    """Make arrays for all that a training call writes, poisoned."""
    out = functional._outputs(call, plain_cpu.saved_shapes(call))
    for array in out:
        array[...] = np.nan
    return out


def active_only(call, saved):
    """Take from what is saved the steps that are not masked."""
    return saved if call.mask.size == 0 else saved[call.mask.astype(bool)]


@pytest.mark.parametrize(("rows", "dtype"), [(1, "float64"), (3, "float32")])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("name", CHOSEN)
def test_forward(name, reset_after, rows, dtype):
    check_forward(name, reset_after, rows, dtype)


def check_forward(name, reset_after, rows, dtype):
    case = replace(CHOSEN[name], reset_after=reset_after, dtype=dtype)
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    expected, found = outputs(call), outputs(call)
    plain_cpu.forward(call, expected, 1)
    emulate(forward_cuda.forward(call, found, rows, poisoned), seed=rows)
    check_outputs(call, expected, found)


def check_outputs(call, expected, found):
    for name, right in expected._asdict().items():
        result = getattr(found, name)
        if name == "saved":
            right, result = active_only(call, right), active_only(call, result)
        assert right.tobytes() == result.tobytes(), name


TILED = {
    **{
        name: case for name, case in CHOSEN.items() if case.shape[0] * case.shape[1] > 0
    },
    # Past a tile of rows and of units, of more than a slab of units.
    "past the rows": Case((65, 2, 3, 17), mask="gaps"),
    "past the units": Case((2, 3, 3, 33)),
}


@pytest.mark.parametrize(
    ("reset_after", "dtype"), [(True, "float64"), (False, "float32")]
)
@pytest.mark.parametrize("name", TILED)
def test_forward_in_tiles(name, reset_after, dtype):
    case = replace(TILED[name], dtype=dtype, reset_after=reset_after)
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    expected, found = outputs(call), outputs(call)
    plain_cpu.forward(call, expected, 1)
    emulate(forward_cuda.forward_tiled(call, found, poisoned), seed=1)
    check_outputs(call, expected, found)


@pytest.fixture
def few_threads(monkeypatch):
    """Let blocks of the grid have fewer threads than they read numbers."""
    makers = forward_cuda._grid, backward_cuda._grid
    for module in (grid_parts, forward_grid, backward_grid):
        monkeypatch.setattr(module, "THREADS", 32)
    for maker in makers:
        maker.cache_clear()
    yield
    for maker in makers:
        maker.cache_clear()


DIVIDED = {
    **{name: case for name, case in CHOSEN.items() if case.shape[0] > 0},
    # More than a slab of units, the last block with one.
    "past the slab": Case((3, 3, 2, 41), mask="gaps"),
}


@pytest.mark.parametrize(
    ("split", "dtype", "reset_after"),
    [
        (limits.Split(4, 4, 2), "float32", True),
        (limits.Split(2, 2, 2), "float64", False),
        (limits.Split(8, 1, 1), "float32", False),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", DIVIDED)
def test_forward_on_the_grid(name, reset_after, split, dtype, few_threads):
    case = replace(DIVIDED[name], dtype=dtype, reset_after=reset_after)
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    expected, found = outputs(call), outputs(call)
    plain_cpu.forward(call, expected, 1)
    emulate(forward_cuda.forward_on_grid(call, found, split, poisoned), seed=2)
    check_outputs(call, expected, found)


def test_blocks_that_wait_in_vain_give_up(few_threads, monkeypatch):
    """Launch only some of the blocks: what they give is not a number, and they end."""
    monkeypatch.setattr(grid_parts, "MOST_LOOKS", 20)
    case = Case((2, 4, 3, 9), mask=None)
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    found = outputs(call)
    for array in (found.y, found.state):
        array[...] = 1
    *before, recur = forward_cuda.forward_on_grid(
        call, found, limits.Split(4, 2, 2), poisoned
    )
    assert recur.blocks == (3, 1)
    emulate([*before, recur._replace(blocks=(2, 1))], seed=0)
    assert np.isnan(found.y[:, :, :8]).all()
    assert np.isnan(found.state[:, :8]).all()


@pytest.mark.parametrize(
    ("reset_after", "dtype"), [(True, "float32"), (False, "float64")]
)
@pytest.mark.parametrize("name", TILED)
def test_backward_in_tiles(name, reset_after, dtype):
    case = replace(TILED[name], reset_after=reset_after, dtype=dtype)
    check_gradients(case, None)


@pytest.mark.parametrize(("rows", "dtype"), [(1, "float64"), (3, "float32")])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("name", CHOSEN)
def test_backward(name, reset_after, rows, dtype):
    check_backward(name, reset_after, rows, dtype)


def check_backward(name, reset_after, rows, dtype):
    check_gradients(replace(CHOSEN[name], reset_after=reset_after, dtype=dtype), rows)


@pytest.mark.parametrize(
    ("split", "dtype", "reset_after"),
    [
        (limits.Split(4, 2, 2), "float32", True),
        (limits.Split(7, 4, 2), "float64", False),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", DIVIDED)
def test_backward_on_the_grid(name, reset_after, split, dtype, few_threads):
    case = replace(DIVIDED[name], reset_after=reset_after, dtype=dtype)
    check_gradients(case, split)


def cotangents_of(case, call):
    gradients = problem_of(case).gradients
    return Cotangents(
        *operands.HOST.cotangents(
            call.config,
            call.x.shape,
            call.x.dtype,
            by_time(case, gradients["outputs"]),
            gradients["last"],
            gradients["state"],
        )
    )


def results_of(case, call):
    """Make arrays for all that a backward pass writes, poisoned."""
    (B, T, F), U = call.x.shape, call.config.units
    biases = call.weights.bias.size if case.use_bias else 0
    shapes = (B, T, F), (B, U), (F, 3 * U), (U, 3 * U), (biases,)
    return Results(*(poisoned(shape, call.x.dtype) for shape in shapes))


def test_gradients_of_blocks_that_wait_in_vain(few_threads, monkeypatch):
    monkeypatch.setattr(grid_parts, "MOST_LOOKS", 20)
    case = Case((2, 4, 3, 9), mask=None)
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    out, found = outputs(call), results_of(case, call)
    plain_cpu.forward(call, out, 1)
    order, _ = rows_by_end(call.mask)
    launches = backward_cuda.backward(
        call, cotangents_of(case, call), out, order, 2, found, limits.Split(4, 2, 2),
        lambda shape, dtype: np.zeros(shape, dtype),
    )  # fmt: skip
    found.h0[...] = 1
    fill, recur = launches[:2]
    assert recur.blocks == (3, 1)
    emulate([fill, recur._replace(blocks=(2, 1))], seed=0)
    assert np.isnan(found.h0[:, :8]).all()


def check_gradients(case, division):
    call, _ = functional._call(*arguments(case, "cpu_tiles"))
    given = cotangents_of(case, call)
    rows_per_part = weight_gradients.rows_per_part(
        *call.x.shape, call.config.units, call.x.itemsize
    )
    expected, found = results_of(case, call), results_of(case, call)
    out = functional._outputs(call, forward_cpu.saved_shapes(call))
    forward_cpu.forward(call, out, 1)
    backward_cpu.backward(call, given, out, rows_per_part, expected, 1)

    out = outputs(call)
    plain_cpu.forward(call, out, 1)
    order, _ = rows_by_end(call.mask)
    emulate(
        backward_cuda.backward(
            call, given, out, order, rows_per_part, found, division, poisoned
        ),
        seed=3,
    )
    for name, right in expected._asdict().items():
        if name != "h0" or not call.from_zeros:
            assert right.tobytes() == getattr(found, name).tobytes(), name


def as_tf32(array):
    """Round to eleven bits, a half away from zero, as the PTX ISA has cvt.rna.tf32."""
    mantissa, exponent = np.frexp(array.astype("float64"))
    rounded = np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5)
    return np.ldexp(rounded, exponent - 11)


def check_rounded_product(found, left, right, start=0):
    """Compare with the product of rounded factors, summed up in float32."""
    left, right = as_tf32(left), as_tf32(right)
    size = np.abs(left) @ np.abs(right) + np.abs(start)
    error = np.abs(found - (start + left @ right))
    assert (error <= (left.shape[-1] + 1) * np.finfo("float32").eps * size).all()
    assert error.any()


# Past a tile of samples, of columns and of features, and of a slab of each.
ON_TENSOR_CORES = Case((14, 5, 67, 22))


def test_products_on_tensor_cores():
    case = ON_TENSOR_CORES
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    call = replace(call, config=replace(call.config, precision="tf32"))
    (B, T, F), U = call.x.shape, call.config.units
    sums = poisoned((B * T, 3 * U), "float32")
    emulate([forward_cuda.project(call, sums)], seed=4)
    x, weights = call.x.reshape(-1, F), call.weights
    check_rounded_product(
        sums, x, weights.kernel, weights.sum_bias.reshape(-1)[: 3 * U]
    )

    out, found, made = outputs(call), results_of(case, call), []
    plain_cpu.forward(call, out, 1)

    def allocate(shape, dtype):
        made.append(poisoned(shape, dtype))
        return made[-1]

    order, _ = rows_by_end(call.mask)
    given = cotangents_of(case, call)
    emulate(
        backward_cuda.backward(call, given, out, order, B, found, 1, allocate), seed=5
    )
    d_sums = made[0].reshape(B * T, 4, U)
    of_inputs, of_states = (
        d_sums[:, gates].reshape(-1, 3 * U) for gates in ([1, 2, 0], [1, 2, 3])
    )
    check_rounded_product(found.x.reshape(-1, F), of_inputs, weights.kernel.T)
    check_rounded_product(found.W, x.T, of_inputs)
    before = np.concatenate([call.h0[:, None], out.states[:, :-1]], 1).reshape(-1, U)
    check_rounded_product(found.R, before.T, of_states)


@pytest.mark.parametrize("name", ["gaps", "both dropouts", "backwards, gaps"])
def test_layers_on_tensor_cores(name):
    """Eleven bits are worse than 24, and not worse than eleven."""
    case = replace(CHOSEN[name], dtype="float32")
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    results = []
    for precision in ("dtype", "tf32"):
        call = replace(call, config=replace(call.config, precision=precision))
        out, found = outputs(call), results_of(case, call)
        emulate(forward_cuda.forward(call, out, 2, poisoned), seed=6)
        order, _ = rows_by_end(call.mask)
        given = cotangents_of(case, call)
        launches = backward_cuda.backward(
            call, given, out, order, 2, found, 2, poisoned
        )
        emulate(launches, seed=7)
        results.append([out.y, out.state, *found])
    for exact, rounded in zip(*results, strict=True):
        error = np.abs(exact - rounded).max()
        assert 0 < error < 2**-8 * np.abs(exact).max()


OF_A_LIBRARY = [
    "0x2x3x5", "2x0x3x5", "1x1x1x1", "7x2x8x17", "gaps", "all masked", "no bias",
    "mask, no state", "time major, gaps, backwards", "dropout", "dropout per gate",
    "recurrent dropout", "both dropouts",
]  # fmt: skip


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("name", OF_A_LIBRARY)
def test_products_of_a_library(name, reset_after, monkeypatch):
    """NumPy stands for CuPy; what is masked is NaN, and must not count."""
    monkeypatch.setattr(limits, "cupy_found", lambda: True)
    case = replace(CHOSEN[name], reset_after=reset_after, dtype="float64")
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    if call.mask.size > 0:
        call.x[call.mask == 0] = np.nan
    given, order = cotangents_of(case, call), rows_by_end(call.mask)[0]
    results = []
    for precision in ("dtype", "free"):
        call = replace(call, config=replace(call.config, precision=precision))
        out, found = outputs(call), results_of(case, call)
        tasks = forward_cuda.forward(call, out, 2, poisoned)
        emulate(tasks, seed=8)
        more = backward_cuda.backward(call, given, out, order, 2, found, 2, poisoned)
        emulate(more, seed=9)
        products = sum(isinstance(task, Products) for task in [*tasks, *more])
        assert products == (0 if precision == "dtype" else 3 + (call.x.size > 0))
        results.append([out.y, out.state, *found])
    check_same_sums(call, *results)


def test_kernels_multiply_where_there_is_no_library(monkeypatch):
    monkeypatch.setattr(limits, "cupy_found", lambda: False)
    call, _ = functional._call(*arguments(CHOSEN["gaps"], "cpu_plain"))
    sums, given = poisoned((21, 24), "float32"), cotangents_of(CHOSEN["gaps"], call)
    results = []
    for precision in ("dtype", "free"):
        call = replace(call, config=replace(call.config, precision=precision))
        tasks = [forward_cuda.project(call, sums)]
        tasks += backward_cuda.backward(
            call, given, outputs(call), np.zeros(1, int), 2,
            results_of(CHOSEN["gaps"], call), 1, poisoned,
        )  # fmt: skip
        results.append([task.kernel for task in tasks])
    assert results[0] == results[1]


def check_same_sums(call, in_order, free):
    """Compare what differs by the order of sums alone."""
    terms = call.x.shape[0] * call.x.shape[1] + call.x.shape[2] + 3 * call.config.units
    for chain, other in zip(in_order, free, strict=True):
        size = np.abs(chain).max(initial=1)
        np.testing.assert_allclose(
            other, chain, rtol=0, atol=terms * size * np.finfo(chain.dtype).eps
        )


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize(
    ("name", "split", "dtype"),
    [
        ("gaps", limits.Split(2, 2, 2, 4), "float64"),
        ("gaps", limits.Split(2, 2, 2, 4), "float32"),
        ("both dropouts", limits.Split(2, 2, 1, 2), "float64"),
        ("past the slab", limits.Split(2, 2, 2, 4), "float64"),
    ],
    ids=str,
)
def test_sums_in_parts(name, reset_after, split, dtype, few_threads, monkeypatch):
    """Threads share the sums of the recurrence: other bits, the same numbers."""
    for module in (grid_parts, forward_grid, backward_grid):
        monkeypatch.setattr(module, "DEPTH", 4)
    case = replace(DIVIDED[name], reset_after=reset_after, dtype=dtype)
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    given, order = cotangents_of(case, call), rows_by_end(call.mask)[0]
    results = []
    for division in (split._replace(parts=1), split):
        out, found = outputs(call), results_of(case, call)
        emulate(forward_cuda.forward_on_grid(call, out, division, poisoned), seed=10)
        emulate(
            backward_cuda.backward(
                call, given, out, order, 2, found, division, poisoned
            ),
            seed=11,
        )
        results.append([out.y, out.state, *found])
    check_same_sums(call, *results)
    bits = (b"".join(array.tobytes() for array in arrays) for arrays in results)
    assert len({*bits}) == 2


def test_products_of_a_library_keep_the_type():
    case = replace(CHOSEN["both dropouts"], mask="gaps", dtype="float32")
    call, _ = functional._call(*arguments(case, "cpu_plain"))
    call = replace(call, config=replace(call.config, precision="free"))
    made, rng = [], np.random.default_rng(0)

    class Watched:
        """NumPy's functions, whose results are looked at."""

        def __getattr__(self, name):
            def function(*given, **named):
                made.append(getattr(np, name)(*given, **named))
                return made[-1]

            return function

    (B, T, _), U = call.x.shape, call.config.units
    out, found = outputs(call), results_of(case, call)
    d_sums = rng.normal(size=(B, T, 4, U)).astype("float32")
    for products in library.gradients(call, out, d_sums, found):
        products.function(Watched(), *products.arguments)
    assert len(made) >= 3
    assert {array.dtype for array in made} == {np.dtype("float32")}


@pytest.fixture
def wide(monkeypatch):
    """Let few units count as many: nothing stays in registers or in shared memory."""
    makers = forward_cuda._rows, backward_cuda._rows
    monkeypatch.setattr(limits, "MOST_RESIDENT", {32: 4, 64: 4})
    monkeypatch.setattr(forward_rows, "MOST_THREADS", 32)
    for module in (forward_rows, backward_rows):
        monkeypatch.setattr(module, "SHARED_BYTES", 0)
    for maker in makers:
        maker.cache_clear()
    yield
    for maker in makers:
        maker.cache_clear()


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("name", ["gaps", "both dropouts", "2x5x3x8"])
def test_many_units(name, reset_after, wide):
    check_forward(name, reset_after, 2, "float32")
    check_backward(name, reset_after, 2, "float64")


def test_the_emulator_shows_a_missing_barrier():
    def reverse(numbers, waits):
        shared = cuda.shared.array(64, types.float32)
        i = cuda.threadIdx.x
        shared[i] = i
        if waits:
            cuda.syncthreads()
        numbers[i] = shared[63 - i]

    for waits in (True, False):
        numbers = np.zeros(64, np.float32)
        Grid((1,), 64).run(reverse, numbers, waits)
        assert np.isnan(numbers).any() != waits

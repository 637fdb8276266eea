"""The CUDA kernels as machine code: compiled without a device, and looked at."""

import itertools
import re
from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are written with numba-cuda")
pytest.importorskip("nvidia.cu13", reason="compiling takes NVVM and nvJitLink")

from cuda.core import Linker, LinkerOptions, ObjectCode
from numba import types
from numba.np.numpy_support import as_dtype

from numbagru import activations
from numbagru._jit_cuda import compiled
from numbagru.activations.formulas import OF_INPUT, SCALAR
from numbagru.kernels.cuda import (
    backward_grid,
    backward_rows,
    backward_tiles,
    elementwise,
    forward_grid,
    forward_rows,
    forward_tiles,
    launch,
    limits,
    passes,
    products,
    weight_gradients,
)
from pretended import device

CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0)]
REGISTERS = 65536  # of a multiprocessor, for all threads of a block


def machine_code(kernel, signature, threads, capabilities=CAPABILITIES):
    """Compile for devices; yields PTX and what the assembler says of it.

    What Numba does, nine tenths of the time, it does once for all of them: the results
    differ in the names of shared arrays only.
    """
    with device(capabilities[0]):
        library = compiled(kernel, signature, threads)._codelibrary
    for capability in capabilities:
        ptx = library.get_asm_str(cc=capability)
        (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
        assert target == "sm_{}{}".format(*capability)
        options = LinkerOptions(arch=target, ptxas_options=["-v"])
        linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
        assert linker.link("cubin").code
        yield ptx, linker.get_info_log()


def check(kernel, signature, threads, real, capabilities=CAPABILITIES):
    """Look for all that would change bits or slow the kernel down."""
    for ptx, log in machine_code(kernel, signature, threads, capabilities):
        assert "approx" not in ptx
        assert not re.search(r"\b(mul|add|sub)\.(ftz\.)?f(32|64)", ptx)  # without .rn
        if real == types.float32:
            assert ".f64" not in ptx
        spills = re.findall(
            r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log
        )
        assert spills
        assert set(spills) == {"0"}
        (registers,) = re.findall(r"Used (\d+) registers", log)
        assert int(registers) <= REGISTERS // threads


def activation(name):
    return launch.scalars(activations.get(name))


@pytest.mark.parametrize("real", [types.float32, types.float64], ids=str)
@pytest.mark.parametrize("per_gate", [False, True])
def test_project(per_gate, real):
    kernel = products.make_project(real, per_gate, "dtype")
    signature = products.project_signature(real)
    check(kernel, signature, products.THREADS, real)


def with_tensor_cores():
    """Make the kernels that multiply on tensor cores."""
    real, w = types.float32, weight_gradients
    for per_gate in (False, True):
        kernel = products.make_project(real, per_gate, "tf32")
        yield kernel, products.project_signature(real)
        kernel = products.make_input_gradient(real, per_gate, per_gate, "tf32")
        yield kernel, products.input_gradient_signature(real)
        kernel = w.make_gradient(real, per_gate, False, per_gate, per_gate, "tf32")
        yield kernel, w.gradient_signature(real)


def test_tensor_cores():
    new_enough = [
        capability
        for capability in CAPABILITIES
        if capability >= products.capability_of("tf32")
    ]
    assert new_enough == CAPABILITIES[1:]
    for kernel, signature in with_tensor_cores():
        check(kernel, signature, products.THREADS, types.float32, new_enough)
        ((ptx, _),) = machine_code(kernel, signature, products.THREADS, [(8, 0)])
        # A slab of sixteen is two of eight; a warp has four times eight columns.
        assert len(re.findall(r"mma\.sync\.aligned\.m16n8k8\.\S+\.tf32", ptx)) == 8
        assert len(re.findall(r"cvt\.rna\.tf32\.f32", ptx)) >= 2


VARIANTS = [
    # units, rows, reset_after, masked, drops, keeps
    (1, 1, True, False, False, False),
    (33, 1, False, True, False, True),
    (48, 4, False, True, True, True),
    (56, 2, False, True, True, True),
    (80, 4, True, False, False, True),
    (80, 4, False, True, True, True),
    (96, 1, False, True, True, True),
    (104, 2, True, True, True, True),
    (2000, 2, False, True, False, False),
]


@pytest.mark.parametrize("real", [types.float32, types.float64], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_forward_rows(variant, real):
    units, rows, *rest = variant
    assert rows <= limits.most_rows(32, units, rest[0])
    both = activation("tanh"), activation("sigmoid")
    kernel = forward_rows.make(real, units, rows, *both, *rest)
    threads = forward_rows.threads_of(units)
    check(kernel, forward_rows.signature(real), threads, real)


H100 = limits.Chip(132, 228 * 1024, 227 * 1024)
GRID = [
    # units, rows of a call, reset_after, masked, drops, keeps
    (109, 64, True, False, False, False),
    (200, 1, False, True, True, True),
    (512, 32, True, False, True, True),
    (1024, 8, True, True, False, False),
    (1400, 1, False, False, False, True),
]


@pytest.mark.parametrize("real", [types.float32, types.float64], ids=str)
@pytest.mark.parametrize("variant", GRID, ids=str)
def test_grid(variant, real):
    check_grid(variant, real, free=False)


def test_grid_with_sums_in_parts():
    check_grid(GRID[1], types.float32, free=True)


def check_grid(variant, real, free):
    units, B, reset_after, masked, drops, keeps = variant
    seen = limits.copies(reset_after, drops)
    split = limits.split(real.bitwidth, units, B, H100, seen, free)
    if split is None:
        assert real == types.float64
        assert units >= 512
        return
    both = activation("tanh"), activation("sigmoid")
    rest = reset_after, masked, drops
    kernel = backward_grid.make(real, units, split, *both, *rest)
    threads = forward_grid.THREADS
    check(kernel, backward_grid.signature(real), threads, real)
    kernel = forward_grid.make(real, units, split, *both, *rest, keeps)
    signature = forward_grid.signature(real)
    check(kernel, signature, threads, real)
    with device((9, 0)):
        found = compiled(kernel, signature, threads)
    assert found.cooperative
    ptx = found._codelibrary.get_asm_str(cc=(9, 0))
    assert "red.release.gpu.add.s32" in ptx
    assert "ld.acquire.gpu.s32" in ptx
    # Vectors of the array whose size the launch gives.
    assert re.search(r"\.extern \.shared \.align 16 \.b8 \S+\[\]", ptx)


BACKWARD = [
    # units, rows, reset_after, masked, drops
    (1, 1, True, False, False),
    (48, 4, False, True, True),
    (56, 2, True, True, False),
    (80, 4, True, True, True),
    (80, 4, False, True, True),
    (56, 1, False, True, True),
    (96, 1, False, True, True),
    (104, 2, True, True, True),
    (2000, 1, False, True, False),
]


@pytest.mark.parametrize("real", [types.float32, types.float64], ids=str)
@pytest.mark.parametrize("variant", BACKWARD, ids=str)
def test_backward_rows(variant, real):
    units, rows, *rest = variant
    assert rows <= limits.most_rows(32, units, rest[0])
    both = activation("tanh"), activation("sigmoid")
    kernel = backward_rows.make(real, units, rows, *both, *rest)
    threads = forward_rows.threads_of(units)
    check(kernel, backward_rows.signature(real), threads, real)


@pytest.mark.parametrize(
    ("units", "reset_after", "rows"),
    [(80, False, 4), (96, False, 1), (96, True, 2), (200, False, 2)],
)
def test_rows_of_a_block(units, reset_after, rows):
    """As many as were compiled above, where there are rows for all multiprocessors."""
    call = Mock(x=np.zeros((4 * H100.processors, 1, 1), np.float32))
    call.config = Mock(units=units, reset_after=reset_after)
    assert passes._rows(call, H100) == rows
    call.x = call.x[: H100.processors]
    assert passes._rows(call, H100) == 1


def others(real):
    """Make the kernels of products, and of sums of parts."""
    w, threads = weight_gradients, products.THREADS
    signatures = products.input_gradient_signature(real), w.gradient_signature(real)
    yield (
        products.make_input_gradient(real, False, False, "dtype"),
        signatures[0],
        threads,
    )
    yield (
        products.make_input_gradient(real, True, True, "dtype"),
        signatures[0],
        threads,
    )
    yield (
        w.make_gradient(real, False, True, False, False, "dtype"),
        signatures[1],
        threads,
    )
    yield (
        w.make_gradient(real, True, False, True, True, "dtype"),
        signatures[1],
        threads,
    )
    both = activation("tanh"), activation("sigmoid")
    yield from steps_in_tiles(real, *both)
    yield w.make_biases(real, True), w.biases_signature(real), w.COLUMNS
    yield w.make_collect(real), w.collect_signature(real), w.COLUMNS
    for one in around(real):
        yield one.kernel, one.signature, one.threads


def steps_in_tiles(real, *both):
    """Make the kernels that are launched step by step, and back."""
    tiles, threads = forward_tiles, products.THREADS
    signature = tiles.signature(real)
    yield tiles.make(real, *both, False, False, False), signature, threads
    yield tiles.make(real, *both, True, True, True), signature, threads
    halves = tiles.make_gates(real, *both, True, True), tiles.gates_signature(real)
    yield *halves, threads
    halves = tiles.make_state(real, *both, True, True), tiles.state_signature(real)
    yield *halves, threads
    tiles = backward_tiles
    signature = tiles.signature(real)
    yield tiles.make(real, *both, True, False, False), signature, threads
    yield tiles.make(real, *both, True, True, True), signature, threads
    yield tiles.make(real, *both, False, True, False), signature, threads
    reset = tiles.make_reset(real, *both, True, True), tiles.reset_signature(real)
    yield *reset, threads


def around(real):
    """Make what elementwise.py launches."""
    x = np.zeros((1, 1, 1), as_dtype(real))
    mask, order = np.zeros((1, 1), np.uint8), np.zeros(1, np.int64)
    return [
        *elementwise.fill(x),
        *itertools.chain(*(elementwise.combine(op, x, x, x) for op in elementwise.OPS)),
        *elementwise.rows_by_end(mask, order, order),
    ]


@pytest.mark.parametrize("real", [types.float32, types.float64], ids=str)
def test_the_other_kernels(real):
    for kernel, signature, threads in others(real):
        check(kernel, signature, threads, real)


@pytest.mark.parametrize("name", SCALAR)
def test_every_activation(name):
    """Compile each as it stands; none becomes an approximation."""
    real = types.float32
    both = [launch.Scalars(*SCALAR[name], name in OF_INPUT)] * 2
    kernel = forward_rows.make(real, 3, 1, *both, True, False, False, True)
    threads = forward_rows.threads_of(3)
    check(kernel, forward_rows.signature(real), threads, real, [(9, 0)])


@pytest.mark.parametrize("real", [types.float32, types.float64], ids=str)
def test_function_of_the_user(real):
    """Compile what counts in float64, as Numba has it of an int and a float32."""
    user = activations.Activation(lambda x: x / (1 + abs(x)), name="squash")
    both = [launch.scalars(user)] * 2
    kernel = forward_rows.make(real, 5, 1, *both, False, True, False, True)
    assert list(machine_code(kernel, forward_rows.signature(real), 32, [(9, 0)]))

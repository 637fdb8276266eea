"""The CUDA kernels as NVVM compiled them, run on the CPU: the bits of its own kernels.

gridemu.py runs what was written, this what a device would get. It shows what the
compilers make of it: NVVM has made wrong code of kernels that were right.
"""

import numpy as np
import pytest
from numba import types

pytest.importorskip("numba_cuda", reason="kernels are written with numba-cuda")
pytest.importorskip("nvidia.cu13", reason="compiling takes NVVM")
pytest.importorskip("greenlet", reason="test_cuda_emulated.py needs it")

import ptxgrid
import test_cuda_emulated as emulated
from numbagru.kernels.call import REAL, rows_by_end
from numbagru.kernels.cuda import elementwise, limits
from numbagru.kernels.cuda.launch import Launch
from numbagru.kernels.cuda.ptx import cuda, pointer
from ptxcode import Program
from test_cuda_emulated import few_threads  # noqa: F401


@pytest.fixture(params=[(9, 0)])
def on_ptx(request, monkeypatch):
    """Let the checks of test_cuda_emulated.py run what was compiled."""

    def run(launches, seed):
        for launch in launches:
            ptxgrid.run(launch, request.param, seed)

    monkeypatch.setattr(emulated, "emulate", run)


# Compiling takes seconds for each, so not all of the emulator's cases come here.
ROWS = [
    "7x2x8x17", "gaps", "state first, empty row", "recurrent dropout", "both dropouts",
    "past the tiles", "kept sums", "of the user",
]  # fmt: skip
OTHERS = ["gaps", "both dropouts", "kept sums"]


@pytest.mark.parametrize(
    ("reset_after", "rows", "dtype"), [(True, 1, "float64"), (False, 3, "float32")]
)
@pytest.mark.parametrize("name", ROWS)
def test_rows(name, reset_after, rows, dtype, on_ptx):
    emulated.check_forward(name, reset_after, rows, dtype)
    emulated.check_backward(name, reset_after, rows, dtype)


@pytest.mark.parametrize("on_ptx", [(7, 5), (10, 0)], indirect=True, ids=str)
def test_rows_on_other_devices(on_ptx):
    emulated.check_forward("recurrent dropout", False, 2, "float32")
    emulated.check_backward("recurrent dropout", False, 2, "float32")


@pytest.mark.parametrize(
    ("reset_after", "dtype"), [(True, "float64"), (False, "float32")]
)
@pytest.mark.parametrize("name", [*OTHERS, "past the rows", "past the units"])
def test_tiles(name, reset_after, dtype, on_ptx):
    emulated.test_forward_in_tiles(name, reset_after, dtype)
    emulated.test_backward_in_tiles(name, reset_after, dtype)


@pytest.mark.parametrize(
    ("split", "dtype", "reset_after"),
    [
        (limits.Split(4, 4, 2), "float32", True),
        (limits.Split(2, 2, 2), "float64", False),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [*OTHERS, "past the slab"])
def test_grid(name, split, dtype, reset_after, on_ptx, few_threads):  # noqa: F811
    emulated.test_forward_on_the_grid(name, reset_after, split, dtype, few_threads)
    emulated.test_backward_on_the_grid(name, reset_after, split, dtype, few_threads)


def test_tensor_cores(on_ptx):
    emulated.test_products_on_tensor_cores()


NUMPY = {
    "copy": lambda a, b: a,
    "half": lambda a, b: a * np.float32(0.5),
    "add": lambda a, b: a + b,
    "mean": lambda a, b: (a + b) * np.float32(0.5),
    "multiply": lambda a, b: a * b,
}


@pytest.mark.parametrize("op", elementwise.OPS)
def test_elementwise(op, on_ptx):
    a, b = np.random.default_rng(0).normal(size=(2, 5, 31, 3)).astype("float32")
    a, found = a[:, ::-1], np.full((31, 5, 3), np.nan, "float32").swapaxes(0, 1)
    emulated.emulate(elementwise.combine(op, found, a, b), 0)
    assert (found == NUMPY[op](a, b)).all()


def test_zeros(on_ptx):
    found = np.full((3, 43), np.nan)
    emulated.emulate(elementwise.fill(found), 0)
    assert (found == 0).all()


def test_rows_by_end(on_ptx):
    mask = np.random.default_rng(0).integers(0, 2, (137, 3)).astype("uint8")
    order, ends = np.zeros(137, np.int64), np.zeros(137, np.int32)
    emulated.emulate(elementwise.rows_by_end(mask, ends, order), 0)
    assert (order == rows_by_end(mask)[0]).all()


def run(function, *arrays, more=()):
    """Run 64 threads of a kernel of pointers to numbers, and of some integers."""
    kinds = [types.CPointer(REAL[array.dtype]) for array in arrays]
    signature = (*kinds, *[types.int32] * len(more))
    ptxgrid.run(Launch(function, signature, (1,), 64, (*arrays, *more)))


def test_pointers_are_indexed_right():
    """What `ptx.pointer` says: without, the stores of the loop would be read."""

    def kernel(x, y, T):
        s = pointer(cuda.shared.array(36, types.float32))
        i = cuda.threadIdx.x
        for t in range(T):
            if i < 4:
                s[32 + i] = x[i]
                for g in range(3):
                    s[g * 4 + i] = -x[i]
                y[t * 4 + i] = s[32 + i]

    x, y = np.arange(1, 5, dtype="float32"), np.zeros((2, 4), "float32")
    run(kernel, x, y, more=(2,))
    assert (y == x).all()


def test_a_missing_barrier_shows():
    def reverse(found, waits):
        shared = pointer(cuda.shared.array(64, types.float32))
        i = cuda.threadIdx.x
        shared[i] = i
        if waits != 0:
            cuda.syncthreads()
        found[i] = shared[63 - i]

    for waits in (True, False):
        found = np.zeros(64, np.float32)
        run(reverse, found, more=(waits,))
        assert np.isnan(found).any() != waits


def test_what_lies_outside_is_refused():
    def shift(found, by):
        i = cuda.threadIdx.x
        found[i] = found[i + by]

    found = np.zeros(100, np.float32)
    run(shift, found, more=(36,))
    for by in (-1, 37):
        with pytest.raises(IndexError, match="may be reached"):
            run(shift, found, more=(by,))


HALF, NAN, INF = "0f3F000000", "0f7FC00000", "0f7F800000"
INSTRUCTIONS = [
    # As the PTX ISA has them: bits of the result, instruction, what it takes.
    (0x3F000000, "min.f32", f"{HALF}, {NAN}"),
    (0x7FC00000, "add.rn.f32", f"{HALF}, {NAN}"),
    (0x7F800000, "max.f32", f"{HALF}, {INF}"),
    (0x80000000, "neg.f32", "0f00000000"),
    (0xBF000000, "copysign.f32", f"0f80000000, {HALF}"),
    (0x40000000, "rcp.rn.f32", HALF),
    (0x3E800001, "fma.rn.f32", f"{HALF}, {HALF}, 0f33000001"),
    (0x3F802000, "cvt.rna.tf32.f32", "0f3F801000"),
    (0x3F800000, "cvt.rna.tf32.f32", "0f3F800FFF"),
    (0x00000000, "cvt.rzi.s32.f32", NAN),
    (0x7FFFFFFF, "cvt.rzi.s32.f32", INF),
    (0x40400000, "cvt.rn.f32.s32", "3"),
    (0x40000000, "cvt.rni.f32.f32", "0f40200000"),
    (0xFFFFFFFF, "mul.hi.s32", "-1, 1"),
    (0x00000000, "mul.hi.u32", "-1, 1"),
    (0xFFFFFFFE, "mad.lo.s32", "-1, 3, 1"),
    (0xFFFFFFFE, "div.s32", "-5, 2"),
    (0xFFFFFFFF, "rem.s32", "-5, 2"),
    (0x00000000, "shl.b32", "1, 32"),
    (0x00000010, "shl.b32", "1, 4"),
    (0xFFFFFFFF, "shr.s32", "-8, 40"),
    (0x1FFFFFFF, "shr.u32", "-8, 3"),
    (0x0000ABCD, "bfi.b32", "0xBC, 0xA00D, 4, 8"),
    (0xFFFFFFFA, "not.b32", "5"),
]


ENTRY = """
.visible .entry one(.param .u64 one_param_0)
{
ld.param.u64 %%rd1, [one_param_0];
%s
st.global.b32 [%%rd1], %%r1;
ret;
}
"""


def result_of(instructions):
    """Run what leaves a number in %r1."""
    found = np.zeros(1, np.uint32)
    launch = Launch(None, (), (1,), 1, (found,))
    ptxgrid.carry_out(launch, Program(ENTRY % instructions), 0)
    return found[0]


@pytest.mark.parametrize(("result", "name", "operands"), INSTRUCTIONS, ids=str)
def test_instructions(result, name, operands):
    assert result_of(f"{name} %r1, {operands};") == result


COMPARISONS = [
    ("lt.f32", f"{HALF}, {NAN}", False), ("ltu.f32", f"{HALF}, {NAN}", True),
    ("neu.f32", f"{HALF}, {HALF}", False), ("ne.f32", f"{HALF}, {NAN}", False),
    ("nan.f32", f"{HALF}, {NAN}", True), ("num.f32", f"{HALF}, {NAN}", False),
    ("lt.s32", "-1, 1", True), ("lt.u32", "-1, 1", False), ("eq.b32", "-1, -1", True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "operands", "result"), COMPARISONS, ids=str)
def test_comparisons(name, operands, result):
    compare = f"setp.{name} %p1, {operands};"
    assert result_of(f"{compare} selp.u32 %r1, 1, 0, %p1;") == result
    assert result_of(f"mov.u32 %r1, 0; {compare} @%p1 mov.u32 %r1, 1;") == result


def test_what_is_not_known_is_refused():
    with pytest.raises(NotImplementedError, match="prmt"):
        result_of("prmt.b32 %r1, 1, 2, 3;")

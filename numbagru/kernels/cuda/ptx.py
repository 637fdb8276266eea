"""What CUDA kernels are written with: the only file with intrinsics of the device."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import cuda, types
from numba.core import cgutils
from numba.cuda.extending import intrinsic

from numbagru.scalar import fma_of

__all__ = [
    "arrive",
    "arrived",
    "chain",
    "cuda",
    "multiply_add",
    "pointer",
    "take",
    "to_tf32",
    "vector_lanes",
]

_VECTOR_BYTES = 16


def vector_lanes(real: types.Float) -> int:
    """How many numbers are read from shared memory at once: 128 bits of them."""
    return _VECTOR_BYTES * 8 // real.bitwidth


@intrinsic
def pointer(typingctx, array):
    """Give a shared or local array as a pointer, whose indices are taken as they are.

    An array's may be negative and count from its end. That takes instructions, and NVVM
    (CUDA 13.0) makes wrong ones of it: of a shared array of 36 numbers, in a loop, a
    load of ``s[32 + i]`` gave what ``for g in range(3): s[g * 4 + i] = x`` had stored.
    """

    def codegen(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


def _spot(context: Any, builder: Any, kind: Any, value: Any, index: Any) -> Any:
    """Address of a number of an array or behind a pointer."""
    if isinstance(kind, types.Array):
        value = context.make_array(kind)(context, builder, value).data
    if isinstance(index, int):
        index = cgutils.intp_t(index)
    return builder.gep(value, [index])


@intrinsic
def arrive(typingctx, counters, place):
    """Count one more at a place, after all that this thread's block has written.

    For blocks that are all there at once: marks the kernel for a cooperative launch.
    """

    def codegen(context, builder, signature, args):
        context.active_code_library.use_cooperative = True
        spot = _spot(context, builder, signature.args[0], *args)
        kind = ir.FunctionType(ir.VoidType(), [spot.type])
        add = "red.release.gpu.add.s32 [$0], 1;"
        builder.asm(kind, add, "l,~{memory}", [spot], side_effect=True)
        return context.get_dummy_value()

    return types.void(counters, types.intp), codegen


@intrinsic
def arrived(typingctx, counters, place):
    """Read how many have counted at a place; what they wrote before is there then."""

    def codegen(context, builder, signature, args):
        spot = _spot(context, builder, signature.args[0], *args)
        kind = ir.FunctionType(ir.IntType(32), [spot.type])
        read = "ld.acquire.gpu.s32 $0, [$1];"
        return builder.asm(kind, read, "=r,l,~{memory}", [spot], side_effect=True)

    return types.int32(counters, types.intp), codegen


# Where the numbers of each thread of a warp belong: PTX ISA, "Matrix fragments for
# mma.m16n8k8"; thread i has row i // 4 of the left matrix and of the sums, and column
# i // 4 of the right one.
_MULTIPLY_ADD = (
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
    "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
)


@intrinsic
def to_tf32(typingctx, value):
    """Round to the eleven bits that tensor cores multiply, a half away from zero."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)
        kind = ir.FunctionType(word, [args[0].type])
        rounded = builder.asm(kind, "cvt.rna.tf32.f32 $0, $1;", "=r,f", args, False)
        return builder.bitcast(rounded, args[0].type)

    return types.float32(value), codegen


@intrinsic
def multiply_add(typingctx, totals, at, a0, a1, a2, a3, b0, b1):
    """Add the product of a 16 x 8 and an 8 x 8 matrix to 16 x 8 sums, all of a warp's.

    A thread brings four numbers and two, rounded, and has four sums from `at` on.
    """

    def codegen(context, builder, signature, args):
        number, word = ir.FloatType(), ir.IntType(32)
        spots = [
            _spot(
                context, builder, signature.args[0], args[0],
                builder.add(args[1], cgutils.intp_t(i)),
            )
            for i in range(4)
        ]  # fmt: skip
        kind = ir.FunctionType(
            ir.LiteralStructType([number] * 4), [word] * 6 + [number] * 4
        )
        factors = [builder.bitcast(arg, word) for arg in args[2:]]
        sums = builder.asm(
            kind,
            _MULTIPLY_ADD,
            "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
            factors + [builder.load(spot) for spot in spots],
            side_effect=True,
        )
        for i, spot in enumerate(spots):
            builder.store(builder.extract_value(sums, i), spot)
        return context.get_dummy_value()

    numbers = [types.float32] * 6
    return types.void(totals, types.intp, *numbers), codegen


# The loops of both are written out: of more than some hundred rounds NVVM makes loops,
# and arrays that are indexed by them lie in memory instead of registers (64 units, four
# rows: 256 bytes of stack, compute capability 9.0).


@functools.cache
def take(count: int, stride: int) -> Any:
    """Make ``take(numbers, source, start)``: some of `source`, so far apart."""

    @intrinsic
    def take(typingctx, numbers, source, start):
        signature = types.void(numbers, source, types.intp)

        def codegen(context, builder, signature, args):
            numbers, source, _ = signature.args
            first = _spot(context, builder, source, args[1], args[2])
            for i in range(count):
                value = builder.load(builder.gep(first, [cgutils.intp_t(i * stride)]))
                builder.store(value, _spot(context, builder, numbers, args[0], i))
            return context.get_dummy_value()

        return signature, codegen

    return take


@functools.cache
def chain(units: int, rows: int) -> Any:
    """Make ``chain(totals, weights, states, start)``: add a product for each unit.

    The states stand in vectors of one row after the other, from a multiple of
    `vector_lanes` on; the last vectors may be shorter than they have room for.
    """

    @intrinsic
    def chain(typingctx, totals, weights, states, start):
        signature = types.void(totals, weights, states, types.intp)

        def codegen(context, builder, signature, args):
            kinds, real = signature.args, signature.args[0].dtype
            lanes, number = vector_lanes(real), context.get_value_type(real)
            fused = fma_of(builder, number)

            def spot(which, index):
                return _spot(context, builder, kinds[which], args[which], index)

            spots = [spot(0, r) for r in range(rows)]
            sums = [builder.load(place) for place in spots]
            first = spot(2, args[3])
            wide = ir.VectorType(number, lanes).as_pointer(first.type.addrspace)
            for k in range(0, units, lanes):
                w = [builder.load(spot(1, i)) for i in range(k, min(k + lanes, units))]
                for r in range(rows):
                    place = cgutils.intp_t(k * rows + r * lanes)
                    v = builder.load(
                        builder.bitcast(builder.gep(first, [place]), wide),
                        align=_VECTOR_BYTES,
                    )
                    for i, weight in enumerate(w):
                        state = builder.extract_element(v, cgutils.int32_t(i))
                        sums[r] = builder.call(fused, [state, weight, sums[r]])
            for place, value in zip(spots, sums, strict=True):
                builder.store(value, place)
            return context.get_dummy_value()

        return signature, codegen

    return chain

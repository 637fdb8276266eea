"""What CUDA kernels are written with: the only file with intrinsics of the device."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import cuda, types
from numba.core import cgutils
from numba.cuda.extending import intrinsic

from numbagru.scalar import fma_of

__all__ = ["arrive", "arrived", "chain", "cuda", "take", "vector_lanes"]

_VECTOR_BYTES = 16


def vector_lanes(real: types.Float) -> int:
    """How many numbers are read from shared memory at once: 128 bits of them."""
    return _VECTOR_BYTES * 8 // real.bitwidth


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

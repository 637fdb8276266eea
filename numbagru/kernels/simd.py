"""Addresses, vectors and cache lines as Numba intrinsics."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numbagru.gates import D_BLOCK
from numbagru.kernels.vector_ir import (
    INDEX,
    Emitter,
    lanes,
    most_tile_rows,
    padded,
    vector_registers,
)

# A row alone takes four panels at a time, or two: with the three accumulators of one
# panel the multiply-adds would wait for each other.
ALONE, PAIR = 4, 2
LINE_BYTES = 64


@intrinsic
def pointer(typingctx: Any, array: Any) -> Any:
    """Address of an array's first element."""

    def codegen(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def hold(typingctx: Any, array: Any) -> Any:
    """Keep the array alive up to here, for those who have its address."""

    def codegen(context, builder, signature, args):
        return context.get_dummy_value()

    return types.void(array), codegen


@intrinsic
def at(typingctx: Any, base: Any, offset: Any) -> Any:
    """Address `offset` elements after `base`."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return base(base, types.intp), codegen


@intrinsic
def aligned(typingctx: Any, base: Any) -> Any:
    """First address from `base` on that starts a cache line."""

    def codegen(context, builder, signature, args):
        address = builder.ptrtoint(args[0], INDEX)
        start = builder.and_(builder.add(address, INDEX(63)), INDEX(-64))
        return builder.inttoptr(start, args[0].type)

    return base(base), codegen


@intrinsic
def past_vector(typingctx: Any, address: Any) -> Any:
    """Count the numbers from the last address that is whole vectors to this one.

    Zero where this one is not aligned to numbers.
    """
    real = address.dtype

    def codegen(context, builder, signature, args):
        size = real.bitwidth // 8
        place = builder.ptrtoint(args[0], INDEX)
        past = builder.and_(place, INDEX(lanes(real) * size - 1))
        part = builder.and_(place, INDEX(size - 1))
        whole = builder.icmp_unsigned("==", part, INDEX(0))
        return builder.select(whole, builder.udiv(past, INDEX(size)), INDEX(0))

    return types.intp(address), codegen


def _compile_time(name: str, number: Any) -> Any:
    """Make a function of an array that is a constant once its type is known."""

    @intrinsic
    def constant(typingctx: Any, array: Any) -> Any:
        value = number(array.dtype)

        def codegen(context, builder, signature, args):
            return INDEX(value)

        return types.intp(array), codegen

    constant.__doc__ = name
    return constant


vector_lanes = _compile_time("Numbers of the array's type in one register.", lanes)
vector_bytes = _compile_time(
    "Bytes of one register.", lambda real: lanes(real) * real.bitwidth // 8
)
half_lanes = _compile_time(
    "Numbers in half a register, 0 where multiplying whole ones takes no longer.",
    # Zen 4 multiplies two vectors of 256 bits in the time of one of 512.
    lambda real: lanes(real) // 2 if vector_registers()[0] == 64 else 0,
)
most_rows = _compile_time("See `vector_ir`.", lambda real: most_tile_rows())
line_numbers = _compile_time(
    "Numbers of the array's type in a cache line.",
    lambda real: LINE_BYTES * 8 // real.bitwidth,
)
tile_size = _compile_time(
    "Numbers of one gate in the largest tile.",
    lambda real: tile_size_of(real),
)


def tile_size_of(real: types.Float) -> int:
    """Count the numbers of one gate in the largest tile: whole blocks of gates.py."""
    return padded(max(most_tile_rows(), ALONE) * lanes(real), D_BLOCK)


def _copy_of(count: Any) -> Any:
    @intrinsic
    def copy(typingctx: Any, target: Any, source: Any) -> Any:
        real = target.dtype

        def codegen(context, builder, signature, args):
            emit = Emitter(builder, real, count or lanes(real))
            emit.store(emit.load(args[1]), args[0])
            return context.get_dummy_value()

        return types.void(target, target), codegen

    return copy


# Copies from address to address, target first: one vector, eight numbers.
copy_vector = _copy_of(None)
copy_eight = _copy_of(8)


def _copy_some_of(most: Any, pads: bool) -> Any:
    @intrinsic
    def copy(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
        real = target.dtype

        def codegen(context, builder, signature, args):
            emit = Emitter(builder, real, most)
            mask = emit.first(args[2])
            value = emit.load_some(args[1], mask)
            if pads:
                emit.store(value, args[0])
            else:
                emit.store_some(value, args[0], mask)
            return context.get_dummy_value()

        return types.void(target, target, types.intp), codegen

    return copy


# Up to a vector, and up to eight numbers with zeros for the others of eight; memory of
# the source after so many is not touched.
copy_some = _copy_some_of(None, pads=False)
take_eight = _copy_some_of(8, pads=True)


@intrinsic
def add_some(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Add up to a vector of numbers to a vector, zeros to the rest of it."""
    real = target.dtype

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, real)
        term = emit.load_some(args[1], emit.first(args[2]))
        emit.store(builder.fadd(emit.load(args[0]), term), args[0])
        return context.get_dummy_value()

    return types.void(target, target, types.intp), codegen


@intrinsic
def clear_vector(typingctx: Any, target: Any) -> Any:
    """Set a vector to zero."""
    real = target.dtype

    def codegen(context, builder, signature, args):
        emit = Emitter(builder, real)
        emit.store(ir.Constant(emit.vector, None), args[0])
        return context.get_dummy_value()

    return types.void(target), codegen


@intrinsic
def copy(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy so many numbers from address to address, which do not overlap."""

    def codegen(context, builder, signature, args):
        size = target.dtype.bitwidth // 8
        cgutils.raw_memcpy(builder, *args, size)
        return context.get_dummy_value()

    return types.void(target, target, types.intp), codegen


@intrinsic
def clear(typingctx: Any, target: Any, count: Any) -> Any:
    """Set so many numbers from an address on to zero."""

    def codegen(context, builder, signature, args):
        start, count = args
        size = builder.mul(count, INDEX(target.dtype.bitwidth // 8))
        cgutils.memset(builder, start, size, 0)
        return context.get_dummy_value()

    return types.void(target, types.intp), codegen


@intrinsic
def compact(typingctx: Any) -> Any:
    """Have LLVM neither unroll the loops of this function nor split them by cases."""

    def codegen(context, builder, signature, args):
        builder.function.attributes.add("optsize")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def transpose_block(typingctx: Any, target: Any, source: Any, row: Any) -> Any:
    """Transpose as many numbers of as many rows, `row` apart, as a vector has.

    By rounds of interleaving the first half of the vectors with the second.
    """
    real = target.dtype

    def codegen(context, builder, signature, args):
        target, source, row = args
        emit = Emitter(builder, real)
        width, half = emit.width, emit.width // 2
        kind = ir.VectorType(ir.IntType(32), width)
        halves = [
            ir.Constant(kind, [first + i // 2 + i % 2 * width for i in range(width)])
            for first in (0, half)
        ]
        vectors = [
            emit.load(emit.move(source, emit.times(row, i))) for i in range(width)
        ]
        for _ in range(width.bit_length() - 1):
            vectors = [
                builder.shuffle_vector(vectors[i], vectors[i + half], places)
                for i in range(half)
                for places in halves
            ]
        for i, vector in enumerate(vectors):
            emit.store(vector, emit.move(target, i * width))
        return context.get_dummy_value()

    return types.void(target, target, types.intp), codegen


@intrinsic
def ask_for(typingctx: Any, address: Any) -> Any:
    """Have the cache line at an address fetched, see `vector_ir.Emitter.ask_for`."""
    real = address.dtype

    def codegen(context, builder, signature, args):
        Emitter(builder, real).ask_for(args[0])
        return context.get_dummy_value()

    return types.void(address), codegen

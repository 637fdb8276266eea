"""Maximum, sum and scalar product of rows of numbers, 16 lanes at a time.

Number k goes into lane k modulo 16, and the lanes are folded in half four times: an
order of its own, whatever registers the CPU has. From loops in Numba, which may not
change the order of sums, LLVM makes scalar code.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numbagru.scalar import fma_of

LANES = 16
_INDEX, _PLACE = ir.IntType(64), ir.IntType(32)


def _shuffled(builder, vector, places):
    kind = ir.VectorType(_PLACE, len(places))
    return builder.shuffle_vector(vector, vector, ir.Constant(kind, places))


def _splat(builder, value):
    empty = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(empty, value, _PLACE(0))
    return _shuffled(builder, first, [0] * LANES)


def _load(builder, address, count, neutral):
    """Load a vector; only the first `count` lanes unless None, `neutral` elsewhere."""
    vector, size = neutral.type, 4 if neutral.type.element == ir.FloatType() else 8
    address = builder.bitcast(address, vector.as_pointer())
    if count is None:
        return builder.load(address, align=size)
    lane = ir.Constant(ir.VectorType(_INDEX, LANES), list(range(LANES)))
    there = builder.icmp_unsigned("<", lane, _splat(builder, count))
    kind = ir.FunctionType(vector, [address.type, _PLACE, there.type, vector])
    name = f"llvm.masked.load.v{LANES}f{8 * size}.p0"
    masked = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(masked, [address, _PLACE(size), there, neutral])


def _fold(builder, starts, count, neutral, take, combine):
    """Fold numbers 0 to `count` from the addresses `starts` on into one number.

    ``take(lanes, vectors)`` adds a vector from each address to the lanes, which begin
    as `neutral`; ``combine(a, b)`` makes one vector of two.
    """
    lanes = cgutils.alloca_once_value(builder, neutral)

    def go_on(first, rest):
        vectors = [
            _load(builder, builder.gep(start, [first]), rest, neutral)
            for start in starts
        ]
        builder.store(take(builder.load(lanes), vectors), lanes)

    whole = builder.and_(count, _INDEX(-LANES))
    steps = cgutils.for_range_slice(builder, _INDEX(0), whole, _INDEX(LANES))
    with steps as (first, _):
        go_on(first, None)
    rest = builder.sub(count, whole)
    with builder.if_then(builder.icmp_signed(">", rest, _INDEX(0))):
        go_on(whole, rest)
    vector, width = builder.load(lanes), LANES
    while width > 1:
        width //= 2
        low = _shuffled(builder, vector, list(range(width)))
        high = _shuffled(builder, vector, list(range(width, 2 * width)))
        vector = combine(low, high)
    return builder.extract_element(vector, _PLACE(0))


def _address(context, builder, kind, value, start):
    if isinstance(kind, types.Array):
        value = context.make_array(kind)(context, builder, value).data
    return builder.gep(value, [start])


@intrinsic
def row_max(typingctx: Any, s: Any, start: Any, n: Any) -> Any:
    """Largest of the n > 0 numbers from ``s[start]`` on; any if one is not a number."""

    def codegen(context, builder, signature, args):
        first = _address(context, builder, signature.args[0], args[0], args[1])

        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        neutral = _splat(builder, builder.load(first))
        return _fold(
            builder, [first], args[2], neutral, lambda a, v: larger(a, *v), larger
        )

    return s.dtype(s, types.intp, types.intp), codegen


@intrinsic
def row_sum(typingctx: Any, s: Any, start: Any, n: Any) -> Any:
    """Sum of the n numbers from ``s[start]`` on."""

    def codegen(context, builder, signature, args):
        first = _address(context, builder, signature.args[0], args[0], args[1])
        return _fold(
            builder, [first], args[2], _zeros(first),
            lambda a, v: builder.fadd(a, *v), builder.fadd,
        )  # fmt: skip

    return s.dtype(s, types.intp, types.intp), codegen


@intrinsic
def row_dot(typingctx: Any, s: Any, a: Any, b: Any, n: Any) -> Any:
    """Scalar product of the n numbers from ``s[a]`` and from ``s[b]`` on."""

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        starts = [_address(context, builder, kind, args[0], i) for i in args[1:3]]
        neutral = _zeros(starts[0])
        fma = fma_of(builder, neutral.type)
        return _fold(
            builder, starts, args[3], neutral,
            lambda a, v: builder.call(fma, [*v, a]), builder.fadd,
        )  # fmt: skip

    return s.dtype(s, types.intp, types.intp, types.intp), codegen


def _zeros(address):
    real = address.type.pointee
    return ir.Constant(ir.VectorType(real, LANES), [0.0] * LANES)

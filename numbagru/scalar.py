"""The few machine operations that the formulas are written in.

Everything here is one rounding or exact, so a formula built on it has the same bits
on every CPU, at every vector width, whatever the compiler decides to contract. And
which width loops over them take, which is all that `widest_vectors` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_MANTISSA_BITS = {32: 23, 64: 52}


def fma_of(builder: ir.IRBuilder, kind: ir.Type) -> ir.Function:
    """Declare ``llvm.fma`` for a float type or a vector of floats."""
    suffix = {ir.FloatType(): "f32", ir.DoubleType(): "f64"}
    name = (
        f"v{kind.count}{suffix[kind.element]}"
        if isinstance(kind, ir.VectorType)
        else suffix[kind]
    )
    return cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.{name}"
    )


def outlined(
    module: ir.Module, name: str, arguments: Sequence[ir.Type], emit: Any
) -> ir.Function:
    """Return a function of its own that LLVM keeps apart: ``emit(builder, args)``."""
    kind = ir.FunctionType(ir.VoidType(), arguments)
    function = cgutils.get_or_insert_function(module, kind, name)
    if function.is_declaration:
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        emit(builder, function.args)
        builder.ret_void()
    return function


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c`` with one rounding; all three of one float type."""
    if not (a == b == c and isinstance(a, types.Float)):
        return None

    def codegen(context, builder, signature, args):
        kind = context.get_value_type(signature.return_type)
        return builder.call(fma_of(builder, kind), args)

    return a(a, b, c), codegen


@intrinsic
def two_to(typingctx: Any, shifted: Any) -> Any:
    """``2**n`` from the sum ``n + rounding_shift``, whose low bits hold the integer n.

    n must lie in the exponent range of normal numbers; a NaN gives some number, never
    a trap, so the caller's own arithmetic on the NaN decides the result.
    """
    if not isinstance(shifted, types.Float):
        return None

    def codegen(context, builder, signature, args):
        width = signature.return_type.bitwidth
        bits = _MANTISSA_BITS[width]
        integer = ir.IntType(width)
        bias = (1 << (width - 2 - bits)) - 1
        n = builder.shl(builder.bitcast(args[0], integer), integer(bits))
        return builder.bitcast(
            builder.add(n, integer(bias << bits)),
            context.get_value_type(signature.return_type),
        )

    return shifted(shifted), codegen


def _constant(kind: ir.Type, value: float) -> ir.Constant:
    if kind == ir.FloatType():
        value = float(np.float32(value))
    return ir.Constant(kind, value)


def constant(single: float, double: float) -> Any:
    """Make a function of x that gives a number in x's type, whatever x holds."""

    @intrinsic
    def number(typingctx: Any, x: Any) -> Any:
        if not isinstance(x, types.Float):
            return None
        value = single if x.bitwidth == 32 else double

        def codegen(context, builder, signature, args):
            return _constant(context.get_value_type(signature.return_type), value)

        return x(x), codegen

    return number


def polynomial(single: Sequence[float], double: Sequence[float]) -> Any:
    """Make ``p(x)`` by Horner's rule in fma for each float type, lowest power first."""

    @intrinsic
    def horner(typingctx: Any, x: Any) -> Any:
        if not isinstance(x, types.Float):
            return None
        coefficients = single if x.bitwidth == 32 else double

        def codegen(context, builder, signature, args):
            kind = context.get_value_type(signature.return_type)
            fused = fma_of(builder, kind)
            total = _constant(kind, coefficients[-1])
            for coefficient in reversed(coefficients[:-1]):
                total = builder.call(
                    fused, [total, args[0], _constant(kind, coefficient)]
                )
            return total

        return x(x), codegen

    return horner


@intrinsic
def widest_vectors(typingctx: Any) -> Any:
    """Have LLVM vectorise the loops of this function with whole registers.

    For Intel's server CPUs it takes half of one by itself, and then the gates of a step
    take 82 cycles per vector instead of 47. Where none is so wide, it takes the widest.
    """

    def codegen(context, builder, signature, args):
        # llvmlite's own `add` knows no attributes with values.
        attributes = builder.function.attributes
        set.add(attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen

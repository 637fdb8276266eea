"""How compiled code gets at an activation: kernels are compiled for each pair of them.

Each built-in is a Numba type of its own, so its formula is known at compile time, the
loops vectorise, and the compiled code can be kept on disk; a user's function comes as
itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from numba import njit, types
from numba.extending import (
    NativeValue,
    models,
    overload,
    register_model,
    typeof_impl,
    unbox,
)

from numbagru._jit import OPTIONS
from numbagru.activations.formulas import OF_INPUT, ROWWISE, SCALAR


def evaluate(act, x):
    """In compiled code: act(x); x itself for a row-wise act, which `apply_row` does."""
    raise TypeError("`evaluate` runs in compiled code only. Call the Activation.")


def slope(d_act, v):
    """In compiled code: the derivative where the output is v.

    Where the input is v, if `of_input`; 1 for a row-wise act, which `chain_row` does.
    """
    raise TypeError("`slope` runs in compiled code only. See Activation.pullback.")


def apply_row(act, s, start, n):
    """In compiled code: apply a row-wise act to ``s[start:start + n]``."""
    raise TypeError("`apply_row` runs in compiled code only.")


def chain_row(act, s, v, g, n):
    """In compiled code: pull the gradient ``s[g:g + n]`` back through a row-wise act.

    ``s[v:v + n]`` are its outputs. Does nothing for the others.
    """
    raise TypeError("`chain_row` runs in compiled code only.")


def of_input(act):
    """In compiled code, as a constant: whether `slope` wants the inputs of act."""
    raise TypeError("`of_input` runs in compiled code only.")


class BuiltinType(types.Opaque):
    """The Numba type of one built-in activation; its value carries nothing."""

    def __init__(self, name: str) -> None:
        self.activation = name
        super().__init__(name=f"Activation({name})")


register_model(BuiltinType)(models.OpaqueModel)


@dataclass(frozen=True)
class Builtin:
    """What compiled code takes for a built-in activation."""

    name: str


@typeof_impl.register(Builtin)
def _typeof_builtin(value, context):
    return BuiltinType(value.name)


@unbox(BuiltinType)
def _unbox_builtin(kind, value, context):
    return NativeValue(context.context.get_dummy_value())


def _is_rowwise(act):
    return isinstance(act, BuiltinType) and act.activation in ROWWISE


@overload(evaluate)
def _evaluate(act, x):
    if _is_rowwise(act):
        return lambda act, x: x
    if isinstance(act, BuiltinType):
        f = SCALAR[act.activation][0]
        return lambda act, x: f(x)
    return lambda act, x: type(x)(act(x))


@overload(slope)
def _slope(d_act, v):
    if _is_rowwise(d_act):
        return lambda d_act, v: type(v)(1)
    if isinstance(d_act, BuiltinType):
        df = SCALAR[d_act.activation][1]
        return lambda d_act, v: df(v)
    return lambda d_act, v: type(v)(d_act(v))


@overload(apply_row)
def _apply_row(act, s, start, n):
    if _is_rowwise(act):
        row = ROWWISE[act.activation][0]
        return lambda act, s, start, n: row(s, start, n)
    return lambda act, s, start, n: None


@overload(chain_row)
def _chain_row(act, s, v, g, n):
    if _is_rowwise(act):
        row = ROWWISE[act.activation][1]
        return lambda act, s, v, g, n: row(s, v, g, n)
    return lambda act, s, v, g, n: None


@overload(of_input)
def _of_input(act):
    if isinstance(act, BuiltinType) and act.activation not in OF_INPUT:
        return lambda act: False
    return lambda act: True


@njit(**OPTIONS)
def apply_rows(act, s, width):
    """Apply act to an array of rows."""
    for start in range(0, s.size, width):
        apply_row(act, s, start, width)
    for i in range(s.size):
        s[i] = evaluate(act, s[i])


@njit(**OPTIONS)
def chain_rows(act, s, width):
    """Multiply the second half of s, gradients, by the slopes at the first."""
    half = s.size // 2
    for start in range(0, half, width):
        chain_row(act, s, start, half + start, width)
    for i in range(half):
        s[half + i] = s[half + i] * slope(act, s[i])

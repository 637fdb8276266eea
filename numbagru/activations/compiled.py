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
from numbagru.activations.formulas import LONG, OF_INPUT, SCALAR
from numbagru.activations.rows import ROWWISE
from numbagru.scalar import widest_vectors


def evaluate(act, x):
    """In compiled code: act(x); x itself for a row-wise act, see `apply_rows`."""
    raise TypeError("`evaluate` runs in compiled code only. Call the Activation.")


def slope(d_act, v):
    """In compiled code: the derivative where the output is v.

    Where the input is v, if `of_input`; 1 for a row-wise act, which `chain_rows` does.
    """
    raise TypeError("`slope` runs in compiled code only. See Activation.pullback.")


def apply_rows(act, s, start, count, n, block):
    """In compiled code: apply a row-wise act to the rows in ``s[start:start + count]``.

    They have n numbers each and whole blocks of memory. Does nothing for the others.
    """
    raise TypeError("`apply_rows` runs in compiled code only.")


def chain_rows(act, s, v, g, count, n, block):
    """In compiled code: pull gradients back through a row-wise act, rows as there.

    The gradients start at g, the outputs at v. Does nothing for the others.
    """
    raise TypeError("`chain_rows` runs in compiled code only.")


def rowwise(act):
    """In compiled code, as a constant: whether act takes all units of a row at once."""
    raise TypeError("`rowwise` runs in compiled code only.")


def of_input(act):
    """In compiled code, as a constant: whether `slope` wants the inputs of act."""
    raise TypeError("`of_input` runs in compiled code only.")


def effort(act):
    """In compiled code, as a constant: the instructions of act for a number.

    0 for none (a row-wise act has done its work), 1 for a few, 2 for an exponential.
    """
    raise TypeError("`effort` runs in compiled code only.")


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


@overload(apply_rows)
def _apply_rows(act, s, start, count, n, block):
    if not _is_rowwise(act):
        return lambda act, s, start, count, n, block: None
    row = ROWWISE[act.activation][0]

    def rows(act, s, start, count, n, block):
        widest_vectors()
        room = (n + block - 1) // block * block
        for i in range(start, start + count, room):
            row(s, i, n, room)

    return rows


@overload(chain_rows)
def _chain_rows(act, s, v, g, count, n, block):
    if not _is_rowwise(act):
        return lambda act, s, v, g, count, n, block: None
    row = ROWWISE[act.activation][1]

    def rows(act, s, v, g, count, n, block):
        widest_vectors()
        room = (n + block - 1) // block * block
        for i in range(0, count, room):
            row(s, v + i, g + i, n, room)

    return rows


@overload(rowwise)
def _rowwise(act):
    if _is_rowwise(act):
        return lambda act: True
    return lambda act: False


@overload(of_input)
def _of_input(act):
    if isinstance(act, BuiltinType) and act.activation not in OF_INPUT:
        return lambda act: False
    return lambda act: True


@overload(effort)
def _effort(act):
    name = act.activation if isinstance(act, BuiltinType) else None
    if name in LONG:
        return lambda act: 2
    if name in ROWWISE or name == "linear":
        return lambda act: 0
    return lambda act: 1


@njit(**OPTIONS)
def activate(act, s, width):
    """Apply act to an array of rows."""
    apply_rows(act, s, 0, s.size, width, 1)
    for i in range(s.size):
        s[i] = evaluate(act, s[i])


@njit(**OPTIONS)
def pull_back(act, s, width):
    """Multiply the second half of s, gradients, by the slopes at the first."""
    half = s.size // 2
    chain_rows(act, s, 0, half, half, width, 1)
    for i in range(half):
        s[half + i] = s[half + i] * slope(act, s[i])

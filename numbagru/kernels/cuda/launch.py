"""What the passes hand to whoever carries it out: a driver, or the tests' emulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numbagru._jit_cuda import LEAST_CAPABILITY
from numbagru.activations.formulas import OF_INPUT, SCALAR


class Launch(NamedTuple):
    """One kernel, ready to run."""

    kernel: Callable[..., None]
    signature: tuple[Any, ...]
    blocks: tuple[int, ...]
    threads: int
    arguments: tuple[Any, ...]
    shared_bytes: int = 0  # of the array whose size a launch gives
    capability: tuple[int, int] = LEAST_CAPABILITY  # of a device that can run it


class Products(NamedTuple):
    """What CuPy multiplies in place of a kernel: ``function(xp, *arguments)``.

    `xp` is the module that calculates with arrays like the arguments.
    """

    function: Callable[..., None]
    arguments: tuple[Any, ...]


Task = Launch | Products


class Scalars(NamedTuple):
    """An activation as scalar functions that are compiled for the CPU."""

    value: Any
    slope: Any  # None for a function of the user's without a derivative
    of_input: bool  # whether `slope` takes the input instead of the value


def scalars(activation: Any) -> Scalars:
    """Return the functions of an `Activation` that is not row-wise."""
    if activation.builtin:
        key = activation.forward_argument.name
        return Scalars(*SCALAR[key], key in OF_INPUT)
    return Scalars(activation.function, activation.derivative, True)


def scalars_of(config: Any) -> tuple[Scalars, Scalars]:
    """Return those of a `GRUConfig`: the candidate's, and that of the gates."""
    return scalars(config.activation), scalars(config.recurrent_activation)


def strides(array: Any) -> tuple[int, ...]:
    """Strides of row and step, in elements."""
    return tuple(stride // array.itemsize for stride in array.strides[:2])

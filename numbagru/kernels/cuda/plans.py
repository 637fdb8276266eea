"""What a pass launches, worked out once for arrays of the same shapes.

A pass is gone through with arrays that have no memory, whose addresses tell which of
a call's arrays a kernel takes. A call then only puts its own addresses in their place.
Without plans the host took 0.56 ms for a call of few rows and steps, ten times what a
device takes, 1.9 ms with its gradients, and 5 ms for 50 steps in tiles; with plans
0.13, 0.35 and 0.2 (arrays of a stand-in for PyTorch, a driver that does nothing, a busy
Emerald Rapids).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numbagru.kernels.cuda.launch import Products, Task

Form = tuple[tuple[int, ...], tuple[int, ...], np.dtype]  # shape, strides in bytes
# Bits of an address that tell the place in an array; those above, which array.
_BITS = 48
_ALIGNMENT = 256  # as what drivers allocate has


class Plan:
    """The tasks of a pass.

    Parameters
    ----------
    make
        ``make(work, *arrays)`` returns them; ``work(shape, dtype)`` makes an array to
        work with.
    forms : sequence of Form
        Of the arrays that a call gives.

    Raises
    ------
    ValueError
        If a size does not fit into 32 bits.

    Attributes
    ----------
    tasks : list of Task
        Of arrays without memory.
    work : list of int
        Where each array to work with begins in memory of `work_bytes`, in bytes; they
        count on after those of a call.
    work_bytes : int
    prepared : dict
        Where a driver keeps what it makes of a plan.
    """

    def __init__(self, make: Callable[..., list[Task]], forms: Sequence[Form]) -> None:
        self._numbers, self.work_bytes = 0, 0
        self.work: list[int] = []
        self.prepared: dict[Any, Any] = {}
        given = [self._array(*form) for form in forms]
        self.tasks = make(self._work, *given)
        for task in self.tasks:
            check_sizes(task)
        self.multiplies = any(isinstance(task, Products) for task in self.tasks)

    def _array(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype
    ) -> np.ndarray:
        self._numbers += 1
        if 0 in shape:
            return np.empty(shape, dtype)
        return seen(None, shape, dtype, self._numbers << _BITS, strides)

    def _work(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array = self._array(shape, None, np.dtype(dtype))
        self.work.append(self.work_bytes)
        self.work_bytes += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return array

    @staticmethod
    def place(argument: Any) -> tuple[int, int]:
        """Return the number of the array that an argument is in, and what to add.

        That is an address's part, or an integer itself; then the number is -1.
        """
        if not isinstance(argument, np.ndarray):
            return -1, int(argument)
        if argument.size == 0:
            return -1, 0
        address = argument.ctypes.data
        return (address >> _BITS) - 1, address & (1 << _BITS) - 1

    def bound(self, addresses: Sequence[int]) -> list[Task]:
        """Return the tasks of arrays with addresses, which others keep alive."""

        def real(argument: Any) -> Any:
            if not isinstance(argument, np.ndarray) or argument.size == 0:
                return argument
            number, rest = self.place(argument)
            where = addresses[number] + rest
            return seen(None, argument.shape, argument.dtype, where, argument.strides)

        return [
            task._replace(arguments=tuple(map(real, task.arguments)))
            for task in self.tasks
        ]


def check_sizes(task: Task) -> None:
    """Raise ValueError if an argument does not fit into 32 bits."""
    for size in task.arguments:
        if isinstance(size, int) and size >= 2**31:
            raise ValueError(
                "The call is too large for kernels whose sizes have 32 bits: one would "
                f"be {size:,}. Take fewer rows or steps at once."
            )


class _Address:
    """What NumPy needs to know, and what keeps the memory alive."""

    def __init__(
        self, owner: Any, shape: Any, dtype: np.dtype, address: int, strides: Any
    ) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "shape": tuple(shape),
            "typestr": dtype.str,
            "data": (address, False),
            "strides": strides,
            "version": 3,
        }


class Remote(np.ndarray):
    """An array in memory of a device: its numbers cannot be looked at from here.

    So it does not show them, as those do who print local variables with an exception:
    that would end the process.
    """

    def __repr__(self) -> str:
        """Show shape and type."""
        return f"<array on a CUDA device, shape={self.shape}, dtype={self.dtype}>"

    __str__ = __repr__


def seen(
    owner: Any, shape: Any, dtype: np.dtype, address: int, strides: Any = None
) -> np.ndarray:
    """See memory of a device as an array, which keeps its owner alive."""
    return np.asarray(_Address(owner, shape, dtype, address, strides)).view(Remote)

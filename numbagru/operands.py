"""The arrays of a call: each is checked, then brought to what kernels take.

`HOST` does it for NumPy; for a CUDA device, whose memory only kernels see,
operands_cuda.py replaces the methods that touch numbers.

An array that is that already, as nearly all are, must pass in a fraction of a
microsecond: a small layer's step takes ten.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from numbagru.kernels import memory
from numbagru.registry import on_device

__all__ = ["HOST", "NO_MASK", "Operands", "nothing", "on_device"]

NO_MASK = np.zeros((0, 0), np.uint8)


@cache
def nothing(ndim: int, dtype: np.dtype) -> np.ndarray:
    """Give the array of size 0 that stands for none."""
    return np.empty((0,) * ndim, dtype)


class Operands:
    """Arrays in the memory of the host."""

    def sequences(
        self, config: Any, features: int, dtype: np.dtype, x: Any
    ) -> np.ndarray:
        """Check `sequences` and bring it to (B, T, F)."""
        x = self.array(x, "sequences", dtype)
        if x.ndim != 3:
            layout = "(timesteps, batch, features)" if config.time_major else (
                "(batch, timesteps, features)"
            )  # fmt: skip
            raise ValueError(
                f"Input of layer '{config.name}' is incompatible with the layer: "
                f"expected ndim=3, {layout}, found ndim={x.ndim}. Full shape received: "
                f"{x.shape}"
            )
        if x.shape[2] != features:
            raise ValueError(
                f"Input of layer '{config.name}' is incompatible with the layer: "
                f"expected axis -1 of `sequences` to have {features} features, as its "
                f"`kernel`. Received: shape={x.shape}"
            )
        return self.rows(x.transpose(1, 0, 2) if config.time_major else x)

    def mask(self, config: Any, given: Any, B: int, T: int) -> np.ndarray:
        """Check `mask`, bring it to (B, T) of 0 and 1; (0, 0) if every step counts."""
        if given is None:
            return NO_MASK
        given = self.raw(given, "mask")
        if given.dtype.kind not in "fiub":
            raise TypeError(
                "`mask` must be an array of booleans, True where a step counts. "
                f"Received: dtype={given.dtype}"
            )
        expected = (T, B) if config.time_major else (B, T)
        if given.shape not in (expected, (*expected, 1)):
            raise ValueError(
                f"`mask` must have one entry per row and step, shape {expected} or "
                f"{(*expected, 1)}. Received: shape={given.shape}"
            )
        given = self.flags(given).reshape(expected)
        return given.T if config.time_major else given

    def state(self, value: Any, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
        """Check `initial_state`; zeros for None."""
        if value is None:
            return self.zeros(shape, dtype)
        value = self.array(value, "initial_state", dtype)
        if value.shape != shape:
            raise ValueError(
                f"`initial_state` must have shape {shape}, one row per row of the "
                f"input. Received: shape={value.shape}. Use numpy.broadcast_to to give "
                "every row the same state."
            )
        return self.contiguous(value)

    def multipliers(
        self,
        config: Any,
        inputs: Any,
        states: Any,
        shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Check the dropout of a call with x of a `shape` (B, T, F).

        Gives the multipliers of x and of the state for each gate, size 0 for none, and
        what all of x is to be multiplied by, or None.
        """
        B, _, F = shape
        x_drop = h_drop = nothing(3, dtype)
        factor = None
        if inputs is not None:
            given = self.array(inputs, "input_dropout", dtype)
            if given.shape == (3, B, F) and config.implementation == 1:
                x_drop = self.contiguous(given)
            else:
                factor = _time_factor(config, given, shape)
        if states is not None:
            states = self.array(states, "recurrent_dropout", dtype)
            if states.shape != (3, B, config.units):
                raise ValueError(
                    f"`recurrent_dropout` must have shape {(3, B, config.units)}. "
                    f"Received: shape={states.shape}"
                )
            h_drop = self.contiguous(states)
        return x_drop, h_drop, factor

    def cotangents(
        self,
        config: Any,
        shape: tuple[int, ...],
        dtype: np.dtype,
        d_outputs: Any,
        d_last: Any,
        d_state: Any,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Check the gradients of outputs for x of a `shape`; size 0 stands for None."""
        (B, T, _), U = shape, config.units
        d_outputs = self._cotangent(
            "d_outputs", d_outputs, (T, B, U) if config.time_major else (B, T, U), dtype
        )
        return (
            self.rows(d_outputs.transpose(1, 0, 2) if config.time_major else d_outputs),
            self.contiguous(self._cotangent("d_last_output", d_last, (B, U), dtype)),
            self.contiguous(self._cotangent("d_state", d_state, (B, U), dtype)),
        )

    def _cotangent(
        self, name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype
    ) -> np.ndarray:
        if value is None:
            return nothing(len(shape), dtype)
        value = self.array(value, name, dtype)
        if value.shape != shape:
            raise ValueError(
                f"The gradient `{name}` must have the shape of its output, {shape}. "
                f"Received: shape={value.shape}"
            )
        return value

    def array(self, value: Any, name: str, dtype: np.dtype) -> np.ndarray:
        """Take real numbers."""
        if type(value) is np.ndarray and value.dtype is dtype and value.flags.aligned:
            return value
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(
                f"`{name}` must be an array of real numbers. Received: "
                f"dtype={array.dtype}. Convert it first, for example with "
                "`.astype('float32')`."
            )
        if array.dtype != dtype or not array.flags.aligned:
            array = array.astype(dtype)
        return array

    def raw(self, value: Any, name: str) -> np.ndarray:
        """Take an array of any type."""
        return np.asarray(value)

    def flags(self, array: np.ndarray) -> np.ndarray:
        """Make a mask of bytes, 0 and 1."""
        return array.astype(bool).view(np.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Make a state of zeros."""
        return np.zeros(shape, dtype)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Make an array that the caller gets."""
        return np.empty(shape, dtype)

    def gradients(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Make an array for the gradients of a weight that the caller gets."""
        return memory.result_maker(shape, dtype)()

    def work(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Make an array that nobody else sees."""
        return memory.empty(shape, dtype)

    def scaled(self, x: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Multiply x, and leave it as it is."""
        return np.ascontiguousarray(x * factor)

    def scale(self, x: np.ndarray, factor: np.ndarray) -> None:
        """Multiply x in place."""
        x *= factor

    def view(self, value: Any, name: str) -> np.ndarray:
        """See the numbers of an array of the caller's."""
        return np.asarray(value)

    def combine(
        self, op: str, first: np.ndarray, second: np.ndarray | None = None
    ) -> Any:
        """Copy or halve an array, add or multiply two, or take their mean.

        A copy on the host is the array itself.
        """
        if second is None:
            return first / 2 if op == "half" else first
        if op == "multiply":
            return first * second
        return (first + second) / 2 if op == "mean" else first + second

    def concatenate(self, first: np.ndarray, second: np.ndarray) -> Any:
        """Put two arrays side by side, along the last axis."""
        return np.concatenate([first, second], axis=-1)

    def given(self, array: np.ndarray) -> Any:
        """Return what the caller gets for an array of `empty`, or a view of it."""
        return array

    def contiguous(self, array: np.ndarray) -> np.ndarray:
        """Take an array without gaps."""
        return np.ascontiguousarray(array)

    def rows(self, array: np.ndarray) -> np.ndarray:
        """Make the last axis contiguous and the strides whole elements."""
        if array.flags.c_contiguous:
            return array
        size = array.itemsize
        regular = not any(stride % size for stride in array.strides)
        if regular and (array.strides[-1] == size or array.shape[-1] <= 1):
            return array
        return self.contiguous(array)


def _time_factor(config: Any, given: np.ndarray, shape: tuple[int, ...]) -> Any:
    """Bring input multipliers, constant or varying in time, to broadcast over x."""
    B, T, F = shape
    if given.shape == (B, F):
        return given[:, None, :]
    if config.time_major and given.shape == (T, B, F):
        return given.transpose(1, 0, 2)
    if given.shape == shape:
        return given
    raise ValueError(
        f"`input_dropout` must have shape {(B, F)}, {shape} or, with implementation=1, "
        f"{(3, B, F)}. Received: shape={given.shape}"
    )


HOST = Operands()

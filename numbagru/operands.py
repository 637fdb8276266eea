"""The arrays of a call: each is checked, then brought to what kernels take.

An array that is that already, as nearly all are, must pass in a fraction of a
microsecond: a small layer's step takes ten.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

__all__ = ["cotangents", "mask", "multipliers", "nothing", "sequences", "state"]

_NO_MASK = np.zeros((0, 0), np.uint8)


@cache
def nothing(ndim: int, dtype: np.dtype) -> np.ndarray:
    """Give the array of size 0 that stands for none."""
    return np.empty((0,) * ndim, dtype)


def sequences(config: Any, features: int, dtype: np.dtype, x: Any) -> np.ndarray:
    """Check `sequences` and bring it to (B, T, F)."""
    x = _real_array(x, "sequences", dtype)
    if x.ndim != 3:
        layout = "(timesteps, batch, features)" if config.time_major else (
            "(batch, timesteps, features)"
        )  # fmt: skip
        raise ValueError(
            f"Input of layer '{config.name}' is incompatible with the layer: expected "
            f"ndim=3, {layout}, found ndim={x.ndim}. Full shape received: {x.shape}"
        )
    if x.shape[2] != features:
        raise ValueError(
            f"Input of layer '{config.name}' is incompatible with the layer: expected "
            f"axis -1 of `sequences` to have {features} features, as its `kernel`. "
            f"Received: shape={x.shape}"
        )
    return _aligned_rows(x.transpose(1, 0, 2) if config.time_major else x)


def mask(config: Any, given: Any, B: int, T: int) -> np.ndarray:
    """Check `mask` and bring it to (B, T) of 0 and 1; (0, 0) when every step counts."""
    if given is None:
        return _NO_MASK
    given = np.asarray(given)
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
    given = given.reshape(expected).astype(bool).view(np.uint8)
    return given.T if config.time_major else given


def state(value: Any, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Check `initial_state`; zeros for None."""
    if value is None:
        return np.zeros(shape, dtype)
    value = _real_array(value, "initial_state", dtype)
    if value.shape != shape:
        raise ValueError(
            f"`initial_state` must have shape {shape}, one row per row of the input. "
            f"Received: shape={value.shape}. Use numpy.broadcast_to to give every row "
            "the same state."
        )
    return np.ascontiguousarray(value)


def multipliers(
    config: Any, inputs: Any, states: Any, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Check the dropout of a call with x of a `shape` (B, T, F).

    Gives the multipliers of x and of the state for each gate, size 0 for none, and
    what all of x is to be multiplied by, or None.
    """
    B, _, F = shape
    x_drop = h_drop = nothing(3, dtype)
    factor = None
    if inputs is not None:
        given = _real_array(inputs, "input_dropout", dtype)
        if given.shape == (3, B, F) and config.implementation == 1:
            x_drop = np.ascontiguousarray(given)
        else:
            factor = _time_factor(config, given, shape)
    if states is not None:
        states = _real_array(states, "recurrent_dropout", dtype)
        if states.shape != (3, B, config.units):
            raise ValueError(
                f"`recurrent_dropout` must have shape {(3, B, config.units)}. "
                f"Received: shape={states.shape}"
            )
        h_drop = np.ascontiguousarray(states)
    return x_drop, h_drop, factor


def cotangents(
    config: Any,
    shape: tuple[int, ...],
    dtype: np.dtype,
    d_outputs: Any,
    d_last: Any,
    d_state: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check the gradients of outputs for x of a `shape`; size 0 stands for None."""
    (B, T, _), U = shape, config.units
    d_outputs = _cotangent(
        "d_outputs", d_outputs, (T, B, U) if config.time_major else (B, T, U), dtype
    )
    return (
        _aligned_rows(d_outputs.transpose(1, 0, 2) if config.time_major else d_outputs),
        np.ascontiguousarray(_cotangent("d_last_output", d_last, (B, U), dtype)),
        np.ascontiguousarray(_cotangent("d_state", d_state, (B, U), dtype)),
    )


def _cotangent(
    name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    if value is None:
        return nothing(len(shape), dtype)
    value = _real_array(value, name, dtype)
    if value.shape != shape:
        raise ValueError(
            f"The gradient `{name}` must have the shape of its output, {shape}. "
            f"Received: shape={value.shape}"
        )
    return value


def _real_array(value: Any, name: str, dtype: np.dtype) -> np.ndarray:
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


def _aligned_rows(array: np.ndarray) -> np.ndarray:
    """Make the last axis contiguous and the strides whole elements."""
    if array.flags.c_contiguous:
        return array
    size = array.itemsize
    regular = not any(stride % size for stride in array.strides)
    if regular and (array.strides[-1] == size or array.shape[-1] <= 1):
        return array
    return np.ascontiguousarray(array)


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

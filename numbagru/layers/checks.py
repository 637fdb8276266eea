"""Checks of call arguments, all made before anything is built, drawn or recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numbagru.layers.structure import flatten, pack_like
from numbagru.registry import on_device


def real_array(name: str, value: Any, dtype: str) -> Any:
    """Return a NumPy array of `value`, floats in `dtype`; device arrays stay.

    Raises
    ------
    TypeError
        If the values are not real numbers.
    """
    if on_device(value):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"`{name}` must be an array of real numbers. "
            f"Received: dtype={array.dtype} (of type {type(value).__name__})"
        )
    if array.dtype.kind == "f" and array.dtype != dtype:
        return array.astype(dtype)
    return array


def check_rank(x: Any, ndim: int, layer: str, at_least: bool = False) -> None:
    """Raise ValueError unless `x` has `ndim` axes."""
    found = len(x.shape)
    if found != ndim and not (at_least and found > ndim):
        wording = "min_ndim" if at_least else "ndim"
        raise ValueError(
            f"The input of layer '{layer}' is incompatible with the layer: expected "
            f"{wording}={ndim}, found ndim={found}. "
            f"Full shape received: {tuple(x.shape)}"
        )


def check_features(x: Any, cell: Any) -> None:
    """Raise ValueError unless `x` has the features that `cell` was built for."""
    if cell.built and x.shape[-1] != cell.kernel.shape[0]:
        raise ValueError(
            f"The input of layer '{cell.path}' is incompatible with the layer: its "
            f"kernel was built for {cell.kernel.shape[0]} features in the last axis. "
            f"Full shape received: {tuple(x.shape)}"
        )


def read_mask(mask: Any, rows_and_steps: tuple[int, int], time_major: bool) -> Any:
    """Return `mask` as booleans without a trailing axis of one.

    A list or tuple of masks gives its first.

    Raises
    ------
    ValueError
        If the shape does not fit.
    """
    if isinstance(mask, (list, tuple)) and mask and np.ndim(mask[0]) > 1:
        mask = mask[0]
    elif isinstance(mask, (list, tuple)) and mask and mask[0] is None:
        mask = None
    if mask is None or on_device(mask):
        return mask
    mask = np.asarray(mask)
    expected = rows_and_steps[::-1] if time_major else rows_and_steps
    if mask.shape not in (expected, (*expected, 1)):
        axes = "(time, batch)" if time_major else "(batch, time)"
        raise ValueError(
            f"`mask` must have the shape {axes} = {expected} of the steps, or one more "
            f"axis of length 1. Received: mask.shape={mask.shape}"
        )
    return mask.reshape(expected).astype(bool, copy=False)


def read_state(
    given: Any,
    shapes: Sequence[tuple[int, int]],
    name: str = "initial_state",
    nesting: Any = None,
) -> list[Any]:
    """Return the arrays of a state, one for each shape, nested like `nesting`.

    Raises
    ------
    ValueError
        If the number of arrays or a shape does not fit.
    TypeError
        If an array is not made of real numbers.
    """
    arrays = flatten(given)
    if len(arrays) != len(shapes):
        raise ValueError(
            f"`{name}` must hold {len(shapes)} array(s), one for each state. "
            f"Received: {len(arrays)}"
        )
    states = []
    for i, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        state = real_array(name, array, "float64")
        if tuple(state.shape) != tuple(shape):
            where = name if len(shapes) == 1 else f"{name}[{i}]"
            raise ValueError(
                f"`{where}` must have the shape (batch, units) = {tuple(shape)}; "
                f"nothing is broadcast. Received: shape={tuple(state.shape)}"
            )
        states.append(state)
    return states if nesting is None else pack_like(nesting, states)


def row_mask(rows: Any, n_rows: int) -> np.ndarray:
    """Return `rows` as booleans of shape (n_rows,).

    Raises
    ------
    ValueError
        If they are anything else.
    """
    mask = np.asarray(rows)
    if mask.shape != (n_rows,) or mask.dtype != bool:
        raise ValueError(
            f"`rows` must be booleans of shape ({n_rows},), one for each row. "
            f"Received: shape={mask.shape}, dtype={mask.dtype}"
        )
    return mask

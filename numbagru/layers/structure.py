"""Nested outputs, their gradients and small questions that all layers ask."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from numbagru import functional
from numbagru.layers.variable import Variable
from numbagru.registry import on_device


def flatten(structure: Any) -> list[Any]:
    """Return the leaves of nested lists and tuples; None is a leaf."""
    if not isinstance(structure, (list, tuple)):
        return [structure]
    leaves = []
    for part in structure:
        if isinstance(part, (list, tuple)):
            leaves += flatten(part)
        else:
            leaves.append(part)
    return leaves


def pack_like(structure: Any, leaves: Iterable[Any]) -> Any:
    """Arrange `leaves` in the nesting of `structure`, the inverse of `flatten`."""
    return _packed(structure, iter(leaves))


def _packed(structure: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(structure, (list, tuple)):
        return type(structure)([_packed(part, leaves) for part in structure])
    return next(leaves)


def flatten_cotangent(out: Any, cotangent: Any) -> list[np.ndarray | None]:
    """Return one cotangent, or None for zero, for each array in `out`.

    Raises
    ------
    ValueError
        If `cotangent` is not nested like `out`, or a shape differs.
    """
    if cotangent is None:
        return [None] * len(flatten(out))
    if isinstance(out, (list, tuple)):
        if not isinstance(cotangent, (list, tuple)) or len(cotangent) != len(out):
            raise ValueError(
                "`cotangent` must have the structure of the output, "
                f"{len(out)} entries here; None stands for zeros. "
                f"Received: cotangent={cotangent!r}"
            )
        return [
            leaf
            for part, d_part in zip(out, cotangent, strict=True)
            for leaf in flatten_cotangent(part, d_part)
        ]
    there = on_device(cotangent)
    d_out = cotangent if there else np.asarray(cotangent)
    if tuple(d_out.shape) != tuple(out.shape):
        raise ValueError(
            f"`cotangent` must have the shape {tuple(out.shape)} of the output. "
            f"Received: cotangent.shape={tuple(d_out.shape)}"
        )
    if there or on_device(out):
        return [d_out]
    return [d_out if d_out.dtype is out.dtype else d_out.astype(out.dtype, copy=False)]


def add_gradients(first: Any, second: Any) -> Any:
    """Return the sum of two gradients; None stands for zero."""
    if first is None:
        return second
    if second is None:
        return first
    if not (on_device(first) or on_device(second)):
        return first + second
    if not on_device(first):
        first, second = second, first
    place = functional.place_of(first)
    there = place.view(first, "cotangent")
    return place.combine("add", there, place.array(second, "cotangent", there.dtype))


def gradient_of(regularizer: Any, value: np.ndarray) -> np.ndarray:
    """Return the gradient of `regularizer` at `value`.

    Raises
    ------
    TypeError
        If `regularizer` has no `gradient` method.
    """
    gradient = getattr(regularizer, "gradient", None)
    if gradient is None:
        raise TypeError(
            f"The regularizer {regularizer!r} has no `gradient(w)` method, which a "
            "gradient that includes its penalty needs. Add one, or take the gradient "
            "with `include_losses=False`."
        )
    return gradient(value)


def penalized(
    variables: Sequence[Variable], gradients: list[np.ndarray]
) -> list[np.ndarray]:
    """Add the gradients of the variables' penalties to the first of `gradients`."""
    total = list(gradients)
    for i, variable in enumerate(variables):
        if variable.trainable and variable.regularizer is not None:
            term = gradient_of(variable.regularizer, variable.value)
            total[i] = functional.plus(total[i], term)
    return total


def as_array(inputs: Any, dtype: str) -> Any:
    """Return `inputs` with a shape, floats in `dtype`; other kinds stay as they are."""
    if not hasattr(inputs, "shape"):
        inputs = np.asarray(inputs)
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind == "f":
        return inputs.astype(dtype, copy=False)
    return inputs


@functools.cache
def parameters_of(function: Callable) -> frozenset[str]:
    """Return the names of the parameters of `function`."""
    return frozenset(inspect.signature(function).parameters)


@functools.cache
def differs_from_gradient(cls: type) -> bool:
    """Whether a class changes `call` below the class that defines its `_vjp`."""
    call, vjp = (
        next(i for i, base in enumerate(cls.__mro__) if name in vars(base))
        for name in ("call", "_vjp")
    )
    return call < vjp

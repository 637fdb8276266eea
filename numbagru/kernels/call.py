"""What the door hands to a kernel family, ready checked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from numbagru._jit import Kernel
from numbagru.kernels.variant import variant

REAL = {np.dtype("float32"): types.float32, np.dtype("float64"): types.float64}


class Call(NamedTuple):
    """Inputs of one run over a sequence; letters and shapes in kernels/__init__.py."""

    activation: Any  # Activation of the candidate
    recurrent_activation: Any  # Activation of z and r
    reset_after: bool
    x: np.ndarray
    h0: np.ndarray
    mask: np.ndarray
    weights: Any  # functional.Weights
    x_drop: np.ndarray
    h_drop: np.ndarray
    zero_output: bool
    first_is_state: bool

    @property
    def real(self) -> types.Float:
        """The Numba type of the arrays."""
        return REAL[self.x.dtype]

    @property
    def per_gate(self) -> bool:
        """Whether each gate has dropout of its own."""
        return self.x_drop.size > 0 or self.h_drop.size > 0

    @property
    def forward_activations(self) -> tuple[tuple[Any, ...], tuple[types.Type, ...]]:
        """Candidate's and gates' activation for `evaluate`, and their Numba types."""
        act, rec = self.activation, self.recurrent_activation
        return (
            (act.forward_argument, rec.forward_argument),
            (act.forward_type, rec.forward_type),
        )

    @property
    def backward_activations(self) -> tuple[tuple[Any, ...], tuple[types.Type, ...]]:
        """The same for `evaluate` and then for `slope`."""
        act, rec = self.activation, self.recurrent_activation
        values, kinds = self.forward_activations
        return (
            (*values, act.backward_argument, rec.backward_argument),
            (*kinds, act.backward_type, rec.backward_type),
        )


@functools.lru_cache
def bound(
    kernel: Kernel,
    activation: Any,
    recurrent_activation: Any,
    dtype: np.dtype,
    choice: tuple[bool, ...],
    slopes: bool,
) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """Return the entry of a kernel's variant, and its first arguments.

    Remembered, because a training step asks twice and each time takes 2 µs.
    """
    kind = variant(*choice)
    both = activation, recurrent_activation
    values = [act.forward_argument for act in both]
    kinds = [act.forward_type for act in both]
    if slopes:
        values += [act.backward_argument for act in both]
        kinds += [act.backward_type for act in both]
    entry = kernel.entry(kind.type, REAL[dtype], *kinds)
    return entry, (kind, *values)


class Outputs(NamedTuple):
    """Where the forward kernels write."""

    y: np.ndarray
    last: np.ndarray
    state: np.ndarray
    saved: np.ndarray
    states: np.ndarray


class Cotangents(NamedTuple):
    """Gradients of the outputs, arrays of size 0 for none."""

    y: np.ndarray
    last: np.ndarray
    state: np.ndarray


class Results(NamedTuple):
    """Where the backward kernels write."""

    x: np.ndarray
    h0: np.ndarray
    W: np.ndarray
    R: np.ndarray
    bias: np.ndarray


def rows_by_end(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the rows of a mask (B, T) by their last active step, latest first.

    Rows of one tile then end at about the same time, and no time is spent after that.

    Returns
    -------
    order : ndarray (B,)
        Rows in the order in which kernels take them; none for a mask of size 0.
    ends : ndarray (B,)
        Their steps up to the last active one.
    """
    if mask.size == 0:
        return _NO_ROWS, _NO_ROWS
    T = mask.shape[1]
    after_last = mask[:, ::-1].argmax(1)
    ends = np.where(mask.any(1), T - after_last, 0)
    order = np.argsort(-ends, kind="stable")
    return order, ends[order]


_NO_ROWS = np.empty(0, np.int64)

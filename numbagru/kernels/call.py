"""What the door hands to a kernel family, ready checked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import types

from numbagru._jit import Kernel
from numbagru.kernels.variant import variant

REAL = {np.dtype("float32"): types.float32, np.dtype("float64"): types.float64}


@dataclass(eq=False)
class Call:
    """Inputs of one run over a sequence; letters and shapes in kernels/__init__.py."""

    config: Any  # GRUConfig
    x: np.ndarray
    h0: np.ndarray
    from_zeros: bool  # whether h0 is zeros because the caller gave none
    mask: np.ndarray
    weights: Any  # weights.Weights
    x_drop: np.ndarray
    h_drop: np.ndarray
    # Whether masked steps give zeros, and whether those before any active one give h0.
    switches: tuple[bool, bool]
    place: Any  # operands.Operands: where the arrays are

    @functools.cached_property
    def conditions(self) -> tuple[Any, ...]:
        """What kernels take beside sequences, states and weights, in their order.

        Kept for the way back: sorting the rows of a mask takes 8 µs and more.
        """
        return conditions(self.mask, self.x_drop, self.h_drop, self.switches)

    @property
    def given_h0(self) -> np.ndarray:
        """The initial states, none of their rows where the caller gave none."""
        return self.h0[:0] if self.from_zeros else self.h0

    @property
    def per_gate(self) -> bool:
        """Whether each gate has dropout of its own."""
        return self.x_drop.size > 0 or self.h_drop.size > 0

    @property
    def whole_rows(self) -> bool:
        """Whether an activation takes all units of a row at once."""
        return whole_rows(self.config)


def whole_rows(config: Any) -> bool:
    """Whether an activation takes all units of a row at once."""
    return config.activation.rowwise or config.recurrent_activation.rowwise


def bias_shape(config: Any) -> tuple[int, ...]:
    """Give the shape of the bias; size 0 without one."""
    if not config.use_bias:
        return (0,)
    return (2, 3 * config.units) if config.reset_after else (3 * config.units,)


def switches(config: Any) -> tuple[bool, bool]:
    """Give `Call.switches`."""
    return bool(config.zero_output_for_mask), config.masked_output == "state"


def activations(config: Any, slopes: bool) -> tuple[list[Any], list[types.Type]]:
    """Candidate's and gates' activation for `evaluate`, and their Numba types.

    And then, if asked for, those for `slope`.
    """
    both = config.activation, config.recurrent_activation
    values = [act.forward_argument for act in both]
    kinds = [act.forward_type for act in both]
    if slopes:
        values += [act.backward_argument for act in both]
        kinds += [act.backward_type for act in both]
    return values, kinds


@functools.lru_cache
def bound(
    kernel: Kernel, config: Any, slopes: bool, per_gate: bool | None = None
) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """Return the entry of a kernel, or of a variant of it, and its first arguments.

    Remembered, because a training step asks twice and each time takes 2 µs.
    """
    values, kinds = activations(config, slopes)
    kinds = [REAL[np.dtype(config.dtype)], *kinds]
    if per_gate is not None:
        kind = variant(config.reset_after, per_gate, whole_rows(config))
        values, kinds = [kind, *values], [kind.type, *kinds]
    return kernel.entry(*kinds), tuple(values)


class OnDevice(NamedTuple):
    """Weights in the memory of a CUDA device."""

    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    sum_bias: np.ndarray


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
    h0: np.ndarray  # (B, U), maybe (0, 0) where none was given: then left as it is
    W: np.ndarray  # (F, 3 U)
    R: np.ndarray  # (U, 3 U)
    bias: np.ndarray  # (6 U,), (3 U,) or, without one, (0,)


def conditions(
    mask: np.ndarray,
    x_drop: np.ndarray,
    h_drop: np.ndarray,
    switches: tuple[bool, bool],
) -> tuple[Any, ...]:
    """Give `Call.conditions`."""
    return mask, *rows_by_end(mask), x_drop, h_drop, *switches


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
    active = mask.view(bool)
    after_last = active[:, ::-1].argmax(1)
    ends = (mask.shape[1] - after_last) * active.any(1)
    order = (-ends).argsort(kind="stable")
    return order, ends[order]


_NO_ROWS = np.empty(0, np.int64)

"""A training step over one time step of few rows: weights are read where they stand.

Packing them (kernels/panels.py) would take long beside the rest: one row, 64 inputs and
256 units take 71 µs in all, and packing would add 55; 64 rows take 0.69 ms packed and
0.60 so, in float64 1.65 and 1.17 (Zen 4, two threads). Units have to be whole vectors.
The order of all sums is that of the other kernels, and so are the bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from numbagru.kernels.call import REAL, Call, bound
from numbagru.kernels.one_step_backward import BACKWARD
from numbagru.kernels.one_step_forward import FORWARD
from numbagru.kernels.threads import run
from numbagru.kernels.vector_ir import lanes
from numbagru.kernels.weight_gradients import rows_per_part

# Products of a number and three weights from which on a second thread pays: one row,
# 64 inputs and 256 units take 46 µs on two threads and 59 on one (Zen 5).
_PARALLEL_FROM = 70_000


def suits(call: Call) -> bool:
    """Whether a training call is one step of one part of rows, nothing packed yet."""
    return (
        fits(call.config, call.x.shape)
        and call.mask.size == 0
        and not call.per_gate
        and not call.weights.packed_for_training
    )


@functools.lru_cache
def fits(config: Any, shape: tuple[int, ...]) -> bool:
    """Whether `suits` where there is no mask, no dropout and nothing packed yet."""
    (B, T, F), U, dtype = shape, config.units, np.dtype(config.dtype)
    return (
        T == 1
        and 0 < B <= rows_per_part(B, T, F, U, dtype.itemsize)
        and U % lanes(REAL[dtype]) == 0
        and config.reset_after
    )


def _threads(config: Any, shape: tuple[int, ...], most: int) -> int:
    (B, _, F), U = shape, config.units
    return most if B * U * (F + U) >= _PARALLEL_FROM else 1


@functools.lru_cache
def prepare_forward(
    config: Any, shape: tuple[int, ...], most: int
) -> Callable[..., None]:
    """Bind what x of a shape allows: ``run(weights, x, h0, from_zeros, out)``."""
    entry, first = bound(FORWARD, config, False)
    threads = _threads(config, shape, most)

    def prepared(weights: Any, x: Any, h0: Any, from_zeros: bool, out: Any) -> None:
        y, last, state, saved, _ = out
        arguments = (
            *first, x, h0, from_zeros, weights.kernel, weights.recurrent_kernel,
            weights.flat_bias, y, last, state, saved,
        )  # fmt: skip
        run(entry, arguments, threads)

    return prepared


@functools.lru_cache
def prepare_backward(
    config: Any, shape: tuple[int, ...], most: int
) -> Callable[..., None]:
    """Bind what x of a shape allows.

    ``run(weights, x, h0, from_zeros, given, saved, results)``.
    """
    entry, first = bound(BACKWARD, config, True)
    threads = _threads(config, shape, most)

    def prepared(
        weights: Any, x: Any, h0: Any, from_zeros: bool, given: Any, saved: Any,
        results: Any,
    ) -> None:  # fmt: skip
        arguments = (
            *first, x, h0, from_zeros, weights.kernel, weights.recurrent_kernel, *given,
            saved, *results,
        )  # fmt: skip
        run(entry, arguments, threads)

    return prepared

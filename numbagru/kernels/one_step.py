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

from numbagru._jit import Kernel
from numbagru.kernels.call import (
    REAL,
    Call,
    Cotangents,
    Outputs,
    Results,
    bound,
)
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
    shape = call.x.shape
    return (
        shape[1] == 1
        and _suits(call.config, shape)
        and call.mask.size == 0
        and not call.per_gate
        and not call.weights.packed_for_training
    )


@functools.lru_cache
def _suits(config: Any, shape: tuple[int, ...]) -> bool:
    (B, T, F), U, dtype = shape, config.units, np.dtype(config.dtype)
    return (
        0 < B <= rows_per_part(B, T, F, U, dtype.itemsize)
        and U % lanes(REAL[dtype]) == 0
        and config.reset_after
    )


@functools.lru_cache
def _bound(
    kernel: Kernel, config: Any, slopes: bool, shape: tuple[int, ...], most: int
) -> tuple[Callable[..., None], tuple[Any, ...], int]:
    """Return entry and first arguments, as `call.bound`, and how many threads."""
    (B, _, F), U = shape, config.units
    threads = most if B * U * (F + U) >= _PARALLEL_FROM else 1
    return *bound(kernel, config, slopes), threads


def forward(call: Call, out: Outputs, most: int) -> None:
    """Run the forward kernel on at most `most` threads."""
    entry, first, threads = _bound(FORWARD, call.config, False, call.x.shape, most)
    weights = call.weights
    arguments = (
        *first, call.x, call.h0, call.from_zeros, weights.kernel,
        weights.recurrent_kernel, weights.flat_bias, *out[:-1],
    )  # fmt: skip
    run(entry, arguments, threads)


def backward(
    call: Call, given: Cotangents, out: Outputs, results: Results, most: int
) -> None:
    """Run the backward kernel on at most `most` threads."""
    entry, first, threads = _bound(BACKWARD, call.config, True, call.x.shape, most)
    weights = call.weights
    arguments = (
        *first, call.x, call.h0, call.from_zeros, weights.kernel,
        weights.recurrent_kernel, *given, out.saved, *results,
    )  # fmt: skip
    run(entry, arguments, threads)

"""A training step over one time step of few rows: weights are read where they stand.

Packing them (kernels/panels.py) would take long beside the rest: one row, 64 inputs and
256 units take 71 µs in all, and packing would add 55; 64 rows take 0.69 ms packed and
0.60 so, in float64 1.65 and 1.17 (Zen 4, two threads). Units have to be whole vectors.
The order of all sums is that of the other kernels, and so are the bits.
"""

from __future__ import annotations

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

# Products of a number and three weights from which on a second thread pays.
_PARALLEL_FROM = 200_000


def suits(call: Call) -> bool:
    """Whether a training call is one step of one part of rows, nothing packed yet."""
    (B, T, F), U = call.x.shape, call.h0.shape[1]
    return (
        T == 1
        and 0 < B <= rows_per_part(B, T, F, U, call.x.itemsize)
        and U % lanes(REAL[call.x.dtype]) == 0
        and call.config.reset_after
        and call.mask.size == 0
        and not call.per_gate
        and not call.weights.packed_for_training
    )


def _threads(call: Call, most: int) -> int:
    (B, _, F), U = call.x.shape, call.h0.shape[1]
    return most if B * U * (F + U) >= _PARALLEL_FROM else 1


def forward(call: Call, out: Outputs, most: int) -> None:
    """Run the forward kernel on at most `most` threads."""
    entry, first = bound(FORWARD, call.config, slopes=False)
    weights = call.weights
    arguments = (
        *first, call.x, call.h0, weights.kernel, weights.recurrent_kernel,
        weights.flat_bias, *out,
    )  # fmt: skip
    run(entry, arguments, _threads(call, most))


def backward(
    call: Call, given: Cotangents, out: Outputs, results: Results, most: int
) -> None:
    """Run the backward kernel on at most `most` threads."""
    entry, first = bound(BACKWARD, call.config, slopes=True)
    weights = call.weights
    arguments = (
        *first, call.x, call.h0, weights.kernel, weights.recurrent_kernel, *given,
        out.saved, *results,
    )  # fmt: skip
    run(entry, arguments, _threads(call, most))

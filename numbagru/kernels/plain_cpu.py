"""Plain loops for every configuration: obvious, always right, the others' yardstick.

Threads share the rows (forward) or the parts of rows (backward). Per row and step: the
inputs as each gate sees them (dropout), the sums in the order of the contract, the
gates. The contract is in kernels/__init__.py; x_drop (3, B, F) and h_drop (3, B, U) are
the dropout multipliers per gate, (0, 0, 0) for none.
"""

from __future__ import annotations

import numpy as np

from numbagru.kernels import memory
from numbagru.kernels.call import (
    REAL,
    Call,
    Cotangents,
    Outputs,
    Results,
    activations,
)
from numbagru.kernels.plain_backward import BACKWARD
from numbagru.kernels.plain_forward import FORWARD
from numbagru.kernels.threads import run


def saved_shapes(call: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of what a training call saves: gates, and states."""
    (B, T, _), U = call.x.shape, call.h0.shape[1]
    return (B, T, 4, U), (B, T, U)


def forward(call: Call, out: Outputs, most: int) -> None:
    """Run the forward kernel on at most `most` threads."""
    config, weights = call.config, call.weights
    values, kinds = activations(config, slopes=False)
    arguments = (
        *values, config.reset_after, call.x, call.h0, call.mask, weights.kernel,
        weights.recurrent_kernel, weights.sum_bias, call.x_drop, call.h_drop,
        *call.switches, *out,
    )  # fmt: skip
    entry = FORWARD.entry(REAL[call.x.dtype], *kinds)
    run(entry, arguments, min(most, call.x.shape[0]))


# Of the sums z, r, candidate's input and recurrent part, those that each row of a bias
# (2, 3 U) goes into.
_TWO_BIASES = np.array([0, 1, 2, 0, 1, 3])


def backward(
    call: Call,
    given: Cotangents,
    out: Outputs,
    rows_per_part: int,
    results: Results,
    most: int,
) -> None:
    """Run the backward kernel on at most `most` threads."""
    config, weights = call.config, call.weights
    values, kinds = activations(config, slopes=True)
    (B, _, F), U = call.x.shape, call.h0.shape[1]
    count = -(-B // rows_per_part)
    shapes = (F, 3, U), (U, 3, U), (4, U)
    parts = [memory.empty((count, *shape), call.x.dtype) for shape in shapes]
    arguments = (
        *values, config.reset_after, call.x, call.h0, call.mask, weights.kernel,
        weights.recurrent_kernel, call.x_drop, call.h_drop, *call.switches, *given,
        out.saved, out.states, rows_per_part, *results[:2], *parts,
    )  # fmt: skip
    run(BACKWARD.entry(REAL[call.x.dtype], *kinds), arguments, min(most, count))
    d_W, d_R, d_bias = (part.sum(0) for part in parts)
    results.W[...] = d_W.reshape(F, 3 * U)
    results.R[...] = d_R.reshape(U, 3 * U)
    rows = results.bias.size // U
    results.bias[...] = d_bias[_TWO_BIASES[:rows]].reshape(-1)

"""The backward kernel on register tiles: weights' gradients in parts of rows.

backward_parts.py has its loops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from numbagru._jit import Kernel
from numbagru.kernels import one_step
from numbagru.kernels.backward_parts import backward_parts
from numbagru.kernels.call import (
    Call,
    Cotangents,
    Outputs,
    Results,
    bound,
)
from numbagru.kernels.simd import (
    pointer,
)
from numbagru.kernels.team import (
    sharing,
)
from numbagru.kernels.threads import WORD_ARRAY, run
from numbagru.kernels.ways import Plan, Ways
from numbagru.kernels.weight_gradients import collect, parts_maker

_run_backward = sharing(backward_parts)


def backward_kernel(
    variant, act, rec, d_act, d_rec, rows_per_part, x, h0, packed, d_y, d_last, d_state,
    saved, states, d_x, d_h0, d_W, d_R, d_bias, gradients, mask, order, ends, x_drop,
    h_drop, zero_output, first_is_state, words,
):  # fmt: skip
    """Run all parts."""
    data = (
        rows_per_part, act, rec, d_act, d_rec, x, h0, mask, order, ends, packed, x_drop,
        h_drop, zero_output, first_is_state, d_y, d_last, d_state, saved, states, d_x,
        d_h0, d_W, d_R, d_bias, gradients,
    )  # fmt: skip
    _run_backward(variant, pointer(words), data)


def _signature(variant, real, act, rec, d_act, d_rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        variant, act, rec, d_act, d_rec, types.intp, array(3, "A"), array(2), array(1),
        array(3, "A"), array(2), array(2), array(4), array(3), array(3, "A"), array(2),
        array(2), array(2), array(1), array(2), mask, WORD_ARRAY, WORD_ARRAY, array(3),
        array(3), flag, flag, WORD_ARRAY,
    )  # fmt: skip


BACKWARD = Kernel(backward_kernel, _signature)

# Products of a number and three weights per step, from which on meeting in each step
# pays, and per sequence, from which on a second thread does. (One row, 100 steps of
# training, together and not: 64 units 193 and 225 µs, 48 units 161 and 142, Zen 4.)
_TOGETHER_FROM = 4_000
# Others come into a single step when its gates are done.
_TOGETHER_IN_ONE_STEP_FROM = 500_000
_PARALLEL_FROM = 50_000


@functools.lru_cache
def _ways(entry: Any, B: int, T: int, F: int, U: int, parts: int, most: int) -> Ways:
    """Plan calls of a kernel's entry on at most `most` threads."""
    products = B * U * (F + U)
    parallel = T * products >= _PARALLEL_FROM
    apart = Plan(min(most, parts) if parallel else 1, B, False)
    least = _TOGETHER_FROM if T > 1 else _TOGETHER_IN_ONE_STEP_FROM
    if most > 1 and parts == 1 and products >= least:
        return Ways(Plan(most, B, True), apart)
    return Ways(apart)


def backward(
    call: Call,
    given: Cotangents,
    out: Outputs,
    rows_per_part: int,
    results: Results,
    most: int,
) -> None:
    """Run the backward kernel on at most `most` threads."""
    config, shape = call.config, call.x.shape
    if one_step.suits(call):
        one_step.prepare_backward(config, shape, most)(
            call.weights, call.x, call.h0, call.from_zeros, given, out.saved, results
        )
        return
    run_on = prepare(config, shape, call.per_gate, rows_per_part, most)
    run_on(
        call.weights, call.x, call.given_h0, given, out.saved, out.states, results,
        call.conditions,
    )  # fmt: skip


@functools.lru_cache
def prepare(
    config: Any, shape: tuple[int, ...], per_gate: bool, rows_per_part: int, most: int
) -> Callable[..., None]:
    """Bind what x of a shape allows.

    ``run(weights, x, h0, given, saved, states, results, conditions)``.
    """
    B, _, F = shape
    U, dtype = config.units, np.dtype(config.dtype)
    count = max(1, -(-B // rows_per_part))  # no rows: gradients of zero
    entry, first = bound(BACKWARD, config, True, per_gate)
    ways = _ways(entry, *shape, U, count, most)
    make_gradients = parts_maker(count, F, U, dtype)

    def prepared(
        weights: Any, x: Any, h0: Any, given: Any, saved: Any, states: Any,
        results: Any, conditions: Any,
    ) -> None:  # fmt: skip
        gradients = make_gradients()
        arguments = (
            *first, rows_per_part, x, h0, weights.packed(True, most), *given, saved,
            states, *results, gradients, *conditions,
        )  # fmt: skip
        ways.run(lambda plan: run(entry, arguments, plan.threads, plan.together))
        collect(gradients, count, results, most)

    return prepared

"""The backward kernel on register tiles: weights' gradients in parts of rows.

backward_parts.py has its loops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

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
    rows_by_end,
)
from numbagru.kernels.simd import (
    pointer,
)
from numbagru.kernels.team import (
    sharing,
)
from numbagru.kernels.threads import WORD_ARRAY, run
from numbagru.kernels.ways import Plan, Ways
from numbagru.kernels.weight_gradients import collect, make_parts

_run_backward = sharing(backward_parts)


def backward_kernel(
    variant, act, rec, d_act, d_rec, x, h0, mask, order, ends, packed, x_drop, h_drop,
    zero_output, first_is_state, d_y, d_last, d_state, saved, states, rows_per_part,
    d_x, d_h0, d_W, d_R, d_bias, gradients, words,
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
        variant, act, rec, d_act, d_rec, array(3, "A"), array(2), mask, WORD_ARRAY,
        WORD_ARRAY, array(1), array(3), array(3), flag, flag, array(3, "A"), array(2),
        array(2), array(4), array(3), types.intp, array(3, "A"), array(2), array(2),
        array(2), array(1), array(2), WORD_ARRAY,
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
def _bound(
    config: Any, shape: tuple[int, ...], per_gate: bool, parts: int, most: int
) -> tuple[Callable[..., None], tuple[Any, ...], Ways]:
    """Return entry and first arguments, as `call.bound`, and the ways to call it."""
    entry, first = bound(BACKWARD, config, True, per_gate)
    return entry, first, _ways(entry, *shape, config.units, parts, most)


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
    if one_step.suits(call):
        one_step.backward(call, given, out, results, most)
        return
    shape = call.x.shape
    count = max(1, -(-shape[0] // rows_per_part))  # no rows: gradients of zero
    entry, first, ways = _bound(call.config, shape, call.per_gate, count, most)
    packed = call.weights.packed(True, most)
    gradients = make_parts(count, shape[2], call.config.units, call.x.dtype)
    arguments = (
        *first, call.x, call.given_h0, call.mask, *rows_by_end(call.mask),
        packed, call.x_drop, call.h_drop, *call.switches, *given,
        out.saved, out.states, rows_per_part, *results, gradients,
    )  # fmt: skip
    ways.run(lambda plan: run(entry, arguments, plan.threads, plan.together))
    collect(gradients, count, results, most)

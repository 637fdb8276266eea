"""The plain loops forward: row by row, step by step."""

from __future__ import annotations

import numpy as np
from numba import types

from numbagru._jit import Kernel, body, routine
from numbagru.gates import (
    HH,
    HH_SUM,
    R_SUM,
    RECURRENT,
    SECTIONS,
    Z_SUM,
    H,
    R,
    Z,
    gates_reset_before,
    kept_section,
    line,
    next_state,
    step_reset_after,
)
from numbagru.kernels.plain_rows import copy, fill, gate_inputs
from numbagru.kernels.simd import at, pointer
from numbagru.kernels.team import next_item, sharing
from numbagru.kernels.threads import WORD_ARRAY
from numbagru.scalar import fma


@routine
def _add_product(v, weights, gate, out):
    """``out += v @ weights`` of one gate, one chain per unit in order of k.

    Four k at a time, so that sums are read and written a fourth as often.
    """
    K, U = v.size, out.size
    sums, factors = pointer(out), pointer(v)
    k = 0
    while k < K:
        rows = at(pointer(weights), (k * 3 + gate) * U)
        if k + 4 <= K:
            row1, row2, row3 = at(rows, 3 * U), at(rows, 6 * U), at(rows, 9 * U)
            v0, v1, v2, v3 = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
            for u in range(U):
                total = fma(v1, row1[u], fma(v0, rows[u], sums[u]))
                sums[u] = fma(v3, row3[u], fma(v2, row2[u], total))
            k += 4
        else:
            v0 = factors[k]
            for u in range(U):
                sums[u] = fma(v0, rows[u], sums[u])
            k += 1


@routine
def _keep(act, rec, s, saved):
    """Save the four sections that backward wants."""
    copy(s[kept_section(rec, Z, Z_SUM)], saved[Z])
    copy(s[kept_section(rec, R, R_SUM)], saved[R])
    copy(s[kept_section(act, HH, HH_SUM)], saved[HH])
    copy(s[RECURRENT], saved[RECURRENT])


@routine
def _forward_row(
    act, rec, reset_after, x, h0, mask, W, R_, bias, x_drop, h_drop,
    zero_output, first_is_state, y, last, state, saved, states, b,
):  # fmt: skip
    T, F, U = x.shape[1], x.shape[2], R_.shape[0]
    n = line(U)
    s = np.zeros((SECTIONS, n), x.dtype)
    keep = saved.size > 0
    xs, hs = np.empty((3, F), x.dtype), np.empty((3, U), x.dtype)
    output = np.zeros(U, x.dtype)
    h = s[H, :U]
    copy(h0[b], h)
    if first_is_state or T == 0:
        copy(h, output)
    for t in range(T):
        if mask.size == 0 or mask[b, t]:
            gate_inputs(x[b, t], x_drop, b, xs)
            gate_inputs(h, h_drop, b, hs)
            for section in range(4):
                copy(bias[section], s[section, :U])
            for gate in range(3):
                _add_product(xs[gate], W, gate, s[gate, :U])
            for gate in range(2):
                _add_product(hs[gate], R_, gate, s[gate, :U])
            inner = s[RECURRENT, :U]
            if reset_after:
                _add_product(hs[2], R_, 2, inner)
                step_reset_after(act, rec, s.reshape(-1), n, n, U)
            else:
                gates_reset_before(rec, s.reshape(-1), n, n, U)
                if h_drop.size > 0:
                    for u in range(U):
                        inner[u] *= h_drop[2, b, u]
                _add_product(inner, R_, 2, s[HH, :U])
                next_state(act, s.reshape(-1), n, n, U)
            copy(h, output)
            if keep:
                _keep(act, rec, s, saved[b, t])
        elif zero_output:
            fill(output, 0)
        if y.size > 0:
            copy(output, y[b, t])
        if states.size > 0:
            copy(h, states[b, t])
    copy(output, last[b])
    copy(h, state[b])


@body
def _forward_rows(words, helper, data):
    (
        reset_after, act, rec, x, h0, mask, W, R_, bias, x_drop, h_drop,
        zero_output, first_is_state, y, last, state, saved, states,
    ) = data  # fmt: skip
    B = x.shape[0]
    b = next_item(words, helper, -1, B)
    while b < B:
        _forward_row(
            act, rec, reset_after, x, h0, mask, W, R_, bias, x_drop, h_drop,
            zero_output, first_is_state, y, last, state, saved, states, b,
        )  # fmt: skip
        b = next_item(words, helper, b, B)


_share_rows = sharing(_forward_rows)


def plain_forward(
    act, rec, reset_after, x, h0, mask, W, R_, bias, x_drop, h_drop, zero_output,
    first_is_state, y, last, state, saved, states, words,
):  # fmt: skip
    """Run all rows through all of their steps."""
    data = (
        reset_after, act, rec, x, h0, mask, W, R_, bias, x_drop, h_drop,
        zero_output, first_is_state, y, last, state, saved, states,
    )  # fmt: skip
    _share_rows(None, pointer(words), data)


def _signature(real, act, rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        act, rec, flag, array(3, "A"), array(2), mask, array(2), array(2), array(2),
        array(3), array(3), flag, flag, array(3, "A"), array(2), array(2), array(4),
        array(3), WORD_ARRAY,
    )  # fmt: skip


FORWARD = Kernel(plain_forward, _signature)

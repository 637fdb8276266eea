"""The plain loops back: part of rows by part, row by row, from the last step on."""

from __future__ import annotations

import numpy as np
from numba import types

from numbagru._jit import Kernel, body, routine
from numbagru.gates import (
    D_HH,
    D_R,
    D_RECURRENT,
    D_SECTIONS,
    D_Z,
    RECURRENT,
    D,
    H,
    d_gates_reset_before,
    d_next_state,
    d_step_reset_after,
    line,
)
from numbagru.kernels.plain_rows import add, copy, fill, gate_inputs
from numbagru.kernels.simd import at, pointer
from numbagru.kernels.team import next_item, sharing
from numbagru.kernels.threads import WORD_ARRAY
from numbagru.scalar import fma


@routine
def _add_transposed(d, weights, gate, out):
    """``out += d @ weights.T`` of one gate.

    Eight sums at a time: each waits four cycles for its last term.
    """
    K, U = out.size, d.size
    factors, sums = pointer(d), pointer(out)
    k = 0
    while k < K:
        rows = at(pointer(weights), (k * 3 + gate) * U)
        if k + 8 <= K:
            s0, s1, s2, s3 = sums[k], sums[k + 1], sums[k + 2], sums[k + 3]
            s4, s5, s6, s7 = sums[k + 4], sums[k + 5], sums[k + 6], sums[k + 7]
            for u in range(U):
                d_u, spot = factors[u], at(rows, u)
                s0, s1 = fma(d_u, spot[0], s0), fma(d_u, spot[3 * U], s1)
                s2, s3 = fma(d_u, spot[6 * U], s2), fma(d_u, spot[9 * U], s3)
                s4, s5 = fma(d_u, spot[12 * U], s4), fma(d_u, spot[15 * U], s5)
                s6, s7 = fma(d_u, spot[18 * U], s6), fma(d_u, spot[21 * U], s7)
            sums[k], sums[k + 1], sums[k + 2], sums[k + 3] = s0, s1, s2, s3
            sums[k + 4], sums[k + 5], sums[k + 6], sums[k + 7] = s4, s5, s6, s7
            k += 8
        else:
            total = sums[k]
            for u in range(U):
                total = fma(factors[u], rows[u], total)
            sums[k] = total
            k += 1


@routine
def _add_outer(v, d, gradient, gate):
    """``gradient[:, gate] += outer(v, d)``."""
    U, factors = d.size, pointer(d)
    for k in range(v.size):
        row, v_k = at(pointer(gradient), (k * 3 + gate) * U), v[k]
        for u in range(U):
            row[u] = fma(v_k, factors[u], row[u])


@routine
def _backward_row(
    act, rec, d_act, d_rec, reset_after, x, h0, mask, W, R_, x_drop, h_drop,
    zero_output, first_is_state, d_y, d_last, d_state, saved, states,
    d_x, d_h0, d_W, d_rec_kernel, d_bias, b,
):  # fmt: skip
    T, F, U = x.shape[1], x.shape[2], R_.shape[0]
    real = x.dtype
    xs, hs = np.empty((3, F), real), np.empty((3, U), real)
    d_xs, d_hs = np.empty(F, real), np.empty(U, real)
    n = line(U)
    s = np.zeros((D_SECTIONS, n), real)
    dh, inner = s[D, :U], s[D_RECURRENT, :U]
    d_sums = s[D_Z, :U], s[D_R, :U], s[D_HH, :U], inner
    d_output = np.zeros(U, real)
    if d_state.size > 0:
        copy(d_state[b], dh)
    if d_last.size > 0:
        copy(d_last[b], d_output)
    if T == 0:
        add(d_output, dh)
    for t in range(T - 1, -1, -1):
        if d_y.size > 0:
            add(d_y[b, t], d_output)
        fill(d_x[b, t], 0)
        if mask.size > 0 and not mask[b, t]:
            # The output repeated an earlier one, or was a constant zero.
            if zero_output:
                fill(d_output, 0)
            if t == 0 and first_is_state:
                add(d_output, dh)
            continue
        add(d_output, dh)
        fill(d_output, 0)
        h = states[b, t - 1] if t > 0 else h0[b]
        gate_inputs(x[b, t], x_drop, b, xs)
        gate_inputs(h, h_drop, b, hs)
        for section in range(4):
            copy(saved[b, t, section], s[section, :U])
        copy(h, s[H, :U])
        if reset_after:
            d_step_reset_after(act, rec, d_act, d_rec, s.reshape(-1), n, n, U)
        else:
            d_next_state(act, rec, d_act, s.reshape(-1), n, n, U)
            fill(inner, 0)
            _add_transposed(d_sums[2], R_, 2, inner)
            if h_drop.size > 0:
                for u in range(U):
                    inner[u] *= h_drop[2, b, u]
            d_gates_reset_before(rec, d_rec, s.reshape(-1), n, n, U)
            copy(saved[b, t, RECURRENT], hs[2])
        for g in range(3):
            fill(d_xs, 0)
            _add_transposed(d_sums[g], W, g, d_xs)
            for k in range(F):
                d_x[b, t, k] += (
                    d_xs[k] * x_drop[g, b, k] if x_drop.size > 0 else d_xs[k]
                )
            _add_outer(xs[g], d_sums[g], d_W, g)
            through = d_sums[3] if g == 2 and reset_after else d_sums[g]
            _add_outer(hs[g], through, d_rec_kernel, g)
            add(d_sums[g], d_bias[g])
            if g < 2 or reset_after:
                fill(d_hs, 0)
                _add_transposed(through, R_, g, d_hs)
                for u in range(U):
                    dh[u] += d_hs[u] * h_drop[g, b, u] if h_drop.size > 0 else d_hs[u]
        if reset_after:
            add(inner, d_bias[3])
    copy(dh, d_h0[b])


@body
def _backward_parts(words, helper, data):
    (
        reset_after, act, rec, d_act, d_rec, x, h0, mask, W, R_, x_drop, h_drop,
        zero_output, first_is_state, d_y, d_last, d_state, saved, states,
        rows_per_part, d_x, d_h0, d_W, d_R, d_bias,
    ) = data  # fmt: skip
    B = x.shape[0]
    parts = d_W.shape[0]
    part = next_item(words, helper, -1, parts)
    while part < parts:
        fill(d_W[part].reshape(-1), 0)
        fill(d_R[part].reshape(-1), 0)
        fill(d_bias[part].reshape(-1), 0)
        for b in range(part * rows_per_part, min(B, (part + 1) * rows_per_part)):
            _backward_row(
                act, rec, d_act, d_rec, reset_after, x, h0, mask, W, R_, x_drop, h_drop,
                zero_output, first_is_state, d_y, d_last, d_state, saved, states,
                d_x, d_h0, d_W[part], d_R[part], d_bias[part], b,
            )  # fmt: skip
        part = next_item(words, helper, part, parts)


_share_parts = sharing(_backward_parts)


def plain_backward(
    act, rec, d_act, d_rec, reset_after, x, h0, mask, W, R_, x_drop, h_drop,
    zero_output, first_is_state, d_y, d_last, d_state, saved, states, rows_per_part,
    d_x, d_h0, d_W, d_R, d_bias, words,
):  # fmt: skip
    """Run all parts backward, row by row."""
    data = (
        reset_after, act, rec, d_act, d_rec, x, h0, mask, W, R_, x_drop, h_drop,
        zero_output, first_is_state, d_y, d_last, d_state, saved, states,
        rows_per_part, d_x, d_h0, d_W, d_R, d_bias,
    )  # fmt: skip
    _share_parts(None, pointer(words), data)


def _signature(real, act, rec, d_act, d_rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        act, rec, d_act, d_rec, flag, array(3, "A"), array(2), mask, array(2),
        array(2), array(3), array(3), flag, flag, array(3, "A"), array(2), array(2),
        array(4), array(3), types.intp, array(3, "A"), array(2), array(4), array(4),
        array(3), WORD_ARRAY,
    )  # fmt: skip


BACKWARD = Kernel(plain_backward, _signature)

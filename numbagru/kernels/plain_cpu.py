"""Plain loops for every configuration: obvious, always right, the others' yardstick.

Threads share the rows (forward) or the parts of rows (backward). Per row and step: the
inputs as each gate sees them (dropout), the sums in the order of the contract, the
gates. The contract is in kernels/__init__.py; x_drop (3, B, F) and h_drop (3, B, U) are
the dropout multipliers per gate, (0, 0, 0) for none.
"""

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
    HH,
    HH_SUM,
    R_SUM,
    RECURRENT,
    SECTIONS,
    Z_SUM,
    D,
    H,
    R,
    Z,
    d_gates_reset_before,
    d_next_state,
    d_step_reset_after,
    gates_reset_before,
    kept_section,
    line,
    next_state,
    step_reset_after,
)
from numbagru.kernels import memory
from numbagru.kernels.call import (
    REAL,
    Call,
    Cotangents,
    Outputs,
    Results,
    activations,
)
from numbagru.kernels.simd import at, pointer
from numbagru.kernels.team import next_item, sharing
from numbagru.kernels.threads import WORD_ARRAY, run
from numbagru.scalar import fma


@routine
def _copy(source, target):
    for i in range(target.size):
        target[i] = source[i]


@routine
def _add(source, target):
    for i in range(target.size):
        target[i] += source[i]


@routine
def _fill(target, value):
    for i in range(target.size):
        target[i] = value


@routine
def _gate_inputs(v, drop, b, out):
    """``out[g] = v * drop[g, b]``: what each of the three gates sees of x or h."""
    for g in range(3):
        for k in range(v.size):
            out[g, k] = v[k] * drop[g, b, k] if drop.size > 0 else v[k]


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
    _copy(s[kept_section(rec, Z, Z_SUM)], saved[Z])
    _copy(s[kept_section(rec, R, R_SUM)], saved[R])
    _copy(s[kept_section(act, HH, HH_SUM)], saved[HH])
    _copy(s[RECURRENT], saved[RECURRENT])


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
    _copy(h0[b], h)
    if first_is_state or T == 0:
        _copy(h, output)
    for t in range(T):
        if mask.size == 0 or mask[b, t]:
            _gate_inputs(x[b, t], x_drop, b, xs)
            _gate_inputs(h, h_drop, b, hs)
            for section in range(4):
                _copy(bias[section], s[section, :U])
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
            _copy(h, output)
            if keep:
                _keep(act, rec, s, saved[b, t])
        elif zero_output:
            _fill(output, 0)
        if y.size > 0:
            _copy(output, y[b, t])
        if states.size > 0:
            _copy(h, states[b, t])
    _copy(output, last[b])
    _copy(h, state[b])


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
        _copy(d_state[b], dh)
    if d_last.size > 0:
        _copy(d_last[b], d_output)
    if T == 0:
        _add(d_output, dh)
    for t in range(T - 1, -1, -1):
        if d_y.size > 0:
            _add(d_y[b, t], d_output)
        _fill(d_x[b, t], 0)
        if mask.size > 0 and not mask[b, t]:
            # The output repeated an earlier one, or was a constant zero.
            if zero_output:
                _fill(d_output, 0)
            if t == 0 and first_is_state:
                _add(d_output, dh)
            continue
        _add(d_output, dh)
        _fill(d_output, 0)
        h = states[b, t - 1] if t > 0 else h0[b]
        _gate_inputs(x[b, t], x_drop, b, xs)
        _gate_inputs(h, h_drop, b, hs)
        for section in range(4):
            _copy(saved[b, t, section], s[section, :U])
        _copy(h, s[H, :U])
        if reset_after:
            d_step_reset_after(act, rec, d_act, d_rec, s.reshape(-1), n, n, U)
        else:
            d_next_state(act, rec, d_act, s.reshape(-1), n, n, U)
            _fill(inner, 0)
            _add_transposed(d_sums[2], R_, 2, inner)
            if h_drop.size > 0:
                for u in range(U):
                    inner[u] *= h_drop[2, b, u]
            d_gates_reset_before(rec, d_rec, s.reshape(-1), n, n, U)
            _copy(saved[b, t, RECURRENT], hs[2])
        for g in range(3):
            _fill(d_xs, 0)
            _add_transposed(d_sums[g], W, g, d_xs)
            for k in range(F):
                d_x[b, t, k] += (
                    d_xs[k] * x_drop[g, b, k] if x_drop.size > 0 else d_xs[k]
                )
            _add_outer(xs[g], d_sums[g], d_W, g)
            through = d_sums[3] if g == 2 and reset_after else d_sums[g]
            _add_outer(hs[g], through, d_rec_kernel, g)
            _add(d_sums[g], d_bias[g])
            if g < 2 or reset_after:
                _fill(d_hs, 0)
                _add_transposed(through, R_, g, d_hs)
                for u in range(U):
                    dh[u] += d_hs[u] * h_drop[g, b, u] if h_drop.size > 0 else d_hs[u]
        if reset_after:
            _add(inner, d_bias[3])
    _copy(dh, d_h0[b])


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
        _fill(d_W[part].reshape(-1), 0)
        _fill(d_R[part].reshape(-1), 0)
        _fill(d_bias[part].reshape(-1), 0)
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


def _forward_signature(real, act, rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        act, rec, flag, array(3, "A"), array(2), mask, array(2), array(2), array(2),
        array(3), array(3), flag, flag, array(3, "A"), array(2), array(2), array(4),
        array(3), WORD_ARRAY,
    )  # fmt: skip


def _backward_signature(real, act, rec, d_act, d_rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        act, rec, d_act, d_rec, flag, array(3, "A"), array(2), mask, array(2),
        array(2), array(3), array(3), flag, flag, array(3, "A"), array(2), array(2),
        array(4), array(3), types.intp, array(3, "A"), array(2), array(4), array(4),
        array(3), WORD_ARRAY,
    )  # fmt: skip


FORWARD = Kernel(plain_forward, _forward_signature)
BACKWARD = Kernel(plain_backward, _backward_signature)


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

"""A training step over one time step of few rows: weights are read where they stand.

Packing them (kernels/panels.py) would take long beside the rest: one row, 64 inputs and
256 units take 71 µs in all, and packing would add 55. Units have to be whole vectors.
The order of all sums is that of the other kernels, and so are the bits.
"""

from __future__ import annotations

import numpy as np
from numba import types

from numbagru._jit import Kernel, routine
from numbagru.gates import (
    D_HH,
    D_SECTIONS,
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
    d_step_reset_after,
    kept_section,
    line,
    step_reset_after,
)
from numbagru.kernels.backward_arrays import GROUP, rounded_up, sums_row
from numbagru.kernels.call import (
    REAL,
    Call,
    Cotangents,
    Outputs,
    Results,
    activations,
)
from numbagru.kernels.panels import transpose
from numbagru.kernels.simd import (
    at,
    clear,
    copy,
    hold,
    most_rows,
    pointer,
    vector_lanes,
)
from numbagru.kernels.tiles import add_sums, continue_sums, tile_rows
from numbagru.kernels.vector_ir import lanes

# Rows of a weight matrix that are read side by side: so many streams the caches follow.
_ROWS_AT_ONCE = 16


@routine
def _columns(left):
    return 3 if left >= 3 else 1


@routine
def _add_products(n, a, a_row, K, b, U, width, c, c_row):
    """``c += a b`` for n rows of a and one gate of a weight matrix (K, 3 U)."""
    for k in range(0, K, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, K - k)
        v = 0
        while v < U:
            columns = _columns((U - v) // width)
            i = 0
            while i < n:
                m = tile_rows(n - i, most_rows(a))
                continue_sums(
                    m, columns, at(a, i * a_row + k), a_row, 1, at(b, k * 3 * U + v),
                    3 * U, width, count, at(c, i * c_row + v), c_row, width, 0, True,
                )  # fmt: skip
                i += m
            v += columns * width


def one_step_forward(
    act, rec, x, h0, W, weights, starts, y, last, state, saved, states
):
    """Run one step; arrays as of the other kernels."""
    B, F, U = x.shape[0], x.shape[2], h0.shape[1]
    width, apart = vector_lanes(x), line(U)
    size = B * apart
    work = np.zeros(SECTIONS * size, x.dtype)
    s, x_row = pointer(work), x.strides[0] // x.itemsize
    for b in range(B):
        for gate in range(4):
            copy(at(s, gate * size + b * apart), at(pointer(starts), gate * U), U)
        copy(at(s, H * size + b * apart), at(pointer(h0), b * U), U)
    for gate in range(3):
        target = at(s, gate * size)
        kernel, recurrent = at(pointer(W), gate * U), at(pointer(weights), gate * U)
        _add_products(B, pointer(x), x_row, F, kernel, U, width, target, apart)
        if gate == 2:
            target = at(s, RECURRENT * size)
        _add_products(B, pointer(h0), U, U, recurrent, U, width, target, apart)
    step_reset_after(act, rec, s, size, size, U)
    for b in range(B):
        h = at(s, H * size + b * apart)
        if y.size > 0:
            copy(at(pointer(y), b * (y.strides[0] // y.itemsize)), h, U)
        copy(at(pointer(last), b * U), h, U)
        copy(at(pointer(state), b * U), h, U)
        copy(at(pointer(states), b * U), h, U)
        kept = (
            kept_section(rec, Z, Z_SUM),
            kept_section(rec, R, R_SUM),
            kept_section(act, HH, HH_SUM),
            RECURRENT,
        )
        for gate in range(4):
            source = at(s, kept[gate] * size + b * apart)
            copy(at(pointer(saved), (b * 4 + gate) * U), source, U)
    hold(work)


@routine
def _add_transposed(n, a, a_row, matrix, first_gate, scratch, c, c_row):
    """``c += a b`` for the transpose of a weight matrix, whose gates start there."""
    width = vector_lanes(matrix)
    vectors = (matrix.shape[0] + width - 1) // width
    K = matrix.shape[1]
    v = 0
    while v < vectors:
        columns = _columns(vectors - v)
        for q in range(columns):
            transpose(matrix, first_gate, v + q, at(scratch, q * K * width))
        i = 0
        while i < n:
            m = tile_rows(n - i, most_rows(a))
            add_sums(
                m, columns, at(a, i * a_row), a_row, 1, scratch, width, K * width, K,
                at(c, i * c_row + v * width), c_row, width,
            )  # fmt: skip
            i += m
        v += columns


@routine
def _weight_gradients(n, a, a_row, a_k, rows, d, d_k, U, width, gradients, row):
    """Write ``sum_n a[n a_k] d[n d_k]`` for so many rows of one gate's gradients."""
    i = 0
    while i < rows:
        m = tile_rows(rows - i, most_rows(a))
        v = 0
        while v < U:
            columns = _columns((U - v) // width)
            continue_sums(
                m, columns, at(a, i * a_row), a_row, a_k, at(d, v), d_k, width, n,
                at(gradients, i * row + v), row, width, 0, False,
            )  # fmt: skip
            v += columns * width
        i += m


def one_step_backward(
    act, rec, d_act, d_rec, x, h0, W, weights, d_y, d_last, d_state, saved, d_x, d_h0,
    d_W, d_weights, d_bias,
):  # fmt: skip
    """Run the step back."""
    B, F, U = x.shape[0], x.shape[2], h0.shape[1]
    width, apart = vector_lanes(x), line(U)
    d_row, x_row = sums_row(U, width), x.strides[0] // x.itemsize
    FV = rounded_up(F, width)
    work = np.zeros(
        D_SECTIONS * apart + B * (d_row + U + FV) + 3 * width * 3 * U + 1, x.dtype
    )
    s = pointer(work)
    # Gradients of the sums: candidate, z, r, candidate's recurrent part.
    d = at(s, D_SECTIONS * apart)
    dh = at(d, B * d_row)
    inputs = at(dh, B * U)
    scratch = at(inputs, B * FV)
    one = at(scratch, 3 * width * 3 * U)
    one[0] = 1
    for b in range(B):
        for gate in range(4):
            copy(at(s, gate * apart), at(pointer(saved), (b * 4 + gate) * U), U)
        copy(at(s, H * apart), at(pointer(h0), b * U), U)
        total = at(s, D * apart)
        if d_state.size > 0:
            copy(total, at(pointer(d_state), b * U), U)
        else:
            clear(total, U)
        for u in range(U):
            if d_y.size > 0:
                total[u] += d_y[b, 0, u]
            if d_last.size > 0:
                total[u] += d_last[b, u]
        d_step_reset_after(act, rec, d_act, d_rec, s, apart, apart, U)
        for gate in range(4):
            copy(at(d, b * d_row + gate * U), at(s, (D_HH + gate) * apart), U)
        copy(at(dh, b * U), total, U)
    _add_transposed(B, at(d, U), d_row, weights, 0, scratch, dh, U)
    _add_transposed(B, d, d_row, W, 2, scratch, inputs, FV)
    for b in range(B):
        copy(at(pointer(d_h0), b * U), at(dh, b * U), U)
        copy(
            at(pointer(d_x), b * (d_x.strides[0] // x.itemsize)), at(inputs, b * FV), F
        )
    for gate in range(3):
        of_input, of_state = at(d, (gate + 1) % 3 * U), at(d, (gate + 1) * U)
        _weight_gradients(
            B, pointer(x), 1, x_row, F, of_input, d_row, U, width,
            at(pointer(d_W), gate * U), 3 * U,
        )  # fmt: skip
        _weight_gradients(
            B, pointer(h0), 1, U, U, of_state, d_row, U, width,
            at(pointer(d_weights), gate * U), 3 * U,
        )  # fmt: skip
    for row in range(d_bias.size // U):
        gate = 3 if row == 5 else (row + 1) % 3
        _weight_gradients(
            B, one, 0, 0, 1, at(d, gate * U), d_row, U, width,
            at(pointer(d_bias), row * U), 0,
        )  # fmt: skip
    hold(work)


def _forward_signature(real, act, rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    return (
        act, rec, array(3, "A"), array(2), array(2), array(2), array(2), array(3, "A"),
        array(2), array(2), array(4), array(3),
    )  # fmt: skip


def _backward_signature(real, act, rec, d_act, d_rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    return (
        act, rec, d_act, d_rec, array(3, "A"), array(2), array(2), array(2),
        array(3, "A"), array(2), array(2), array(4), array(3, "A"), array(2), array(2),
        array(2), array(1),
    )  # fmt: skip


FORWARD = Kernel(one_step_forward, _forward_signature)
BACKWARD = Kernel(one_step_backward, _backward_signature)


def suits(call: Call) -> bool:
    """Whether a training call is one step of few rows with weights not packed yet."""
    (B, T, _), U = call.x.shape, call.h0.shape[1]
    return (
        T == 1
        and 0 < B <= GROUP
        and U % lanes(REAL[call.x.dtype]) == 0
        and call.config.reset_after
        and call.mask.size == 0
        and not call.per_gate
        and not call.weights.packed_for_training
    )


def forward(call: Call, out: Outputs) -> None:
    """Run the forward kernel."""
    values, kinds = activations(call.config, slopes=False)
    weights = call.weights
    FORWARD.entry(REAL[call.x.dtype], *kinds)(
        *values, call.x, call.h0, weights.kernel, weights.recurrent_kernel,
        weights.sum_bias, *out,
    )  # fmt: skip


def backward(call: Call, given: Cotangents, out: Outputs, results: Results) -> None:
    """Run the backward kernel."""
    values, kinds = activations(call.config, slopes=True)
    weights = call.weights
    BACKWARD.entry(REAL[call.x.dtype], *kinds)(
        *values, call.x, call.h0, weights.kernel, weights.recurrent_kernel, *given,
        out.saved, *results,
    )  # fmt: skip

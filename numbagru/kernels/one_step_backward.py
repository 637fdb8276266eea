"""The backward half of one_step.py: gates, then products with their gradients."""

from __future__ import annotations

import numpy as np
from numba import types

from numbagru._jit import Kernel, body, routine
from numbagru.gates import (
    D_HH,
    D_SECTIONS,
    D,
    H,
    d_step_reset_after,
    line,
)
from numbagru.kernels.backward_arrays import sums_row
from numbagru.kernels.panels import ALIGNING, transpose
from numbagru.kernels.register_tiles import MOST_COLUMNS
from numbagru.kernels.simd import (
    aligned,
    at,
    clear,
    copy,
    copy_vector,
    hold,
    most_rows,
    pointer,
    vector_lanes,
)
from numbagru.kernels.team import NEXT, next_item, pieces, sharing
from numbagru.kernels.threads import WORD_ARRAY
from numbagru.kernels.tiles import (
    ALONE_COLUMNS,
    add_sums,
    columns_at_once,
    continue_sums,
    continue_sums_alone,
    tile_rows,
)
from numbagru.scalar import widest_vectors

# Rows of a weight matrix whose gradients a thread computes at once, and where they
# are all the same (with 64 of these two threads took 60 µs to train one row of 256
# units, where they take 55: one waits for the other's last, Emerald Rapids).
_WEIGHT_ROWS, _SAME_ROWS = 16, 32


@routine
def _add_transposed(
    n, a, a_row, matrix, first_gate, v, columns, parts, scratch, c, c_row, onward
):
    """``c += a b`` for vectors of the transpose of a matrix whose gates start there.

    Or ``c = a b``. In so many parts, each summed up from zero.
    """
    width, K = vector_lanes(matrix), matrix.shape[1]
    for q in range(columns):
        transpose(matrix, first_gate, v + q, at(scratch, q * K * width))
    i = 0
    while i < n:
        m = tile_rows(n - i, most_rows(a))
        part = K // parts
        add_sums(
            m, columns, at(a, i * a_row), a_row, part, scratch, width, K * width,
            part * width, parts, part, at(c, i * c_row), c_row, width, onward,
            scratch,
        )  # fmt: skip
        i += m


@routine
def _add_samples(n, a, a_row, a_k, rows, d, d_k, U, width, gradients, row):
    """Write ``sum_n a[n a_k] d[n d_k]`` for so many rows of one gate's gradients."""
    i = 0
    while i < rows:
        m = tile_rows(rows - i, most_rows(a))
        v = 0
        while v < U:
            left, target = (U - v) // width, at(gradients, i * row + v)
            if m == 1 and left >= ALONE_COLUMNS:
                columns = ALONE_COLUMNS
                continue_sums_alone(
                    at(a, i * a_row), a_k, at(d, v), d_k, width, n, target, width, False
                )
            else:
                columns = columns_at_once(left)
                continue_sums(
                    m, columns, at(a, i * a_row), a_row, a_k, at(d, v), d_k, width, n,
                    target, row, width, 0, False, d, 0,
                )  # fmt: skip
            v += columns * width
        i += m


@routine
def _weight_gradients(n, a, a_k, k, K, d, first_gate, U, width, gradients):
    """Write some rows, from k on, of the gradients (K, 3 U) of a weight matrix."""
    d_k, rows = sums_row(U, width), min(_WEIGHT_ROWS, K - k)
    for gate in range(3):
        of_gate = at(d, (gate + first_gate) % 3 * U)
        target = at(gradients, (3 * k + gate) * U)
        _add_samples(n, at(a, k), 1, a_k, rows, of_gate, d_k, U, width, target, 3 * U)


@routine
def _same_gradients(n, zero, rows, d, U, width, gradients):
    """Write so many rows of the recurrent gradients, of states that are all zero."""
    d_k = sums_row(U, width)
    for gate in range(3):
        _add_samples(
            n, zero, 0, 0, 1, at(d, gate * U), d_k, U, width, at(gradients, gate * U), 0
        )  # fmt: skip
    for k in range(1, rows):
        copy(at(gradients, k * 3 * U), gradients, 3 * U)


@body
def _backward_gates(words, helper, data):
    """Compute the gradients of the sums, and of the old states apart from them."""
    widest_vectors()
    act, rec, d_act, d_rec, h0, d_y, d_last, d_state, saved, d, d_h0 = data
    B, U = h0.shape
    width, apart = vector_lanes(h0), line(U)
    saved_row = saved.strides[0] // saved.itemsize
    d_row = sums_row(U, width)
    work = np.zeros(D_SECTIONS * apart, h0.dtype)
    s = pointer(work)
    b = next_item(words, helper, -1, B)
    while b < B:
        source = at(pointer(saved), b * saved_row)
        for v in range(0, U, width):
            for gate in range(4):
                target = at(s, gate * apart + v)
                copy_vector(target, at(source, 4 * v + gate * width))
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
            target = at(aligned(pointer(d)), b * d_row + gate * U)
            copy(target, at(s, (D_HH + gate) * apart), U)
        if d_h0.size > 0:
            copy(at(pointer(d_h0), b * U), total, U)
        b = next_item(words, helper, b, B)
    hold(work)
    hold(h0)
    hold(d_y)
    hold(d_last)
    hold(d_state)
    hold(saved)
    hold(d)
    hold(d_h0)


@routine
def _bias_gradients(n, one, d, U, width, d_bias):
    """Write the gradients of all biases."""
    for row in range(d_bias.size // U):
        gate = 3 if row == 5 else (row + 1) % 3
        _add_samples(
            n, one, 0, 0, 1, at(d, gate * U), sums_row(U, width), U, width,
            at(pointer(d_bias), row * U), 0,
        )  # fmt: skip


@body
def _backward_products(words, helper, data):
    """Multiply the gradients of the sums: vectors of dh, of d_x, rows of weights."""
    x, h0, from_zeros, W, weights, d_sums, d_x, d_h0, d_W, d_weights, d_bias = data
    B, F, U = x.shape[0], x.shape[2], h0.shape[1]
    width, d = vector_lanes(x), aligned(pointer(d_sums))
    x_row, d_row = x.strides[0] // x.itemsize, sums_row(U, width)
    # What a block of columns works with: its part of d_x, and transposed weights.
    each = MOST_COLUMNS * width
    work = np.empty(B * each + each * 3 * U + 1 + ALIGNING, x.dtype)
    inputs = aligned(pointer(work))
    scratch = at(inputs, B * each)
    one = at(scratch, each * 3 * U)
    one[0] = 1
    states = 0 if from_zeros else pieces(U, each)
    features = pieces(F, each)
    of_kernel = states + features
    of_recurrent = of_kernel + pieces(F, _WEIGHT_ROWS)
    rows = _SAME_ROWS if from_zeros else _WEIGHT_ROWS
    of_bias = of_recurrent + pieces(U, rows)
    items = of_bias + 1
    item = next_item(words, helper, -1, items)
    while item < items:
        if item < states:
            v = item * MOST_COLUMNS
            columns = min(MOST_COLUMNS, U // width - v)
            _add_transposed(
                B, at(d, U), d_row, weights, 0, v, columns, 3, scratch,
                at(pointer(d_h0), v * width), U, True,
            )  # fmt: skip
        elif item < of_kernel:
            v = (item - states) * MOST_COLUMNS
            columns = min(MOST_COLUMNS, pieces(F, width) - v)
            row = columns * width
            _add_transposed(
                B, d, d_row, W, 2, v, columns, 1, scratch, inputs, row, False
            )
            count = min(row, F - v * width)
            for b in range(B):
                target = at(pointer(d_x), b * (d_x.strides[0] // x.itemsize))
                copy(at(target, v * width), at(inputs, b * row), count)
        elif item < of_recurrent:
            k = (item - of_kernel) * _WEIGHT_ROWS
            _weight_gradients(
                B, pointer(x), x_row, k, F, d, 1, U, width, pointer(d_W)
            )  # fmt: skip
        elif item < of_bias:
            k = (item - of_recurrent) * rows
            if from_zeros:
                _same_gradients(
                    B, pointer(h0), min(rows, U - k), at(d, U), U, width,
                    at(pointer(d_weights), k * 3 * U),
                )  # fmt: skip
            else:
                _weight_gradients(
                    B, pointer(h0), U, k, U, at(d, U), 0, U, width, pointer(d_weights)
                )  # fmt: skip
        else:
            _bias_gradients(B, one, d, U, width, d_bias)
        item = next_item(words, helper, item, items)
    hold(work)
    hold(x)
    hold(h0)
    hold(W)
    hold(weights)
    hold(d_sums)
    hold(d_x)
    hold(d_h0)
    hold(d_W)
    hold(d_weights)
    hold(d_bias)


_share_slopes, _share_products = sharing(_backward_gates), sharing(_backward_products)


def one_step_backward(
    act, rec, d_act, d_rec, x, h0, from_zeros, W, weights, d_y, d_last, d_state, saved,
    d_x, d_h0, d_W, d_weights, d_bias, words,
):  # fmt: skip
    """Run the step back."""
    B, U = h0.shape
    # Gradients of the sums: candidate, z, r, candidate's recurrent part.
    d = np.empty(B * sums_row(U, vector_lanes(x)) + ALIGNING, x.dtype)
    nobody = np.zeros(NEXT, np.int64)  # as on the way forward
    _share_slopes(
        None, pointer(nobody if B == 1 else words),
        (act, rec, d_act, d_rec, h0, d_y, d_last, d_state, saved, d, d_h0),
    )  # fmt: skip
    _share_products(
        None, pointer(words),
        (x, h0, from_zeros, W, weights, d, d_x, d_h0, d_W, d_weights, d_bias),
    )  # fmt: skip
    hold(nobody)
    hold(d)


def _signature(real, act, rec, d_act, d_rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    return (
        act, rec, d_act, d_rec, array(3, "A"), array(2), types.boolean, array(2),
        array(2), array(3, "A"), array(2), array(2), array(4), array(3, "A"), array(2),
        array(2), array(2), array(1), WORD_ARRAY,
    )  # fmt: skip


BACKWARD = Kernel(one_step_backward, _signature)

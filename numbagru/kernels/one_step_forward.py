"""The forward half of one_step.py: sums with weights where they stand, then gates."""

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
    kept_section,
    line,
    step_reset_after,
)
from numbagru.kernels.forward_tile import (
    add_of_zeros,
)
from numbagru.kernels.panels import ALIGNING, pack_panel, start_sums, sum_zeros
from numbagru.kernels.register_tiles import MOST_COLUMNS
from numbagru.kernels.simd import (
    aligned,
    at,
    clear,
    copy,
    copy_vector,
    hold,
    most_rows,
    past_vector,
    pointer,
    vector_lanes,
)
from numbagru.kernels.team import HELPERS, NEXT, next_item, pieces, sharing
from numbagru.kernels.threads import WORD_ARRAY
from numbagru.kernels.tiles import (
    ALONE_COLUMNS,
    columns_at_once,
    continue_sums,
    continue_sums_across,
    continue_sums_alone,
    step_sums,
    tile_rows,
)
from numbagru.scalar import widest_vectors

# Rows of a weight matrix that are read side by side: so many streams the caches follow.
_ROWS_AT_ONCE = 16
# Rows up to which weights are read in place, not packed, and where states of zero need
# no products (8 rows of 256 units 37 µs packed and 42 in place, in float64 77 and 97;
# two rows in float64 59 and 54, Emerald Rapids).
_FEW_ROWS, _FEW_FROM_ZEROS = 8, 3
# Rows whose gates a thread computes at once.
_GATE_ROWS = 8


@routine
def _add_products(n, a, a_row, K, b, U, units, width, c, c_row):
    """``c += a b`` for n rows of a and some units of a gate of a matrix (K, 3 U)."""
    for k in range(0, K, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, K - k)
        v = 0
        while v < units:
            left = (units - v) // width
            columns, weights = columns_at_once(left), at(b, k * 3 * U + v)
            if n == 1 and left == ALONE_COLUMNS + 1:
                columns = left
                continue_sums_across(at(a, k), weights, 3 * U, count, at(c, v), width)
            elif n == 1 and left >= ALONE_COLUMNS:
                columns = ALONE_COLUMNS
                continue_sums_alone(
                    at(a, k), 1, weights, 3 * U, width, count, at(c, v), width, True
                )
            else:
                i = 0
                while i < n:
                    m = tile_rows(n - i, most_rows(a))
                    continue_sums(
                        m, columns, at(a, i * a_row + k), a_row, 1, weights, 3 * U,
                        width, count, at(c, i * c_row + v), c_row, width, 0, True, b, 0,
                    )  # fmt: skip
                    i += m
            v += columns * width


@routine
def _add_products_alone(a, K, b, U, units, width, c, scratch):
    """Do so for one row, whose time is that of reading the weights.

    A vector of them across two cache lines takes as long as two, and NumPy's arrays
    start anywhere: sums are moved so that vectors start where lines do (64 inputs and
    256 units in 12 µs instead of 18, Emerald Rapids). What these read beside the units
    lies in vectors that have some, so in the same pages, and its sums are dropped.
    """
    past = past_vector(b)
    if past == 0 or units < ALONE_COLUMNS * width:
        _add_products(1, a, 0, K, b, U, units, width, c, 0)
    else:
        clear(scratch, width)
        clear(at(scratch, units), width)
        copy(at(scratch, past), c, units)
        _add_products(1, a, 0, K, at(b, -past), U, units + width, width, scratch, 0)
        copy(c, at(scratch, past), units)


_sums = step_sums(candidate=True, per_gate=False)


@routine
def _sums_of_units(words, helper, x, h0, W, weights, biases, s, size, apart):
    """Compute the sums of up to eight rows, some units after the other."""
    B, F, U = x.shape[0], x.shape[2], h0.shape[1]
    width, x_row = vector_lanes(x), x.strides[0] // x.itemsize
    # One thread reads whole rows of the weights.
    each = U
    if words[HELPERS] > 0:
        each = (ALONE_COLUMNS if B == 1 else MOST_COLUMNS) * width
    count = pieces(U, each)
    memory = np.empty(each + width + ALIGNING if B == 1 else 0, x.dtype)
    scratch = aligned(pointer(memory))
    item = next_item(words, helper, -1, count)
    while item < count:
        first = item * each
        units = min(each, U - first)
        for i in range(B):
            for gate in range(4):
                target = at(s, gate * size + i * apart + first)
                start_sums(biases, U, gate, first, units, target)
        for gate in range(3):
            column = gate * U + first
            kernel, recurrent = at(pointer(W), column), at(pointer(weights), column)
            target = at(s, gate * size + first)
            # Of the candidate the recurrent sum stands apart.
            onward = at(s, RECURRENT * size + first) if gate == 2 else target
            if B == 1:
                _add_products_alone(
                    pointer(x), F, kernel, U, units, width, target, scratch
                )
                _add_products_alone(
                    pointer(h0), U, recurrent, U, units, width, onward, scratch
                )
            else:
                _add_products(
                    B, pointer(x), x_row, F, kernel, U, units, width, target, apart
                )
                _add_products(
                    B, pointer(h0), U, U, recurrent, U, units, width, onward, apart
                )
        item = next_item(words, helper, item, count)
    hold(memory)


@routine
def _sums_of_panels(
    words, helper, x, h0, from_zeros, W, weights, biases, s, size, apart
):  # fmt: skip
    """Compute the sums of more rows, one vector of units after the other.

    Its weights are packed into memory that stays in the cache.
    """
    B, F, U = x.shape[0], x.shape[2], h0.shape[1]
    width, x_row = vector_lanes(x), x.strides[0] // x.itemsize
    memory = np.empty(((F + U) * 3 + 7) * width + ALIGNING, x.dtype)
    panel = aligned(pointer(memory))
    bias = at(panel, (F + U) * 3 * width)
    of_zeros = at(bias, 4 * width)
    states = 0 if from_zeros else U
    panels = pieces(U, width)
    p = next_item(words, helper, -1, panels)
    while p < panels:
        first = p * width
        pack_panel(W, weights, states, p, panel)
        if from_zeros:
            recurrent = at(pointer(weights), first)
            sum_zeros(pointer(h0), recurrent, 3 * U, U, U, of_zeros, width)
        for gate in range(4):
            start_sums(biases, U, gate, first, width, at(bias, gate * width))
        i = 0
        while i < B:
            m = tile_rows(B - i, most_rows(x))
            _sums(
                m, 1, at(pointer(x), i * x_row), x_row, 0, F, at(pointer(h0), i * U), U,
                0, states, panel, 0, bias, at(s, i * apart + first), size, apart, 0, -1,
                panel, 0,
            )  # fmt: skip
            i += m
        if from_zeros:
            add_of_zeros(of_zeros, at(s, first), size, apart, B, width)
        p = next_item(words, helper, p, panels)
    hold(memory)


@body
def _forward_sums(words, helper, data):
    x, h0, from_zeros, W, weights, biases, work = data
    B, U = h0.shape
    apart = line(U)
    size = B * apart
    few = _FEW_FROM_ZEROS if from_zeros else _FEW_ROWS
    if few >= B:
        _sums_of_units(
            words, helper, x, h0, W, weights, biases, aligned(pointer(work)), size,
            apart,
        )  # fmt: skip
    else:
        _sums_of_panels(
            words, helper, x, h0, from_zeros, W, weights, biases,
            aligned(pointer(work)), size, apart,
        )  # fmt: skip
    hold(x)
    hold(h0)
    hold(W)
    hold(weights)
    hold(biases)
    hold(work)


@body
def _forward_gates(words, helper, data):
    """Turn the sums into gates and states, some rows after the other."""
    widest_vectors()
    act, rec, h0, y, last, state, saved, work = data
    B, U = h0.shape
    width, apart = vector_lanes(h0), line(U)
    size = B * apart
    count = pieces(B, _GATE_ROWS)
    saved_row = saved.strides[0] // saved.itemsize
    item = next_item(words, helper, -1, count)
    while item < count:
        first, stop = item * _GATE_ROWS, min(B, (item + 1) * _GATE_ROWS)
        s = at(aligned(pointer(work)), first * apart)
        for b in range(first, stop):
            h = at(s, H * size + (b - first) * apart)
            copy(h, at(pointer(h0), b * U), U)
        step_reset_after(act, rec, s, size, (stop - first) * apart, U)
        kept = (
            kept_section(rec, Z, Z_SUM),
            kept_section(rec, R, R_SUM),
            kept_section(act, HH, HH_SUM),
            RECURRENT,
        )
        for b in range(first, stop):
            row = (b - first) * apart
            h = at(s, H * size + row)
            if y.size > 0:
                copy(at(pointer(y), b * (y.strides[0] // y.itemsize)), h, U)
            if last.size > 0:
                copy(at(pointer(last), b * U), h, U)
                copy(at(pointer(state), b * U), h, U)
            target = at(pointer(saved), b * saved_row)
            for v in range(0, U, width):
                for gate in range(4):
                    source = at(s, kept[gate] * size + row + v)
                    copy_vector(at(target, 4 * v + gate * width), source)
        item = next_item(words, helper, item, count)
    hold(h0)
    hold(y)
    hold(last)
    hold(state)
    hold(saved)
    hold(work)


_share_sums, _share_gates = sharing(_forward_sums), sharing(_forward_gates)


def one_step_forward(
    act, rec, x, h0, from_zeros, W, weights, biases, y, last, state, saved, words
):
    """Run one step; arrays as of the other kernels."""
    B, U = h0.shape
    work = np.empty(SECTIONS * B * line(U) + ALIGNING, x.dtype)
    if line(U) > U:
        clear(pointer(work), work.size)
    _share_sums(None, pointer(words), (x, h0, from_zeros, W, weights, biases, work))
    # To post a single item, and to take it back, takes a microsecond.
    nobody = np.zeros(NEXT, np.int64)
    _share_gates(
        None, pointer(nobody if B <= _GATE_ROWS else words),
        (act, rec, h0, y, last, state, saved, work),
    )  # fmt: skip
    hold(nobody)
    hold(work)


def _signature(real, act, rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    return (
        act, rec, array(3, "A"), array(2), types.boolean, array(2), array(2), array(1),
        array(3, "A"), array(2), array(2), array(4), WORD_ARRAY,
    )  # fmt: skip


FORWARD = Kernel(one_step_forward, _signature)

"""Choosing among the compiled tile shapes at run time."""

from __future__ import annotations

import functools
from typing import Any

from numbagru._jit import routine, variant_routine
from numbagru.kernels.register_tiles import (
    MOST_COLUMNS,
    gates_tile,
    product_tile,
    step_tile,
    sum_tile,
)
from numbagru.kernels.simd import ALONE, PAIR, at, copy_some, copy_vector


@routine
def tile_rows(left, most):
    """How many of the `left` rows the next tile takes, `most` at the most."""
    if left >= 8 and most >= 8:
        return 8
    if left >= 4:
        return 4
    if left >= 2:
        return 2
    return 1


@routine
def panels_alone(left):
    """How many of the `left` panels a row alone takes next.

    Pairs where four are too many: 5000 steps of 32 units took 1.11 ms instead of 1.29,
    100 steps of 16 units in float64 18 µs instead of 30.
    """
    if left >= ALONE:
        return ALONE
    return PAIR if left >= PAIR else 1


@routine
def write_vector(target, source, width, count):
    """Copy a vector into a row that may end inside of it."""
    if count >= width:
        copy_vector(target, source)
    else:
        copy_some(target, source, count)


@functools.cache
def step_sums(candidate: bool, per_gate: bool) -> Any:
    """Make `register_tiles.step_tile` for any number of rows up to 8.

    `back` is what `forward_step.way_back` says of a row alone; -1 otherwise.
    """
    t8, t4, t2, t1 = (step_tile(m, 1, candidate, per_gate) for m in (8, 4, 2, 1))
    alone = step_tile(1, ALONE, candidate, per_gate)
    pair = step_tile(1, PAIR, candidate, per_gate)

    @variant_routine(candidate, per_gate)
    def two_by_two(
        back, x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s, s_gate,
        s_row, s_panel, later, later_step,
    ):  # fmt: skip
        p = PAIR if back else 0
        while 0 <= p < ALONE:
            pair(
                x, x_row, x_gate, F, h, h_row, h_gate, U, at(w, p * w_panel), w_panel,
                at(bias, p * 4 * s_panel), at(s, p * s_panel), s_gate, s_row, s_panel,
                later, later_step,
            )  # fmt: skip
            p += -PAIR if back else PAIR

    @variant_routine(candidate, per_gate)
    def sums(
        m, panels, x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s,
        s_gate, s_row, s_panel, back, later, later_step,
    ):  # fmt: skip
        if panels == ALONE and back >= 0:
            two_by_two(
                back, x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s,
                s_gate, s_row, s_panel, later, later_step,
            )  # fmt: skip
        elif panels == ALONE:
            alone(
                x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s, s_gate,
                s_row, s_panel, later, later_step,
            )  # fmt: skip
        elif panels == PAIR:
            pair(
                x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s, s_gate,
                s_row, s_panel, later, later_step,
            )  # fmt: skip
        elif m == 8:
            t8(
                x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s, s_gate,
                s_row, s_panel, later, later_step,
            )  # fmt: skip
        elif m == 4:
            t4(
                x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s, s_gate,
                s_row, s_panel, later, later_step,
            )  # fmt: skip
        elif m == 2:
            t2(
                x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s, s_gate,
                s_row, s_panel, later, later_step,
            )  # fmt: skip
        else:
            t1(
                x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s, s_gate,
                s_row, s_panel, later, later_step,
            )  # fmt: skip

    return sums


def _product(columns):
    t8, t4, t2, t1 = (product_tile(rows, columns) for rows in (8, 4, 2, 1))

    @variant_routine(columns)
    def product(
        m, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back, onward,
        later, later_step,
    ):  # fmt: skip
        if m == 8:
            t8(
                a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back, onward,
                later, later_step,
            )  # fmt: skip
        elif m == 4:
            t4(
                a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back, onward,
                later, later_step,
            )  # fmt: skip
        elif m == 2:
            t2(
                a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back, onward,
                later, later_step,
            )  # fmt: skip
        else:
            t1(
                a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back, onward,
                later, later_step,
            )  # fmt: skip

    return product


# ``c += a b`` for m rows and three vectors; without `columns` otherwise as below.
continue_three, _onward1 = _product(MOST_COLUMNS), _product(1)


@routine
def columns_at_once(left):
    """How many of the `left` vectors `continue_sums` takes next."""
    return MOST_COLUMNS if left >= MOST_COLUMNS else 1


@routine
def continue_sums(
    m, columns, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back, onward,
    later, later_step,
):  # fmt: skip
    """``c += a b`` for m rows and 3 or 1 vectors, as `product_tile`."""
    if columns == MOST_COLUMNS:
        continue_three(
            m, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back, onward,
            later, later_step,
        )  # fmt: skip
    else:
        _onward1(
            m, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back, onward,
            later, later_step,
        )  # fmt: skip


# One row takes so many vectors at a time: with three accumulators each multiply-add
# would wait for the one before.
ALONE_COLUMNS = 8
_alone = product_tile(1, ALONE_COLUMNS)
_alone_across = product_tile(1, ALONE_COLUMNS + 1)


@routine
def continue_sums_alone(a, a_k, b, b_k, b_column, K, c, c_column, onward):
    """Do the same for one row and `ALONE_COLUMNS` vectors."""
    _alone(a, 0, a_k, b, b_k, b_column, K, c, 0, c_column, 0, onward, c, 0)


@routine
def continue_sums_across(a, b, b_k, K, c, width):
    """And for one vector more."""
    _alone_across(a, 0, 1, b, b_k, width, K, c, 0, width, 0, True, c, 0)


_GATES = 4
_gates = product_tile(1, _GATES)


@routine
def continue_sums_of_gates(a, a_k, b, b_k, b_column, K, c, c_column, onward):
    """Do the same for one row and four vectors: sums of four gates side by side."""
    _gates(a, 0, a_k, b, b_k, b_column, K, c, 0, c_column, 0, onward, c, 0)


def _sums(columns, halves=False):
    t8, t4, t2, t1 = (sum_tile(rows, columns, halves) for rows in (8, 4, 2, 1))

    @variant_routine(columns, halves)
    def sums(
        m, a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row, c_column,
        onward, later,
    ):  # fmt: skip
        if m == 8:
            t8(
                a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row,
                c_column, onward, later,
            )  # fmt: skip
        elif m == 4:
            t4(
                a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row,
                c_column, onward, later,
            )  # fmt: skip
        elif m == 2:
            t2(
                a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row,
                c_column, onward, later,
            )  # fmt: skip
        else:
            t1(
                a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row,
                c_column, onward, later,
            )  # fmt: skip

    return sums


_sums3, _sums2, _sums1 = _sums(3), _sums(2), _sums(1)
_sums_of_eight, _sums_of_four = sum_tile(1, 8), sum_tile(1, 4)
# Half a vector for each of m rows, otherwise as below.
add_sums_of_half = _sums(1, True)


@routine
def add_sums(
    m, columns, a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row,
    c_column, onward, later,
):  # fmt: skip
    """``c += a b`` for m rows and up to 3 vectors, or a row and 4 or 8: `sum_tile`."""
    if columns == 8:
        _sums_of_eight(
            a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row, c_column,
            onward, later,
        )  # fmt: skip
    elif columns == 4:
        _sums_of_four(
            a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row, c_column,
            onward, later,
        )  # fmt: skip
    elif columns == 3:
        _sums3(
            m, a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row, c_column,
            onward, later,
        )  # fmt: skip
    elif columns == 2:
        _sums2(
            m, a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row, c_column,
            onward, later,
        )  # fmt: skip
    else:
        _sums1(
            m, a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row, c_column,
            onward, later,
        )  # fmt: skip


@functools.cache
def add_gates(gates: int) -> Any:
    """Make `add_sums` of a row alone with so many parts, the gates, side by side."""
    alone, pair, single = (gates_tile(gates, panels) for panels in (ALONE, PAIR, 1))

    @variant_routine(gates)
    def add(panels, a, a_part, b, b_panel, b_part, K, c):
        if panels == ALONE:
            alone(a, a_part, b, b_panel, b_part, K, c)
        elif panels == PAIR:
            pair(a, a_part, b, b_panel, b_part, K, c)
        else:
            single(a, a_part, b, b_panel, b_part, K, c)

    return add


add_two_gates, add_three_gates = add_gates(2), add_gates(3)


@routine
def sums_at_once(n, left):
    """How many of the `left` vectors `add_sums` takes next for tiles of n rows.

    Of a row alone as many as there are: with three accumulators each multiply-add would
    wait for the one before (100 steps of 128 units went back in 0.31 ms instead of
    0.34, of 256 in 0.80 instead of 0.84, Emerald Rapids).
    """
    if n == 1 and left >= 4:
        return 8 if left >= 8 else 4
    return 3 if left >= 3 and left != 4 else min(left, 2)

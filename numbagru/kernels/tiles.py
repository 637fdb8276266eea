"""Choosing among the compiled tile shapes at run time."""

from __future__ import annotations

import functools
from typing import Any

from numbagru._jit import routine, variant_routine
from numbagru.kernels.simd import ALONE, copy_vector, product_tile, step_tile


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
def write_vector(target, source, width, count):
    """Copy a vector into a row that may end inside of it."""
    if count >= width:
        copy_vector(target, source)
    else:
        for j in range(count):
            target[j] = source[j]


@functools.cache
def step_sums(candidate: bool, per_gate: bool) -> Any:
    """Make `simd.step_tile` for any number of rows up to 8."""
    t8, t4, t2, t1 = (step_tile(m, 1, candidate, per_gate) for m in (8, 4, 2, 1))
    alone = step_tile(1, ALONE, candidate, per_gate)

    @variant_routine(candidate, per_gate)
    def sums(
        m, panels, x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s
    ):  # fmt: skip
        if panels == ALONE:
            alone(x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s)
        elif m == 8:
            t8(x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s)
        elif m == 4:
            t4(x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s)
        elif m == 2:
            t2(x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s)
        else:
            t1(x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s)

    return sums


def _product(columns):
    t8, t4, t2, t1 = (product_tile(rows, columns) for rows in (8, 4, 2, 1))

    @variant_routine(columns)
    def product(m, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column):
        if m == 8:
            t8(a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column)
        elif m == 4:
            t4(a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column)
        elif m == 2:
            t2(a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column)
        else:
            t1(a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column)

    return product


_product3 = _product(3)
_product1 = _product(1)


@routine
def add_product(m, columns, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column):
    """``c += a b`` for m rows and 3 or 1 vectors, as `simd.product_tile`."""
    if columns == 3:
        _product3(m, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column)
    else:
        _product1(m, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column)

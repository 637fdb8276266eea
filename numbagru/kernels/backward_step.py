"""The part of a step back in time that goes unit by unit, on tiles."""

from __future__ import annotations

import numpy as np

from numbagru._jit import section, variant_routine
from numbagru.gates import (
    D_BLOCK,
    D_HH,
    D_R,
    D_RECURRENT,
    D_Z,
    RECURRENT,
    H,
    d_gates_reset_before,
    d_next_state,
    d_step_reset_after,
    line,
)
from numbagru.kernels.backward_arrays import GROUP, rounded_up
from numbagru.kernels.backward_products import drop_products, multiply_recurrent
from numbagru.kernels.backward_tile import (
    clear_masked,
    emit_factor,
    emit_states_per_gate,
    emit_sums,
    keep_dh,
    load_gates,
    load_states,
)
from numbagru.kernels.simd import at, copy_vector, most_rows, tile_size, vector_lanes
from numbagru.kernels.team import ask_for_shared, meet, share_of, team_size
from numbagru.kernels.tiles import tile_rows


def _rows_and_panels(whole_rows):
    """Make the choice of what a thread goes through, and how much of it at once.

    Tiles of some rows and one panel, or single rows with all their panels.
    """

    @variant_routine(whole_rows)
    def part(own, n, P):
        if whole_rows:
            first, stop = share_of(own, n, 1)
            return first, stop, np.intp(0), P
        first, stop = share_of(own, P, 1)
        return np.intp(0), n, first, stop

    @variant_routine(whole_rows)
    def tile(a, left):
        if whole_rows:
            return np.intp(1), rounded_up(a.U, vector_lanes(a.x)) // vector_lanes(a.x)
        return tile_rows(left, most_rows(a.x)), np.intp(1)

    return part, tile


def make_step_reset_after(per_gate, whole_rows):
    """Make the part of a step before all products.

    With `whole_rows`, for activations that take all units of a row, row by row.
    """
    part, tile = _rows_and_panels(whole_rows)
    emit_all = emit_sums(0, 4)

    @section
    def step(a, w, act, rec, d_act, d_rec, words, own, e, b, n, t, first, capacity):
        width = vector_lanes(a.x)
        size = line(a.U) if whole_rows else tile_size(a.x)
        F, U = a.F, a.U
        if whole_rows:
            meet(words, own)
        i, stop, p_first, p_stop = part(own, n, w.V // width)
        group = (3 if per_gate else 1) * (rounded_up(F, GROUP) // GROUP)
        while i < stop:
            m, panels = tile(a, stop - i)
            count = rounded_up(m * panels * width, D_BLOCK)
            for p in range(p_first, p_stop, panels):
                for q in range(panels):
                    s = at(w.s, q * width)
                    load_gates(a, s, size, b, i, m, p + q, t)
                    load_states(a, w, s, size, b, i, m, p + q, t)
                d_step_reset_after(act, rec, d_act, d_rec, w.s, size, count, U)
                for q in range(panels):
                    s = at(w.s, q * width)
                    if a.masked:
                        sections = D_HH, D_Z, D_R, D_RECURRENT, H
                        clear_masked(a, s, size, b, i, m, t, sections)
                    emit_all(a, w, s, size, e, i, m, p + q, first, capacity)
                    keep_dh(a, w, s, size, b, i, m, p + q, t)
                    if per_gate:
                        emit_states_per_gate(
                            a, w, s, size, i, m, p + q, group, 3, first, capacity
                        )
                    else:
                        emit_factor(
                            a, w, s, size, H, i, m, p + q, group, first, capacity
                        )
            i += m

    return step


def make_step_reset_before(per_gate, whole_rows):
    """Make the part of a step before the products with the weights of z and r."""
    part, tile = _rows_and_panels(whole_rows)
    emit_candidate, emit_gates = emit_sums(0, 1), emit_sums(1, 3)

    @section
    def step(a, w, act, rec, d_act, d_rec, words, own, e, b, n, t, first, capacity):
        width = vector_lanes(a.x)
        size = line(a.U) if whole_rows else tile_size(a.x)
        F, U, V = a.F, a.U, w.V
        if whole_rows:
            meet(words, own)
        start, stop, p_first, p_stop = part(own, n, V // width)
        group = (3 if per_gate else 1) * (rounded_up(F, GROUP) // GROUP)
        inner_group = group + (2 if per_gate else 1) * (rounded_up(V, GROUP) // GROUP)
        i = start
        while i < stop:
            m, panels = tile(a, stop - i)
            count = rounded_up(m * panels * width, D_BLOCK)
            for p in range(p_first, p_stop, panels):
                for q in range(panels):
                    s = at(w.s, q * width)
                    load_gates(a, s, size, b, i, m, p + q, t)
                    load_states(a, w, s, size, b, i, m, p + q, t)
                d_next_state(act, rec, d_act, w.s, size, count, U)
                for q in range(panels):
                    s = at(w.s, q * width)
                    if a.masked:
                        clear_masked(a, s, size, b, i, m, t, (D_HH, RECURRENT))
                    emit_candidate(a, w, s, size, e, i, m, p + q, first, capacity)
                    emit_factor(
                        a, w, s, size, RECURRENT, i, m, p + q, inner_group, first,
                        capacity,
                    )  # fmt: skip
            i += m
        meet(words, own)
        if team_size(own) > 1:
            ask_for_shared(e, n * w.e_row)
        multiply_recurrent(a, w, own, n, e, 2 * U, U)
        if per_gate:
            p, p_end = share_of(own, V // width, 1)
            drop_products(w, 2, n, p * width, p_end * width)
        if whole_rows:
            meet(words, own)
        i = start
        while i < stop:
            m, panels = tile(a, stop - i)
            count = rounded_up(m * panels * width, D_BLOCK)
            for p in range(p_first, p_stop, panels):
                for q in range(panels):
                    s = at(w.s, q * width)
                    load_gates(a, s, size, b, i, m, p + q, t)
                    load_states(a, w, s, size, b, i, m, p + q, t)
                d_next_state(act, rec, d_act, w.s, size, count, U)
                for q in range(panels):
                    for r in range(m):
                        copy_vector(
                            at(w.s, D_RECURRENT * size + (q * m + r) * width),
                            at(w.inner, (i + r) * V + (p + q) * width),
                        )
                d_gates_reset_before(rec, d_rec, w.s, size, count, U)
                for q in range(panels):
                    s = at(w.s, q * width)
                    if a.masked:
                        clear_masked(a, s, size, b, i, m, t, (D_Z, D_R, H))
                    emit_gates(a, w, s, size, e, i, m, p + q, first, capacity)
                    keep_dh(a, w, s, size, b, i, m, p + q, t)
                    if per_gate:
                        emit_states_per_gate(
                            a, w, s, size, i, m, p + q, group, 2, first, capacity
                        )
                    else:
                        emit_factor(
                            a, w, s, size, H, i, m, p + q, group, first, capacity
                        )
            i += m

    return step

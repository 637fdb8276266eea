"""One step of a block of rows where an activation takes all units of a row at once.

The sums of a tile of rows go into a scratch of whole rows, panel by panel; then gates
and states are computed row by row. Threads that work together share the panels of the
products and the rows of the rest.
"""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.gates import (
    HH,
    RECURRENT,
    SECTIONS,
    gates_reset_before,
    line,
    next_state,
    step_reset_after,
)
from numbagru.kernels.forward_step import (
    any_active,
    drop_reset_states,
    finish,
    load_states,
    save,
)
from numbagru.kernels.simd import at, copy, most_rows, vector_lanes
from numbagru.kernels.team import meet, share_of
from numbagru.kernels.tiles import continue_sums, panels_alone, step_sums, tile_rows


@routine
def whole_rows_size(a):
    """Numbers of the scratch of a tile of rows."""
    return SECTIONS * most_rows(a.x) * line(a.U)


def make_step_whole_rows(reset_after, per_gate):
    """Make a step of a block of n rows; parameters as of the other steps."""
    sums = step_sums(candidate=reset_after, per_gate=per_gate)

    @section
    def step(
        a, act, rec, words, own, b, n, t, x, x_row, x_gate, F, starts, hs, h_gate,
        drops, scratch, inner, h, h_new, active, seen, zeros,
    ):  # fmt: skip
        width, most = vector_lanes(a.x), most_rows(a.x)
        U = a.U
        P = (U + width - 1) // width
        V = P * width
        w_panel = (a.F + U) * 3 * width
        apart = line(U)
        size = most * apart
        first, stop = share_of(own, P, 1)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            computed = any_active(a, at(active, i), m)
            p = first
            while computed and p < stop:
                panels = panels_alone(stop - p) if m == 1 else 1
                w = at(a.panels, p * w_panel + (a.F - F) * 3 * width)
                sums(
                    m, panels, at(x, i * x_row), x_row, x_gate, F, at(hs, i * V), V,
                    h_gate, U, w, w_panel, at(starts, p * 4 * width),
                    at(scratch, p * width), size, apart, width, -1, w, 0,
                )  # fmt: skip
                p += panels
            meet(words, own)
            row, row_stop = share_of(own, m, 1)
            row, rows = i + row, row_stop - row
            s = at(scratch, (row - i) * apart)
            count = rows * apart
            for r in range(rows):
                old = at(h, (row + r) * V)
                load_states(at(s, r * apart), size, 1, P, old, V, width)
            if reset_after:
                step_reset_after(act, rec, s, size, count, U)
            else:
                gates_reset_before(rec, s, size, count, U)
                for r in range(rows):
                    reset = at(s, r * apart)
                    if per_gate:
                        drop = at(drops, 2 * h_gate + (row + r) * V)
                        drop_reset_states(reset, size, 1, U, drop, V)
                    copy(at(inner, (row + r) * V), at(reset, RECURRENT * size), U)
                meet(words, own)
                p = first
                while computed and p < stop:
                    panels = 3 if p + 3 <= stop else 1
                    w = at(a.panels, p * w_panel + (3 * a.F + 2) * width)
                    continue_sums(
                        m, panels, at(inner, i * V), V, 1, w, 3 * width, w_panel, U,
                        at(scratch, HH * size + p * width), apart, width, 0, True,
                        w, 0,
                    )  # fmt: skip
                    p += panels
                meet(words, own)
                next_state(act, s, size, count, U)
            new = at(h_new, row * V)
            finish(
                a, own, s, size, apart, width, rows, P, 0, b + row, t, at(h, row * V),
                new, at(active, row), at(seen, row), zeros,
            )  # fmt: skip
            if a.saving:
                save(
                    a, act, rec, s, size, apart, width, rows, P, 0, b + row, t, new,
                    at(active, row),
                )  # fmt: skip
            meet(words, own)
            i += m

    return step

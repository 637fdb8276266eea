"""One step of a block of rows where an activation takes all units of a row at once.

The sums of a tile of rows go into a scratch of whole rows, panel by panel. Threads that
work together share the panels: before the activation, each gives the others its part of
the sums and fetches theirs, and applies it to whole rows. (With one thread for all
gates of a row, one row of 256 units took 1.43 times as long as with the default
activation, and takes 1.24 times, Emerald Rapids.)
"""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.activations.compiled import rowwise
from numbagru.gates import (
    D_BLOCK,
    HH,
    RECURRENT,
    SECTIONS,
    R,
    Z,
    blend_in,
    line,
    reset_states,
    sum_candidates,
    whole_rows_of_candidates,
    whole_rows_of_gates,
)
from numbagru.kernels.forward_tile import (
    any_active,
    drop_reset_states,
    finish,
    load_states,
    save,
)
from numbagru.kernels.simd import at, copy, most_rows, vector_lanes
from numbagru.kernels.team import meet, share_of, team_size
from numbagru.kernels.tiles import continue_sums, panels_alone, step_sums, tile_rows


@routine
def whole_rows_size(a):
    """Numbers of the scratch of a tile of rows; blocks may reach beyond the last."""
    return SECTIONS * most_rows(a.x) * line(a.U) + D_BLOCK


@routine
def exchange_size(a, n):
    """Numbers that threads give each other in a step of n rows.

    Three sections of whole rows, and r * h.
    """
    return n * (4 * line(a.U))


@routine
def _give(s, m, apart, common, start, stop):
    for r in range(m):
        copy(at(common, r * apart + start), at(s, r * apart + start), stop - start)


@routine
def _fetch(s, m, apart, common, start, stop, end):
    """Fetch what is before `start` and from `stop` to the end."""
    for r in range(m):
        copy(at(s, r * apart), at(common, r * apart), start)
        rest = r * apart + stop
        copy(at(s, rest), at(common, rest), end - stop)


def make_step_whole_rows(reset_after, per_gate):
    """Make a step of a block of n rows; parameters as of the other steps.

    But for `inner`, which has `exchange_size` numbers.
    """
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
        s, given = scratch, at(inner, n * apart)
        first, stop = share_of(own, P, 1)
        start, end = first * width, stop * width
        alone = team_size(own) == 1
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            # All of a tile's rows in one go, or of each row this thread's part.
            rows, count = (1, m * apart) if alone else (m, end - start)
            computed = any_active(a, at(active, i), m)
            p = first
            while computed and p < stop:
                panels = panels_alone(stop - p) if m == 1 else 1
                w = at(a.panels, p * w_panel + (a.F - F) * 3 * width)
                sums(
                    m, panels, at(x, i * x_row), x_row, x_gate, F, at(hs, i * V), V,
                    h_gate, U, w, w_panel, at(starts, p * 4 * width), at(s, p * width),
                    size, apart, width, -1, w, 0,
                )  # fmt: skip
                p += panels
            for r in range(m):
                old = at(h, (i + r) * V + start)
                load_states(
                    at(s, r * apart + start), size, 1, stop - first, old, V, width
                )
            if rowwise(rec) and computed:
                if not alone:
                    z, r = at(given, i * apart), at(given, (n + i) * apart)
                    _give(at(s, Z * size), m, apart, z, start, end)
                    _give(at(s, R * size), m, apart, r, start, end)
                    meet(words, own)
                    _fetch(at(s, Z * size), m, apart, z, start, end, V)
                    _fetch(at(s, R * size), m, apart, r, start, end, V)
                whole_rows_of_gates(rec, s, size, m * apart, U)
            for r in range(rows):
                part = at(s, r * apart + start)
                if reset_after:
                    sum_candidates(rec, part, size, count)
                else:
                    reset_states(rec, part, size, count)
            if not reset_after:
                for r in range(m):
                    reset = at(s, r * apart + start)
                    place = (i + r) * V + start
                    if per_gate:
                        drop = at(drops, 2 * h_gate + place)
                        drop_reset_states(reset, size, 1, end - start, drop, V)
                    copy(at(inner, place), at(reset, RECURRENT * size), end - start)
                meet(words, own)
                p = first
                while computed and p < stop:
                    panels = 3 if p + 3 <= stop else 1
                    w = at(a.panels, p * w_panel + (3 * a.F + 2) * width)
                    continue_sums(
                        m, panels, at(inner, i * V), V, 1, w, 3 * width, w_panel, U,
                        at(s, HH * size + p * width), apart, width, 0, True, w, 0,
                    )  # fmt: skip
                    p += panels
            if rowwise(act) and computed:
                if not alone:
                    hh = at(given, (2 * n + i) * apart)
                    _give(at(s, HH * size), m, apart, hh, start, end)
                    meet(words, own)
                    _fetch(at(s, HH * size), m, apart, hh, start, end, V)
                whole_rows_of_candidates(act, s, size, m * apart, U)
            for r in range(rows):
                blend_in(act, at(s, r * apart + start), size, count)
            old, new = at(h, i * V + start), at(h_new, i * V + start)
            finish(
                a, own, at(s, start), size, apart, width, m, stop - first, first, b + i,
                t, old, new, at(active, i), at(seen, i), zeros,
            )  # fmt: skip
            if a.saving:
                save(
                    a, act, rec, at(s, start), size, apart, width, m, stop - first,
                    first, b + i, t, new, at(active, i),
                )  # fmt: skip
            i += m

    return step

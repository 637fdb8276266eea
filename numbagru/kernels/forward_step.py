"""One step of a block of rows on register tiles."""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.gates import (
    BLOCK,
    HH,
    RECURRENT,
    SECTIONS,
    gates_reset_before,
    next_state,
    step_reset_after,
)
from numbagru.kernels.forward_tile import (
    add_of_zeros,
    any_active,
    drop_reset_states,
    finish,
    load_states,
    save,
)
from numbagru.kernels.simd import (
    ALONE,
    at,
    copy_vector,
    line_numbers,
    most_rows,
    tile_size,
    vector_bytes,
    vector_lanes,
)
from numbagru.kernels.team import ask_for_shared, meet, share_of, team_size
from numbagru.kernels.tiles import (
    ALONE_COLUMNS,
    continue_sums,
    continue_sums_alone,
    panels_alone,
    step_sums,
    tile_rows,
)


@routine
def whole_blocks(n):
    """Round up to the blocks of gates.py."""
    return (n + BLOCK - 1) // BLOCK * BLOCK


@routine
def tiles_of(n, most):
    """How many tiles `tile_rows` makes of n rows, at the most."""
    return n // most + 3


# Of a first-level cache, which has 32 KiB or more, what weights have.
_NEAR_BYTES = 28 * 1024


@routine
def way_back(x, panels, rows, t):
    """Which way a row alone goes through its panels: 1 back, 0 forth, -1 all at once.

    In pairs where only some of the panels, of so many rows of weights, fit into the
    first-level cache: those that come last in one step are the first of the next, and
    still there. 100 steps of 64 units took 57 µs instead of 64, of 128 units on two
    threads 141 instead of 150 (Zen 4, and there as fast one by one; on Zen 5, 64 units
    take 28.5 µs in pairs, 32.3 one by one).
    """
    size = rows * 3 * vector_bytes(x)
    if panels != ALONE or ALONE * size <= _NEAR_BYTES or size > _NEAR_BYTES:
        return -1
    return t % 2


def make_step_reset_after(per_gate, saves):
    """Make a step of a block of n rows: tile by tile, panel by panel.

    Sums begin with `starts`, laid out like the bias, and the last F inputs.
    """
    sums = step_sums(candidate=True, per_gate=per_gate)

    @section
    def step(
        a, act, rec, words, own, b, n, t, x, x_row, x_gate, F, starts, hs, h_gate,
        drops, scratch, inner, h, h_new, active, seen, zeros,
    ):  # fmt: skip
        width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
        U = a.U
        P = (U + width - 1) // width
        V = P * width
        w_panel = (a.F + U) * 3 * width
        s = scratch
        p, stop = share_of(own, P, ALONE if n == 1 and P > ALONE else 1)
        back = way_back(a.x, stop - p, F + U, t)
        from_zeros = t == 0 and not a.has_h0
        states = 0 if from_zeros else U
        first_panel = p
        # While some rows are multiplied with a panel, as much of the next is asked for.
        later_step = min(line_numbers(a.x), 3 * width * most // n)
        while p < stop:
            panels = panels_alone(stop - p) if n == 1 else 1
            w = at(a.panels, p * w_panel + (a.F - F) * 3 * width)
            later = at(a.panels, (p + 1 if p + 1 < stop else first_panel) * w_panel)
            bias = at(starts, p * 4 * width)
            i = 0
            while i < n:
                m = tile_rows(n - i, most)
                count = whole_blocks(m * panels * width)
                rows, rows_new = at(h, i * V), at(h_new, i * V)
                if any_active(a, at(active, i), m):
                    load_states(s, size, m, panels, at(rows, p * width), V, width)
                    sums(
                        m, panels, at(x, i * x_row), x_row, x_gate, F, at(hs, i * V), V,
                        h_gate, states, w, w_panel, bias, s, size, width, width, back,
                        at(later, i // most * later_step * (F + states)), later_step,
                    )  # fmt: skip
                    for q in range(panels if from_zeros else 0):
                        add_of_zeros(
                            at(a.of_zeros, (p + q) * 3 * width), at(s, q * m * width),
                            size, width, m, width,
                        )  # fmt: skip
                    step_reset_after(act, rec, s, size, count, U)
                new = at(rows_new, p * width)
                finish(
                    a, own, s, size, width, m * width, m, panels, p, b + i, t,
                    at(rows, p * width), new, at(active, i), at(seen, i), zeros,
                )  # fmt: skip
                if saves and a.saving:
                    save(
                        a, act, rec, s, size, width, m * width, m, panels, p, b + i, t,
                        new, at(active, i),
                    )  # fmt: skip
                i += m
            p += panels

    return step


def make_step_reset_before(per_gate, saves):
    """Make a step of a block of n rows: all gates, then the candidates of r * h."""
    sums = step_sums(candidate=False, per_gate=per_gate)

    @section
    def step(
        a, act, rec, words, own, b, n, t, x, x_row, x_gate, F, starts, hs, h_gate,
        drops, scratch, inner, h, h_new, active, seen, zeros,
    ):  # fmt: skip
        width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
        U = a.U
        P = (U + width - 1) // width
        V = P * width
        w_panel = (a.F + U) * 3 * width
        panel_scratch = tiles_of(n, most) * size * SECTIONS
        first_panel, stop = share_of(own, P, ALONE if n == 1 and P > ALONE else 1)
        p = first_panel
        later_step = min(line_numbers(a.x), 3 * width * most // n)
        while p < stop:
            panels = panels_alone(stop - p) if n == 1 else 1
            w = at(a.panels, p * w_panel + (a.F - F) * 3 * width)
            later = at(a.panels, (p + 1 if p + 1 < stop else first_panel) * w_panel)
            bias = at(starts, p * 4 * width)
            start = p * panel_scratch
            i = 0
            while i < n:
                m = tile_rows(n - i, most)
                count = whole_blocks(m * width)
                if any_active(a, at(active, i), m):
                    sums(
                        m, panels, at(x, i * x_row), x_row, x_gate, F, at(hs, i * V), V,
                        h_gate, U, w, w_panel, bias, at(scratch, start), size, width,
                        panel_scratch, -1,
                        at(later, i // most * later_step * (F + U)), later_step,
                    )  # fmt: skip
                    for q in range(panels):
                        s = at(scratch, start + q * panel_scratch)
                        place = i * V + (p + q) * width
                        load_states(s, size, m, 1, at(h, place), V, width)
                        gates_reset_before(rec, s, size, count, U)
                        if per_gate:
                            drop = at(drops, 2 * h_gate + place)
                            drop_reset_states(s, size, m, width, drop, V)
                        for r in range(m):
                            reset = at(s, RECURRENT * size + r * width)
                            copy_vector(at(inner, place + r * V), reset)
                start += size * SECTIONS
                i += m
            p += panels
        meet(words, own)
        if team_size(own) > 1:
            ask_for_shared(inner, n * V)
        p = first_panel
        while p < stop:
            panels = 3 if p + 3 <= stop else 1
            if n == 1 and p + ALONE_COLUMNS <= stop:
                panels = ALONE_COLUMNS
            w = at(a.panels, p * w_panel + (3 * a.F + 2) * width)
            first = p * panel_scratch
            i = 0
            while i < n:
                m = tile_rows(n - i, most)
                count = whole_blocks(m * width)
                rows, rows_new = at(h, i * V), at(h_new, i * V)
                start = first
                computed = any_active(a, at(active, i), m)
                hh = at(scratch, start + HH * size)
                if computed and panels == ALONE_COLUMNS:
                    continue_sums_alone(
                        inner, 1, w, 3 * width, w_panel, U, hh, panel_scratch, True
                    )
                elif computed:
                    continue_sums(
                        m, panels, at(inner, i * V), V, 1, w, 3 * width, w_panel, U, hh,
                        width, panel_scratch, 0, True, w, 0,
                    )  # fmt: skip
                for q in range(p, p + panels):
                    tile = at(scratch, start)
                    if computed:
                        next_state(act, tile, size, count, U)
                    new = at(rows_new, q * width)
                    finish(
                        a, own, tile, size, width, m * width, m, 1, q, b + i, t,
                        at(rows, q * width), new, at(active, i), at(seen, i), zeros,
                    )  # fmt: skip
                    if saves and a.saving:
                        save(
                            a, act, rec, tile, size, width, m * width, m, 1, q, b + i,
                            t, new, at(active, i),
                        )  # fmt: skip
                    start += panel_scratch
                first += size * SECTIONS
                i += m
            p += panels

    return step

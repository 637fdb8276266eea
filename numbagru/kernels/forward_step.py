"""One step of a block of rows on register tiles."""

from __future__ import annotations

import numpy as np

from numbagru._jit import routine, section
from numbagru.gates import (
    BLOCK,
    HH,
    HH_SUM,
    R_SUM,
    RECURRENT,
    SECTIONS,
    Z_SUM,
    H,
    R,
    Z,
    gates_reset_before,
    kept_section,
    next_state,
    step_reset_after,
)
from numbagru.kernels.forward_arrays import (
    row_of,
)
from numbagru.kernels.simd import (
    ALONE,
    ask_for,
    at,
    compact,
    copy_vector,
    line_numbers,
    most_rows,
    tile_size,
    vector_bytes,
    vector_lanes,
)
from numbagru.kernels.team import (
    meet,
    share_of,
    team_size,
)
from numbagru.kernels.tiles import (
    ALONE_COLUMNS,
    continue_sums,
    continue_sums_alone,
    panels_alone,
    step_sums,
    tile_rows,
    write_vector,
)


@routine
def whole_blocks(n):
    """Round up to the blocks of gates.py."""
    return (n + BLOCK - 1) // BLOCK * BLOCK


@routine
def tiles_of(n, most):
    """How many tiles `tile_rows` makes of n rows, at the most."""
    return n // most + 3


@routine
def any_active(a, active, m):
    """Whether the step counts for one of m rows."""
    result = not a.masked
    if a.masked:
        for i in range(m):
            result |= active[i] != 0
    return result


@routine
def load_states(s, size, m, panels, h, V, width):
    """Bring the old states of a tile into the scratch."""
    for q in range(panels):
        for r in range(m):
            section = H * size + (q * m + r) * width
            copy_vector(at(s, section), at(h, r * V + q * width))


@routine
def add_of_zeros(of_zeros, s, size, s_row, m, width):
    """Finish the sums of a vector of units whose old states are zero.

    For m rows; the addends are from `panels.sum_zeros`.
    """
    compact()
    for gate in range(3):
        section = gate if gate < 2 else RECURRENT
        more = at(of_zeros, gate * width)
        for r in range(m):
            target = at(s, section * size + r * s_row)
            for j in range(width):
                target[j] += more[j]


@routine
def _steps_ahead(V, width):
    """How many steps before they are written lines of memory are asked for.

    Steps of one vector of units are over too soon: 8192x50x4x16 saved in 13.5 ms with
    one step and 9.9 with two, 8192x100x1x16 in 27.7 and 23.6; but 1024x100x4x32 in 6.2
    and 6.5, 2048x50x16x64 in 20.0 and 20.5 (Zen 4).
    """
    return 2 if width == V else 1


@routine
def _give(
    a, target, target_row, ahead, m, panels, b, h_new, V, units, active, seen, zeros
):
    """Write outputs of a tile's rows, and ask for lines so far `ahead`."""
    compact()
    width = vector_lanes(a.x)
    for q in range(panels):
        for i in range(m):
            value = at(h_new, i * V + q * width)
            if a.masked and active[i] == 0 and (a.zero_output or seen[i] == 0):
                value = zeros
            place = at(target, row_of(a, b + i) * target_row + q * width)
            write_vector(place, value, width, units - q * width)
            if ahead != 0:
                ask_for(at(place, ahead))


@routine
def gives_in_turn(a, own):
    """Whether one thread of a team writes a step's outputs: what all have computed.

    With the units shared, lines of the cache in which one thread's end and another's
    begin went back and forth each step. Not under a mask: what is seen by the end of a
    step others may change while this one writes.
    """
    return team_size(own) > 1 and not a.masked


@routine
def give_outputs(a, n, b, t, h, V, active, seen, zeros):
    """Write the outputs of a step, all units of n rows."""
    y, width = at(a.y, t * a.y_step), vector_lanes(a.x)
    panels, ahead = V // width, _steps_ahead(V, width) * a.y_step
    _give(a, y, a.y_row, ahead, n, panels, b, h, V, a.U, active, seen, zeros)


@routine
def finish(
    a, own, s, size, s_row, s_panel, m, panels, first_panel, b, t, h, h_new, active,
    seen, zeros,
):  # fmt: skip
    """Write what a tile computed: next states, and outputs but of a team.

    s has sections `size` apart, in them rows s_row and panels s_panel apart. h, h_new,
    active and seen point at the tile's rows; seen is 0 before the first output.
    """
    compact()
    width = vector_lanes(a.x)
    T, U = a.T, a.U
    V = (U + width - 1) // width * width
    first, steps = first_panel * width, _steps_ahead(V, width)
    for q in range(panels):
        for i in range(m):
            place = i * V + q * width
            value = at(s, H * size + q * s_panel + i * s_row)
            if a.masked and active[i] == 0:
                value = at(h, place)
            copy_vector(at(h_new, place), value)
    if a.wanted and not gives_in_turn(a, own):
        # Not by `give_outputs`, which LLVM would not inline here: 8192 rows of one step
        # took 1.03 times as long.
        y, ahead = at(a.y, t * a.y_step + first), steps * a.y_step
        _give(a, y, a.y_row, ahead, m, panels, b, h_new, V, U - first, active, seen,
              zeros)  # fmt: skip
    if a.ending and t == T - 1:
        last, here = at(a.last, first), np.intp(0)
        _give(a, last, U, here, m, panels, b, h_new, V, U - first, active, seen, zeros)


@routine
def save(
    a, act, rec, s, size, s_row, s_panel, m, panels, first_panel, b, t, h_new, active
):  # fmt: skip
    """Keep what the backward pass takes of a tile: gates, and states that go on."""
    compact()
    width = vector_lanes(a.x)
    V = (a.U + width - 1) // width * width
    first, steps = first_panel * width, _steps_ahead(V, width)
    z, r = kept_section(rec, Z, Z_SUM), kept_section(rec, R, R_SUM)
    hh = kept_section(act, HH, HH_SUM)
    if t + 1 < a.T:
        for q in range(panels):
            for i in range(m):
                state = at(a.states, ((b + i) * a.T + t) * V + first + q * width)
                copy_vector(state, at(h_new, i * V + q * width))
                ask_for(at(state, steps * V))
    for q in range(panels):
        for i in range(m):
            if not a.masked or active[i] != 0:
                lane = q * s_panel + i * s_row
                place = ((b + i) * a.T + t) * 4 * V + first + q * width
                saved = at(a.saved, place)
                copy_vector(at(saved, Z * V), at(s, z * size + lane))
                copy_vector(at(saved, R * V), at(s, r * size + lane))
                copy_vector(at(saved, HH * V), at(s, hh * size + lane))
                copy_vector(at(saved, RECURRENT * V), at(s, RECURRENT * size + lane))
                for gate in range(4):
                    ask_for(at(saved, (4 * steps + gate) * V))


@routine
def drop_reset_states(s, size, m, width, drops, V):
    """Multiply r * h of a tile."""
    for r in range(m):
        for j in range(width):
            s[RECURRENT * size + r * width + j] *= drops[r * V + j]


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
                        inner, 1, w, 3 * width, w_panel, U, hh, panel_scratch
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

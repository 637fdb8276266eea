"""What a forward step brings into the scratch of a tile, and writes from there."""

from __future__ import annotations

import numpy as np

from numbagru._jit import routine
from numbagru.gates import (
    HH,
    HH_SUM,
    R_SUM,
    RECURRENT,
    Z_SUM,
    H,
    R,
    Z,
    kept_section,
)
from numbagru.kernels.forward_arrays import (
    row_of,
)
from numbagru.kernels.simd import (
    ask_for,
    at,
    compact,
    copy_vector,
    vector_lanes,
)
from numbagru.kernels.team import (
    team_size,
)
from numbagru.kernels.tiles import (
    write_vector,
)


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
    """Keep what the backward pass takes of a tile: gates, and states that go on.

    The gates of a vector of units side by side, four lines: with each gate's of all
    units together, training 64x50x128x512 took 68.6 ms instead of 66.8, 1x100x16x128,
    whose units threads share, 442 µs instead of 433 (Emerald Rapids).
    """
    compact()
    width = vector_lanes(a.x)
    V = (a.U + width - 1) // width * width
    first, steps = first_panel * width, _steps_ahead(V, width)
    z, r = kept_section(rec, Z, Z_SUM), kept_section(rec, R, R_SUM)
    hh = kept_section(act, HH, HH_SUM)
    if t + 1 < a.T:
        for q in range(panels):
            for i in range(m):
                state = at(a.states, (b + i) * a.states_row + t * V + first + q * width)
                copy_vector(state, at(h_new, i * V + q * width))
                ask_for(at(state, steps * V))
    for q in range(panels):
        for i in range(m):
            if not a.masked or active[i] != 0:
                lane = at(s, q * s_panel + i * s_row)
                place = (b + i) * a.saved_row + 4 * (t * V + first + q * width)
                saved = at(a.saved, place)
                copy_vector(at(saved, Z * width), at(lane, z * size))
                copy_vector(at(saved, R * width), at(lane, r * size))
                copy_vector(at(saved, HH * width), at(lane, hh * size))
                copy_vector(at(saved, RECURRENT * width), at(lane, RECURRENT * size))
                for gate in range(4):
                    ask_for(at(saved, 4 * steps * V + gate * width))


@routine
def drop_reset_states(s, size, m, width, drops, V):
    """Multiply r * h of a tile."""
    for r in range(m):
        for j in range(width):
            s[RECURRENT * size + r * width + j] *= drops[r * V + j]

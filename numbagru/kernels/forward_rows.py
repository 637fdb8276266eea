"""Forward on register tiles, for every scalar activation and mask.

In parallel: blocks of rows, each with its own loop over time, no synchronisation.
In registers: a tile of rows x panels x gates over the whole chain of products.
In L1: the scratch in which a tile's sums become gates and the next state.
For backward: four numbers per unit and step, and the states (kernels/__init__.py).
"""

from __future__ import annotations

import functools

import numpy as np

from numbagru._jit import body, routine, section, variant_routine
from numbagru.gates import (
    SECTIONS,
)
from numbagru.kernels.atomics import address_of, numbers_at, words_at
from numbagru.kernels.forward_arrays import (
    arrays,
    bare_arrays,
    note_active,
    padded_units,
    row_of,
    take_inputs,
    take_inputs_per_gate,
    take_states_per_gate,
)
from numbagru.kernels.forward_inputs import (
    GROUP_STEPS,
    help_with_inputs,
    helpers_multiply_inputs,
    hoists,
    multiply_inputs,
    sums_row,
    take_group,
)
from numbagru.kernels.forward_step import (
    make_step_reset_after,
    make_step_reset_before,
    tiles_of,
)
from numbagru.kernels.forward_tile import (
    give_outputs,
    gives_in_turn,
)
from numbagru.kernels.forward_whole_rows import (
    exchange_size,
    make_step_whole_rows,
    whole_rows_size,
)
from numbagru.kernels.record import record
from numbagru.kernels.simd import (
    aligned,
    ask_for,
    at,
    clear,
    copy,
    hold,
    most_rows,
    pointer,
    tile_size,
    vector_lanes,
)
from numbagru.kernels.team import (
    MOST_GROUPS,
    OWN,
    OWN_ALIGNED,
    SHARED,
    TOGETHER,
    ask_for_shared,
    enter,
    is_first,
    is_turn_of,
    leave,
    meet,
    next_item,
    pieces,
    share_of,
    team_size,
    turn,
)
from numbagru.scalar import widest_vectors


@routine
def shared_size(n, V, width, per_gate):
    """Count what a block of n rows keeps.

    h, h_new, inner, multipliers of h per gate, a vector of zeros and seen, of whole
    vectors like the others: sums of inputs come next.
    """
    seen = (n + width - 1) // width * width
    return (6 if per_gate else 3) * n * V + width + seen


@routine
def _begin(a, b, n, h, seen, drops, gate_stride):
    """Fetch the initial states of a block, and their multipliers."""
    V = padded_units(a)
    for i in range(n):
        seen[i] = 1 if a.first_is_state else 0
        if a.has_h0:
            copy(at(h, i * V), at(a.h0, row_of(a, b + i) * a.U), a.U)
        if gate_stride > 0:
            for g in range(3):
                given = at(a.h_drop, (g * a.B + row_of(a, b + i)) * a.U)
                for u in range(a.U):
                    drop = given[u] if a.drops_h else 1
                    drops[g * gate_stride + i * V + u] = drop


@routine
def _mark_seen(a, n, active, seen):
    """Note which rows have an output now."""
    if a.masked:
        for i in range(n):
            if active[i] != 0:
                seen[i] = 1


@routine
def _repeat(target, h, U, blank):
    if blank:
        clear(target, U)
    else:
        copy(target, h, U)


@routine
def _end_row(a, slot, t, h, seen):
    """Hand over a final state; outputs of the steps that are left repeat the last."""
    row, U = row_of(a, slot), a.U
    if a.ending:
        copy(at(a.state, row * U), h, U)
    if a.T == 0:
        copy(at(a.last, row * U), h, U)
    elif t < a.T:
        blank = a.zero_output or seen[0] == 0
        _repeat(at(a.last, row * U), h, U, blank)
        if a.wanted:
            for step in range(t, a.T):
                _repeat(at(a.y, row * a.y_row + step * a.y_step), h, U, blank)


# So many steps of outputs in a row are one thread's, where it goes by turns.
_OUTPUTS_IN_TURN = 8


@routine
def _still_going(a, own, b, n, t, h, seen):
    """End the rows without a step at t or after it; count the others."""
    V = padded_units(a)
    while n > 0 and (t == a.T or (a.masked and a.ends[b + n - 1] <= t)):
        n -= 1
        if is_first(own):
            _end_row(a, b + n, t, at(h, n * V), at(seen, n))
    return n


@routine
def _ask_for_inputs(a, x, n, t):
    """Ask for the inputs of later steps, of each cache line once."""
    width = vector_lanes(a.x)
    steps = max(1, width // max(1, a.F))
    if n > 1 and t % steps == 0 and t + steps < a.T:
        for i in range(n):
            for f in range(0, a.F, width):
                ask_for(at(x, i * a.x_row + steps * a.x_step + f))


def _rows_of(reset_after, per_gate, whole_rows, arrays):
    """Make the loop over blocks of rows, and in each over time."""
    general = arrays is not bare_arrays  # without it Numba compiles less
    if whole_rows:
        step = make_step_whole_rows(reset_after, per_gate)
    elif reset_after:
        step = make_step_reset_after(per_gate, general)
    else:
        step = make_step_reset_before(per_gate, general)

    @section
    def block(
        a, act, rec, words, own, scratch, private, shared, common, b, n, start
    ):  # fmt: skip
        V = padded_units(a)
        h = shared
        h_new = at(h, n * V)
        inner = at(h_new, n * V)
        drops = at(inner, n * V)
        if whole_rows:
            inner = common
        zeros = at(drops, 3 * n * V if per_gate else 0)
        seen = at(zeros, vector_lanes(a.x))
        gate_states = private
        inputs = at(gate_states, 3 * n * V if per_gate else 0)
        active = at(inputs, (3 if per_gate else 1) * n * a.F)
        hoisting = not per_gate and hoists(a, n)
        inputs_only = not per_gate and helpers_multiply_inputs(a, words, n)
        sums = at(shared, shared_size(n, V, vector_lanes(a.x), per_gate))
        group = sums
        drops_x = per_gate and a.drops_x
        x_gate, h_gate = n * a.F if drops_x else 0, n * V if per_gate else 0
        x, x_row = inputs, a.F
        if start == 0:
            clear(h, n * V)
            clear(zeros, vector_lanes(a.x))
            if per_gate:
                clear(drops, 3 * n * V)
            _begin(a, b, n, h, seen, drops, h_gate)
        elif start % 2 == 1:
            h, h_new = h_new, h
        t = start
        n = _still_going(a, own, b, n, t, h, seen)
        while n > 0:
            hs = h
            if general:
                if a.masked or per_gate:
                    note_active(a, b, n, t, active)
                if per_gate:
                    hs = gate_states
                    take_states_per_gate(n, V, h, drops, hs, h_gate)
                if drops_x:
                    take_inputs_per_gate(a, b, n, t, inputs, x_gate, active)
                elif a.masked:
                    take_inputs(a, b, n, t, inputs, active)
            if not (a.masked or drops_x):
                x, x_row = at(a.x, b * a.x_row + t * a.x_step), a.x_row
                _ask_for_inputs(a, x, n, t)
            F, starts = a.F, a.bias
            if hoisting:
                ahead = t % GROUP_STEPS
                if ahead == 0 and inputs_only:
                    group = take_group(a, words, t, sums)
                elif ahead == 0:
                    first, stop = share_of(own, V // vector_lanes(a.x), 1)
                    multiply_inputs(a, b, t, first, stop, sums)
                    meet(words, own)
                F, starts = 0, at(group, ahead * sums_row(a))
            step(
                a, act, rec, words, own, b, n, t, x, x_row, x_gate, F, starts, hs,
                h_gate, drops, scratch, inner, h, h_new, active, seen, zeros,
            )  # fmt: skip
            h, h_new = h_new, h
            if general:
                _mark_seen(a, n, active, seen)
            size, in_turn = team_size(own), gives_in_turn(a, own)
            stays = inputs_only or turn(words, own, t)
            if size > 1:
                ask_for_shared(h, n * V)
                in_turn = in_turn and is_turn_of(own, size, t // _OUTPUTS_IN_TURN)
                if a.wanted and in_turn:
                    give_outputs(a, n, b, t, h, V, active, seen, zeros)
            if stays:
                t += 1
                n = _still_going(a, own, b, n, t, h, seen)
            else:
                n = 0

    @variant_routine(reset_after, per_gate, whole_rows, general, make=body)
    def rows(words, helper, data):
        widest_vectors()
        rows, act, rec, x = data[0], data[1], data[2], data[3]
        given = data[-1]
        a = record(arrays(data))
        B = x.shape[0]
        width = vector_lanes(a.x)
        V = padded_units(a)
        n = min(rows, B)
        tiles = 1
        if not (reset_after or whole_rows):
            tiles = V // width * tiles_of(n, most_rows(a.x))
        scratch_size = SECTIONS * tile_size(a.x) * tiles
        if whole_rows:
            scratch_size = whole_rows_size(a)
        private_size = 0
        if per_gate:
            private_size = n * (1 + 3 * a.F + 3 * V)
        elif a.masked:
            private_size = n * (1 + a.F)
        # What is shared starts a cache line, too.
        private_size = (private_size + OWN - 1) // OWN * OWN
        shared_by_all = shared_size(n, V, width, per_gate)
        # Of several blocks the last may have one row, and be the only one that hoists.
        inputs_only = not per_gate and helpers_multiply_inputs(a, words, n)
        if not per_gate and (hoists(a, n) or hoists(a, B % max(1, n))):
            groups = MOST_GROUPS if inputs_only else 1
            shared_by_all += groups * GROUP_STEPS * sums_row(a)
        common_size = exchange_size(a, n) if whole_rows else 0
        needed = OWN_ALIGNED + scratch_size + private_size
        needed += shared_by_all + common_size
        use_given = not helper and given.size >= needed
        work = given if use_given else np.empty(needed, x.dtype)
        begin = aligned(pointer(work))
        own = words_at(address_of(begin))
        scratch = at(begin, OWN)
        clear(scratch, scratch_size)
        private = at(scratch, scratch_size)
        shared = at(private, private_size)
        together = words[TOGETHER] != 0
        if together and not helper:
            words[SHARED] = address_of(shared)
        if inputs_only and helper:
            help_with_inputs(a, words, shared, shared_size(n, V, width, per_gate))
            start = -1
        else:
            start = enter(words, helper, own)
        if together and helper:
            shared = numbers_at(shared, words[SHARED])
        common = at(shared, shared_by_all)
        blocks = pieces(B, rows)
        k = 0 if together else next_item(words, helper, -1, blocks)
        while start >= 0 and k < blocks:
            b = k * rows
            n = min(rows, B - b)
            block(
                a, act, rec, words, own, scratch, private, shared, common, b, n, start
            )  # fmt: skip
            k = blocks if together else next_item(words, helper, k, blocks)
        leave(words, helper, own)
        hold(work)

    return rows


@functools.cache
def forward_rows(reset_after, per_gate, whole_rows):
    """Return the loops of a variant; `whole_rows` for row-wise activations."""
    return _rows_of(reset_after, per_gate, whole_rows, arrays)


@functools.cache
def inference_rows(reset_after):
    """Return those without masks and dropout that save nothing."""
    return _rows_of(reset_after, False, False, bare_arrays)

"""One block of rows back through time: backward_parts.py has the outline."""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.kernels.backward_arrays import (
    counts,
)
from numbagru.kernels.backward_chunk import (
    add_chunk,
)
from numbagru.kernels.backward_products import (
    add_to_dh,
    add_to_dh_per_gate,
    input_gradient,
    input_gradient_per_gate,
)
from numbagru.kernels.backward_step import make_step_reset_after, make_step_reset_before
from numbagru.kernels.backward_tile import (
    pack_inputs,
    pack_inputs_per_gate,
    takes_all_before,
)
from numbagru.kernels.forward_arrays import row_of
from numbagru.kernels.simd import (
    add_some,
    ask_for,
    at,
    clear,
    copy,
    vector_lanes,
)
from numbagru.kernels.team import (
    TOGETHER,
    ask_for_shared,
    is_first,
    meet_after_much_work,
    share_of,
    team_size,
    turn,
)


@routine
def _take_output_gradients(a, w, own, b, first, n, t):
    """Add gradients of this step's outputs to those of the states they came from.

    Of the block's rows from `first` to n.
    """
    U, V = a.U, w.V
    width = vector_lanes(a.x)
    panel, stop_panel = share_of(own, V // width, 1)
    start, stop = panel * width, min(U, stop_panel * width)
    last = a.has_d_last and t == a.T - 1
    for i in range(first, n):
        row = row_of(a, b + i)
        dh, carried = at(w.dh, i * V), at(w.d_output, i * V)
        d_y = at(a.d_y, row * a.d_y_row + t * a.d_y_step)
        d_last = at(a.d_last, row * U)
        if a.has_d_y:
            for u in range(start, stop, width):
                ask_for(at(d_y, u - a.d_y_step))
        if not a.masked:
            if a.has_d_y:
                for u in range(start, stop, width):
                    add_some(at(dh, u), at(d_y, u), stop - u)
            if last:
                for u in range(start, stop, width):
                    add_some(at(dh, u), at(d_last, u), stop - u)
        else:
            active = counts(a, b + i, t)
            repeats = not (active or a.zero_output)
            reaches = active or (t == 0 and a.first_is_state and not a.zero_output)
            for u in range(start, stop):
                d = carried[u]
                if last:
                    d += d_last[u]
                if a.has_d_y:
                    d += d_y[u]
                if reaches:
                    dh[u] += d
                carried[u] = d if repeats else 0


@routine
def _going_at(a, b, n, total, t):
    """Count a block's rows with a step at t or after it, n or more."""
    while n < total and (not a.masked or a.ends[b + n] > t):
        n += 1
    return n


@routine
def _enter_rows(a, w, own, b, n, total, t):
    """Start with the rows whose last step is t, below 0 the rest; count all by now.

    Their outputs after t repeat an earlier one; the inputs there have no gradient.
    """
    going = _going_at(a, b, n, total, t)
    if a.masked:
        for i in range(n, going):
            for step in range(a.T - 1, t, -1):
                _take_output_gradients(a, w, own, b, i, i + 1, step)
                if is_first(own):
                    d_x = at(a.d_x, row_of(a, b + i) * a.d_x_row + step * a.d_x_step)
                    clear(d_x, a.F)
    return going


@routine
def _before(a, b, total, capacity, step_number):
    """Count what a chunk has before a step, as the loop of a block does.

    And say whether there were chunks before that one.
    """
    n, samples, onward = 0, 0, False
    for step in range(step_number):
        n = _going_at(a, b, n, total, a.T - 1 - step)
        samples += n
        if samples + total > capacity:
            samples, onward = 0, True
    return samples, onward


def block_of(reset_after, per_gate, whole_rows):
    """Make the loop of one block of rows back through time.

    It returns whether this thread stayed to the end: one that came too late has left
    all of the block to the others.
    """
    make_step = make_step_reset_after if reset_after else make_step_reset_before
    step = make_step(per_gate, whole_rows)
    gates = 3 if reset_after else 2

    @section
    def block(
        a, w, act, rec, d_act, d_rec, words, own, b, total, at_once, capacity, start,
        onward,
    ):  # fmt: skip
        T = a.T
        if start == 0:
            _begin(a, w, b, total)
            if per_gate:
                _take_multipliers(a, w, b, total)
        # Who enters late begins after the gates of a step.
        step_number = max(0, start - 1)
        n = _going_at(a, b, 0, total, T - step_number) if start > 0 else 0
        samples, chunks = _before(a, b, total, capacity, step_number)
        onward = onward or chunks
        stays = True
        while stays and step_number < T:
            t = T - 1 - step_number
            # While some still read the gradients of steps others write the next ones.
            slots = 2 * at_once if words[TOGETHER] != 0 else at_once
            slot = step_number % slots
            e = at(w.e, slot * total * w.e_row)
            if step_number >= start:
                n = _enter_rows(a, w, own, b, n, total, t)
                if takes_all_before(a, t):
                    _take_output_gradients(a, w, own, b, 0, n, t)
                if is_first(own) and per_gate and a.drops_x:
                    pack_inputs_per_gate(a, w, b, n, t, samples, capacity)
                elif is_first(own):
                    pack_inputs(a, w, b, n, t, samples, capacity)
                step(
                    a, w, act, rec, d_act, d_rec, words, own, e, b, n, t, samples,
                    capacity,
                )  # fmt: skip
                stays = turn(words, own, step_number)
                if team_size(own) > 1:
                    ask_for_shared(e, n * w.e_row)
            else:
                n = _going_at(a, b, n, total, t)
            if stays:
                # Nobody asks for the gradients of states that nobody gave.
                asked = t > 0 or a.has_h0
                if per_gate:
                    if asked:
                        add_to_dh_per_gate(a, w, own, n, e, gates)
                    input_gradient_per_gate(a, w, own, e, b, n, t)
                else:
                    if asked:
                        add_to_dh(a, w, own, n, e, gates)
                    steps = slot % at_once + 1
                    if steps == at_once or t == 0:
                        oldest = at(e, (1 - steps) * total * w.e_row)
                        input_gradient(a, w, own, oldest, b, n, t, steps)
                samples += n
                if samples + total > capacity or t == 0:
                    zeros = 0 if asked else n
                    add_chunk(
                        a, w, own, reset_after, per_gate, capacity, samples, zeros,
                        onward,
                    )  # fmt: skip
                    samples, onward = 0, True
                    meet_after_much_work(words, own)
            step_number += 1
        if stays:
            _enter_rows(a, w, own, b, n, total, -1)
            if a.has_h0:
                _give_initial(a, w, own, b, total)
        return stays

    return block


@routine
def _give_initial(a, w, own, b, n):
    """Hand over the gradients of the initial states."""
    width = vector_lanes(a.x)
    U, V = a.U, w.V
    first, stop = share_of(own, V // width, 1)
    start, end = first * width, min(U, stop * width)
    for i in range(n):
        target = at(a.d_h0, row_of(a, b + i) * U + start)
        copy(target, at(w.dh, i * V + start), max(0, end - start))


@routine
def _take_multipliers(a, w, b, n):
    """Fetch the multipliers of the states."""
    U, V = a.U, w.V
    for g in range(3):
        for i in range(n):
            target = at(w.drops, (g * w.rows + i) * V)
            given = at(a.h_drop, (g * a.B + row_of(a, b + i)) * U)
            for u in range(V):
                target[u] = given[u] if a.drops_h and u < U else 1


@routine
def _begin(a, w, b, n):
    """Take the gradients of the final states."""
    U, V = a.U, w.V
    clear(w.dh, n * V)
    clear(w.d_output, n * V)
    for i in range(n):
        row = row_of(a, b + i)
        if a.has_d_state:
            copy(at(w.dh, i * V), at(a.d_state, row * U), U)
        if a.T == 0 and a.has_d_last:
            for u in range(U):
                w.dh[i * V + u] += a.d_last[row * U + u]

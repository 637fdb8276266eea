"""What a backward step brings into the scratch of a tile, and hands to the products."""

from __future__ import annotations

import functools

from numbagru._jit import routine, variant_routine
from numbagru.gates import D_HH, D_RECURRENT, D, H
from numbagru.kernels.backward_arrays import GROUP, counts, rounded_up
from numbagru.kernels.forward_arrays import row_of
from numbagru.kernels.simd import (
    add_some,
    ask_for,
    at,
    copy_eight,
    copy_some,
    copy_vector,
    take_eight,
    vector_lanes,
)


@routine
def pack_inputs(a, w, b, n, t, first, capacity):
    """Put the x of one step into the chunk, zeros where it is masked."""
    F = a.F
    for i in range(n):
        x = at(a.x, row_of(a, b + i) * a.x_row + t * a.x_step)
        active = counts(a, b + i, t)
        for k in range(0, F, GROUP):
            target = at(w.a, (k // GROUP * capacity + first + i) * GROUP)
            take_eight(target, at(x, k), F - k if active else 0)
            ask_for(at(x, k - a.x_step))


@routine
def pack_inputs_per_gate(a, w, b, n, t, first, capacity):
    """Put the x of one step into the chunk, as each gate sees it."""
    F = a.F
    groups = rounded_up(F, GROUP) // GROUP
    for g in range(3):
        for i in range(n):
            row = row_of(a, b + i)
            x = at(a.x, row * a.x_row + t * a.x_step)
            drop = at(a.x_drop, (g * a.B + row) * F)
            active = counts(a, b + i, t)
            for k in range(groups * GROUP):
                group = g * groups + k // GROUP
                target = at(w.a, (group * capacity + first + i) * GROUP + k % GROUP)
                target[0] = x[k] * drop[k] if active and k < F else 0


@routine
def takes_all_before(a, t):
    """Whether all gradients of a step's outputs are added before its tiles.

    Otherwise tiles do it: there are just those of the sequence, and no mask.
    """
    return a.masked or (a.has_d_last and t == a.T - 1)


@routine
def load_gates(a, s, size, b, i, m, p, t):
    """Bring what was saved of a panel's gates into scratch.

    And ask for the step before, as all here do. (For the one before that, and so early
    that other rows' lines came in between, 8192x50x4x16 took 1.08 times as long,
    1024x100x4x32 1.05, Emerald Rapids.)
    """
    width = vector_lanes(a.x)
    V = rounded_up(a.U, width)
    for r in range(m):
        saved = at(a.saved, (b + i + r) * a.saved_row + 4 * (t * V + p * width))
        for gate in range(4):
            copy_vector(at(s, gate * size + r * width), at(saved, gate * width))
            ask_for(at(saved, gate * width - 4 * V))


@routine
def load_states(a, w, s, size, b, i, m, p, t):
    """Bring a panel's old states and gradients into scratch."""
    width = vector_lanes(a.x)
    U = a.U
    V = rounded_up(U, width)
    first = p * width
    states, d = at(s, H * size), at(s, D * size)
    if t > 0:
        for r in range(m):
            old = at(a.states, (b + i + r) * a.states_row + (t - 1) * V + first)
            copy_vector(at(states, r * width), old)
            ask_for(at(old, -V))
    else:
        for r in range(m):
            row = row_of(a, b + i + r)
            for j in range(width):
                u = first + j
                state = a.h0[row * U + u] if a.has_h0 and u < U else 0
                states[r * width + j] = state
    for r in range(m):
        copy_vector(at(d, r * width), at(w.dh, (i + r) * V + first))
    if a.has_d_y and not takes_all_before(a, t):
        for r in range(m):
            d_y = at(a.d_y, (b + i + r) * a.d_y_row + t * a.d_y_step + first)
            add_some(at(d, r * width), d_y, U - first)
            ask_for(at(d_y, -a.d_y_step))


@routine
def clear_masked(a, s, size, b, i, m, t, sections):
    """Zero the gradients and factors of a panel's masked rows."""
    width = vector_lanes(a.x)
    for r in range(m):
        if not counts(a, b + i + r, t):
            for section in sections:
                for j in range(width):
                    s[section * size + r * width + j] = 0


@functools.cache
def emit_sums(gate, stop):
    """Make what hands the gradients of some gates' sums to the products.

    To those of the step, and of the chunk. For all gates at once: addresses take as
    long as copies (5000 steps of one row of 32 units went back in 1.41 ms instead of
    1.59, 1024x100x4x32 in 10.5 instead of 11.5, Emerald Rapids).
    """

    @variant_routine(gate, stop)
    def emit(a, w, s, size, e, i, m, p, first, capacity):
        width = vector_lanes(a.x)
        left = a.U - p * width
        for r in range(m):
            sums = at(w.d, (p * capacity + first + i + r) * 4 * width)
            rows = at(e, (i + r) * w.e_row + p * width)
            sources = at(s, D_HH * size + r * width)
            for g in range(gate, stop):
                copy_vector(at(sums, g * width), at(sources, g * size))
            if left >= width:
                for g in range(gate, stop):
                    copy_vector(at(rows, g * a.U), at(sources, g * size))
            else:
                for g in range(gate, stop):
                    copy_some(at(rows, g * a.U), at(sources, g * size), left)

    return emit


@routine
def emit_factor(a, w, s, size, section, i, m, p, group, first, capacity):
    """Hand old states, or r * h, to the chunk's products, in groups of eight units."""
    width = vector_lanes(a.x)
    source, sample = at(s, section * size), first + i
    if width >= GROUP:
        g = group + p * (width // GROUP)
        for k in range(width // GROUP):
            target = at(w.a, ((g + k) * capacity + sample) * GROUP)
            for r in range(m):
                copy_eight(at(target, r * GROUP), at(source, r * width + k * GROUP))
    else:
        g, rest = group + p * width // GROUP, p * width % GROUP
        target = at(w.a, (g * capacity + sample) * GROUP + rest)
        for r in range(m):
            copy_vector(at(target, r * GROUP), at(source, r * width))


@routine
def emit_states_per_gate(a, w, s, size, i, m, p, group, count, first, capacity):
    """Hand old states to the chunk's products as the first `count` gates see them.

    The section of the gradients to come serves as scratch.
    """
    width = vector_lanes(a.x)
    states = rounded_up(w.V, GROUP) // GROUP
    for g in range(count):
        for r in range(m):
            drop = at(w.drops, (g * w.rows + i + r) * w.V + p * width)
            for j in range(width):
                lane = r * width + j
                s[D_RECURRENT * size + lane] = s[H * size + lane] * drop[j]
        emit_factor(
            a, w, s, size, D_RECURRENT, i, m, p, group + g * states, first, capacity
        )


@routine
def keep_dh(a, w, s, size, b, i, m, p, t):
    """Take the gradient of the old states from scratch; masked rows keep theirs."""
    width = vector_lanes(a.x)
    V = rounded_up(a.U, width)
    source, target = at(s, D * size), at(w.dh, i * V + p * width)
    for r in range(m):
        if counts(a, b + i + r, t):
            copy_vector(at(target, r * V), at(source, r * width))

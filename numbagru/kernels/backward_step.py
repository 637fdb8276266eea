"""The part of a step back in time that goes unit by unit, on tiles."""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.gates import (
    D_BLOCK,
    D_HH,
    D_R,
    D_RECURRENT,
    D_Z,
    RECURRENT,
    D,
    H,
    d_gates_reset_before,
    d_next_state,
    d_step_reset_after,
    gates_again,
)
from numbagru.kernels.backward_arrays import (
    GROUP,
    counts,
    rounded_up,
)
from numbagru.kernels.backward_products import (
    drop_products,
    multiply_recurrent,
)
from numbagru.kernels.forward_arrays import row_of
from numbagru.kernels.simd import (
    ask_for,
    at,
    copy_eight,
    copy_vector,
    most_rows,
    tile_size,
    vector_lanes,
)
from numbagru.kernels.team import (
    meet,
    share_of,
)
from numbagru.kernels.tiles import step_sums, tile_rows, write_vector


@routine
def pack_inputs(a, w, b, n, t, first, capacity):
    """Put the x of one step into the chunk, zeros where it is masked."""
    F = a.F
    for i in range(n):
        x = at(a.x, row_of(a, b + i) * a.x_row + t * a.x_step)
        active = counts(a, b + i, t)
        for k in range(0, F, GROUP):
            target = at(w.a, (k // GROUP * capacity + first + i) * GROUP)
            if active and k + GROUP <= F:
                copy_eight(target, at(x, k))
            else:
                for j in range(GROUP):
                    inside = active and k + j < F
                    target[j] = x[k + j] if inside else 0


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
                value = w.d_x[0] * 0
                if active and k < F:
                    value = x[k] * drop[k] if a.drops_x else x[k]
                target[0] = value


@routine
def _load_gates(a, w, b, i, m, p, t):
    """Bring one tile of what was saved of the gates into scratch."""
    width = vector_lanes(a.x)
    V = rounded_up(a.U, width)
    size = tile_size(a.x)
    for r in range(m):
        saved = at(a.saved, ((b + i + r) * a.T + t) * 4 * V + p * width)
        for gate in range(4):
            copy_vector(at(w.s, gate * size + r * width), at(saved, gate * V))
            ask_for(at(saved, (gate - 4) * V))  # what the next step takes


_sums = step_sums(candidate=True, per_gate=False)


@routine
def _sums_again(a, w, row, m, p, t):
    """Compute the sums of one tile as the forward pass did: no mask, no dropout."""
    width = vector_lanes(a.x)
    F, U = a.F, a.U
    h, h_row = at(a.h0, row * U), U
    if t > 0:
        V = rounded_up(U, width)
        h, h_row = at(a.states, (row * a.T + t - 1) * V), a.T * V
    _sums(
        m, 1, at(a.x, row * a.x_row + t * a.x_step), a.x_row, 0, F, h, h_row, 0, U,
        at(a.panels, p * (F + U) * 3 * width), 0, at(a.bias, p * 4 * width), w.s,
    )  # fmt: skip


@routine
def _load_tile(a, w, b, i, m, p, t):
    """Bring one tile of the old states and gradients into scratch."""
    width = vector_lanes(a.x)
    T, U = a.T, a.U
    V = rounded_up(U, width)
    size = tile_size(a.x)
    s, first = w.s, p * width
    for r in range(m):
        slot = b + i + r
        lane = r * width
        h = at(s, H * size + lane)
        if t > 0:
            old = at(a.states, (slot * T + t - 1) * V + first)
            copy_vector(h, old)
            ask_for(at(old, -V))
        else:
            row = row_of(a, slot)
            for j in range(width):
                u = first + j
                h[j] = a.h0[row * U + u] if u < U else 0
        copy_vector(at(s, D * size + lane), at(w.dh, (i + r) * V + first))


@routine
def _clear_masked(a, w, b, i, m, t, sections, size, width):
    """Zero the gradients and factors of the tile's masked rows."""
    if a.masked:
        for r in range(m):
            if not counts(a, b + i + r, t):
                for section in sections:
                    for j in range(width):
                        w.s[section * size + r * width + j] = 0


@routine
def _emit_sum(a, w, e, gate, i, m, p, first, capacity, size):
    """Hand the gradient of one sum to the step's and the chunk's products."""
    width = vector_lanes(a.x)
    U = a.U
    for r in range(m):
        source = at(w.s, (D_HH + gate) * size + r * width)
        sample = (p * capacity + first + i + r) * 4 + gate
        copy_vector(at(w.d, sample * width), source)
        target = at(e, (i + r) * w.e_row + gate * U + p * width)
        write_vector(target, source, width, U - p * width)


@routine
def _emit_factor(a, w, section, i, m, p, group, first, capacity, size):
    """Hand old states, or r * h, to the chunk's products, in groups of eight units."""
    width = vector_lanes(a.x)
    for r in range(m):
        source = at(w.s, section * size + r * width)
        sample = first + i + r
        if width >= GROUP:
            for k in range(width // GROUP):
                g = group + p * (width // GROUP) + k
                target = at(w.a, (g * capacity + sample) * GROUP)
                copy_eight(target, at(source, k * GROUP))
        else:
            g, rest = group + p * width // GROUP, p * width % GROUP
            target = at(w.a, (g * capacity + sample) * GROUP + rest)
            copy_vector(target, source)


@routine
def _emit_states_per_gate(a, w, b, i, m, p, group, count, first, capacity, size):
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
                w.s[D_RECURRENT * size + lane] = w.s[H * size + lane] * drop[j]
        _emit_factor(
            a, w, D_RECURRENT, i, m, p, group + g * states, first, capacity, size
        )


@routine
def _keep_dh(a, w, b, i, m, p, t, size):
    """Take the gradient of the old states from scratch; masked rows keep theirs."""
    width = vector_lanes(a.x)
    V = rounded_up(a.U, width)
    for r in range(m):
        if counts(a, b + i + r, t):
            source = at(w.s, D * size + r * width)
            copy_vector(at(w.dh, (i + r) * V + p * width), source)


def make_step_reset_after(per_gate):
    """Make the part of a step before all products."""

    @section
    def step(a, w, act, rec, d_act, d_rec, words, own, e, b, n, t, first, capacity):
        width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
        F, U = a.F, a.U
        p_first, p_stop = share_of(own, w.V // width, 1)
        group = (3 if per_gate else 1) * (rounded_up(F, GROUP) // GROUP)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            count = rounded_up(m * width, D_BLOCK)
            for p in range(p_first, p_stop):
                if not per_gate and a.again:
                    _sums_again(a, w, b + i, m, p, t)
                    gates_again(act, rec, w.s, size, count)
                else:
                    _load_gates(a, w, b, i, m, p, t)
                _load_tile(a, w, b, i, m, p, t)
                d_step_reset_after(act, rec, d_act, d_rec, w.s, size, count, U)
                _clear_masked(
                    a, w, b, i, m, t, (D_HH, D_Z, D_R, D_RECURRENT, H), size, width
                )
                for gate in range(4):
                    _emit_sum(a, w, e, gate, i, m, p, first, capacity, size)
                if per_gate:
                    _emit_states_per_gate(
                        a, w, b, i, m, p, group, 3, first, capacity, size
                    )
                else:
                    _emit_factor(a, w, H, i, m, p, group, first, capacity, size)
                _keep_dh(a, w, b, i, m, p, t, size)
            i += m

    return step


def make_step_reset_before(per_gate):
    """Make the part of a step before the products with the weights of z and r."""

    @section
    def step(a, w, act, rec, d_act, d_rec, words, own, e, b, n, t, first, capacity):
        width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
        F, U, V = a.F, a.U, w.V
        p_first, p_stop = share_of(own, V // width, 1)
        group = (3 if per_gate else 1) * (rounded_up(F, GROUP) // GROUP)
        inner_group = group + (2 if per_gate else 1) * (rounded_up(V, GROUP) // GROUP)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            count = rounded_up(m * width, D_BLOCK)
            for p in range(p_first, p_stop):
                _load_gates(a, w, b, i, m, p, t)
                _load_tile(a, w, b, i, m, p, t)
                d_next_state(act, rec, d_act, w.s, size, count, U)
                _clear_masked(a, w, b, i, m, t, (D_HH, RECURRENT), size, width)
                _emit_sum(a, w, e, 0, i, m, p, first, capacity, size)
                _emit_factor(
                    a, w, RECURRENT, i, m, p, inner_group, first, capacity, size
                )
            i += m
        meet(words, own)
        multiply_recurrent(a, w, own, n, e, 2 * U, U)
        if per_gate:
            drop_products(w, 2, n, p_first * width, p_stop * width)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            count = rounded_up(m * width, D_BLOCK)
            for p in range(p_first, p_stop):
                _load_gates(a, w, b, i, m, p, t)
                _load_tile(a, w, b, i, m, p, t)
                d_next_state(act, rec, d_act, w.s, size, count, U)
                for r in range(m):
                    copy_vector(
                        at(w.s, D_RECURRENT * size + r * width),
                        at(w.inner, (i + r) * V + p * width),
                    )
                d_gates_reset_before(rec, d_rec, w.s, size, count, U)
                _clear_masked(a, w, b, i, m, t, (D_Z, D_R, H), size, width)
                for gate in range(1, 3):
                    _emit_sum(a, w, e, gate, i, m, p, first, capacity, size)
                if per_gate:
                    _emit_states_per_gate(
                        a, w, b, i, m, p, group, 2, first, capacity, size
                    )
                else:
                    _emit_factor(a, w, H, i, m, p, group, first, capacity, size)
                _keep_dh(a, w, b, i, m, p, t, size)
            i += m

    return step

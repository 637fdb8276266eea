"""Backward on register tiles, for every scalar activation and mask.

In parallel (kernels/threads.py): parts of rows; each adds up its own weight gradients,
and the caller adds the parts in order. A part goes through its rows in blocks, and a
block through time in chunks of some hundred samples (row and step), backward:
    per step   gates from what was saved, gradients of the sums (gates.py), products
               with the transposed weights for the old state and the inputs
    per chunk  products of inputs and states with those gradients, which are still in
               the cache, into accumulators packed like the weights
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numba import types

from numbagru._jit import Kernel, routine, section
from numbagru.gates import (
    D_BLOCK,
    D_HH,
    D_R,
    D_RECURRENT,
    D_SECTIONS,
    D_Z,
    RECURRENT,
    D,
    H,
    d_gates_reset_before,
    d_next_state,
    d_step_reset_after,
)
from numbagru.kernels.atomics import address_of, numbers_at, words_at
from numbagru.kernels.call import Call, Cotangents, Outputs, Parts, rows_by_end
from numbagru.kernels.simd import (
    at,
    copy_eight,
    copy_vector,
    hold,
    most_rows,
    pointer,
    tile_size,
    vector_lanes,
)
from numbagru.kernels.team import (
    OWN,
    SHARED,
    TOGETHER,
    enter,
    is_first,
    leave,
    meet,
    next_item,
    share_of,
    sharing,
    turn,
)
from numbagru.kernels.threads import WORD_ARRAY, run
from numbagru.kernels.tiles import add_product, tile_rows
from numbagru.kernels.variant import choosing, variant

# Rows of a tile of weight gradients, and so of the packed inputs and states.
_GROUP = 8
# A chunk's samples fit into half of a 1 MiB second-level cache, within these bounds.
# For wide layers 64, whose gradients of one panel take half of the first-level cache:
# with 128 the backward pass took 1.8 times as long at 256 units.
_CHUNK_BYTES = 2**19
_FEWEST_SAMPLES, _MOST_SAMPLES = 64, 512
_MOST_BLOCK_ROWS = 32


class Arrays(NamedTuple):
    """The arrays of kernels/__init__.py as addresses; strides in numbers, not bytes.

    See forward_cpu.Arrays for the reason.
    """

    B: Any
    T: Any
    F: Any
    U: Any
    x: Any
    x_row: Any
    x_step: Any
    h0: Any
    mask: Any
    mask_row: Any
    mask_step: Any
    masked: Any
    order: Any  # see forward_cpu.Arrays
    ends: Any
    kernel: Any  # transposed weights packed as in kernels/panels.py
    recurrent: Any
    x_drop: Any
    drops_x: Any
    h_drop: Any
    drops_h: Any
    zero_output: Any
    first_is_state: Any
    d_y: Any
    d_y_row: Any
    d_y_step: Any
    has_d_y: Any
    d_last: Any
    has_d_last: Any
    d_state: Any
    has_d_state: Any
    saved: Any
    states: Any
    d_x: Any
    d_x_row: Any
    d_x_step: Any
    d_h0: Any


@section
def _arrays(data):
    """Take apart what a backward kernel is given."""
    (
        _, _, _, _, _, x, h0, mask, order, ends, kernel, recurrent, x_drop, h_drop,
        zero_output, first_is_state, d_y, d_last, d_state, saved, states, d_x, d_h0,
        _, _, _,
    ) = data  # fmt: skip
    size = x.itemsize
    return Arrays(
        x.shape[0], x.shape[1], x.shape[2], h0.shape[1],
        pointer(x), x.strides[0] // size, x.strides[1] // size, pointer(h0),
        pointer(mask), mask.strides[0], mask.strides[1], mask.size > 0,
        pointer(order), pointer(ends), pointer(kernel), pointer(recurrent),
        pointer(x_drop), x_drop.size > 0, pointer(h_drop), h_drop.size > 0,
        zero_output, first_is_state,
        pointer(d_y), d_y.strides[0] // size, d_y.strides[1] // size, d_y.size > 0,
        pointer(d_last), d_last.size > 0, pointer(d_state), d_state.size > 0,
        pointer(saved), pointer(states),
        pointer(d_x), d_x.strides[0] // size, d_x.strides[1] // size, pointer(d_h0),
    )  # fmt: skip


class Work(NamedTuple):
    """The working memory of one thread, addresses; V is U padded to whole vectors.

    The order of gates in d and e is candidate, z, r, candidate's recurrent part: three
    in a row are what the input side needs, the last three what the recurrent side does.
    """

    V: Any
    rows: Any  # of a block, at the most
    groups: Any  # of eight inputs, and of eight states
    s: Any  # scratch of one tile of gates.py
    d: Any  # (P, samples, 4, lanes) gradients of the sums, of a chunk
    # Their factors, (groups of eight, samples, 8): inputs, states and, reset before,
    # r * h; inputs and states three times where each gate sees them differently.
    a: Any
    e: Any  # (rows, 4, U) gradients of the sums, of a step
    dh: Any  # (rows, V) gradient of the state
    d_output: Any  # (rows, V) gradient of the output that later masked steps repeat
    inner: Any  # (rows, V) products of a step: gradient of r * h, part of dh
    d_x: Any  # (rows, F padded)
    drops: Any  # (3, rows, V) multipliers of the states
    gradient: Any  # (P, 8 groups, 3, lanes) of the weights, of a part
    bias: Any  # (P, 4, lanes) of the biases, of a part


@routine
def _up(count, step):
    return (count + step - 1) // step * step


@routine
def _row(a, slot):
    """Which row of the arrays a block has in a place."""
    return a.order[slot] if a.masked else slot


@routine
def _active(a, slot, t):
    return not a.masked or a.mask[_row(a, slot) * a.mask_row + t * a.mask_step] != 0


@routine
def _capacity(T, F, U, width, size, rows):
    """Count the samples of a chunk: whole steps of `rows` rows."""
    per_sample = (5 * _up(U, width) + F) * size
    fit = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _CHUNK_BYTES // per_sample))
    return max(1, min(T, fit // rows)) * rows


@routine
def _add_rows(n, first, stop, a, a_row, b, b_column, K, c, c_row, width, most):
    """``c += a b`` for n rows and the vectors from `first` to `stop`.

    Rows outside: with columns outside, in blocks of k or not, the whole backward pass
    took 1.4 times as long at 256 units and more.
    """
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        v = first
        while v < stop:
            wide = 3 if v + 3 <= stop else 1
            add_product(
                m, wide, at(a, i * a_row), a_row, 1, at(b, v * b_column), width,
                b_column, K, at(c, i * c_row + v * width), c_row, width,
            )  # fmt: skip
            v += wide
        i += m


@routine
def _pack_inputs(a, w, b, n, t, first, capacity):
    """Put the x of one step into the chunk, zeros where it is masked."""
    F = a.F
    for i in range(n):
        x = at(a.x, _row(a, b + i) * a.x_row + t * a.x_step)
        active = _active(a, b + i, t)
        for k in range(0, F, _GROUP):
            target = at(w.a, (k // _GROUP * capacity + first + i) * _GROUP)
            if active and k + _GROUP <= F:
                copy_eight(target, at(x, k))
            else:
                for j in range(_GROUP):
                    inside = active and k + j < F
                    target[j] = x[k + j] if inside else 0


@routine
def _pack_inputs_per_gate(a, w, b, n, t, first, capacity):
    """Put the x of one step into the chunk, as each gate sees it."""
    F = a.F
    groups = _up(F, _GROUP) // _GROUP
    for g in range(3):
        for i in range(n):
            row = _row(a, b + i)
            x = at(a.x, row * a.x_row + t * a.x_step)
            drop = at(a.x_drop, (g * a.B + row) * F)
            active = _active(a, b + i, t)
            for k in range(groups * _GROUP):
                group = g * groups + k // _GROUP
                target = at(w.a, (group * capacity + first + i) * _GROUP + k % _GROUP)
                value = w.d_x[0] * 0
                if active and k < F:
                    value = x[k] * drop[k] if a.drops_x else x[k]
                target[0] = value


@routine
def _load_tile(a, w, b, i, m, p, t):
    """Bring one tile of what was saved, the old states and gradients into scratch."""
    width = vector_lanes(a.x)
    T, U = a.T, a.U
    V = _up(U, width)
    size = tile_size(a.x)
    s, first = w.s, p * width
    for r in range(m):
        slot = b + i + r
        saved = at(a.saved, (slot * T + t) * 4 * V + first)
        lane = r * width
        for gate in range(4):
            copy_vector(at(s, gate * size + lane), at(saved, gate * V))
        h = at(s, H * size + lane)
        if t > 0:
            copy_vector(h, at(a.states, (slot * T + t - 1) * V + first))
        else:
            row = _row(a, slot)
            for j in range(width):
                u = first + j
                h[j] = a.h0[row * U + u] if u < U else 0
        copy_vector(at(s, D * size + lane), at(w.dh, (i + r) * V + first))


@routine
def _clear_masked(a, w, b, i, m, t, sections, size, width):
    """Zero the gradients and factors of the tile's masked rows."""
    if a.masked:
        for r in range(m):
            if not _active(a, b + i + r, t):
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
        target = at(e, ((i + r) * 4 + gate) * U + p * width)
        count = min(width, U - p * width)
        if count == width:
            copy_vector(target, source)
        else:
            for j in range(count):
                target[j] = source[j]


@routine
def _emit_factor(a, w, section, i, m, p, group, first, capacity, size):
    """Hand old states, or r * h, to the chunk's products, in groups of eight units."""
    width = vector_lanes(a.x)
    for r in range(m):
        source = at(w.s, section * size + r * width)
        sample = first + i + r
        if width >= _GROUP:
            for k in range(width // _GROUP):
                g = group + p * (width // _GROUP) + k
                target = at(w.a, (g * capacity + sample) * _GROUP)
                copy_eight(target, at(source, k * _GROUP))
        else:
            g, rest = group + p * width // _GROUP, p * width % _GROUP
            target = at(w.a, (g * capacity + sample) * _GROUP + rest)
            copy_vector(target, source)


@routine
def _emit_states_per_gate(a, w, b, i, m, p, group, count, first, capacity, size):
    """Hand old states to the chunk's products as the first `count` gates see them.

    The section of the gradients to come serves as scratch.
    """
    width = vector_lanes(a.x)
    states = _up(w.V, _GROUP) // _GROUP
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
    V = _up(a.U, width)
    for r in range(m):
        if _active(a, b + i + r, t):
            source = at(w.s, D * size + r * width)
            copy_vector(at(w.dh, (i + r) * V + p * width), source)


@routine
def _take_output_gradient(a, w, own, b, i, t):
    """Add the gradient of this step's output to that of the state it came from."""
    U, V = a.U, w.V
    width = vector_lanes(a.x)
    panel, stop_panel = share_of(own, V // width, 1)
    start, stop = panel * width, min(U, stop_panel * width)
    last = a.has_d_last and t == a.T - 1
    row = _row(a, b + i)
    dh, carried = at(w.dh, i * V), at(w.d_output, i * V)
    d_y = at(a.d_y, row * a.d_y_row + t * a.d_y_step)
    d_last = at(a.d_last, row * U)
    if not a.masked:
        if a.has_d_y:
            for u in range(start, stop):
                dh[u] += d_y[u]
        if last:
            for u in range(start, stop):
                dh[u] += d_last[u]
        return
    active = _active(a, b + i, t)
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
                _take_output_gradient(a, w, own, b, i, step)
                if is_first(own):
                    d_x = at(a.d_x, _row(a, b + i) * a.d_x_row + step * a.d_x_step)
                    for f in range(a.F):
                        d_x[f] = 0
    return going


@routine
def _samples_before(a, b, total, capacity, step_number):
    """Count what a chunk has before a step, as the loop of a block does."""
    n, samples = 0, 0
    for step in range(step_number):
        n = _going_at(a, b, n, total, a.T - 1 - step)
        samples += n
        if samples + total > capacity:
            samples = 0
    return samples


@routine
def _add_to_dh(a, w, own, n, e, K):
    """Add the gradients of K sums after the first U, times their weights, to dh.

    Summed up from zero: small terms added one by one to a large dh would each leave a
    rounding error of its size, four to ten times NumPy's at 70 units (test_kernels.py).
    """
    width = vector_lanes(a.x)
    V = w.V
    first, stop = share_of(own, V // width, 1)
    _multiply_recurrent(a, w, own, n, at(e, a.U), 0, K)
    for i in range(n):
        for j in range(i * V + first * width, i * V + stop * width):
            w.dh[j] += w.inner[j]


@routine
def _add_to_dh_per_gate(a, w, own, n, e, gates):
    """Do the same where each gate has multipliers of the state."""
    width = vector_lanes(a.x)
    V = w.V
    first, stop = share_of(own, V // width, 1)
    for g in range(gates):
        _multiply_recurrent(a, w, own, n, at(e, (1 + g) * a.U), g * a.U, a.U)
        _drop_products(w, g, n, first * width, stop * width)
        for i in range(n):
            for j in range(i * V + first * width, i * V + stop * width):
                w.dh[j] += w.inner[j]


@routine
def _drop_products(w, g, n, start, stop):
    """Multiply the products of a step by the multipliers of gate g."""
    for i in range(n):
        drop = at(w.drops, (g * w.rows + i) * w.V)
        inner = at(w.inner, i * w.V)
        for j in range(start, stop):
            inner[j] *= drop[j]


@routine
def _multiply_recurrent(a, w, own, n, d, k, K):
    """Put K sums' gradients, times the recurrent kernel from row k on, into `inner`."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    U, V = a.U, w.V
    first, stop = share_of(own, V // width, 1)
    for i in range(n):
        for j in range(i * V + first * width, i * V + stop * width):
            w.inner[j] = 0
    _add_rows(
        n, first, stop, d, 4 * U, at(a.recurrent, k * width), 3 * U * width, K,
        w.inner, V, width, most,
    )  # fmt: skip


def _step_reset_after(per_gate):
    """Make the part of a step before all products."""

    @section
    def step(a, w, act, rec, d_act, d_rec, words, own, e, b, n, t, first, capacity):
        width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
        F, U = a.F, a.U
        p_first, p_stop = share_of(own, w.V // width, 1)
        group = (3 if per_gate else 1) * (_up(F, _GROUP) // _GROUP)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            count = _up(m * width, D_BLOCK)
            for p in range(p_first, p_stop):
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


def _step_reset_before(per_gate):
    """Make the part of a step before the products with the weights of z and r."""

    @section
    def step(a, w, act, rec, d_act, d_rec, words, own, e, b, n, t, first, capacity):
        width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
        F, U, V = a.F, a.U, w.V
        p_first, p_stop = share_of(own, V // width, 1)
        group = (3 if per_gate else 1) * (_up(F, _GROUP) // _GROUP)
        inner_group = group + (2 if per_gate else 1) * (_up(V, _GROUP) // _GROUP)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            count = _up(m * width, D_BLOCK)
            for p in range(p_first, p_stop):
                _load_tile(a, w, b, i, m, p, t)
                d_next_state(act, rec, d_act, w.s, size, count, U)
                _clear_masked(a, w, b, i, m, t, (D_HH, RECURRENT), size, width)
                _emit_sum(a, w, e, 0, i, m, p, first, capacity, size)
                _emit_factor(
                    a, w, RECURRENT, i, m, p, inner_group, first, capacity, size
                )
            i += m
        meet(words, own)
        _multiply_recurrent(a, w, own, n, e, 2 * U, U)
        if per_gate:
            _drop_products(w, 2, n, p_first * width, p_stop * width)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            count = _up(m * width, D_BLOCK)
            for p in range(p_first, p_stop):
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


@section
def _input_gradient(a, w, own, e, b, n, t):
    """Multiply the gradients of a step's sums with the transposed kernel."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.F, a.U
    FV = _up(F, width)
    first, stop = share_of(own, FV // width, 1)
    start, end = first * width, min(F, stop * width)
    for i in range(n):
        for j in range(i * FV + start, i * FV + stop * width):
            w.d_x[j] = 0
    _add_rows(
        n, first, stop, e, 4 * U, a.kernel, 3 * U * width, 3 * U, w.d_x, FV, width, most
    )
    for i in range(n):
        target = at(a.d_x, _row(a, b + i) * a.d_x_row + t * a.d_x_step)
        for f in range(start, end):
            target[f] = w.d_x[i * FV + f]


@section
def _input_gradient_per_gate(a, w, own, e, b, n, t):
    """Do the same where each gate has multipliers of the inputs."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.F, a.U
    FV = _up(F, width)
    first, stop = share_of(own, FV // width, 1)
    start, end = first * width, min(F, stop * width)
    for place in range(3):
        g = (place + 2) % 3
        for i in range(n):
            for j in range(i * FV + start, i * FV + stop * width):
                w.d_x[j] = 0
        _add_rows(
            n, first, stop, at(e, place * U), 4 * U, at(a.kernel, place * U * width),
            3 * U * width, U, w.d_x, FV, width, most,
        )  # fmt: skip
        for i in range(n):
            row = _row(a, b + i)
            target = at(a.d_x, row * a.d_x_row + t * a.d_x_step)
            drop = at(a.x_drop, (g * a.B + row) * F)
            for f in range(start, end):
                d = w.d_x[i * FV + f]
                if a.drops_x:
                    d *= drop[f]
                target[f] = target[f] + d if place > 0 else d


@routine
def _add_group(a, w, p, gate, columns, group, place, column, capacity, samples):
    """Add a chunk to the gradients of eight inputs of a panel.

    `gate` of d and `group` of a are multiplied into `column` of group `place`.
    """
    width, most = vector_lanes(a.x), most_rows(a.x)
    factors = at(w.a, group * capacity * _GROUP)
    sums = at(w.d, (p * capacity * 4 + gate) * width)
    spot = ((p * w.groups + place) * _GROUP * 3 + column) * width
    for half in range(0, _GROUP, most):
        add_product(
            most, columns, at(factors, half), 1, _GROUP, sums, 4 * width, width,
            samples, at(w.gradient, spot + half * 3 * width), 3 * width, width,
        )  # fmt: skip


@section
def _add_chunk(a, w, own, reset_after, per_gate, capacity, samples):
    """Add a chunk to the gradients of weights and biases."""
    width = vector_lanes(a.x)
    inputs, states = _up(a.F, _GROUP) // _GROUP, _up(w.V, _GROUP) // _GROUP
    first, stop = share_of(own, w.V // width, 1)
    last = 3 if reset_after else 0  # which of d belongs to the candidate's states
    for p in range(first, stop):
        for k in range(inputs):
            if per_gate:
                for place in range(3):
                    group = (place + 2) % 3 * inputs + k
                    _add_group(a, w, p, place, 1, group, k, place, capacity, samples)
            else:
                _add_group(a, w, p, 0, 3, k, k, 0, capacity, samples)
        for k in range(states):
            place = inputs + k
            if per_gate:
                for g in range(3):
                    d = 1 + g if g < 2 else last
                    group = 3 * inputs + g * states + k
                    _add_group(a, w, p, d, 1, group, place, g, capacity, samples)
            elif reset_after:
                _add_group(a, w, p, 1, 3, place, place, 0, capacity, samples)
            else:
                _add_group(a, w, p, 1, 1, place, place, 0, capacity, samples)
                _add_group(a, w, p, 2, 1, place, place, 1, capacity, samples)
                _add_group(a, w, p, 0, 1, place + states, place, 2, capacity, samples)
        sums = at(w.d, p * capacity * 4 * width)
        one = w.s
        one[0] = 1
        for gate in range(4 if reset_after else 3):
            add_product(
                1, 1, one, 0, 0, at(sums, gate * width), 4 * width, width, samples,
                at(w.bias, (p * 4 + gate) * width), 0, width,
            )  # fmt: skip


def _block_of(reset_after, per_gate):
    """Make the loop of one block of rows back through time."""
    step = (_step_reset_after if reset_after else _step_reset_before)(per_gate)
    gates = 3 if reset_after else 2

    @section
    def block(a, w, act, rec, d_act, d_rec, words, own, b, total, capacity, start):
        T, U = a.T, a.U
        if start == 0:
            _begin(a, w, b, total)
            if per_gate:
                _take_multipliers(a, w, b, total)
        # Who enters late begins after the gates of a step.
        step_number = max(0, start - 1)
        n = _going_at(a, b, 0, total, T - step_number) if start > 0 else 0
        samples = _samples_before(a, b, total, capacity, step_number)
        stays = True
        while stays and step_number < T:
            t = T - 1 - step_number
            # While some still read the gradients of a step others write the next ones.
            parity = step_number % 2 if words[TOGETHER] != 0 else 0
            e = at(w.e, parity * total * 4 * U)
            if step_number >= start:
                n = _enter_rows(a, w, own, b, n, total, t)
                for i in range(n):
                    _take_output_gradient(a, w, own, b, i, t)
                if is_first(own) and per_gate:
                    _pack_inputs_per_gate(a, w, b, n, t, samples, capacity)
                elif is_first(own):
                    _pack_inputs(a, w, b, n, t, samples, capacity)
                step(
                    a, w, act, rec, d_act, d_rec, words, own, e, b, n, t, samples,
                    capacity,
                )  # fmt: skip
                stays = turn(words, own, step_number)
            else:
                n = _going_at(a, b, n, total, t)
            if stays:
                if per_gate:
                    _add_to_dh_per_gate(a, w, own, n, e, gates)
                    _input_gradient_per_gate(a, w, own, e, b, n, t)
                else:
                    _add_to_dh(a, w, own, n, e, gates * U)
                    _input_gradient(a, w, own, e, b, n, t)
                samples += n
                if samples + total > capacity or t == 0:
                    _add_chunk(a, w, own, reset_after, per_gate, capacity, samples)
                    samples = 0
                    meet(words, own)
            step_number += 1
        if stays:
            _enter_rows(a, w, own, b, n, total, -1)
            _give_initial(a, w, own, b, total)
        return stays

    return block


@routine
def _give_initial(a, w, own, b, n):
    """Hand over the gradients of the initial states."""
    width = vector_lanes(a.x)
    U, V = a.U, w.V
    first, stop = share_of(own, V // width, 1)
    for i in range(n):
        for u in range(first * width, min(U, stop * width)):
            a.d_h0[_row(a, b + i) * U + u] = w.dh[i * V + u]


@routine
def _take_multipliers(a, w, b, n):
    """Fetch the multipliers of the states."""
    U, V = a.U, w.V
    for g in range(3):
        for i in range(n):
            target = at(w.drops, (g * w.rows + i) * V)
            given = at(a.h_drop, (g * a.B + _row(a, b + i)) * U)
            for u in range(V):
                target[u] = given[u] if a.drops_h and u < U else 1


@routine
def _begin(a, w, b, n):
    """Take the gradients of the final states."""
    U, V = a.U, w.V
    for j in range(n * V):
        w.dh[j] = 0
        w.d_output[j] = 0
    for i in range(n):
        for u in range(U):
            if a.has_d_state:
                w.dh[i * V + u] = a.d_state[_row(a, b + i) * U + u]
            if a.T == 0 and a.has_d_last:
                w.dh[i * V + u] += a.d_last[_row(a, b + i) * U + u]


@routine
def _unpack(a, w, own, d_W, d_R, d_bias):
    """Bring a part's gradients from panels to the layout of the weights."""
    width = vector_lanes(a.x)
    F, U = a.F, a.U
    inputs = _up(F, _GROUP)
    p_first, p_stop = share_of(own, w.V // width, 1)
    for p in range(p_first, p_stop):
        first = p * width
        count = min(width, U - first)
        for k in range(F + U):
            row = p * w.groups * _GROUP + (k if k < F else inputs + k - F)
            for g in range(3):
                # Inputs have the candidate first, states have it last.
                gate = (g + 1) % 3 if k < F else g
                source = at(w.gradient, (row * 3 + gate) * width)
                if k < F:
                    for j in range(count):
                        d_W[k, g, first + j] = source[j]
                else:
                    for j in range(count):
                        d_R[k - F, g, first + j] = source[j]
        for j in range(count):
            for g in range(3):
                d_bias[g, first + j] = w.bias[(p * 4 + (g + 1) % 3) * width + j]
            d_bias[3, first + j] = w.bias[(p * 4 + 3) * width + j]


@routine
def _clear(a, w):
    """Make the gradients of a part zero."""
    for j in range(w.V * w.groups * _GROUP * 3):
        w.gradient[j] = 0
    for j in range(w.V * 4):
        w.bias[j] = 0


@section
def _work(a, s, shared, rows, capacity, groups, factors, drop_rows):
    """Cut the memory that the threads of a part share."""
    U, V = a.U, _up(a.U, vector_lanes(a.x))
    d = shared
    factor = at(d, V * capacity * 4)
    e = at(factor, factors * capacity * _GROUP)
    dh = at(e, 2 * rows * 4 * U)
    d_output = at(dh, rows * V)
    inner = at(d_output, rows * V)
    d_x = at(inner, rows * V)
    drops = at(d_x, rows * _up(a.F, vector_lanes(a.x)))
    gradient = at(drops, drop_rows * V)
    bias = at(gradient, V * groups * _GROUP * 3)
    return Work(
        V, rows, groups, s, d, factor, e, dh, d_output, inner, d_x, drops, gradient,
        bias,
    )  # fmt: skip


def _parts_of(reset_after, per_gate):
    """Make the loop over parts, and in each over its blocks."""
    block = _block_of(reset_after, per_gate)

    @routine
    def parts(words, helper, data):
        rows_per_part, act, rec, d_act, d_rec, x = data[:6]
        d_W, d_R, d_bias = data[23:]
        a = _arrays(data)
        width = vector_lanes(a.x)
        F, U = a.F, a.U
        V = _up(U, width)
        rows = min(rows_per_part, _MOST_BLOCK_ROWS)
        capacity = _capacity(a.T, F, U, width, x.itemsize, rows)
        states = _up(V, _GROUP) // _GROUP
        groups = _up(F, _GROUP) // _GROUP + states
        factors = groups if reset_after else groups + states
        drop_rows = 0
        if per_gate:
            factors, drop_rows = 3 * groups, 3 * rows
        private = OWN + D_SECTIONS * tile_size(a.x)
        together = words[TOGETHER] != 0
        total = private
        if not (together and helper):
            total += (
                V * capacity * 4 + factors * capacity * _GROUP
                + rows * (2 * 4 * U + 3 * V) + rows * _up(F, width) + drop_rows * V
                + V * groups * _GROUP * 3 + V * 4
            )  # fmt: skip
        work = np.empty(total, x.dtype)
        own = words_at(address_of(pointer(work)))
        s = at(pointer(work), OWN)
        for j in range(private - OWN):
            s[j] = 0
        shared = at(pointer(work), private)
        if together and not helper:
            words[SHARED] = address_of(shared)
        start = enter(words, helper, own)
        if together and helper:
            shared = numbers_at(shared, words[SHARED])
        w = _work(a, s, shared, rows, capacity, groups, factors, drop_rows)
        k = 0 if together else next_item(words, -1)
        while start >= 0 and k < d_W.shape[0]:
            if start == 0:
                _clear(a, w)
            stop = min(a.B, (k + 1) * rows_per_part)
            stays = True
            for b in range(k * rows_per_part, stop, rows):
                n = min(rows, stop - b)
                stays = block(
                    a, w, act, rec, d_act, d_rec, words, own, b, n, capacity, start
                )
            if stays:
                _unpack(a, w, own, d_W[k], d_R[k], d_bias[k])
            k = d_W.shape[0] if together else next_item(words, k)
        leave(words, own)
        hold(work)

    return sharing(parts)


# By reset_after and dropout per gate.
_BACKWARD = {key: _parts_of(*key) for key in itertools.product((True, False), repeat=2)}
_run_backward = choosing(_BACKWARD)


def backward_kernel(
    variant, act, rec, d_act, d_rec, x, h0, mask, order, ends, kernel, recurrent,
    x_drop, h_drop, zero_output, first_is_state, d_y, d_last, d_state, saved, states,
    rows_per_part, d_x, d_h0, d_W, d_R, d_bias, words,
):  # fmt: skip
    """Run all parts."""
    data = (
        rows_per_part, act, rec, d_act, d_rec, x, h0, mask, order, ends, kernel,
        recurrent, x_drop, h_drop, zero_output, first_is_state, d_y, d_last, d_state,
        saved, states, d_x, d_h0, d_W, d_R, d_bias,
    )  # fmt: skip
    _run_backward(variant, pointer(words), data)


def _signature(variant, real, act, rec, d_act, d_rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        variant, act, rec, d_act, d_rec, array(3, "A"), array(2), mask, WORD_ARRAY,
        WORD_ARRAY, array(1), array(1), array(3), array(3), flag, flag, array(3, "A"),
        array(2), array(2), array(4), array(3), types.intp, array(3, "A"), array(2),
        array(4), array(4), array(3), WORD_ARRAY,
    )  # fmt: skip


BACKWARD = Kernel(backward_kernel, _signature)


def backward(
    call: Call,
    given: Cotangents,
    out: Outputs,
    rows_per_part: int,
    parts: Parts,
    most: int,
) -> None:
    """Run the backward kernel on at most `most` threads."""
    values, kinds = call.backward_activations
    kind = variant(call.reset_after, call.per_gate)
    entry = BACKWARD.entry(kind.type, call.real, *kinds)
    arguments = (
        kind, *values, call.x, call.h0, call.mask, *rows_by_end(call.mask),
        *call.weights.transposed_panels, call.x_drop, call.h_drop, call.zero_output,
        call.first_is_state, *given, out.saved, out.states,
        rows_per_part, *parts,
    )  # fmt: skip
    count = parts.W.shape[0]
    together = count == 1 and call.x.shape[1] > 1
    run(entry, arguments, most if together else min(most, count), together)

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
from numbagru.kernels.call import Call, Cotangents, Outputs, Parts
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
from numbagru.kernels.threads import split
from numbagru.kernels.tiles import add_product, tile_rows

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
    kernel: Any  # transposed weights packed as in kernels/panels.py
    recurrent: Any
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
def _arrays(
    x, h0, mask, kernel, recurrent, zero_output, first_is_state, d_y, d_last, d_state,
    saved, states, d_x, d_h0,
):  # fmt: skip
    size = x.itemsize
    return Arrays(
        x.shape[0], x.shape[1], x.shape[2], h0.shape[1],
        pointer(x), x.strides[0] // size, x.strides[1] // size, pointer(h0),
        pointer(mask), mask.strides[0], mask.strides[1], mask.size > 0,
        pointer(kernel), pointer(recurrent), zero_output, first_is_state,
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
    groups: Any  # of eight inputs, and of eight states
    s: Any  # scratch of one tile of gates.py
    d: Any  # (P, samples, 4, lanes) gradients of the sums, of a chunk
    a: Any  # (groups of 8 of F, U and, reset before, U; samples, 8) their factors
    e: Any  # (rows, 4, U) gradients of the sums, of a step
    dh: Any  # (rows, V) gradient of the state
    d_output: Any  # (rows, V) gradient of the output that later masked steps repeat
    inner: Any  # (rows, V) products of a step: gradient of r * h, part of dh
    d_x: Any  # (rows, F padded)
    gradient: Any  # (P, 8 groups, 3, lanes) of the weights, of a part
    bias: Any  # (P, 4, lanes) of the biases, of a part


@routine
def _up(count, step):
    return (count + step - 1) // step * step


@routine
def _active(a, b, t):
    return not a.masked or a.mask[b * a.mask_row + t * a.mask_step] != 0


@routine
def _capacity(T, F, U, width, size, rows):
    """Count the samples of a chunk: whole steps of `rows` rows."""
    per_sample = (5 * _up(U, width) + F) * size
    fit = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _CHUNK_BYTES // per_sample))
    return max(1, min(T, fit // rows)) * rows


@routine
def _add_rows(n, columns, a, a_row, b, b_column, K, c, width, most):
    """``c += a b`` for n rows and all columns; c has a row of `columns` vectors.

    Rows outside: with columns outside, in blocks of k or not, the whole backward pass
    took 1.4 times as long at 256 units and more.
    """
    c_row = columns * width
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        v = 0
        while v < columns:
            wide = 3 if v + 3 <= columns else 1
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
    groups = w.a
    for i in range(n):
        x = at(a.x, (b + i) * a.x_row + t * a.x_step)
        active = _active(a, b + i, t)
        for k in range(0, F, _GROUP):
            target = at(groups, (k // _GROUP * capacity + first + i) * _GROUP)
            if active and k + _GROUP <= F:
                copy_eight(target, at(x, k))
            else:
                for j in range(_GROUP):
                    inside = active and k + j < F
                    target[j] = x[k + j] if inside else 0


@routine
def _load_tile(a, w, b, i, m, p, t):
    """Bring one tile of what was saved, the old states and gradients into scratch."""
    width = vector_lanes(a.x)
    T, U = a.T, a.U
    V = _up(U, width)
    size = tile_size(a.x)
    s, first = w.s, p * width
    for r in range(m):
        row = b + i + r
        saved = at(a.saved, (row * T + t) * 4 * V + first)
        lane = r * width
        for gate in range(4):
            copy_vector(at(s, gate * size + lane), at(saved, gate * V))
        h = at(s, H * size + lane)
        if t > 0:
            copy_vector(h, at(a.states, (row * T + t - 1) * V + first))
        else:
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
def _emit_sum(a, w, gate, i, m, p, first, capacity, size):
    """Hand the gradient of one sum to the step's and the chunk's products."""
    width = vector_lanes(a.x)
    U = a.U
    for r in range(m):
        source = at(w.s, (D_HH + gate) * size + r * width)
        sample = (p * capacity + first + i + r) * 4 + gate
        copy_vector(at(w.d, sample * width), source)
        target = at(w.e, ((i + r) * 4 + gate) * U + p * width)
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
def _keep_dh(a, w, b, i, m, p, t, size):
    """Take the gradient of the old states from scratch; masked rows keep theirs."""
    width = vector_lanes(a.x)
    V = _up(a.U, width)
    for r in range(m):
        if _active(a, b + i + r, t):
            source = at(w.s, D * size + r * width)
            copy_vector(at(w.dh, (i + r) * V + p * width), source)


@routine
def _take_output_gradient(a, w, b, n, t):
    """Add the gradient of this step's output to that of the state it came from."""
    U, V = a.U, w.V
    last = a.has_d_last and t == a.T - 1
    for i in range(n):
        dh, carried = at(w.dh, i * V), at(w.d_output, i * V)
        d_y = at(a.d_y, (b + i) * a.d_y_row + t * a.d_y_step)
        d_last = at(a.d_last, (b + i) * U)
        active = _active(a, b + i, t)
        if active and not a.masked:
            if a.has_d_y:
                for u in range(U):
                    dh[u] += d_y[u]
            if last:
                for u in range(U):
                    dh[u] += d_last[u]
            continue
        repeats = not (active or a.zero_output)
        reaches = active or (t == 0 and a.first_is_state and not a.zero_output)
        for u in range(U):
            d = carried[u]
            if last:
                d += d_last[u]
            if a.has_d_y:
                d += d_y[u]
            if reaches:
                dh[u] += d
            carried[u] = d if repeats else 0


@routine
def _add_to_dh(a, w, n, K):
    """Add the gradients of K sums, times the recurrent kernel, to dh.

    Summed up from zero: small terms added one by one to a large dh would each leave a
    rounding error of its size, four to ten times NumPy's at 70 units (test_kernels.py).
    """
    width, most = vector_lanes(a.x), most_rows(a.x)
    U, V = a.U, w.V
    for j in range(n * V):
        w.inner[j] = 0
    _add_rows(
        n, V // width, at(w.e, U), 4 * U, a.recurrent, 3 * U * width, K, w.inner,
        width, most,
    )  # fmt: skip
    for j in range(n * V):
        w.dh[j] += w.inner[j]


@section
def _step_reset_after(a, w, act, rec, d_act, d_rec, b, n, t, first, capacity):
    width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
    F, U = a.F, a.U
    P = (U + width - 1) // width
    group = _up(F, _GROUP) // _GROUP
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        count = _up(m * width, D_BLOCK)
        for p in range(P):
            _load_tile(a, w, b, i, m, p, t)
            d_step_reset_after(act, rec, d_act, d_rec, w.s, size, count, U)
            _clear_masked(
                a, w, b, i, m, t, (D_HH, D_Z, D_R, D_RECURRENT, H), size, width
            )
            for gate in range(4):
                _emit_sum(a, w, gate, i, m, p, first, capacity, size)
            _emit_factor(a, w, H, i, m, p, group, first, capacity, size)
            _keep_dh(a, w, b, i, m, p, t, size)
        i += m
    _add_to_dh(a, w, n, 3 * U)


@section
def _step_reset_before(a, w, act, rec, d_act, d_rec, b, n, t, first, capacity):
    width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
    F, U = a.F, a.U
    P = (U + width - 1) // width
    V = P * width
    group = _up(F, _GROUP) // _GROUP
    inner_group = group + _up(V, _GROUP) // _GROUP
    for j in range(n * V):
        w.inner[j] = 0
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        count = _up(m * width, D_BLOCK)
        for p in range(P):
            _load_tile(a, w, b, i, m, p, t)
            d_next_state(act, rec, d_act, w.s, size, count, U)
            _clear_masked(a, w, b, i, m, t, (D_HH, RECURRENT), size, width)
            _emit_sum(a, w, 0, i, m, p, first, capacity, size)
            _emit_factor(a, w, RECURRENT, i, m, p, inner_group, first, capacity, size)
        i += m
    _add_rows(
        n, P, w.e, 4 * U, at(a.recurrent, 2 * U * width), 3 * U * width, U, w.inner,
        width, most,
    )  # fmt: skip
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        count = _up(m * width, D_BLOCK)
        for p in range(P):
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
                _emit_sum(a, w, gate, i, m, p, first, capacity, size)
            _emit_factor(a, w, H, i, m, p, group, first, capacity, size)
            _keep_dh(a, w, b, i, m, p, t, size)
        i += m
    _add_to_dh(a, w, n, 2 * U)


@section
def _input_gradient(a, w, b, n, t):
    """Multiply the gradients of a step's sums with the transposed kernel."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.F, a.U
    FV = _up(F, width)
    for j in range(n * FV):
        w.d_x[j] = 0
    _add_rows(
        n, FV // width, w.e, 4 * U, a.kernel, 3 * U * width, 3 * U, w.d_x, width, most
    )
    for i in range(n):
        target = at(a.d_x, (b + i) * a.d_x_row + t * a.d_x_step)
        for f in range(F):
            target[f] = w.d_x[i * FV + f]


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
def _add_chunk(a, w, reset_after, capacity, samples):
    """Add a chunk to the gradients of weights and biases."""
    width = vector_lanes(a.x)
    F, U = a.F, a.U
    P = (U + width - 1) // width
    inputs, states = _up(F, _GROUP) // _GROUP, _up(P * width, _GROUP) // _GROUP
    for p in range(P):
        for g in range(inputs):
            _add_group(a, w, p, 0, 3, g, g, 0, capacity, samples)
        for g in range(inputs, inputs + states):
            if reset_after:
                _add_group(a, w, p, 1, 3, g, g, 0, capacity, samples)
            else:
                _add_group(a, w, p, 1, 1, g, g, 0, capacity, samples)
                _add_group(a, w, p, 2, 1, g, g, 1, capacity, samples)
                _add_group(a, w, p, 0, 1, g + states, g, 2, capacity, samples)
        sums = at(w.d, p * capacity * 4 * width)
        one = w.s
        one[0] = 1
        for gate in range(4 if reset_after else 3):
            add_product(
                1, 1, one, 0, 0, at(sums, gate * width), 4 * width, width, samples,
                at(w.bias, (p * 4 + gate) * width), 0, width,
            )  # fmt: skip


def _block_of(step, reset_after):
    """Make the loop of one block of rows back through time."""

    @routine
    def block(a, w, act, rec, d_act, d_rec, b, n, capacity):
        T, U = a.T, a.U
        V = _up(U, vector_lanes(a.x))
        for j in range(n * V):
            w.dh[j] = 0
            w.d_output[j] = 0
        for i in range(n):
            for u in range(U):
                if a.has_d_state:
                    w.dh[i * V + u] = a.d_state[(b + i) * U + u]
                if T == 0 and a.has_d_last:
                    w.dh[i * V + u] += a.d_last[(b + i) * U + u]
        samples = 0
        for t in range(T - 1, -1, -1):
            _take_output_gradient(a, w, b, n, t)
            _pack_inputs(a, w, b, n, t, samples, capacity)
            step(a, w, act, rec, d_act, d_rec, b, n, t, samples, capacity)
            _input_gradient(a, w, b, n, t)
            samples += n
            if samples + n > capacity or t == 0:
                _add_chunk(a, w, reset_after, capacity, samples)
                samples = 0
        for i in range(n):
            for u in range(U):
                a.d_h0[(b + i) * U + u] = w.dh[i * V + u]

    return block


@routine
def _unpack(a, w, d_W, d_R, d_bias):
    """Bring a part's gradients from panels to the layout of the weights."""
    width = vector_lanes(a.x)
    F, U = a.F, a.U
    inputs = _up(F, _GROUP)
    for p in range((U + width - 1) // width):
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


def _part_of(step, reset_after):
    """Make the loop over the blocks of a part."""
    block = _block_of(step, reset_after)

    @routine
    def part(a, w, act, rec, d_act, d_rec, rows, capacity, first, stop):
        for j in range(D_SECTIONS * tile_size(a.x)):
            w.s[j] = 0
        for j in range(w.V * w.groups * _GROUP * 3):
            w.gradient[j] = 0
        for j in range(w.V * 4):
            w.bias[j] = 0
        for b in range(first, stop, rows):
            block(a, w, act, rec, d_act, d_rec, b, min(rows, stop - b), capacity)

    @section
    def allocated(a, act, rec, d_act, d_rec, x, rows_per_part, k, d_W, d_R, d_bias):
        width = vector_lanes(a.x)
        T, F, U = a.T, a.F, a.U
        V = _up(U, width)
        rows = min(rows_per_part, _MOST_BLOCK_ROWS)
        capacity = _capacity(T, F, U, width, x.itemsize, rows)
        groups = _up(F, _GROUP) // _GROUP + _up(V, _GROUP) // _GROUP
        factors = groups if reset_after else groups + _up(V, _GROUP) // _GROUP
        total = (
            D_SECTIONS * tile_size(a.x) + V * capacity * 4 + factors * capacity * _GROUP
            + rows * (4 * U + 3 * V) + rows * _up(F, width)
            + V * groups * _GROUP * 3 + V * 4
        )  # fmt: skip
        work = np.empty(total, x.dtype)
        s = pointer(work)
        d = at(s, D_SECTIONS * tile_size(a.x))
        factor = at(d, V * capacity * 4)
        e = at(factor, factors * capacity * _GROUP)
        dh = at(e, rows * 4 * U)
        d_output = at(dh, rows * V)
        d_inner = at(d_output, rows * V)
        d_x = at(d_inner, rows * V)
        gradient = at(d_x, rows * _up(F, width))
        bias = at(gradient, V * groups * _GROUP * 3)
        w = Work(V, groups, s, d, factor, e, dh, d_output, d_inner, d_x, gradient, bias)
        first, stop = k * rows_per_part, min(a.B, (k + 1) * rows_per_part)
        part(a, w, act, rec, d_act, d_rec, rows, capacity, first, stop)
        _unpack(a, w, d_W[k], d_R[k], d_bias[k])
        hold(work)

    return allocated


_part_reset_after = _part_of(_step_reset_after, True)
_part_reset_before = _part_of(_step_reset_before, False)


def backward_reset_after(
    act, rec, d_act, d_rec, first, stop, x, h0, mask, kernel, recurrent, zero_output,
    first_is_state, d_y, d_last, d_state, saved, states, rows_per_part, d_x, d_h0,
    d_W, d_R, d_bias,
):  # fmt: skip
    """Run the parts from `first` to `stop`."""
    a = _arrays(
        x, h0, mask, kernel, recurrent, zero_output, first_is_state, d_y, d_last,
        d_state, saved, states, d_x, d_h0,
    )  # fmt: skip
    for k in range(first, stop):
        _part_reset_after(
            a, act, rec, d_act, d_rec, x, rows_per_part, k, d_W, d_R, d_bias
        )


def backward_reset_before(
    act, rec, d_act, d_rec, first, stop, x, h0, mask, kernel, recurrent, zero_output,
    first_is_state, d_y, d_last, d_state, saved, states, rows_per_part, d_x, d_h0,
    d_W, d_R, d_bias,
):  # fmt: skip
    """Run the parts from `first` to `stop`."""
    a = _arrays(
        x, h0, mask, kernel, recurrent, zero_output, first_is_state, d_y, d_last,
        d_state, saved, states, d_x, d_h0,
    )  # fmt: skip
    for k in range(first, stop):
        _part_reset_before(
            a, act, rec, d_act, d_rec, x, rows_per_part, k, d_W, d_R, d_bias
        )


def _signature(real, act, rec, d_act, d_rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        act, rec, d_act, d_rec, types.intp, types.intp, array(3, "A"), array(2), mask,
        array(1), array(1), flag, flag, array(3, "A"), array(2), array(2), array(4),
        array(3), types.intp, array(3, "A"), array(2), array(4), array(4), array(3),
    )  # fmt: skip


BACKWARD = {
    True: Kernel(backward_reset_after, _signature),
    False: Kernel(backward_reset_before, _signature),
}


def backward(
    call: Call, given: Cotangents, out: Outputs, rows_per_part: int, parts: Parts
) -> None:
    """Run the backward kernel."""
    values, kinds = call.backward_activations
    entry = BACKWARD[call.reset_after].entry(call.real, *kinds)
    transposed = call.weights.transposed_panels

    def some(first: int, stop: int) -> None:
        entry(
            *values, first, stop, call.x, call.h0, call.mask, *transposed,
            call.zero_output, call.first_is_state, *given, out.saved, out.states,
            rows_per_part, *parts,
        )  # fmt: skip

    split(parts.W.shape[0], some)

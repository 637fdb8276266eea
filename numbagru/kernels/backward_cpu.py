"""Backward on register tiles, for every scalar activation and mask.

In parallel (kernels/threads.py): parts of rows; each adds up its own weight gradients, and the caller adds
the parts in order. A part goes through its rows in blocks, and a block through time in
chunks of a few hundred samples (row and step), backward:
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
    D_HH,
    D_R,
    D_RECURRENT,
    D_SECTIONS,
    D_Z,
    HH,
    RECURRENT,
    D,
    H,
    R,
    Z,
    d_gates_reset_before,
    d_next_state,
    d_step_reset_after,
)
from numbagru.kernels.call import Call, Cotangents, Outputs, Parts
from numbagru.kernels.simd import (
    at,
    copy_eight,
    copy_vector,
    most_rows,
    pointer,
    vector_lanes,
)
from numbagru.kernels.threads import split
from numbagru.kernels.tiles import add_product, tile_rows

# Rows of a tile of weight gradients, and so of the packed inputs and states.
_GROUP = 8
# A chunk's samples fit into half of a 1 MiB second-level cache, within these bounds.
_CHUNK_BYTES = 2**19
_FEWEST_SAMPLES, _MOST_SAMPLES = 64, 512
_MOST_BLOCK_ROWS = 32


class Arrays(NamedTuple):
    """The arguments of the backward kernels, as in kernels/__init__.py."""

    x: Any
    h0: Any
    mask: Any
    kernel: Any  # transposed weights packed as in kernels/panels.py
    recurrent: Any
    zero_output: Any
    first_is_state: Any
    d_y: Any
    d_last: Any
    d_state: Any
    saved: Any
    states: Any
    d_x: Any
    d_h0: Any


class Work(NamedTuple):
    """The working memory of one thread; V is U padded to whole vectors.

    The order of gates in d and e is candidate, z, r, candidate's recurrent part: three
    in a row are what the input side needs, the last three what the recurrent side does.
    """

    s: Any  # scratch of one tile of gates.py
    d: Any  # (P, samples, 4, lanes) gradients of the sums, of a chunk
    a: Any  # (groups of 8 of F, U and, reset before, U; samples, 8) their factors
    e: Any  # (rows, 4, U) gradients of the sums, of a step
    dh: Any  # (rows, V) gradient of the state
    d_output: Any  # (rows, V) gradient of the output that later masked steps repeat
    inner: Any  # (rows, V) gradient of r * h, reset before
    d_x: Any  # (rows, F padded)
    gradient: Any  # (P, 8 groups, 3, lanes) of the weights, of a part
    bias: Any  # (P, 4, lanes) of the biases, of a part


@routine
def _up(count, step):
    return (count + step - 1) // step * step


@routine
def _capacity(F, U, width, size, rows):
    """Samples in a chunk: whole steps of `rows` rows."""
    per_sample = (5 * _up(U, width) + F) * size
    fit = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _CHUNK_BYTES // per_sample))
    return max(1, fit // rows) * rows


@routine
def _add_columns(m, columns, a, a_row, b, b_column, K, c, c_row, width):
    """``c += a b`` for m rows, all columns, three vectors at a time."""
    v = 0
    while v < columns:
        n = 3 if v + 3 <= columns else 1
        add_product(
            m, n, a, a_row, 1, at(b, v * b_column), width, b_column, K,
            at(c, v * width), c_row, width,
        )  # fmt: skip
        v += n


@routine
def _pack_inputs(a, w, b, n, t, first, capacity):
    """Put the x of one step into the chunk, zeros where it is masked."""
    F = a.x.shape[2]
    row, step = a.x.strides[0] // a.x.itemsize, a.x.strides[1] // a.x.itemsize
    groups = pointer(w.a)
    for i in range(n):
        x = at(pointer(a.x), (b + i) * row + t * step)
        active = a.mask.size == 0 or a.mask[b + i, t] != 0
        for k in range(0, F, _GROUP):
            target = at(groups, (k // _GROUP * capacity + first + i) * _GROUP)
            if active and k + _GROUP <= F:
                copy_eight(target, at(x, k))
            else:
                for j in range(_GROUP):
                    inside = active and k + j < F
                    target[j] = x[k + j] if inside else a.x.dtype.type(0)


@routine
def _load_tile(a, w, b, i, m, p, t):
    """Bring one tile of what was saved, the old states and gradients into scratch."""
    width = vector_lanes(a.x)
    T, U = a.x.shape[1], a.h0.shape[1]
    V = _up(U, width)
    size = m * width
    s, first = pointer(w.s), p * width
    for r in range(m):
        row = b + i + r
        saved = at(pointer(a.saved), (row * T + t) * 4 * V + first)
        lane = r * width
        for section in range(4):
            copy_vector(at(s, section * size + lane), at(saved, section * V))
        h = at(s, H * size + lane)
        if t > 0:
            copy_vector(h, at(pointer(a.states), (row * T + t - 1) * V + first))
        else:
            for j in range(width):
                u = first + j
                h[j] = a.h0[row, u] if u < U else a.x.dtype.type(0)
        copy_vector(at(s, D * size + lane), at(pointer(w.dh), (i + r) * V + first))


@routine
def _clear_masked(a, w, b, i, m, t, sections, size, width):
    """Zero the gradients and factors of the tile's masked rows."""
    if a.mask.size > 0:
        for r in range(m):
            if a.mask[b + i + r, t] == 0:
                for section in sections:
                    for j in range(width):
                        w.s[section * size + r * width + j] = 0


@routine
def _emit_sum(a, w, gate, i, m, p, first, capacity, size):
    """Hand the gradient of one sum to the step's and the chunk's products."""
    width = vector_lanes(a.x)
    U = a.h0.shape[1]
    for r in range(m):
        source = at(pointer(w.s), (D_HH + gate) * size + r * width)
        sample = (p * capacity + first + i + r) * 4 + gate
        copy_vector(at(pointer(w.d), sample * width), source)
        target = at(pointer(w.e), ((i + r) * 4 + gate) * U + p * width)
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
        source = at(pointer(w.s), section * size + r * width)
        sample = first + i + r
        if width >= _GROUP:
            for k in range(width // _GROUP):
                g = group + p * (width // _GROUP) + k
                target = at(pointer(w.a), (g * capacity + sample) * _GROUP)
                copy_eight(target, at(source, k * _GROUP))
        else:
            g, rest = group + p * width // _GROUP, p * width % _GROUP
            target = at(pointer(w.a), (g * capacity + sample) * _GROUP + rest)
            copy_vector(target, source)


@routine
def _keep_dh(a, w, b, i, m, p, t, size):
    """Take the gradient of the old states from scratch; masked rows keep theirs."""
    width = vector_lanes(a.x)
    V = _up(a.h0.shape[1], width)
    for r in range(m):
        if a.mask.size == 0 or a.mask[b + i + r, t] != 0:
            source = at(pointer(w.s), D * size + r * width)
            copy_vector(at(pointer(w.dh), (i + r) * V + p * width), source)


@section
def _take_output_gradient(a, w, b, n, t):
    """Add the gradient of this step's output to that of the state it came from."""
    T, U = a.x.shape[1], a.h0.shape[1]
    V = _up(U, vector_lanes(a.x))
    for i in range(n):
        row = b + i
        if a.mask.size == 0:
            if a.d_y.size > 0:
                for u in range(U):
                    w.dh[i * V + u] += a.d_y[row, t, u]
            if t == T - 1 and a.d_last.size > 0:
                for u in range(U):
                    w.dh[i * V + u] += a.d_last[row, u]
            continue
        active = a.mask[row, t] != 0
        for u in range(U):
            d = w.d_output[i * V + u]
            if t == T - 1 and a.d_last.size > 0:
                d += a.d_last[row, u]
            if a.d_y.size > 0:
                d += a.d_y[row, t, u]
            if active or (t == 0 and a.first_is_state and not a.zero_output):
                w.dh[i * V + u] += d
            repeats = not (active or a.zero_output)
            w.d_output[i * V + u] = d if repeats else a.x.dtype.type(0)


@section
def _step_reset_after(a, w, act, rec, d_act, d_rec, b, n, t, first, capacity):
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.x.shape[2], a.h0.shape[1]
    P = (U + width - 1) // width
    V = P * width
    group = _up(F, _GROUP) // _GROUP
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        size = m * width
        for p in range(P):
            _load_tile(a, w, b, i, m, p, t)
            d_step_reset_after(act, rec, d_act, d_rec, w.s, size)
            _clear_masked(
                a, w, b, i, m, t, (D_HH, D_Z, D_R, D_RECURRENT, H), size, width
            )
            for gate in range(4):
                _emit_sum(a, w, gate, i, m, p, first, capacity, size)
            _emit_factor(a, w, H, i, m, p, group, first, capacity, size)
            _keep_dh(a, w, b, i, m, p, t, size)
        _add_columns(
            m, P, at(pointer(w.e), (4 * i + 1) * U), 4 * U, pointer(a.recurrent),
            3 * U * width, 3 * U, at(pointer(w.dh), i * V), V, width,
        )  # fmt: skip
        i += m


@section
def _step_reset_before(a, w, act, rec, d_act, d_rec, b, n, t, first, capacity):
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.x.shape[2], a.h0.shape[1]
    P = (U + width - 1) // width
    V = P * width
    group = _up(F, _GROUP) // _GROUP
    inner_group = group + _up(V, _GROUP) // _GROUP
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        size = m * width
        inner = at(pointer(w.inner), i * V)
        for j in range(m * V):
            inner[j] = 0
        for p in range(P):
            _load_tile(a, w, b, i, m, p, t)
            d_next_state(act, rec, d_act, w.s, size)
            _clear_masked(a, w, b, i, m, t, (D_HH, RECURRENT), size, width)
            for gate in range(1):
                _emit_sum(a, w, gate, i, m, p, first, capacity, size)
            _emit_factor(a, w, RECURRENT, i, m, p, inner_group, first, capacity, size)
        _add_columns(
            m, P, at(pointer(w.e), 4 * i * U), 4 * U,
            at(pointer(a.recurrent), 2 * U * width), 3 * U * width, U, inner, V, width,
        )  # fmt: skip
        for p in range(P):
            _load_tile(a, w, b, i, m, p, t)
            d_next_state(act, rec, d_act, w.s, size)
            for r in range(m):
                copy_vector(
                    at(pointer(w.s), D_RECURRENT * size + r * width),
                    at(inner, r * V + p * width),
                )
            d_gates_reset_before(rec, d_rec, w.s, size)
            _clear_masked(a, w, b, i, m, t, (D_Z, D_R, H), size, width)
            for gate in range(1, 3):
                _emit_sum(a, w, gate, i, m, p, first, capacity, size)
            _emit_factor(a, w, H, i, m, p, group, first, capacity, size)
            _keep_dh(a, w, b, i, m, p, t, size)
        _add_columns(
            m, P, at(pointer(w.e), (4 * i + 1) * U), 4 * U, pointer(a.recurrent),
            3 * U * width, 2 * U, at(pointer(w.dh), i * V), V, width,
        )  # fmt: skip
        i += m


@section
def _input_gradient(a, w, b, n, t):
    """Multiply the gradients of a step's sums with the transposed kernel."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.x.shape[2], a.h0.shape[1]
    FV = _up(F, width)
    row, step = a.d_x.strides[0] // a.x.itemsize, a.d_x.strides[1] // a.x.itemsize
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        for j in range(m * FV):
            w.d_x[j] = 0
        _add_columns(
            m, FV // width, at(pointer(w.e), 4 * i * U), 4 * U, pointer(a.kernel),
            3 * U * width, 3 * U, pointer(w.d_x), FV, width,
        )  # fmt: skip
        for r in range(m):
            target = at(pointer(a.d_x), (b + i + r) * row + t * step)
            for f in range(F):
                target[f] = w.d_x[r * FV + f]
        i += m


@routine
def _add_group(a, w, p, gate, columns, group, place, column, capacity, samples):
    """Add a chunk to the gradients of eight inputs of a panel.

    `gate` of d and `group` of a are multiplied into `column` of group `place`.
    """
    width, most = vector_lanes(a.x), most_rows(a.x)
    groups = w.gradient.size // (w.bias.size // 4 * 3 * _GROUP)
    factors = at(pointer(w.a), group * capacity * _GROUP)
    sums = at(pointer(w.d), (p * capacity * 4 + gate) * width)
    spot = ((p * groups + place) * _GROUP * 3 + column) * width
    for half in range(0, _GROUP, most):
        add_product(
            most, columns, at(factors, half), 1, _GROUP, sums, 4 * width, width,
            samples, at(pointer(w.gradient), spot + half * 3 * width), 3 * width, width,
        )  # fmt: skip


@section
def _add_chunk(a, w, reset_after, capacity, samples):
    """Add a chunk to the gradients of weights and biases."""
    width = vector_lanes(a.x)
    F, U = a.x.shape[2], a.h0.shape[1]
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
        sums = at(pointer(w.d), p * capacity * 4 * width)
        one = pointer(w.s)
        one[0] = 1
        for gate in range(4 if reset_after else 3):
            add_product(
                1, 1, one, 0, 0, at(sums, gate * width), 4 * width, width, samples,
                at(pointer(w.bias), (p * 4 + gate) * width), 0, width,
            )  # fmt: skip


def _block_of(step, reset_after):
    """Make the loop of one block of rows back through time."""

    @section
    def block(a, w, act, rec, d_act, d_rec, b, n, capacity):
        T, U = a.x.shape[1], a.h0.shape[1]
        V = _up(U, vector_lanes(a.x))
        for j in range(n * V):
            w.dh[j] = 0
            w.d_output[j] = 0
        for i in range(n):
            for u in range(U):
                if a.d_state.size > 0:
                    w.dh[i * V + u] = a.d_state[b + i, u]
                if T == 0 and a.d_last.size > 0:
                    w.dh[i * V + u] += a.d_last[b + i, u]
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
                a.d_h0[b + i, u] = w.dh[i * V + u]

    return block


@routine
def _unpack(a, w, d_W, d_R, d_bias):
    """Bring a part's gradients from panels to the layout of the weights."""
    width = vector_lanes(a.x)
    F, U = a.x.shape[2], a.h0.shape[1]
    inputs = _up(F, _GROUP)
    rows = w.gradient.size // (w.bias.size // 4 * 3)
    for p in range((U + width - 1) // width):
        first = p * width
        for j in range(min(width, U - first)):
            u = first + j
            for g in range(3):
                for k in range(F):
                    spot = ((p * rows + k) * 3 + (g + 1) % 3) * width + j
                    d_W[k, g, u] = w.gradient[spot]
                for k in range(U):
                    spot = ((p * rows + inputs + k) * 3 + g) * width + j
                    d_R[k, g, u] = w.gradient[spot]
                d_bias[g, u] = w.bias[(p * 4 + (g + 1) % 3) * width + j]
            d_bias[3, u] = w.bias[(p * 4 + 3) * width + j]


def _part_of(step, reset_after):
    """Make the loop over the blocks of a part."""
    block = _block_of(step, reset_after)

    @section
    def part(a, act, rec, d_act, d_rec, rows_per_part, k, d_W, d_R, d_bias):
        width = vector_lanes(a.x)
        B, F, U = a.x.shape[0], a.x.shape[2], a.h0.shape[1]
        V = _up(U, width)
        real = a.x.dtype
        rows = min(rows_per_part, _MOST_BLOCK_ROWS)
        capacity = _capacity(F, U, width, a.x.itemsize, rows)
        groups = _up(F, _GROUP) // _GROUP + _up(V, _GROUP) // _GROUP
        factors = groups if reset_after else groups + _up(V, _GROUP) // _GROUP
        w = Work(
            np.empty(D_SECTIONS * most_rows(a.x) * width, real),
            np.empty(V * capacity * 4, real),
            np.zeros(factors * capacity * _GROUP, real),
            np.empty(rows * 4 * U, real),
            np.empty(rows * V, real),
            np.empty(rows * V, real),
            np.empty(0 if reset_after else rows * V, real),
            np.empty(most_rows(a.x) * _up(F, width), real),
            np.zeros(V * groups * _GROUP * 3, real),
            np.zeros(V * 4, real),
        )
        stop = min(B, (k + 1) * rows_per_part)
        for b in range(k * rows_per_part, stop, rows):
            block(a, w, act, rec, d_act, d_rec, b, min(rows, stop - b), capacity)
        _unpack(a, w, d_W[k], d_R[k], d_bias[k])

    return part


_part_reset_after = _part_of(_step_reset_after, True)
_part_reset_before = _part_of(_step_reset_before, False)


def backward_reset_after(
    act, rec, d_act, d_rec, first, stop, x, h0, mask, kernel, recurrent, zero_output,
    first_is_state, d_y, d_last, d_state, saved, states, rows_per_part, d_x, d_h0, d_W, d_R, d_bias,
):  # fmt: skip
    """Run the parts from `first` to `stop`."""
    a = Arrays(
        x, h0, mask, kernel, recurrent, zero_output, first_is_state, d_y, d_last,
        d_state, saved, states, d_x, d_h0,
    )  # fmt: skip
    for k in range(first, stop):
        _part_reset_after(a, act, rec, d_act, d_rec, rows_per_part, k, d_W, d_R, d_bias)


def backward_reset_before(
    act, rec, d_act, d_rec, first, stop, x, h0, mask, kernel, recurrent, zero_output,
    first_is_state, d_y, d_last, d_state, saved, states, rows_per_part, d_x, d_h0, d_W, d_R, d_bias,
):  # fmt: skip
    """Run the parts from `first` to `stop`."""
    a = Arrays(
        x, h0, mask, kernel, recurrent, zero_output, first_is_state, d_y, d_last,
        d_state, saved, states, d_x, d_h0,
    )  # fmt: skip
    for k in range(first, stop):
        _part_reset_before(
            a, act, rec, d_act, d_rec, rows_per_part, k, d_W, d_R, d_bias
        )


def _signature(real, act, rec, d_act, d_rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        act, rec, d_act, d_rec, types.intp, types.intp, array(3, "A"), array(2), mask, array(1), array(1), flag,
        flag, array(3, "A"), array(2), array(2), array(4), array(3), types.intp,
        array(3, "A"), array(2), array(4), array(4), array(3),
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

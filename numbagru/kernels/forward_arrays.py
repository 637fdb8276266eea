"""What the forward tile kernels are given, and what a step takes from it."""

from __future__ import annotations

from typing import Any, NamedTuple

from numbagru._jit import routine, section
from numbagru.kernels.atomics import words_at
from numbagru.kernels.panels import places
from numbagru.kernels.simd import (
    aligned,
    at,
    copy,
    pointer,
    vector_lanes,
)


class Arrays(NamedTuple):
    """The arrays of kernels/__init__.py as addresses; strides in numbers, not bytes.

    Arrays would be reference counted at each use: atomic instructions that took 40 % of
    a step of one row with 16 units. Numba could also free one whose address alone is
    still in use, hence `hold`.
    """

    T: Any
    F: Any
    U: Any
    x: Any
    x_row: Any
    x_step: Any
    h0: Any
    has_h0: Any
    mask: Any
    mask_row: Any
    mask_step: Any
    masked: Any
    order: Any  # the rows as blocks take them, those that end last first
    ends: Any  # how many steps each of these has up to its last active one
    panels: Any  # weights and bias packed as in kernels/panels.py
    bias: Any
    of_zeros: Any
    x_drop: Any  # multipliers per gate; B apart from one gate to the next
    drops_x: Any
    h_drop: Any
    drops_h: Any
    B: Any
    zero_output: Any
    first_is_state: Any
    y: Any
    y_row: Any
    y_step: Any
    wanted: Any
    last: Any
    state: Any
    ending: Any  # whether those two are wanted
    saved: Any
    saved_row: Any
    states: Any
    states_row: Any
    saving: Any  # whether those two are wanted


@section
def arrays(data):
    """Take apart what a forward kernel is given.

    A function must not be the first: Numba would try to make values of one type of
    such a tuple.
    """
    (
        _, _, _, x, h0, mask, order, ends, packed, x_drop, h_drop, zero_output,
        first_is_state, y, last, state, saved, states, _,
    ) = data  # fmt: skip
    size, weights = x.itemsize, aligned(pointer(packed))
    bias, of_zeros, _, _, _ = places(x.shape[2], last.shape[1], vector_lanes(x))
    return Arrays(
        x.shape[1], x.shape[2], last.shape[1],
        pointer(x), x.strides[0] // size, x.strides[1] // size,
        pointer(h0), h0.size > 0,
        pointer(mask), mask.strides[0], mask.strides[1], mask.size > 0,
        pointer(order), pointer(ends), weights, at(weights, bias),
        at(weights, of_zeros),
        pointer(x_drop), x_drop.size > 0, pointer(h_drop), h_drop.size > 0, x.shape[0],
        zero_output, first_is_state,
        pointer(y), y.strides[0] // size, y.strides[1] // size, y.size > 0,
        pointer(last), pointer(state), last.size > 0,
        pointer(saved), saved.strides[0] // size, pointer(states),
        states.strides[0] // size, saved.size > 0,
    )  # fmt: skip


class BareArrays(NamedTuple):
    """No mask, no dropout and nothing saved: constants, whose code falls away."""

    T: Any
    F: Any
    U: Any
    x: Any
    x_row: Any
    x_step: Any
    h0: Any
    has_h0: Any
    panels: Any
    bias: Any
    of_zeros: Any
    y: Any
    y_row: Any
    y_step: Any
    wanted: Any
    last: Any
    state: Any
    ending: Any  # whether those two are wanted
    # Never read, but compiled.
    mask: Any
    order: Any
    ends: Any
    x_drop: Any
    h_drop: Any
    saved: Any
    states: Any

    mask_row = mask_step = B = saved_row = states_row = 0
    masked = drops_x = drops_h = zero_output = first_is_state = False
    saving = False


@section
def bare_arrays(data):
    """Take apart what the inference kernel is given."""
    _, _, _, x, h0, packed, y, last, state, _ = data
    size, none, no_rows = x.itemsize, pointer(x), words_at(0)
    weights = aligned(pointer(packed))
    bias, of_zeros, _, _, _ = places(x.shape[2], last.shape[1], vector_lanes(x))
    return BareArrays(
        x.shape[1], x.shape[2], last.shape[1],
        none, x.strides[0] // size, x.strides[1] // size,
        pointer(h0), h0.size > 0, weights, at(weights, bias),
        at(weights, of_zeros),
        pointer(y), y.strides[0] // size, y.strides[1] // size, y.size > 0,
        pointer(last), pointer(state), last.size > 0,
        none, no_rows, no_rows, none, none, none, none,
    )  # fmt: skip


@routine
def padded_units(a):
    """Units padded to whole vectors."""
    width = vector_lanes(a.x)
    return (a.U + width - 1) // width * width


@routine
def row_of(a, slot):
    """Which row of the arrays a block has in a place."""
    return a.order[slot] if a.masked else slot


@routine
def note_active(a, b, n, t, active):
    """Note whose step counts."""
    for i in range(n):
        row = row_of(a, b + i)
        active[i] = a.mask[row * a.mask_row + t * a.mask_step] if a.masked else 1


@routine
def take_inputs(a, b, n, t, inputs, active):
    """Bring the inputs of a masked step together."""
    for i in range(n):
        if active[i] != 0:
            x = at(a.x, row_of(a, b + i) * a.x_row + t * a.x_step)
            copy(at(inputs, i * a.F), x, a.F)


@routine
def take_inputs_per_gate(a, b, n, t, inputs, gate_stride, active):
    """Bring the inputs of a step together as each gate sees them."""
    for g in range(3):
        for i in range(n):
            if active[i] != 0:
                row = row_of(a, b + i)
                x = at(a.x, row * a.x_row + t * a.x_step)
                target = at(inputs, g * gate_stride + i * a.F)
                drop = at(a.x_drop, (g * a.B + row) * a.F)
                for f in range(a.F):
                    target[f] = x[f] * drop[f] if a.drops_x else x[f]


@routine
def take_states_per_gate(n, V, h, drops, states, gate_stride):
    """Bring the states together as each gate sees them."""
    for g in range(3):
        for j in range(n * V):
            states[g * gate_stride + j] = h[j] * drops[g * gate_stride + j]

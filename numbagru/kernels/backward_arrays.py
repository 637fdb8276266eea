"""What the backward tile kernels are given, and what a part works with."""

from __future__ import annotations

from typing import Any, NamedTuple

from numbagru._jit import routine, section
from numbagru.kernels.forward_arrays import row_of
from numbagru.kernels.panels import places
from numbagru.kernels.simd import (
    aligned,
    at,
    pointer,
    vector_lanes,
)

# Rows of a tile of weight gradients, and so of the packed inputs and states.
GROUP = 8


class Arrays(NamedTuple):
    """The arrays of kernels/__init__.py as addresses; strides in numbers, not bytes.

    See forward_arrays.Arrays for the reason.
    """

    B: Any
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
    order: Any  # see forward_arrays.Arrays
    ends: Any
    kernel: Any  # packed and transposed as in kernels/panels.py
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
    saved_row: Any
    states: Any
    states_row: Any
    d_x: Any
    d_x_row: Any
    d_x_step: Any
    d_h0: Any


@section
def arrays(data):
    """Take apart what a backward kernel is given."""
    (
        _, _, _, _, _, x, h0, mask, order, ends, packed, x_drop, h_drop, zero_output,
        first_is_state, d_y, d_last, d_state, saved, states, d_x, d_h0, _, _, _, _,
    ) = data  # fmt: skip
    size, weights = x.itemsize, aligned(pointer(packed))
    _, _, kernel, recurrent, _ = places(x.shape[2], h0.shape[1], vector_lanes(x))
    return Arrays(
        x.shape[0], x.shape[1], x.shape[2], h0.shape[1],
        pointer(x), x.strides[0] // size, x.strides[1] // size,
        pointer(h0), h0.size > 0,
        pointer(mask), mask.strides[0], mask.strides[1], mask.size > 0,
        pointer(order), pointer(ends), at(weights, kernel), at(weights, recurrent),
        pointer(x_drop), x_drop.size > 0, pointer(h_drop), h_drop.size > 0,
        zero_output, first_is_state,
        pointer(d_y), d_y.strides[0] // size, d_y.strides[1] // size, d_y.size > 0,
        pointer(d_last), d_last.size > 0, pointer(d_state), d_state.size > 0,
        pointer(saved), saved.strides[0] // size, pointer(states),
        states.strides[0] // size,
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
    e: Any  # (2 x steps_at_once, rows, e_row) gradients of the sums, of steps
    e_row: Any
    dh: Any  # (rows, V) gradient of the state
    d_output: Any  # (rows, V) gradient of the output that later masked steps repeat
    inner: Any  # (rows, V) products of a step: gradient of r * h, part of dh
    d_x: Any  # (steps_at_once, rows, F padded)
    drops: Any  # (3, rows, V) multipliers of the states
    # Gradients of the weights: those of the last part right where the call wants them,
    # given whole vectors of units (one row, one step, 256 units: a training step of
    # 203 µs instead of 267), else packed, a part as in weight_gradients.py.
    direct: Any
    d_W: Any
    d_R: Any
    gradient: Any
    bias: Any  # (4, lanes) of a panel, bias_panel apart
    bias_panel: Any


@routine
def rounded_up(count, step):
    """Round up to a multiple of `step`."""
    return (count + step - 1) // step * step


@routine
def panel_size(groups, width):
    """Count the numbers of a panel with so many groups of eight inputs and states."""
    return (groups * GROUP * 3 + 4) * width


@routine
def biases_at(groups, width):
    """Where the biases of a panel start."""
    return panel_size(groups, width) - 4 * width


# Few rows have the gradients of their inputs multiplied for so many steps at once: a
# row alone would read the kernel's weights for each (1024 inputs and 64 units, backward
# pass of 100 steps: 1.4 ms instead of 0.8), and so would eight rows those of a kernel
# that the second-level cache does not keep (256x20x1024x64 in float64 trained in 0.90
# to 0.94 of its time; in float32, 768 KiB, it took 1.02 to 1.04, Emerald Rapids).
_STEPS_AT_ONCE, _FEW_ROWS, _FAR_BYTES = 8, 8, 2**20


@routine
def steps_at_once(a, rows, size, per_gate):
    """Count the steps whose inputs' gradients are multiplied together."""
    far = rows == _FEW_ROWS and a.F * 3 * a.U * size > _FAR_BYTES
    few = (rows < _FEW_ROWS or far) and not a.masked and not per_gate
    return _STEPS_AT_ONCE if few else 1


@routine
def sums_row(U, width):
    """Count the numbers between rows of the gradients (4, U) of a step's sums.

    One vector more than they need: with 256 units, eight rows of a tile would lie in
    the same sets of the first-level cache.
    """
    return 4 * U + width


@routine
def counts(a, slot, t):
    """Whether a step of a row is not masked."""
    return not a.masked or a.mask[row_of(a, slot) * a.mask_row + t * a.mask_step] != 0


@section
def cut_memory(
    a, s, shared, d_W, d_R, part, direct, rows, at_once, capacity, groups, factors,
    drop_rows,
):  # fmt: skip
    """Cut the memory that the threads of a part share."""
    U, V = a.U, rounded_up(a.U, vector_lanes(a.x))
    d = shared
    factor = at(d, V * capacity * 4)
    e = at(factor, factors * capacity * GROUP)
    e_row = sums_row(U, vector_lanes(a.x))
    dh = at(e, 2 * at_once * rows * e_row)
    d_output = at(dh, rows * V)
    inner = at(d_output, rows * V)
    d_x = at(inner, rows * V)
    drops = at(d_x, at_once * rows * rounded_up(a.F, vector_lanes(a.x)))
    width = vector_lanes(a.x)
    bias, bias_panel = at(drops, drop_rows * V), 4 * width
    if not direct:
        bias, bias_panel = at(part, biases_at(groups, width)), panel_size(groups, width)
    return Work(
        V, rows, groups, s, d, factor, e, e_row, dh, d_output, inner, d_x, drops,
        direct, d_W, d_R, part, bias, bias_panel,
    )  # fmt: skip


@routine
def states_alike(a):
    """Whether all gradients of the recurrent weights are those of one state.

    The state is zero before the only step.
    """
    return a.T == 1 and not a.has_h0

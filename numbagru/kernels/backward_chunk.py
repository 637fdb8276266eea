"""The products of a chunk of samples on the way back: gradients of the weights."""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.kernels.backward_arrays import (
    GROUP,
    panel_size,
    rounded_up,
    states_alike,
)
from numbagru.kernels.panels import sum_zeros
from numbagru.kernels.simd import (
    at,
    copy_vector,
    most_rows,
    vector_lanes,
)
from numbagru.kernels.team import (
    share_of,
)
from numbagru.kernels.tiles import (
    continue_sums,
    continue_sums_of_gates,
    tile_rows,
)

# A chunk's samples fit into a quarter of a 1 MiB second-level cache, where the weights
# are too, within these bounds: all gradients of wide layers are fetched from further
# away once per chunk. (Twice as many: between 0.92 and 1.06 times as long at five
# shapes in two noisy runs, and more memory; half as many: 1.05 at 128x20x256x1024.)
_CHUNK_BYTES = 2**18
_FEWEST_SAMPLES, _MOST_SAMPLES = 128, 256
# Room for a few samples more, lest each group of eight inputs or states and each panel
# starts in the same sets of the caches: 32x50x512x32 went back in 1.50 ms instead of
# 1.66, 8192x50x4x16 in 22.2 instead of 23.3, 256x20x1024x64 in 18.3 instead of 18.8
# (Emerald Rapids).
_BESIDE = 2


@routine
def chunk_capacity(T, F, U, width, size, rows):
    """Count what a chunk has room for: whole steps of `rows` rows, and `_BESIDE`."""
    per_sample = (5 * rounded_up(U, width) + F) * size
    fit = max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _CHUNK_BYTES // per_sample))
    return max(1, min(T, fit // rows)) * rows + _BESIDE


@routine
def _add_group(
    a, w, p, gate, columns, group, place, column, capacity, start, samples, onward
):  # fmt: skip
    """Add samples of a chunk to the gradients of eight inputs of a panel.

    `gate` of d and `group` of a are multiplied into `column` of group `place`.
    """
    width, most = vector_lanes(a.x), most_rows(a.x)
    factors = at(w.a, (group * capacity + start) * GROUP)
    sums = at(w.d, ((p * capacity + start) * 4 + gate) * width)
    k, back = place * GROUP - rounded_up(a.F, GROUP), 0
    of_states = k >= 0
    if not of_states:
        k = place * GROUP
    count = min(GROUP, (a.U if of_states else a.F) - k)
    if w.direct:
        row, step = 3 * a.U, a.U
        if of_states:
            target = at(w.d_R, k * row + column * step + p * width)
        else:
            target = at(w.d_W, k * row + (column + 2) % 3 * step + p * width)
            back = row
    else:
        row, step = 3 * width, width
        spot = p * panel_size(w.groups, width) + place * GROUP * row + column * step
        target = at(w.gradient, spot)
    # Where the gradients of the next eight inputs or states begin, gate by gate.
    following = at(target, GROUP * row - (2 * step if back > 0 else 0))
    i = 0
    while i < count:
        m = tile_rows(count - i, most)
        continue_sums(
            m, columns, at(factors, i), 1, GROUP, sums, 4 * width, width, samples,
            at(target, i * row), row, step, back, onward,
            at(following, i * row), step,
        )  # fmt: skip
        i += m


@section
def _add_place(
    a, w, p, place, reset_after, per_gate, capacity, start, samples, onward
):  # fmt: skip
    """Add samples of a chunk to a panel's gradients of eight inputs or states."""
    inputs, states = rounded_up(a.F, GROUP) // GROUP, rounded_up(w.V, GROUP) // GROUP
    last = 3 if reset_after else 0  # which of d belongs to the candidate's states
    k = place - inputs
    if per_gate and (k >= 0 or a.drops_x):
        for column in range(3):
            # Inputs have the candidate first, states have it last.
            if k < 0:
                d, group = column, (column + 2) % 3 * inputs + place
            else:
                d = 1 + column if column < 2 else last
                group = 3 * inputs + column * states + k
            _add_group(
                a, w, p, d, 1, group, place, column, capacity, start, samples, onward
            )  # fmt: skip
    elif k < 0 or reset_after:
        first = 0 if k < 0 else 1
        _add_group(a, w, p, first, 3, place, place, 0, capacity, start, samples, onward)
    else:
        for column in range(3):
            d, group = (column + 1, place) if column < 2 else (0, place + states)
            _add_group(
                a, w, p, d, 1, group, place, column, capacity, start, samples, onward
            )  # fmt: skip


# What is multiplied before the next panel's turn: gradients (48 KiB), factors (64 KiB)
# and sums (24 KiB) stay in the second-level cache. Panels outside, 64 samples at once:
# 1.2 times as long for the backward pass of 512 and of 1024 units.
_PLACES, _SAMPLES = 16, 128


@routine
def _add_places(
    a, w, own, first_place, stop_place, reset_after, per_gate, capacity, samples, onward
):  # fmt: skip
    """Add samples of a chunk to this thread's gradients of some groups of eight."""
    first, stop = share_of(own, w.V // vector_lanes(a.x), 1)
    for places in range(first_place, stop_place, _PLACES):
        for p in range(first, stop):
            for start in range(0, max(1, samples), _SAMPLES):
                count = min(_SAMPLES, samples - start)
                goes_on = onward or start > 0
                for place in range(places, min(places + _PLACES, stop_place)):
                    _add_place(
                        a, w, p, place, reset_after, per_gate, capacity, start, count,
                        goes_on,
                    )  # fmt: skip


@routine
def _merge_zeros(w, p, capacity, first, count, width):
    """Put one sample in place of so many whose states are zero.

    What they add is a zero, negative where all are, or NaN, and so are the gradients of
    the sums of that one: zero times them is the same.
    """
    sums = at(w.d, ((p * capacity + first) * 4 + 1) * width)
    zero, total = w.s, at(w.s, width)
    zero[0] = 0
    sum_zeros(zero, sums, 4 * width, width, count, total, width)
    for gate in range(3):
        copy_vector(at(sums, gate * width), at(total, gate * width))


@section
def add_chunk(a, w, own, reset_after, per_gate, capacity, samples, zeros, onward):
    """Add a chunk to the gradients of weights and biases, or begin them with it.

    The states of the last samples, so many as `zeros`, are zero.
    """
    width = vector_lanes(a.x)
    first, stop = share_of(own, w.V // width, 1)
    inputs, groups = rounded_up(a.F, GROUP) // GROUP, w.groups
    _add_places(
        a, w, own, 0, inputs, reset_after, per_gate, capacity, samples, onward
    )  # fmt: skip
    for p in range(first, stop):
        sums = at(w.d, p * capacity * 4 * width)
        one = w.s
        one[0] = 1
        biases = at(w.bias, p * w.bias_panel)
        if reset_after:
            continue_sums_of_gates(
                one, 0, sums, 4 * width, width, samples, biases, width, onward
            )
        else:
            continue_sums(
                1, 3, one, 0, 0, sums, 4 * width, width, samples, biases, 0, width, 0,
                onward, biases, 0,
            )  # fmt: skip
    if reset_after and not per_gate:
        if zeros > 1:
            for p in range(first, stop):
                _merge_zeros(w, p, capacity, samples - zeros, zeros, width)
            samples += 1 - zeros
        if states_alike(a):
            groups = inputs + 1
    _add_places(
        a, w, own, inputs, groups, reset_after, per_gate, capacity, samples, onward
    )  # fmt: skip


@routine
def repeat_states(a, w, own):
    """Write the gradients of the first eight states' weights for all, if alike."""
    width = vector_lanes(a.x)
    first, stop = share_of(own, w.V // width, 1)
    for p in range(first, stop):
        row, step = 3 * width, width
        panel = p * panel_size(w.groups, width) + rounded_up(a.F, GROUP) * row
        target = at(w.gradient, panel)
        if w.direct:
            row, step = 3 * a.U, a.U
            target = at(w.d_R, p * width)
        for k in range(GROUP, a.U):
            for gate in range(3):
                copy_vector(at(target, k * row + gate * step), at(target, gate * step))

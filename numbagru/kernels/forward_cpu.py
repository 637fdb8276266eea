"""Forward on register tiles, for every scalar activation and mask.

In parallel: blocks of rows, each with its own loop over time, no synchronisation.
In registers: a tile of rows x panels x gates over the whole chain of products.
In L1: the scratch in which a tile's sums become gates and the next state.
For backward: four numbers per unit and step, and the states (kernels/__init__.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import get_num_threads, prange, types

from numbagru._jit import Kernel, routine, section
from numbagru.gates import (
    BLOCK,
    HH,
    HH_SUM,
    R_SUM,
    RECURRENT,
    SECTIONS,
    Z_SUM,
    H,
    R,
    Z,
    gates_reset_before,
    kept_section,
    next_state,
    step_reset_after,
)
from numbagru.kernels.call import Call, Outputs
from numbagru.kernels.panels import Panels
from numbagru.kernels.simd import (
    ALONE,
    at,
    copy_vector,
    hold,
    lanes,
    most_rows,
    padded,
    pointer,
    tile_size,
    vector_lanes,
)
from numbagru.kernels.threads import split
from numbagru.kernels.tiles import (
    add_product,
    step_sums,
    step_sums_without_recurrent,
    tile_rows,
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
    panels: Any  # weights and bias packed as in kernels/panels.py
    bias: Any
    zero_output: Any
    first_is_state: Any
    y: Any
    y_row: Any
    y_step: Any
    wanted: Any
    last: Any
    state: Any
    saved: Any
    states: Any
    saving: Any


@section
def _arrays(
    x, h0, mask, panels, bias, zero_output, first_is_state, y, last, state, saved,
    states,
):  # fmt: skip
    size = x.itemsize
    return Arrays(
        x.shape[1], x.shape[2], last.shape[1],
        pointer(x), x.strides[0] // size, x.strides[1] // size,
        pointer(h0), h0.size > 0,
        pointer(mask), mask.strides[0], mask.strides[1], mask.size > 0,
        pointer(panels), pointer(bias), zero_output, first_is_state,
        pointer(y), y.strides[0] // size, y.strides[1] // size, y.size > 0,
        pointer(last), pointer(state), pointer(saved), pointer(states), saved.size > 0,
    )  # fmt: skip


@section
def _bare_arrays(x, panels, bias, y, last, state):
    """No state, no mask, nothing saved: constants, so that their code falls away."""
    size, none = x.itemsize, pointer(x)
    return Arrays(
        x.shape[1], x.shape[2], last.shape[1],
        none, x.strides[0] // size, x.strides[1] // size,
        none, False, none, 0, 0, False,
        pointer(panels), pointer(bias), False, False,
        pointer(y), y.strides[0] // size, y.strides[1] // size, y.size > 0,
        pointer(last), pointer(state), none, none, False,
    )  # fmt: skip


@routine
def whole_blocks(n):
    """Round up to the blocks of gates.py."""
    return (n + BLOCK - 1) // BLOCK * BLOCK


@routine
def tiles_of(n, most):
    """How many tiles `tile_rows` makes of n rows, at the most."""
    return n // most + 3


@routine
def _padded_units(a):
    """Units padded to whole vectors."""
    width = vector_lanes(a.x)
    return (a.U + width - 1) // width * width


@routine
def _active(a, b, t):
    return not a.masked or a.mask[b * a.mask_row + t * a.mask_step] != 0


@routine
def _any_active(a, b, m, t):
    active = False
    for i in range(b, b + m):
        active |= _active(a, i, t)
    return active


@routine
def _write(target, source, width, count):
    """Copy a vector into a row of U numbers that may end inside of it."""
    if count >= width:
        copy_vector(target, source)
    else:
        for j in range(count):
            target[j] = source[j]


@routine
def _load_states(s, size, m, panels, h, V, width):
    """Bring the old states of a tile into the scratch."""
    for q in range(panels):
        for r in range(m):
            section = H * size + (q * m + r) * width
            copy_vector(at(s, section), at(h, r * V + q * width))


@routine
def _finish(a, act, rec, s, size, m, panels, first_panel, b, t, h, h_new, seen, zeros):
    """Write what a tile computed: next states, outputs, what is saved.

    h, h_new and seen point at the tile's rows; seen is 0 before the first output.
    """
    width = vector_lanes(a.x)
    T, U = a.T, a.U
    V = (U + width - 1) // width * width
    z, r = kept_section(rec, Z, Z_SUM), kept_section(rec, R, R_SUM)
    hh = kept_section(act, HH, HH_SUM)
    for q in range(panels):
        first = (first_panel + q) * width
        count = min(width, U - first)
        for i in range(m):
            lane = (q * m + i) * width
            old = at(h, i * V + q * width)
            active = _active(a, b + i, t)
            value = at(s, H * size + lane) if active else old
            copy_vector(at(h_new, i * V + q * width), value)
            if a.saving:
                spot = ((b + i) * T + t) * V + first
                copy_vector(at(a.states, spot), value)
            if not active and (a.zero_output or seen[i] == 0):
                value = zeros
            if a.wanted:
                spot = (b + i) * a.y_row + t * a.y_step + first
                _write(at(a.y, spot), value, width, count)
            if t == T - 1:
                spot = (b + i) * U + first
                _write(at(a.last, spot), value, width, count)
            if a.saving and active:
                saved = at(a.saved, ((b + i) * T + t) * 4 * V + first)
                copy_vector(at(saved, Z * V), at(s, z * size + lane))
                copy_vector(at(saved, R * V), at(s, r * size + lane))
                copy_vector(at(saved, HH * V), at(s, hh * size + lane))
                copy_vector(at(saved, RECURRENT * V), at(s, RECURRENT * size + lane))


@section
def _step_reset_after(a, act, rec, b, n, t, scratch, inner, h, h_new, seen, zeros):
    """One step of a block of n rows: tile by tile, panel by panel."""
    width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
    F, U = a.F, a.U
    P = (U + width - 1) // width
    V = P * width
    x_row = a.x_row
    x = at(a.x, b * x_row + t * a.x_step)
    w_panel = (F + U) * 3 * width
    s = scratch
    p = 0
    while p < P:
        panels = ALONE if n == 1 and p + ALONE <= P else 1
        w = at(a.panels, p * w_panel)
        bias = at(a.bias, p * 4 * width)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            count = whole_blocks(m * panels * width)
            rows, rows_new = at(h, i * V), at(h_new, i * V)
            if _any_active(a, b + i, m, t):
                _load_states(s, size, m, panels, at(rows, p * width), V, width)
                step_sums(
                    m, panels, at(x, i * x_row), x_row, F, rows, V, U, w, w_panel,
                    bias, s,
                )  # fmt: skip
                step_reset_after(act, rec, s, size, count, U)
            _finish(
                a, act, rec, s, size, m, panels, p, b + i, t, at(rows, p * width),
                at(rows_new, p * width), at(seen, i), zeros,
            )  # fmt: skip
            i += m
        p += panels


@section
def _step_reset_before(a, act, rec, b, n, t, scratch, inner, h, h_new, seen, zeros):
    """One step of a block of n rows: all gates, then the candidates of r * h."""
    width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
    F, U = a.F, a.U
    P = (U + width - 1) // width
    V = P * width
    x_row = a.x_row
    x = at(a.x, b * x_row + t * a.x_step)
    w_panel = (F + U) * 3 * width
    panel_scratch = tiles_of(n, most) * size * SECTIONS
    for p in range(P):
        w = at(a.panels, p * w_panel)
        bias = at(a.bias, p * 4 * width)
        start = p * panel_scratch
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            count = whole_blocks(m * width)
            if _any_active(a, b + i, m, t):
                s = at(scratch, start)
                rows = at(h, i * V)
                _load_states(s, size, m, 1, at(rows, p * width), V, width)
                step_sums_without_recurrent(
                    m, 1, at(x, i * x_row), x_row, F, rows, V, U, w, w_panel, bias, s
                )
                gates_reset_before(rec, s, size, count, U)
                for r in range(m):
                    copy_vector(
                        at(inner, (i + r) * V + p * width),
                        at(s, RECURRENT * size + r * width),
                    )
            start += size * SECTIONS
            i += m
    p = 0
    while p < P:
        panels = 3 if p + 3 <= P else 1
        w = at(a.panels, p * w_panel + (3 * F + 2) * width)
        first = p * panel_scratch
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            count = whole_blocks(m * width)
            rows, rows_new = at(h, i * V), at(h_new, i * V)
            start = first
            active = _any_active(a, b + i, m, t)
            if active:
                hh = at(scratch, start + HH * size)
                add_product(
                    m, panels, at(inner, i * V), V, 1, w, 3 * width, w_panel, U, hh,
                    width, panel_scratch,
                )  # fmt: skip
            for q in range(p, p + panels):
                tile = at(scratch, start)
                if active:
                    next_state(act, tile, size, count, U)
                _finish(
                    a, act, rec, tile, size, m, 1, q, b + i, t,
                    at(rows, q * width), at(rows_new, q * width), at(seen, i), zeros,
                )  # fmt: skip
                start += panel_scratch
            first += size * SECTIONS
            i += m
        p += panels


@routine
def _begin(a, b, n, h, seen):
    """Fetch the initial states of a block."""
    V = _padded_units(a)
    for i in range(n):
        if a.first_is_state:
            seen[i] = 1
        if a.has_h0:
            for u in range(a.U):
                h[i * V + u] = a.h0[(b + i) * a.U + u]


@routine
def _mark_seen(a, b, n, t, seen):
    """Note which rows have an output now."""
    if a.masked:
        for i in range(n):
            if _active(a, b + i, t):
                seen[i] = 1


@routine
def _end(a, b, n, h):
    """Hand over the final states of a block."""
    V = _padded_units(a)
    for i in range(n):
        for u in range(a.U):
            a.state[(b + i) * a.U + u] = h[i * V + u]
            if a.T == 0:
                a.last[(b + i) * a.U + u] = h[i * V + u]


def _block_of(step, whole_scratch):
    """Make the time loop over one block of rows."""

    @routine
    def block(a, act, rec, work, b, n):
        width, most = vector_lanes(a.x), most_rows(a.x)
        V = _padded_units(a)
        tiles = V // width * tiles_of(n, most) if whole_scratch else 1
        scratch = work
        h = at(scratch, SECTIONS * tiles * tile_size(a.x))
        h_new = at(h, n * V)
        inner = at(h_new, n * V)
        seen = at(inner, n * V)
        zeros = at(seen, n)
        _begin(a, b, n, h, seen)
        for t in range(a.T):
            step(a, act, rec, b, n, t, scratch, inner, h, h_new, seen, zeros)
            h, h_new = h_new, h
            _mark_seen(a, b, n, t, seen)
        _end(a, b, n, h)

    @section
    def allocated(a, act, rec, x, b, n):
        width, most = vector_lanes(a.x), most_rows(a.x)
        V = _padded_units(a)
        tiles = V // width * tiles_of(n, most) if whole_scratch else 1
        size = SECTIONS * tiles * tile_size(a.x) + 3 * n * V + n + width
        work = np.zeros(size, x.dtype)
        block(a, act, rec, pointer(work), b, n)
        hold(work)

    return allocated


_block_reset_after = _block_of(_step_reset_after, whole_scratch=False)
_block_reset_before = _block_of(_step_reset_before, whole_scratch=True)


def forward_reset_after(
    act, rec, first, stop, rows, x, h0, mask, panels, bias, zero_output, first_is_state,
    y, last, state, saved, states,
):  # fmt: skip
    """Run the rows from `first` to `stop` in blocks of `rows`."""
    a = _arrays(
        x, h0, mask, panels, bias, zero_output, first_is_state, y, last, state, saved,
        states,
    )  # fmt: skip
    for b in range(first, stop, rows):
        _block_reset_after(a, act, rec, x, b, min(rows, stop - b))


def forward_reset_before(
    act, rec, first, stop, rows, x, h0, mask, panels, bias, zero_output, first_is_state,
    y, last, state, saved, states,
):  # fmt: skip
    """Run the rows from `first` to `stop` in blocks of `rows`."""
    a = _arrays(
        x, h0, mask, panels, bias, zero_output, first_is_state, y, last, state, saved,
        states,
    )  # fmt: skip
    for b in range(first, stop, rows):
        _block_reset_before(a, act, rec, x, b, min(rows, stop - b))


def inference_reset_after(act, rec, rows, x, panels, bias, y, last, state):
    """Run all rows from zero states, one block after the other."""
    a = _bare_arrays(x, panels, bias, y, last, state)
    for b in range(0, x.shape[0], rows):
        _block_reset_after(a, act, rec, x, b, min(rows, x.shape[0] - b))


def inference_reset_before(act, rec, rows, x, panels, bias, y, last, state):
    """Run all rows from zero states, one block after the other."""
    a = _bare_arrays(x, panels, bias, y, last, state)
    for b in range(0, x.shape[0], rows):
        _block_reset_before(a, act, rec, x, b, min(rows, x.shape[0] - b))


# prange counts unsigned, and Numba would compile all below for that once more: hence
# np.intp.


def parallel_reset_after(act, rec, rows, x, panels, bias, y, last, state):
    """Run all rows from zero states, blocks on Numba's threads."""
    a = _bare_arrays(x, panels, bias, y, last, state)
    for k in prange((x.shape[0] + rows - 1) // rows):
        b = np.intp(k) * rows
        _block_reset_after(a, act, rec, x, b, min(rows, x.shape[0] - b))


def parallel_reset_before(act, rec, rows, x, panels, bias, y, last, state):
    """Run all rows from zero states, blocks on Numba's threads."""
    a = _bare_arrays(x, panels, bias, y, last, state)
    for k in prange((x.shape[0] + rows - 1) // rows):
        b = np.intp(k) * rows
        _block_reset_before(a, act, rec, x, b, min(rows, x.shape[0] - b))


def _signature(real, act, rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        act, rec, types.intp, types.intp, types.intp, array(3, "A"), array(2), mask,
        array(1), array(1), flag, flag, array(3, "A"), array(2), array(2), array(4),
        array(3),
    )  # fmt: skip


def _inference_signature(real, act, rec):
    def array(n):
        return types.Array(real, n, "C")

    return (
        act, rec, types.intp, array(3), array(1), array(1), array(3), array(2), array(2)
    )  # fmt: skip


# By reset_after.
FORWARD = {
    True: Kernel(forward_reset_after, _signature),
    False: Kernel(forward_reset_before, _signature),
}
# By reset_after, parallel. Of their own, because a call takes 0.9 instead of 1.3 µs:
# eight arguments fewer, and what they switch is gone from the code.
INFERENCE = {
    (True, False): Kernel(inference_reset_after, _inference_signature),
    (True, True): Kernel(parallel_reset_after, _inference_signature, parallel=True),
    (False, False): Kernel(inference_reset_before, _inference_signature),
    (False, True): Kernel(parallel_reset_before, _inference_signature, parallel=True),
}


# Below this many multiply-adds a second thread costs more than it saves: waking it
# takes a few microseconds.
_PARALLEL_FROM = 200_000
_MOST_BLOCK_ROWS = 64


def saved_width(real: types.Float, units: int) -> int:
    """Length V of the rows saved for backward."""
    return padded(units, lanes(real))


def block_rows(B: int, threads: int) -> int:
    """Give each thread one block, of whole tiles, small enough for its cache."""
    rows = -(-B // threads)
    if rows >= 8:
        rows = padded(rows, 8)
    return max(1, min(rows, _MOST_BLOCK_ROWS))


def forward(call: Call, out: Outputs) -> None:
    """Run the forward kernel."""
    values, kinds = call.forward_activations
    B, T, F = call.x.shape
    large = _is_large(B, T, F, call.h0.shape[1])
    rows = block_rows(B, get_num_threads() if large else 1)
    entry = FORWARD[call.reset_after].entry(call.real, *kinds)
    panels = call.weights.panels

    def blocks(first: int, stop: int) -> None:
        entry(
            *values, first * rows, min(B, stop * rows), rows, call.x, call.h0,
            call.mask, *panels, call.zero_output, call.first_is_state, *out,
        )  # fmt: skip

    split(-(-B // rows), blocks, None if large else 1)


def prepare(
    activation: Any,
    recurrent_activation: Any,
    reset_after: bool,
    real: types.Float,
    panels: Panels,
) -> Callable[..., None]:
    """Bind everything but the sequences: ``run(x, y, last, state)``, from zeros."""
    act, rec = activation.forward_argument, recurrent_activation.forward_argument
    kinds = real, activation.forward_type, recurrent_activation.forward_type
    serial = INFERENCE[reset_after, False].entry(*kinds)
    weights, bias = panels
    U = bias.size // 4

    def run(x: Any, y: Any, last: Any, state: Any) -> None:
        B, T, F = x.shape
        if not _is_large(B, T, F, U):
            serial(act, rec, _MOST_BLOCK_ROWS, x, weights, bias, y, last, state)
            return
        rows = block_rows(B, get_num_threads())
        parallel = INFERENCE[reset_after, True].entry(*kinds)
        with _PARALLEL_REGION:
            parallel(act, rec, rows, x, weights, bias, y, last, state)

    return run


def _is_large(B: int, T: int, F: int, U: int) -> bool:
    return B > 1 and B * T * U * (F + U) >= _PARALLEL_FROM


# One caller at a time in Numba's thread pool: the workqueue layer aborts the process
# when two enter.
_PARALLEL_REGION = threading.Lock()

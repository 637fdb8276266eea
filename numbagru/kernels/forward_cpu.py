"""Forward on register tiles, for every scalar activation and mask.

In parallel: blocks of rows, each with its own loop over time, no synchronisation.
In registers: a tile of rows x panels x gates over the whole chain of products.
In L1: the scratch in which a tile's sums become gates and the next state.
For backward: four numbers per unit and step, and the states (kernels/__init__.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange, types

from numbagru._jit import Kernel, routine
from numbagru.gates import (
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
from numbagru.kernels.simd import at, copy_vector, most_rows, pointer, vector_lanes
from numbagru.kernels.tiles import (
    ALONE,
    add_product,
    step_sums,
    step_sums_without_recurrent,
    tile_rows,
)


class Arrays(NamedTuple):
    """The arguments of the forward kernels, as in kernels/__init__.py."""

    x: Any
    h0: Any
    mask: Any
    panels: Any  # weights and bias packed as in kernels/panels.py
    bias: Any
    zero_output: Any
    first_is_state: Any
    y: Any
    last: Any
    state: Any
    saved: Any
    states: Any


@routine
def _active(mask, b, t):
    return mask.size == 0 or mask[b, t] != 0


@routine
def _any_active(mask, b, m, t):
    for i in range(b, b + m):
        if _active(mask, i, t):
            return True
    return False


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
    T, U = a.x.shape[1], a.last.shape[1]
    V = (U + width - 1) // width * width
    y_row, y_step = a.y.strides[0] // a.y.itemsize, a.y.strides[1] // a.y.itemsize
    z, r = kept_section(rec, Z, Z_SUM), kept_section(rec, R, R_SUM)
    hh = kept_section(act, HH, HH_SUM)
    for q in range(panels):
        first = (first_panel + q) * width
        count = min(width, U - first)
        for i in range(m):
            lane = (q * m + i) * width
            old = at(h, i * V + q * width)
            active = _active(a.mask, b + i, t)
            value = at(s, H * size + lane) if active else old
            copy_vector(at(h_new, i * V + q * width), value)
            if a.states.size > 0:
                spot = ((b + i) * T + t) * V + first
                copy_vector(at(pointer(a.states), spot), value)
            if not active and (a.zero_output or seen[i] == 0):
                value = zeros
            if a.y.size > 0:
                spot = (b + i) * y_row + t * y_step + first
                _write(at(pointer(a.y), spot), value, width, count)
            if t == T - 1:
                spot = (b + i) * U + first
                _write(at(pointer(a.last), spot), value, width, count)
            if a.saved.size > 0 and active:
                saved = at(pointer(a.saved), ((b + i) * T + t) * 4 * V + first)
                copy_vector(at(saved, Z * V), at(s, z * size + lane))
                copy_vector(at(saved, R * V), at(s, r * size + lane))
                copy_vector(at(saved, HH * V), at(s, hh * size + lane))
                copy_vector(at(saved, RECURRENT * V), at(s, RECURRENT * size + lane))


@routine
def _step_reset_after(a, act, rec, b, n, t, scratch, inner, h, h_new, seen, zeros):
    """One step of a block of n rows: tile by tile, panel by panel."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.x.shape[2], a.last.shape[1]
    P = (U + width - 1) // width
    V = P * width
    x_row = a.x.strides[0] // a.x.itemsize
    x = at(pointer(a.x), b * x_row + t * (a.x.strides[1] // a.x.itemsize))
    w_panel = (F + U) * 3 * width
    s = pointer(scratch)
    p = 0
    while p < P:
        panels = ALONE if n == 1 and p + ALONE <= P else 1
        w = at(pointer(a.panels), p * w_panel)
        bias = at(pointer(a.bias), p * 4 * width)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            size = m * panels * width
            rows, rows_new = at(h, i * V), at(h_new, i * V)
            if _any_active(a.mask, b + i, m, t):
                _load_states(s, size, m, panels, at(rows, p * width), V, width)
                step_sums(
                    m, panels, at(x, i * x_row), x_row, F, rows, V, U, w, w_panel,
                    bias, s,
                )  # fmt: skip
                step_reset_after(act, rec, scratch, size, a.saved.size > 0)
            _finish(
                a, act, rec, s, size, m, panels, p, b + i, t, at(rows, p * width),
                at(rows_new, p * width), at(seen, i), zeros,
            )  # fmt: skip
            i += m
        p += panels


@routine
def _step_reset_before(a, act, rec, b, n, t, scratch, inner, h, h_new, seen, zeros):
    """One step of a block of n rows: all gates, then the candidates of r * h."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.x.shape[2], a.last.shape[1]
    P = (U + width - 1) // width
    V = P * width
    x_row = a.x.strides[0] // a.x.itemsize
    x = at(pointer(a.x), b * x_row + t * (a.x.strides[1] // a.x.itemsize))
    w_panel = (F + U) * 3 * width
    panel_scratch = n * width * SECTIONS
    keep = a.saved.size > 0
    for p in range(P):
        w = at(pointer(a.panels), p * w_panel)
        bias = at(pointer(a.bias), p * 4 * width)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            size = m * width
            if _any_active(a.mask, b + i, m, t):
                start = p * panel_scratch + i * width * SECTIONS
                tile = scratch[start : start + size * SECTIONS]
                s = pointer(tile)
                rows = at(h, i * V)
                _load_states(s, size, m, 1, at(rows, p * width), V, width)
                step_sums_without_recurrent(
                    m, 1, at(x, i * x_row), x_row, F, rows, V, U, w, w_panel, bias, s
                )
                gates_reset_before(rec, tile, size, keep)
                for r in range(m):
                    copy_vector(
                        at(inner, (i + r) * V + p * width),
                        at(s, RECURRENT * size + r * width),
                    )
            i += m
    p = 0
    while p < P:
        panels = 3 if p + 3 <= P else 1
        w = at(pointer(a.panels), p * w_panel + (3 * F + 2) * width)
        i = 0
        while i < n:
            m = tile_rows(n - i, most)
            size = m * width
            rows, rows_new = at(h, i * V), at(h_new, i * V)
            start = p * panel_scratch + i * width * SECTIONS
            active = _any_active(a.mask, b + i, m, t)
            if active:
                hh = at(pointer(scratch), start + HH * size)
                add_product(
                    m, panels, at(inner, i * V), V, 1, w, 3 * width, w_panel, U, hh,
                    width, panel_scratch,
                )  # fmt: skip
            for q in range(p, p + panels):
                tile = scratch[start : start + size * SECTIONS]
                if active:
                    next_state(act, tile, size, keep)
                _finish(
                    a, act, rec, pointer(tile), size, m, 1, q, b + i, t,
                    at(rows, q * width), at(rows_new, q * width), at(seen, i), zeros,
                )  # fmt: skip
                start += panel_scratch
            i += m
        p += panels


def _block_of(step, whole_scratch):
    """Make the time loop over one block of rows."""

    @routine
    def block(a, act, rec, b, n):
        width = vector_lanes(a.x)
        T, U = a.x.shape[1], a.last.shape[1]
        V = (U + width - 1) // width * width
        real = a.x.dtype
        tile = n * V if whole_scratch else max(most_rows(a.x), ALONE) * width
        scratch = np.empty(SECTIONS * tile, real)
        inner = np.zeros(n * V if whole_scratch else 0, real)
        states = np.zeros(2 * n * V, real)
        seen = np.zeros(n + width, real)
        h, h_new = pointer(states), at(pointer(states), n * V)
        for i in range(n):
            if a.first_is_state:
                seen[i] = 1
            for u in range(U):
                h[i * V + u] = a.h0[b + i, u]
        for t in range(T):
            step(
                a, act, rec, b, n, t, scratch, pointer(inner), h, h_new, pointer(seen),
                at(pointer(seen), n),
            )  # fmt: skip
            h, h_new = h_new, h
            if a.mask.size > 0:
                for i in range(n):
                    if a.mask[b + i, t]:
                        seen[i] = 1
        for i in range(n):
            for u in range(U):
                a.state[b + i, u] = h[i * V + u]
                if T == 0:
                    a.last[b + i, u] = h[i * V + u]

    return block


_block_reset_after = _block_of(_step_reset_after, whole_scratch=False)
_block_reset_before = _block_of(_step_reset_before, whole_scratch=True)


def forward_reset_after(
    act, rec, rows, x, h0, mask, panels, bias, zero_output, first_is_state,
    y, last, state, saved, states,
):  # fmt: skip
    """Run blocks of `rows` rows one after the other."""
    a = Arrays(
        x, h0, mask, panels, bias, zero_output, first_is_state, y, last, state, saved,
        states,
    )  # fmt: skip
    B = x.shape[0]
    for b in range(0, B, rows):
        _block_reset_after(a, act, rec, b, min(rows, B - b))


def forward_reset_before(
    act, rec, rows, x, h0, mask, panels, bias, zero_output, first_is_state,
    y, last, state, saved, states,
):  # fmt: skip
    """Run blocks of `rows` rows one after the other."""
    a = Arrays(
        x, h0, mask, panels, bias, zero_output, first_is_state, y, last, state, saved,
        states,
    )  # fmt: skip
    B = x.shape[0]
    for b in range(0, B, rows):
        _block_reset_before(a, act, rec, b, min(rows, B - b))


def parallel_reset_after(
    act, rec, rows, x, h0, mask, panels, bias, zero_output, first_is_state,
    y, last, state, saved, states,
):  # fmt: skip
    """Run blocks of `rows` rows on Numba's threads."""
    a = Arrays(
        x, h0, mask, panels, bias, zero_output, first_is_state, y, last, state, saved,
        states,
    )  # fmt: skip
    B = x.shape[0]
    for k in prange((B + rows - 1) // rows):
        _block_reset_after(a, act, rec, k * rows, min(rows, B - k * rows))


def parallel_reset_before(
    act, rec, rows, x, h0, mask, panels, bias, zero_output, first_is_state,
    y, last, state, saved, states,
):  # fmt: skip
    """Run blocks of `rows` rows on Numba's threads."""
    a = Arrays(
        x, h0, mask, panels, bias, zero_output, first_is_state, y, last, state, saved,
        states,
    )  # fmt: skip
    B = x.shape[0]
    for k in prange((B + rows - 1) // rows):
        _block_reset_before(a, act, rec, k * rows, min(rows, B - k * rows))


def _signature(real, act, rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        act, rec, types.intp, array(3, "A"), array(2), mask, array(1), array(1), flag,
        flag, array(3, "A"), array(2), array(2), array(4), array(3),
    )  # fmt: skip


FORWARD = {
    # (reset_after, parallel)
    (True, False): Kernel(forward_reset_after, _signature),
    (True, True): Kernel(parallel_reset_after, _signature, parallel=True),
    (False, False): Kernel(forward_reset_before, _signature),
    (False, True): Kernel(parallel_reset_before, _signature, parallel=True),
}

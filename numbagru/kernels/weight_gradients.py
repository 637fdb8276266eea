"""Gradients of weights: packed while a part of the rows is added up, then summed.

A part is an array of panels, one vector of units each: for every eight inputs and every
eight states (8, 3, lanes) gradients, where inputs have the candidate first and states
have it last, and then (4, lanes) of the biases. So the products write whole tiles, and
in memory that NumPy made: the caller's, in huge pages where it is large.

With whole vectors of units the last part may be unpacked (`packed_parts`): it goes
where the call wants the gradients, and what the others add up to is added there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numba import types

from numbagru._jit import Kernel, body, routine
from numbagru.kernels import memory
from numbagru.kernels.backward_arrays import (
    GROUP,
    biases_at,
    panel_size,
    rounded_up,
)
from numbagru.kernels.call import REAL, Results
from numbagru.kernels.simd import (
    at,
    hold,
    pointer,
    vector_lanes,
)
from numbagru.kernels.team import next_item, pieces, sharing
from numbagru.kernels.threads import WORD_ARRAY, run
from numbagru.kernels.tiles import write_vector
from numbagru.kernels.vector_ir import lanes, padded

# Rows whose weight gradients are added up before they meet those of other rows: never
# more parts than this, nor more memory for them.
_MOST_PARTS = 64
_PART_BYTES = 32 * 2**20
# So many samples (rows x steps) to a part, where that leaves so many parts.
_FEWEST_SAMPLES, _FEWEST_PARTS = 64, 16
# Half of a second-level cache of 1 MiB.
_NEAR_BYTES = 2**19
# Of a gate's row, from which on a layer is wide for `packed_parts`.
_WIDE_BYTES = 1024


@functools.lru_cache
def rows_per_part(B: int, T: int, F: int, U: int, itemsize: int) -> int:
    """Rows whose weight gradients are one partial sum: a function of shapes alone.

    Eight rows fill a tile; wide layers take more, because every part reads all the
    weights; some rows are split in two so that two threads have work. Those of one tile
    stay together where threads do better to share its units: of weights that do not fit
    into half of a second-level cache (8 rows of 256 units: 2.6 ms for 50 steps on two
    threads, 3.5 in two parts, Zen 4; but 2 rows of 128 units 23 and 16 for 5000 steps,
    8 rows 1.43 and 0.82 for 100, Emerald Rapids), and of few samples (2 rows of 64
    units: 0.025 and 0.05 for 10 steps, 0.15 and 0.12 for 100). So do few samples of
    wide layers. A part of few steps takes more rows: adding up the parts is most of the
    work there (64 rows, one step, 256 units: 0.36 ms as one part, 0.55 as two).
    """
    near = 3 * U * U * itemsize <= _NEAR_BYTES and B * T >= 2 * _FEWEST_SAMPLES
    together = 1 if near else 8 if U >= 128 else 2
    few = U >= 128 and 0 < B * T <= _FEWEST_SAMPLES
    if together >= B or few:
        return max(1, B)
    least = 8 if U < 64 else 16 if U < 256 else 32
    if 2 * least >= B:
        least = max(1, math.ceil(B / 2))
    bytes_each = (F + U) * 3 * U * itemsize
    parts = max(2, min(_MOST_PARTS, _PART_BYTES // max(1, bytes_each)))
    rows = max(least, math.ceil(B / parts))
    if T > 0:
        rows = max(rows, min(_FEWEST_SAMPLES // T, B // _FEWEST_PARTS))
    return rows if rows < 8 else math.ceil(rows / 8) * 8


# Rows of a block in narrow layers, of fewer units than these, and in others. With more,
# narrow rows would be more streams of memory than caches follow: with 32 rows,
# 8192x100x1x16 went back in 39.0 ms instead of 36.0, 8192x50x4x16 in 20.5 instead of
# 19.7, 2048x50x16x64 in 30.3 instead of 28.2 (Emerald Rapids). Of few steps more rows,
# so that a chunk has some samples.
_NARROW_BLOCK_ROWS, _NARROW, _BLOCK_ROWS, _BLOCK_ROWS_OF_A_STEP = 8, 128, 32, 64


@routine
def block_rows(rows_per_part, T, U):
    """Rows that go back in time together; a part's gradients are summed up like that.

    A function of shapes alone, too.
    """
    most = _NARROW_BLOCK_ROWS if U < _NARROW else _BLOCK_ROWS
    return min(rows_per_part, max(most, _BLOCK_ROWS_OF_A_STEP // max(1, T)))


# Numbers in all parts from which on a second thread pays.
_PARALLEL_FROM = 200_000


@routine
def _give(target, source, width, count, adds):
    """Write a vector, or add it where the last part is, which has whole vectors."""
    if adds:
        for j in range(width):
            target[j] += source[j]
    else:
        write_vector(target, source, width, count)


@routine
def _give_bias(sums, d_bias, biases, U, first, width, adds):
    for g in range(biases):
        gate = 3 if g == 5 else (g + 1) % 3
        target = at(d_bias, g * U + first)
        _give(target, at(sums, gate * width), width, U - first, adds)


@routine
def give_biases(sums, d_bias, U, width):
    """Bring (panels, 4, lanes) gradients to the layout of the bias."""
    for first in range(0, U, width):
        panel = at(sums, 4 * first)
        _give_bias(panel, pointer(d_bias), d_bias.size // U, U, first, width, False)


@routine
def _collect_panel(total, F, U, p, groups, d_W, d_R, d_bias, biases, width, adds):
    """Bring a panel to the layout of the weights, with so many rows of biases."""
    first = p * width
    count = min(width, U - first)
    inputs = rounded_up(F, GROUP)
    for k in range(F):
        for g in range(3):
            source = at(total, (k * 3 + (g + 1) % 3) * width)
            _give(at(d_W, (k * 3 + g) * U + first), source, width, count, adds)
    for k in range(U):
        for g in range(3):
            source = at(total, ((inputs + k) * 3 + g) * width)
            _give(at(d_R, (k * 3 + g) * U + first), source, width, count, adds)
    sums = at(total, biases_at(groups, width))
    _give_bias(sums, d_bias, biases, U, first, width, adds)


@body
def _panels(words, helper, data):
    parts, adds, d_W, d_R, d_bias = data
    width = vector_lanes(parts)
    F, U = d_W.shape[0], d_R.shape[0]
    V = rounded_up(U, width)
    groups = rounded_up(F, GROUP) // GROUP + rounded_up(V, GROUP) // GROUP
    size = panel_size(groups, width)
    panels = pieces(U, width)
    p = next_item(words, helper, -1, panels)
    while p < panels:
        total = at(pointer(parts), p * size)
        for k in range(1, parts.shape[0]):
            part = at(total, k * parts.shape[1])
            for j in range(size):
                total[j] += part[j]
        _collect_panel(
            total, F, U, p, groups, pointer(d_W), pointer(d_R), pointer(d_bias),
            d_bias.size // U, width, adds,
        )  # fmt: skip
        p = next_item(words, helper, p, panels)
    hold(parts)
    hold(d_W)
    hold(d_R)
    hold(d_bias)


_share_panels = sharing(_panels)


def _collect(parts, adds, d_W, d_R, d_bias, words):
    _share_panels(None, pointer(words), (parts, adds, d_W, d_R, d_bias))


def _signature(real):
    def array(n):
        return types.Array(real, n, "C")

    return array(2), types.boolean, array(2), array(2), array(1), WORD_ARRAY


COLLECT = Kernel(_collect, _signature)


def _part_size(F: int, U: int, width: int) -> int:
    V = padded(U, width)
    groups = padded(F, GROUP) // GROUP + padded(V, GROUP) // GROUP
    return V // width * panel_size.py_func(groups, width)


def packed_parts(count: int, F: int, U: int, dtype: np.dtype) -> int:
    """Count those of so many parts that are packed: all, or all but the last.

    That one need not be copied. In wide layers, where there are several, it is packed
    too: rows of a tile that are some KiB apart lie in the same sets of the first-level
    cache (64x50x128x512 trained in 0.99 of its time; but 8x100x64x512, of one part, in
    1.06, Emerald Rapids). Larger ones would need too much memory: 128x20x256x1024 took
    0.96 of its time, and 81 MiB instead of 58.
    """
    fits = (F + U) * 3 * U * dtype.itemsize <= _PART_BYTES // 4
    wide = count > 1 and fits and U * dtype.itemsize >= _WIDE_BYTES
    return count if wide or U % lanes(REAL[dtype]) > 0 else count - 1


def parts_maker(
    count: int, F: int, U: int, dtype: np.dtype
) -> Callable[[], np.ndarray]:
    """Give a function that makes memory for those of so many parts that are packed."""
    width = lanes(REAL[dtype])
    packed = packed_parts(count, F, U, dtype)
    if packed == 0:
        none = np.empty((0, 0), dtype)
        return lambda: none
    return memory.maker((packed, _part_size(F, U, width)), dtype)


def collect(parts: np.ndarray, count: int, results: Results, most: int) -> None:
    """Add `count` parts in order, and write the sums in the layout of the weights."""
    if parts.size == 0:
        return
    if parts.size < _PARALLEL_FROM:
        most = 1
    entry = COLLECT.entry(REAL[parts.dtype])
    adds = len(parts) < count
    _, _, d_W, d_R, d_bias = results
    run(entry, (parts, adds, d_W, d_R, d_bias), most)

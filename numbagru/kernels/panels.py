"""Weights packed for the register tiles.

A panel is one vector of units times three gates, in the order that the loop over k
reads it: ``(panel, k, gate, lane)`` with k over F features and then U units. Units are
zero-padded to whole panels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from numbagru._jit import Kernel, routine
from numbagru.kernels import memory
from numbagru.kernels.call import REAL
from numbagru.kernels.simd import (
    at,
    clear,
    hold,
    lanes,
    padded,
    pointer,
    transpose_block,
    vector_lanes,
)
from numbagru.kernels.team import next_item, sharing
from numbagru.kernels.threads import WORD_ARRAY, run
from numbagru.kernels.tiles import write_vector


class Panels(NamedTuple):
    """Weights of the forward kernels."""

    weights: np.ndarray  # (P, F + U, 3, lanes), flat
    bias: np.ndarray  # (P, 4, lanes): z, r, candidate's input and recurrent part, flat


class TransposedPanels(NamedTuple):
    """Weights of the backward kernels: vectors of columns, all k of one together."""

    kernel: np.ndarray  # (vectors of F, 3 U, lanes), k over candidate, z, r; flat
    recurrent: np.ndarray  # (vectors of U, 3 U, lanes), k over z, r, candidate; flat


@routine
def _start(bias, U, g, u):
    """Where a sum starts: z, r, candidate's input and recurrent part."""
    both = bias.size == 6 * U
    if bias.size == 0 or (g == 3 and not both):
        return bias.dtype.type(0)
    if g == 3:
        return bias[5 * U + u]
    if g == 2 or not both:
        return bias[g * U + u]
    return bias[g * U + u] + bias[(3 + g) * U + u]


def _sum_bias(bias, sums):
    for g in range(4):
        for u in range(sums.shape[1]):
            sums[g, u] = _start(bias, sums.shape[1], g, u)


@routine
def _pack_panel(W, R, bias, p, weights, starts):
    """Pack one vector of units."""
    F, U, width = W.shape[0], R.shape[0], vector_lanes(W)
    first = p * width
    count = min(width, U - first)
    target = at(weights, p * (F + U) * 3 * width)
    if count < width:
        clear(target, (F + U) * 3 * width)
        clear(at(starts, p * 4 * width), 4 * width)
    for k in range(F + U):
        matrix, row = (pointer(W), k) if k < F else (pointer(R), k - F)
        for g in range(3):
            write_vector(target, at(matrix, (row * 3 + g) * U + first), width, count)
            target = at(target, width)
    for g in range(4):
        for j in range(count):
            starts[(p * 4 + g) * width + j] = _start(bias, U, g, first + j)


@routine
def _transpose(matrix, first_gate, v, vectors):
    """Bring as many rows as a vector has into vectors, gate by gate."""
    rows, U, width = matrix.shape[0], matrix.shape[1] // 3, vector_lanes(matrix)
    count = min(width, rows - v * width)
    for g in range(3):
        source = at(pointer(matrix), v * width * 3 * U + (g + first_gate) % 3 * U)
        target = at(vectors, (v * 3 + g) * U * width)
        whole = 0
        if count == width:
            whole = U // width * width
            for u in range(0, whole, width):
                transpose_block(at(target, u * width), at(source, u), 3 * U)
        else:
            clear(target, U * width)
        for u in range(whole, U):
            for j in range(count):
                target[u * width + j] = source[j * 3 * U + u]


@routine
def _pack_items(words, helper, data):
    W, R, bias, weights, starts, kernel, recurrent = data
    width = vector_lanes(W)
    vectors = (W.shape[0] + width - 1) // width
    P = (R.shape[0] + width - 1) // width
    item = next_item(words, -1)
    while item < 2 * P + vectors:
        if item < P:
            if weights.size > 0:
                _pack_panel(W, R, bias, item, pointer(weights), pointer(starts))
        elif recurrent.size > 0:
            if item < 2 * P:
                _transpose(R, 0, item - P, pointer(recurrent))
            else:
                _transpose(W, 2, item - 2 * P, pointer(kernel))
        item = next_item(words, item)
    hold(W)
    hold(R)
    hold(weights)
    hold(starts)
    hold(kernel)
    hold(recurrent)


_share_items = sharing(_pack_items)


def _pack(W, R, bias, weights, starts, kernel, recurrent, words):
    data = W, R, bias, weights, starts, kernel, recurrent
    _share_items(None, pointer(words), data)


def _matrix(real: types.Float) -> types.Array:
    return types.Array(real, 2, "C")


def _flat(real: types.Float) -> types.Array:
    return types.Array(real, 1, "C")


_SUM_BIAS = Kernel(_sum_bias, lambda real: (_flat(real), _matrix(real)))
_PACK = Kernel(
    _pack, lambda real: (*[_matrix(real)] * 2, *[_flat(real)] * 5, WORD_ARRAY)
)
# Numbers of all weights from which on a second thread pays.
_PARALLEL_FROM = 100_000


def sum_bias(real: types.Float, bias: np.ndarray, U: int) -> np.ndarray:
    """Make what `pack` packs of a bias, unpacked (4, U)."""
    sums = np.empty((4, U), bias.dtype)
    _SUM_BIAS.entry(real)(bias, sums)
    return sums


def pack(
    W: np.ndarray,
    R: np.ndarray,
    bias: np.ndarray,
    which: tuple[bool, bool],
    threads: int,
) -> tuple[Panels | None, TransposedPanels | None]:
    """Pack weights for the forward kernels, for the backward kernels, or for both.

    Parameters
    ----------
    W : ndarray (F, 3 U)
    R : ndarray (U, 3 U)
    bias : ndarray (3 U,), (6 U,) or (0,)
        All C-ordered, of one type.
    which : tuple of bool
        Whether to pack `Panels`, and `TransposedPanels`.
    threads : int
        How many threads to use, at the most.
    """
    real = REAL[W.dtype]
    width = lanes(real)
    F, U = W.shape[0], R.shape[0]
    UP, FP = padded(U, width), padded(F, width)
    forward, transposed = which
    sizes = [(F + U) * 3 * UP, 4 * UP] if forward else [0, 0]
    sizes += [FP * 3 * U, UP * 3 * U] if transposed else [0, 0]
    block = memory.empty((sum(sizes),), W.dtype)
    parts, start = [], 0
    for size in sizes:
        parts.append(block[start : start + size])
        start += size
    run(
        _PACK.entry(real),
        (W, R, bias, *parts),
        threads if start >= _PARALLEL_FROM else 1,
    )
    return (
        Panels(*parts[:2]) if forward else None,
        TransposedPanels(*parts[2:]) if transposed else None,
    )

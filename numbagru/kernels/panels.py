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
    copy,
    hold,
    pointer,
    transpose_block,
    vector_lanes,
)
from numbagru.kernels.team import next_item, sharing
from numbagru.kernels.threads import WORD_ARRAY, run
from numbagru.kernels.tiles import write_vector
from numbagru.kernels.vector_ir import lanes, padded


class Panels(NamedTuple):
    """Weights of the forward kernels."""

    weights: np.ndarray  # (P, F + U, 3, lanes), flat
    bias: np.ndarray  # (P, 4, lanes): z, r, candidate's input and recurrent part, flat


class TransposedPanels(NamedTuple):
    """Weights of the backward kernels: vectors of columns, all k of one together."""

    kernel: np.ndarray  # (vectors of F, 3 U, lanes), k over candidate, z, r; flat
    recurrent: np.ndarray  # (vectors of U, 3 U, lanes), k over z, r, candidate; flat


@routine
def _start(bias, both, U, g, first, count, target):
    """Write where sums start: of z, r, the candidate's input and recurrent part."""
    if g == 3:
        if both:
            copy(target, at(bias, 5 * U + first), count)
        else:
            clear(target, count)
    else:
        copy(target, at(bias, g * U + first), count)
        if both and g < 2:
            more = at(bias, (3 + g) * U + first)
            for j in range(count):
                target[j] += more[j]


def _sum_bias(bias, sums):
    U = sums.shape[1]
    for g in range(4):
        target = at(pointer(sums), g * U)
        if bias.size == 0:
            clear(target, U)
        else:
            _start(pointer(bias), bias.size == 6 * U, U, g, np.intp(0), U, target)
    hold(bias)
    hold(sums)


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
        target = at(starts, (p * 4 + g) * width)
        if bias.size == 0:
            clear(target, count)
        else:
            _start(pointer(bias), bias.size == 6 * U, U, g, first, count, target)


@routine
def _pack_panels(words, helper, data):
    W, R, bias, weights, starts = data
    U, width = R.shape[0], vector_lanes(W)
    p = -1
    while (p + 1) * width < U:
        p = next_item(words, p)
        if p * width < U:
            _pack_panel(W, R, bias, p, pointer(weights), pointer(starts))
    hold(W)
    hold(R)
    hold(bias)
    hold(weights)
    hold(starts)


@routine
def _transpose(matrix, first_gate, v, vectors):
    """Bring as many rows as a vector has into vectors, gate by gate."""
    rows, U, width = matrix.shape[0], matrix.shape[1] // 3, vector_lanes(matrix)
    count = min(width, rows - v * width)
    whole = U // width * width if count == width else 0
    for g in range(3):
        source = at(pointer(matrix), v * width * 3 * U + (g + first_gate) % 3 * U)
        target = at(vectors, (v * 3 + g) * U * width)
        for u in range(0, whole, width):
            transpose_block(at(target, u * width), at(source, u), 3 * U)
        if count < width:
            clear(target, U * width)
        for u in range(whole, U):
            for j in range(count):
                target[u * width + j] = source[j * 3 * U + u]


@routine
def _pack_vectors(words, helper, data):
    W, R, kernel, recurrent = data
    width = vector_lanes(W)
    inputs = (W.shape[0] + width - 1) // width
    total = inputs + (R.shape[0] + width - 1) // width
    v = -1
    while v + 1 < total:
        v = next_item(words, v)
        if v < total:
            states = v >= inputs
            matrix, vectors = (R, recurrent) if states else (W, kernel)
            first_gate = 0 if states else 2
            place = v - inputs if states else v
            _transpose(matrix, first_gate, place, pointer(vectors))
    hold(W)
    hold(R)
    hold(kernel)
    hold(recurrent)


_share_panels, _share_vectors = sharing(_pack_panels), sharing(_pack_vectors)


def _pack(W, R, bias, weights, starts, words):
    _share_panels(None, pointer(words), (W, R, bias, weights, starts))


def _pack_transposed(W, R, kernel, recurrent, words):
    _share_vectors(None, pointer(words), (W, R, kernel, recurrent))


def _matrix(real: types.Float) -> types.Array:
    return types.Array(real, 2, "C")


def _flat(real: types.Float) -> types.Array:
    return types.Array(real, 1, "C")


_SUM_BIAS = Kernel(_sum_bias, lambda real: (_flat(real), _matrix(real)))
_PACK = Kernel(
    _pack, lambda real: (*[_matrix(real)] * 2, *[_flat(real)] * 3, WORD_ARRAY)
)
_PACK_TRANSPOSED = Kernel(
    _pack_transposed,
    lambda real: (*[_matrix(real)] * 2, *[_flat(real)] * 2, WORD_ARRAY),
)
# Numbers of all weights from which on a second thread pays.
_PARALLEL_FROM = 100_000


def sum_bias(real: types.Float, bias: np.ndarray, U: int) -> np.ndarray:
    """Make what `pack` packs of a bias, unpacked (4, U)."""
    sums = np.empty((4, U), bias.dtype)
    _SUM_BIAS.entry(real)(bias, sums)
    return sums


def pack(W: np.ndarray, R: np.ndarray, bias: np.ndarray, threads: int) -> Panels:
    """Pack weights for the forward kernels, on so many threads at the most.

    Parameters
    ----------
    W : ndarray (F, 3 U)
    R : ndarray (U, 3 U)
    bias : ndarray (3 U,), (6 U,) or (0,)
        All C-ordered, of one type.
    threads : int
    """
    real = REAL[W.dtype]
    F, U = W.shape[0], R.shape[0]
    UP = padded(U, lanes(real))
    count = (F + U) * 3 * UP
    block = memory.empty((count + 4 * UP,), W.dtype)
    panels = Panels(block[:count], block[count:])
    if count < _PARALLEL_FROM:
        threads = 1
    run(_PACK.entry(real), (W, R, bias, *panels), threads)
    return panels


def pack_transposed(W: np.ndarray, R: np.ndarray, threads: int) -> TransposedPanels:
    """Pack the transposes for the backward kernels; parameters as of `pack`."""
    real = REAL[W.dtype]
    F, U, width = W.shape[0], R.shape[0], lanes(real)
    count, all_count = padded(F, width) * 3 * U, padded(U, width) * 3 * U
    block = memory.empty((count + all_count,), W.dtype)
    panels = TransposedPanels(block[:count], block[count:])
    if count + all_count < _PARALLEL_FROM:
        threads = 1
    run(_PACK_TRANSPOSED.entry(real), (W, R, *panels), threads)
    return panels

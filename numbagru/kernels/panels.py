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
from numbagru.kernels.simd import (
    at,
    copy_vector,
    hold,
    lanes,
    padded,
    pointer,
    vector_lanes,
)


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


def _pack(W, R, bias, weights, packed_bias):
    F, U = W.shape[0], R.shape[0]
    width = vector_lanes(W)
    zero = W.dtype.type(0)
    target, starts = pointer(weights), pointer(packed_bias)
    for p in range((U + width - 1) // width):
        first = p * width
        count = min(width, U - first)
        for k in range(F + U):
            matrix, row = (pointer(W), k) if k < F else (pointer(R), k - F)
            for g in range(3):
                source = at(matrix, (row * 3 + g) * U + first)
                if count == width:
                    copy_vector(target, source)
                else:
                    for j in range(width):
                        target[j] = source[j] if j < count else zero
                target = at(target, width)
        for g in range(4):
            for j in range(width):
                starts[j] = _start(bias, U, g, first + j) if j < count else zero
            starts = at(starts, width)
    hold(W)
    hold(R)
    hold(weights)
    hold(packed_bias)


def _pack_transposed(W, R, kernel, recurrent):
    F, U = W.shape[0], R.shape[0]
    for g in range(3):
        _transpose(W, F, U, (g + 2) % 3 * U, kernel, g)
        _transpose(R, U, U, g * U, recurrent, g)


@routine
def _transpose(matrix, rows, U, column, vectors, g):
    """Bring the columns of one gate into vectors."""
    width = vector_lanes(matrix)
    for v in range((rows + width - 1) // width):
        count = min(width, rows - v * width)
        source = at(pointer(matrix), v * width * 3 * U + column)
        target = at(pointer(vectors), (v * 3 + g) * U * width)
        if count < width:
            for i in range(U * width):
                target[i] = 0
            for j in range(count):
                for u in range(U):
                    target[u * width + j] = source[j * 3 * U + u]
        else:
            for u in range(U):
                for j in range(width):
                    target[u * width + j] = source[j * 3 * U + u]
    hold(matrix)
    hold(vectors)


def _matrix(real: types.Float) -> types.Array:
    return types.Array(real, 2, "C")


def _flat(real: types.Float) -> types.Array:
    return types.Array(real, 1, "C")


_SUM_BIAS = Kernel(_sum_bias, lambda real: (_flat(real), _matrix(real)))
_PACK = Kernel(_pack, lambda real: (*[_matrix(real)] * 2, *[_flat(real)] * 3))
_PACK_TRANSPOSED = Kernel(
    _pack_transposed, lambda real: (*[_matrix(real)] * 2, *[_flat(real)] * 2)
)


def sum_bias(real: types.Float, bias: np.ndarray, U: int) -> np.ndarray:
    """Make what `pack` packs of a bias, unpacked (4, U)."""
    sums = np.empty((4, U), bias.dtype)
    _SUM_BIAS.entry(real)(bias, sums)
    return sums


def pack(real: types.Float, W: np.ndarray, R: np.ndarray, bias: np.ndarray) -> Panels:
    """Pack C-ordered W (F, 3 U), R (U, 3 U) and bias, flat (3 U), (6 U) or (0)."""
    F, U = W.shape[0], R.shape[0]
    UP = padded(U, lanes(real))
    weights = memory.empty(((F + U) * 3 * UP,), W.dtype)
    starts = memory.empty((4 * UP,), W.dtype)
    _PACK.entry(real)(W, R, bias, weights, starts)
    return Panels(weights, starts)


def pack_transposed(
    real: types.Float, W: np.ndarray, R: np.ndarray
) -> TransposedPanels:
    """Pack the transposes of C-ordered W (F, 3 U) and R (U, 3 U)."""
    F, U, width = W.shape[0], R.shape[0], lanes(real)
    kernel = memory.empty((padded(F, width) * 3 * U,), W.dtype)
    recurrent = memory.empty((padded(U, width) * 3 * U,), W.dtype)
    _PACK_TRANSPOSED.entry(real)(W, R, kernel, recurrent)
    return TransposedPanels(kernel, recurrent)

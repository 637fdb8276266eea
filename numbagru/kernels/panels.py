"""Weights packed for the register tiles.

A panel is one vector of units times three gates, in the order that the loop over k
reads it: ``(panel, k, gate, lane)`` with k over F features and then U units. Units are
zero-padded to whole panels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types

from numbagru._jit import Kernel
from numbagru.kernels.simd import lanes, padded


class Panels(NamedTuple):
    """Weights of the forward kernels."""

    weights: np.ndarray  # (P, F + U, 3, lanes), flat
    bias: np.ndarray  # (P, 4, lanes): z, r, candidate's input and recurrent part, flat


class TransposedPanels(NamedTuple):
    """Weights of the backward kernels: vectors of columns, all k of one together."""

    kernel: np.ndarray  # (vectors of F, 3 U, lanes), k over candidate, z, r; flat
    recurrent: np.ndarray  # (vectors of U, 3 U, lanes), k over z, r, candidate; flat


def _pack(W, R, bias, width, weights, packed_bias):
    F, U = W.shape[0], R.shape[0]
    P = (U + width - 1) // width
    for p in range(P):
        for k in range(F + U):
            for g in range(3):
                for j in range(width):
                    u = p * width + j
                    value = weights.dtype.type(0)
                    if u < U:
                        value = W[k, g * U + u] if k < F else R[k - F, g * U + u]
                    weights[((p * (F + U) + k) * 3 + g) * width + j] = value
        for g in range(4):
            for j in range(width):
                u = p * width + j
                packed_bias[(p * 4 + g) * width + j] = (
                    bias[g, u] if u < U else bias.dtype.type(0)
                )


def _pack_transposed(W, R, width, kernel, recurrent):
    F, U = W.shape[0], R.shape[0]
    zero = W.dtype.type(0)
    for v in range((F + width - 1) // width):
        for g in range(3):
            source = (g + 2) % 3 * U
            for u in range(U):
                for j in range(width):
                    f = v * width + j
                    kernel[((v * 3 + g) * U + u) * width + j] = (
                        W[f, source + u] if f < F else zero
                    )
    for v in range((U + width - 1) // width):
        for g in range(3):
            for u in range(U):
                for j in range(width):
                    row = v * width + j
                    recurrent[((v * 3 + g) * U + u) * width + j] = (
                        R[row, g * U + u] if row < U else zero
                    )


def _matrix(real: types.Float) -> types.Array:
    return types.Array(real, 2, "C")


def _flat(real: types.Float) -> types.Array:
    return types.Array(real, 1, "C")


_PACK = Kernel(
    _pack,
    lambda real: (*[_matrix(real)] * 3, types.int64, *[_flat(real)] * 2),
)
_PACK_TRANSPOSED = Kernel(
    _pack_transposed,
    lambda real: (*[_matrix(real)] * 2, types.int64, *[_flat(real)] * 2),
)


def pack(real: types.Float, W: np.ndarray, R: np.ndarray, bias: np.ndarray) -> Panels:
    """Pack C-ordered W (F, 3 U), R (U, 3 U) and bias (4, U)."""
    F, U, width = W.shape[0], R.shape[0], lanes(real)
    UP = padded(U, width)
    panels = Panels(np.empty((F + U) * 3 * UP, W.dtype), np.empty(4 * UP, W.dtype))
    _PACK.entry(real)(W, R, bias, width, *panels)
    return panels


def pack_transposed(
    real: types.Float, W: np.ndarray, R: np.ndarray
) -> TransposedPanels:
    """Pack the transposes of C-ordered W (F, 3 U) and R (U, 3 U)."""
    F, U, width = W.shape[0], R.shape[0], lanes(real)
    panels = TransposedPanels(
        np.empty(padded(F, width) * 3 * U, W.dtype),
        np.empty(padded(U, width) * 3 * U, W.dtype),
    )
    _PACK_TRANSPOSED.entry(real)(W, R, width, *panels)
    return panels

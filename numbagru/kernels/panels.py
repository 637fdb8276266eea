"""Weights packed for the register tiles: one array, whose parts `places` gives.

For the forward kernels
    panels     (P, F + U, 3, lanes): a panel is one vector of units times three gates,
               in the order that the loop over k reads it, F features and then U units
    bias       (P, 4, lanes): z, r, candidate's input and recurrent part
    of zeros   (P, 3, lanes): sums over states of zero; for inference, written by
               `pack_zeros` alone
and then for the backward kernels the transposes, as vectors of columns
    kernel     (vectors of F, 3 U, lanes), k over candidate, z, r
    recurrent  (vectors of U, 3 U, lanes), k over z, r, candidate
Units and features are zero-padded to whole vectors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numba import types

from numbagru._jit import Kernel, body, routine
from numbagru.kernels import memory
from numbagru.kernels.call import REAL
from numbagru.kernels.register_tiles import product_tile
from numbagru.kernels.simd import (
    aligned,
    at,
    clear,
    copy,
    hold,
    pointer,
    transpose_block,
    vector_lanes,
)
from numbagru.kernels.team import next_item, pieces, sharing
from numbagru.kernels.threads import WORD_ARRAY, run
from numbagru.kernels.tiles import write_vector
from numbagru.kernels.vector_ir import lanes, padded


@routine
def places(F, U, width):
    """Where bias, sums of zeros, kernel, recurrent kernel start, and where they end."""
    UP, FP = (U + width - 1) // width * width, (F + width - 1) // width * width
    bias = (F + U) * 3 * UP
    of_zeros = bias + 4 * UP
    kernel = of_zeros + 3 * UP
    recurrent = kernel + FP * 3 * U
    return bias, of_zeros, kernel, recurrent, recurrent + UP * 3 * U


@routine
def start_sums(bias, U, g, first, count, target):
    """Write where sums start: of z, r, the candidate's input and recurrent part."""
    both = bias.size == 6 * U
    if bias.size == 0 or (g == 3 and not both):
        clear(target, count)
    elif g == 3:
        copy(target, at(pointer(bias), 5 * U + first), count)
    else:
        copy(target, at(pointer(bias), g * U + first), count)
        if both and g < 2:
            more = at(pointer(bias), (3 + g) * U + first)
            for j in range(count):
                target[j] += more[j]


def _sum_bias(bias, sums):
    U = sums.shape[1]
    for g in range(4):
        start_sums(bias, U, g, np.intp(0), U, at(pointer(sums), g * U))
    hold(bias)
    hold(sums)


@routine
def pack_panel(W, R, states, p, target):
    """Pack the weights of one vector of units, those of so many states."""
    F, U, width = W.shape[0], R.shape[0], vector_lanes(W)
    first = p * width
    count = min(width, U - first)
    if count < width:
        clear(target, (F + states) * 3 * width)
    for k in range(F + states):
        matrix, row = (pointer(W), k) if k < F else (pointer(R), k - F)
        for g in range(3):
            write_vector(target, at(matrix, (row * 3 + g) * U + first), width, count)
            target = at(target, width)


_product = product_tile(1, 3)


@routine
def sum_zeros(zero, weights, k_step, gate_step, U, target, width):
    """Sum up what U states of zero contribute to a vector of units: see `pack_zeros`.

    Or with gradients in place of weights, what so many samples do.
    """
    for j in range(3 * width):
        target[j] = -0.0
    _product(
        zero, 0, 0, weights, k_step, gate_step, U, target, 0, width, 0, True, target, 0
    )  # fmt: skip


@routine
def _pack_sums(W, R, bias, p, weights, starts, of_zeros, zero):
    """Pack one vector of units, where its sums start, and those of zeros."""
    F, U, width = W.shape[0], R.shape[0], vector_lanes(W)
    first = p * width
    count = min(width, U - first)
    panel = at(weights, p * (F + U) * 3 * width)
    pack_panel(W, R, U, p, panel)
    recurrent, sums = at(panel, F * 3 * width), at(of_zeros, p * 3 * width)
    sum_zeros(zero, recurrent, 3 * width, width, U, sums, width)
    if count < width:
        clear(at(starts, p * 4 * width), 4 * width)
    for g in range(4):
        start_sums(bias, U, g, first, count, at(starts, (p * 4 + g) * width))


@routine
def transpose(matrix, first_gate, v, vectors):
    """Bring as many rows as a vector has, the v-th so many, into vectors.

    Gate by gate, with `first_gate` first.
    """
    rows, U, width = matrix.shape[0], matrix.shape[1] // 3, vector_lanes(matrix)
    count = min(width, rows - v * width)
    whole = U // width * width if count == width else 0
    for g in range(3):
        source = at(pointer(matrix), v * width * 3 * U + (g + first_gate) % 3 * U)
        target = at(vectors, g * U * width)
        for u in range(0, whole, width):
            transpose_block(at(target, u * width), at(source, u), 3 * U)
        if count < width:
            clear(target, U * width)
        for u in range(whole, U):
            for j in range(count):
                target[u * width + j] = source[j * 3 * U + u]


@body
def _pack_all(words, helper, data):
    W, R, bias, packed = data
    F, U, width = W.shape[0], R.shape[0], vector_lanes(W)
    starts, of_zeros, kernel, recurrent, _ = places(F, U, width)
    weights = aligned(pointer(packed))
    zero = np.zeros(1, W.dtype)
    panels, inputs = pieces(U, width), pieces(F, width)
    total = 2 * panels + inputs
    item = next_item(words, helper, -1, total)
    while item < total:
        # In turns, as many of each per panel: threads that will share the units of a
        # step then find in their own caches most of what they need.
        p = item * panels // total
        first = (p * total + panels - 1) // panels
        place = item - first
        if place == 0:
            _pack_sums(
                W, R, bias, p, weights, at(weights, starts), at(weights, of_zeros),
                pointer(zero),
            )  # fmt: skip
        elif place == 1:
            vectors = at(at(weights, recurrent), p * 3 * U * width)
            transpose(R, 0, p, vectors)
        else:
            v = first - 2 * p + place - 2
            transpose(W, 2, v, at(at(weights, kernel), v * 3 * U * width))
        item = next_item(words, helper, item, total)
    hold(zero)
    hold(W)
    hold(R)
    hold(bias)
    hold(packed)


_share_all = sharing(_pack_all)


def _pack_both(W, R, bias, packed, words):
    _share_all(None, pointer(words), (W, R, bias, packed))


def _signature(real: types.Float) -> tuple[types.Type, ...]:
    matrix, flat = types.Array(real, 2, "C"), types.Array(real, 1, "C")
    return matrix, matrix, flat, flat, WORD_ARRAY


_SUM_BIAS = Kernel(
    _sum_bias, lambda real: (types.Array(real, 1, "C"), types.Array(real, 2, "C"))
)
_BOTH = Kernel(_pack_both, _signature)


# Weights start a cache line, wherever NumPy's memory starts: a vector across two takes
# two loads. What `simd.aligned` may skip:
ALIGNING = 16


# Numbers of all weights from which on a second thread pays.
_PARALLEL_FROM = 100_000


def sum_bias(real: types.Float, bias: np.ndarray, U: int) -> np.ndarray:
    """Make what `pack` packs of a bias, unpacked (4, U)."""
    sums = np.empty((4, U), bias.dtype)
    _SUM_BIAS.entry(real)(bias, sums)
    return sums


def pack(
    W: np.ndarray, R: np.ndarray, bias: np.ndarray, backward: bool, threads: int
) -> np.ndarray:
    """Pack weights for the forward and, if asked for, the backward kernels.

    Parameters
    ----------
    W : ndarray (F, 3 U)
    R : ndarray (U, 3 U)
    bias : ndarray (3 U,), (6 U,) or (0,)
        All C-ordered, of one type.
    backward : bool
    threads : int
        How many may be used at the most, by what packs for the backward pass.
    """
    if not backward:
        return _pack_forward(W, R, bias)
    entry, make, size = _packing_both(W.shape[0], R.shape[0], W.dtype)
    packed = make()
    run(entry, (W, R, bias, packed), threads if size >= _PARALLEL_FROM else 1)
    return packed


def _pack_forward(W: np.ndarray, R: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Pack with NumPy: a kernel would make the first call of a process 0.4 s later."""
    (F, U), width = (len(W), len(R)), lanes(REAL[W.dtype])
    starts, _, end, _, _ = places.py_func(F, U, width)
    packed = memory.empty((end + ALIGNING,), W.dtype)
    panels = _part(packed, 0, (padded(U, width) // width, 3 * (F + U), width))
    _split(W.reshape(-1, U), panels[:, : 3 * F])
    _split(R.reshape(-1, U), panels[:, 3 * F :])
    sums = sum_bias(REAL[W.dtype], bias, U)
    _split(sums, _part(packed, starts, (len(panels), 4, width)))
    return packed


def _part(packed: np.ndarray, start: int, shape: tuple[int, ...]) -> np.ndarray:
    """View a part of packed weights, which begin where `aligned` says."""
    start += -packed.ctypes.data % 64 // packed.itemsize
    return packed[start : start + math.prod(shape)].reshape(shape)


def _split(rows: np.ndarray, panels: np.ndarray) -> None:
    """Write rows of U units, (n, U), into (P, n, lanes), with zeros after the last."""
    (n, U), width = rows.shape, panels.shape[-1]
    whole = U // width
    split = rows[:, : whole * width].reshape(n, whole, width)
    panels[:whole] = split.swapaxes(0, 1)
    if whole < len(panels):
        panels[whole, :, : U - whole * width] = rows[:, whole * width :]
        panels[whole, :, U - whole * width :] = 0


def pack_zeros(W: np.ndarray, R: np.ndarray, packed: np.ndarray) -> None:
    """Add what states of zero contribute to the sums of a step, to what `pack` made.

    A zero, negative where all weights are, or NaN where one is infinite or NaN: adding
    it gives the bits of all the products, which need not be made. XLA leaves them out
    too, where one step follows a state of zeros. With NumPy, because a kernel would
    make the first call of a process 0.25 s later.
    """
    U, width = len(R), lanes(REAL[W.dtype])
    of_zeros = places.py_func(len(W), U, width)[1]
    with np.errstate(invalid="ignore"):
        sums = np.add.reduce(R * 0, initial=-0.0).reshape(3, U)
    _split(sums, _part(packed, of_zeros, (padded(U, width) // width, 3, width)))


@functools.lru_cache
def _packing_both(
    F: int, U: int, dtype: np.dtype
) -> tuple[Callable[..., None], Callable[[], np.ndarray], int]:
    """Return what packs, what makes the memory for it, and how many numbers it has."""
    real = REAL[dtype]
    size = places.py_func(F, U, lanes(real))[-1]
    return _BOTH.entry(real), memory.maker((size + ALIGNING,), dtype), size

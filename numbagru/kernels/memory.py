"""Memory that one call after the other needs: kept instead of given back.

A training step packs its weights anew and saves what backward needs. Where the system
took such arrays back in between and handed out fresh pages, 700 page faults made 1.3 of
the 2.6 ms of the backward pass of 64 rows, one step and 256 units. For 8 rows, 5000
steps and 64 units (41 MB of gates) they make a twelfth of a step, and on a virtual
machine whose memory goes back to its host when nobody uses it more than half of the
steps after a pause: 180 instead of 55 ms in float64 (Zen 4).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

# Below, malloc has it at hand.
_SMALLEST = 2**16
# What is kept of what nobody uses; a layer in training asks for six blocks. (With half
# of it, new pages for 335 MB of gates made training 4096x20x32x128 in float64 take 376
# ms instead of 347, 8192x100x1x16 122 instead of 111, Zen 4.) Blocks that all together
# may be small change are not counted each time they come back (0.5 µs).
_MOST_BYTES, _MOST_BLOCKS = 2**29, 16
_SMALL_CHANGE = 2**20
_LINE = 64

# The oldest first, each from the start of a cache line on. Without a lock, which a
# garbage collection in between could ask for a second time: appending and popping are
# atomic.
_spare: deque[_Block] = deque(maxlen=_MOST_BLOCKS)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Make an array as `numpy.empty`; its memory may be used again.

    For what no caller of the package ever sees. Starts a cache line, unless it is small
    (a microsecond more for each array would be a twentieth of a training step on one
    row).
    """
    return maker(shape, np.dtype(dtype))()


def maker(shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
    """Give a function that does ``empty(shape, dtype)``, sooner."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALLEST:
        return functools.partial(np.empty, shape, dtype)
    return functools.partial(_empty, shape, dtype, size)


def result_maker(shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
    """Give a function that makes an array for the caller to keep.

    It starts a cache line, unless it is small: NumPy's large arrays start 16 bytes
    later, and with each vector of the weights' gradients across two lines training
    took 1.09 times as long for 128x20x256x1024, 1.04 for 64x50x128x512 and 1.02 for
    32x100x32x128 (Emerald Rapids).
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALLEST:
        return functools.partial(np.empty, shape, dtype)

    def make() -> np.ndarray:
        block = np.empty(size + _LINE, np.uint8)
        return np.ndarray(shape, dtype, block, _to_line(block))

    return make


def _empty(shape: tuple[int, ...], dtype: np.dtype, size: int) -> np.ndarray:
    block = _aligned(size) if size > _MOST_BYTES else _borrowed(size).view(_Loan)
    return np.ndarray(shape, dtype, block)


def _borrowed(size: int) -> _Block:
    for _ in range(len(_spare)):
        try:
            block = _spare.popleft()
        except IndexError:
            break
        # With up to twice as much, states took the block of a part of the gradients,
        # which then needed another (128x20x256x1024: 62.5 MiB instead of 57.6).
        if size <= len(block) <= size + size // 4:
            return block
        _spare.append(block)
    _keep_at_most(_MOST_BYTES - size)
    return _aligned(size)


def _keep_at_most(size: int) -> None:
    with contextlib.suppress(IndexError):  # another thread was first
        while sum(block.size for block in tuple(_spare)) > size:
            _spare.popleft()


def _aligned(size: int) -> _Block:
    block = np.empty(size + _LINE, np.uint8)
    start = _to_line(block)
    return block[start : start + size].view(_Block)


def _to_line(block: np.ndarray) -> int:
    """Count the bytes up to the next cache line; asking `block.ctypes` takes 1 µs."""
    return -ctypes.addressof(ctypes.c_char.from_buffer(block)) % _LINE


class _Block(np.ndarray):
    """Memory that is lent. NumPy would pass over a plain array's views as owners."""


class _Loan(np.ndarray):
    """A view of a block, which goes back when the view dies."""

    def __del__(self) -> None:
        if _spare is not None:  # as it is when Python ends
            block = self.base
            _spare.append(block)
            if len(block) > _SMALL_CHANGE:
                _keep_at_most(_MOST_BYTES - _MOST_BLOCKS * _SMALL_CHANGE)

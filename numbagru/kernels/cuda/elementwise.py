"""What NumPy does on the host around a pass: zeros, sums, dropout, sorted rows."""

from __future__ import annotations

import functools
from typing import Any

from numba import types

from numbagru.kernels.call import REAL
from numbagru.kernels.cuda.launch import Launch, strides
from numbagru.kernels.cuda.ptx import cuda

THREADS = 128


def _blocks(count: int) -> tuple[int]:
    return (-(-count // THREADS),)


def fill(array: Any) -> list[Launch]:
    """Set an array without gaps to zeros."""
    if array.size == 0:
        return []
    real = REAL[array.dtype]
    signature = types.CPointer(real), types.int32
    arguments = array, array.size
    return [Launch(make_fill(real), signature, _blocks(array.size), THREADS, arguments)]


@functools.cache
def make_fill(real):
    """Make the kernel of `fill`."""
    zero = real(0)

    def fill(array, count):
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        if i < count:
            array[i] = zero

    return fill


def add(array: Any, term: Any) -> list[Launch]:
    """Add an array to one of as many numbers, both without gaps."""
    if array.size == 0:
        return []
    real = REAL[array.dtype]
    numbers = types.CPointer(real)
    signature = numbers, numbers, types.int32
    arguments = array, term, array.size
    return [Launch(make_add(real), signature, _blocks(array.size), THREADS, arguments)]


@functools.cache
def make_add(real):
    """Make the kernel of `add`."""

    def add(array, term, count):
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        if i < count:
            array[i] = array[i] + term[i]

    return add


def scale(x: Any, factor: Any, product: Any) -> list[Launch]:
    """Multiply two arrays (B, T, F) whose last axis has no gaps."""
    B, T, F = x.shape
    if x.size == 0:
        return []
    real = REAL[x.dtype]
    numbers, size = types.CPointer(real), types.int32
    signature = (numbers, size, size) * 3 + (size, size, size)
    arrays = (*((a, *strides(a)) for a in (x, factor, product)),)
    arguments = (*(value for array in arrays for value in array), B, T, F)
    return [Launch(make_scale(real), signature, _blocks(x.size), THREADS, arguments)]


@functools.cache
def make_scale(real):
    """Make the kernel of `scale`."""

    def scale(
        x, x_row, x_step, factor, factor_row, factor_step, product, row_stride,
        step_stride, B, T, F,
    ):  # fmt: skip
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        if i < B * T * F:
            row, t, f = i // (T * F), i // F % T, i % F
            multiplier = factor[row * factor_row + t * factor_step + f]
            value = x[row * x_row + t * x_step + f] * multiplier
            product[row * row_stride + t * step_stride + f] = value

    return scale


def rows_by_end(mask: Any, ends: Any, order: Any) -> list[Launch]:
    """Sort the rows as `call.rows_by_end` does; ends (B,) of int32 to work with."""
    B, T = mask.shape
    flags, size = types.CPointer(types.uint8), types.int32
    steps, rows = types.CPointer(types.int32), types.CPointer(types.int64)
    return [
        Launch(
            find_ends,
            (flags, size, size, steps, size, size),
            _blocks(B),
            THREADS,
            (mask, *mask.strides, ends, B, T),
        ),
        Launch(
            sort_rows, (steps, rows, size), _blocks(B), THREADS, (ends, order, B)
        ),
    ]  # fmt: skip


def find_ends(mask, mask_row, mask_step, ends, B, T):
    """Count the steps of each row up to its last active one."""
    row = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if row < B:
        end = T
        while end > 0 and mask[row * mask_row + (end - 1) * mask_step] == 0:
            end -= 1
        ends[row] = end


def sort_rows(ends, order, B):
    """Put each row where so many others come before it.

    All pairs are compared: 4096 rows are 17 million comparisons, a fraction of a step.
    """
    row = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if row < B:
        before = 0
        for other in range(B):
            if ends[other] > ends[row] or (ends[other] == ends[row] and other < row):
                before += 1
        order[before] = row

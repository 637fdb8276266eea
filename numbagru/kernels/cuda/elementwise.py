"""What NumPy does on the host around a pass: zeros, sums, products, sorted rows."""

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


def combine(op: str, target: Any, first: Any, second: Any) -> list[Launch]:
    """Write one of `OPS` of two arrays (B, T, F) whose last axis has no gaps.

    The target may be one of them. What takes the first alone never reads the second.
    """
    B, T, F = target.shape
    if target.size == 0:
        return []
    real = REAL[target.dtype]
    numbers, size = types.CPointer(real), types.int32
    signature = (numbers, size, size) * 3 + (size, size, size)
    arrays = (*((a, *strides(a)) for a in (target, first, second)),)
    arguments = (*(value for array in arrays for value in array), B, T, F)
    kernel = make_combine(real, *OPS[op])
    return [Launch(kernel, signature, _blocks(target.size), THREADS, arguments)]


# Whether the second is added or multiplied, and half of that taken.
OPS = {
    "copy": (False, False, False),
    "half": (False, False, True),
    "add": (True, False, False),
    "mean": (True, False, True),
    "multiply": (False, True, False),
}


@functools.cache
def make_combine(real, adds, multiplies, halves):
    """Make the kernel of `combine`."""
    half = real(0.5)

    def combine(
        target, target_row, target_step, first, first_row, first_step, second,
        second_row, second_step, B, T, F,
    ):  # fmt: skip
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        if i < B * T * F:
            row, t, f = i // (T * F), i // F % T, i % F
            value = first[row * first_row + t * first_step + f]
            if adds:
                value = value + second[row * second_row + t * second_step + f]
            if multiplies:
                value = value * second[row * second_row + t * second_step + f]
            if halves:
                value = value * half
            target[row * target_row + t * target_step + f] = value

    return combine


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

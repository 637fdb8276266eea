"""Gradients of weights: factors times gradients of sums, over the samples of a part.

The order is that of the CPU (kernels/__init__.py, backward_parts.py): a part of the
rows goes through them in blocks, a block through its steps from the last to the first,
a step through its rows. So a sum is one chain over the samples of a part, and the parts
are added in their order. Masked samples count as zeros.
"""

from __future__ import annotations

from numba import types

from numbagru._jit_cuda import DeviceFunction
from numbagru.kernels.cuda.products import (
    DEPTH,
    SUMS,
    THREADS,
    TILE,
    tile_of,
)
from numbagru.kernels.cuda.ptx import cuda, pointer
from numbagru.scalar import fma

COLUMNS = 128  # of a block of `make_biases` and of `make_collect`


def _samples(real, masked):
    """Make what finds the samples of a part in their order."""

    @DeviceFunction
    def sample_of(order, first, n, number, T):
        """Row and step of a block's sample."""
        i = first + number % n
        row = order[i] if masked else i
        return row, T - 1 - number // n

    @DeviceFunction
    def counts(mask, mask_row, mask_step, row, t):
        return mask[row * mask_row + t * mask_step] != 0 if masked else True

    return sample_of, counts


def gradient_signature(real):
    """Types of the arguments of `make_gradient`'s kernel."""
    numbers, size = types.CPointer(real), types.int32
    flags, rows = types.CPointer(types.uint8), types.CPointer(types.int64)
    return (
        numbers, size, size, numbers, numbers, numbers, numbers, flags, size, size,
        rows, numbers, numbers, *[size] * 6,
    )  # fmt: skip


def make_gradient(real, of_states, reset_after, masked, drops, precision):
    """Make the kernel for the kernel's gradient, or the recurrent kernel's.

    A block has `TILE` inputs or states and as many columns of one gate; gridDim.z is
    the number of parts, gridDim.y of tiles of all three gates.
    """
    row_size, row_at, column_at, rounded, add_products = tile_of(precision)
    tile_size, shared_size = TILE * DEPTH, row_size * DEPTH
    sample_of, counts = _samples(real, masked)
    zero = real(0)

    @DeviceFunction
    def factor(x, x_row, x_step, h0, states, saved, drop, gate, row, t, k, B, T, U, K):
        """Give what the gate multiplied its weights with."""
        if not of_states:
            value = x[row * x_row + t * x_step + k]
        elif gate == 2 and not reset_after:
            # r * h, with the gate's own dropout in it.
            return saved[((row * T + t) * 4 + 3) * U + k]
        elif t > 0:
            value = states[(row * T + t - 1) * U + k]
        else:
            value = h0[row * U + k]
        if drops:
            value *= drop[(gate * B + row) * K + k]
        return value

    def gradient(
        x, x_row, x_step, h0, states, saved, d_sums, mask, mask_row, mask_step, order,
        drop, parts, B, T, K, U, rows_per_part, block_rows,
    ):  # fmt: skip
        a = pointer(cuda.shared.array(shared_size, real))
        b = pointer(cuda.shared.array(shared_size, real))
        total = pointer(cuda.local.array(SUMS, real))
        tid = cuda.threadIdx.x
        left = cuda.blockIdx.x * TILE
        tiles = (U + TILE - 1) // TILE
        gate, top = cuda.blockIdx.y // tiles, cuda.blockIdx.y % tiles * TILE
        # Gradients stand in the order candidate, z, r, candidate's recurrent part.
        slot = (gate + 1) % 3
        if of_states and reset_after and gate == 2:
            slot = 3
        for i in range(SUMS):
            total[i] = zero
        part = cuda.blockIdx.z
        stop = min(B, (part + 1) * rows_per_part)
        for first in range(part * rows_per_part, stop, block_rows):
            n = min(block_rows, stop - first)
            for start in range(0, n * T, DEPTH):
                depth = min(DEPTH, n * T - start)
                for turn in range(tile_size // THREADS):
                    i = tid + turn * THREADS
                    number, seen, d = i // TILE, zero, zero
                    if number < depth:
                        row, t = sample_of(order, first, n, start + number, T)
                        k, u = min(left + i % TILE, K - 1), min(top + i % TILE, U - 1)
                        if counts(mask, mask_row, mask_step, row, t):
                            seen = factor(
                                x, x_row, x_step, h0, states, saved, drop, gate, row, t,
                                k, B, T, U, K,
                            )  # fmt: skip
                            d = d_sums[((row * T + t) * 4 + slot) * U + u]
                    a[number * row_size + i % TILE] = rounded(seen)
                    b[number * row_size + i % TILE] = rounded(d)
                cuda.syncthreads()
                add_products(total, a, b, depth)
                cuda.syncthreads()
        for i in range(SUMS):
            k, u = left + row_at(i), top + column_at(i)
            if k < K and u < U:
                parts[((part * K + k) * 3 + gate) * U + u] = total[i]

    return gradient


def biases_signature(real):
    """Types of the arguments of `make_biases`' kernel."""
    numbers, size = types.CPointer(real), types.int32
    flags, rows = types.CPointer(types.uint8), types.CPointer(types.int64)
    return (numbers, flags, size, size, rows, numbers, *[size] * 5)


def make_biases(real, masked):
    """Make the kernel that adds up the gradients of the sums of a part's samples."""
    sample_of, counts = _samples(real, masked)
    zero, one = real(0), real(1)

    def biases(
        d_sums, mask, mask_row, mask_step, order, parts, B, T, U, rows_per_part,
        block_rows,
    ):  # fmt: skip
        column = cuda.blockIdx.x * COLUMNS + cuda.threadIdx.x
        part = cuda.blockIdx.y
        total = zero
        stop = min(B, (part + 1) * rows_per_part)
        for first in range(part * rows_per_part, stop, block_rows):
            n = min(block_rows, stop - first)
            for number in range(n * T):
                row, t = sample_of(order, first, n, number, T)
                if column < 4 * U and counts(mask, mask_row, mask_step, row, t):
                    total = fma(one, d_sums[(row * T + t) * 4 * U + column], total)
        if column < 4 * U:
            parts[part * 4 * U + column] = total

    return biases


def collect_signature(real):
    """Types of the arguments of `make_collect`'s kernel."""
    numbers, size = types.CPointer(real), types.int32
    return (numbers, numbers, size, size, size)


def make_collect(real):
    """Make the kernel that adds the parts of an array in their order.

    With U > 0 they are parts of `make_biases`, which come into the bias' layout.
    """

    def collect(parts, out, count, size, U):
        i = cuda.blockIdx.x * COLUMNS + cuda.threadIdx.x
        if i < size:
            spot, stride = i, size
            if U > 0:
                gate = i // U
                slot = 3 if gate == 5 else (gate + 1) % 3
                spot, stride = slot * U + i % U, 4 * U
            total = parts[spot]
            for part in range(1, count):
                total += parts[part * stride + spot]
            out[i] = total

    return collect

"""Products of many samples at once, in tiles: inputs and weights, and back.

A block has `TILE` samples and as many columns; a thread has sixteen sums of them in
registers. Each sum is one chain, of inputs on top of the bias; with tensor cores it is
what they make of it (`tensor_tile`).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numba import types

from numbagru._jit_cuda import LEAST_CAPABILITY, DeviceFunction
from numbagru.kernels.cuda.ptx import cuda, multiply_add, pointer, to_tf32
from numbagru.scalar import fma

TILE, SIDE, EACH, DEPTH = 64, 16, 4, 16
THREADS = SIDE * SIDE
SUMS = EACH * EACH  # of a thread


def row_of(count):
    """Count the numbers of a row in shared memory that holds `count`.

    Threads side by side bring what has another k each, so they write down a column:
    shared memory has 32 banks, and without these two numbers sixteen threads would
    wait for one of them, half as long again as the products take (a model).
    """
    return count + 2


def make_add_products(columns, apart=0):
    """Make ``add(total, a, b, depth)`` for the sums of a thread, `EACH` rows x columns.

    It adds the products of a slab of `depth` in shared memory. Factors of the rows are
    those of all columns, or each column's, `apart` numbers after the ones before.
    """
    row, width = row_of(TILE), row_of(columns * SIDE)

    @DeviceFunction
    def add_products(total, a, b, ty, tx, depth):
        for k in range(depth):
            for i in range(EACH):
                for j in range(columns):
                    total[i * columns + j] = fma(
                        a[j * apart + k * row + ty + i * SIDE],
                        b[k * width + tx + j * SIDE],
                        total[i * columns + j],
                    )

    @DeviceFunction
    def add(total, a, b, depth):
        ty, tx = cuda.threadIdx.x // SIDE, cuda.threadIdx.x % SIDE
        if depth == DEPTH:  # then the compiler knows how many
            add_products(total, a, b, ty, tx, DEPTH)
        else:
            add_products(total, a, b, ty, tx, depth)

    return add


class Tile(NamedTuple):
    """How the threads of a block share `TILE` x `TILE` sums."""

    row_size: int  # numbers from k to k of a slab in shared memory
    row: Any  # ``row(i)``: where in the tile a thread's sum i is
    column: Any
    rounded: Any  # what becomes of a factor on the way to shared memory
    add: Any  # ``add(total, a, b, depth)``: factors are zeros from `depth` on


@functools.cache
def tile_of(precision):
    """Return the `Tile` of a config's precision."""
    return tensor_tile() if precision == "tf32" else exact_tile()


def kind_of(precision):
    """Return the precision of the kernels here, whose order is a free one too."""
    return "dtype" if precision == "free" else precision


def capability_of(precision):
    """Return the least compute capability of a device with such a precision."""
    return (8, 0) if precision == "tf32" else LEAST_CAPABILITY


def exact_tile():
    """Give a thread every sixteenth row and column, and each sum one chain."""

    @DeviceFunction
    def row(i):
        return cuda.threadIdx.x // SIDE + i // EACH * SIDE

    @DeviceFunction
    def column(i):
        return cuda.threadIdx.x % SIDE + i % EACH * SIDE

    @DeviceFunction
    def rounded(value):
        return value

    return Tile(row_of(TILE), row, column, rounded, make_add_products(EACH))


def tensor_tile():
    """Let a warp have 16 rows and 32 columns, which tensor cores multiply.

    Factors are rounded to TF32, 11 bits; products are exact and added in float32, eight
    at a time. With rows of 72 numbers the 32 threads of a warp read from as many banks.
    """
    row_size = TILE + 8

    @DeviceFunction
    def row(i):
        warp, group = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32 // 4
        return warp % 4 * 16 + group + i % 4 // 2 * 8

    @DeviceFunction
    def column(i):
        warp, place = cuda.threadIdx.x // 32, cuda.threadIdx.x % 4
        return warp // 4 * 32 + i // 4 * 8 + place * 2 + i % 2

    @DeviceFunction
    def add(total, a, b, depth):
        warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
        left, top = warp % 4 * 16 + lane // 4, warp // 4 * 32 + lane // 4
        for start in range(0, DEPTH, 8):
            near = (start + lane % 4) * row_size
            far = near + 4 * row_size
            for n in range(4):
                multiply_add(
                    total, 4 * n, a[near + left], a[near + left + 8], a[far + left],
                    a[far + left + 8], b[near + top + 8 * n], b[far + top + 8 * n],
                )  # fmt: skip

    return Tile(row_size, row, column, to_tf32, add)


def project_signature(real):
    """Types of the arguments of `make_project`'s kernel."""
    numbers, size = types.CPointer(real), types.int32
    return (numbers, size, size, numbers, numbers, numbers, numbers, *[size] * 4)


def make_project(real, per_gate, precision):
    """Make ``sums = bias + x W`` for all samples.

    With `per_gate` the inputs have dropout of their own for each gate, and a block the
    columns of one gate: gridDim.z is 3.
    """
    row_size, row_at, column_at, rounded, add_products = tile_of(precision)
    tile_size, shared_size = TILE * DEPTH, row_size * DEPTH
    zero = real(0)

    def project(x, x_row, x_step, drop, weights, bias, sums, B, T, F, U):
        a = pointer(cuda.shared.array(shared_size, real))
        b = pointer(cuda.shared.array(shared_size, real))
        total = pointer(cuda.local.array(SUMS, real))
        tid = cuda.threadIdx.x
        gates = 3 * U
        first = cuda.blockIdx.x * TILE
        gate = cuda.blockIdx.z
        left = gate * U + cuda.blockIdx.y * TILE
        right = (gate + 1) * U if per_gate else gates
        samples = B * T
        for i in range(SUMS):
            total[i] = bias[min(left + column_at(i), right - 1)]
        for start in range(0, F, DEPTH):
            depth = min(DEPTH, F - start)
            for turn in range(tile_size // THREADS):
                i = tid + turn * THREADS
                # Threads side by side read features, and columns, side by side.
                k, sample = i % DEPTH, min(first + i // DEPTH, samples - 1)
                value = zero
                if k < depth:
                    row, t = sample // T, sample % T
                    value = x[row * x_row + t * x_step + start + k]
                    if per_gate:
                        value *= drop[(gate * B + row) * F + start + k]
                a[k * row_size + i // DEPTH] = rounded(value)
                k, column = i // TILE, min(left + i % TILE, right - 1)
                value = weights[(start + k) * gates + column] if k < depth else zero
                b[k * row_size + i % TILE] = rounded(value)
            cuda.syncthreads()
            add_products(total, a, b, depth)
            cuda.syncthreads()
        for i in range(SUMS):
            sample, column = first + row_at(i), left + column_at(i)
            if sample < samples and column < right:
                sums[sample * gates + column] = total[i]

    return project


def input_gradient_signature(real):
    """Types of the arguments of `make_input_gradient`'s kernel."""
    numbers, size = types.CPointer(real), types.int32
    return (numbers, numbers, numbers, numbers, *[size] * 6)


def make_input_gradient(real, apart, drops, precision):
    """Make the gradient of the inputs from the gradients of the sums.

    One chain over the units of the candidate, of z and of r; with `apart` a chain for
    each of them, which `drops` multiplies by the dropout of that gate.
    """
    row_size, row_at, column_at, rounded, add_products = tile_of(precision)
    tile_size, shared_size = TILE * DEPTH, row_size * DEPTH
    zero = real(0)

    def input_gradient(d_sums, weights, drop, d_x, d_x_row, d_x_step, B, T, F, U):
        a = pointer(cuda.shared.array(shared_size, real))
        b = pointer(cuda.shared.array(shared_size, real))
        total = pointer(cuda.local.array(SUMS, real))
        result = pointer(cuda.local.array(SUMS, real))
        tid = cuda.threadIdx.x
        first, left = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
        samples = B * T
        for i in range(SUMS):
            total[i] = zero
            result[i] = zero
        length = U if apart else 3 * U
        for chain in range(3 if apart else 1):
            gate = (chain + 2) % 3
            for start in range(0, length, DEPTH):
                depth = min(DEPTH, length - start)
                for turn in range(tile_size // THREADS):
                    i = tid + turn * THREADS
                    k, gradient, weight = i % DEPTH, zero, zero
                    if k < depth:
                        sample = min(first + i // DEPTH, samples - 1)
                        f = min(left + i // DEPTH, F - 1)
                        j = chain * U + start + k
                        gradient = d_sums[sample * 4 * U + j]
                        # The candidate's weights stand last, its gradients first.
                        weight = weights[f * 3 * U + (2 * U + j) % (3 * U)]
                    a[k * row_size + i // DEPTH] = rounded(gradient)
                    b[k * row_size + i // DEPTH] = rounded(weight)
                cuda.syncthreads()
                add_products(total, a, b, depth)
                cuda.syncthreads()
            for i in range(SUMS):
                value = total[i]
                if drops:
                    row = min(first + row_at(i), samples - 1) // T
                    f = min(left + column_at(i), F - 1)
                    value *= drop[(gate * B + row) * F + f]
                if chain > 0:
                    value = result[i] + value
                result[i] = value
                total[i] = zero
        for i in range(SUMS):
            sample, f = first + row_at(i), left + column_at(i)
            if sample < samples and f < F:
                d_x[sample // T * d_x_row + sample % T * d_x_step + f] = result[i]

    return input_gradient

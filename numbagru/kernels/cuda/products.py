"""Products of many samples at once, in tiles: inputs and weights, and back.

A block has `TILE` samples and as many columns; a thread has every sixteenth of both,
sixteen sums in registers. Each sum is one chain, of inputs on top of the bias.
"""

from __future__ import annotations

from numba import types

from numbagru._jit_cuda import DeviceFunction
from numbagru.kernels.cuda.ptx import cuda
from numbagru.scalar import fma

TILE, SIDE, EACH, DEPTH = 64, 16, 4, 16
THREADS = SIDE * SIDE


def make_add_products(columns):
    """Make what adds to the sums of a thread, `EACH` rows and so many columns."""
    width = columns * SIDE

    @DeviceFunction
    def add_products(total, a, b, ty, tx, depth):
        """Add the products of a slab of `depth`."""
        for k in range(depth):
            for i in range(EACH):
                for j in range(columns):
                    total[i * columns + j] = fma(
                        a[k * TILE + ty + i * SIDE],
                        b[k * width + tx + j * SIDE],
                        total[i * columns + j],
                    )

    return add_products


add_products = make_add_products(EACH)


def project_signature(real):
    """Types of the arguments of `make_project`'s kernel."""
    numbers, size = types.CPointer(real), types.int32
    return (numbers, size, size, numbers, numbers, numbers, numbers, *[size] * 4)


def make_project(real, per_gate):
    """Make ``sums = bias + x W`` for all samples.

    With `per_gate` the inputs have dropout of their own for each gate, and a block the
    columns of one gate: gridDim.z is 3.
    """
    tile_size = TILE * DEPTH
    sums_size = EACH * EACH

    def project(x, x_row, x_step, drop, weights, bias, sums, B, T, F, U):
        a = cuda.shared.array(tile_size, real)
        b = cuda.shared.array(tile_size, real)
        total = cuda.local.array(sums_size, real)
        tid = cuda.threadIdx.x
        ty, tx = tid // SIDE, tid % SIDE
        gates = 3 * U
        first = cuda.blockIdx.x * TILE
        gate = cuda.blockIdx.z
        left = gate * U + cuda.blockIdx.y * TILE
        right = (gate + 1) * U if per_gate else gates
        samples = B * T
        for j in range(EACH):
            column = min(left + tx + j * SIDE, right - 1)
            for i in range(EACH):
                total[i * EACH + j] = bias[column]
        for start in range(0, F, DEPTH):
            depth = min(DEPTH, F - start)
            for i in range(tid, tile_size, THREADS):
                # Threads side by side read features, and columns, side by side.
                k, sample = i % DEPTH, min(first + i // DEPTH, samples - 1)
                if k < depth:
                    row, t = sample // T, sample % T
                    value = x[row * x_row + t * x_step + start + k]
                    if per_gate:
                        value *= drop[(gate * B + row) * F + start + k]
                    a[k * TILE + i // DEPTH] = value
                k, column = i // TILE, min(left + i % TILE, right - 1)
                if k < depth:
                    b[i] = weights[(start + k) * gates + column]
            cuda.syncthreads()
            if depth == DEPTH:
                add_products(total, a, b, ty, tx, DEPTH)
            else:
                add_products(total, a, b, ty, tx, depth)
            cuda.syncthreads()
        for i in range(EACH):
            sample = first + ty + i * SIDE
            for j in range(EACH):
                column = left + tx + j * SIDE
                if sample < samples and column < right:
                    sums[sample * gates + column] = total[i * EACH + j]

    return project


def input_gradient_signature(real):
    """Types of the arguments of `make_input_gradient`'s kernel."""
    numbers, size = types.CPointer(real), types.int32
    return (numbers, numbers, numbers, numbers, *[size] * 6)


def make_input_gradient(real, apart, drops):
    """Make the gradient of the inputs from the gradients of the sums.

    One chain over the units of the candidate, of z and of r; with `apart` a chain for
    each of them, which `drops` multiplies by the dropout of that gate.
    """
    tile_size, sums_size = TILE * DEPTH, EACH * EACH
    zero = real(0)

    def input_gradient(d_sums, weights, drop, d_x, d_x_row, d_x_step, B, T, F, U):
        a = cuda.shared.array(tile_size, real)
        b = cuda.shared.array(tile_size, real)
        total = cuda.local.array(sums_size, real)
        result = cuda.local.array(sums_size, real)
        tid = cuda.threadIdx.x
        ty, tx = tid // SIDE, tid % SIDE
        first, left = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
        samples = B * T
        for i in range(sums_size):
            total[i] = zero
            result[i] = zero
        length = U if apart else 3 * U
        for chain in range(3 if apart else 1):
            gate = (chain + 2) % 3
            for start in range(0, length, DEPTH):
                depth = min(DEPTH, length - start)
                for i in range(tid, tile_size, THREADS):
                    k = i % DEPTH
                    if k < depth:
                        sample = min(first + i // DEPTH, samples - 1)
                        f = min(left + i // DEPTH, F - 1)
                        j = chain * U + start + k
                        a[k * TILE + i // DEPTH] = d_sums[sample * 4 * U + j]
                        # The candidate's weights stand last, its gradients first.
                        column = (2 * U + j) % (3 * U)
                        b[k * TILE + i // DEPTH] = weights[f * 3 * U + column]
                cuda.syncthreads()
                if depth == DEPTH:
                    add_products(total, a, b, ty, tx, DEPTH)
                else:
                    add_products(total, a, b, ty, tx, depth)
                cuda.syncthreads()
            for i in range(EACH):
                row = min(first + ty + i * SIDE, samples - 1) // T
                for j in range(EACH):
                    value = total[i * EACH + j]
                    if drops:
                        f = min(left + tx + j * SIDE, F - 1)
                        value *= drop[(gate * B + row) * F + f]
                    if chain > 0:
                        value = result[i * EACH + j] + value
                    result[i * EACH + j] = value
                    total[i * EACH + j] = zero
        for i in range(EACH):
            sample = first + ty + i * SIDE
            for j in range(EACH):
                f = left + tx + j * SIDE
                if sample < samples and f < F:
                    spot = sample // T * d_x_row + sample % T * d_x_step + f
                    d_x[spot] = result[i * EACH + j]

    return input_gradient

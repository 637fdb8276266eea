"""Products of many samples at once, in tiles: the inputs with their weights.

A block has `TILE` samples and as many columns; a thread has every sixteenth of both,
sixteen sums in registers. Each sum is one chain over the features, on top of the bias.
"""

from __future__ import annotations

from numba import types

from numbagru._jit_cuda import DeviceFunction
from numbagru.kernels.cuda.ptx import cuda
from numbagru.scalar import fma

TILE, _SIDE, _EACH, _DEPTH = 64, 16, 4, 16
THREADS = _SIDE * _SIDE


def project_signature(real):
    """Types of the arguments of `make_project`'s kernel."""
    numbers, size = types.CPointer(real), types.int64
    return (numbers, size, size, numbers, numbers, numbers, numbers, *[size] * 4)


def make_project(real, per_gate):
    """Make ``sums = bias + x W`` for all samples.

    With `per_gate` the inputs have dropout of their own for each gate, and a block the
    columns of one gate: gridDim.z is 3.
    """
    tile_size = TILE * _DEPTH
    sums_size = _EACH * _EACH

    @DeviceFunction
    def add_products(total, a, b, ty, tx, depth):
        for k in range(depth):
            for i in range(_EACH):
                for j in range(_EACH):
                    total[i * _EACH + j] = fma(
                        a[k * TILE + ty + i * _SIDE],
                        b[k * TILE + tx + j * _SIDE],
                        total[i * _EACH + j],
                    )

    def project(x, x_row, x_step, drop, weights, bias, sums, B, T, F, U):
        a = cuda.shared.array(tile_size, real)
        b = cuda.shared.array(tile_size, real)
        total = cuda.local.array(sums_size, real)
        tid = cuda.threadIdx.x
        ty, tx = tid // _SIDE, tid % _SIDE
        gates = 3 * U
        first = cuda.blockIdx.x * TILE
        gate = cuda.blockIdx.z
        left = gate * U + cuda.blockIdx.y * TILE
        right = (gate + 1) * U if per_gate else gates
        samples = B * T
        for j in range(_EACH):
            column = min(left + tx + j * _SIDE, right - 1)
            for i in range(_EACH):
                total[i * _EACH + j] = bias[column]
        for start in range(0, F, _DEPTH):
            depth = min(_DEPTH, F - start)
            for i in range(tid, tile_size, THREADS):
                # Threads side by side read features, and columns, side by side.
                k, sample = i % _DEPTH, min(first + i // _DEPTH, samples - 1)
                if k < depth:
                    row, t = sample // T, sample % T
                    value = x[row * x_row + t * x_step + start + k]
                    if per_gate:
                        value *= drop[(gate * B + row) * F + start + k]
                    a[k * TILE + i // _DEPTH] = value
                k, column = i // TILE, min(left + i % TILE, right - 1)
                if k < depth:
                    b[i] = weights[(start + k) * gates + column]
            cuda.syncthreads()
            if depth == _DEPTH:
                add_products(total, a, b, ty, tx, _DEPTH)
            else:
                add_products(total, a, b, ty, tx, depth)
            cuda.syncthreads()
        for i in range(_EACH):
            sample = first + ty + i * _SIDE
            for j in range(_EACH):
                column = left + tx + j * _SIDE
                if sample < samples and column < right:
                    sums[sample * gates + column] = total[i * _EACH + j]

    return project

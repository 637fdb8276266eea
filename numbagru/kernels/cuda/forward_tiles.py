"""One step of all rows, in tiles of rows and units: for wide layers with many rows.

A block has 64 rows and the three gates of 16 units, a thread twelve sums: of every
sixteenth row, one unit. They are whole when the products are done, so the gates follow
at once; a launch for each step is what lets all blocks see the new state. Each sum is
one chain over the units, on top of what the inputs gave.

A model, not yet timed: 12 multiply-adds for 7 numbers read from shared memory, 60 % of
the peak where there are blocks for all multiprocessors, and some microseconds a launch.
For 1024 rows of 512 units 60 us a step; forward_rows reads 3 MB of weights from the
cache for every few rows, 200 us.
"""

from __future__ import annotations

from numba import types

from numbagru.kernels.cuda.products import (
    DEPTH,
    EACH,
    SIDE,
    THREADS,
    TILE,
    make_add_products,
)
from numbagru.kernels.cuda.ptx import cuda
from numbagru.kernels.cuda.step import make_step

ROWS, UNITS, GATES = TILE, SIDE, 3
_COLUMNS = GATES * UNITS
_add_products = make_add_products(GATES)


def signature(real):
    """Types of the kernel's arguments."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, numbers, numbers, numbers, flags, size, size, numbers, size,
        size, numbers, numbers, numbers, size, size, size, size, flag, flag, flag,
    )  # fmt: skip


def make(real, act, rec, masked, keeps):
    """Make the kernel of a step, with the reset gate after the product.

    Parameters
    ----------
    real
        Numba's float type.
    act, rec : launch.Scalars
        Of the candidate and of the gates.
    masked, keeps : bool
        Whether there is a mask, and whether gates and states are kept for backward.
    """
    one_step = make_step(real, act, rec)
    states_size, weights_size = ROWS * DEPTH, DEPTH * _COLUMNS
    sums_size = EACH * GATES
    zero = real(0)

    def step(
        xw, recurrent, bias, old_state, new_state, mask, mask_row, mask_step, y, y_row,
        y_step, last, saved, states, t, B, T, U, has_y, zero_output, first_is_state,
    ):  # fmt: skip
        a = cuda.shared.array(states_size, real)
        b = cuda.shared.array(weights_size, real)
        total = cuda.local.array(sums_size, real)
        tid = cuda.threadIdx.x
        ty, tx = tid // UNITS, tid % UNITS
        first, left = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * UNITS
        gates, two = 3 * U, 2 * U
        # Rows and units after the last ones repeat them; nobody hears of them.
        u = min(left + tx, U - 1)
        for i in range(EACH):
            row = min(first + ty + i * UNITS, B - 1)
            x = (row * T + t) * gates + u
            total[i * GATES] = xw[x]
            total[i * GATES + 1] = xw[x + U]
            total[i * GATES + 2] = bias[u]
        for start in range(0, U, DEPTH):
            depth = min(DEPTH, U - start)
            for i in range(tid, states_size, THREADS):
                k, row = i % DEPTH, min(first + i // DEPTH, B - 1)
                if k < depth:
                    a[k * ROWS + i // DEPTH] = old_state[row * U + start + k]
            for i in range(tid, weights_size, THREADS):
                k, column = i // _COLUMNS, i % _COLUMNS
                if k < depth:
                    unit = min(left + column % UNITS, U - 1)
                    spot = (start + k) * gates + column // UNITS * U + unit
                    b[i] = recurrent[spot]
            cuda.syncthreads()
            if depth == DEPTH:
                _add_products(total, a, b, ty, tx, DEPTH)
            else:
                _add_products(total, a, b, ty, tx, depth)
            cuda.syncthreads()
        for i in range(EACH):
            row = first + ty + i * UNITS
            if row < B and left + tx < U:
                inner, place = total[i * GATES + 2], row * U + u
                x_h = xw[(row * T + t) * gates + two + u]
                old = old_state[place]
                state, z, r, candidate = one_step(
                    total[i * GATES], total[i * GATES + 1], inner, x_h, old
                )
                output = state
                if masked and mask[row * mask_row + t * mask_step] == 0:
                    state = old
                    if zero_output:
                        output = zero
                    elif t > 0:
                        output = last[place]
                    else:
                        output = old if first_is_state else zero
                new_state[place] = state
                # Without a mask it may be the array of the states.
                if masked or t == T - 1:
                    last[place] = output
                if has_y:
                    y[row * y_row + t * y_step + u] = output
                if keeps:
                    kept = (row * T + t) * 4 * U + u
                    saved[kept] = z
                    saved[kept + U] = r
                    saved[kept + two] = candidate
                    saved[kept + gates] = inner
                    states[(row * T + t) * U + u] = state

    return step

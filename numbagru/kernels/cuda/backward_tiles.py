"""A step back of all rows, in tiles of rows and units: of forward_tiles.

A launch has the products of one step's gradients with the recurrent weights, a chain
over the units of z, of r and of the candidate for each unit of each row, and then, for
that is all it waits for, what the step before gives for that unit and row. One launch
more than steps: the first has no products, the last nothing but them.

A model, not yet timed: 8 multiply-adds for 6 numbers read from shared memory, half of
the peak where there are blocks for all multiprocessors. For 1024 rows of 512 units 60
us a step; backward_rows reads 3 MB of weights from the cache for every few rows, 200.
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
from numbagru.kernels.cuda.step import make_step_back, make_take_output

_COLUMNS = 2  # of a thread
ROWS, UNITS = TILE, _COLUMNS * SIDE
_add_products = make_add_products(_COLUMNS)


def signature(real):
    """Types of the kernel's arguments."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, flags, size, size, numbers, size, size, numbers, numbers,
        numbers, numbers, numbers, numbers, numbers, numbers, numbers, size, size, size,
        size, flag, flag, flag, flag, flag,
    )  # fmt: skip


def make(real, act, rec, masked):
    """Make the kernel of a step, with the reset gate after the product.

    Parameters
    ----------
    real
        Numba's float type.
    act, rec : launch.Scalars
        Of the candidate and of the gates.
    masked : bool
    """
    sums_size, a_size, b_size = EACH * _COLUMNS, ROWS * DEPTH, UNITS * DEPTH
    zero, one = real(0), real(1)
    step_back = make_step_back(real, act, rec)
    take_output = make_take_output(real, masked)

    def step(
        recurrent, h0, mask, mask_row, mask_step, d_y, d_y_row, d_y_step, d_last,
        d_state, saved, states, d_sums, d_states, carried, going, d_h0, t, B, T, U,
        has_d_y, has_d_last, has_d_state, zero_output, first_is_state,
    ):  # fmt: skip
        a = cuda.shared.array(a_size, real)
        b = cuda.shared.array(b_size, real)
        total = cuda.local.array(sums_size, real)
        tid = cuda.threadIdx.x
        ty, tx = tid // SIDE, tid % SIDE
        first, left = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * UNITS
        gates, four = 3 * U, 4 * U
        for i in range(sums_size):
            total[i] = zero
        for start in range(0, gates if t < T else 0, DEPTH):
            depth = min(DEPTH, gates - start)
            for i in range(tid, a_size, THREADS):
                k, row = i % DEPTH, min(first + i // DEPTH, B - 1)
                if k < depth:
                    # The candidate's input comes first.
                    spot = (row * T + t) * four + U + start + k
                    a[k * ROWS + i // DEPTH] = d_sums[spot]
            for i in range(tid, b_size, THREADS):
                k, u = i % DEPTH, min(left + i // DEPTH, U - 1)
                if k < depth:
                    b[k * UNITS + i // DEPTH] = recurrent[u * gates + start + k]
            cuda.syncthreads()
            if depth == DEPTH:
                _add_products(total, a, b, ty, tx, DEPTH)
            else:
                _add_products(total, a, b, ty, tx, depth)
            cuda.syncthreads()
        for i in range(sums_size):
            row = first + ty + i // _COLUMNS * SIDE
            u = left + tx + i % _COLUMNS * SIDE
            if row < B and u < U:
                place = row * U + u
                carry, went = zero, not masked
                d = zero
                if t < T:
                    d = d_states[place]
                    if masked:
                        carry, went = carried[place], going[place] != zero
                    if went:
                        d += total[i]
                elif has_d_state:
                    d = d_state[place]
                if t == 0:
                    d_h0[place] = d
                else:
                    now, old = row * T + t - 1, (row * T + t - 2) * U + u
                    active = True
                    if masked:
                        active = mask[row * mask_row + (t - 1) * mask_step] != 0
                    at_end = has_d_last and t == T
                    y_spot = row * d_y_row + (t - 1) * d_y_step + u
                    d, carry = take_output(
                        d, carry, active, at_end, t == 1,
                        d_y[y_spot] if has_d_y else zero, has_d_y,
                        d_last[place] if at_end else zero, zero_output, first_is_state,
                    )  # fmt: skip
                    kept = now * four + u
                    d_hh = d_z = d_r = d_inner = zero
                    if active:
                        d_hh, d_z, d_r, d_inner, d = step_back(
                            saved[kept], saved[kept + U], saved[kept + 2 * U],
                            saved[kept + gates], states[old] if t > 1 else h0[place], d,
                        )  # fmt: skip
                    d_sums[kept] = d_hh
                    d_sums[kept + U] = d_z
                    d_sums[kept + 2 * U] = d_r
                    d_sums[kept + gates] = d_inner
                    d_states[place] = d
                    if masked:
                        carried[place] = carry
                        going[place] = one if went or active else zero

    return step

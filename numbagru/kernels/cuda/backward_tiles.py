"""A step back of all rows, in tiles of rows and units: of forward_tiles.

A launch has the products of one step's gradients with the recurrent weights, a chain
over the units of each gate for each unit of each row, and then, for that is all it
waits for, what the step before gives for that unit and row. One launch more than steps:
the first has no products, the last nothing but them. With the reset gate before the
product it gives no more than the gradient of the candidate's sum; a second launch has
the products of that, and gives those of z and r.

A model, not yet timed: a warp's 8 multiply-adds take 2 cycles of a multiprocessor, the
6 numbers that they read from shared memory 6: a third of the peak where there are
blocks for all multiprocessors. For 1024 rows of 512 units 75 us a step; backward_rows
reads 3 MB of weights from the cache for every few rows, 200.
"""

from __future__ import annotations

from numba import types

from numbagru._jit_cuda import DeviceFunction
from numbagru.kernels.cuda.products import (
    DEPTH,
    EACH,
    SIDE,
    THREADS,
    TILE,
    make_add_products,
    row_of,
)
from numbagru.kernels.cuda.ptx import cuda, pointer
from numbagru.kernels.cuda.step import (
    make_halves_back,
    make_reset_back,
    make_step_back,
    make_take_output,
)

_COLUMNS = 2  # of a thread
ROWS, UNITS = TILE, _COLUMNS * SIDE
_SUMS = EACH * _COLUMNS
_A_ROW, _B_ROW = row_of(ROWS), row_of(UNITS)
_A, _B = _A_ROW * DEPTH, _B_ROW * DEPTH


def make_multiply():
    """Make what adds products of gradients with weights to a thread's sums.

    Of those of all units at `source` of a step, and of weights from `column` on, for
    all threads of a block; a and b are shared.
    """
    a_size, b_size = ROWS * DEPTH, UNITS * DEPTH
    add_products = make_add_products(_COLUMNS)

    @DeviceFunction
    def multiply(
        total, a, b, d_sums, source, recurrent, column, first, left, t, B, T, U
    ):
        tid = cuda.threadIdx.x
        for start in range(0, U, DEPTH):
            depth = min(DEPTH, U - start)
            for turn in range(a_size // THREADS):
                i = tid + turn * THREADS
                k, row = i % DEPTH, min(first + i // DEPTH, B - 1)
                if k < depth:
                    spot = (row * T + t) * 4 * U + source + start + k
                    a[k * _A_ROW + i // DEPTH] = d_sums[spot]
            for turn in range(b_size // THREADS):
                i = tid + turn * THREADS
                k, u = i % DEPTH, min(left + i // DEPTH, U - 1)
                if k < depth:
                    spot = u * 3 * U + column + start + k
                    b[k * _B_ROW + i // DEPTH] = recurrent[spot]
            cuda.syncthreads()
            add_products(total, a, b, depth)
            cuda.syncthreads()

    return multiply


def signature(real):
    """Types of the arguments of `make`'s kernel."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, flags, size, size, numbers, numbers, size, size, numbers,
        numbers, numbers, numbers, numbers, numbers, numbers, numbers, numbers, numbers,
        size, size, size, size, flag, flag, flag, flag, flag,
    )  # fmt: skip


def make(real, act, rec, reset_after, masked, drops):
    """Make the kernel of a step.

    Parameters
    ----------
    real
        Numba's float type.
    act, rec : launch.Scalars
        Of the candidate and of the gates.
    reset_after, masked, drops : bool
        Whether there is a mask, and whether the state has dropout.
    """
    zero, one = real(0), real(1)
    step_back, multiply = make_step_back(real, act, rec), make_multiply()
    candidate_back, _ = make_halves_back(real, act, rec)
    take_output = make_take_output(real, masked)
    # Gates whose products are here.
    last = 3 if reset_after else 2
    sums_size, a_size, b_size = _SUMS, _A, _B

    def step(
        recurrent, h0, mask, mask_row, mask_step, h_drop, d_y, d_y_row, d_y_step,
        d_last, d_state, saved, states, d_sums, d_states, d_zs, carried, going, d_h0, t,
        B, T, U, has_d_y, has_d_last, has_d_state, zero_output, first_is_state,
    ):  # fmt: skip
        a = pointer(cuda.shared.array(a_size, real))
        b = pointer(cuda.shared.array(b_size, real))
        total = pointer(cuda.local.array(sums_size, real))
        d_before = pointer(cuda.local.array(sums_size, real))
        ty, tx = cuda.threadIdx.x // SIDE, cuda.threadIdx.x % SIDE
        first, left = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * UNITS
        gates, four = 3 * U, 4 * U
        for i in range(sums_size):
            row = min(first + ty + i // _COLUMNS * SIDE, B - 1)
            place = row * U + min(left + tx + i % _COLUMNS * SIDE, U - 1)
            d_before[i] = zero
            if t < T:
                d_before[i] = d_states[place]
            elif has_d_state:
                d_before[i] = d_state[place]
        # The candidate's input comes first of the gradients.
        for gate in range(last if t < T else 0):
            for i in range(sums_size):
                total[i] = zero
            multiply(
                total, a, b, d_sums, U + gate * U, recurrent, gate * U, first, left, t,
                B, T, U,
            )  # fmt: skip
            for i in range(sums_size):
                row = min(first + ty + i // _COLUMNS * SIDE, B - 1)
                u = min(left + tx + i % _COLUMNS * SIDE, U - 1)
                product = total[i]
                if drops:
                    product *= h_drop[(gate * B + row) * U + u]
                if not masked or going[row * U + u] != zero:
                    d_before[i] += product
        for i in range(sums_size):
            row = first + ty + i // _COLUMNS * SIDE
            u = left + tx + i % _COLUMNS * SIDE
            if row < B and u < U:
                place, d = row * U + u, d_before[i]
                if t == 0:
                    d_h0[place] = d
                else:
                    carry, went = zero, not masked
                    if masked and t < T:
                        carry, went = carried[place], going[place] != zero
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
                        before = states[old] if t > 1 else h0[place]
                        if reset_after:
                            d_hh, d_z, d_r, d_inner, d = step_back(
                                saved[kept], saved[kept + U], saved[kept + 2 * U],
                                saved[kept + gates], before, d,
                            )  # fmt: skip
                        else:
                            d_hh, d_z, d = candidate_back(
                                saved[kept], saved[kept + 2 * U], before, d
                            )
                    d_sums[kept] = d_hh
                    d_sums[kept + gates] = d_inner
                    if reset_after:
                        d_sums[kept + U] = d_z
                        d_sums[kept + 2 * U] = d_r
                    else:
                        d_zs[place] = d_z
                    d_states[place] = d
                    if masked:
                        carried[place] = carry
                        going[place] = one if went or active else zero

    return step


def reset_signature(real):
    """Types of the arguments of `make_reset`'s kernel."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size = types.int32
    return (
        numbers, numbers, flags, size, size, numbers, numbers, numbers, numbers,
        numbers, numbers, size, size, size, size,
    )  # fmt: skip


def make_reset(real, act, rec, masked, drops):
    """Make the kernel that goes back through the candidate's product and both gates."""
    zero = real(0)
    _, gates_back = make_halves_back(real, act, rec)
    reset_back, multiply = make_reset_back(real, rec), make_multiply()
    sums_size, a_size, b_size = _SUMS, _A, _B

    def reset(
        recurrent, h0, mask, mask_row, mask_step, h_drop, saved, states, d_sums,
        d_states, d_zs, t, B, T, U,
    ):  # fmt: skip
        a = pointer(cuda.shared.array(a_size, real))
        b = pointer(cuda.shared.array(b_size, real))
        total = pointer(cuda.local.array(sums_size, real))
        ty, tx = cuda.threadIdx.x // SIDE, cuda.threadIdx.x % SIDE
        first, left = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * UNITS
        for i in range(sums_size):
            total[i] = zero
        multiply(total, a, b, d_sums, 0, recurrent, 2 * U, first, left, t, B, T, U)
        for i in range(sums_size):
            row = first + ty + i // _COLUMNS * SIDE
            u = left + tx + i % _COLUMNS * SIDE
            if row < B and u < U:
                place, kept = row * U + u, (row * T + t) * 4 * U + u
                d_z = d_r = zero
                if not masked or mask[row * mask_row + t * mask_step] != 0:
                    inner = total[i]
                    if drops:
                        inner *= h_drop[(2 * B + row) * U + u]
                    old = (row * T + t - 1) * U + u
                    d_r, d_before = reset_back(
                        saved[kept + U], states[old] if t > 0 else h0[place], inner
                    )
                    d_states[place] += d_before
                    d_z, d_r = gates_back(
                        saved[kept], saved[kept + U], d_zs[place], d_r
                    )
                d_sums[kept + U] = d_z
                d_sums[kept + 2 * U] = d_r

    return reset

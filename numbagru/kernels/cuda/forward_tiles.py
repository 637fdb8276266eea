"""One step of all rows, in tiles of rows and units: for wide layers with many rows.

A block has 64 rows and the gates of 16 units, a thread twelve sums: of every sixteenth
row, one unit. They are whole when the products are done, so the gates follow at once; a
launch for each step is what lets all blocks see the new state. Each sum is one chain
over the units, on top of what the inputs gave. With the reset gate before the product a
step takes two launches, the second for the candidate. With dropout of the state there
is a tile of states for each gate.

A model, not yet timed: a warp's 12 multiply-adds take 3 cycles of a multiprocessor, the
7 numbers that they read from shared memory 7: 40 % of the peak where there are blocks
for all multiprocessors, and some microseconds a launch. For 1024 rows of 512 units 60
us a step; forward_rows reads 3 MB of weights from the cache for every few rows, 200 us.
With dropout of the state, 12 for 15.
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
from numbagru.kernels.cuda.step import make_halves, make_step

ROWS, UNITS = TILE, SIDE
_ROW = row_of(ROWS)
_STATES = _ROW * DEPTH  # numbers of a tile of states


def make_multiply(low, high, drops):
    """Make what adds products of states to the sums of the gates from `low` to `high`.

    ``multiply(total, a, b, states, h_drop, recurrent, first, left, B, U)``, for all
    threads of a block; a and b are shared.
    """
    columns = (high - low) * UNITS
    copies = high - low if drops else 1
    states_size, weights_size, row_size = ROWS * DEPTH, DEPTH * columns, row_of(columns)
    add_products = make_add_products(high - low, _STATES if drops else 0)

    @DeviceFunction
    def multiply(total, a, b, states, h_drop, recurrent, first, left, B, U):
        tid = cuda.threadIdx.x
        for start in range(0, U, DEPTH):
            depth = min(DEPTH, U - start)
            for turn in range(states_size // THREADS):
                i = tid + turn * THREADS
                k, row = i % DEPTH, min(first + i // DEPTH, B - 1)
                if k < depth:
                    state = states[row * U + start + k]
                    for copy in range(copies):
                        seen = state
                        if drops:
                            gate = low + copy
                            seen = state * h_drop[(gate * B + row) * U + start + k]
                        a[copy * _STATES + k * _ROW + i // DEPTH] = seen
            for turn in range(weights_size // THREADS):
                i = tid + turn * THREADS
                k, column = i // columns, i % columns
                if k < depth:
                    unit = min(left + column % UNITS, U - 1)
                    gate = low + column // UNITS
                    weight = recurrent[(start + k) * 3 * U + gate * U + unit]
                    b[k * row_size + column] = weight
            cuda.syncthreads()
            add_products(total, a, b, depth)
            cuda.syncthreads()

    return multiply


def make_give(real, masked, keeps):
    """Make what writes a unit's new state, and the output of the step."""
    zero = real(0)

    @DeviceFunction
    def give(
        new, old, row, u, new_state, mask, mask_row, mask_step, y, y_row, y_step, last,
        states, t, T, U, has_y, zero_output, first_is_state,
    ):  # fmt: skip
        place = row * U + u
        state = output = new
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
            states[(row * T + t) * U + u] = state

    return give


def signature(real):
    """Types of the arguments of `make`'s kernel."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, numbers, numbers, numbers, numbers, flags, size, size,
        numbers, size, size, numbers, numbers, numbers, size, size, size, size, flag,
        flag, flag,
    )  # fmt: skip


def make(real, act, rec, masked, drops, keeps):
    """Make the kernel of a step, with the reset gate after the product.

    Parameters
    ----------
    real
        Numba's float type.
    act, rec : launch.Scalars
        Of the candidate and of the gates.
    masked, drops, keeps : bool
        Whether there is a mask, whether the state has dropout, and whether gates and
        states are kept for backward.
    """
    one_step, give = make_step(real, act, rec), make_give(real, masked, keeps)
    multiply = make_multiply(0, 3, drops)
    states_size, weights_size = (3 if drops else 1) * _STATES, row_of(3 * UNITS) * DEPTH
    sums_size = EACH * 3

    def step(
        xw, recurrent, bias, old_state, new_state, h_drop, mask, mask_row, mask_step, y,
        y_row, y_step, last, saved, states, t, B, T, U, has_y, zero_output,
        first_is_state,
    ):  # fmt: skip
        a = pointer(cuda.shared.array(states_size, real))
        b = pointer(cuda.shared.array(weights_size, real))
        total = pointer(cuda.local.array(sums_size, real))
        ty, tx = cuda.threadIdx.x // UNITS, cuda.threadIdx.x % UNITS
        first, left = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * UNITS
        gates, two = 3 * U, 2 * U
        # Rows and units after the last ones repeat them; nobody hears of them.
        u = min(left + tx, U - 1)
        for i in range(EACH):
            row = min(first + ty + i * UNITS, B - 1)
            x = (row * T + t) * gates + u
            total[i * 3] = xw[x]
            total[i * 3 + 1] = xw[x + U]
            total[i * 3 + 2] = bias[u]
        multiply(total, a, b, old_state, h_drop, recurrent, first, left, B, U)
        for i in range(EACH):
            row = first + ty + i * UNITS
            if row < B and left + tx < U:
                inner, old = total[i * 3 + 2], old_state[row * U + u]
                x_h = xw[(row * T + t) * gates + two + u]
                new, z, r, candidate = one_step(
                    total[i * 3], total[i * 3 + 1], inner, x_h, old
                )
                if keeps:
                    kept = (row * T + t) * 4 * U + u
                    saved[kept] = z
                    saved[kept + U] = r
                    saved[kept + two] = candidate
                    saved[kept + gates] = inner
                give(
                    new, old, row, u, new_state, mask, mask_row, mask_step, y, y_row,
                    y_step, last, states, t, T, U, has_y, zero_output, first_is_state,
                )  # fmt: skip

    return step


def gates_signature(real):
    """Types of the arguments of `make_gates`' kernel."""
    numbers, size = types.CPointer(real), types.int32
    return (*[numbers] * 7, size, size, size, size)


def make_gates(real, act, rec, drops, keeps):
    """Make the kernel of z and of what the reset gate gives the candidate's product."""
    half_of_gates, _ = make_halves(real, act, rec)
    multiply = make_multiply(0, 2, drops)
    states_size, weights_size = (2 if drops else 1) * _STATES, row_of(2 * UNITS) * DEPTH
    sums_size = EACH * 2

    def gates_of_step(xw, recurrent, old_state, h_drop, zs, inners, saved, t, B, T, U):
        a = pointer(cuda.shared.array(states_size, real))
        b = pointer(cuda.shared.array(weights_size, real))
        total = pointer(cuda.local.array(sums_size, real))
        ty, tx = cuda.threadIdx.x // UNITS, cuda.threadIdx.x % UNITS
        first, left = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * UNITS
        u = min(left + tx, U - 1)
        for i in range(EACH):
            x = (min(first + ty + i * UNITS, B - 1) * T + t) * 3 * U + u
            total[i * 2] = xw[x]
            total[i * 2 + 1] = xw[x + U]
        multiply(total, a, b, old_state, h_drop, recurrent, first, left, B, U)
        for i in range(EACH):
            row = first + ty + i * UNITS
            if row < B and left + tx < U:
                z, inner, z_kept, r_kept = half_of_gates(
                    total[i * 2], total[i * 2 + 1], old_state[row * U + u]
                )
                if drops:
                    inner *= h_drop[(2 * B + row) * U + u]
                zs[row * U + u] = z
                inners[row * U + u] = inner
                if keeps:
                    kept = (row * T + t) * 4 * U + u
                    saved[kept] = z_kept
                    saved[kept + U] = r_kept
                    saved[kept + 3 * U] = inner

    return gates_of_step


def state_signature(real):
    """Types of the arguments of `make_state`'s kernel."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, numbers, numbers, numbers, numbers, numbers, flags, size,
        size, numbers, size, size, numbers, numbers, numbers, size, size, size, size,
        flag, flag, flag,
    )  # fmt: skip


def make_state(real, act, rec, masked, keeps):
    """Make the kernel that follows: the candidate, and the new state."""
    _, half_of_state = make_halves(real, act, rec)
    give = make_give(real, masked, keeps)
    multiply = make_multiply(2, 3, False)  # what it takes has its dropout
    states_size, weights_size = _STATES, row_of(UNITS) * DEPTH

    def state_of_step(
        xw, recurrent, zs, inners, h_drop, old_state, new_state, mask, mask_row,
        mask_step, y, y_row, y_step, last, saved, states, t, B, T, U, has_y,
        zero_output, first_is_state,
    ):  # fmt: skip
        a = pointer(cuda.shared.array(states_size, real))
        b = pointer(cuda.shared.array(weights_size, real))
        total = pointer(cuda.local.array(EACH, real))
        ty, tx = cuda.threadIdx.x // UNITS, cuda.threadIdx.x % UNITS
        first, left = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * UNITS
        u = min(left + tx, U - 1)
        for i in range(EACH):
            row = min(first + ty + i * UNITS, B - 1)
            total[i] = xw[(row * T + t) * 3 * U + 2 * U + u]
        multiply(total, a, b, inners, h_drop, recurrent, first, left, B, U)
        for i in range(EACH):
            row = first + ty + i * UNITS
            if row < B and left + tx < U:
                old = old_state[row * U + u]
                new, candidate = half_of_state(zs[row * U + u], total[i], old)
                if keeps:
                    saved[(row * T + t) * 4 * U + 2 * U + u] = candidate
                give(
                    new, old, row, u, new_state, mask, mask_row, mask_step, y, y_row,
                    y_step, last, states, t, T, U, has_y, zero_output, first_is_state,
                )  # fmt: skip

    return state_of_step

"""The recurrence backward, a block of threads per few rows: the twin of forward_rows.

Per step: gates from what was kept, gradients of the sums (gates.py), and their products
with the transposed recurrent kernel for the old state, one chain over the units of each
gate. A thread has the weights of one gate and one old unit, and goes through the rows
of its block side by side, or where registers are few one by one. A step of one row of
64 units takes 700 cycles, by the model of forward_rows.
"""

from __future__ import annotations

from numba import types

from numbagru._jit_cuda import DeviceFunction
from numbagru.kernels.cuda.forward_rows import SHARED_BYTES, threads_of
from numbagru.kernels.cuda.limits import fits, spares_registers
from numbagru.kernels.cuda.ptx import chain, cuda, pointer, take, vector_lanes
from numbagru.kernels.cuda.step import (
    make_halves_back,
    make_reset_back,
    make_step_back,
    make_take_output,
)
from numbagru.scalar import fma

# Of each unit of each row: the gradients of the state, of the output that later masked
# steps repeat, of z before its slope, whether an active step has come, and the sums of
# the gates' products.
_SECTIONS = 7
# What a step reads: what was kept of the gates, the old state, the output's gradient.
_READS = 6


def work_size(real, units, rows):
    """Count the numbers of a block: gradients of three sums, and its sections."""
    lanes = vector_lanes(real)
    return 3 * rows * -(-units // lanes) * lanes + rows * _SECTIONS * units


def on_chip(real, units, rows):
    """Whether the numbers of a block fit shared memory."""
    return work_size(real, units, rows) * real.bitwidth // 8 <= SHARED_BYTES


def signature(real):
    """Types of the kernel's arguments."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, flags, size, size, numbers, numbers, size, size, numbers,
        numbers, numbers, numbers, numbers, numbers, numbers, size, size, flag, flag,
        flag, flag, flag,
    )  # fmt: skip


def make(real, units, rows, act, rec, reset_after, masked, drops):
    """Make the kernel for blocks of so many rows of a layer.

    Parameters
    ----------
    real
        Numba's float type.
    units, rows : int
    act, rec : launch.Scalars
        Of the candidate and of the gates.
    reset_after : bool
    masked, drops : bool
        Whether there is a mask, and whether the state has dropout.
    """
    step_back = make_step_back(real, act, rec)
    candidate_back, gates_back = make_halves_back(real, act, rec)
    reset_back = make_reset_back(real, rec)
    take_output = make_take_output(real, masked)
    gates, two, threads = 3 * units, 2 * units, threads_of(units)
    resident = fits(real.bitwidth, units, reset_after)
    lanes = vector_lanes(real)
    count, columns = rows * units, units if resident else 1
    per, pairs = -(-gates // threads), -(-count // threads)
    padded = -(-units // lanes) * lanes
    copy_size = rows * padded
    few_registers = resident and not spares_registers(real.bitwidth, units)
    each = 1 if few_registers else rows
    size = work_size(real, units, rows)
    dh_at = 3 * copy_size
    carried_at, d_z_at, going_at, part_at = (dh_at + k * count for k in range(1, 5))
    # Gates whose products come last: the candidate's come before with a reset before.
    last = 3 if reset_after else 2
    # What is read a step ahead stays in registers.
    reads_ahead = resident
    held = pairs if reads_ahead else 1
    reads_size = _READS * held
    zero, one = real(0), real(1)
    take_weights, add_products = take(columns, 1), chain(units, each)

    @DeviceFunction
    def spot(row, unit):
        """Where a gate's gradients stand: vectors of one row after the other."""
        vector = unit // lanes * each + row % each
        return row // each * each * padded + vector * lanes + unit % lanes

    @DeviceFunction
    def sum_resident(total, weights, recurrent, column, s, start):
        """Add the products with all units of a gate to the totals of some rows."""
        add_products(total, weights, s, start)

    @DeviceFunction
    def sum_read(total, weights, recurrent, column, s, start):
        """Do the same with weights that are read on the way."""
        k, first = column % units, column // units * units
        for u in range(units):
            weight = recurrent[k * gates + first + u]
            for r in range(each):
                total[r] = fma(s[start + spot(r, u)], weight, total[r])

    sum_products = sum_resident if resident else sum_read

    @DeviceFunction
    def multiply(s, base, total, weights, recurrent, low, high):
        """Multiply gradients of the gates from `low` to `high` with their weights."""
        for j in range(per):
            column = cuda.threadIdx.x + j * threads
            gate, k = column // units, column % units
            if low * units <= column and column < high * units:
                for first in range(0, rows, each):
                    for r in range(each):
                        total[r] = zero
                    start = base + gate * copy_size + first * padded
                    sum_products(total, weights, recurrent, column, s, start)
                    place = base + part_at + gate * count + first * units + k
                    for r in range(each):
                        s[place + r * units] = total[r]
        cuda.syncthreads()

    @DeviceFunction
    def read(
        ahead, goes, j, i, saved, states, h0, d_y, d_y_row, d_y_step, mask, mask_row,
        mask_step, first, t, B, T,
    ):  # fmt: skip
        """Read what a step takes of one unit of one row, without a branch if ahead."""
        slot = j * _READS
        row, u = min(first + i // units, B - 1), i % units
        kept = (row * T + t) * 4 * units + u
        for g in range(4):
            ahead[slot + g] = saved[kept + g * units]
        ahead[slot + 4] = states[(row * T + max(t - 1, 0)) * units + u]
        if not reads_ahead and t == 0:
            ahead[slot + 4] = h0[row * units + u]
        ahead[slot + 5] = d_y[row * d_y_row + t * d_y_step + u]
        if masked:
            goes[j] = mask[row * mask_row + t * mask_step]

    @DeviceFunction
    def run(
        s, base, recurrent, h0, mask, mask_row, mask_step, h_drop, d_y, d_y_row,
        d_y_step, d_last, d_state, saved, states, d_sums, d_h0, B, T, has_d_y,
        has_d_last, has_d_state, zero_output, first_is_state,
    ):  # fmt: skip
        total = pointer(cuda.local.array(each, real))
        weights = pointer(cuda.local.array(columns, real))
        ahead = pointer(cuda.local.array(reads_size, real))
        starts = pointer(cuda.local.array(held, real))
        goes = pointer(cuda.local.array(held, types.uint8))
        tid = cuda.threadIdx.x
        first = cuda.blockIdx.x * rows
        dh, carried, d_zs = base + dh_at, base + carried_at, base + d_z_at
        part, going = base + part_at, base + going_at
        own = min(tid, gates - 1)
        take_weights(weights, recurrent, own % units * gates + own // units * units)
        for j in range(pairs):
            i = tid + j * threads
            if i < count:
                row, u = min(first + i // units, B - 1), i % units
                d = d_state[row * units + u] if has_d_state else zero
                if T == 0 and has_d_last:
                    d += d_last[row * units + u]
                s[dh + i] = d
                s[carried + i] = zero
                s[going + i] = zero
                if T > 0 and reads_ahead:
                    starts[j] = h0[row * units + u]
                    read(
                        ahead, goes, j, i, saved, states, h0, d_y, d_y_row, d_y_step,
                        mask, mask_row, mask_step, first, T - 1, B, T,
                    )  # fmt: skip
        for turn in range(T):
            t = T - 1 - turn
            for j in range(pairs):
                i = tid + j * threads
                if i < count:
                    r, u = i // units, i % units
                    row = min(first + r, B - 1)
                    slot = j if reads_ahead else 0
                    kept = slot * _READS
                    if not reads_ahead:
                        read(
                            ahead, goes, 0, i, saved, states, h0, d_y, d_y_row,
                            d_y_step, mask, mask_row, mask_step, first, t, B, T,
                        )  # fmt: skip
                    elif t == 0:
                        ahead[kept + 4] = starts[j]
                    active = not masked or goes[slot] != 0
                    at_end = has_d_last and turn == 0
                    d, s[carried + i] = take_output(
                        s[dh + i], s[carried + i], active, at_end, t == 0,
                        ahead[kept + 5], has_d_y,
                        d_last[row * units + u] if at_end else zero, zero_output,
                        first_is_state,
                    )  # fmt: skip
                    if masked and active:
                        s[going + i] = one
                    d_hh = d_z = d_r = d_inner = zero
                    if active and reset_after:
                        d_hh, d_z, d_r, d_inner, d = step_back(
                            ahead[kept], ahead[kept + 1], ahead[kept + 2],
                            ahead[kept + 3], ahead[kept + 4], d,
                        )  # fmt: skip
                    elif active:
                        d_hh, d_z, d = candidate_back(
                            ahead[kept], ahead[kept + 2], ahead[kept + 4], d
                        )
                    s[dh + i] = d
                    s[d_zs + i] = d_z
                    inner = d_inner if reset_after else d_hh
                    place = base + spot(r, u)
                    s[place + 2 * copy_size] = inner
                    if reset_after:
                        s[place] = d_z
                        s[place + copy_size] = d_r
                    if first + r < B:
                        emitted = (row * T + t) * 4 * units + u
                        d_sums[emitted] = d_hh
                        d_sums[emitted + gates] = d_inner
                        if reset_after:
                            d_sums[emitted + units] = d_z
                            d_sums[emitted + two] = d_r
            cuda.syncthreads()
            if not reset_after:
                multiply(s, base, total, weights, recurrent, 2, 3)
                for j in range(pairs):
                    i = tid + j * threads
                    if i < count:
                        r, u = i // units, i % units
                        row = min(first + r, B - 1)
                        slot = j if reads_ahead else 0
                        kept = slot * _READS
                        if not reads_ahead:
                            read(
                                ahead, goes, 0, i, saved, states, h0, d_y, d_y_row,
                                d_y_step, mask, mask_row, mask_step, first, t, B, T,
                            )  # fmt: skip
                        active = not masked or goes[slot] != 0
                        d_z = d_r = zero
                        if active:
                            inner = s[part + 2 * count + i]
                            if drops:
                                inner *= h_drop[(2 * B + row) * units + u]
                            d_r, d_h = reset_back(
                                ahead[kept + 1], ahead[kept + 4], inner
                            )
                            s[dh + i] += d_h
                            d_z, d_r = gates_back(
                                ahead[kept], ahead[kept + 1], s[d_zs + i], d_r
                            )
                        place = base + spot(r, u)
                        s[place] = d_z
                        s[place + copy_size] = d_r
                        if first + r < B:
                            emitted = (row * T + t) * 4 * units + u
                            d_sums[emitted + units] = d_z
                            d_sums[emitted + two] = d_r
                cuda.syncthreads()
            for j in range(pairs):
                # Threads that need none read too: without a branch this takes no time
                # beside the products.
                i = min(tid + j * threads, count - 1)
                if reads_ahead:
                    read(
                        ahead, goes, j, i, saved, states, h0, d_y, d_y_row, d_y_step,
                        mask, mask_row, mask_step, first, max(t - 1, 0), B, T,
                    )  # fmt: skip
            multiply(s, base, total, weights, recurrent, 0, last)
            for j in range(pairs):
                i = tid + j * threads
                if i < count and (not masked or s[going + i] != zero):
                    row, u = min(first + i // units, B - 1), i % units
                    for g in range(last):
                        product = s[part + g * count + i]
                        if drops:
                            product *= h_drop[(g * B + row) * units + u]
                        s[dh + i] += product
        for j in range(pairs):
            i = tid + j * threads
            if i < count and first + i // units < B:
                d_h0[first * units + i] = s[dh + i]

    def backward_in_shared(
        recurrent, h0, mask, mask_row, mask_step, h_drop, d_y, d_y_row, d_y_step,
        d_last, d_state, saved, states, d_sums, d_h0, work, B, T, has_d_y, has_d_last,
        has_d_state, zero_output, first_is_state,
    ):  # fmt: skip
        s = pointer(cuda.shared.array(size, real, alignment=16))
        run(
            s, 0, recurrent, h0, mask, mask_row, mask_step, h_drop, d_y, d_y_row,
            d_y_step, d_last, d_state, saved, states, d_sums, d_h0, B, T, has_d_y,
            has_d_last, has_d_state, zero_output, first_is_state,
        )  # fmt: skip

    def backward_in_memory(
        recurrent, h0, mask, mask_row, mask_step, h_drop, d_y, d_y_row, d_y_step,
        d_last, d_state, saved, states, d_sums, d_h0, work, B, T, has_d_y, has_d_last,
        has_d_state, zero_output, first_is_state,
    ):  # fmt: skip
        run(
            work, cuda.blockIdx.x * size, recurrent, h0, mask, mask_row, mask_step,
            h_drop, d_y, d_y_row, d_y_step, d_last, d_state, saved, states, d_sums,
            d_h0, B, T, has_d_y, has_d_last, has_d_state, zero_output, first_is_state,
        )  # fmt: skip

    return backward_in_shared if on_chip(real, units, rows) else backward_in_memory

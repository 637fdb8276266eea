"""The recurrence with a layer's units divided among blocks, which meet in every step.

For layers whose recurrent weights are more than one multiprocessor holds: each block
keeps those of a few units in shared memory over all steps, and has the sums of its
units for some rows. After a step it shows the new states in memory, counts itself
(`ptx.arrive`), waits until all blocks of its rows have, and reads the states of all
units; with the reset gate before the product it does so twice a step. With dropout of
the state it shows them as each gate sees them. A sum is one chain over the units, in
the order of kernels/__init__.py. One launch for a sequence; a cooperative one, for all
blocks have to be there at once.

A model, not yet timed, for 512 units on 132 multiprocessors: 1.2 us for the chain, 0.4
for reading 16 KB of states, 1 for the barrier; where every block of rows reads 3 MB of
weights from the cache instead (forward_rows), 20 us. With ``precision="free"`` threads
share a sum where a block has few: one row's in eight parts takes 0.2 us instead of 1.2.
"""

from __future__ import annotations

from numba import types

from numbagru._jit_cuda import DeviceFunction
from numbagru.kernels.cuda.grid_parts import (
    DEPTH,
    THREADS,
    make_add_products,
    make_meet,
    make_see,
    make_sum_of,
)
from numbagru.kernels.cuda.limits import copies as copies_of
from numbagru.kernels.cuda.ptx import cuda, pointer, vector_lanes
from numbagru.kernels.cuda.step import make_halves, make_step


def signature(real):
    """Types of the kernel's arguments."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, numbers, numbers, flags, size, size, numbers, numbers, size,
        size, numbers, numbers, numbers, numbers, numbers, types.CPointer(types.int32),
        size, size, size, flag, flag, flag,
    )  # fmt: skip


def shown_slots(reset_after, drops):
    """Count the arrays (B, U) that blocks show each other.

    States before and after a step, and those that the reset gate has multiplied.
    """
    return 2 * copies_of(reset_after, drops) + (0 if reset_after else 1)


def make(real, units, split, act, rec, reset_after, masked, drops, keeps):
    """Make the kernel.

    Parameters
    ----------
    real
        Numba's float type.
    units : int
    split : limits.Split
    act, rec : launch.Scalars
        Of the candidate and of the gates.
    reset_after, masked, drops, keeps : bool
        `drops`: whether the state has dropout; `keeps`: whether gates and states are
        kept for the backward pass.
    """
    own, rows, each, parts = split
    copies = copies_of(reset_after, drops)
    gates, two, columns, count = 3 * units, 2 * units, 3 * own, rows * own
    threads, lanes, depth = THREADS, vector_lanes(real), DEPTH
    padded = -(-units // lanes) * lanes
    seen_at = -(-columns * units // lanes) * lanes
    copy_size, inner_slot = rows * padded, 2 * copies
    sums_at = seen_at + copies * copy_size
    part_size = 3 * count
    inner_at, h_at, output_at = (
        sums_at + parts * part_size + k * count for k in range(3)
    )
    hh_at = sums_at + 2 * count
    pairs = -(-count // threads)
    drops_size = pairs * copies
    zero, nan = real(0), real("nan")
    one_step, meet = make_step(real, act, rec), make_meet()
    half_of_gates, half_of_state = make_halves(real, act, rec)
    see = make_see(real, units, rows, each)
    add_products = make_add_products(units, columns, each, parts)
    sum_of, groups = make_sum_of(parts), rows // each
    # Columns whose sums need no reset gate; barriers of a step.
    early, meetings = (gates, 1) if reset_after else (two, 2)

    @DeviceFunction
    def show(shown, turn, drop, j, h, row, u, B):
        """Show a unit's state before step `turn`, as each gate sees it."""
        for g in range(copies):
            seen = h
            if drops:
                seen = h * drop[j * copies + g]
            shown[(((turn & 1) * copies + g) * B + row) * units + u] = seen

    @DeviceFunction
    def sum_up(
        s, total, ahead, weights, own_bias, xw, c, column, r0, part, first, t, B, T
    ):  # fmt: skip
        """Sum up a column for the rows of a thread, or a part of it."""
        apart = reset_after and column >= two
        for r in range(each):
            total[r] = zero
            if part == 0:
                total[r] = own_bias if apart else ahead[r]
                if apart:
                    s[inner_at + (r0 + r) * own + c % own] = ahead[r]
                if t + 1 < T:
                    x = (min(first + r0 + r, B - 1) * T + t + 1) * gates + column
                    ahead[r] = xw[x]
        start = seen_at + r0 * padded
        if drops and column < early:
            start += c // own * copy_size
        add_products(total, weights, s, c, start, part)
        target = sums_at + part * part_size
        for r in range(each):
            s[target + (c // own * rows + r0 + r) * own + c % own] = total[r]

    def forward_on_grid(
        xw, recurrent, bias, h0, mask, mask_row, mask_step, h_drop, y, y_row, y_step,
        last, state, saved, states, shown, arrivals, blocks, B, T, has_y, zero_output,
        first_is_state,
    ):  # fmt: skip
        # As large as the launch says.
        s = pointer(cuda.shared.array(0, real, alignment=16))
        came = pointer(cuda.shared.array(1, types.int32))
        total = pointer(cuda.local.array(each, real))
        ahead = pointer(cuda.local.array(each, real))
        weights = pointer(cuda.local.array(depth, real))
        drop = pointer(cuda.local.array(drops_size, real))
        active = pointer(cuda.local.array(pairs, types.uint8))
        tid, left = cuda.threadIdx.x, cuda.blockIdx.x * own
        first = cuda.blockIdx.y * rows
        for i in range(tid, columns * units, threads):
            k, c = i // columns, i % columns
            # Units after the last one repeat it, and so do rows; nobody hears of them.
            u = min(left + c % own, units - 1)
            s[i] = recurrent[k * gates + c // own * units + u]
        for j in range(pairs):
            i = tid + j * threads
            if i < count:
                row, u = min(first + i // own, B - 1), min(left + i % own, units - 1)
                start = h0[row * units + u]
                s[h_at + i] = start
                s[output_at + i] = start if first_is_state or T == 0 else zero
                if drops:
                    for g in range(copies):
                        drop[j * copies + g] = h_drop[(g * B + row) * units + u]
                if first + i // own < B and left + i % own < units:
                    show(shown, 0, drop, j, start, row, u, B)
        if tid == 0:
            came[0] = 1
        # A thread's column of each gate's units, its rows, and its part.
        c, r0 = tid % columns, tid // columns % groups * each
        part = tid // columns // groups
        column = c // own * units + min(left + c % own, units - 1)
        sums, own_bias = part < parts, bias[column % units]
        for r in range(each):
            ahead[r] = zero
            if sums and T > 0:
                ahead[r] = xw[min(first + r0 + r, B - 1) * T * gates + column]
        for t in range(T):
            for j in range(pairs):
                i = tid + j * threads
                if masked and i < count:  # while others come
                    row = min(first + i // own, B - 1)
                    active[j] = mask[row * mask_row + t * mask_step]
            meet(came, arrivals, blocks * (meetings * t + 1))
            for g in range(copies):
                slot = (t & 1) * copies + g
                see(
                    s, seen_at + g * copy_size, shown, slot * B * units, units, first, B
                )
            cuda.syncthreads()
            if sums and column < early:
                sum_up(
                    s, total, ahead, weights, own_bias, xw, c, column, r0, part, first,
                    t, B, T,
                )  # fmt: skip
            cuda.syncthreads()
            if not reset_after:
                for j in range(pairs):
                    i = tid + j * threads
                    if i < count:
                        row = min(first + i // own, B - 1)
                        u = min(left + i % own, units - 1)
                        z, inner, z_kept, r_kept = half_of_gates(
                            sum_of(s, sums_at + i, part_size),
                            sum_of(s, sums_at + count + i, part_size),
                            s[h_at + i],
                        )
                        if drops:
                            inner *= h_drop[(2 * B + row) * units + u]
                        s[sums_at + i] = z
                        s[inner_at + i] = inner
                        if first + i // own < B and left + i % own < units:
                            shown[(inner_slot * B + row) * units + u] = inner
                            if keeps:
                                kept = (row * T + t) * 4 * units + u
                                saved[kept] = z_kept
                                saved[kept + units] = r_kept
                meet(came, arrivals, blocks * (meetings * t + 2))
                see(s, seen_at, shown, inner_slot * B * units, units, first, B)
                cuda.syncthreads()
                if sums and column >= early:
                    sum_up(
                        s, total, ahead, weights, own_bias, xw, c, column, r0, part,
                        first, t, B, T,
                    )  # fmt: skip
                cuda.syncthreads()
            for j in range(pairs):
                i = tid + j * threads
                if i >= count:
                    continue
                row, u = min(first + i // own, B - 1), min(left + i % own, units - 1)
                kept = (row * T + t) * 4 * units + u
                heard = first + i // own < B and left + i % own < units
                inner = s[inner_at + i]
                if reset_after:
                    x_h, inner = inner, sum_of(s, hh_at + i, part_size)
                    new, z_kept, r_kept, hh_kept = one_step(
                        sum_of(s, sums_at + i, part_size),
                        sum_of(s, sums_at + count + i, part_size),
                        inner,
                        x_h,
                        s[h_at + i],
                    )
                    if keeps and heard:
                        saved[kept] = z_kept
                        saved[kept + units] = r_kept
                else:
                    new, hh_kept = half_of_state(
                        s[sums_at + i], sum_of(s, hh_at + i, part_size), s[h_at + i]
                    )
                if came[0] == 0:
                    new = nan
                if not masked or active[j] != 0:
                    s[h_at + i] = new
                    s[output_at + i] = new
                elif zero_output:
                    s[output_at + i] = zero
                if heard:
                    show(shown, t + 1, drop, j, s[h_at + i], row, u, B)
                    if has_y:
                        y[row * y_row + t * y_step + u] = s[output_at + i]
                    if keeps:
                        saved[kept + two] = hh_kept
                        saved[kept + gates] = inner
                        states[(row * T + t) * units + u] = s[h_at + i]
        cuda.syncthreads()
        for i in range(tid, count, threads):
            row, u = first + i // own, left + i % own
            if row < B and u < units:
                last[row * units + u] = s[output_at + i]
                state[row * units + u] = s[h_at + i]

    return forward_on_grid

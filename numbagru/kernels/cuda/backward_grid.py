"""The recurrence backward with a layer's units divided among blocks: of forward_grid.

A block keeps the weights with which its units' states enter all sums. In every step its
threads, one for a unit of a row, make the gradients of that unit's sums, which the
products for weights and inputs take anyway; blocks meet; then each thread goes through
the gradients of all units of one gate, in one chain, or a part of them. With the reset
gate before the product they meet twice, and the candidate's chains are the first.

A model, not yet timed, for 512 units: 1.2 us for the chain, 1 for reading three times
16 KB, 1 for the barrier.
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
from numbagru.kernels.cuda.ptx import cuda, pointer, vector_lanes
from numbagru.kernels.cuda.step import (
    make_halves_back,
    make_reset_back,
    make_step_back,
    make_take_output,
)


def signature(real):
    """Types of the kernel's arguments."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, flags, size, size, numbers, numbers, size, size, numbers,
        numbers, numbers, numbers, numbers, numbers, types.CPointer(types.int32), size,
        size, size, flag, flag, flag, flag, flag,
    )  # fmt: skip


def make(real, units, split, act, rec, reset_after, masked, drops):
    """Make the kernel.

    Parameters
    ----------
    real
        Numba's float type.
    units : int
    split : limits.Split
    act, rec : launch.Scalars
        Of the candidate and of the gates.
    reset_after, masked, drops : bool
        Whether there is a mask, and whether the state has dropout.
    """
    own, rows, _, parts = split
    gates, two, four, count = 3 * units, 2 * units, 4 * units, rows * own
    threads, lanes = THREADS, vector_lanes(real)
    row_size = -(-units // lanes) * lanes
    copy_size = rows * row_size
    seen_at = -(-gates * own // lanes) * lanes
    gate_size = units * own
    zero, nan, depth = real(0), real("nan"), DEPTH
    step_back, meet = make_step_back(real, act, rec), make_meet()
    candidate_back, gates_back = make_halves_back(real, act, rec)
    reset_back = make_reset_back(real, rec)
    take_output = make_take_output(real, masked)
    see = make_see(real, units, rows, 1)
    add_products = make_add_products(units, own, 1, parts)
    sum_of = make_sum_of(parts)
    # Gates whose products come last; barriers of a step.
    last, meetings = (3, 1) if reset_after else (2, 2)
    part_at = seen_at + last * copy_size
    reads = 6  # what was kept of the gates, the old state, the output's gradient

    @DeviceFunction
    def multiply(s, total, weights, d_sums, low, high, source, t, first, B, T):
        """Multiply all units' gradients of some gates, `source` the first's."""
        cuda.syncthreads()
        for copy in range(high - low):
            start = t * four + (source + copy) * units
            see(s, seen_at + copy * copy_size, d_sums, start, T * four, first, B)
        cuda.syncthreads()
        sums = (high - low) * count
        for i in range(cuda.threadIdx.x, parts * sums, threads):
            copy, r, j = i % sums // count, i % count // own, i % own
            total[0] = zero
            column = (low + copy) * gate_size + j
            at = seen_at + copy * copy_size + r * row_size
            add_products(total, weights, s, column, at, i // sums)
            s[part_at + i] = total[0]
        cuda.syncthreads()

    @DeviceFunction
    def read(
        ahead, saved, states, h0, d_y, d_y_row, d_y_step, has_d_y, mask, mask_row,
        mask_step, row, u, t, T,
    ):  # fmt: skip
        """Read what a step takes of a unit of a row; returns whether it is active."""
        kept = (row * T + t) * four + u
        for g in range(4):
            ahead[g] = saved[kept + g * units]
        old = (row * T + t - 1) * units + u
        ahead[4] = states[old] if t > 0 else h0[row * units + u]
        ahead[5] = d_y[row * d_y_row + t * d_y_step + u] if has_d_y else zero
        return not masked or mask[row * mask_row + t * mask_step] != 0

    def backward_on_grid(
        recurrent, h0, mask, mask_row, mask_step, h_drop, d_y, d_y_row, d_y_step,
        d_last, d_state, saved, states, d_sums, d_h0, arrivals, blocks, B, T, has_d_y,
        has_d_last, has_d_state, zero_output, first_is_state,
    ):  # fmt: skip
        # As large as the launch says.
        s = pointer(cuda.shared.array(0, real, alignment=16))
        came = pointer(cuda.shared.array(1, types.int32))
        total = pointer(cuda.local.array(1, real))
        weights = pointer(cuda.local.array(depth, real))
        ahead = pointer(cuda.local.array(reads, real))
        tid, left = cuda.threadIdx.x, cuda.blockIdx.x * own
        first = cuda.blockIdx.y * rows
        for i in range(tid, gates * own, threads):
            k, j = i // own, i % own
            s[i] = recurrent[min(left + j, units - 1) * gates + k]
        if tid == 0:
            came[0] = 1
        # Units after the last one repeat it, and so do rows; nobody hears of them.
        r, j = tid // own, tid % own
        row, u = min(first + r, B - 1), min(left + j, units - 1)
        counts = tid < count
        heard = counts and first + r < B and left + j < units
        carried, going = zero, not masked
        d = d_state[row * units + u] if has_d_state else zero
        if T == 0 and has_d_last:
            d += d_last[row * units + u]
        active = True
        if counts and T > 0:
            active = read(
                ahead, saved, states, h0, d_y, d_y_row, d_y_step, has_d_y, mask,
                mask_row, mask_step, row, u, T - 1, T,
            )  # fmt: skip
        for turn in range(T):
            t = T - 1 - turn
            d_hh = d_z = d_r = d_inner = zero
            kept = (row * T + t) * four + u
            if counts:
                going = going or active
                at_end = has_d_last and turn == 0
                d, carried = take_output(
                    d, carried, active, at_end, t == 0, ahead[5], has_d_y,
                    d_last[row * units + u] if at_end else zero, zero_output,
                    first_is_state,
                )  # fmt: skip
                if active and reset_after:
                    d_hh, d_z, d_r, d_inner, d = step_back(
                        ahead[0], ahead[1], ahead[2], ahead[3], ahead[4], d
                    )
                elif active:
                    d_hh, d_z, d = candidate_back(ahead[0], ahead[2], ahead[4], d)
                if came[0] == 0:
                    d_hh = d_z = nan
                if heard:
                    d_sums[kept] = d_hh
                    d_sums[kept + gates] = d_inner
                    if reset_after:
                        d_sums[kept + units] = d_z
                        d_sums[kept + two] = d_r
            if not reset_after:
                meet(came, arrivals, blocks * (2 * turn + 1))
                multiply(s, total, weights, d_sums, 2, 3, 0, t, first, B, T)
                if counts:
                    if active:
                        inner = sum_of(s, part_at + tid, count)
                        if drops:
                            inner *= h_drop[(2 * B + row) * units + u]
                        d_r, d_before = reset_back(ahead[1], ahead[4], inner)
                        d += d_before
                        d_z, d_r = gates_back(ahead[0], ahead[1], d_z, d_r)
                    if heard:
                        d_sums[kept + units] = d_z
                        d_sums[kept + two] = d_r
            if counts and t > 0:  # while others come
                active = read(
                    ahead, saved, states, h0, d_y, d_y_row, d_y_step, has_d_y, mask,
                    mask_row, mask_step, row, u, t - 1, T,
                )  # fmt: skip
            meet(came, arrivals, blocks * meetings * (turn + 1))
            multiply(s, total, weights, d_sums, 0, last, 1, t, first, B, T)
            if going and counts:
                for gate in range(last):
                    product = sum_of(s, part_at + gate * count + tid, last * count)
                    if drops:
                        product *= h_drop[(gate * B + row) * units + u]
                    d += product
        if heard:
            d_h0[row * units + u] = d

    return backward_on_grid

"""The recurrence backward with a layer's units divided among blocks: of forward_grid.

A block keeps the weights with which its units' states enter all sums. In every step its
threads, one for a unit of a row, make the gradients of that unit's sums, which the
products for weights and inputs take anyway; blocks meet; then each thread goes through
the gradients of all units, z's, r's and the candidate's, in one chain.

A model, not yet timed, for 512 units: 3.4 us for the chain, 1 for reading three times
16 KB, 1 for the barrier.
"""

from __future__ import annotations

from numba import types

from numbagru.kernels.cuda.forward_grid import (
    DEPTH,
    THREADS,
    make_add_products,
    make_all_came,
    make_see,
)
from numbagru.kernels.cuda.ptx import cuda, vector_lanes
from numbagru.kernels.cuda.step import make_step_back, make_take_output


def signature(real):
    """Types of the kernel's arguments."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, flags, size, size, numbers, size, size, numbers, numbers,
        numbers, numbers, numbers, numbers, types.CPointer(types.int32), size, size,
        size, flag, flag, flag, flag, flag,
    )  # fmt: skip


def make(real, units, split, act, rec, masked):
    """Make the kernel, with the reset gate after the product.

    Parameters
    ----------
    real
        Numba's float type.
    units : int
    split : limits.Split
    act, rec : launch.Scalars
        Of the candidate and of the gates.
    masked : bool
    """
    own, rows, _ = split
    gates, two, four, count = 3 * units, 2 * units, 4 * units, rows * own
    threads, lanes = THREADS, vector_lanes(real)
    row_size = -(-units // lanes) * lanes
    seen_at = -(-gates * own // lanes) * lanes
    gate_size = units * own
    zero, nan, depth = real(0), real("nan"), DEPTH
    step_back, all_came = make_step_back(real, act, rec), make_all_came()
    take_output = make_take_output(real, masked)
    see = make_see(real, units, rows, 1)
    add_products = make_add_products(units, own, 1)

    def backward_on_grid(
        recurrent, h0, mask, mask_row, mask_step, d_y, d_y_row, d_y_step, d_last,
        d_state, saved, states, d_sums, d_h0, arrivals, blocks, B, T, has_d_y,
        has_d_last, has_d_state, zero_output, first_is_state,
    ):  # fmt: skip
        s = cuda.shared.array(0, real, alignment=16)  # as large as the launch says
        came = cuda.shared.array(1, types.int32)
        total = cuda.local.array(1, real)
        weights = cuda.local.array(depth, real)
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
        for turn in range(T):
            t = T - 1 - turn
            if counts:
                active = True
                if masked:
                    active = mask[row * mask_row + t * mask_step] != 0
                going = going or active
                at_end = has_d_last and turn == 0
                d, carried = take_output(
                    d, carried, active, at_end, t == 0,
                    d_y[row * d_y_row + t * d_y_step + u] if has_d_y else zero, has_d_y,
                    d_last[row * units + u] if at_end else zero, zero_output,
                    first_is_state,
                )  # fmt: skip
                kept, old = (row * T + t) * four + u, (row * T + t - 1) * units + u
                d_hh = d_z = d_r = d_inner = zero
                if active:
                    d_hh, d_z, d_r, d_inner, d = step_back(
                        saved[kept], saved[kept + units], saved[kept + two],
                        saved[kept + gates],
                        states[old] if t > 0 else h0[row * units + u], d,
                    )  # fmt: skip
                if came[0] == 0:
                    d_z = nan
                if heard:
                    d_sums[kept] = d_hh
                    d_sums[kept + units] = d_z
                    d_sums[kept + two] = d_r
                    d_sums[kept + gates] = d_inner
            cuda.syncthreads()
            if tid == 0 and came[0] != 0:
                expected = blocks * (turn + 1)
                came[0] = 1 if all_came(arrivals, cuda.blockIdx.y, expected) else 0
            total[0] = zero
            for gate in range(3):
                cuda.syncthreads()
                start = t * four + (gate + 1) * units
                see(s, seen_at, d_sums, start, T * four, first, B)
                cuda.syncthreads()
                if counts:
                    at = seen_at + r * row_size
                    add_products(total, weights, s, gate * gate_size + j, at)
            if going:
                d += total[0]
        if heard:
            d_h0[row * units + u] = d

    return backward_on_grid

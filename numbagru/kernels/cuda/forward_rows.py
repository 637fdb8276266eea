"""The recurrence, a block of threads for each few rows: no block waits for another.

A thread sums up one gate of one unit, for all rows of its block: one chain over the
units each, in the order of kernels/__init__.py. Two barriers per step, four with the
reset gate before the product: when the state is there, and when the sums are.

Weights stay in registers where they fit (`fits`), and what a step adds to is read a
step ahead: a step then takes the four cycles of a multiply-add for each unit, 0.25 µs
for 108 units at 1.8 GHz, and what the gates take (a model, not yet timed). Wider layers
read their weights from the cache again in every step: plain, for any number of units.
"""

from __future__ import annotations

from numba import types

from numbagru._jit_cuda import DeviceFunction
from numbagru.kernels.cuda.limits import fits
from numbagru.kernels.cuda.ptx import chain, cuda, pointer, take, vector_lanes
from numbagru.kernels.cuda.step import make_halves, make_step
from numbagru.scalar import fma

WARP, MOST_THREADS = 32, 512
SHARED_BYTES = 48 * 1024
# Of each unit of each row: sums of the three gates, the candidate's input or r * h, the
# state and the output.
_SECTIONS = 6


def threads_of(units):
    """Threads of a block: one for each gate of each unit, as far as possible."""
    return min(MOST_THREADS, -(-3 * units // WARP) * WARP)


def work_size(real, units, rows, drops):
    """Count the numbers of a block: of its sections, and of the states as seen."""
    lanes = vector_lanes(real)
    seen = rows * -(-units // lanes) * lanes
    return rows * _SECTIONS * units + (3 * seen if drops else seen)


def on_chip(real, units, rows, drops):
    """Whether the numbers of a block fit shared memory."""
    size = work_size(real, units, rows, drops)
    return size * real.bitwidth // 8 <= SHARED_BYTES


def signature(real):
    """Types of the kernel's arguments."""
    numbers, flags = types.CPointer(real), types.CPointer(types.uint8)
    size, flag = types.int32, types.boolean
    return (
        numbers, numbers, numbers, numbers, flags, size, size, numbers, numbers, size,
        size, numbers, numbers, numbers, numbers, numbers, size, size, flag, flag, flag,
    )  # fmt: skip


def make(real, units, rows, act, rec, reset_after, masked, drops, keeps):
    """Make the kernel for blocks of so many rows of a layer.

    Parameters
    ----------
    real
        Numba's float type.
    units, rows : int
    act, rec : launch.Scalars
        Of the candidate and of the gates.
    reset_after : bool
    masked, drops, keeps : bool
        Whether there is a mask, whether the state has dropout, and whether gates and
        states are kept for the backward pass.
    """
    one_step = make_step(real, act, rec)
    half_of_gates, half_of_state = make_halves(real, act, rec)
    gates, two, threads = 3 * units, 2 * units, threads_of(units)
    resident, shared = fits(real.bitwidth, units), on_chip(real, units, rows, drops)
    lanes = vector_lanes(real)
    count, columns = rows * units, units if resident else 1
    copy_size = rows * -(-units // lanes) * lanes
    last_copy = 2 * copy_size if drops else 0
    # One column per thread: what its sums begin with is read a step ahead.
    single = gates <= threads
    size = work_size(real, units, rows, drops)
    z_at = 3 * copy_size if drops else copy_size
    reset_at, hh_at, x_h_at, h_at, output_at = (z_at + k * count for k in range(1, 6))
    # Columns whose sums need no reset gate.
    early = gates if reset_after else two
    zero = real(0)
    take_weights, add_products = take(columns, gates), chain(units, rows)

    @DeviceFunction
    def spot(row, unit):
        """Where `seen` has a state: vectors of one row after the other."""
        return (unit // lanes * rows + row) * lanes + unit % lanes

    @DeviceFunction
    def show(seen, start, h_drop, h, r, row, u, B):
        """Let the products see a state, each gate its own multiple of it."""
        if drops:
            for g in range(3):
                drop = h_drop[(g * B + row) * units + u]
                seen[start + g * copy_size + spot(r, u)] = h * drop
        else:
            seen[start + spot(r, u)] = h

    @DeviceFunction
    def sum_resident(total, weights, recurrent, column, s, start):
        """Add the products of all units to the total of each row."""
        add_products(total, weights, s, start)

    @DeviceFunction
    def sum_read(total, weights, recurrent, column, s, start):
        """Do the same with weights that are read on the way."""
        for k in range(units):
            weight = recurrent[k * gates + column]
            for r in range(rows):
                total[r] = fma(s[start + spot(r, k)], weight, total[r])

    sum_products = sum_resident if resident else sum_read

    @DeviceFunction
    def sum_up(
        s, base, total, ahead, weights, xw, recurrent, bias, low, high, first, t, B, T
    ):  # fmt: skip
        """Sum up the columns from `low` to `high` that are this thread's."""
        for column in range(cuda.threadIdx.x, high, threads):
            if column >= low:
                gate, u = column // units, column % units
                apart = reset_after and gate == 2
                for r in range(rows):
                    x_spot = (min(first + r, B - 1) * T + t) * gates + column
                    x = ahead[r] if single else xw[x_spot]
                    if single and t + 1 < T:
                        ahead[r] = xw[x_spot + gates]
                    total[r] = bias[u] if apart else x
                    if apart:
                        s[base + x_h_at + r * units + u] = x
                copy = base + gate * copy_size if drops else base
                sum_products(total, weights, recurrent, column, s, copy)
                for r in range(rows):
                    s[base + z_at + gate * count + r * units + u] = total[r]

    @DeviceFunction
    def run(
        s, base, xw, recurrent, bias, h0, mask, mask_row, mask_step, h_drop, y, y_row,
        y_step, last, state, saved, states, B, T, has_y, zero_output, first_is_state,
    ):  # fmt: skip
        total = pointer(cuda.local.array(rows, real))
        ahead = pointer(cuda.local.array(rows, real))
        weights = pointer(cuda.local.array(columns, real))
        tid = cuda.threadIdx.x
        first = cuda.blockIdx.x * rows
        z, reset, hh = base + z_at, base + reset_at, base + hh_at
        x_h, h, output = base + x_h_at, base + h_at, base + output_at
        own = min(tid, gates - 1)
        take_weights(weights, recurrent, own)
        for r in range(rows):
            ahead[r] = zero
            if T > 0:
                ahead[r] = xw[min(first + r, B - 1) * T * gates + own]
        for i in range(tid, count, threads):
            r, u = i // units, i % units
            # Rows after the last one repeat it; nobody hears of them.
            row = min(first + r, B - 1)
            start = h0[row * units + u]
            s[h + i] = start
            s[output + i] = start if first_is_state or T == 0 else zero
            show(s, base, h_drop, start, r, row, u, B)
        for t in range(T):
            cuda.syncthreads()
            sum_up(
                s, base, total, ahead, weights, xw, recurrent, bias, 0, early, first, t,
                B, T,
            )  # fmt: skip
            cuda.syncthreads()
            if not reset_after:
                for i in range(tid, count, threads):
                    r, u = i // units, i % units
                    row = min(first + r, B - 1)
                    s[z + i], inner, z_kept, r_kept = half_of_gates(
                        s[z + i], s[reset + i], s[h + i]
                    )
                    if drops:
                        inner *= h_drop[(2 * B + row) * units + u]
                    s[x_h + i] = inner
                    s[base + last_copy + spot(r, u)] = inner
                    if keeps and first + r < B:
                        kept = (row * T + t) * 4 * units + u
                        saved[kept] = z_kept
                        saved[kept + units] = r_kept
                cuda.syncthreads()
                sum_up(
                    s, base, total, ahead, weights, xw, recurrent, bias, two, gates,
                    first, t, B, T,
                )  # fmt: skip
                cuda.syncthreads()
            for i in range(tid, count, threads):
                r, u = i // units, i % units
                row = min(first + r, B - 1)
                inner = s[x_h + i]
                if reset_after:
                    x_h_sum, inner = inner, s[hh + i]
                    new, z_kept, r_kept, hh_kept = one_step(
                        s[z + i], s[reset + i], inner, x_h_sum, s[h + i]
                    )
                    if keeps and first + r < B:
                        kept = (row * T + t) * 4 * units + u
                        saved[kept] = z_kept
                        saved[kept + units] = r_kept
                else:
                    new, hh_kept = half_of_state(s[z + i], s[hh + i], s[h + i])
                active = True
                if masked:
                    active = mask[row * mask_row + t * mask_step] != 0
                if active:
                    s[h + i] = new
                    s[output + i] = new
                    show(s, base, h_drop, new, r, row, u, B)
                else:
                    if zero_output:
                        s[output + i] = zero
                    if not reset_after:
                        show(s, base, h_drop, s[h + i], r, row, u, B)
                if first + r < B:
                    if has_y:
                        y[row * y_row + t * y_step + u] = s[output + i]
                    if keeps:
                        kept = (row * T + t) * 4 * units + u
                        saved[kept + two] = hh_kept
                        saved[kept + gates] = inner
                        states[(row * T + t) * units + u] = s[h + i]
        for i in range(tid, count, threads):
            if first + i // units < B:
                last[first * units + i] = s[output + i]
                state[first * units + i] = s[h + i]

    def forward_in_shared(
        xw, recurrent, bias, h0, mask, mask_row, mask_step, h_drop, y, y_row, y_step,
        last, state, saved, states, work, B, T, has_y, zero_output, first_is_state,
    ):  # fmt: skip
        s = pointer(cuda.shared.array(size, real, alignment=16))
        run(
            s, 0, xw, recurrent, bias, h0, mask, mask_row, mask_step, h_drop, y, y_row,
            y_step, last, state, saved, states, B, T, has_y, zero_output,
            first_is_state,
        )  # fmt: skip

    def forward_in_memory(
        xw, recurrent, bias, h0, mask, mask_row, mask_step, h_drop, y, y_row, y_step,
        last, state, saved, states, work, B, T, has_y, zero_output, first_is_state,
    ):  # fmt: skip
        run(
            work, cuda.blockIdx.x * size, xw, recurrent, bias, h0, mask, mask_row,
            mask_step, h_drop, y, y_row, y_step, last, state, saved, states, B, T,
            has_y, zero_output, first_is_state,
        )  # fmt: skip

    return forward_in_shared if shared else forward_in_memory

"""The recurrence, a block of threads for each few rows: no block waits for another.

A thread sums up one gate of one unit, for all rows of its block: one chain over the
units each, in the order of kernels/__init__.py; then it computes the gate. Two barriers
a step, three with the reset gate before the product: when the state is there, when the
gates are, and when the candidate's sums are.

Weights stay in registers where they fit (`fits`), and what a step reads of the inputs
is read a step ahead. By the stall counts of the machine code for compute capability 9.0
a step of one row of 64 units takes 830 cycles, 0.47 us at 1.755 GHz: 256 for the chain,
140 for a gate, 200 for the candidate and the state, the rest for barriers, shared
memory and addresses. (A model, not yet timed. 1370 with all gates in the threads of the
states, loops whose length the compiler did not know and indices that may be negative;
and these waited for the bias and the mask in every step.) Wider layers read their
weights from the cache again in every step: plain, for any number of units.
"""

from __future__ import annotations

from numba import types

from numbagru._jit_cuda import DeviceFunction
from numbagru.gates import reset_state
from numbagru.kernels.cuda.limits import copies as copies_of
from numbagru.kernels.cuda.limits import fits, spares_registers
from numbagru.kernels.cuda.ptx import chain, cuda, pointer, take, vector_lanes
from numbagru.kernels.cuda.step import make_gate, make_halves, make_update
from numbagru.scalar import fma

WARP, MOST_THREADS = 32, 512
SHARED_BYTES = 48 * 1024
# Of each unit of each row: z, r, the candidate's sum or part, the state, the output.
_SECTIONS = 5


def threads_of(units):
    """Threads of a block: one for each gate of each unit, as far as possible."""
    return min(MOST_THREADS, -(-3 * units // WARP) * WARP)


def work_size(real, units, rows, reset_after, drops):
    """Count the numbers of a block: of its sections, and of the states as seen."""
    lanes = vector_lanes(real)
    seen = copies_of(reset_after, drops) + (0 if reset_after else 1)
    return rows * (_SECTIONS * units + seen * -(-units // lanes) * lanes)


def on_chip(real, units, rows, reset_after, drops):
    """Whether the numbers of a block fit shared memory."""
    size = work_size(real, units, rows, reset_after, drops)
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
    gate_of, update = make_gate(real, rec), make_update(real, act)
    _, half_of_state = make_halves(real, act, rec)
    gates, two, threads = 3 * units, 2 * units, threads_of(units)
    resident = fits(real.bitwidth, units, reset_after)
    lanes = vector_lanes(real)
    count, columns = rows * units, units if resident else 1
    # Columns, and states, of a thread. One column: what does not change from step to
    # step stays in registers, and what does is read a step ahead.
    per, pairs = -(-gates // threads), -(-count // threads)
    single = per == 1
    held = pairs if single else 1
    spares = single and spares_registers(real.bitwidth, units)
    size = work_size(real, units, rows, reset_after, drops)
    copies, copy_size = copies_of(reset_after, drops), rows * -(-units // lanes) * lanes
    drops_size = held * copies
    z_at = (copies if reset_after else copies + 1) * copy_size
    reset_at, hh_at, h_at, output_at = (z_at + k * count for k in range(1, 5))
    # Columns whose sums need no reset gate.
    early = gates if reset_after else two
    zero = real(0)
    take_weights, add_products = take(columns, gates), chain(units, rows)

    @DeviceFunction
    def spot(row, unit):
        """Where a copy has a state: vectors of one row after the other."""
        return (unit // lanes * rows + row) * lanes + unit % lanes

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
        s, base, total, ahead, weights, own_bias, xw, recurrent, bias, h_drop,
        saved, low, high, first, t, B, T,
    ):  # fmt: skip
        """Sum up this thread's columns from `low` to `high`, and make them gates."""
        for j in range(per):
            column = cuda.threadIdx.x + j * threads
            if low <= column and column < high:
                gate, u = column // units, column % units
                apart = reset_after and gate == 2
                for r in range(rows):
                    row = min(first + r, B - 1)
                    if single:
                        total[r] = own_bias if apart else ahead[r]
                        ahead[r] = xw[(row * T + min(t + 1, T - 1)) * gates + column]
                    else:
                        total[r] = bias[u]
                        if not apart:
                            total[r] = xw[(row * T + t) * gates + column]
                copy = gate if drops else 0
                if not reset_after and gate == 2:
                    copy = copies
                start = base + copy * copy_size
                sum_products(total, weights, recurrent, column, s, start)
                for r in range(rows):
                    value, kept = total[r], total[r]
                    if gate < 2:
                        value, kept = gate_of(total[r])
                    s[base + z_at + gate * count + r * units + u] = value
                    row = min(first + r, B - 1)
                    if not reset_after and gate == 1:
                        inner = reset_state(value, s[base + h_at + r * units + u])
                        if drops:
                            inner *= h_drop[(2 * B + row) * units + u]
                        s[base + copies * copy_size + spot(r, u)] = inner
                        if keeps and first + r < B:
                            saved[(row * T + t) * 4 * units + gates + u] = inner
                    if keeps and first + r < B and (reset_after or gate < 2):
                        # The candidate's part comes after the candidate.
                        place = (row * T + t) * 4 * units + column
                        saved[place + units if gate == 2 else place] = kept

    @DeviceFunction
    def run(
        s, base, xw, recurrent, bias, h0, mask, mask_row, mask_step, h_drop, y, y_row,
        y_step, last, state, saved, states, B, T, has_y, zero_output, first_is_state,
    ):  # fmt: skip
        total = pointer(cuda.local.array(rows, real))
        ahead = pointer(cuda.local.array(rows, real))
        weights = pointer(cuda.local.array(columns, real))
        x_now = pointer(cuda.local.array(held, real))
        x_next = pointer(cuda.local.array(held, real))
        drop = pointer(cuda.local.array(drops_size, real))
        active = pointer(cuda.local.array(held, types.uint8))
        tid = cuda.threadIdx.x
        first = cuda.blockIdx.x * rows
        z, reset, hh = base + z_at, base + reset_at, base + hh_at
        h, output = base + h_at, base + output_at
        own = min(tid, gates - 1)
        own_bias = bias[own % units]
        take_weights(weights, recurrent, own)
        for r in range(rows):
            ahead[r] = zero
            if T > 0:
                ahead[r] = xw[min(first + r, B - 1) * T * gates + own]
        for j in range(pairs):
            i = tid + j * threads
            if i < count:
                r, u = i // units, i % units
                # Rows after the last one repeat it; nobody hears of them.
                row = min(first + r, B - 1)
                start = h0[row * units + u]
                if single and T > 0:
                    x_next[j] = xw[row * T * gates + two + u]
                s[h + i] = start
                s[output + i] = start if first_is_state or T == 0 else zero
                for g in range(copies):
                    seen = start
                    if drops:
                        factor = h_drop[(g * B + row) * units + u]
                        seen = start * factor
                        if spares:
                            drop[j * copies + g] = factor
                    s[base + g * copy_size + spot(r, u)] = seen
        for t in range(T):
            for j in range(pairs):
                i = tid + j * threads
                if single and i < count:
                    row = min(first + i // units, B - 1)
                    if masked and spares:
                        active[j] = mask[row * mask_row + t * mask_step]
                    if reset_after:
                        x_now[j] = x_next[j]
                        x_spot = (row * T + min(t + 1, T - 1)) * gates + two
                        x_next[j] = xw[x_spot + i % units]
            cuda.syncthreads()
            sum_up(
                s, base, total, ahead, weights, own_bias, xw, recurrent, bias,
                h_drop, saved, 0, early, first, t, B, T,
            )  # fmt: skip
            cuda.syncthreads()
            if not reset_after:
                sum_up(
                    s, base, total, ahead, weights, own_bias, xw, recurrent, bias,
                    h_drop, saved, two, gates, first, t, B, T,
                )  # fmt: skip
                cuda.syncthreads()
            for j in range(pairs):
                i = tid + j * threads
                if i < count:
                    r, u = i // units, i % units
                    row = min(first + r, B - 1)
                    new, out = s[h + i], s[output + i]
                    if reset_after:
                        x_spot = (row * T + t) * gates + two + u
                        x = x_now[j] if single else xw[x_spot]
                        found, kept = update(s[z + i], s[reset + i], s[hh + i], x, new)
                    else:
                        found, kept = half_of_state(s[z + i], s[hh + i], new)
                    goes_on = True
                    if masked and spares:
                        goes_on = active[j] != 0
                    elif masked:
                        goes_on = mask[row * mask_row + t * mask_step] != 0
                    if goes_on:
                        new, out = found, found
                        s[h + i] = new
                        for g in range(copies):
                            seen = new
                            if drops and spares:
                                seen = new * drop[j * copies + g]
                            elif drops:
                                seen = new * h_drop[(g * B + row) * units + u]
                            s[base + g * copy_size + spot(r, u)] = seen
                    elif zero_output:
                        out = zero
                    s[output + i] = out
                    if first + r < B:
                        if has_y:
                            y[row * y_row + t * y_step + u] = out
                        if keeps:
                            saved[(row * T + t) * 4 * units + two + u] = kept
                            states[(row * T + t) * units + u] = new
        for j in range(pairs):
            i = tid + j * threads
            if i < count and first + i // units < B:
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

    on_the_chip = on_chip(real, units, rows, reset_after, drops)
    return forward_in_shared if on_the_chip else forward_in_memory

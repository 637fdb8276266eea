"""What both recurrences are made of whose blocks meet in every step.

Nobody waits for ever: who has looked `MOST_LOOKS` times in vain, seconds, goes on alone
with states that are not numbers, and so do all who then wait for it.
"""

from __future__ import annotations

from numbagru._jit_cuda import DeviceFunction
from numbagru.kernels.cuda.limits import GRID_THREADS
from numbagru.kernels.cuda.ptx import (
    arrive,
    arrived,
    chain,
    cuda,
    pointer,
    take,
    vector_lanes,
)

THREADS = GRID_THREADS
MOST_LOOKS = 2**23
_READS = 8  # under way at once, of a thread
DEPTH = 32  # units whose weights are in registers at once


def make_meet():
    """Make ``meet(came, arrivals, expected)``: the barrier of the blocks of some rows.

    In `came`, shared, stands whether nobody has waited in vain so far.
    """
    most_looks = MOST_LOOKS

    @DeviceFunction
    def meet(came, arrivals, expected):
        cuda.syncthreads()
        if cuda.threadIdx.x == 0 and came[0] != 0:
            group, looks = cuda.blockIdx.y, 0
            arrive(arrivals, group)
            while arrived(arrivals, group) < expected and looks < most_looks:
                looks += 1
            came[0] = 1 if looks < most_looks else 0
        cuda.syncthreads()

    return meet


def make_see(real, units, rows, each):
    """Make ``see(s, at, source, start, row_size, first, B)``.

    Brings numbers of all units of the rows from `first` on to shared memory, as
    `ptx.chain` takes them of `each` rows: those of a unit from each row, so many rows.
    A thread has a unit in all rows: that its place takes two divisions would otherwise
    cost more than the products (512 units, 8 rows: 80 instructions a number, now 5).
    """
    threads, lanes = THREADS, vector_lanes(real)
    padded = -(-units // lanes) * lanes
    columns = max(1, _READS // rows)
    reads = columns * rows
    turns = -(-units // (columns * threads))

    @DeviceFunction
    def see(s, at, source, start, row_size, first, B):
        found = pointer(cuda.local.array(reads, real))
        for turn in range(turns):
            left = cuda.threadIdx.x + turn * columns * threads
            for c in range(columns):
                # What is read past the end, or of rows after the last, nobody misses.
                u = min(left + c * threads, units - 1)
                for r in range(rows):
                    row = min(first + r, B - 1)
                    found[c * rows + r] = source[start + row * row_size + u]
            for c in range(columns):
                u = left + c * threads
                if u < units:
                    place = at + u // lanes * lanes * each + u % lanes
                    for r in range(rows):
                        apart = r // each * each * padded + r % each * lanes
                        s[place + apart] = found[c * rows + r]

    return see


def make_add_products(units, columns, each, parts):
    """Make ``add_products(total, weights, s, column, start, part)``.

    A chain over the units, or those of one of the parts, which are slabs of `DEPTH`
    next to each other; with weights that stand in shared memory in rows of so many
    columns.
    """
    whole, rest = units // DEPTH * DEPTH, units % DEPTH
    depth = DEPTH
    size = -(-units // (parts * DEPTH)) * DEPTH
    with_rest = whole // size
    take_slab, add_slab = take(DEPTH, columns), chain(DEPTH, each)
    take_rest, add_rest = take(rest, columns), chain(rest, each)

    @DeviceFunction
    def add_products(total, weights, s, column, start, part):
        for k in range(part * size, min(part * size + size, whole), depth):
            take_slab(weights, s, column + k * columns)
            add_slab(total, weights, s, start + k * each)
        if rest > 0 and part == with_rest:
            take_rest(weights, s, column + whole * columns)
            add_rest(total, weights, s, start + whole * each)

    return add_products


def make_sum_of(parts):
    """Make ``sum_of(s, at, apart)``: the sum of parts, which lie so far apart."""

    @DeviceFunction
    def sum_of(s, at, apart):
        total = s[at]
        for part in range(1, parts):
            total += s[at + part * apart]
        return total

    return sum_of

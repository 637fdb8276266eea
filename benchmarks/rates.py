"""How often per second threads do a thing: what `roofline.py` and `bound.py` need."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit, types

from numbagru._jit import Kernel
from numbagru.config import GRUConfig
from numbagru.gates import (
    BLOCK,
    D_BLOCK,
    D_R,
    D_SECTIONS,
    HH,
    RECURRENT,
    SECTIONS,
    D,
    H,
    R,
    Z,
    d_step_reset_after,
    step_reset_after,
)
from numbagru.kernels import team
from numbagru.kernels.call import REAL, activations
from numbagru.kernels.simd import at, copy, hold, pointer
from numbagru.kernels.threads import new_words
from numbagru.scalar import fma, widest_vectors

# What `rates` measures.
CHAIN = "multiply-adds one after the other, of each thread"
GATES, GATES_BACK = "units whose gates are computed", "and gone back through"
IN_TURN = "gates of one vector after the other, of each thread"
BACK_IN_TURN = "and gone back through after each other"
MEETINGS = "meetings of all threads"
# Numbers of a section of the gates' scratch. Two in turns, or the compiler would leave
# out what the next turn overwrites; both stay in the nearest cache.
_SECTION = 128


def rate(run, work, threads, seconds, rounds):
    """Return the best rate of threads that call ``run(thread, count)`` together.

    One count is `work` units for each thread.
    """
    run(0, 1)  # compiles
    count, took = 1, 0.0
    while took < seconds / 4:
        start = time.perf_counter()
        run(0, count)
        took = time.perf_counter() - start
        count *= 2
    count = max(1, int(count / 2 * seconds / took))
    barrier = threading.Barrier(threads)

    def turn(thread):
        barrier.wait()
        start = time.perf_counter()
        run(thread, count)
        return start, time.perf_counter()

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            starts, ends = zip(*pool.map(turn, range(threads)), strict=True)
            best = max(best, work * count * threads / (max(ends) - min(starts)))
    return best


def ones(count, dtype):
    """Return an array that starts with a cache line: no vector crosses two."""
    line = 64 // np.dtype(dtype).itemsize
    array = np.ones(count + line, dtype)
    start = -array.ctypes.data % 64 // array.itemsize
    return array[start : start + count]


@njit(nogil=True)
def _chain(values, count):
    total, factor = values[0], values[1]
    for _ in range(count):
        total = fma(total, factor, factor)
    values[0] = total


def _gates(act, rec, scratch, count):
    widest_vectors()
    for turn in range(count):
        s = at(pointer(scratch), turn % 2 * (scratch.size // 2))
        step_reset_after(act, rec, s, _SECTION, _SECTION, 0)
    hold(scratch)


def _d_gates(act, rec, d_act, d_rec, scratch, count):
    widest_vectors()
    for turn in range(count):
        s = at(pointer(scratch), turn % 2 * (scratch.size // 2))
        d_step_reset_after(act, rec, d_act, d_rec, s, _SECTION, _SECTION, 0)
    hold(scratch)


def _gates_in_turn(act, rec, scratch, count):
    widest_vectors()
    s = pointer(scratch)
    for _ in range(count):
        step_reset_after(act, rec, s, _SECTION, BLOCK, 0)
        for section in (Z, R, HH, RECURRENT):
            copy(at(s, section * _SECTION), at(s, H * _SECTION), BLOCK)
    hold(scratch)


def _d_gates_in_turn(act, rec, d_act, d_rec, scratch, count):
    widest_vectors()
    s = pointer(scratch)
    for _ in range(count):
        d_step_reset_after(act, rec, d_act, d_rec, s, _SECTION, D_BLOCK, 0)
        copy(at(s, D * _SECTION), at(s, D_R * _SECTION), D_BLOCK)
    hold(scratch)


def _signature(real, *kinds):
    return *kinds, types.Array(real, 1, "C"), types.intp


# Whether backward, and in turn.
_KERNELS = {
    (False, False): Kernel(_gates, _signature),
    (True, False): Kernel(_d_gates, _signature),
    (False, True): Kernel(_gates_in_turn, _signature),
    (True, True): Kernel(_d_gates_in_turn, _signature),
}


@njit(nogil=True)
def _meet(words, own, thread, threads, count):
    mine = pointer(own)
    team.be_member(mine, thread, threads)
    for _ in range(count):
        team.meet(pointer(words), mine)
    hold(words)
    hold(own)


def meeting_rate(threads, count=20_000, rounds=16):
    """Return meetings per second, NaN for one thread."""
    if threads == 1:
        return math.nan
    _meet(new_words(), np.zeros(team.OWN, np.int64), 0, 1, 1)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            words = new_words()
            barrier = threading.Barrier(threads)

            def meet(thread, words=words, barrier=barrier):
                own = np.zeros(team.OWN, np.int64)
                barrier.wait()
                start = time.perf_counter()
                _meet(words, own, thread, threads, count)
                return time.perf_counter() - start

            best = max(best, count / max(pool.map(meet, range(threads))))
    return best


def chain_rate(dtype, threads, rate):
    """Return multiply-adds per second of each thread, one after the other.

    `rate` is the function above with its last two arguments given.
    """
    values = [np.full(2, 0.5, dtype) for _ in range(threads)]

    def run(thread, count):
        _chain(values[thread], count)

    return rate(run, 1, threads) / threads


def gate_rate(dtype, backward, in_turn, threads, rate):
    """Return units per second whose gates all threads compute, or go back through.

    Or, in turn, vectors of them per second and thread.
    """
    config = GRUConfig(units=1, dtype=dtype)
    values, kinds = activations(config, slopes=backward)
    sections = D_SECTIONS if backward else SECTIONS
    entry = _KERNELS[backward, in_turn].entry(REAL[np.dtype(dtype)], *kinds)
    # Gates of one keep the gradients from fading away.
    scratch = [ones(2 * sections * _SECTION, dtype) for _ in range(threads)]

    def run(thread, count):
        entry(*values, scratch[thread], count)

    return rate(run, 1, threads) / threads if in_turn else rate(run, _SECTION, threads)


def rates(dtype, counts, rate):
    """Measure what the bound needs beside the roof, in 1e9 per second.

    Parameters
    ----------
    dtype : str
    counts : list of int
        Of threads, as `roofline.roofline` has them.
    rate : callable
        ``rate(run, work, threads)``: the function above, the others given.

    Returns
    -------
    dict
        Lists with a figure for each count, under `CHAIN`, `GATES` and so on.
    """

    def gates(*how):
        return [gate_rate(dtype, *how, n, rate) / 1e9 for n in counts]

    return {
        CHAIN: [chain_rate(dtype, n, rate) / 1e9 for n in counts],
        GATES: gates(False, False),
        GATES_BACK: gates(True, False),
        IN_TURN: gates(False, True),
        BACK_IN_TURN: gates(True, True),
        MEETINGS: [meeting_rate(n) / 1e9 for n in counts],
    }

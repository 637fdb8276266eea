"""Inputs of a row alone, multiplied with their weights some steps ahead.

A step alone would read all weights of the inputs for one row. Where the steps are few
products each, they are the calling thread's, and the helpers of a call multiply inputs
only: items, one panel of a group of steps each, which whoever is free takes in order.
The calling thread does so as well while it waits for the group that it needs.
"""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.kernels.atomics import add, load, numbers_at, replace, store
from numbagru.kernels.forward_arrays import padded_units
from numbagru.kernels.simd import at, copy, most_rows, vector_lanes
from numbagru.kernels.team import (
    AHEAD,
    FAILED,
    JOINED,
    MOST_GROUPS,
    NEXT,
    NOW,
    SHARED,
    TOGETHER,
    WAITED,
    note_waiting,
    pieces,
    wait_a_little,
)
from numbagru.kernels.tiles import continue_three, tile_rows

# A row alone has its inputs multiplied for so many steps at once, from so many on. (16
# or 32 steps: no gain.)
GROUP_STEPS, HOISTED_FROM = 8, 16

# Below so many products of states and weights steps are the calling thread's: 64 units
# take it 0.3 µs, and two threads 1.1 µs with meeting (Zen 5).
_STEPS_ALONE_BELOW = 8_000


@routine
def hoists(a, n):
    """Whether a block's inputs are multiplied some steps ahead."""
    return n == 1 and not a.masked and a.T > 1 and a.F >= HOISTED_FROM


@routine
def helpers_multiply_inputs(a, words, n):
    """Whether that is what the helpers of a call do, instead of sharing its steps."""
    alone = a.U * a.U < _STEPS_ALONE_BELOW
    return words[TOGETHER] != 0 and alone and hoists(a, n)


@routine
def sums_row(a):
    """Count the numbers from the sums of one step to those of the next.

    One vector more than they have: with 256 units, those of all steps of a group would
    lie in the same sets of the first-level cache.
    """
    return 4 * padded_units(a) + vector_lanes(a.x)


@routine
def multiply_inputs(a, b, t, first, stop, sums):
    """Make the sums of one row's inputs for a group of steps: rows of a tile."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    apart = sums_row(a)
    count = min(GROUP_STEPS, a.T - t)
    for p in range(first, stop):
        w = at(a.panels, p * (a.F + a.U) * 3 * width)
        for i in range(count):
            target = at(sums, i * apart + p * 4 * width)
            copy(target, at(a.bias, p * 4 * width), 4 * width)
        i = 0
        while i < count:
            m = tile_rows(count - i, most)
            continue_three(
                m, at(a.x, b * a.x_row + (t + i) * a.x_step), a.x_step, 1, w, 3 * width,
                width, a.F, at(sums, i * apart + p * 4 * width), apart, width, 0, True,
                w, 0,
            )  # fmt: skip
            i += m


@section
def _multiply_item(a, words, item, sums):
    P = _panels(a)
    group, p = item // P, item % P
    place = group % MOST_GROUPS
    target = at(sums, place * GROUP_STEPS * sums_row(a))
    multiply_inputs(a, 0, group * GROUP_STEPS, p, p + 1, target)
    add(at(words, AHEAD + place), 1)


@routine
def _panels(a):
    return pieces(a.U, vector_lanes(a.x))


@routine
def _items(a):
    return pieces(a.T, GROUP_STEPS) * _panels(a)


@section
def help_with_inputs(a, words, shared, offset):
    """Multiply items, as a helper, until none is left or it kept the caller waiting.

    Sums go `offset` numbers behind the start of the memory that the caller shares.
    """
    add(at(words, JOINED), 1)
    while load(at(words, WAITED)) == 0:
        item = add(at(words, NEXT), 1)
        if item >= _items(a):
            return
        spins, now = 0, load(at(words, NOW))
        # Not before there is memory, nor where the caller has yet to take sums.
        while now == 0 or item // _panels(a) >= now - 1 + MOST_GROUPS:
            if load(at(words, FAILED)) != 0:
                return
            spins = wait_a_little(words, spins)
            now = load(at(words, NOW))
        sums = at(numbers_at(shared, words[SHARED]), offset)
        _multiply_item(a, words, item, sums)


@section
def take_group(a, words, t, sums):
    """Give the sums of the group that starts with step t, once they are complete."""
    P = _panels(a)
    group = t // GROUP_STEPS
    place = group % MOST_GROUPS
    complete = (group // MOST_GROUPS + 1) * P
    store(at(words, NOW), group + 1)
    spins = 0
    while load(at(words, AHEAD + place)) < complete:
        item = load(at(words, NEXT))
        # Of this group or the next: there is room for both whatever helpers do.
        if item < min(_items(a), (group + 2) * P):
            if replace(at(words, NEXT), item, item + 1) != 0:
                _multiply_item(a, words, item, sums)
        elif load(at(words, FAILED)) != 0:
            return sums
        else:
            spins = wait_a_little(words, spins)
    note_waiting(words, spins)
    return at(sums, place * GROUP_STEPS * sums_row(a))

"""Backward on register tiles, for every scalar activation and mask.

In parallel (kernels/threads.py): parts of rows; each adds up its own weight gradients,
and weight_gradients.py adds the parts in order. A part goes through its rows in blocks,
and a block through time in chunks of some hundred samples (row and step), backward:
    per step   gates from what was saved, gradients of the sums (gates.py), products
               with the transposed weights for the old state and the inputs
    per chunk  products of inputs and states with those gradients, which are still in
               the cache, into accumulators packed like the weights
"""

from __future__ import annotations

import functools

import numpy as np

from numbagru._jit import body, variant_routine
from numbagru.gates import (
    D_SECTIONS,
    line,
)
from numbagru.kernels.atomics import address_of, numbers_at, words_at
from numbagru.kernels.backward_arrays import (
    GROUP,
    arrays,
    cut_memory,
    rounded_up,
    states_alike,
    steps_at_once,
    sums_row,
)
from numbagru.kernels.backward_block import block_of
from numbagru.kernels.backward_chunk import (
    chunk_capacity,
    repeat_states,
)
from numbagru.kernels.record import record
from numbagru.kernels.simd import (
    aligned,
    at,
    clear,
    hold,
    pointer,
    tile_size,
    vector_lanes,
)
from numbagru.kernels.team import (
    OWN,
    OWN_ALIGNED,
    SHARED,
    TOGETHER,
    enter,
    is_first,
    leave,
    next_item,
    pieces,
)
from numbagru.kernels.weight_gradients import block_rows, give_biases
from numbagru.scalar import widest_vectors


@functools.cache
def backward_parts(reset_after, per_gate, whole_rows):
    """Make the loop over parts, and in each over its blocks."""
    block = block_of(reset_after, per_gate, whole_rows)

    @variant_routine(reset_after, per_gate, whole_rows, make=body)
    def parts(words, helper, data):
        widest_vectors()
        rows_per_part, act, rec, d_act, d_rec, x = data[:6]
        d_W, d_R, d_bias, gradients = data[-4:]
        a = record(arrays(data))
        width = vector_lanes(a.x)
        F, U = a.F, a.U
        V = rounded_up(U, width)
        rows = block_rows(rows_per_part, a.T, U)
        at_once = steps_at_once(a, rows, x.itemsize, per_gate)
        capacity = chunk_capacity(a.T, F, U, width, x.itemsize, rows)
        states = rounded_up(V, GROUP) // GROUP
        groups = rounded_up(F, GROUP) // GROUP + states
        factors = groups if reset_after else groups + states
        drop_rows = 0
        if per_gate:
            factors, drop_rows = 3 * groups, 3 * rows
        section = line(U) if whole_rows else tile_size(a.x)
        private = OWN_ALIGNED + D_SECTIONS * section
        together = words[TOGETHER] != 0
        total = private
        if not (together and helper):
            total += (
                V * capacity * 4 + factors * capacity * GROUP
                + rows * 3 * V + drop_rows * V
                + at_once * rows * (2 * sums_row(U, width) + rounded_up(F, width))
                + 4 * V
            )  # fmt: skip
        memory = np.empty(total, x.dtype)
        begin = aligned(pointer(memory))
        own = words_at(address_of(begin))
        s = at(begin, OWN)
        clear(s, private - OWN_ALIGNED)
        shared = at(s, private - OWN_ALIGNED)
        if together and not helper:
            words[SHARED] = address_of(shared)
        start = enter(words, helper, own)
        if together and helper:
            shared = numbers_at(shared, words[SHARED])
        count = max(1, pieces(a.B, rows_per_part))
        k = 0 if together else next_item(words, helper, -1, count)
        while start >= 0 and k < count:
            direct = k == gradients.shape[0]
            part = at(pointer(gradients), k * gradients.shape[1])
            work = cut_memory(
                a, s, shared, pointer(d_W), pointer(d_R), part, direct, rows, at_once,
                capacity, groups, factors, drop_rows,
            )  # fmt: skip
            w = record(work)
            first, stop = k * rows_per_part, min(a.B, (k + 1) * rows_per_part)
            if a.T == 0 or first == stop:
                if direct:
                    clear(pointer(d_W), d_W.size)
                    clear(pointer(d_R), d_R.size)
                    clear(w.bias, 4 * V)
                else:
                    clear(part, gradients.shape[1])
            stays = first < stop
            for b in range(first, stop, rows):
                n = min(rows, stop - b)
                stays = block(
                    a, w, act, rec, d_act, d_rec, words, own, b, n, at_once, capacity,
                    start, b > first,
                )  # fmt: skip
            if reset_after and not per_gate and states_alike(a) and stays:
                repeat_states(a, w, own)
            if direct and is_first(own):
                give_biases(w.bias, d_bias, U, width)
            k = count if together else next_item(words, helper, k, count)
        leave(words, helper, own)
        hold(memory)
        hold(gradients)
        hold(d_W)
        hold(d_R)
        hold(d_bias)

    return parts

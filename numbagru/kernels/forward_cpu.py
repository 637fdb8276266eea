"""Forward on register tiles, for every scalar activation and mask.

In parallel: blocks of rows, each with its own loop over time, no synchronisation.
In registers: a tile of rows x panels x gates over the whole chain of products.
In L1: the scratch in which a tile's sums become gates and the next state.
For backward: four numbers per unit and step, and the states (kernels/__init__.py).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from numbagru._jit import Kernel, routine, section, variant_routine
from numbagru.gates import (
    SECTIONS,
)
from numbagru.kernels.atomics import address_of, numbers_at, words_at
from numbagru.kernels.call import REAL, Call, Outputs, bound, rows_by_end
from numbagru.kernels.forward_arrays import (
    arrays,
    bare_arrays,
    note_active,
    padded_units,
    row_of,
    take_inputs,
    take_inputs_per_gate,
    take_states_per_gate,
)
from numbagru.kernels.forward_step import (
    make_projection,
    make_step_reset_after,
    make_step_reset_before,
    tiles_of,
)
from numbagru.kernels.record import record
from numbagru.kernels.simd import (
    aligned,
    at,
    clear,
    copy,
    hold,
    most_rows,
    pointer,
    tile_size,
    tile_size_of,
    vector_lanes,
    widest_vectors,
)
from numbagru.kernels.team import (
    OWN,
    OWN_ALIGNED,
    SHARED,
    TOGETHER,
    enter,
    is_first,
    leave,
    meet,
    next_item,
    share_of,
    sharing,
    turn,
)
from numbagru.kernels.threads import NOBODY, WORD_ARRAY, run
from numbagru.kernels.variant import variant
from numbagru.kernels.vector_ir import lanes, padded


@routine
def shared_size(n, V, width, per_gate):
    """Count what a block of n rows keeps.

    h, h_new, inner, multipliers of h per gate, seen and a vector of zeros.
    """
    return (6 if per_gate else 3) * n * V + n + width


# A row alone has its inputs multiplied for so many steps at once, from so many on.
_HOISTED_STEPS, _HOISTED_FROM = 8, 16


@routine
def _begin(a, b, n, h, seen, drops, gate_stride):
    """Fetch the initial states of a block, and their multipliers."""
    V = padded_units(a)
    for i in range(n):
        seen[i] = 1 if a.first_is_state else 0
        if a.has_h0:
            copy(at(h, i * V), at(a.h0, row_of(a, b + i) * a.U), a.U)
        if gate_stride > 0:
            for g in range(3):
                given = at(a.h_drop, (g * a.B + row_of(a, b + i)) * a.U)
                for u in range(a.U):
                    drop = given[u] if a.drops_h else 1
                    drops[g * gate_stride + i * V + u] = drop


@routine
def _mark_seen(a, n, active, seen):
    """Note which rows have an output now."""
    if a.masked:
        for i in range(n):
            if active[i] != 0:
                seen[i] = 1


@routine
def _repeat(target, h, U, blank):
    if blank:
        clear(target, U)
    else:
        copy(target, h, U)


@routine
def _end_row(a, slot, t, h, seen):
    """Hand over a final state; outputs of the steps that are left repeat the last."""
    row, U = row_of(a, slot), a.U
    copy(at(a.state, row * U), h, U)
    if a.T == 0:
        copy(at(a.last, row * U), h, U)
    elif t < a.T:
        blank = a.zero_output or seen[0] == 0
        _repeat(at(a.last, row * U), h, U, blank)
        if a.wanted:
            for step in range(t, a.T):
                _repeat(at(a.y, row * a.y_row + step * a.y_step), h, U, blank)


@routine
def _still_going(a, own, b, n, t, h, seen):
    """End the rows without a step at t or after it; count the others."""
    V = padded_units(a)
    while n > 0 and (t == a.T or (a.masked and a.ends[b + n - 1] <= t)):
        n -= 1
        if is_first(own):
            _end_row(a, b + n, t, at(h, n * V), at(seen, n))
    return n


@routine
def _hoists(a, n):
    """Whether a block's inputs are multiplied some steps ahead."""
    return n == 1 and not a.masked and a.T > 1 and a.F >= _HOISTED_FROM


def _rows_of(reset_after, per_gate, arrays):
    """Make the loop over blocks of rows, and in each over time."""
    general = arrays is not bare_arrays  # without it Numba compiles less
    make_step = make_step_reset_after if reset_after else make_step_reset_before
    step, project = make_step(per_gate), make_projection(candidate=reset_after)

    @section
    def block(a, act, rec, words, own, scratch, private, shared, b, n, start):
        V = padded_units(a)
        h = shared
        h_new = at(h, n * V)
        inner = at(h_new, n * V)
        drops = at(inner, n * V)
        seen = at(drops, 3 * n * V if per_gate else 0)
        zeros = at(seen, n)
        active, inputs = private, at(private, n)
        gate_states = at(inputs, 3 * n * a.F)
        hoisting = not per_gate and _hoists(a, n)
        projected = at(zeros, vector_lanes(a.x))
        x_gate, h_gate = (n * a.F, n * V) if per_gate else (0, 0)
        x, x_row = inputs, a.F
        if start == 0:
            clear(shared, shared_size(n, V, vector_lanes(a.x), per_gate))
            _begin(a, b, n, h, seen, drops, h_gate)
        elif start % 2 == 1:
            h, h_new = h_new, h
        t = start
        n = _still_going(a, own, b, n, t, h, seen)
        while n > 0:
            hs = h
            if general:
                if a.masked or per_gate:
                    note_active(a, b, n, t, active)
                if per_gate:
                    hs = gate_states
                    take_inputs_per_gate(a, b, n, t, inputs, x_gate, active)
                    take_states_per_gate(n, V, h, drops, hs, h_gate)
                elif a.masked:
                    take_inputs(a, b, n, t, inputs, active)
            if not (a.masked or per_gate):
                x, x_row = at(a.x, b * a.x_row + t * a.x_step), a.x_row
            F, starts = a.F, a.bias
            if hoisting:
                ahead = t % _HOISTED_STEPS
                if ahead == 0:
                    first, stop = share_of(own, V // vector_lanes(a.x), 1)
                    count = min(_HOISTED_STEPS, a.T - t)
                    project(a, b, t, count, first, stop, scratch, projected)
                    meet(words, own)
                F, starts = 0, at(projected, ahead * 4 * V)
            step(
                a, act, rec, words, own, b, n, t, x, x_row, x_gate, F, starts, hs,
                h_gate, drops, scratch, inner, h, h_new, active, seen, zeros,
            )  # fmt: skip
            h, h_new = h_new, h
            if general:
                _mark_seen(a, n, active, seen)
            if turn(words, own, t):
                t += 1
                n = _still_going(a, own, b, n, t, h, seen)
            else:
                n = 0

    @variant_routine(reset_after, per_gate, general)
    def rows(words, helper, data):
        widest_vectors()
        rows, act, rec, x = data[0], data[1], data[2], data[3]
        given = data[-1]
        a = record(arrays(data))
        B = x.shape[0]
        width = vector_lanes(a.x)
        V = padded_units(a)
        n = min(rows, B)
        tiles = 1 if reset_after else V // width * tiles_of(n, most_rows(a.x))
        scratch_size = SECTIONS * tile_size(a.x) * tiles
        private_size = 0
        if per_gate:
            private_size = n * (1 + 3 * a.F + 3 * V)
        elif a.masked:
            private_size = n * (1 + a.F)
        needed = OWN_ALIGNED + scratch_size + private_size
        needed += shared_size(n, V, width, per_gate)
        if not per_gate and _hoists(a, n):
            needed += _HOISTED_STEPS * 4 * V
        use_given = not helper and given.size >= needed
        work = given if use_given else np.empty(needed, x.dtype)
        begin = aligned(pointer(work))
        own = words_at(address_of(begin))
        scratch = at(begin, OWN)
        clear(scratch, scratch_size)
        private = at(scratch, scratch_size)
        shared = at(private, private_size)
        together = words[TOGETHER] != 0
        if together and not helper:
            words[SHARED] = address_of(shared)
        start = enter(words, helper, own)
        if together and helper:
            shared = numbers_at(shared, words[SHARED])
        b = 0 if together else next_item(words, -1) * rows
        while start >= 0 and b < B:
            n = min(rows, B - b)
            block(a, act, rec, words, own, scratch, private, shared, b, n, start)
            b = B if together else next_item(words, b // rows) * rows
        leave(words, helper, own)
        hold(work)

    return rows


# Made for the variants by reset_after and, in general, dropout per gate.
_FORWARD = {
    key: _rows_of(*key, arrays) for key in itertools.product((True, False), repeat=2)
}


_INFERENCE = {(after,): _rows_of(after, False, bare_arrays) for after in (True, False)}


_run_forward, _run_inference = sharing(_FORWARD), sharing(_INFERENCE)


def forward_kernel(
    variant, act, rec, rows, x, h0, mask, order, ends, packed, x_drop, h_drop,
    zero_output, first_is_state, y, last, state, saved, states, words,
):  # fmt: skip
    """Run all rows in blocks of `rows`."""
    data = (
        rows, act, rec, x, h0, mask, order, ends, packed, x_drop, h_drop,
        zero_output, first_is_state, y, last, state, saved, states, packed[:0],
    )  # fmt: skip
    _run_forward(variant, pointer(words), data)


def inference_kernel(
    variant, act, rec, rows, x, h0, packed, y, last, state, work, words
):
    """Run all rows; from zeros where h0 is empty."""
    data = rows, act, rec, x, h0, packed, y, last, state, work
    _run_inference(variant, pointer(words), data)


def _signature(variant, real, act, rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        variant, act, rec, types.intp, array(3, "A"), array(2), mask, WORD_ARRAY,
        WORD_ARRAY, array(1), array(3), array(3), flag, flag, array(3, "A"),
        array(2), array(2), array(4), array(3), WORD_ARRAY,
    )  # fmt: skip


def _inference_signature(variant, real, act, rec):
    def array(n):
        return types.Array(real, n, "C")

    return (
        variant, act, rec, types.intp, array(3), array(2), array(1), array(3),
        array(2), array(2), array(1), WORD_ARRAY,
    )  # fmt: skip


FORWARD = Kernel(forward_kernel, _signature)


# Of its own, because a call takes 0.9 instead of 1.3 µs: fewer arguments, and what they
# switch is gone from the code.
INFERENCE = Kernel(inference_kernel, _inference_signature)


# Below this many products of a number and three weights a second thread costs more than
# it saves.
_PARALLEL_FROM = 200_000


# Wide layers take more rows: all their weights are read for each block.
_BLOCK_ROWS, _WIDE_BLOCK_ROWS, _WIDE = 32, 64, 128


# Up to so many inputs and units, and from so many bytes of gates on, the backward pass
# computes the gates again instead of reading them from memory. Cascade Lake, 20 GB/s
# for two cores, training: 8192x50x4x16 86 -> 64 ms, 1024x100x4x32 45 -> 35 ms; but
# 1024x50x16x64 only 51.4 -> 50.6 ms, and 64x100x4x32, whose gates stay in the cache,
# 2.29 -> 2.44 ms.
_AGAIN_UP_TO, _AGAIN_FROM_BYTES = 64, 2**23


def saved_shapes(call: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of what a training call saves: gates, and states."""
    lean = call.mask.size == 0 and not call.per_gate
    may_repeat = lean and call.config.reset_after
    return _saved_shapes(*call.x.shape, call.h0.shape[1], call.x.dtype, may_repeat)


@functools.lru_cache
def _saved_shapes(
    B: int, T: int, F: int, U: int, dtype: np.dtype, may_repeat: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    V = padded(U, lanes(REAL[dtype]))
    again = (
        may_repeat
        and B * T * 4 * V * dtype.itemsize >= _AGAIN_FROM_BYTES
        and B >= 8
        and F + U <= _AGAIN_UP_TO
    )
    return (0, 0, 0, 0) if again else (B, T, 4, V), (B, T, V)


def block_rows(B: int, U: int, threads: int) -> int:
    """Give each thread one block, of whole tiles, small enough for its cache."""
    rows = -(-B // threads)
    if rows >= 8:
        rows = padded(rows, 8)
    return max(1, min(rows, _BLOCK_ROWS if U < _WIDE else _WIDE_BLOCK_ROWS))


class Plan(NamedTuple):
    """How many threads run a call, and how they divide it."""

    threads: int
    rows: int
    together: bool


# Fewer rows than these work together where the products of a step are as many: one row
# where that takes longer than meeting (96 units: 118 µs for 100 steps, 150 alone; 64
# units: 77 against 69), some where reading the weights is most of the work (4 rows of
# 256 units: 0.52 ms for 50 steps against 0.71 apart and 0.90 alone).
_TOGETHER = ((2, 8_000), (8, 32_000))


@functools.lru_cache
def plan(B: int, T: int, F: int, U: int, most: int) -> Plan:
    """Plan a forward pass on at most `most` threads."""
    # Inputs that are multiplied ahead take about a quarter of the time.
    ahead = B == 1 and F >= _HOISTED_FROM
    products = U * (U + (F // 4 if ahead else F))
    if most > 1 and B * T * products >= _PARALLEL_FROM:
        if T > 1 and any(b > B and products >= least for b, least in _TOGETHER):
            return Plan(most, B, True)
        if B > 1:
            rows = block_rows(B, U, most)
            return Plan(min(most, -(-B // rows)), rows, False)
    return Plan(1, block_rows(B, U, 1), False)


def forward(call: Call, out: Outputs, most: int) -> None:
    """Run the forward kernel on at most `most` threads."""
    threads, rows, together = plan(*call.x.shape, call.h0.shape[1], most)
    entry, first = bound(FORWARD, call.config, call.per_gate, slopes=False)
    packed = call.weights.packed(out.states.size > 0, threads)
    arguments = (
        *first, rows, call.x, call.h0, call.mask, *rows_by_end(call.mask),
        packed, call.x_drop, call.h_drop, *call.switches, *out,
    )  # fmt: skip
    run(entry, arguments, threads, together)


def prepare(
    activation: Any,
    recurrent_activation: Any,
    reset_after: bool,
    real: types.Float,
    packed: np.ndarray,
    U: int,
    threads: Callable[[], int],
) -> Callable[..., None]:
    """Bind everything but the sequences: ``run(x, h0, y, last, state, work)``.

    h0 and work (`work_size` numbers, or what is too small) may have no elements.
    """
    act, rec = activation.forward_argument, recurrent_activation.forward_argument
    kinds = real, activation.forward_type, recurrent_activation.forward_type
    kind = variant(reset_after)
    entry = INFERENCE.entry(kind.type, *kinds)

    def prepared(x: Any, h0: Any, y: Any, last: Any, state: Any, work: Any) -> None:
        B, T, F = x.shape
        if B * T * U * (F + U) < _PARALLEL_FROM:
            entry(
                kind, act, rec, _BLOCK_ROWS, x, h0, packed, y, last, state, work,
                NOBODY,
            )  # fmt: skip
            return
        count, rows, together = plan(B, T, F, U, threads())
        arguments = kind, act, rec, rows, x, h0, packed, y, last, state, work
        run(entry, arguments, count, together)

    return prepared


def work_size(real: types.Float, B: int, units: int) -> int:
    """Count the numbers that a call with few rows needs to work with, at the most."""
    panels = padded(units, lanes(real)) // lanes(real)
    tiles = panels * (B + 3)
    V = panels * lanes(real)
    scratch = SECTIONS * tile_size_of(real) * tiles
    return OWN_ALIGNED + scratch + 4 * B * V + B + lanes(real)

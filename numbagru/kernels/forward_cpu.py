"""Forward on register tiles, for every scalar activation and mask.

In parallel: blocks of rows, each with its own loop over time, no synchronisation.
In registers: a tile of rows x panels x gates over the whole chain of products.
In L1: the scratch in which a tile's sums become gates and the next state.
For backward: four numbers per unit and step, and the states (kernels/__init__.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types

from numbagru._jit import Kernel, routine, section
from numbagru.gates import (
    BLOCK,
    HH,
    HH_SUM,
    R_SUM,
    RECURRENT,
    SECTIONS,
    Z_SUM,
    H,
    R,
    Z,
    gates_reset_before,
    kept_section,
    next_state,
    step_reset_after,
)
from numbagru.kernels.atomics import address_of, numbers_at, words_at
from numbagru.kernels.call import Call, Outputs, rows_by_end
from numbagru.kernels.panels import Panels
from numbagru.kernels.simd import (
    ALONE,
    at,
    copy_vector,
    hold,
    lanes,
    most_rows,
    padded,
    pointer,
    tile_size,
    tile_size_of,
    vector_lanes,
)
from numbagru.kernels.team import (
    OWN,
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
from numbagru.kernels.tiles import (
    add_product,
    step_sums,
    tile_rows,
)
from numbagru.kernels.variant import choosing, variant


class Arrays(NamedTuple):
    """The arrays of kernels/__init__.py as addresses; strides in numbers, not bytes.

    Arrays would be reference counted at each use: atomic instructions that took 40 % of
    a step of one row with 16 units. Numba could also free one whose address alone is
    still in use, hence `hold`.
    """

    T: Any
    F: Any
    U: Any
    x: Any
    x_row: Any
    x_step: Any
    h0: Any
    has_h0: Any
    mask: Any
    mask_row: Any
    mask_step: Any
    masked: Any
    order: Any  # the rows as blocks take them, those that end last first
    ends: Any  # how many steps each of these has up to its last active one
    panels: Any  # weights and bias packed as in kernels/panels.py
    bias: Any
    x_drop: Any  # multipliers per gate; B apart from one gate to the next
    drops_x: Any
    h_drop: Any
    drops_h: Any
    B: Any
    zero_output: Any
    first_is_state: Any
    y: Any
    y_row: Any
    y_step: Any
    wanted: Any
    last: Any
    state: Any
    saved: Any
    states: Any
    saving: Any


@section
def _arrays(data):
    """Take apart what a forward kernel is given.

    A function must not be the first: Numba would try to make values of one type of
    such a tuple.
    """
    (
        _, _, _, x, h0, mask, order, ends, panels, bias, x_drop, h_drop, zero_output,
        first_is_state, y, last, state, saved, states, _,
    ) = data  # fmt: skip
    size = x.itemsize
    return Arrays(
        x.shape[1], x.shape[2], last.shape[1],
        pointer(x), x.strides[0] // size, x.strides[1] // size,
        pointer(h0), h0.size > 0,
        pointer(mask), mask.strides[0], mask.strides[1], mask.size > 0,
        pointer(order), pointer(ends), pointer(panels), pointer(bias),
        pointer(x_drop), x_drop.size > 0, pointer(h_drop), h_drop.size > 0, x.shape[0],
        zero_output, first_is_state,
        pointer(y), y.strides[0] // size, y.strides[1] // size, y.size > 0,
        pointer(last), pointer(state), pointer(saved), pointer(states), saved.size > 0,
    )  # fmt: skip


@section
def _bare_arrays(data):
    """No mask and nothing saved: constants, so that their code falls away."""
    _, _, _, x, h0, panels, bias, y, last, state, _ = data
    size, none = x.itemsize, pointer(x)
    return Arrays(
        x.shape[1], x.shape[2], last.shape[1],
        none, x.strides[0] // size, x.strides[1] // size,
        pointer(h0), h0.size > 0, none, 0, 0, False, words_at(0), words_at(0),
        pointer(panels), pointer(bias),
        none, False, none, False, 0, False, False,
        pointer(y), y.strides[0] // size, y.strides[1] // size, y.size > 0,
        pointer(last), pointer(state), none, none, False,
    )  # fmt: skip


@routine
def whole_blocks(n):
    """Round up to the blocks of gates.py."""
    return (n + BLOCK - 1) // BLOCK * BLOCK


@routine
def tiles_of(n, most):
    """How many tiles `tile_rows` makes of n rows, at the most."""
    return n // most + 3


@routine
def shared_size(n, V, width, per_gate):
    """Count what a block of n rows keeps.

    h, h_new, inner, multipliers of h per gate, seen and a vector of zeros.
    """
    return (6 if per_gate else 3) * n * V + n + width


@routine
def _padded_units(a):
    """Units padded to whole vectors."""
    width = vector_lanes(a.x)
    return (a.U + width - 1) // width * width


@routine
def _row(a, slot):
    """Which row of the arrays a block has in a place."""
    return a.order[slot] if a.masked else slot


@routine
def _note_active(a, b, n, t, active):
    """Note whose step counts."""
    for i in range(n):
        row = _row(a, b + i)
        active[i] = a.mask[row * a.mask_row + t * a.mask_step] if a.masked else 1


@routine
def _take_inputs(a, b, n, t, inputs, active):
    """Bring the inputs of a masked step together."""
    for i in range(n):
        if active[i] != 0:
            x = at(a.x, _row(a, b + i) * a.x_row + t * a.x_step)
            for f in range(a.F):
                inputs[i * a.F + f] = x[f]


@routine
def _take_inputs_per_gate(a, b, n, t, inputs, gate_stride, active):
    """Bring the inputs of a step together as each gate sees them."""
    for g in range(3):
        for i in range(n):
            if active[i] != 0:
                row = _row(a, b + i)
                x = at(a.x, row * a.x_row + t * a.x_step)
                target = at(inputs, g * gate_stride + i * a.F)
                drop = at(a.x_drop, (g * a.B + row) * a.F)
                for f in range(a.F):
                    target[f] = x[f] * drop[f] if a.drops_x else x[f]


@routine
def _take_states_per_gate(n, V, h, drops, states, gate_stride):
    """Bring the states together as each gate sees them."""
    for g in range(3):
        for j in range(n * V):
            states[g * gate_stride + j] = h[j] * drops[g * gate_stride + j]


@routine
def _any_active(a, active, m):
    result = not a.masked
    if a.masked:
        for i in range(m):
            result |= active[i] != 0
    return result


@routine
def _write(target, source, width, count):
    """Copy a vector into a row of U numbers that may end inside of it."""
    if count >= width:
        copy_vector(target, source)
    else:
        for j in range(count):
            target[j] = source[j]


@routine
def _load_states(s, size, m, panels, h, V, width):
    """Bring the old states of a tile into the scratch."""
    for q in range(panels):
        for r in range(m):
            section = H * size + (q * m + r) * width
            copy_vector(at(s, section), at(h, r * V + q * width))


@routine
def _finish(
    a, act, rec, s, size, m, panels, first_panel, b, t, h, h_new, active, seen, zeros
):
    """Write what a tile computed: next states, outputs, what is saved.

    h, h_new, active and seen point at the tile's rows; seen is 0 before the first
    output.
    """
    width = vector_lanes(a.x)
    T, U = a.T, a.U
    V = (U + width - 1) // width * width
    z, r = kept_section(rec, Z, Z_SUM), kept_section(rec, R, R_SUM)
    hh = kept_section(act, HH, HH_SUM)
    for q in range(panels):
        first = (first_panel + q) * width
        count = min(width, U - first)
        for i in range(m):
            lane = (q * m + i) * width
            old = at(h, i * V + q * width)
            counts = not a.masked or active[i] != 0
            value = at(s, H * size + lane) if counts else old
            copy_vector(at(h_new, i * V + q * width), value)
            if a.saving:
                spot = ((b + i) * T + t) * V + first
                copy_vector(at(a.states, spot), value)
            if not counts and (a.zero_output or seen[i] == 0):
                value = zeros
            row = _row(a, b + i)
            if a.wanted:
                spot = row * a.y_row + t * a.y_step + first
                _write(at(a.y, spot), value, width, count)
            if t == T - 1:
                _write(at(a.last, row * U + first), value, width, count)
            if a.saving and counts:
                saved = at(a.saved, ((b + i) * T + t) * 4 * V + first)
                copy_vector(at(saved, Z * V), at(s, z * size + lane))
                copy_vector(at(saved, R * V), at(s, r * size + lane))
                copy_vector(at(saved, HH * V), at(s, hh * size + lane))
                copy_vector(at(saved, RECURRENT * V), at(s, RECURRENT * size + lane))


@routine
def _drop_reset_states(s, size, m, width, drops, V):
    """Multiply r * h of a tile."""
    for r in range(m):
        for j in range(width):
            s[RECURRENT * size + r * width + j] *= drops[r * V + j]


def _step_reset_after(per_gate):
    """Make a step of a block of n rows: tile by tile, panel by panel."""
    sums = step_sums(candidate=True, per_gate=per_gate)

    @section
    def step(
        a, act, rec, words, own, b, n, t, x, x_row, x_gate, hs, h_gate, drops, scratch,
        inner, h, h_new, active, seen, zeros,
    ):  # fmt: skip
        width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
        F, U = a.F, a.U
        P = (U + width - 1) // width
        V = P * width
        w_panel = (F + U) * 3 * width
        s = scratch
        p, stop = share_of(own, P, ALONE if n == 1 else 1)
        while p < stop:
            panels = ALONE if n == 1 and p + ALONE <= stop else 1
            w = at(a.panels, p * w_panel)
            bias = at(a.bias, p * 4 * width)
            i = 0
            while i < n:
                m = tile_rows(n - i, most)
                count = whole_blocks(m * panels * width)
                rows, rows_new = at(h, i * V), at(h_new, i * V)
                if _any_active(a, at(active, i), m):
                    _load_states(s, size, m, panels, at(rows, p * width), V, width)
                    sums(
                        m, panels, at(x, i * x_row), x_row, x_gate, F, at(hs, i * V), V,
                        h_gate, U, w, w_panel, bias, s,
                    )  # fmt: skip
                    step_reset_after(act, rec, s, size, count, U)
                _finish(
                    a, act, rec, s, size, m, panels, p, b + i, t, at(rows, p * width),
                    at(rows_new, p * width), at(active, i), at(seen, i), zeros,
                )  # fmt: skip
                i += m
            p += panels

    return step


def _step_reset_before(per_gate):
    """Make a step of a block of n rows: all gates, then the candidates of r * h."""
    sums = step_sums(candidate=False, per_gate=per_gate)

    @section
    def step(
        a, act, rec, words, own, b, n, t, x, x_row, x_gate, hs, h_gate, drops, scratch,
        inner, h, h_new, active, seen, zeros,
    ):  # fmt: skip
        width, most, size = vector_lanes(a.x), most_rows(a.x), tile_size(a.x)
        F, U = a.F, a.U
        P = (U + width - 1) // width
        V = P * width
        w_panel = (F + U) * 3 * width
        panel_scratch = tiles_of(n, most) * size * SECTIONS
        first_panel, stop = share_of(own, P, 1)
        for p in range(first_panel, stop):
            w = at(a.panels, p * w_panel)
            bias = at(a.bias, p * 4 * width)
            start = p * panel_scratch
            i = 0
            while i < n:
                m = tile_rows(n - i, most)
                count = whole_blocks(m * width)
                if _any_active(a, at(active, i), m):
                    s = at(scratch, start)
                    rows = at(h, i * V)
                    _load_states(s, size, m, 1, at(rows, p * width), V, width)
                    sums(
                        m, 1, at(x, i * x_row), x_row, x_gate, F, at(hs, i * V), V,
                        h_gate, U, w, w_panel, bias, s,
                    )  # fmt: skip
                    gates_reset_before(rec, s, size, count, U)
                    if per_gate:
                        drop = at(drops, 2 * h_gate + i * V + p * width)
                        _drop_reset_states(s, size, m, width, drop, V)
                    for r in range(m):
                        copy_vector(
                            at(inner, (i + r) * V + p * width),
                            at(s, RECURRENT * size + r * width),
                        )
                start += size * SECTIONS
                i += m
        meet(words, own)
        p = first_panel
        while p < stop:
            panels = 3 if p + 3 <= stop else 1
            w = at(a.panels, p * w_panel + (3 * F + 2) * width)
            first = p * panel_scratch
            i = 0
            while i < n:
                m = tile_rows(n - i, most)
                count = whole_blocks(m * width)
                rows, rows_new = at(h, i * V), at(h_new, i * V)
                start = first
                computed = _any_active(a, at(active, i), m)
                if computed:
                    hh = at(scratch, start + HH * size)
                    add_product(
                        m, panels, at(inner, i * V), V, 1, w, 3 * width, w_panel, U, hh,
                        width, panel_scratch,
                    )  # fmt: skip
                for q in range(p, p + panels):
                    tile = at(scratch, start)
                    if computed:
                        next_state(act, tile, size, count, U)
                    _finish(
                        a, act, rec, tile, size, m, 1, q, b + i, t,
                        at(rows, q * width), at(rows_new, q * width), at(active, i),
                        at(seen, i), zeros,
                    )  # fmt: skip
                    start += panel_scratch
                first += size * SECTIONS
                i += m
            p += panels

    return step


@routine
def _begin(a, b, n, h, seen, drops, gate_stride):
    """Fetch the initial states of a block, and their multipliers."""
    V = _padded_units(a)
    for i in range(n):
        seen[i] = 1 if a.first_is_state else 0
        if a.has_h0:
            h0 = at(a.h0, _row(a, b + i) * a.U)
            for u in range(a.U):
                h[i * V + u] = h0[u]
        if gate_stride > 0:
            for g in range(3):
                given = at(a.h_drop, (g * a.B + _row(a, b + i)) * a.U)
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
def _end_row(a, slot, t, h, seen):
    """Hand over a final state; outputs of the steps that are left repeat the last."""
    row, U = _row(a, slot), a.U
    for u in range(U):
        a.state[row * U + u] = h[u]
        if a.T == 0:
            a.last[row * U + u] = h[u]
    if t < a.T:
        blank = a.zero_output or seen[0] == 0
        for u in range(U):
            a.last[row * U + u] = 0 if blank else h[u]
        if a.wanted:
            for step in range(t, a.T):
                y = at(a.y, row * a.y_row + step * a.y_step)
                for u in range(U):
                    y[u] = 0 if blank else h[u]


@routine
def _still_going(a, own, b, n, t, h, seen):
    """End the rows without a step at t or after it; count the others."""
    V = _padded_units(a)
    while n > 0 and (t == a.T or (a.masked and a.ends[b + n - 1] <= t)):
        n -= 1
        if is_first(own):
            _end_row(a, b + n, t, at(h, n * V), at(seen, n))
    return n


def _rows_of(reset_after, per_gate, arrays):
    """Make the loop over blocks of rows, and in each over time."""
    step = (_step_reset_after if reset_after else _step_reset_before)(per_gate)

    @section
    def block(a, act, rec, words, own, scratch, private, shared, b, n, start):
        V = _padded_units(a)
        h = shared
        h_new = at(h, n * V)
        inner = at(h_new, n * V)
        drops = at(inner, n * V)
        seen = at(drops, 3 * n * V if per_gate else 0)
        zeros = at(seen, n)
        active, inputs = private, at(private, n)
        hs = at(inputs, 3 * n * a.F)
        x_gate, h_gate = (n * a.F, n * V) if per_gate else (0, 0)
        x, x_row = inputs, a.F
        if start == 0:
            for j in range(shared_size(n, V, vector_lanes(a.x), per_gate)):
                shared[j] = 0
            _begin(a, b, n, h, seen, drops, h_gate)
        elif start % 2 == 1:
            h, h_new = h_new, h
        t = start
        n = _still_going(a, own, b, n, t, h, seen)
        while n > 0:
            if a.masked or per_gate:
                _note_active(a, b, n, t, active)
            if per_gate:
                _take_inputs_per_gate(a, b, n, t, inputs, x_gate, active)
                _take_states_per_gate(n, V, h, drops, hs, h_gate)
            else:
                hs = h
                if a.masked:
                    _take_inputs(a, b, n, t, inputs, active)
                else:
                    x, x_row = at(a.x, b * a.x_row + t * a.x_step), a.x_row
            step(
                a, act, rec, words, own, b, n, t, x, x_row, x_gate, hs, h_gate, drops,
                scratch, inner, h, h_new, active, seen, zeros,
            )  # fmt: skip
            h, h_new = h_new, h
            _mark_seen(a, n, active, seen)
            if turn(words, own, t):
                t += 1
                n = _still_going(a, own, b, n, t, h, seen)
            else:
                n = 0

    @routine
    def rows(words, helper, data):
        rows, act, rec, x = data[0], data[1], data[2], data[3]
        given = data[-1]
        a = arrays(data)
        B = x.shape[0]
        width = vector_lanes(a.x)
        V = _padded_units(a)
        n = min(rows, B)
        tiles = 1 if reset_after else V // width * tiles_of(n, most_rows(a.x))
        scratch_size = SECTIONS * tile_size(a.x) * tiles
        private_size = 0
        if per_gate:
            private_size = n * (1 + 3 * a.F + 3 * V)
        elif a.masked:
            private_size = n * (1 + a.F)
        needed = OWN + scratch_size + private_size
        needed += shared_size(n, V, width, per_gate)
        use_given = not helper and given.size >= needed
        work = given if use_given else np.empty(needed, x.dtype)
        own = words_at(address_of(pointer(work)))
        scratch = at(pointer(work), OWN)
        for j in range(scratch_size):
            scratch[j] = 0
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
        leave(words, own)
        hold(work)

    return sharing(rows)


# Made for the variants by reset_after and, in general, dropout per gate.
_FORWARD = {
    key: _rows_of(*key, _arrays) for key in itertools.product((True, False), repeat=2)
}
_INFERENCE = {(after,): _rows_of(after, False, _bare_arrays) for after in (True, False)}
_run_forward, _run_inference = choosing(_FORWARD), choosing(_INFERENCE)


def forward_kernel(
    variant, act, rec, rows, x, h0, mask, order, ends, panels, bias, x_drop, h_drop,
    zero_output, first_is_state, y, last, state, saved, states, words,
):  # fmt: skip
    """Run all rows in blocks of `rows`."""
    data = (
        rows, act, rec, x, h0, mask, order, ends, panels, bias, x_drop, h_drop,
        zero_output, first_is_state, y, last, state, saved, states, bias[:0],
    )  # fmt: skip
    _run_forward(variant, pointer(words), data)


def inference_kernel(
    variant, act, rec, rows, x, h0, panels, bias, y, last, state, work, words
):
    """Run all rows; from zeros where h0 is empty."""
    data = rows, act, rec, x, h0, panels, bias, y, last, state, work
    _run_inference(variant, pointer(words), data)


def _signature(variant, real, act, rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        variant, act, rec, types.intp, array(3, "A"), array(2), mask, WORD_ARRAY,
        WORD_ARRAY, array(1), array(1), array(3), array(3), flag, flag, array(3, "A"),
        array(2), array(2), array(4), array(3), WORD_ARRAY,
    )  # fmt: skip


def _inference_signature(variant, real, act, rec):
    def array(n):
        return types.Array(real, n, "C")

    return (
        variant, act, rec, types.intp, array(3), array(2), array(1), array(1), array(3),
        array(2), array(2), array(1), WORD_ARRAY,
    )  # fmt: skip


FORWARD = Kernel(forward_kernel, _signature)
# Of its own, because a call takes 0.9 instead of 1.3 µs: fewer arguments, and what they
# switch is gone from the code.
INFERENCE = Kernel(inference_kernel, _inference_signature)


# Below this many multiply-adds a second thread costs more than it saves.
_PARALLEL_FROM = 200_000
_MOST_BLOCK_ROWS = 64


def saved_width(real: types.Float, units: int) -> int:
    """Length V of the rows saved for backward."""
    return padded(units, lanes(real))


def block_rows(B: int, threads: int) -> int:
    """Give each thread one block, of whole tiles, small enough for its cache."""
    rows = -(-B // threads)
    if rows >= 8:
        rows = padded(rows, 8)
    return max(1, min(rows, _MOST_BLOCK_ROWS))


class Plan(NamedTuple):
    """How many threads run a call, and what each of them takes."""

    threads: int
    rows: int
    together: bool


def plan(B: int, T: int, F: int, U: int, most: int) -> Plan:
    """Plan a forward pass on at most `most` threads."""
    work = B * T * U * (F + U)
    if most == 1 or work < _PARALLEL_FROM:
        return Plan(1, max(1, min(B, _MOST_BLOCK_ROWS)), False)
    if B <= TOGETHER_ROWS and T > 1:
        return Plan(most, B, True)
    rows = block_rows(B, most)
    return Plan(min(most, -(-B // rows)), rows, False)


TOGETHER_ROWS = 8


def forward(call: Call, out: Outputs, most: int) -> None:
    """Run the forward kernel on at most `most` threads."""
    values, kinds = call.forward_activations
    threads, rows, together = plan(*call.x.shape, call.h0.shape[1], most)
    kind = variant(call.reset_after, call.per_gate)
    entry = FORWARD.entry(kind.type, call.real, *kinds)
    arguments = (
        kind, *values, rows, call.x, call.h0, call.mask, *rows_by_end(call.mask),
        *call.weights.panels, call.x_drop, call.h_drop, call.zero_output,
        call.first_is_state, *out,
    )  # fmt: skip
    run(entry, arguments, threads, together)


def prepare(
    activation: Any,
    recurrent_activation: Any,
    reset_after: bool,
    real: types.Float,
    panels: Panels,
    threads: Callable[[], int],
) -> Callable[..., None]:
    """Bind everything but the sequences: ``run(x, h0, y, last, state, work)``.

    h0 and work (`work_size` numbers, or what is too small) may have no elements.
    """
    act, rec = activation.forward_argument, recurrent_activation.forward_argument
    kinds = real, activation.forward_type, recurrent_activation.forward_type
    kind = variant(reset_after)
    entry = INFERENCE.entry(kind.type, *kinds)
    weights, bias = panels
    U = bias.size // 4

    def prepared(x: Any, h0: Any, y: Any, last: Any, state: Any, work: Any) -> None:
        B, T, F = x.shape
        if B * T * U * (F + U) < _PARALLEL_FROM:
            entry(
                kind, act, rec, _MOST_BLOCK_ROWS, x, h0, weights, bias, y, last, state,
                work, NOBODY,
            )  # fmt: skip
            return
        count, rows, together = plan(B, T, F, U, threads())
        arguments = kind, act, rec, rows, x, h0, weights, bias, y, last, state, work
        run(entry, arguments, count, together)

    return prepared


def work_size(real: types.Float, B: int, units: int) -> int:
    """Count the numbers that a call with few rows needs to work with, at the most."""
    panels = padded(units, lanes(real)) // lanes(real)
    tiles = panels * (B + 3)
    V = panels * lanes(real)
    return OWN + SECTIONS * tile_size_of(real) * tiles + 4 * B * V + B + lanes(real)

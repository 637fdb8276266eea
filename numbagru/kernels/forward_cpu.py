"""The forward kernels on register tiles, and how a call is divided among threads.

forward_rows.py has their loops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from numbagru._jit import Kernel
from numbagru.gates import (
    SECTIONS,
)
from numbagru.kernels import one_step
from numbagru.kernels.call import REAL, Call, Outputs, bound
from numbagru.kernels.forward_inputs import HOISTED_FROM
from numbagru.kernels.forward_rows import forward_rows, inference_rows
from numbagru.kernels.simd import (
    LINE_BYTES,
    pointer,
    tile_size_of,
)
from numbagru.kernels.team import (
    OWN_ALIGNED,
    sharing,
)
from numbagru.kernels.threads import NOBODY, WORD_ARRAY, run
from numbagru.kernels.variant import variant
from numbagru.kernels.vector_ir import lanes, padded
from numbagru.kernels.ways import Plan, Ways

_run_forward, _run_inference = sharing(forward_rows), sharing(inference_rows)


def forward_kernel(
    variant, act, rec, rows, x, h0, packed, y, last, state, saved, states, mask, order,
    ends, x_drop, h_drop, zero_output, first_is_state, words,
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
    """Run all rows; from zeros where h0 is empty, last and state only if not empty."""
    data = rows, act, rec, x, h0, packed, y, last, state, work
    _run_inference(variant, pointer(words), data)


def _signature(variant, real, act, rec):
    def array(n, layout="C"):
        return types.Array(real, n, layout)

    flag, mask = types.boolean, types.Array(types.uint8, 2, "A")
    return (
        variant, act, rec, types.intp, array(3, "A"), array(2), array(1),
        array(3, "A"), array(2), array(2), array(4), array(3), mask, WORD_ARRAY,
        WORD_ARRAY, array(3), array(3), flag, flag, WORD_ARRAY,
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


# From so many bytes on, what is saved of a row has a cache line more: often a power of
# two apart, the rows of a tile would lie in the same sets of the first-level cache, and
# what is asked for is gone when its turn comes. Training 2048x50x16x64 took 58 ms, and
# takes 53, 1024x100x4x32 17.4 and 16.2, 8x5000x8x64 19.3 and 18.4, 64x100x64x256 37.0
# and 36.0 (Emerald Rapids).
_LONG_ROW = 4096


def _row(numbers: int, itemsize: int) -> int:
    """Count the numbers from one row of what is saved to the next."""
    long = numbers * itemsize >= _LONG_ROW
    return numbers + LINE_BYTES // itemsize if long else numbers


def saved_shapes(call: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of what a training call saves: gates, and states; each row in one piece.

    Computing gates again in the backward pass, which large calls of small layers once
    gained from, takes as long or longer since steps ask for their lines in time:
    1024x100x4x32 20.2 ms instead of 18.3, 8192x100x1x16 61 and 62 (Zen 4).
    """
    (B, T, _), U = call.x.shape, call.h0.shape[1]
    V = padded(U, lanes(REAL[call.x.dtype]))
    size = call.x.itemsize
    return (B, 1, 1, _row(T * 4 * V, size)), (B, 1, _row(T * V, size))


def block_rows(B: int, U: int, threads: int) -> int:
    """Give each thread one block, of whole tiles, small enough for its cache."""
    rows = -(-B // threads)
    if rows >= 8:
        rows = padded(rows, 8)
    return max(1, min(rows, _BLOCK_ROWS if U < _WIDE else _WIDE_BLOCK_ROWS))


# Fewer rows than these may work together where the products of a step are as many.
# 100 steps in µs, together and not (Zen 4): one row of 64 units 43 and 58, of 48 units
# 38 and 39, of 32 units three times as long as alone on some days; two rows of 96 units
# 103 and 139, of 64 units both 62, in float64 117 and 142; six of 96 units 248 and 294,
# four of 128 units 270 and 282; but eight of 256 units both 1680, and of 512, whose
# weights lie beyond the second-level cache, 3.3 ms and 4.0 in an older measurement.
_TOGETHER = ((3, 4_000), (8, 9_000), (9, 200_000))


@functools.lru_cache
def _ways(entry: Any, B: int, T: int, F: int, U: int, most: int) -> Ways:
    """Plan calls of a kernel's entry on at most `most` threads."""
    # Inputs that are multiplied ahead take about a quarter of the time.
    ahead = B == 1 and F >= HOISTED_FROM
    products = U * (U + (F // 4 if ahead else F))
    parallel = most > 1 and B * T * products >= _PARALLEL_FROM
    rows = block_rows(B, U, most if parallel else 1)
    apart = Plan(min(most, -(-B // rows)) if parallel else 1, rows, False)
    few = any(b > B and products >= least for b, least in _TOGETHER)
    if parallel and T > 1 and few:
        return Ways(Plan(most, B, True), apart)
    return Ways(apart)


def forward(call: Call, out: Outputs, most: int) -> None:
    """Run the forward kernel on at most `most` threads."""
    config, shape = call.config, call.x.shape
    training = out.states.size > 0
    if training and one_step.suits(call):
        one_step.prepare_forward(config, shape, most)(
            call.weights, call.x, call.h0, call.from_zeros, out
        )
        return
    # Products with states of zero are left out where their sum was packed, and where no
    # dropout multiplies states by what may not be finite.
    h0 = call.given_h0 if training and not call.per_gate else call.h0
    run_on = prepare(config, shape, call.per_gate, training, most)
    run_on(call.weights, call.x, h0, out, call.conditions)


@functools.lru_cache
def prepare(
    config: Any, shape: tuple[int, ...], per_gate: bool, training: bool, most: int
) -> Callable[..., None]:
    """Bind what x of a shape allows: ``run(weights, x, h0, out, conditions)``."""
    entry, first = bound(FORWARD, config, False, per_gate)
    ways = _ways(entry, *shape, config.units, most)
    packs_on = ways.plans[0].threads

    def prepared(weights: Any, x: Any, h0: Any, out: Any, conditions: Any) -> None:
        packed = weights.packed(training, packs_on)
        rest = x, h0, packed, *out, *conditions
        ways.run(
            lambda plan: run(
                entry, (*first, plan.rows, *rest), plan.threads, plan.together
            )
        )

    return prepared


def prepare_inference(
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
        rest = x, h0, packed, y, last, state, work
        _ways(entry, B, T, F, U, threads()).run(
            lambda plan: run(
                entry, (kind, act, rec, plan.rows, *rest), plan.threads, plan.together
            )
        )

    return prepared


def work_size(real: types.Float, B: int, units: int) -> int:
    """Count the numbers that a call with few rows needs to work with, at the most."""
    panels = padded(units, lanes(real)) // lanes(real)
    tiles = panels * (B + 3)
    V = panels * lanes(real)
    scratch = SECTIONS * tile_size_of(real) * tiles
    return OWN_ALIGNED + scratch + 4 * B * V + padded(B, lanes(real)) + lanes(real)

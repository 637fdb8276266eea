"""The backward pass on the device: the recurrence, then products with its gradients."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbagru.kernels.call import REAL, Call, Cotangents, Outputs, Results
from numbagru.kernels.cuda import (
    backward_grid,
    backward_rows,
    backward_tiles,
    elementwise,
    forward_grid,
    products,
)
from numbagru.kernels.cuda.gradients import sums_of_samples
from numbagru.kernels.cuda.launch import Launch, Products, Task, scalars_of, strides
from numbagru.kernels.cuda.limits import Split, copies

_rows = functools.cache(backward_rows.make)
_grid = functools.cache(backward_grid.make)
_tiled = functools.cache(backward_tiles.make)
_reset = functools.cache(backward_tiles.make_reset)


def backward(
    call: Call,
    given: Cotangents,
    out: Outputs,
    order: Any,
    rows_per_part: int,
    results: Results,
    division: int | Split | None,
    allocate: Any,
) -> list[Task]:
    """Return what to launch, one after the other.

    Parameters
    ----------
    call, given, out, results
        Of arrays on the device.
    order : array (B,) of int64
        Rows as `call.rows_by_end` sorts them; of size 0 without a mask.
    rows_per_part : int
        Rows whose weight gradients are one partial sum.
    division : int, limits.Split or None
        Rows of a block of the recurrence; or how its units are divided too; or None to
        launch step by step.
    allocate
        ``allocate(shape, dtype)`` makes an array on the device to work with.
    """
    (B, T, _), U = call.x.shape, call.config.units
    d_sums = allocate((B, T, 4, U), call.x.dtype)
    recur = _on_grid if isinstance(division, Split) else _by_rows
    if division is None:
        recur = _in_tiles
    tasks = [
        *recur(call, given, out, d_sums, results, division, allocate),
        *sums_of_samples(call, out, d_sums, order, rows_per_part, results, allocate),
    ]
    return [
        task for task in tasks if isinstance(task, Products) or np.prod(task.blocks) > 0
    ]


def _given_back(given: Cotangents) -> tuple[bool, ...]:
    return given.y.size > 0, given.last.size > 0, given.state.size > 0


def _by_rows(
    call: Call, given: Cotangents, out: Outputs, d_sums: Any, results: Results,
    rows: int, allocate: Any,
) -> list[Launch]:  # fmt: skip
    """Return the recurrence of blocks that have all units of some rows."""
    config, dtype = call.config, call.x.dtype
    (B, T, _), U, real = call.x.shape, config.units, REAL[dtype]
    blocks, work = -(-B // rows), allocate((0,), dtype)
    # The kernel reads what is not given too, and drops it.
    has_d_y = given.y.size > 0
    d_y = (given.y, *strides(given.y)) if has_d_y else (out.states, 0, 0)
    if not backward_rows.on_chip(real, U, rows):
        work = allocate((blocks * backward_rows.work_size(real, U, rows),), dtype)
    kernel = _rows(
        real,
        U,
        rows,
        *scalars_of(config),
        config.reset_after,
        call.mask.size > 0,
        call.h_drop.size > 0,
    )
    return [
        Launch(
            kernel,
            backward_rows.signature(real),
            (blocks,),
            backward_rows.threads_of(U),
            (
                call.weights.recurrent_kernel, call.h0, call.mask, *call.mask.strides,
                call.h_drop, *d_y, given.last, given.state, out.saved, out.states,
                d_sums, results.h0, work, B, T, *_given_back(given), *call.switches,
            ),
        )
    ]  # fmt: skip


def _on_grid(
    call: Call, given: Cotangents, out: Outputs, d_sums: Any, results: Results,
    split: Split, allocate: Any,
) -> list[Launch]:  # fmt: skip
    """Return the recurrence of blocks that have some units, and meet in every step."""
    config = call.config
    (B, T, _), U, real = call.x.shape, config.units, REAL[call.x.dtype]
    blocks = split.blocks(U, B)
    arrivals = allocate((blocks[1],), np.float32)
    kernel = _grid(
        real,
        U,
        split,
        *scalars_of(config),
        config.reset_after,
        call.mask.size > 0,
        call.h_drop.size > 0,
    )
    return [
        *elementwise.fill(arrivals),
        Launch(
            kernel,
            backward_grid.signature(real),
            blocks,
            forward_grid.THREADS,
            (
                call.weights.recurrent_kernel, call.h0, call.mask, *call.mask.strides,
                call.h_drop, given.y, *strides(given.y), given.last, given.state,
                out.saved, out.states, d_sums, results.h0, arrivals.view(np.int32),
                blocks[0], B, T, *_given_back(given), *call.switches,
            ),
            split.bytes(real.bitwidth, U, copies(config.reset_after, True)),
        ),
    ]  # fmt: skip


def _in_tiles(
    call: Call, given: Cotangents, out: Outputs, d_sums: Any, results: Results,
    division: None, allocate: Any,
) -> list[Launch]:  # fmt: skip
    """Return the launches of each step, and one before them."""
    config, dtype, drops = call.config, call.x.dtype, call.h_drop.size > 0
    (B, T, _), U, real = call.x.shape, config.units, REAL[dtype]
    before, masked = not config.reset_after, call.mask.size > 0
    both = scalars_of(config)
    step = _tiled(real, *both, not before, masked, drops)
    reset = _reset(real, *both, masked, drops) if before else None
    d_states, d_zs, carried, going = (
        allocate((B, U if wanted else 0), dtype)
        for wanted in (True, before, masked, masked)
    )
    blocks = -(-B // backward_tiles.ROWS), -(-U // backward_tiles.UNITS)
    mask = call.mask, *call.mask.strides
    recurrent, launches = call.weights.recurrent_kernel, []
    for t in range(T, -1, -1):
        arguments = (
            recurrent, call.h0, *mask, call.h_drop, given.y, *strides(given.y),
            given.last, given.state, out.saved, out.states, d_sums, d_states, d_zs,
            carried, going, results.h0, t, B, T, U, *_given_back(given), *call.switches,
        )  # fmt: skip
        signature, threads = backward_tiles.signature(real), products.THREADS
        launches.append(Launch(step, signature, blocks, threads, arguments))
        if before and t > 0:
            arguments = (
                recurrent, call.h0, *mask, call.h_drop, out.saved, out.states, d_sums,
                d_states, d_zs, t - 1, B, T, U,
            )  # fmt: skip
            signature = backward_tiles.reset_signature(real)
            launches.append(Launch(reset, signature, blocks, threads, arguments))
    return launches

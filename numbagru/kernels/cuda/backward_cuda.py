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
    weight_gradients,
)
from numbagru.kernels.cuda.launch import Launch, scalars_of, strides
from numbagru.kernels.cuda.limits import Split, copies
from numbagru.kernels.weight_gradients import block_rows as rows_at_once

_rows = functools.cache(backward_rows.make)
_grid = functools.cache(backward_grid.make)
_tiled = functools.cache(backward_tiles.make)
_reset = functools.cache(backward_tiles.make_reset)
_input_gradient = functools.cache(products.make_input_gradient)
_gradient = functools.cache(weight_gradients.make_gradient)
_biases = functools.cache(weight_gradients.make_biases)
_collect = functools.cache(weight_gradients.make_collect)


def _tiles(size: int) -> int:
    return -(-size // products.TILE)


def backward(
    call: Call,
    given: Cotangents,
    out: Outputs,
    order: Any,
    rows_per_part: int,
    results: Results,
    division: int | Split | None,
    allocate: Any,
) -> list[Launch]:
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
    config, weights, dtype = call.config, call.weights, call.x.dtype
    (B, T, F), U = call.x.shape, config.units
    real, masked = REAL[dtype], call.mask.size > 0
    drops_x, precision = call.x_drop.size > 0, config.precision
    capability = products.capability_of(precision)
    d_sums = allocate((B, T, 4, U), dtype)
    recur = _on_grid if isinstance(division, Split) else _by_rows
    if division is None:
        recur = _in_tiles
    launches = [
        *recur(call, given, out, d_sums, results, division, allocate),
        Launch(
            _input_gradient(real, call.per_gate, drops_x, precision),
            products.input_gradient_signature(real),
            (_tiles(B * T), _tiles(F)),
            products.THREADS,
            (
                d_sums, weights.kernel, call.x_drop, results.x, *strides(results.x), B,
                T, F, U,
            ),
            capability=capability,
        ),
    ]  # fmt: skip
    parts = max(1, -(-B // rows_per_part))
    # The CPU's kernel goes through a part in such blocks: the order of sums.
    block_rows = rows_at_once.py_func(rows_per_part, T, U)
    masks = call.mask, *call.mask.strides, order
    for size, of_states, drop, total in (
        (F, False, call.x_drop, results.W),
        (U, True, call.h_drop, results.R),
    ):
        part = allocate((parts, size, 3 * U), dtype)
        launches += [
            Launch(
                _gradient(
                    real, of_states, config.reset_after, masked, drop.size > 0,
                    precision,
                ),
                weight_gradients.gradient_signature(real),
                (_tiles(size), 3 * _tiles(U), parts),
                products.THREADS,
                (
                    call.x, *strides(call.x), call.h0, out.states, out.saved, d_sums,
                    *masks, drop, part, B, T, size, U, rows_per_part, block_rows,
                ),
                capability=capability,
            ),
            _sum(real, part, total, parts, 0),
        ]  # fmt: skip
    if results.bias.size > 0:
        part = allocate((parts, 4, U), dtype)
        launches += [
            Launch(
                _biases(real, masked),
                weight_gradients.biases_signature(real),
                (-(-4 * U // weight_gradients.COLUMNS), parts),
                weight_gradients.COLUMNS,
                (d_sums, *masks, part, B, T, U, rows_per_part, block_rows),
            ),
            _sum(real, part, results.bias, parts, U),
        ]
    return [launch for launch in launches if np.prod(launch.blocks) > 0]


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
                call.h_drop, given.y, *strides(given.y), given.last, given.state,
                out.saved, out.states, d_sums, results.h0, work, B, T,
                *_given_back(given), *call.switches,
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


def _sum(real: Any, parts: Any, total: Any, count: int, units: int) -> Launch:
    """Add the parts; `units` where they are those of the bias."""
    return Launch(
        _collect(real),
        weight_gradients.collect_signature(real),
        (-(-total.size // weight_gradients.COLUMNS),),
        weight_gradients.COLUMNS,
        (parts, total, count, total.size, units),
    )

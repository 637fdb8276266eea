"""The forward pass on the device: the sums of the inputs, then the recurrence."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbagru.kernels.call import REAL, Call, Outputs
from numbagru.kernels.cuda import (
    elementwise,
    forward_grid,
    forward_rows,
    forward_tiles,
    products,
)
from numbagru.kernels.cuda.launch import Launch, scalars, strides

_project = functools.cache(products.make_project)
_rows = functools.cache(forward_rows.make)
_tiles = functools.cache(forward_tiles.make)
_grid = functools.cache(forward_grid.make)


def forward(call: Call, out: Outputs, rows: int, allocate: Any) -> list[Launch]:
    """Return what to launch, one after the other: a recurrence in one launch.

    Parameters
    ----------
    call, out
        Of arrays on the device.
    rows : int
        Rows of a block of the recurrence.
    allocate
        ``allocate(shape, dtype)`` makes an array on the device to work with.
    """
    config, weights = call.config, call.weights
    (B, T, _), U = call.x.shape, config.units
    real = REAL[call.x.dtype]
    if B == 0:
        return []
    sums = allocate((B * T, 3 * U), call.x.dtype)
    drops = call.h_drop.size > 0
    blocks = -(-B // rows)
    work = allocate((0,), call.x.dtype)
    if not forward_rows.on_chip(real, U, rows, drops):
        numbers = blocks * forward_rows.work_size(real, U, rows, drops)
        work = allocate((numbers,), call.x.dtype)
    kernel = _rows(
        real,
        U,
        rows,
        scalars(config.activation),
        scalars(config.recurrent_activation),
        config.reset_after,
        call.mask.size > 0,
        drops,
        out.states.size > 0,
    )
    recur = Launch(
        kernel,
        forward_rows.signature(real),
        (blocks,),
        forward_rows.threads_of(U),
        (
            sums, weights.recurrent_kernel, weights.sum_bias[3], call.h0, call.mask,
            *call.mask.strides, call.h_drop, out.y, *strides(out.y), out.last,
            out.state, out.saved, out.states, work, B, T, out.y.size > 0,
            *call.switches,
        ),
    )  # fmt: skip
    return [project(call, sums), recur] if T > 0 else [recur]


def forward_tiled(call: Call, out: Outputs, allocate: Any) -> list[Launch]:
    """Return what to launch for at least one step: one launch for each.

    Parameters as of `forward`. The reset gate is after the product, and the state has
    no dropout.
    """
    config, weights, dtype = call.config, call.weights, call.x.dtype
    (B, T, _), U = call.x.shape, config.units
    real = REAL[dtype]
    sums = allocate((B * T, 3 * U), dtype)
    kernel = _tiles(
        real,
        scalars(config.activation),
        scalars(config.recurrent_activation),
        call.mask.size > 0,
        out.states.size > 0,
    )
    launches, old = [project(call, sums)], call.h0
    other = allocate((B, U), dtype)
    for t in range(T):
        new = out.state if (T - 1 - t) % 2 == 0 else other
        launches.append(
            Launch(
                kernel,
                forward_tiles.signature(real),
                (-(-B // forward_tiles.ROWS), -(-U // forward_tiles.UNITS)),
                forward_tiles.THREADS,
                (
                    sums, weights.recurrent_kernel, weights.sum_bias[3], old, new,
                    call.mask, *call.mask.strides, out.y, *strides(out.y), out.last,
                    out.saved, out.states, t, B, T, U, out.y.size > 0, *call.switches,
                ),
            )
        )  # fmt: skip
        old = new
    return launches


def forward_on_grid(
    call: Call, out: Outputs, split: Any, allocate: Any
) -> list[Launch]:
    """Return what to launch, one after the other: a recurrence in one launch.

    Parameters as of `forward`, but `split`: a `limits.Split`. The state has no dropout.
    """
    config, weights, dtype = call.config, call.weights, call.x.dtype
    (B, T, _), U = call.x.shape, config.units
    real = REAL[dtype]
    blocks = split.blocks(U, B)
    sums = allocate((B * T, 3 * U), dtype)
    # Zeros of 32 bits are the integer 0 too.
    arrivals = allocate((blocks[1],), np.float32)
    # States before and after a step, and those that the reset gate has multiplied.
    shown = allocate((2 if config.reset_after else 3, B, U), dtype)
    kernel = _grid(
        real,
        U,
        split,
        scalars(config.activation),
        scalars(config.recurrent_activation),
        config.reset_after,
        call.mask.size > 0,
        out.states.size > 0,
    )
    recur = Launch(
        kernel,
        forward_grid.signature(real),
        blocks,
        forward_grid.THREADS,
        (
            sums, weights.recurrent_kernel, weights.sum_bias[3], call.h0, call.mask,
            *call.mask.strides, out.y, *strides(out.y), out.last, out.state, out.saved,
            out.states, shown, arrivals.view(np.int32), blocks[0], B, T, out.y.size > 0,
            *call.switches,
        ),
        split.bytes(real.bitwidth, U),
    )  # fmt: skip
    launches = [*elementwise.fill(arrivals), recur]
    return [project(call, sums), *launches] if T > 0 else launches


def project(call: Call, sums: Any) -> Launch:
    """Launch the sums (B T, 3 U) of the inputs, on top of the bias."""
    weights, real = call.weights, REAL[call.x.dtype]
    (B, T, F), U = call.x.shape, call.config.units
    apart = call.x_drop.size > 0
    tiles = -(-B * T // products.TILE), -(-(U if apart else 3 * U) // products.TILE)
    return Launch(
        _project(real, apart),
        products.project_signature(real),
        (*tiles, 3 if apart else 1),
        products.THREADS,
        (
            call.x, *strides(call.x), call.x_drop, weights.kernel, weights.sum_bias,
            sums, B, T, F, U,
        ),
    )  # fmt: skip

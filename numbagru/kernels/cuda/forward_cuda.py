"""The forward pass on the device: the sums of the inputs, then the recurrence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from numbagru.kernels.call import REAL, Call, Outputs
from numbagru.kernels.cuda import (
    elementwise,
    forward_grid,
    forward_rows,
    forward_tiles,
    library,
    products,
)
from numbagru.kernels.cuda.launch import Launch, Task, scalars_of, strides
from numbagru.kernels.cuda.limits import by_cupy, copies

_project = functools.cache(products.make_project)
_rows = functools.cache(forward_rows.make)
_tiles = functools.cache(forward_tiles.make)
_gates = functools.cache(forward_tiles.make_gates)
_state = functools.cache(forward_tiles.make_state)
_grid = functools.cache(forward_grid.make)


def forward(call: Call, out: Outputs, rows: int, allocate: Any) -> list[Task]:
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
    if not forward_rows.on_chip(real, U, rows, config.reset_after, drops):
        size = forward_rows.work_size(real, U, rows, config.reset_after, drops)
        numbers = blocks * size
        work = allocate((numbers,), call.x.dtype)
    kernel = _rows(
        real,
        U,
        rows,
        *scalars_of(config),
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


def forward_tiled(call: Call, out: Outputs, allocate: Any) -> list[Task]:
    """Return what to launch, one after the other: one or two for each step.

    Parameters as of `forward`.
    """
    dtype = call.x.dtype
    (B, T, _), U = call.x.shape, call.config.units
    sums = allocate((B * T, 3 * U), dtype)
    step = _step_of_one if call.config.reset_after else _step_of_two
    launches, old = [project(call, sums)], call.h0
    steps = step(call, out, sums, allocate)
    other = allocate((B, U), dtype)
    for t in range(T):
        new = out.state if (T - 1 - t) % 2 == 0 else other
        launches += steps(t, old, new)
        old = new
    return launches


def _step_of_one(
    call: Call, out: Outputs, sums: Any, allocate: Any
) -> Callable[..., list[Launch]]:
    """Return what gives the launch of a step from its number and both states."""
    config, weights, real = call.config, call.weights, REAL[call.x.dtype]
    (B, T, _), U = call.x.shape, config.units
    kernel = _tiles(
        real,
        *scalars_of(config),
        call.mask.size > 0,
        call.h_drop.size > 0,
        out.states.size > 0,
    )

    def steps(t: int, old: Any, new: Any) -> list[Launch]:
        arguments = (
            sums, weights.recurrent_kernel, weights.sum_bias[3], old, new, call.h_drop,
            call.mask, *call.mask.strides, out.y, *strides(out.y), out.last, out.saved,
            out.states, t, B, T, U, out.y.size > 0, *call.switches,
        )  # fmt: skip
        return [_tiled(kernel, forward_tiles.signature(real), B, U, arguments)]

    return steps


def _step_of_two(
    call: Call, out: Outputs, sums: Any, allocate: Any
) -> Callable[..., list[Launch]]:
    """Do the same with the reset gate before the product: gates, then the state."""
    config, recurrent = call.config, call.weights.recurrent_kernel
    (B, T, _), U, real = call.x.shape, config.units, REAL[call.x.dtype]
    keeps = out.states.size > 0
    gates = _gates(real, *scalars_of(config), call.h_drop.size > 0, keeps)
    state = _state(real, *scalars_of(config), call.mask.size > 0, keeps)
    zs, inners = (allocate((B, U), call.x.dtype) for _ in range(2))

    def steps(t: int, old: Any, new: Any) -> list[Launch]:
        first = (
            sums, recurrent, old, call.h_drop, zs, inners, out.saved, t, B, T, U,
        )  # fmt: skip
        second = (
            sums, recurrent, zs, inners, call.h_drop, old, new, call.mask,
            *call.mask.strides, out.y, *strides(out.y), out.last, out.saved, out.states,
            t, B, T, U, out.y.size > 0, *call.switches,
        )  # fmt: skip
        return [
            _tiled(gates, forward_tiles.gates_signature(real), B, U, first),
            _tiled(state, forward_tiles.state_signature(real), B, U, second),
        ]

    return steps


def _tiled(
    kernel: Any, signature: Any, B: int, U: int, arguments: tuple[Any, ...]
) -> Launch:
    blocks = -(-B // forward_tiles.ROWS), -(-U // forward_tiles.UNITS)
    return Launch(kernel, signature, blocks, forward_tiles.THREADS, arguments)


def forward_on_grid(call: Call, out: Outputs, split: Any, allocate: Any) -> list[Task]:
    """Return what to launch, one after the other: a recurrence in one launch.

    Parameters as of `forward`, but `split`: a `limits.Split`.
    """
    config, weights, dtype = call.config, call.weights, call.x.dtype
    (B, T, _), U = call.x.shape, config.units
    real = REAL[dtype]
    blocks = split.blocks(U, B)
    sums = allocate((B * T, 3 * U), dtype)
    # Zeros of 32 bits are the integer 0 too.
    arrivals = allocate((blocks[1],), np.float32)
    drops = call.h_drop.size > 0
    slots = forward_grid.shown_slots(config.reset_after, drops)
    shown = allocate((slots, B, U), dtype)
    kernel = _grid(
        real,
        U,
        split,
        *scalars_of(config),
        config.reset_after,
        call.mask.size > 0,
        drops,
        out.states.size > 0,
    )
    recur = Launch(
        kernel,
        forward_grid.signature(real),
        blocks,
        forward_grid.THREADS,
        (
            sums, weights.recurrent_kernel, weights.sum_bias[3], call.h0, call.mask,
            *call.mask.strides, call.h_drop, out.y, *strides(out.y), out.last,
            out.state, out.saved, out.states, shown, arrivals.view(np.int32), blocks[0],
            B, T, out.y.size > 0, *call.switches,
        ),
        split.bytes(real.bitwidth, U, copies(config.reset_after, drops)),
    )  # fmt: skip
    launches = [*elementwise.fill(arrivals), recur]
    return [project(call, sums), *launches] if T > 0 else launches


def project(call: Call, sums: Any) -> Task:
    """Return what makes the sums (B T, 3 U) of the inputs, on top of the bias."""
    if by_cupy(call.config.precision):
        return library.project(call, sums)
    weights, real = call.weights, REAL[call.x.dtype]
    (B, T, F), U = call.x.shape, call.config.units
    apart, precision = call.x_drop.size > 0, products.kind_of(call.config.precision)
    tiles = -(-B * T // products.TILE), -(-(U if apart else 3 * U) // products.TILE)
    return Launch(
        _project(real, apart, precision),
        products.project_signature(real),
        (*tiles, 3 if apart else 1),
        products.THREADS,
        (
            call.x, *strides(call.x), call.x_drop, weights.kernel, weights.sum_bias,
            sums, B, T, F, U,
        ),
        capability=products.capability_of(precision),
    )  # fmt: skip

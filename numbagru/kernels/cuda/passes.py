"""The two passes as the dispatch table has them: arrays on a device, launched there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from numbagru.kernels.call import Call, Cotangents, Outputs, Results
from numbagru.kernels.cuda import backward_cuda, elementwise, forward_cuda
from numbagru.kernels.cuda.limits import copies, most_rows, split
from numbagru.kernels.plain_cpu import saved_shapes

__all__ = [
    "backward",
    "backward_on_grid",
    "backward_tiled",
    "forward",
    "forward_on_grid",
    "forward_tiled",
    "saved_shapes",
]


def _rows(call: Call) -> int:
    """Take more rows to a block only when every multiprocessor has one."""
    config = call.config
    most = most_rows(8 * call.x.itemsize, config.units, config.reset_after)
    each = -(-call.x.shape[0] // call.place.chip().processors)
    return max(1, min(most, each))


def _on_device(call: Call) -> Call:
    return replace(call, weights=call.weights.on(call.place))


def forward(call: Call, out: Outputs, most: int) -> None:
    """Launch the forward pass; threads are none of its business."""
    launches = forward_cuda.forward(_on_device(call), out, _rows(call), call.place.work)
    call.place.run(launches)


def forward_tiled(call: Call, out: Outputs, most: int) -> None:
    """Launch the forward pass, step by step."""
    place = call.place
    place.run(forward_cuda.forward_tiled(_on_device(call), out, place.work))


def forward_on_grid(call: Call, out: Outputs, most: int) -> None:
    """Launch the forward pass, its units divided among all multiprocessors."""
    place = call.place
    launches = forward_cuda.forward_on_grid(
        _on_device(call), out, _split(call), place.work
    )
    place.run(launches)


def _split(call: Call) -> Any:
    return _divided(call, call.h_drop.size > 0)


def _divided(call: Call, apart: bool) -> Any:
    config, B, bits = call.config, call.x.shape[0], 8 * call.x.itemsize
    seen = copies(config.reset_after, apart)
    free = config.precision == "free"
    return split(bits, config.units, B, call.place.chip(), seen, free)


def _backward(
    division: Callable[[Call], Any],
    call: Call,
    given: Cotangents,
    out: Outputs,
    rows_per_part: int,
    results: Results,
    most: int,
) -> None:
    """Launch the backward pass; `division` is that of `backward_cuda.backward`."""
    place, launches = call.place, []
    B = call.x.shape[0]
    order = place.work((0,), np.int64)
    if call.mask.size > 0:
        order, ends = place.work((B,), np.int64), place.work((B,), np.int32)
        launches = elementwise.rows_by_end(call.mask, ends, order)
    launches += backward_cuda.backward(
        _on_device(call), given, out, order, rows_per_part, results, division(call),
        place.work,
    )  # fmt: skip
    place.run(launches)


backward = functools.partial(_backward, _rows)
# Gradients of all gates are seen at once; without room for them, step by step.
backward_on_grid = functools.partial(_backward, lambda call: _divided(call, True))
backward_tiled = functools.partial(_backward, lambda call: None)

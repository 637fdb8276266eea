"""What backward adds up over the samples: gradients of inputs, weights and biases."""

from __future__ import annotations

import functools
from typing import Any

from numbagru.kernels.call import REAL, Call, Outputs, Results
from numbagru.kernels.cuda import library, products, weight_gradients
from numbagru.kernels.cuda.launch import Launch, Task, strides
from numbagru.kernels.cuda.limits import by_cupy
from numbagru.kernels.weight_gradients import block_rows as rows_at_once

_input_gradient = functools.cache(products.make_input_gradient)
_gradient = functools.cache(weight_gradients.make_gradient)
_biases = functools.cache(weight_gradients.make_biases)
_collect = functools.cache(weight_gradients.make_collect)


def sums_of_samples(
    call: Call,
    out: Outputs,
    d_sums: Any,
    order: Any,
    rows_per_part: int,
    results: Results,
    allocate: Any,
) -> list[Task]:
    """Return what makes them from the gradients of all sums, `d_sums` (B, T, 4, U).

    Other parameters as of `backward_cuda.backward`.
    """
    (B, T, F), U = call.x.shape, call.config.units
    real, masked = REAL[call.x.dtype], call.mask.size > 0
    parts = max(1, -(-B // rows_per_part))
    # The CPU's kernel goes through a part in such blocks: the order of sums.
    block_rows = rows_at_once.py_func(rows_per_part, T, U)
    masks = call.mask, *call.mask.strides, order
    if by_cupy(call.config.precision):
        tasks = library.gradients(call, out, d_sums, results)
    else:
        tasks = [_of_inputs(call, d_sums, results.x)]
        precision = products.kind_of(call.config.precision)
        for size, of_states, drop, total in (
            (F, False, call.x_drop, results.W),
            (U, True, call.h_drop, results.R),
        ):
            part = allocate((parts, size, 3 * U), call.x.dtype)
            kernel = _gradient(
                real, of_states, call.config.reset_after, masked, drop.size > 0,
                precision,
            )  # fmt: skip
            arguments = (
                call.x, *strides(call.x), call.h0, out.states, out.saved, d_sums,
                *masks, drop, part, B, T, size, U, rows_per_part, block_rows,
            )  # fmt: skip
            tasks += [
                Launch(
                    kernel,
                    weight_gradients.gradient_signature(real),
                    (_tiles(size), 3 * _tiles(U), parts),
                    products.THREADS,
                    arguments,
                    capability=products.capability_of(precision),
                ),
                _sum(real, part, total, parts, 0),
            ]
    if results.bias.size > 0:
        part = allocate((parts, 4, U), call.x.dtype)
        tasks += [
            Launch(
                _biases(real, masked),
                weight_gradients.biases_signature(real),
                (-(-4 * U // weight_gradients.COLUMNS), parts),
                weight_gradients.COLUMNS,
                (d_sums, *masks, part, B, T, U, rows_per_part, block_rows),
            ),
            _sum(real, part, results.bias, parts, U),
        ]
    return tasks


def _tiles(size: int) -> int:
    return -(-size // products.TILE)


def _of_inputs(call: Call, d_sums: Any, d_x: Any) -> Launch:
    (B, T, F), U = call.x.shape, call.config.units
    real, drops = REAL[call.x.dtype], call.x_drop.size > 0
    precision = products.kind_of(call.config.precision)
    return Launch(
        _input_gradient(real, call.per_gate, drops, precision),
        products.input_gradient_signature(real),
        (_tiles(B * T), _tiles(F)),
        products.THREADS,
        (d_sums, call.weights.kernel, call.x_drop, d_x, *strides(d_x), B, T, F, U),
        capability=products.capability_of(precision),
    )


def _sum(real: Any, parts: Any, total: Any, count: int, units: int) -> Launch:
    """Add the parts; `units` where they are those of the bias."""
    return Launch(
        _collect(real),
        weight_gradients.collect_signature(real),
        (-(-total.size // weight_gradients.COLUMNS),),
        weight_gradients.COLUMNS,
        (parts, total, count, total.size, units),
    )

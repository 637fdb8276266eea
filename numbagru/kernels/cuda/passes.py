"""The two passes as the dispatch table has them: arrays on a device, launched there."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from numbagru.kernels.call import Call, Cotangents, OnDevice, Outputs, Results
from numbagru.kernels.cuda import backward_cuda, elementwise, forward_cuda
from numbagru.kernels.cuda.launch import Task
from numbagru.kernels.cuda.limits import Chip, Split, copies, most_rows, split
from numbagru.kernels.cuda.plans import Plan
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

_Build = Callable[..., list[Task]]
# Of all plans that are remembered, a kilobyte each: some have two for each step.
_MOST_TASKS = 50_000


def _rows(call: Call, chip: Chip) -> int:
    """Take more rows to a block only when every multiprocessor has one."""
    config = call.config
    most = most_rows(8 * call.x.itemsize, config.units, config.reset_after)
    each = -(-call.x.shape[0] // chip.processors)
    return max(1, min(most, each))


def _split(call: Call, chip: Chip) -> Split | None:
    return _divided(call, chip, call.h_drop.size > 0)


def _divided(call: Call, chip: Chip, apart: bool) -> Split | None:
    config, B, bits = call.config, call.x.shape[0], 8 * call.x.itemsize
    seen = copies(config.reset_after, apart)
    free = config.precision == "free"
    return split(bits, config.units, B, chip, seen, free)


def _by_rows(call: Call, chip: Chip, work: Any, _: int, *out: Any) -> list[Task]:
    return forward_cuda.forward(call, Outputs(*out), _rows(call, chip), work)


def _on_grid(call: Call, chip: Chip, work: Any, _: int, *out: Any) -> list[Task]:
    split = _split(call, chip)
    return forward_cuda.forward_on_grid(call, Outputs(*out), split, work)


def _in_tiles(call: Call, chip: Chip, work: Any, _: int, *out: Any) -> list[Task]:
    return forward_cuda.forward_tiled(call, Outputs(*out), work)


def _back(
    division: Callable[[Call, Chip], Any],
    call: Call,
    chip: Chip,
    work: Any,
    rows_per_part: int,
    *arrays: Any,
) -> list[Task]:
    """Return the backward pass; `division` is that of `backward_cuda.backward`."""
    B, tasks = call.x.shape[0], []
    order = work((0,), np.int64)
    if call.mask.size > 0:
        order, ends = work((B,), np.int64), work((B,), np.int32)
        tasks = elementwise.rows_by_end(call.mask, ends, order)
    given, out = Cotangents(*arrays[:3]), Outputs(*arrays[3:8])
    results = Results(*arrays[8:])
    return tasks + backward_cuda.backward(
        call, given, out, order, rows_per_part, results, division(call, chip), work
    )


def _forward(build: _Build, call: Call, out: Outputs, most: int) -> None:
    """Launch a forward pass; threads are none of its business."""
    _carry_out(build, call, 0, out)


def _backward(
    build: _Build,
    call: Call,
    given: Cotangents,
    out: Outputs,
    rows_per_part: int,
    results: Results,
    most: int,
) -> None:
    """Launch a backward pass."""
    _carry_out(build, call, rows_per_part, (*given, *out, *results))


forward = functools.partial(_forward, _by_rows)
forward_on_grid = functools.partial(_forward, _on_grid)
forward_tiled = functools.partial(_forward, _in_tiles)
backward = functools.partial(_backward, functools.partial(_back, _rows))
# Gradients of all gates are seen at once; without room for them, step by step.
backward_on_grid = functools.partial(
    _backward,
    functools.partial(_back, lambda call, chip: _divided(call, chip, True)),
)
backward_tiled = functools.partial(
    _backward, functools.partial(_back, lambda call, chip: None)
)


def _carry_out(
    build: _Build, call: Call, rows_per_part: int, others: Iterable[Any]
) -> None:
    """Do what ``build(call, chip, work, rows_per_part, *others)`` returns."""
    place = call.place
    arrays = [call.x, call.h0, call.mask, call.x_drop, call.h_drop]
    arrays += [*call.weights.on(place), *others]
    forms = tuple([(array.shape, array.strides) for array in arrays])
    plan = _plans.get(
        build, call.config, call.switches, place.chip(), rows_per_part, forms
    )
    place.carry_out(plan, arrays)


def _plan(
    build: _Build,
    config: Any,
    switches: tuple[bool, bool],
    chip: Chip,
    rows_per_part: int,
    forms: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...],
) -> Plan:
    """Make the plan of a pass."""

    def make(work: Any, *arrays: Any) -> list[Task]:
        x, h0, mask, x_drop, h_drop, W, R, bias, *others = arrays
        weights = OnDevice(W, R, bias)
        call = Call(config, x, h0, False, mask, weights, x_drop, h_drop, switches, None)
        return build(call, chip, work, rows_per_part, *others)

    real, flags = np.dtype(config.dtype), np.dtype(np.uint8)
    dtypes = (real, real, flags, *[real] * (len(forms) - 3))
    return Plan(
        make, [(*form, dtype) for form, dtype in zip(forms, dtypes, strict=True)]
    )


class _Plans:
    """Plans by what `_plan` makes them of: those used last, up to so many tasks."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._tasks, self._lock = 0, threading.Lock()

    def get(self, *of: Any) -> Plan:
        """Return a plan."""
        with self._lock:
            found = self._plans.get(of)
            if found is not None:
                self._plans.move_to_end(of)
                return found
        made = _plan(*of)
        with self._lock:  # another thread may have been as far
            found = self._plans.setdefault(of, made)
            self._tasks += len(made.tasks) if found is made else 0
            while self._tasks > _MOST_TASKS and len(self._plans) > 1:
                _, oldest = self._plans.popitem(last=False)
                self._tasks -= len(oldest.tasks)
        return found

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._plans.clear()
            self._tasks = 0


_plans = _Plans()

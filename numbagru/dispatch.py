"""Which kernel runs: a table, first match wins, and the reasons in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from numbagru.kernels import backward_cpu, forward_cpu, plain_cpu
from numbagru.kernels.call import whole_rows
from numbagru.kernels.cuda.limits import (
    TILED_FROM_ROWS,
    TYPICAL,
    by_cupy,
    copies,
    most_resident,
    split,
)
from numbagru.operands import HOST, on_device


@dataclass(frozen=True)
class Problem:
    """What the choice of a kernel depends on."""

    fused: bool
    device: str = "cpu"  # or "cuda": where the arrays are
    units: int = 1
    bits: int = 32
    reset_after: bool = True
    whole_rows: bool = False  # whether an activation takes all units at once
    at_once: bool = False  # whether a device has room for the blocks of all units
    many_rows: bool = False  # whether they fill tiles of rows on a device, and T > 0
    precision: str = "dtype"


Check = Callable[[Problem], str | None]


@dataclass(frozen=True)
class Row:
    """One kernel family: its code, what it is good at, and when it cannot run.

    Each check gives None, or in words the condition that rules the family out.
    """

    name: str
    device: str
    why: str
    forward: Callable[..., None]
    backward: Callable[..., None]
    saved_shapes: Callable[..., Any]
    checks: tuple[Check, ...] = ()


def _fused(problem: Problem) -> str | None:
    return None if problem.fused else "use_cudnn=False forbids the fused kernels"


def _scalar(problem: Problem) -> str | None:
    if problem.whole_rows:
        return "an activation takes all units of a row, which no CUDA kernel does"
    return None


def _resident(problem: Problem) -> str | None:
    most = most_resident(problem.bits, problem.reset_after)
    if problem.units <= most:
        return None
    return f"{problem.units} units are more than the {most} that fit registers"


def _at_once(problem: Problem) -> str | None:
    if problem.at_once:
        return None
    return (
        "the blocks of all units and rows are more than the device has room for at once"
    )


def _many_rows(problem: Problem) -> str | None:
    if problem.many_rows:
        return None
    return f"there are fewer than the {TILED_FROM_ROWS} rows of a tile, or no steps"


def _cuda(name: str) -> Callable[..., Any]:
    """Import the passes on the device, and with them numba-cuda, when they run."""

    def passed_on(*args: Any) -> Any:
        from numbagru.kernels.cuda import passes

        return getattr(passes, name)(*args)

    return passed_on


_CUDA = _cuda("forward"), _cuda("backward"), _cuda("saved_shapes")
_CUDA_GRID = _cuda("forward_on_grid"), _cuda("backward_on_grid"), _CUDA[2]
_CUDA_TILED = _cuda("forward_tiled"), _cuda("backward_tiled"), _CUDA[2]

KERNELS = (
    Row(
        "cpu_tiles",
        "cpu",
        "sums of rows x units in vector registers, parallel over rows or units",
        forward_cpu.forward,
        backward_cpu.backward,
        forward_cpu.saved_shapes,
        (_fused,),
    ),
    Row(
        "cpu_plain",
        "cpu",
        "plain loops for every configuration, parallel over rows",
        plain_cpu.forward,
        plain_cpu.backward,
        plain_cpu.saved_shapes,
    ),
    # Models, from the stall counts of machine code, not yet timed: a step of one row of
    # 64 units takes 830 cycles, 0.47 us at 1.755 GHz, and back 700.
    Row(
        "cuda_resident",
        "cuda",
        "recurrent weights in registers over all steps, a block for each few rows",
        *_CUDA,
        (_fused, _scalar, _resident),
    ),
    # 1.2 us for 512 units, and 1.4 for the states and the barrier; back 2 for those.
    Row(
        "cuda_grid",
        "cuda",
        "units divided among blocks that meet in each step",
        *_CUDA_GRID,
        (_fused, _scalar, _at_once),
    ),
    Row(
        "cuda_tiled",
        "cuda",
        "one launch for each step, or two, in tiles of rows x units",
        *_CUDA_TILED,
        (_fused, _scalar, _many_rows),
    ),
    Row(
        "cuda_cached",
        "cuda",
        "recurrent weights read from the cache in each step, a block for each few rows",
        *_CUDA,
        (_fused, _scalar),
    ),
)


def rows_of(device: str) -> tuple[Row, ...]:
    """Return the families for arrays on a device, the fastest first."""
    return tuple(row for row in KERNELS if row.device == device)


def refusals(row: Row, problem: Problem) -> Iterator[str]:
    """Yield each condition that rules the row out."""
    for check in row.checks:
        reason = check(problem)
        if reason is not None:
            yield reason


def select(given: Problem) -> Row:
    """Return the first row that nothing rules out.

    Raises
    ------
    RuntimeError
        If no kernel for the device takes the problem.
    """
    for row in rows_of(given.device):
        if not any(refusals(row, given)):
            return row
    reasons = dict.fromkeys(
        reason for row in rows_of(given.device) for reason in refusals(row, given)
    )
    raise RuntimeError(
        f"No {given.device.upper()} kernel takes this layer: {'; '.join(reasons)}. "
        "Pass device='cpu' and arrays of NumPy."
    )


def problem(
    config: Any,
    cuda: bool = False,
    sizes: tuple[int, int] = (0, 0),
    drops: bool = False,
    chip: Any = TYPICAL,
) -> Problem:
    """Take from a `GRUConfig`, and from a call, what the choice depends on.

    `sizes` are rows and steps, `drops` says whether the state has dropout, `chip` what
    the device has (`limits.Chip`).
    """
    (B, T), bits = sizes, 8 * np.dtype(config.dtype).itemsize
    return Problem(
        config.use_cudnn is not False,
        "cuda" if cuda or config.device == "cuda" else "cpu",
        config.units,
        bits,
        config.reset_after,
        whole_rows(config),
        split(bits, config.units, B, chip, copies(config.reset_after, drops))
        is not None,
        B >= TILED_FROM_ROWS and T > 0,
        config.precision,
    )


def place(config: Any, x: Any) -> Any:
    """Return where to compute: `operands.HOST`, or a `operands_cuda.Device`.

    Raises
    ------
    ValueError
        If the sequences x are on a device and the config demands the CPU.
    RuntimeError
        If a package, the driver or a device is missing.
    """
    if config.device != "cuda" and not on_device(x):
        return HOST
    if config.device == "cpu":
        raise ValueError(
            "device='cpu' was requested, but `sequences` is an array on a CUDA device. "
            "Copy it to the host first, or pass device='auto'."
        )
    return place_of(x)


def place_of(x: Any) -> Any:
    """Return the `operands_cuda.Device` of an array, or the current one."""
    from numbagru.operands_cuda import place_of

    return place_of(x)


def chip_of(x: Any) -> Any:
    """Return what the device of an array has; of a usual one if there is none."""
    try:
        return place_of(x).chip()
    except RuntimeError:
        return TYPICAL


@lru_cache
def family(config: Any) -> Row:
    """Return the CPU's row for a `GRUConfig`, which is remembered by its identity."""
    return select(problem(config))


def family_of(call: Any) -> Row:
    """Return the row for a `kernels.call.Call`."""
    if call.place is HOST:
        return family(call.config)
    sizes, drops = call.x.shape[:2], call.h_drop.size > 0
    return device_family(call.config, sizes, drops, call.place.chip())


@lru_cache
def device_family(config: Any, sizes: tuple[int, int], drops: bool, chip: Any) -> Row:
    """Return the row for arrays on a device; remembered as that of the CPU."""
    return select(problem(config, True, sizes, drops, chip))


def explain(given: Problem) -> str:
    """Say which kernel runs and what ruled out each faster one."""
    chosen = select(given)
    lines = [f"{chosen.name}: {chosen.why}"]
    for row in rows_of(given.device):
        if row is chosen:
            break
        lines += [f"  not {row.name}: {why}" for why in refusals(row, given)]
    if given.device == "cuda" and given.precision == "free":
        own = "numbagru's kernels, for CuPy is not installed"
        by = "CuPy" if by_cupy(given.precision) else own
        lines.append(f"  precision='free': products over all steps by {by}")
    return "\n".join(lines)

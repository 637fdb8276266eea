"""Which kernel runs: a table, first match wins, and the reasons in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from numbagru.kernels import backward_cpu, forward_cpu, plain_cpu


@dataclass(frozen=True)
class Problem:
    """What the choice of a kernel depends on."""

    fused: bool


Check = Callable[[Problem], str | None]


@dataclass(frozen=True)
class Row:
    """One kernel family: its code, what it is good at, and when it cannot run.

    Each check gives None, or in words the condition that rules the family out.
    """

    name: str
    why: str
    forward: Callable[..., None]
    backward: Callable[..., None]
    saved_shapes: Callable[..., Any]
    checks: tuple[Check, ...] = ()


def _fused(problem: Problem) -> str | None:
    return None if problem.fused else "use_cudnn=False forbids the fused kernels"


KERNELS = (
    Row(
        "cpu_tiles",
        "sums of rows x units in vector registers, parallel over rows or units",
        forward_cpu.forward,
        backward_cpu.backward,
        forward_cpu.saved_shapes,
        (_fused,),
    ),
    Row(
        "cpu_plain",
        "plain loops for every configuration, parallel over rows",
        plain_cpu.forward,
        plain_cpu.backward,
        plain_cpu.saved_shapes,
    ),
)


def refusals(row: Row, problem: Problem) -> Iterator[str]:
    """Yield each condition that rules the row out."""
    for check in row.checks:
        reason = check(problem)
        if reason is not None:
            yield reason


def select(given: Problem) -> Row:
    """Return the first row that nothing rules out."""
    return next(row for row in KERNELS if not any(refusals(row, given)))


def problem(config: Any) -> Problem:
    """Take from a `GRUConfig` what the choice depends on."""
    if config.device == "cuda":
        raise RuntimeError(
            "device='cuda' was requested, but this version has kernels for the CPU "
            "only. Pass device='auto' or device='cpu'."
        )
    return Problem(config.use_cudnn is not False)


@lru_cache
def family(config: Any) -> Row:
    """Return the row for a `GRUConfig`, which is remembered by its identity."""
    return select(problem(config))


def explain(given: Problem) -> str:
    """Say which kernel runs and what ruled out each faster one."""
    lines = []
    for row in KERNELS:
        reasons = list(refusals(row, given))
        if not reasons:
            return "\n".join([f"{row.name}: {row.why}", *lines])
        lines += [f"  not {row.name}: {reason}" for reason in reasons]
    raise AssertionError("the last row of KERNELS takes every problem")

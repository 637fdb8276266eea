"""Compiling the kernels ahead of their first use."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from numbagru.layers import GRU
from numbagru.machine import cached_files

# One step, one row, and work for all threads: each may run kernels of its own. The step
# comes first, with weights that nothing has packed.
_SHAPES = ((1, 1, 8), (1, 4, 8), (64, 32, 8))
_UNITS = 32


class Warmed(NamedTuple):
    """A configuration whose kernels are ready now.

    `compiled` are the functions that were compiled for it and put into the cache; none
    where it had them all.
    """

    title: str
    kernel: str
    seconds: float
    compiled: tuple[str, ...]


def warmup(quick: bool = False) -> Iterator[Warmed]:
    """Compile and cache the kernels of the usual configurations, one by one.

    Parameters
    ----------
    quick : bool, default False
        Only those of the default layer, in float32.

    Yields
    ------
    Warmed
    """
    dtypes = ("float32",) if quick else ("float32", "float64")
    variants = [{}] if quick else [{}, {"reset_after": False}, {"use_cudnn": False}]
    for dtype, arguments, training in product(dtypes, variants, (False, True)):
        layer = GRU(_UNITS, dtype=dtype, **arguments)
        before = cached_files()
        start = time.perf_counter()
        for shape in _SHAPES:
            x = np.zeros(shape, dtype)
            if training:
                y, pullback = layer.vjp(x)
                pullback(y)
            else:
                layer(x)
        seconds = time.perf_counter() - start
        given = "".join(f" {key}={value}" for key, value in arguments.items())
        yield Warmed(
            f"{'training' if training else 'inference'} {dtype}{given}",
            layer.explain(_SHAPES[-1]).partition(":")[0],
            seconds,
            _functions(cached_files().keys() - before.keys()),
        )


def _functions(files: Iterable[str]) -> tuple[str, ...]:
    """Return the functions in files named ``module.function-line.version``."""
    return tuple(sorted({name.partition("-")[0] for name in files}))

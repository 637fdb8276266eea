"""Splitting work over Python threads.

Kernels release the GIL. Against ``prange`` the backward kernel compiles in 10 s instead
of 16, and it needs no threading layer of Numba's, so nothing can go wrong when callers
come from many threads at once; but handing over takes some 70 µs, which inference
cannot spend: its kernel has ``prange`` too.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from numba import config, get_num_threads


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(config.NUMBA_NUM_THREADS, "numbagru")


# Threads do not survive a fork; the child makes its own.
os.register_at_fork(after_in_child=_pool.cache_clear)


def split(count: int, run: Callable[[int, int], None], most: int | None = None) -> None:
    """Call ``run(first, stop)`` for contiguous shares of range(count), one per thread.

    As many threads as numba.get_num_threads() allows, and not more than `most`.
    """
    threads = count if most is None else min(count, most)
    if threads > 1:
        threads = min(threads, get_num_threads())
    if threads <= 1:
        run(0, count)
        return
    edges = [count * i // threads for i in range(threads + 1)]
    others = [
        _pool().submit(run, first, stop)
        for first, stop in itertools.pairwise(edges[1:])
    ]
    try:
        run(0, edges[1])
    finally:
        wait(others)
    for other in others:
        other.result()

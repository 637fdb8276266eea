"""Kernels stay inside the memory they ask for, seen by an allocator with guards.

A process of its own gives Numba's runtime CPython's debug allocator, which puts marked
bytes around each block and ends the process when a block with changed ones is freed.
"""

import itertools
import os
import subprocess
import sys

import pytest

from numbagru.kernels.forward_inputs import HOISTED_FROM

GUARDED = """
from numba.core import registry
from numba.core.runtime import _nrt_python, rtsys

rtsys.initialize(registry.cpu_target.target_context)
_nrt_python.memsys_use_cpython_allocator()
"""

OVERFLOW = """
import numpy as np
from numba import njit
from numbagru.kernels.simd import at, hold, pointer


@njit
def write_past(n):
    memory = np.empty(n, np.float32)
    for past in range(32):  # the runtime adds up to 64 bytes to align blocks
        at(pointer(memory), n + past)[0] = 1
    hold(memory)

write_past(100)
"""

CALLS = """
import numpy as np
import numbagru as ng

ng.set_num_threads({threads})
rng = np.random.default_rng(0)
for B, T, F, U in {shapes}:
    layer = ng.GRU(
        U, return_sequences=True, reset_after={reset_after}, dtype="{dtype}"
    )
    x = rng.standard_normal((B, T, F), dtype="{dtype}")
    lengths = rng.integers(0, T + 1, B)
    for given in [None, lengths]:
        layer(x, lengths=given)
        y, pullback = layer.vjp(x, lengths=given)
        pullback(np.ones_like(y))
"""


def run(code):
    return subprocess.run(
        [sys.executable, "-c", GUARDED + code],
        env={**os.environ, "PYTHONMALLOC": "malloc_debug"},
        capture_output=True,
        text=True,
    )


def test_an_overflow_is_seen():
    done = run(OVERFLOW)
    assert done.returncode != 0
    assert "bad trailing pad byte" in done.stderr


# Rows of one, two and four threads' blocks with one, some and all rows in the last one;
# inputs that are multiplied ahead and not; enough units for several threads, and few.
SHAPES = list(
    itertools.product(
        [0, 1, 2, 3, 5, 7, 9, 33, 65], [1, 9], [HOISTED_FROM - 1, 17], [5, 33, 130]
    )
)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_stay_inside(threads, reset_after, dtype):
    shapes = [(3, 20, 16, 256), *SHAPES]
    code = CALLS.format(
        threads=threads, reset_after=reset_after, dtype=dtype, shapes=shapes
    )
    done = run(code)
    assert done.returncode == 0, done.stderr

"""Memory that is used again: only when nobody sees it, and not without bound."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from numbagru.kernels import memory


@pytest.fixture(autouse=True)
def nothing_spare():
    memory._spare.clear()
    yield
    memory._spare.clear()


@pytest.mark.parametrize("shape", [(0,), (3, 5), (64, 257), (2, 0, 7), (2**23, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_arrays_start_cache_lines(shape, dtype):
    array = memory.empty(shape, dtype)
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable
    if array.nbytes > memory._SMALLEST:
        assert array.ctypes.data % 64 == 0


def test_memory_comes_back_with_the_last_view():
    array = memory.empty((300, 100), "float32")
    view, address = array[1:], array.ctypes.data
    del array
    other = memory.empty((300, 100), "float32")
    assert not np.shares_memory(view, other)
    del view
    assert memory.empty((290, 100), "float32").ctypes.data == address


def test_blocks_that_are_too_small_or_too_large_stay():
    address = memory.empty((300, 100), "float32").ctypes.data
    for rows in (301, 230):
        assert memory.empty((rows, 100), "float32").ctypes.data != address


def kept():
    gc.collect()
    return sum(block.size for block in memory._spare)


def test_what_is_kept_is_bounded():
    held = [memory.empty((memory._MOST_BYTES // 6,), "uint8") for _ in range(8)]
    held += [memory.empty((2**16,), "uint8") for _ in range(40)]
    held.clear()
    assert kept() <= memory._MOST_BYTES
    assert len(memory._spare) <= memory._MOST_BLOCKS


def test_a_new_block_takes_the_place_of_what_is_kept():
    held = [memory.empty((memory._MOST_BYTES // 6,), "uint8") for _ in range(5)]
    held.clear()
    before, size = kept(), memory._MOST_BYTES // 2
    assert before + size > memory._MOST_BYTES
    new = memory.empty((size,), "uint8")
    assert 0 < kept() <= memory._MOST_BYTES - new.nbytes


def test_what_exceeds_the_bound_goes_back_at_once():
    memory.empty((memory._MOST_BYTES + 1,), "uint8")
    assert kept() == 0


def test_threads_never_share():
    problems = []

    def use(number):
        for _ in range(300):
            arrays = [memory.empty((100 + number, 100), "float32") for _ in range(3)]
            for i, array in enumerate(arrays):
                array[:] = 3 * number + i
            for i, array in enumerate(arrays):
                if not (array == 3 * number + i).all():
                    problems.append(number)

    callers = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not problems


ENDING = """
import numba
import numpy as np
import numbagru as ng

@numba.njit
def half(x):
    return x / 2

@numba.njit
def slope(x):
    return x * 0 + 0.5

layer = ng.GRU(128, activation=ng.activations.Activation(half, slope))
result = layer.vjp(np.zeros((8, 100, 64), "float32"))
"""


def test_python_ends_without_complaint():
    """With functions of the caller's remembered, its variables outlive the modules."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""

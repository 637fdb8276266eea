"""Folds of rows: the order of their lanes, for any length and start."""

import numpy as np
import pytest
from numba import njit

from numbagru.folds import LANES, row_dot, row_max, row_sum

SIZES = [0, 1, 2, 15, 16, 17, 31, 32, 37, 64, 113]
DTYPES = ["float32", "float64"]


@njit
def largest(s, start, n):
    return row_max(s, start, n)


@njit
def total(s, start, n):
    return row_sum(s, start, n)


@njit
def product(s, a, b, n):
    return row_dot(s, a, b, n)


def by_lanes(numbers):
    """Add numbers as folds.py says, one operation at a time."""
    lanes = np.zeros(LANES, numbers.dtype)
    for k, number in enumerate(numbers):
        lanes[k % LANES] += number
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def row(n, dtype):
    """Draw numbers of many sizes, with others around that must not count."""
    rng = np.random.default_rng(n)
    numbers = rng.normal(size=n) * 10.0 ** rng.integers(-3, 4, n)
    return np.concatenate([[1e9] * 3, numbers, [1e9] * 40]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_sum_is_taken_by_lanes(n, dtype):
    s = row(n, dtype)
    assert total(s, 3, n) == by_lanes(s[3 : 3 + n])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES[1:])
def test_largest(n, dtype):
    s = -np.abs(row(n, dtype))
    assert largest(s, 3, n) == s[3 : 3 + n].max()
    s[3 + n - 1] = 5
    assert largest(s, 3, n) == 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_product(n, dtype):
    """Of whole numbers, whose sum is exact in any order."""
    s = np.arange(2 * n + 50).astype(dtype) % 11
    first, second = s[1 : 1 + n], s[n + 5 : 2 * n + 5]
    assert product(s, 1, n + 5, n) == first @ second


def test_nothing_after_the_row_is_read():
    """The rest of a row is not read: it may be the end of the memory."""
    s = np.full(LANES + 3, np.nan, "float32")
    s[:5] = 1
    assert total(s, 0, 5) == 5
    assert largest(s, 0, 5) == 1
    assert product(s, 0, 1, 4) == 4

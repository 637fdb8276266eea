"""Named tuples handed on by address."""

from typing import Any, NamedTuple

import pytest
from numba import njit
from numba.core.errors import TypingError

from numbagru.kernels.record import record


class Sides(NamedTuple):
    """Fields of different types, and constants."""

    count: Any
    length: Any
    wanted: Any

    offset = 100
    doubled = False


@njit
def total(sides, n):
    result = 0.0
    for _ in range(n):
        if sides.wanted:
            result += sides.count * sides.length
        if sides.doubled:
            result *= 2
    return result + sides.offset


@njit
def make(count, length, wanted, n):
    return total(record(Sides(count, length, wanted)), n)


@njit
def unknown(count):
    return record(Sides(count, count, True)).width


@njit
def not_a_tuple(count):
    return record(count)


def test_fields_and_constants():
    assert make(3, 1.5, True, 2) == 109
    assert make(3, 1.5, False, 2) == 100
    assert make(2, 1, True, 0) == 100


def test_one_tuple_after_the_other_in_a_loop():
    @njit
    def run(n):
        result = 0.0
        for i in range(n):
            result += total(record(Sides(i, 1.0, True)), 1)
        return result

    assert run(4) == 0 + 1 + 2 + 3 + 400


@pytest.mark.parametrize("function", [unknown, not_a_tuple])
def test_anything_else_does_not_compile(function):
    with pytest.raises(TypingError):
        function(1)

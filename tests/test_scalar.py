import math
from fractions import Fraction

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from numbagru import scalar

REALS = [np.float32, np.float64]
NUMBER = scalar.constant(0.1, 0.2)
CUBIC = scalar.polynomial((0.1, 0.2, 0.3, 0.4), (1.1, 1.2, 1.3, 1.4))
SHIFT = {np.float32: 12582912.0, np.float64: 6755399441055744.0}


@njit
def fma(a, b, c):
    return scalar.fma(a, b, c)


@njit
def two_to(shifted):
    return scalar.two_to(shifted)


@njit
def number(x):
    return NUMBER(x)


@njit
def cubic(x):
    return CUBIC(x)


@pytest.mark.parametrize("real", REALS)
def test_fma_rounds_once(real):
    """``fma(a, b, -(a b))`` is the exact error of the product, never zero here."""
    rng = np.random.default_rng(0)
    errors = 0
    for a, b in rng.normal(size=(200, 2)).astype(real):
        rounded = a * b
        exact = Fraction(float(a)) * Fraction(float(b)) - Fraction(float(rounded))
        result = fma(a, b, -rounded)
        assert Fraction(float(result)) == exact
        errors += exact != 0
    assert errors > 150


@pytest.mark.parametrize("real", REALS)
def test_results_have_the_type_of_the_data(real):
    """A float64 constant in float32 code would promote all that follows."""
    x = real(0.3)
    for function, count in [(fma, 3), (two_to, 1), (number, 1), (cubic, 1)]:
        function(*[x] * count)
        kinds = {str(sig.args[0]): sig for sig in function.nopython_signatures}
        assert str(kinds[real.__name__].return_type) == real.__name__


def test_float_types_do_not_mix():
    with pytest.raises(TypingError, match="fma"):
        fma(np.float32(1), np.float64(1), np.float32(1))
    for function in (two_to, number, cubic):
        with pytest.raises(TypingError):
            function(1)


@pytest.mark.parametrize("real", REALS)
def test_two_to_is_exact_for_all_normal_exponents(real):
    info = np.finfo(real)
    for n in range(info.minexp, info.maxexp):
        assert two_to(real(n + SHIFT[real])) == math.ldexp(1.0, n)


def test_constant_is_rounded_to_the_type():
    assert number(np.float32(7)) == np.float32(0.1)
    assert number(np.float64(7)) == 0.2
    assert number(np.float32(np.nan)) == np.float32(0.1)


@pytest.mark.parametrize("real", REALS)
def test_polynomial_is_horner_in_fma(real):
    coefficients = (0.1, 0.2, 0.3, 0.4) if real is np.float32 else (1.1, 1.2, 1.3, 1.4)
    c0, c1, c2, c3 = (real(c) for c in coefficients)
    for x in np.random.default_rng(0).normal(size=100).astype(real):
        total = c3
        for c in (c2, c1, c0):
            total = real(fma(total, x, c))
        assert cubic(x) == total

"""exp, expm1, log1p, erf, tanh and sigmoid in scalar fma, for float32 and float64.

Libraries disagree in the last bits and none of theirs vectorises inside our loops, so
the functions that the GRU needs are ours. The coefficients interpolate the function
named beside them at Chebyshev nodes (computed with mpmath at 50 digits). Largest
errors in ulp, float32 / float64, over the range where the result is a normal number,
as tests/test_elementary.py measures them against mpmath: see `MAX_ULP`.
"""

from __future__ import annotations

import math

from numbagru._jit import scalar
from numbagru.scalar import constant, fma, polynomial, two_to

MAX_ULP = {
    "exp": 1.5,
    "expm1_negative": 1.5,
    "log1p_unit": 3.0,
    "erf": 2.5,
    "tanh": 3.0,
    "sigmoid": 3.0,
}

# Adding 1.5 * 2**(mantissa bits) leaves the nearest integer in the low bits.
_rounding_shift = constant(12582912.0, 6755399441055744.0)
_log2_e = constant(math.log2(math.e), math.log2(math.e))
# ln 2 in two parts (Cody and Waite 1980, chapter 6): n times the first is exact.
_ln2_high = constant(0.693359375, 0.6931471803691238)
_ln2_low = constant(-2.1219444e-4, 1.9082149292705877e-10)
# (expm1(f) - f) / f**2 on |f| <= 0.35, error relative to expm1 2.6e-8 / 6e-19.
_expm1_tail = polynomial(
    (0.5, 0.1666657338190084602, 0.04166655011030512444, 0.008363773874405573498,
     0.001392692661402190648),
    (0.5, 0.1666666666666667144, 0.04166666666666667007, 0.0083333333333255447,
     0.001388888888888332667, 0.0001984126987686435493, 2.480158732700718673e-05,
     2.755725283351690975e-06, 2.755727181021979957e-07, 2.510627473357329469e-08,
     2.091544229778011522e-09),
)  # fmt: skip
# 2 atanh(s) / s in s**2 on s <= 1/3, error 1e-10 / 1e-18.
_two_atanh = polynomial(
    (1.999999999809006013, 0.6666667902643396956, 0.3999871124686233162,
     0.2862020740843723833, 0.2139856050667854324, 0.2439390808402302491),
    (2.0, 0.6666666666666614959, 0.4000000000018574747, 0.2857142854545411453,
     0.2222222408074767317, 0.1818174083250480451, 0.1538661404230400776,
     0.1330037403267462434, 0.1211016872806921765, 0.08324506511860820576,
     0.1704416356278139813),
)  # fmt: skip
# erf(x) / x in x**2 on |x| <= 1, error 1.3e-9 / 8e-18.
_erf_small = polynomial(
    (1.128379165848350946, -0.3761262666672033102, 0.1128359471516021773,
     -0.02685421201062641244, 0.005189087423433973986, -0.0008016864287165869529,
     7.875875062685488341e-05),
    (1.128379167095512567, -0.3761263890318354044, 0.1128379167094500627,
     -0.02686617064323777036, 0.005223977607116422732, -0.0008548325975389692081,
     0.0001205529490483970792, -1.492473690741966034e-05, 1.644742470331736241e-06,
     -1.62084838018717059e-07, 1.37200645467776856e-08, -7.795898827002142242e-10),
)  # fmt: skip
# erfc(x) exp(x**2) (1 + x) in u = (x - k) / (x + k), 1 <= x <= 7, error 6e-9 / 4e-18.
_erfc_centre = constant(3.0, 3.75)
_erfc_large = polynomial(
    (0.7160046035394011673, -0.2309272737238234999, 0.09902093241252669452,
     -0.0102383456924359592, -0.02380798899453364079, 0.02199796100998553495,
     -0.009721192360970992812, 0.001412845778714425811, 0.0005758094665420795007),
    (0.691551176056433, -0.20683126504048682, 0.11479674120104104,
     -0.04064757851686874, -0.0030998090545339622, 0.018750997231399096,
     -0.017275087321761032, 0.010070828163168892, -0.00397180820430841,
     0.0008650451196880455, 7.062017091719737e-05, -0.00012113274699350453,
     2.765303490040084e-05, 8.177501806217032e-06, -5.4134555774145574e-06,
     -4.818246646219548e-07, 5.229546214458506e-07),
)  # fmt: skip

_largest_exponent = constant(89.0, 710.0)
_smallest_exponent = constant(-104.0, -746.0)
_spare = constant(24.0, 54.0)
_two_to_spare = constant(2.0**24, 2.0**54)
_two_to_minus_spare = constant(2.0**-24, 2.0**-54)
_largest_normal_exponent = constant(87.0, 708.0)
# Beyond these expm1(2x) / (expm1(2x) + 2) is 1 to the last bit.
_tanh_saturates = constant(20.0, 40.0)


@scalar
def clip(x, low, high):
    """Clamp to [low, high]; NaN stays NaN."""
    x = high if x > high else x
    return low if x < low else x


@scalar
def _reduce(x):
    """Split x = n ln 2 + f; gives n + shift, expm1(f)."""
    shift = _rounding_shift(x)
    shifted = fma(x, _log2_e(x), shift)
    n = shifted - shift
    f = fma(-n, _ln2_low(x), fma(-n, _ln2_high(x), x))
    return shifted, fma(f * f, _expm1_tail(f), f)


@scalar
def exp(x):
    """e**x over the whole range, with gradual underflow and overflow to inf."""
    shifted, p = _reduce(clip(x, _smallest_exponent(x), _largest_exponent(x)))
    # 2**n in two factors: the first keeps within the normal numbers.
    big = shifted > _rounding_shift(x)
    spare = _spare(x)
    scale = two_to(shifted - (spare if big else -spare))
    return fma(scale, p, scale) * (_two_to_spare(x) if big else _two_to_minus_spare(x))


@scalar
def exp_negative(x):
    """`exp` for x <= 0, with the same bits: never large, so one scale will do."""
    low = _smallest_exponent(x)
    shifted, p = _reduce(low if x < low else x)
    scale = two_to(shifted + _spare(x))
    return fma(scale, p, scale) * _two_to_minus_spare(x)


@scalar
def _expm1_in_range(x):
    """expm1 for |x| where 2**n is a normal number."""
    shifted, p = _reduce(x)
    scale = two_to(shifted)
    return fma(scale, p, scale - type(x)(1))


@scalar
def expm1_negative(x):
    """expm1 for x <= 0, as elu and its kin need it."""
    return _expm1_in_range(clip(x, -_tanh_saturates(x) * type(x)(2), type(x)(0)))


@scalar
def tanh(x):
    """expm1(2x) / (expm1(2x) + 2), to full relative precision near 0."""
    two = type(x)(2)
    limit = _tanh_saturates(x)
    e = _expm1_in_range(clip(x + x, -limit, limit))
    return e / (e + two)


@scalar
def sigmoid(x):
    """1 / (1 + e**-x); stops falling at the smallest normal number."""
    one = type(x)(1)
    limit = _largest_normal_exponent(x)
    shifted, p = _reduce(clip(-x, -limit, limit))
    scale = two_to(shifted)
    return one / (one + fma(scale, p, scale))


@scalar
def log1p_unit(x):
    """log(1 + x) for 0 <= x <= 1 by 2 atanh(x / (2 + x))."""
    s = x / (x + type(x)(2))
    return s * _two_atanh(s * s)


@scalar
def erf(x):
    """Return the error function."""
    one = type(x)(1)
    size = clip(abs(x), type(x)(0), type(x)(7))
    centre = _erfc_centre(x)
    u = (size - centre) / (size + centre)
    tail = exp(-(size * size)) * _erfc_large(u) / (one + size)
    large = one - tail if x > type(x)(0) else tail - one
    return x * _erf_small(x * x) if size < one else large

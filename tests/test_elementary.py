"""The elementary functions against mpmath, SciPy and what must hold exactly."""

import mpmath
import numpy as np
import pytest
import scipy.special
from numba import njit

from numbagru import elementary
from numbagru.elementary import MAX_ULP

mpmath.mp.dps = 40


@njit
def mapped(function, x):
    y = np.empty_like(x)
    for i in range(x.size):
        y[i] = function(x[i])
    return y


def evaluate(name, x):
    return mapped(getattr(elementary, name), np.asarray(x))


# name: (function in mpmath, in float64 NumPy or SciPy, domain; +-1 for all numbers)
FUNCTIONS = {
    "exp": (mpmath.exp, np.exp, (-np.inf, np.inf)),
    "expm1_negative": (mpmath.expm1, np.expm1, (-np.inf, 0)),
    "log1p_unit": (mpmath.log1p, np.log1p, (0, 1)),
    "erf": (mpmath.erf, scipy.special.erf, (-np.inf, np.inf)),
    "tanh": (mpmath.tanh, np.tanh, (-np.inf, np.inf)),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), scipy.special.expit, (-87, np.inf)),
}
REALS = [np.float32, np.float64]


def inside(x, domain):
    with np.errstate(invalid="ignore"):
        return x[(x >= domain[0]) & (x <= domain[1]) & np.isfinite(x)]


def test_table_of_errors_is_complete():
    assert set(MAX_ULP) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_float32_over_all_binades(name):
    """A million floats, evenly over all bit patterns; float64 is exact next to them."""
    _, exact, domain = FUNCTIONS[name]
    patterns = np.arange(0, 2**32, 4001, dtype=np.uint64).astype(np.uint32)
    dense = np.linspace(-20, 20, 200_001).astype(np.float32)
    x = inside(np.concatenate([patterns.view(np.float32), dense]), domain)
    with np.errstate(over="ignore", under="ignore"):
        y = exact(x.astype(np.float64))
    normal = (np.abs(y) >= np.finfo(np.float32).tiny) & (
        np.abs(y) <= np.finfo(np.float32).max
    )
    x, y = x[normal], y[normal]
    error = np.abs(evaluate(name, x) - y) / np.spacing(np.abs(y).astype(np.float32))
    assert error.max() <= MAX_ULP[name], x[error.argmax()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_float64(name):
    exact, _, domain = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    spread = np.exp2(rng.uniform(-60, 9.4, 3000)) * rng.choice([-1, 1], 3000)
    x = np.concatenate([spread, rng.uniform(-8, 8, 3000), rng.uniform(0, 1, 1000)])
    x = inside(x, domain if name != "sigmoid" else (-708, np.inf))
    y = evaluate(name, x)
    for value, result in zip(x, y, strict=True):
        true = exact(mpmath.mpf(float(value)))
        nearest = abs(float(true))
        if np.finfo(np.float64).tiny <= nearest <= np.finfo(np.float64).max:
            error = abs(mpmath.mpf(float(result)) - true) / np.spacing(nearest)
            assert error <= MAX_ULP[name], value


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_stays_in_its_type_and_lets_nan_through(name, real):
    y = evaluate(name, np.array([np.nan], real))
    assert y.dtype == real
    assert np.isnan(y).all()
    kinds = {str(s.args[0]): s for s in getattr(elementary, name).nopython_signatures}
    assert str(kinds[real.__name__].return_type) == real.__name__


INF = np.inf
SPECIAL = [
    ("exp", [-INF, -1e4, -0.0, 0.0, 1e4, INF], [0, 0, 1, 1, INF, INF]),
    ("expm1_negative", [-INF, -1e4, 0.0], [-1, -1, 0]),
    ("log1p_unit", [0.0], [0]),
    ("erf", [-INF, -7.0, 0.0, 7.0, INF], [-1, -1, 0, 1, 1]),
    ("tanh", [-INF, -1e4, -45.0, 0.0, 45.0, 1e4, INF], [-1, -1, -1, 0, 1, 1, 1]),
    ("sigmoid", [0.0, 45.0, 1e4, INF], [0.5, 1, 1, 1]),
]


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize(("name", "x", "y"), SPECIAL)
def test_exact_values(name, x, y, real):
    np.testing.assert_array_equal(evaluate(name, np.array(x, real)), np.array(y, real))


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("name", ["expm1_negative", "tanh"])
def test_smallest_numbers_keep_their_value(name, real):
    """f(x) = x (1 + O(x)): no cancellation near zero, subnormal numbers included."""
    info = np.finfo(real)
    x = np.array([info.smallest_subnormal, info.tiny / 3, info.tiny, info.eps / 16])
    x = (-x if name == "expm1_negative" else x).astype(real)
    np.testing.assert_array_equal(evaluate(name, x), x)


@pytest.mark.parametrize("real", REALS)
def test_exp_underflows_gradually(real):
    info = np.finfo(real)
    low = np.log(float(info.smallest_subnormal)) - 2
    x = np.linspace(low, np.log(float(info.tiny)), 5000).astype(real)
    true = [mpmath.exp(mpmath.mpf(float(value))) for value in x]
    y = evaluate("exp", x)
    unit = float(info.smallest_subnormal)
    error = [abs(float(a) - b) / unit for a, b in zip(y, true, strict=True)]
    # Half a unit of rounding, after the error of exp itself, which is smaller here.
    assert max(error) <= 1
    assert np.count_nonzero((y > 0) & (y < info.tiny)) > 1000
    assert (np.diff(y) >= 0).all()


@pytest.mark.parametrize("real", REALS)
def test_exp_of_negative_numbers_is_exp(real):
    x = -np.geomspace(1e-8, 1000, 5000).astype(real)
    x = np.concatenate([x, np.array([0, -np.inf, np.nan], real)])
    assert evaluate("exp_negative", x).tobytes() == evaluate("exp", x).tobytes()


@pytest.mark.parametrize("real", REALS)
def test_exp_overflows_where_the_result_does(real):
    info = np.finfo(real)
    edge = real(np.log(float(info.max)))
    below = np.nextafter(edge, real(0)) - 4 * np.spacing(edge)
    assert np.isfinite(evaluate("exp", np.array([below]))).all()
    above = np.nextafter(edge, real(np.inf)) + 4 * np.spacing(edge)
    assert np.isinf(evaluate("exp", np.array([above]))).all()


RANGES = {
    "exp": (-INF, 0, 0, 1),
    "expm1_negative": (-INF, 0, -1, 0),
    "erf": (-INF, INF, -1, 1),
    "tanh": (-INF, INF, -1, 1),
    "sigmoid": (-INF, INF, 0, 1),
}


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("name", RANGES)
def test_results_stay_in_range(name, real):
    """A gate outside [0, 1] or a tanh above 1 would break what is built on them."""
    *domain, low, high = RANGES[name]
    x = np.concatenate([np.linspace(-50, 50, 400_001), np.linspace(-800, 800, 10_001)])
    y = evaluate(name, inside(x, domain).astype(real))
    assert y.min() >= low
    assert y.max() <= high


@pytest.mark.parametrize("real", REALS)
def test_sigmoid_stops_at_the_smallest_normal_number(real):
    y = evaluate("sigmoid", np.array([-np.inf, -1e4, -800.0], real))
    tiny = np.finfo(real).tiny
    assert ((y >= tiny) & (y <= 2 * tiny)).all()


@pytest.mark.parametrize("real", REALS)
def test_erf_is_odd(real):
    x = np.linspace(0, 8, 100_001).astype(real)
    np.testing.assert_array_equal(evaluate("erf", -x), -evaluate("erf", x))


@njit
def clipped(x, low, high):
    return elementary.clip(x, low, high)


def test_clip():
    values = [(-3.0, -1.0), (0.5, 0.5), (3.0, 2.0), (np.inf, 2.0), (-np.inf, -1.0)]
    for x, y in values:
        assert clipped(x, -1.0, 2.0) == y
    assert np.isnan(clipped(np.nan, -1.0, 2.0))

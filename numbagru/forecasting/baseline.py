"""What the past alone says: lags of whole seasons, drift, and the naive forecast.

A series is an array `y` with NaN for what is missing. An origin T is the number of
values known: a forecast from T uses `y[:T]` and is for the steps T, T + 1, ...
"""

from __future__ import annotations

import numpy as np

# Seasons that anchors and drift look back at: enough to average the weather out, few
# enough to follow a trend that changes.
SEASONS = 10


def lags(season: float, count: int) -> np.ndarray:
    """Return the steps in 0, 1, ..., count seasons; a season may be a fraction."""
    return np.rint(season * np.arange(count + 1)).astype(int)


def seasons_back(season: float, horizon: int) -> np.ndarray:
    """Return for leads 1..horizon the fewest seasons back that reach what is known."""
    known = lags(season, int(horizon / season) + 2)
    return np.searchsorted(known, np.arange(1, horizon + 1))


def drift(y: np.ndarray, season: float, origins: np.ndarray) -> np.ndarray:
    """Return the mean change per season before each origin, zero where none is known.

    Over ten seasons or a quarter of the past, whichever is longer: ten short seasons
    would make a drift of noise.
    """
    one, ten = lags(season, SEASONS)[[1, -1]]
    change = np.full(len(y), np.nan)
    change[one:] = y[one:] - y[:-one]
    known = ~np.isnan(change)
    total = np.concatenate([[0], np.cumsum(np.where(known, change, 0))])
    count = np.concatenate([[0], np.cumsum(known)])
    first = np.maximum(origins - np.maximum(ten, origins // 4), 0)
    number = count[origins] - count[first]
    return (total[origins] - total[first]) / np.maximum(number, 1) * (number > 0)


def seasonal_naive(
    y: np.ndarray, season: float, origin: int, horizon: int
) -> np.ndarray:
    """Forecast with the latest known value of the same phase plus the drift since.

    Parameters
    ----------
    y : ndarray
        The series; values from `origin` on are not read.
    season : float
        Steps in a season.
    origin : int
        Number of known values.
    horizon : int
        Number of steps to forecast.

    Returns
    -------
    ndarray (horizon,)
        NaN where the phase was never observed.
    """
    per_season = drift(y, season, np.array([origin]))[0]
    steps = np.arange(origin, origin + horizon)
    back = seasons_back(season, horizon)
    distance = lags(season, int(np.max(back) + origin / season) + 1)
    forecast = np.full(horizon, np.nan)
    while True:
        at = steps - distance[np.minimum(back, len(distance) - 1)]
        open_ = np.isnan(forecast) & (at >= 0)
        if not open_.any():
            return forecast
        forecast[open_] = y[at[open_]] + back[open_] * per_season
        back = back + 1


def best_season(y: np.ndarray, candidates: tuple[float, ...], horizon: int) -> float:
    """Return the season whose naive forecast errs least on `y`, 1 for none.

    Every candidate must have fit three times into the record.
    """
    fitting = [s for s in candidates if 3 * s <= len(y)]
    return min([*fitting, 1.0], key=lambda season: _naive_error(y, season, horizon))


def _naive_error(y, season, horizon):
    per_season = drift(y, season, np.array([len(y)]))[0]
    back, errors = seasons_back(season, horizon), []
    for k in np.unique(back):
        lag = lags(season, k)[k]
        # A change over k seasons is the error of each lead that looks back so far.
        error = np.abs(y[lag:] - y[:-lag] - k * per_season)
        if lag < len(y) and not np.isnan(error).all():
            errors.append(np.nanmean(error) * np.count_nonzero(back == k))
    return sum(errors) / horizon if errors else np.inf

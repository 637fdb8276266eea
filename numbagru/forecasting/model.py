"""The forecaster: a GRU that reads the past of a series and answers all leads at once.

An anchor, the mean of the same phase in ten earlier seasons each with its drift, takes
season and trend out of the series; the last residual against it is the level from which
the forecast departs. The GRU reads the residuals of the past relative to that level,
with gaps masked, and its last output gives the correction of each lead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from numbagru import initializers
from numbagru.forecasting.baseline import SEASONS, drift, lags, seasons_back
from numbagru.layers import GRU, Dense
from numbagru.training import Sequential, losses, optimizers
from numbagru.training.callbacks import Callback, EarlyStopping

# More windows than this are thinned out: they overlap anyway, and time is finite.
MOST_WINDOWS = 2500
MOST_CONTEXT = 400
LEAST_CONTEXT = 24
FEATURES = 4


@dataclass(frozen=True)
class Windows:
    """What the GRU reads, and what it is to answer, for some origins.

    B origins, L steps of context, H leads; values in units of the series.
    """

    inputs: np.ndarray  # (B, L, 4): residual, sine and cosine of the phase, age
    mask: np.ndarray  # (B, L): whether the step is known
    base: np.ndarray  # (B, H): the forecast that the GRU corrects
    target: np.ndarray  # (B, H): the correction; NaN where unknown

    def scaled(self, unit: float) -> np.ndarray:
        """Return the inputs with residuals in `unit`."""
        return self.inputs / np.array([unit] + [1] * (FEATURES - 1))


def context_length(season: float, horizon: int) -> int:
    """Return how many steps the GRU reads: two seasons and the horizon, in limits."""
    wanted = max(round(2 * season), horizon, LEAST_CONTEXT)
    return min(wanted, MOST_CONTEXT)


def windows(
    y: np.ndarray, season: float, origins: np.ndarray, context: int, horizon: int
) -> Windows:
    """Cut windows; all but `target` depends on values before each origin only."""
    origins = np.asarray(origins)
    steps = origins[:, None] + np.arange(-context, horizon)
    back = np.concatenate([np.ones(context, int), seasons_back(season, horizon)])
    per_season = drift(y, season, origins)
    anchor = _anchors(y, season, steps, back, per_season)

    past = steps[:, :context]
    residual = _at(y, past) - anchor[:, :context]
    mask = ~np.isnan(residual)
    latest = context - 1 - np.argmax(mask[:, ::-1], axis=1)
    rows = np.arange(len(origins))
    level = np.where(mask.any(axis=1), residual[rows, latest], 0)[:, None]

    phase = 2 * np.pi * past / season
    inputs = np.zeros((*past.shape, FEATURES))
    inputs[..., 0] = np.where(mask, residual - level, 0)
    if season > 1:
        inputs[..., 1], inputs[..., 2] = np.sin(phase), np.cos(phase)
    inputs[..., 3] = np.linspace(-1, 0, context)
    base = anchor[:, context:] + level
    return Windows(inputs, mask, base, _at(y, steps[:, context:]) - base)


def _anchors(y, season, steps, back, per_season):
    """Mean over ten seasons, `back` ago and before, of the value plus its drift."""
    distance = lags(season, int(back.max()) + SEASONS)
    total, count = np.zeros(steps.shape), np.zeros(steps.shape)
    for k in range(SEASONS):
        value = _at(y, steps - distance[back + k]) + (back + k) * per_season[:, None]
        known = ~np.isnan(value)
        total += np.where(known, value, 0)
        count += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _at(y, steps):
    inside = (steps >= 0) & (steps < len(y))
    return np.where(inside, y[np.clip(steps, 0, len(y) - 1)], np.nan)


class EachLead(losses.Loss):
    """Absolute error of every lead for itself, so that weights can leave some out."""

    def call(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """Return the absolute errors (B, H)."""
        return np.abs(y_true - y_pred)

    def pullback(
        self, y_true: np.ndarray, y_pred: np.ndarray, d_values: np.ndarray
    ) -> np.ndarray:
        """Return the cotangent of `y_pred`."""
        return np.sign(y_pred - y_true) * d_values


@dataclass(frozen=True)
class Task:
    """One forecasting problem: all that its trainings share.

    Parameters
    ----------
    values : ndarray
        The series, NaN where a value is missing.
    season : float
        Steps in a season; 1 for none.
    horizon : int
        Steps to forecast.
    units : int
        Units of the GRU.
    seed : int
        Of weights and order of batches.
    """

    values: np.ndarray
    season: float
    horizon: int
    units: int = 32
    seed: int = 0

    @property
    def context(self) -> int:
        """Steps that the GRU reads."""
        return context_length(self.season, self.horizon)

    @property
    def first_origin(self) -> int:
        """The first origin with a season of past for context and drift."""
        reach = int(seasons_back(self.season, self.horizon)[-1])
        return int(lags(self.season, reach + 1)[-1]) + 1

    def windows(self, origins: np.ndarray) -> Windows:
        """Cut windows at origins."""
        return windows(self.values, self.season, origins, self.context, self.horizon)

    def training_origins(self, end: int) -> np.ndarray:
        """Return the origins whose targets end before `end`, the latest always in."""
        last = end - self.horizon
        stride = -(-max(last - self.first_origin, 1) // MOST_WINDOWS)
        return np.arange(last, self.first_origin - 1, -stride)[::-1]

    def train(
        self, end: int, epochs: int, callbacks: Iterable[Callback] = ()
    ) -> Forecaster:
        """Train on `values[:end]`."""
        return _fit(self, self.windows(self.training_origins(end)), epochs, callbacks)

    def choose_epochs(
        self, end: int, most: int, callbacks: Iterable[Callback] = ()
    ) -> int:
        """Return the number of epochs after which unseen years fare best.

        Trains on what comes before the last fifth of `values[:end]`, never on a target
        of that fifth, and watches the error there.
        """
        origins = self.training_origins(end)
        split = int(origins[len(origins) * 4 // 5])
        later = self.windows(origins[origins >= split])
        earlier = self.windows(self.training_origins(split))
        stop = EarlyStopping(patience=5)
        callbacks = [stop, *callbacks]
        _fit(self, earlier, most, callbacks, later)
        return stop.best_epoch + 1


@dataclass(frozen=True)
class Forecaster:
    """A trained network and the unit of its inputs and outputs."""

    network: Sequential
    unit: float

    def __call__(self, at: Windows) -> np.ndarray:
        """Return the forecasts (B, H), NaN for a phase that was never observed."""
        correction = self.network.predict(at.scaled(self.unit), mask=at.mask)
        return at.base + correction * self.unit

    def explain(self, at: Windows) -> str:
        """Say which kernel runs for these windows."""
        return self.network.layers[0].explain(at.inputs.shape, at.mask)


def _fit(task, at, epochs, callbacks, unseen=None):
    residuals = at.inputs[at.mask][:, 0]
    unit = float(np.sqrt(np.mean(residuals**2))) if residuals.any() else 1.0
    network = Sequential(
        [
            GRU(
                task.units,
                kernel_initializer=initializers.GlorotUniform(task.seed),
                recurrent_initializer=initializers.Orthogonal(seed=task.seed),
            ),
            # Zero: training starts from a forecast that is the base itself.
            Dense(task.horizon, kernel_initializer="zeros"),
        ]
    )
    network.compile(optimizers.Adam(1e-3), EachLead("mean_with_sample_weight"))
    x, y, weight, mask = _data(at, unit)
    network.fit(
        x, y, epochs=epochs, verbose=0, callbacks=list(callbacks), mask=mask,
        validation_data=None if unseen is None else _data(unseen, unit),
        sample_weight=weight, seed=task.seed,
    )  # fmt: skip
    return Forecaster(network, unit)


def _data(at, unit):
    known = ~np.isnan(at.target)
    return at.scaled(unit), np.where(known, at.target, 0) / unit, known, at.mask

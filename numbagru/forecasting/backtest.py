"""The back-test: what the forecaster and the baseline would have said in the past."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from numbagru.forecasting.baseline import lags, seasonal_naive
from numbagru.forecasting.clock import InputError
from numbagru.forecasting.model import Task
from numbagru.training.callbacks import Callback

MOST_EPOCHS = 30
LEAST_WINDOWS = 20
COVERAGE = 0.8
# Origins per training: their mean depends less on the phase and on the last value.
ROLLS = 12

Stage = Callable[[str], Sequence[Callback]]


@dataclass(frozen=True)
class Measures:
    """Errors of one forecaster: their means, and scaled as Hyndman & Koehler (2006)."""

    mae: float
    rmse: float
    mase: float


@dataclass(frozen=True)
class Trial:
    """What one training forecast from several origins, and what came.

    R origins, H leads; arrays are (R, H), NaN where nothing is known. `anchor` is what
    the GRU corrects, to tell how much the network itself adds. `scale` is the mean
    absolute change over one season before the first origin, the unit of MASE.
    """

    origins: np.ndarray  # (R,); the model was trained on what came before the first
    truth: np.ndarray
    baseline: np.ndarray
    anchor: np.ndarray
    gru: np.ndarray
    scale: float

    @property
    def origin(self) -> int:
        """The first origin."""
        return int(self.origins[0])


@dataclass(frozen=True)
class BackTest:
    """The trials, and the number of epochs that all trainings took."""

    trials: list[Trial]
    epochs: int

    def band(self, horizon: int) -> np.ndarray:
        """Half the width (H,) that 80 % of the GRU's errors stayed in.

        Taken over all trials in quarters of the leads, never narrower further ahead.
        """
        error = np.concatenate([np.abs(t.gru - t.truth) for t in self.trials])
        quarters = np.array_split(np.arange(horizon), min(4, horizon))
        widths, middles = [], []
        for leads in quarters:
            known = error[:, leads][~np.isnan(error[:, leads])]
            if known.size:
                widths.append(np.quantile(known, COVERAGE))
                middles.append(leads.mean())
        if not widths:
            return np.full(horizon, np.nan)
        return np.interp(np.arange(horizon), middles, np.maximum.accumulate(widths))


def measured(trials: Sequence[Trial], forecast: str) -> tuple[int, Measures]:
    """Return the number of values compared and the measures over some trials.

    A step counts where it was observed and both forecasts exist.

    Parameters
    ----------
    trials : sequence of Trial
    forecast : {"baseline", "anchor", "gru"}
    """
    errors, scaled = [], []
    for trial in trials:
        known = ~np.isnan(trial.truth + trial.baseline + trial.gru)
        error = (getattr(trial, forecast) - trial.truth)[known]
        errors.append(error)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled.append(np.abs(error) / trial.scale)
    every = np.concatenate(errors)
    if not every.size:
        return 0, Measures(np.nan, np.nan, np.nan)
    return every.size, Measures(
        float(np.mean(np.abs(every))),
        float(np.sqrt(np.mean(every**2))),
        float(np.mean(np.concatenate(scaled))),
    )


def choose_origins(task: Task, most: int) -> list[int]:
    """Return up to `most` origins, one horizon apart, the last one before the end.

    Raises
    ------
    InputError
        If the record is too short for one.
    """
    # The last fifth of the windows, without those that share a target with it, must
    # leave enough to learn from (Task.choose_epochs).
    windows = -(-5 * (task.horizon + LEAST_WINDOWS) // 4)
    first = task.first_origin + task.horizon + windows
    last = len(task.values) - task.horizon
    if last < first:
        raise InputError(
            f"too few rows: a horizon of {task.horizon} steps and a season of "
            f"{task.season:g} need {first + task.horizon}, from the first value to the "
            f"last; found {len(task.values)}. Use a shorter horizon or season"
        )
    return list(range(last, first - 1, -task.horizon))[:most][::-1]


def back_test(
    task: Task,
    origins: Sequence[int],
    stage: Stage,
    label: Callable[[int], str] = str,
    epochs: int | None = None,
) -> BackTest:
    """Train before each origin on nothing but what came before it, and compare.

    Each model also forecasts from later origins, a twelfth of the horizon apart, up to
    the next training.

    Parameters
    ----------
    task : Task
    origins : sequence of int
        Ascending, as of `choose_origins`.
    stage : callable
        Receives the title of each training, gives its callbacks.
    label : callable, optional
        Text of a step, for the titles.
    epochs : int, optional
        Default: chosen on what came before the first origin.
    """
    if epochs is None:
        callbacks = stage(
            "choosing the number of epochs; kernels may have to be compiled first"
        )
        epochs = task.choose_epochs(origins[0], MOST_EPOCHS, callbacks)
    trials = []
    for origin in origins:
        callbacks = stage(f"training on all up to {label(origin - 1)}")
        trials.append(_trial(task, origin, task.train(origin, epochs, callbacks)))
    return BackTest(trials, epochs)


def _trial(task, origin, forecaster):
    """Forecast from `origin` and from later ones until the next training."""
    y, season, horizon = task.values, task.season, task.horizon
    origins = np.unique(origin + np.arange(ROLLS) * horizon // ROLLS)
    at = task.windows(origins)
    beyond = np.concatenate([y, np.full(2 * horizon, np.nan)])
    return Trial(
        origins=origins,
        truth=beyond[origins[:, None] + np.arange(horizon)],
        baseline=np.array([seasonal_naive(y, season, o, horizon) for o in origins]),
        anchor=at.base,
        gru=forecaster(at),
        scale=_seasonal_change(y[:origin], season),
    )


def _seasonal_change(y, season):
    lag = lags(season, 1)[1]
    change = np.abs(y[lag:] - y[:-lag])
    return float(np.nanmean(change)) if not np.isnan(change).all() else np.nan


def table(result: BackTest, label: Callable[[int], str] = str) -> str:
    """Return the measures per origin and overall as text."""
    names = {trial.origin: label(trial.origin - 1) for trial in result.trials}
    width = max(8, *map(len, names.values()))
    digits = _digits(measured(result.trials, "baseline")[1].mae)
    heads = [*2 * ("MAE", "RMSE", "MASE"), "skill"]
    lines = [
        f"{'':{width + 8}}{'seasonal naive + drift':>27}{'GRU':>27}",
        f"{'known to':{width}}{'values':>8}" + "".join(f"{h:>9}" for h in heads),
    ]
    groups = [(names[trial.origin], [trial]) for trial in result.trials]
    for name, trials in [*groups, ("all", result.trials)]:
        count, naive = measured(trials, "baseline")
        _, gru = measured(trials, "gru")
        cells = [
            _cell(value, decimals)
            for m in (naive, gru)
            for value, decimals in ((m.mae, digits), (m.rmse, digits), (m.mase, 2))
        ]
        cells.append(f"{1 - gru.mae / naive.mae:+.0%}" if naive.mae > 0 else "-")
        row = "".join(f"{cell:>9}" for cell in cells)
        lines.append(f"{name:{width}}{count:8d}{row}")
    return "\n".join(lines)


def _cell(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def _digits(size: float) -> int:
    """Decimals that show three digits of a number of that size."""
    return max(0, 2 - math.floor(math.log10(size))) if size > 0 else 3


def skill(result: BackTest, forecast: str = "gru") -> float:
    """Return 1 - MAE / MAE of the baseline over all trials; NaN if that is zero."""
    mae = measured(result.trials, "baseline")[1].mae
    return 1 - measured(result.trials, forecast)[1].mae / mae if mae else np.nan

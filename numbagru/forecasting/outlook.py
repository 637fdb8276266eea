"""The forecast beyond the end of the record."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numbagru.forecasting.backtest import BackTest, Stage
from numbagru.forecasting.baseline import seasonal_naive
from numbagru.forecasting.model import Task
from numbagru.forecasting.series import Series


@dataclass(frozen=True)
class Outlook:
    """Forecasts (H,) of the steps after the record; NaN where a phase is never seen."""

    gru: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    baseline: np.ndarray
    kernel: str

    @property
    def horizon(self) -> int:
        """Number of steps."""
        return len(self.gru)


def look_ahead(task: Task, result: BackTest, stage: Stage) -> Outlook:
    """Train on the whole record and forecast from its end.

    The band is as wide as 80 % of the errors in the back-test were.
    """
    end = len(task.values)
    forecaster = task.train(end, result.epochs, stage("training on the whole record"))
    at = task.windows(np.array([end]))
    forecast, band = forecaster(at)[0], result.band(task.horizon)
    return Outlook(
        gru=forecast,
        lower=forecast - band,
        upper=forecast + band,
        baseline=seasonal_naive(task.values, task.season, end, task.horizon),
        kernel=forecaster.explain(at),
    )


def write_csv(path: str | Path, series: Series, outlook: Outlook) -> None:
    """Write a row per step; a forecast that does not exist is an empty field.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    columns = {
        series.name: outlook.gru,
        "lower_80": outlook.lower,
        "upper_80": outlook.upper,
        "seasonal_naive": outlook.baseline,
    }
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([series.axis, *columns])
        for h, row in enumerate(zip(*columns.values(), strict=True)):
            fields = ["" if np.isnan(value) else f"{value:.8g}" for value in row]
            writer.writerow([series.clock.label(len(series) + h), *fields])

"""The picture of a record, its back-test and the forecast."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from numbagru.forecasting.backtest import BackTest, skill
from numbagru.forecasting.outlook import Outlook
from numbagru.forecasting.series import Series

RECORD, BASELINE, GRU, FORECAST = "#3b3b3b", "#d98200", "#0b62b8", "#c1121f"


def draw(
    path: str | Path,
    series: Series,
    result: BackTest,
    outlook: Outlook,
    unit: str | None = None,
) -> None:
    """Write a PNG: the whole record above, back-test and forecast below.

    Parameters
    ----------
    path : str or Path
    series : Series
    result : BackTest
    outlook : Outlook
    unit : str, optional
        Of the values, for the axes.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    OSError
        If the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: nothing global is touched, no display is needed.
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    whole, recent, errors = figure.subplots(3, 1, height_ratios=(3, 5, 2))
    errors.sharex(recent)
    value = f"{series.name} ({unit})" if unit else series.name

    _record(whole, series, 0)
    _forecast(whole, series, outlook, band=False)
    first, last = result.trials[0].origin, len(series) - 1
    whole.axvspan(
        series.clock.time(first), series.clock.time(last), color=GRU, alpha=0.07, lw=0
    )
    missing = len(series) - series.observed
    whole.set_title(
        f"{series.name}: {series.observed} values, {missing} missing; "
        "the shaded part is below",
        loc="left",
    )

    origins = np.concatenate([trial.origins for trial in result.trials])
    _record(recent, series, max(first - outlook.horizon // 2, 0))
    _trials(recent, errors, series, result.trials)
    _forecast(recent, series, outlook, band=True)
    recent.set_title(
        f"Back-test, {len(result.trials)} of {len(origins)} origins (vertical lines)"
        f"{_claim(result)}; forecast on grey",
        loc="left",
    )
    errors.axhline(0, color="0.6", lw=0.8)

    for axes in (whole, recent):
        axes.set_ylabel(value)
    errors.set_ylabel(f"error ({unit})" if unit else "error")
    errors.set_xlabel(series.axis)
    for axes in (whole, recent, errors):
        axes.margins(x=0.01)
        axes.grid(axis="y", color="0.92", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    # Outside, where it covers no data.
    figure.legend(
        *recent.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    FigureCanvasAgg(figure).print_png(str(path))


def _claim(result):
    share = skill(result)
    if np.isnan(share):
        return ""
    than = "smaller" if share >= 0 else "larger"
    return f": the GRU's error is {abs(share):.0%} {than} than the baseline's"


def _trials(axes, errors, series, trials):
    """Draw the first forecast of each training, and below forecast - observed."""
    for i, trial in enumerate(trials):
        steps = range(trial.origin, trial.origin + trial.truth.shape[1])
        times = [series.clock.time(step) for step in steps]
        for each in (axes, errors):
            each.axvline(times[0], color="0.85", lw=0.8, zorder=0)
        for forecast, color, name in (
            (trial.baseline[0], BASELINE, "back-test: seasonal naive + drift"),
            (trial.gru[0], GRU, "back-test: GRU"),
        ):
            label = name if i == 0 else None
            axes.plot(times, forecast, color=color, lw=1.2, label=label)
            errors.plot(times, forecast - trial.truth[0], color=color, lw=1)


def _record(axes, series, first):
    times = [series.clock.time(step) for step in range(first, len(series))]
    # NaN interrupts the line; dots keep single values visible between gaps.
    axes.plot(
        times, series.values[first:], color=RECORD, lw=0.6, marker=".", ms=2,
        label="observed",
    )  # fmt: skip


def _forecast(axes, series, outlook, band):
    end = len(series)
    times = [series.clock.time(end + h) for h in range(outlook.horizon)]
    if band:
        axes.axvspan(times[0], times[-1], color="0.96", lw=0, zorder=-1)
        axes.fill_between(
            times, outlook.lower, outlook.upper, color=GRU, alpha=0.2, lw=0,
            label="80 % of the back-test's errors",
        )  # fmt: skip
    axes.plot(times, outlook.gru, color=FORECAST, lw=1.6, label="GRU forecast")

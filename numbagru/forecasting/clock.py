"""The time axis of a series: evenly spaced steps, found from dates or counted."""

from __future__ import annotations

import calendar
import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np

# Gregorian mean year; the lags of weekly or daily data then stay in phase.
YEAR = timedelta(days=365.2425)
PERIODS = (timedelta(days=1), timedelta(weeks=1), YEAR)


class InputError(ValueError):
    """Something in the user's file or arguments does not fit; the message is a line."""


@dataclass(frozen=True)
class Counted:
    """No dates: steps are the rows of the file, from 0."""

    start: int = 0

    @property
    def seasons(self) -> tuple[float, ...]:
        """Natural season lengths, in steps."""
        return ()

    def time(self, step: int) -> int:
        """Place of a step on the time axis."""
        return self.start + int(step)

    def label(self, step: int) -> str:
        """Text of that place."""
        return str(self.time(step))

    def __str__(self) -> str:
        """Say what a step is."""
        return "rows"


@dataclass(frozen=True)
class Spaced:
    """Steps of a fixed duration."""

    start: datetime
    spacing: timedelta

    @property
    def seasons(self) -> tuple[float, ...]:
        """Days, weeks and years that hold at least two steps."""
        lengths = (period / self.spacing for period in PERIODS)
        return tuple(length for length in lengths if length >= 2)

    def time(self, step: int) -> datetime:
        """Date of a step."""
        return self.start + int(step) * self.spacing

    def label(self, step: int) -> str:
        """ISO date, with the hour if steps are not whole days from midnight."""
        whole_days = self.spacing % PERIODS[0] == timedelta(0)
        return _iso(self.time(step), whole_days)

    def __str__(self) -> str:
        """Say what a step is."""
        return f"steps of {self.spacing}".removesuffix(", 0:00:00")


@dataclass(frozen=True)
class Monthly:
    """Steps of whole months, on one day of the month or the last one before it."""

    start: datetime
    months: int
    day: int

    @property
    def seasons(self) -> tuple[float, ...]:
        """A year if it holds at least two steps."""
        return (12 / self.months,) if self.months <= 6 else ()

    def time(self, step: int) -> datetime:
        """Date of a step."""
        year, month = divmod(_month(self.start) + int(step) * self.months, 12)
        last = calendar.monthrange(year, month + 1)[1]
        return self.start.replace(year=year, month=month + 1, day=min(self.day, last))

    def label(self, step: int) -> str:
        """ISO date."""
        return _iso(self.time(step), True)

    def __str__(self) -> str:
        """Say what a step is."""
        return (
            "steps of 1 month" if self.months == 1 else f"steps of {self.months} months"
        )


Clock = Counted | Spaced | Monthly


def place(dates: list[datetime]) -> tuple[Clock, np.ndarray]:
    """Find the spacing of distinct, ascending dates and the step of each.

    Dates of no regular spacing go to the nearest of the steps of their median
    distance; several may then share a step.

    Raises
    ------
    InputError
        For fewer than two dates, and when nearly all steps would be empty.
    """
    if len(dates) < 2:
        raise InputError(f"two dates at least are needed, found {len(dates)}")
    gaps = [later - earlier for earlier, later in pairwise(dates)]
    spacing, count = Counter(gaps).most_common(1)[0]
    if 2 * count <= len(gaps):
        spacing = sorted(gaps)[len(gaps) // 2]
    regular = all(gap % spacing == timedelta(0) for gap in gaps)
    if not (regular and len(gaps) > 1) and _one_a_month(dates):
        steps = np.array([_month(date) - _month(dates[0]) for date in dates])
        months = math.gcd(*steps.tolist())
        day = 31 if all(map(_ends_month, dates)) else max(date.day for date in dates)
        return Monthly(dates[0], months, day), steps // months
    steps = np.array([round((date - dates[0]) / spacing) for date in dates])
    if steps[-1] > 1000 + 50 * len(dates):
        raise InputError(
            f"the dates have no common spacing: {len(dates)} rows would be spread over "
            f"{steps[-1] + 1} steps of {spacing}; use one frequency per file"
        )
    return Spaced(dates[0], spacing), steps


def _one_a_month(dates: list[datetime]) -> bool:
    months = [_month(date) for date in dates]
    close = min(later - earlier for earlier, later in pairwise(dates))
    return len(set(months)) == len(months) and close >= timedelta(days=25)


def _ends_month(date: datetime) -> bool:
    return date.day == calendar.monthrange(date.year, date.month)[1]


def _month(date: datetime) -> int:
    return 12 * date.year + date.month - 1


def _iso(date: datetime, day_only: bool) -> str:
    if day_only and date.time() == datetime.min.time():
        return date.date().isoformat()
    return date.isoformat(sep=" ")

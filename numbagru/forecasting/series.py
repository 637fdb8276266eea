"""A series on evenly spaced steps, read from a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from numbagru.forecasting.clock import Clock, Counted, InputError, place

MISSING = {"", "-", ".", "?", "na", "n/a", "nan", "none", "null"}
_FORMATS = (
    "%Y/%m/%d",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d %H:%M:%S",
    "%Y%m%d",
    "%Y-%m",
    "%d.%m.%Y",
    "%d.%m.%Y %H:%M",
    "%m/%d/%Y",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y",
    "%d/%m/%Y %H:%M",
    "%Y",
)


def _iso_date(field: str) -> datetime:
    # Python 3.10 does not know "Z".
    date = datetime.fromisoformat(field.replace("Z", "+00:00"))
    if date.tzinfo is None:
        return date
    return date.astimezone(timezone.utc).replace(tzinfo=None)


def _parser(form: str) -> Callable[[str], datetime]:
    return lambda field: datetime.strptime(field, form)


_DATE_PARSERS = (_iso_date, *map(_parser, _FORMATS))


@dataclass(frozen=True)
class Series:
    """Values at the steps of a clock, NaN where there is none.

    The first and the last value are numbers.
    """

    name: str
    axis: str
    clock: Clock
    values: np.ndarray
    merged: int = 0

    def __len__(self) -> int:
        """Return the number of steps, with and without a value."""
        return len(self.values)

    @property
    def observed(self) -> int:
        """How many values there are."""
        return int(np.count_nonzero(~np.isnan(self.values)))


def read_series(
    path: str | Path, column: str | None = None, date_column: str | None = None
) -> Series:
    """Read one column of a CSV file with a header.

    Parameters
    ----------
    path : str or Path
        Fields separated by commas, semicolons or tabs.
    column : str, optional
        The values; empty fields, "NA" and the like are missing ones. Needed if there
        are several besides the dates.
    date_column : str, optional
        Default: the first column, if it holds dates; else rows are steps.

    Returns
    -------
    Series
        Missing rows are missing values, rows out of order are sorted, rows that fall
        on one step of an irregular record are averaged (`merged` counts them).

    Raises
    ------
    InputError
        If the file is no CSV, or lacks what is asked for; the message says where.
    OSError
        If it cannot be read.
    """
    header, rows = _table(Path(path))
    dates, date_column = _dates(header, rows, date_column)
    column = _value_column(header, column, date_column)
    values = np.array(_numbers(header, rows, column))
    if np.isnan(values).all():
        raise InputError(f"column '{column}' has no values")
    clock: Clock = Counted()
    steps, axis, merged = np.arange(len(values)), "row", 0
    if dates is not None:
        order = sorted(range(len(dates)), key=dates.__getitem__)
        dates, values = [dates[i] for i in order], values[order]
        _refuse_duplicates(dates)
        clock, steps = place(dates)
        axis = date_column
        values, merged = _on_steps(values, steps)
    known = np.flatnonzero(~np.isnan(values))
    clock = replace(clock, start=clock.time(known[0]))
    return Series(column, axis, clock, values[known[0] : known[-1] + 1], merged)


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and each row that is not blank with its line number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a CSV file: it is not UTF-8 text") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [f.strip() for f in row]) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}") from None
    if len(rows) < 2:
        raise InputError(f"{path} is not a CSV file with a header and rows")
    (_, header), *rows = rows
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path} is not a CSV file: line {line} has {len(row)} fields, "
                f"the header {len(header)}"
            )
    if len(set(header)) < len(header):
        raise InputError(f"{path} has two columns of one name: {', '.join(header)}")
    return header, rows


def _index(header, name):
    if name not in header:
        raise InputError(f"no column '{name}'; there are: {', '.join(header)}")
    return header.index(name)


def _value_column(header, column, date_column):
    if column is not None:
        _index(header, column)
        return column
    others = [name for name in header if name != date_column]
    if len(others) != 1:
        raise InputError(f"choose one with --column; there are: {', '.join(others)}")
    if _parses(float, others[0]):
        raise InputError(
            f"the first line must name the columns; it has: {', '.join(header)}"
        )
    return others[0]


def _numbers(header, rows, column):
    place_of = _index(header, column)
    numbers = []
    for line, row in rows:
        field = row[place_of]
        try:
            number = math.nan if field.lower() in MISSING else float(field)
        except ValueError:
            number = math.inf
        if math.isinf(number):
            raise InputError(
                f"column '{column}' is not numeric: line {line} has '{field}'"
            )
        numbers.append(number)
    return numbers


def _dates(header, rows, date_column):
    """Return the dates and their column; none when the first column holds no dates."""
    name = header[0] if date_column is None else date_column
    place_of = _index(header, name)
    fields = [(line, row[place_of]) for line, row in rows]
    first_line, first = fields[0]
    parsers = [] if date_column is None and _parses(float, first) else [
        parse for parse in _DATE_PARSERS if _parses(parse, first)
    ]  # fmt: skip
    if not parsers and date_column is None:
        return None, None
    if not parsers:
        raise InputError(
            f"column '{name}' does not hold dates, such as 2001-12-29: line "
            f"{first_line} has '{first}'"
        )
    for line, field in fields:
        fitting = [parse for parse in parsers if _parses(parse, field)]
        if not fitting:
            raise InputError(
                f"column '{name}' holds dates such as '{first}', but line {line} has "
                f"'{field}'"
            )
        parsers = fitting
    readings = [[parse(field) for _, field in fields] for parse in parsers]
    if any(reading != readings[0] for reading in readings):
        raise InputError(
            f"the dates in column '{name}' can be read as day/month and as month/day; "
            "write them as YYYY-MM-DD"
        )
    return readings[0], name


def _parses(parse: Callable[[str], Any], field: str) -> bool:
    try:
        parse(field)
    except ValueError:
        return False
    return True


def _refuse_duplicates(dates):
    for earlier, later in pairwise(dates):
        if earlier == later:
            raise InputError(
                f"the date {later.isoformat(sep=' ').removesuffix(' 00:00:00')} "
                "stands there twice; one row per date is needed"
            )


def _on_steps(values, steps):
    """Average what falls on one step; NaN where nothing does."""
    known = ~np.isnan(values)
    count = np.bincount(steps[known], minlength=steps[-1] + 1)
    total = np.bincount(steps[known], values[known], minlength=steps[-1] + 1)
    with np.errstate(invalid="ignore"):
        return total / count, int(np.sum(count[count > 1]))

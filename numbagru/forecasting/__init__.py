"""Forecasting a series with a GRU, judged by a back-test against a naive baseline."""

from numbagru.forecasting.backtest import (
    ROLLS,
    BackTest,
    Trial,
    back_test,
    choose_origins,
    measured,
    skill,
    table,
)
from numbagru.forecasting.baseline import best_season, seasonal_naive
from numbagru.forecasting.clock import InputError
from numbagru.forecasting.model import Forecaster, Task, Windows
from numbagru.forecasting.outlook import Outlook, look_ahead, write_csv
from numbagru.forecasting.picture import draw
from numbagru.forecasting.progress import Stages
from numbagru.forecasting.series import Series, read_series

__all__ = [
    "ROLLS",
    "BackTest",
    "Forecaster",
    "InputError",
    "Outlook",
    "Series",
    "Stages",
    "Task",
    "Trial",
    "Windows",
    "back_test",
    "best_season",
    "choose_origins",
    "draw",
    "look_ahead",
    "measured",
    "read_series",
    "seasonal_naive",
    "skill",
    "table",
    "write_csv",
]

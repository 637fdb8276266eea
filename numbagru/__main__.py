"""The command line: ``python -m numbagru {forecast,info,warmup}``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from numbagru import forecasting
from numbagru.forecasting import InputError, Stages

OWN_DATA = Path(__file__).parent / "data" / "co2.csv"
OWN_UNIT = "ppm"
NO_SEASON_HORIZON = 12
ORIGINS = 8


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, 2 after bad input."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except BrokenPipeError:
        # The reader, `head` perhaps, has had enough; Python must not flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"numbagru: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("numbagru: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser():
    parser = _Parser(
        prog="numbagru", description="The Keras GRU layer in NumPy and Numba."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "forecast",
        help="forecast a CSV column and back-test the forecaster",
        description="Train a GRU on a column of a CSV file, compare it with a seasonal "
        "naive forecast with drift over the last years, and write a forecast as "
        "forecast.csv and forecast.png. Missing values and missing rows stay missing: "
        "the GRU skips them. Without FILE: weekly CO2 at Mauna Loa, 1958-2001.",
    )
    command.add_argument("file", metavar="FILE", nargs="?", help="CSV with a header")
    command.add_argument(
        "--column",
        metavar="NAME",
        help="the values; default: the only column beside the dates",
    )
    command.add_argument(
        "--date-column",
        metavar="NAME",
        help="default: the first column, if it holds dates; else rows are steps",
    )
    command.add_argument(
        "--horizon",
        metavar="H",
        type=_positive,
        help="steps to forecast; default: one season, or "
        f"{NO_SEASON_HORIZON} without one",
    )
    command.add_argument(
        "--season",
        metavar="S",
        type=_season,
        help="steps in a season, may be a fraction, 1 for none; default: the day, week "
        "or year in steps that suits the record best",
    )
    command.add_argument(
        "--origins",
        metavar="N",
        type=_positive,
        default=ORIGINS,
        help="trainings of the back-test, one horizon apart, as far as the record "
        "reaches; default: %(default)s",
    )
    command.add_argument(
        "--epochs",
        metavar="N",
        type=_positive,
        help="default: chosen on the data before the first origin",
    )
    command.add_argument(
        "--units", metavar="U", type=_positive, default=32, help="default: %(default)s"
    )
    command.add_argument(
        "--seed",
        metavar="N",
        type=_seed,
        default=0,
        help="the same seed gives the same forecast bit for bit; default: %(default)s",
    )
    command.add_argument(
        "--output", metavar="DIR", default=".", help="default: the current folder"
    )
    command.add_argument(
        "--quiet", action="store_true", help="write the files and print only errors"
    )
    command.set_defaults(run=_forecast)

    command = commands.add_parser(
        "info",
        help="show versions, CPU, threads, GPU and the cache folder",
        description="Show what this machine offers to the kernels.",
    )
    command.set_defaults(run=_info)

    command = commands.add_parser(
        "warmup",
        help="compile and cache the kernels",
        description="Compile the kernels of the usual configurations into the cache, "
        "so that first calls do not wait for the compiler.",
    )
    command.add_argument(
        "--quick", action="store_true", help="only the default layer in float32"
    )
    command.set_defaults(run=_warmup)
    return parser


def _number(kind, expected, fits):
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, received '{text}'")
        return value

    return convert


_positive = _number(int, "a positive whole number", lambda value: value > 0)
_seed = _number(int, "a whole number from 0 on", lambda value: 0 <= value < 2**32)
_season = _number(float, "a number from 1 on", lambda value: 1 <= value < 1e9)


# -------------------------------------------------------------------------- forecast


def _forecast(arguments):
    say = (lambda *_: None) if arguments.quiet else print
    if arguments.file is None:
        if arguments.column or arguments.date_column:
            raise InputError("--column and --date-column need a FILE")
        series, unit = forecasting.read_series(OWN_DATA), OWN_UNIT
    else:
        series = forecasting.read_series(
            arguments.file, arguments.column, arguments.date_column
        )
        unit = None
    task = _task(arguments, series)
    origins = forecasting.choose_origins(task, arguments.origins)
    folder = _writable(arguments.output)
    label = series.clock.label

    say(
        f"{series.name}: {series.observed} values at {len(series)} {series.clock}, "
        f"{label(0)} to {label(len(series) - 1)}; season {task.season:.5g}, "
        f"horizon {task.horizon}"
    )
    if series.merged:
        say(f"{series.merged} values shared a step with others and were averaged")
    trainings = len(origins) + 1 + (arguments.epochs is None)
    with Stages(trainings, arguments.quiet) as stage:
        result = forecasting.back_test(task, origins, stage, label, arguments.epochs)
        outlook = forecasting.look_ahead(task, result, stage)

    say(f"GRU of {task.units} units over {task.context} steps, {result.epochs} epochs")
    say(f"{outlook.kernel}\n")
    say(
        f"Back-test: {task.horizon} steps ahead; each row is a model trained on what "
        "was known then,\nand used until the next training from up to "
        f"{forecasting.ROLLS} origins"
    )
    say(f"{forecasting.table(result, label)}\n{_verdict(result)}\n")
    table, picture = folder / "forecast.csv", folder / "forecast.png"
    forecasting.write_csv(table, series, outlook)
    say(f"wrote {table}")
    try:
        forecasting.draw(picture, series, result, outlook, unit)
    except ImportError:
        print(
            "no picture: it needs matplotlib (pip install matplotlib)", file=sys.stderr
        )
    else:
        say(f"wrote {picture}")


def _task(arguments, series):
    values, season, horizon = series.values, arguments.season, arguments.horizon
    if season is None:
        # Judged on the first half only: the back-test must not have had a say.
        season = forecasting.best_season(
            values[: len(values) // 2],
            series.clock.seasons,
            horizon or NO_SEASON_HORIZON,
        )
    if horizon is None:
        horizon = round(season) if season > 1 else NO_SEASON_HORIZON
    return forecasting.Task(values, season, horizon, arguments.units, arguments.seed)


def _verdict(result):
    share = forecasting.skill(result)
    anchor = forecasting.skill(result, "anchor")
    if not share > 0:
        return "The GRU does not beat the baseline here: take the baseline's forecast."
    return (
        f"The GRU's mean error is {share:.1%} smaller than the baseline's "
        f"(its anchor alone, without the network: {anchor:.1%})."
    )


def _writable(folder):
    """Make the folder and try it, before minutes of training."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None


# ------------------------------------------------------------------- info and warmup


def _info(arguments):
    from numbagru import machine

    for name, text in machine.describe().items():
        print(f"{name:13} {text}")


def _warmup(arguments):
    from numbagru import machine, warmup

    problem = machine.cache_problem()
    if problem is not None:
        raise InputError(problem)
    total = 0
    for warmed in warmup.warmup(arguments.quick):
        names = ", ".join(warmed.compiled)
        how = f"compiled {names}" if names else "was ready"
        total += warmed.seconds
        print(f"{warmed.seconds:6.1f} s  {warmed.kernel}  {warmed.title}: {how}")
    print(f"{total:6.1f} s  in all")
    sizes = machine.cached_files().values()
    print(
        f"cache: {machine.cache_folder()}, {len(sizes)} files, "
        f"{sum(sizes) / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())

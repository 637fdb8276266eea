import csv
import os
import re
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba.core import caching

import numbagru
from numbagru import __main__ as command
from numbagru import machine, warmup
from numbagru.forecasting import progress

SMALL = ["--epochs", "1", "--units", "2", "--horizon", "4", "--origins", "2"]


@pytest.fixture
def rain(tmp_path):
    """Make a monthly CSV with two missing values and two missing rows."""
    values = np.random.default_rng(0).normal(size=96) + np.arange(96) % 12
    fields = [f"{value:.4f}" for value in values]
    fields[5] = fields[60] = ""
    rows = [f"{1990 + m // 12}-{m % 12 + 1:02}-01,{fields[m]},x" for m in range(96)]
    del rows[70], rows[20]
    path = tmp_path / "rain.csv"
    path.write_text("\n".join(["month,rain,note", *rows]))
    return str(path)


def test_forecast_makes_table_csv_and_picture(rain, tmp_path, capsys):
    matplotlib = pytest.importorskip("matplotlib.image")
    folder = tmp_path / "new" / "folder"
    arguments = ["forecast", rain, "--column", "rain", "--output", str(folder)]
    assert command.main([*arguments, *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "rain: 92 values at 96 steps of 1 month, 1990-01-01 to 1997-12-01" in out
    assert "season 12, horizon 4" in out
    assert "cpu_" in out
    rows = [line.split() for line in out.splitlines()]
    heads = [row[0] for row in rows if len(row) == 9 and row[1].isdigit()]
    assert heads == ["1997-04-01", "1997-08-01", "all"]
    # Two trainings of the back-test and the last one: epochs were given.
    assert [line.split()[0] for line in err.splitlines()] == ["1/3", "2/3", "3/3"]

    with (folder / "forecast.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["month", "rain", "lower_80", "upper_80", "seasonal_naive"]
    dates = ["1998-01-01", "1998-02-01", "1998-03-01", "1998-04-01"]
    assert [row[0] for row in table[1:]] == dates
    forecast, lower, upper, naive = np.array(table[1:])[:, 1:].astype(float).T
    assert np.isfinite(naive).all()
    assert (lower < forecast).all()
    assert (forecast < upper).all()

    pixels = matplotlib.imread(folder / "forecast.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 800
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 100


def test_same_files_bit_for_bit_and_quiet_says_nothing(rain, tmp_path, capsys):
    made = []
    for name in ("a", "b"):
        arguments = ["forecast", rain, "--column", "rain", "--quiet", *SMALL]
        assert command.main([*arguments, "--output", str(tmp_path / name)]) == 0
        made.append((tmp_path / name / "forecast.csv").read_bytes())
    assert made[0] == made[1]
    assert capsys.readouterr() == ("", "")


def test_epochs_are_chosen_when_not_given(rain, tmp_path, capsys):
    arguments = ["forecast", rain, "--column", "rain", "--output", str(tmp_path)]
    assert command.main([*arguments, *SMALL[2:]]) == 0
    out, err = capsys.readouterr()
    assert "1/4 choosing the number of epochs" in err
    assert " epochs\n" in out


def test_without_matplotlib_the_rest_is_made(rain, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["forecast", rain, "--column", "rain", "--output", str(tmp_path)]
    assert command.main([*arguments, *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "skill" in out
    assert "pip install matplotlib" in err
    assert (tmp_path / "forecast.csv").exists()
    assert not (tmp_path / "forecast.png").exists()


def test_a_bar_on_a_terminal(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Stages(2) as stage:
        (share,) = stage("first")
        share.set_params({"epochs": 2, "steps": 5})
        for batch in range(5):
            share.on_train_batch_end(batch)
        assert stage._bar.n == pytest.approx(0.5)
        stage("second")
        assert stage._bar.n == 1
    assert stage._bar.n == 2


BAD_FILES = {
    "no such file": (None, "no such file"),
    "binary": (b"\x89PNG\xff\xfe\x00", "is not a CSV file: it is not UTF-8 text"),
    "empty": (b"", "is not a CSV file"),
    "header only": (b"date,rain\n", "is not a CSV file"),
    "ragged": (b"date,rain\n2000-01-01,1\n2000-01-02,1,2\n", "line 3 has 3 fields"),
    "open quote": (b'date,rain\n2000-01-01,"1\n', "is not a CSV file"),
    "no header": (b"2000-01-01,1\n2000-01-02,2\n", "first line must name the columns"),
    "twins": (b"rain,rain\n1,2\n", "two columns of one name"),
    "empty column": (b"date,rain\n2000-01-01,\n2000-01-02,NA\n", "has no values"),
    "text": (b"date,rain\n2000-01-01,1\n2000-01-02,wet\n", "line 3 has 'wet'"),
    "infinite": (b"date,rain\n2000-01-01,1\n2000-01-02,inf\n", "line 3 has 'inf'"),
    "duplicates": (
        b"date,rain\n2000-01-01,1\n2000-01-02,2\n2000-01-01,3\n",
        "the date 2000-01-01 stands there twice",
    ),
    "bad date": (b"date,rain\n2000-01-01,1\nsoon,2\n", "line 3 has 'soon'"),
    "no dates": (b"at,rain\nMonday,1\n", "choose one with --column; there are: at,"),
    "one date": (b"date,rain\n2000-01-01,1\n", "two dates at least"),
    "day or month": (b"date,rain\n01/02/2000,1\n01/03/2000,1\n", "YYYY-MM-DD"),
    "short": (b"date,rain\n2000-01-01,1\n2000-01-02,2\n", "too few rows"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_one_line_and_exit_code_2(case, tmp_path, capsys):
    content, expected = BAD_FILES[case]
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content)
    assert command.main(["forecast", str(path), "--output", str(tmp_path)]) == 2
    assert_one_line(capsys, expected)
    assert not (tmp_path / "forecast.csv").exists()


def assert_one_line(capsys, expected):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("numbagru")
    assert expected in err
    assert err.count("\n") == 1


BAD_ARGUMENTS = {
    "no such column": (["--column", "snow"], "'snow'; there are: month, rain, note"),
    "not numeric": (["--column", "note"], "'note' is not numeric: line 2 has 'x'"),
    "no column": ([], "choose one with --column; there are: rain, note"),
    "no such dates": (["--date-column", "day"], "'day'; there are: month, rain, note"),
    "not dates": (["--date-column", "note"], "does not hold dates"),
    "zero horizon": (["--horizon", "0"], "--horizon: expected a positive whole number"),
    "word horizon": (["--horizon", "x"], "received 'x'"),
    "long horizon": (["--column", "rain", "--horizon", "90"], "too few rows"),
    "season": (["--season", "0.5"], "--season: expected a number from 1 on"),
    "seed": (["--seed", "-1"], "--seed: expected a whole number from 0 on"),
    "unknown": (["--colum", "rain", "--what"], "--what"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_one_line_and_exit_code_2(case, rain, tmp_path, capsys):
    arguments, expected = BAD_ARGUMENTS[case]
    try:
        code = command.main(["forecast", rain, "--output", str(tmp_path), *arguments])
    except SystemExit as stop:  # argparse's own way out
        code = stop.code
    assert code == 2
    assert_one_line(capsys, expected)


def test_unwritable_output_is_found_before_the_training(rain, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    arguments = ["forecast", rain, "--column", "rain", "--output", str(blocked / "x")]
    assert command.main(arguments) == 2
    assert_one_line(capsys, "cannot write to")


def test_a_folder_for_a_file_is_one_line(tmp_path, capsys):
    assert command.main(["forecast", str(tmp_path)]) == 2
    assert_one_line(capsys, str(tmp_path))


def test_column_needs_a_file(capsys):
    assert command.main(["forecast", "--column", "co2"]) == 2
    assert_one_line(capsys, "need a FILE")


def test_info_names_every_part(capsys):
    assert command.main(["info"]) == 0
    out = capsys.readouterr().out
    titles = ("versions", "CPU", "vectors", "threads", "GPU", "kernel cache")
    assert all(f"\n{title}" in f"\n{out}" for title in titles)
    assert f"numpy {np.__version__}" in out
    assert str(machine.cache_folder()) in out
    assert f"\nthreads       {numbagru.get_num_threads()} of " in out


def test_info_survives_a_broken_gpu(monkeypatch):
    from numba import cuda

    def broken():
        raise OSError("libcuda is upside down")

    monkeypatch.setattr(cuda, "is_available", broken)
    assert machine.describe()["GPU"] == "none usable (OSError: libcuda is upside down)"


def test_no_cache_folder_is_said(monkeypatch, capsys):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert machine.cache_folder() is None
    assert machine.cached_files() == {}
    assert "No folder" in machine.describe()["kernel cache"]
    assert command.main(["warmup"]) == 2
    assert_one_line(capsys, "Set NUMBA_CACHE_DIR to a folder that can be written")


def test_warmup_refuses_another_folder_than_it_was_given(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    blocked = str(tmp_path / "file" / "folder")
    monkeypatch.setattr(numba.config, "CACHE_DIR", blocked)
    assert command.main(["warmup"]) == 2
    assert_one_line(capsys, f"NUMBA_CACHE_DIR={blocked!r}")


def test_warmup_names_what_it_made_ready(capsys):
    assert command.main(["warmup", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for title, line in zip(("inference", "training"), lines, strict=False):
        assert re.search(rf" s  cpu_\w+  {title} float32: \w+ ", line)
    sizes = [
        path.stat().st_size
        for path in machine.cache_folder().iterdir()
        if path.suffix in (".nbi", ".nbc")
    ]
    assert lines[-1] == (
        f"cache: {machine.cache_folder()}, {len(sizes)} files, "
        f"{sum(sizes) / 2**20:.1f} MiB"
    )


def test_warmup_says_what_was_added_to_the_cache(monkeypatch):
    old = {"panels._pack-33.py311-0123.nbi": 1}
    new = {
        **old,
        "panels._pack-33.py311-4567.nbi": 1,
        "forward_cpu.run-7.py311-89ab.nbi": 1,
        "forward_cpu.run-7.py311-89ab.1.nbc": 1,
    }
    states = iter([old, new, new, new])
    monkeypatch.setattr(warmup, "cached_files", lambda: next(states))
    compiled = [one.compiled for one in warmup.warmup(quick=True)]
    assert compiled == [("forward_cpu.run", "panels._pack"), ()]


def test_help_names_the_commands():
    run = subprocess.run(
        [sys.executable, "-m", "numbagru", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert all(name in run.stdout for name in ("forecast", "info", "warmup"))


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([])
    assert stop.value.code == 2
    assert_one_line(capsys, "COMMAND")

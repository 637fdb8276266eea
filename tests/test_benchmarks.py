"""What the benchmarks compute and how they start; nothing here measures."""

import argparse
import ast
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # a bare `pytest` does not

from benchmarks import (  # noqa: E402
    memory,
    peers,
    picture,
    reference,
    roofline,
    scaling,
    tables,
    worker,
)
from benchmarks.bound import CALL, least_seconds  # noqa: E402
from benchmarks.engines import ENGINES, able  # noqa: E402
from benchmarks.rates import (  # noqa: E402
    BACK_IN_TURN,
    CHAIN,
    GATES,
    GATES_BACK,
    IN_TURN,
    MEETINGS,
)
from benchmarks.shapes import BY_NAME, FAMILIES, SHAPES, Shape, make_data  # noqa: E402

PROGRAMS = ("gpu", "memory", "peers", "picture", "roofline", "scaling", "startup")
NAN = math.nan
ROOF = {
    "threads": [1, 2],
    "vector_bits": 256,
    "fma": {"float32": [50.0, 100.0], "float64": [25.0, 50.0]},
    "bound": {
        dtype: {
            CHAIN: [0.1, 0.1],
            GATES: [rate / 2, rate],
            GATES_BACK: [rate, 2 * rate],
            IN_TURN: [0.02, 0.02],
            BACK_IN_TURN: [0.05, 0.05],
            MEETINGS: [NAN, 0.004],
        }
        for dtype, rate in (("float32", 1.0), ("float64", 0.5))
    },
    "read": [
        {"level": "L1", "holds": 1000, "bytes": 250, "GB/s": [40.0, 80.0]},
        {"level": "L2", "holds": 100_000, "bytes": 25_000, "GB/s": [20.0, 40.0]},
        {"level": "memory", "holds": None, "bytes": 10**6, "GB/s": [10.0, 10.0]},
    ],
}


@pytest.mark.parametrize("start", ["file", "module"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_start_as_files_and_as_modules(program, start, tmp_path):
    file = ROOT / "benchmarks" / f"{program}.py"
    where, how = {
        "file": (tmp_path, [str(file)]),
        "module": (ROOT, ["-m", f"benchmarks.{program}"]),
    }[start]
    run = subprocess.run(
        [sys.executable, *how, "--help"],
        cwd=where,
        capture_output=True,
        text=True,
        check=True,
    )
    first_line = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert first_line.split()[0] in run.stdout
    assert run.stderr == ""


def test_asv_takes_nothing_else_for_a_benchmark():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not path.name.startswith("bench_"):
                assert not re.match("(time|timeraw|mem|peakmem|track)_", node.name)


def test_families_have_every_shape_once_and_stay_in_the_grid():
    shapes = list(itertools.chain(*FAMILIES.values()))
    assert len(set(shapes)) == len(shapes)
    assert next(iter(FAMILIES.values())) == SHAPES == tuple(BY_NAME.values())
    for batch, steps, _, units in shapes:
        assert 1 <= batch <= 8192
        assert 1 <= steps <= 5000
        assert 16 <= units <= 1024


def test_flops_and_bytes():
    shape = Shape(2, 3, 5, 7)
    # No states before the first step.
    assert tables.flops("inference", shape) == 6 * 2 * 7 * (3 * 5 + 2 * 7)
    assert tables.flops("training", shape) == 3 * 6 * 2 * 7 * (3 * 5 + 2 * 7)
    assert tables.weight_bytes(shape, "float32") == 4 * 3 * 7 * 12
    assert tables.weight_bytes(shape, "float64") == 8 * 3 * 7 * 12


@pytest.mark.parametrize(
    ("size", "rate"), [(1000, 80e9), (1001, 40e9), (100_001, 10e9), (10**12, 10e9)]
)
def test_bandwidth_is_that_of_the_nearest_cache_that_holds_it(size, rate):
    assert tables.bandwidth(ROOF, size) == rate


def test_one_of_two_threads_has_half_of_the_caches():
    assert tables.bandwidth(ROOF, 500, 0) == 40e9
    assert tables.bandwidth(ROOF, 501, 0) == 20e9
    assert tables.bandwidth(ROOF, 501, 1) == 80e9


def test_shares_of_one_row_and_of_many():
    shape = Shape(1, 10, 4, 28)  # 10752 bytes of weights, in L2; 53760 operations
    # Without the 28 x 84 weights of the states in the first step.
    read_once, operations = 10 * 10752 - 4 * 28 * 84, 53760 - 2 * 28 * 84
    at_bandwidth = 1e3 * read_once / 40e9
    peak, read = tables.shares("inference", shape, "float32", at_bandwidth, ROOF)
    assert read == pytest.approx(1)
    assert peak == pytest.approx(operations / 100e9 / (read_once / 40e9))
    four_times = 4e3 * read_once / 40e9
    peak, read = tables.shares("training", shape, "float32", four_times, ROOF)
    assert read == pytest.approx(1 / 2)
    assert peak == pytest.approx(3 * operations / 100e9 / (4 * read_once / 40e9))
    many = shape._replace(batch=64)
    peak, read = tables.shares("inference", many, "float32", at_bandwidth, ROOF)
    assert peak == pytest.approx(64 * operations / 100e9 / (read_once / 40e9))
    assert math.isnan(read)
    missing = tables.shares("inference", shape, "float32", NAN, ROOF)
    assert all(map(math.isnan, missing))


def test_bound_is_the_longest_of_what_has_to_be_done():
    def least(what, *shape, dtype="float32"):
        seconds = least_seconds(what, Shape(*shape), dtype, ROOF)
        return pytest.approx(seconds - CALL[what], rel=1e-12)

    # Many rows multiply, on whole vectors: 20 units as 24. There are no states before
    # the second step.
    gates = 1000 * 2 * 24
    few = 6 * 1000 * 24 * (2 * 4 + 20)
    assert least("inference", 1000, 2, 4, 20) == few / 100e9 + gates / 1e9
    trained = 3 * few / 100e9 + gates / 1e9 + gates / 2e9
    assert least("training", 1000, 2, 4, 20) == trained
    # In float64 a vector has four: nothing to fill up.
    gates = 1000 * 2 * 20
    doubles = 6 * 1000 * 20 * (2 * 4 + 20) / 50e9 + gates / 0.5e9
    assert least("inference", 1000, 2, 4, 20, dtype="float64") == doubles
    # One row of few units waits for the sums of its states and for gates, 50 ns and
    # 20 ns back.
    assert least("inference", 1, 100, 4, 8) == 99 * 8 / 0.1e9 + 100 * 50e-9
    assert least("training", 1, 100, 4, 8) == 99 * 2 * 8 / 0.1e9 + 100 * 70e-9
    # Of more units for their weights: one thread has half of a cache.
    of_weights = 3 * 4 * 256 * 256 / 10e9
    assert least("inference", 1, 100, 4, 256) == 99 * of_weights + 100 * 50e-9
    # Two threads read 37632 bytes in 0.94 us and meet in 0.25; one takes 1.88.
    of_weights = 3 * 4 * 56 * 56 / 40e9 + 250e-9
    assert least("inference", 1, 100, 0, 56) == 99 * of_weights + 100 * 50e-9
    # Two rows need not meet.
    assert least("inference", 2, 100, 4, 8) == 99 * 8 / 0.1e9 + 100 * 50e-9


def test_bound_moves_inputs_and_outputs_from_where_they_fit():
    slow = ROOF | {"read": [{**level, "GB/s": [0.1]} for level in ROOF["read"]]}
    seconds = least_seconds("training", Shape(10, 100, 8, 8), "float32", slow)
    assert seconds - CALL["training"] == pytest.approx(2 * 4 * 10 * 100 * 16 / 0.1e9)


def test_ratio_is_to_the_fastest_peer():
    times = {"numbagru": 2.0, "PyTorch": 8.0, "ONNX Runtime": 3.0}
    assert tables.ratio(times) == 1.5
    assert tables.ratio(times, ["ONNX Runtime"]) == 4
    assert math.isnan(tables.ratio({"numbagru": 2.0}))
    assert math.isnan(tables.ratio({"PyTorch": 2.0}))


def test_geometric_mean():
    assert tables.geometric_mean([1, 100]) == pytest.approx(10)
    assert math.isnan(tables.geometric_mean([1, NAN]))
    assert math.isnan(tables.geometric_mean([]))


def test_exponent_ignores_what_every_call_costs():
    sizes = [2**k for k in range(10)]
    times = [3e-4 * size**1.7 for size in sizes]
    assert tables.exponent(sizes, times) == pytest.approx(1.7)
    times[:5] = [0.1] * 5
    assert tables.exponent(sizes, times) == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("number", "text"),
    [(NAN, "-"), (0, "0"), (0.012345, "0.0123"), (1.5, "1.50"), (1234.5, "1234")],
)
def test_cell_has_three_digits(number, text):
    assert tables.cell(number) == text


def rows_of(family, aside=()):
    """Make the figures of two shapes; one engine failed at the second."""
    times = [
        {"numbagru": 1.0, "ONNX Runtime": 0.5, "PyTorch": 4.0},
        {"numbagru": 2.0, "ONNX Runtime": 1.0},
    ]
    return [
        tables.figures("inference", "float32", family, shape, ms, ROOF, 5e-4, aside)
        for shape, ms in zip(SHAPES, times, strict=False)
    ]


def test_comparison_shows_missing_figures():
    table = tables.comparison(
        rows_of("twelve"), ["numbagru", "ONNX Runtime", "PyTorch"]
    )
    head, rule, first, second, means = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
    )
    assert {len(head), len(rule), len(first), len(second), len(means)} == {8}
    assert head[1:5] == ["numbagru", "ONNX Runtime", "PyTorch", head[4]]
    assert first[:5] == [str(SHAPES[0]), "1.00", "0.500", "4.00", "0.500"]
    assert second[:5] == [str(SHAPES[1]), "2.00", "1.00", "-", "0.500"]
    assert means[1:5] == ["1.41", "0.707", "-", "0.500"]


def test_verdict_names_the_shapes_behind():
    assert f"below 1 at {SHAPES[0]}, {SHAPES[1]}." in tables.verdict(rows_of("a"))
    aside = tables.verdict(rows_of("a", ["ONNX Runtime"]))
    assert "of 1 ratios 4.00, least 4.00, below 1 nowhere." in aside
    assert "at the bound the mean would be 8.00." in aside


def test_engines_by_float_type():
    assert able("inference", "float32") == list(ENGINES)
    without = {"OpenVINO", "ONNX Runtime"}
    for what, dtype in [("inference", "float64"), ("training", "float32")]:
        assert able(what, dtype) == [name for name in ENGINES if name not in without]


def parsed(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
    return peers.parse_arguments()


def test_options_choose_shapes(monkeypatch):
    options = parsed(monkeypatch)
    assert options.dtype == ["float32"]
    assert peers.chosen_shapes(options) == {"twelve": SHAPES}
    options = parsed(monkeypatch, "--all")
    assert options.dtype == ["float32", "float64"]
    assert peers.chosen_shapes(options) == FAMILIES
    assert options.json.parent == options.picture == ROOT / "benchmarks" / "results"
    few, one = FAMILIES["few rows"][1], SHAPES[3]
    options = parsed(monkeypatch, "--shapes", f"{few},{one}")
    assert peers.chosen_shapes(options) == {"twelve": [one], "few rows": [few]}


def test_unknown_choices_are_named():
    with pytest.raises(argparse.ArgumentTypeError, match="some of a, b, got c"):
        peers.listed({"a": 1, "b": 2})("a,c")


def report_of(**rows):
    return {
        "machine": "a <machine>",
        "isa": "avx2",
        "versions": {"numbagru": "0"},
        "roofline": ROOF,
        "aside": ["ONNX Runtime"],
        "results": list(itertools.chain(*rows.values())),
    }


def test_figures_survive_json(tmp_path):
    report = report_of(twelve=rows_of("twelve"))
    report["results"][1]["ratio"] = NAN
    path = tmp_path / "folder" / "figures.json"
    peers.save(report, path)
    assert "NaN" not in path.read_text(encoding="utf-8")
    again = picture.load(path)
    assert math.isnan(again["results"][1]["ratio"])
    assert peers.without_nan(again) == peers.without_nan(report)


def test_picture_and_page(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    report = report_of(twelve=rows_of("twelve"), wide=rows_of("wide inputs"))
    page = picture.draw(report, tmp_path).read_text(encoding="utf-8")
    assert "a &lt;machine&gt;" in page
    assert page.count("<table>") == 3
    assert "src='inference_float32.png'" in page
    assert image.imread(tmp_path / "inference_float32.png").shape[1] > 800


def test_sizes_and_lists_of_sysfs():
    assert [roofline.bytes_of(text) for text in ("48K", "2M", "512")] == [
        48 << 10,
        2 << 20,
        512,
    ]
    assert [roofline.members(text) for text in ("3", "0-3", "0-1,8,10-11")] == [1, 4, 5]


def test_caches_of_all_threads(tmp_path, monkeypatch):
    for index, (level, kind, size, sharers) in enumerate(
        [
            ("1", "Data", "32K", "0"),
            ("1", "Instruction", "64K", "0"),
            ("2", "Unified", "1M", "0-1"),
            ("3", "Unified", "8M", "0-7"),
        ]
    ):
        folder = tmp_path / "cpu0" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        (folder / "level").write_text(level)
        (folder / "type").write_text(kind)
        (folder / "size").write_text(f"{size}\n")
        (folder / "shared_cpu_list").write_text(sharers)
    monkeypatch.setattr(roofline, "CPU", tmp_path)
    monkeypatch.setattr(roofline, "usable_cpus", lambda: [0, 1, 2, 3])
    assert roofline.caches(4) == [
        ("L1", 4 * 32 << 10),
        ("L2", 2 << 20),
        ("L3", 8 << 20),
    ]
    monkeypatch.setattr(roofline, "CPU", tmp_path / "none")
    assert [name for name, _ in roofline.caches(2)] == ["L1", "L2", "L3"]


def test_sizes_of_a_sweep():
    assert scaling.sizes(1, 16) == [1, 2, 4, 8, 16]
    assert scaling.sizes(8, 1024, step=8) == [8, 64, 512]


def test_memory_targets():
    shape = Shape(4, 5, 6, 7)
    assert memory.target("inference", shape, "float32", 2) == 16 << 20
    assert memory.target("training", shape, "float64", 2) == 6 * 8 * 4 * 5 * 7


class Clock:
    """Time that passes only in `step`."""

    def __init__(self, seconds):
        self.now, self.seconds, self.calls = 0.0, seconds, 0

    def perf_counter(self):
        return self.now

    def step(self):
        self.now += self.seconds
        self.calls += 1


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [(4.0, 1), (0.5, 4), (0.125, 4), (0.03125, 9), (2.0**-20, None)],
)
def test_measure(seconds, calls, monkeypatch):
    clock = Clock(seconds)
    monkeypatch.setattr(worker, "time", clock)
    assert worker.measure(clock.step, 0.25) == pytest.approx(1e3 * seconds)
    assert calls is None or clock.calls == calls


@pytest.mark.parametrize(("dtype", "error"), [("float32", 2e-3), ("float64", 1e-7)])
def test_check_demands_the_precision_of_the_float_type(dtype, error):
    shape = Shape(2, 3, 4, 5)
    data = make_data(shape, dtype)
    y, saved = reference.forward(data.x, data.weights)
    results = [y, *reference.backward(data.x, data.weights, saved, data.dy)]
    worker.check(results, "training", shape, dtype)
    results[-1] = results[-1] * (1 + error)
    with pytest.raises(AssertionError, match="dbias is off by"):
        worker.check(results, "training", shape, dtype)


def test_reference_gradients_are_those_of_its_forward_pass():
    data = make_data(Shape(2, 3, 4, 5), "float64")
    _, saved = reference.forward(data.x, data.weights)
    gradients = reference.backward(data.x, data.weights, saved, data.dy)
    arrays = [data.x, *data.weights]
    rng = np.random.default_rng(0)
    for array, gradient in zip(arrays, gradients, strict=True):
        direction = rng.standard_normal(array.shape)
        sides = []
        for shift in (1e-6, -1e-6):
            array += shift * direction
            sides.append((reference.forward(data.x, data.weights)[0] * data.dy).sum())
            array -= shift * direction
        slope = (sides[0] - sides[1]) / 2e-6
        assert slope == pytest.approx((gradient * direction).sum(), rel=1e-6)

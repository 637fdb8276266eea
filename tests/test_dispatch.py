"""The table of kernels as a table."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbagru import GRU, dispatch
from numbagru.dispatch import KERNELS, Problem, Row, rows_of
from numbagru.kernels.cuda import limits
from numbagru.kernels.cuda.limits import (
    MOST_RESIDENT,
    TYPICAL,
    Chip,
    Split,
    copies,
    split,
)

HOST = Problem(fused=True)
DEVICE = Problem(fused=True, device="cuda")
problems = st.builds(
    Problem,
    fused=st.booleans(),
    device=st.sampled_from(["cpu", "cuda"]),
    units=st.integers(1, 2000),
    bits=st.sampled_from([32, 64]),
    whole_rows=st.booleans(),
    at_once=st.booleans(),
    many_rows=st.booleans(),
)


class OnDevice:
    """What the dispatch looks at of an array on a device."""

    shape = (2, 4, 3)

    @property
    def __cuda_array_interface__(self):
        """Say where it is."""
        return {"shape": self.shape, "typestr": "<f4", "data": (64, False)}


def test_names_are_unique():
    assert len({row.name for row in KERNELS}) == len(KERNELS)


def test_last_row_of_the_host_takes_everything():
    assert not rows_of("cpu")[-1].checks


@pytest.mark.parametrize("problem", [HOST, DEVICE])
def test_default_takes_the_first_row(problem):
    first = rows_of(problem.device)[0]
    assert dispatch.select(problem) is first
    assert dispatch.explain(problem) == f"{first.name}: {first.why}"


@pytest.mark.parametrize(
    ("problem", "change", "reasons"),
    [
        (HOST, {"fused": False}, ["use_cudnn=False forbids the fused kernels"]),
        (
            replace(DEVICE, at_once=True),
            {"units": MOST_RESIDENT[32] + 1},
            ["105 units are more than the 104 that fit registers"],
        ),
        (
            replace(DEVICE, at_once=True),
            {"units": MOST_RESIDENT[32], "reset_after": False},
            ["104 units are more than the 96 that fit registers"],
        ),
        (
            replace(DEVICE, at_once=True),
            {"units": MOST_RESIDENT[64] + 1, "bits": 64},
            ["57 units are more than the 56 that fit registers"],
        ),
    ],
)
def test_explain_names_each_refusal(problem, change, reasons):
    refused, taken = rows_of(problem.device)[:2]
    expected = [f"{taken.name}: {taken.why}"]
    expected += [f"  not {refused.name}: {reason}" for reason in reasons]
    explained = dispatch.explain(replace(problem, **change))
    assert explained.splitlines() == expected


@given(problems)
def test_first_row_without_refusal_is_selected(problem):
    rows = rows_of(problem.device)
    if all(list(dispatch.refusals(row, problem)) for row in rows):
        with pytest.raises(RuntimeError, match="No CUDA kernel takes this layer"):
            dispatch.select(problem)
        return
    row = dispatch.select(problem)
    before = rows[: rows.index(row)]
    assert not list(dispatch.refusals(row, problem))
    assert all(list(dispatch.refusals(earlier, problem)) for earlier in before)
    first, *others = dispatch.explain(problem).splitlines()
    assert first == f"{row.name}: {row.why}"
    assert len(others) == sum(len(list(dispatch.refusals(r, problem))) for r in before)


def test_rows_are_complete():
    for row in KERNELS:
        assert isinstance(row, Row)
        assert row.why
        assert row.device in ("cpu", "cuda")
        assert all(map(callable, (row.forward, row.backward, row.saved_shapes)))


@pytest.mark.parametrize(
    ("name", "condition", "reason"),
    [
        ("cuda_tiled", "many_rows", "there are fewer than the 64 rows"),
        ("cuda_grid", "at_once", "the blocks of all units and rows are more than"),
    ],
)
def test_what_rules_out_wide_layers(name, condition, reason):
    wide = replace(DEVICE, units=500)
    assert dispatch.select(replace(wide, **{condition: True})).name == name
    explained = dispatch.explain(wide).splitlines()
    assert explained[0].startswith("cuda_cached")
    assert any(line.startswith(f"  not {name}: {reason}") for line in explained)


H100, A100, T4 = Chip(132, 228 << 10, 227 << 10), TYPICAL, Chip(40, 64 << 10, 64 << 10)


@pytest.mark.parametrize(
    ("chip", "bits", "units", "rows", "expected"),
    [
        (H100, 32, 109, 1, (8, 1, 1)),
        (H100, 32, 256, 64, (8, 8, 2)),
        (H100, 32, 256, 256, None),
        (H100, 32, 1024, 8, (8, 8, 2)),
        (H100, 32, 1024, 16, None),
        (H100, 32, 1400, 1, (11, 1, 1)),
        (H100, 32, 2000, 1, None),
        (H100, 64, 512, 3, (8, 4, 2)),
        (A100, 32, 512, 32, (10, 8, 2)),
        (A100, 32, 1024, 2, (10, 2, 2)),
        (T4, 32, 256, 8, (8, 8, 2)),
        (T4, 32, 512, 1, None),
        (H100, 32, 200, 0, None),
    ],
)
def test_how_a_layer_is_divided(chip, bits, units, rows, expected):
    found = split(bits, units, rows, chip)
    assert found == (expected and Split(*expected))
    if found:
        size = found.bytes(bits, units)
        along_units, along_rows = found.blocks(units, rows)
        assert along_units * found.units >= units
        assert along_rows * found.rows >= rows
        assert size < chip.block_bytes
        there = chip.processors * (chip.shared_bytes // size)
        assert along_units * along_rows <= there


@pytest.mark.parametrize(
    ("chip", "units", "rows", "parts"),
    [(H100, 512, 1, 8), (H100, 512, 2, 8), (H100, 512, 8, 2), (A100, 1024, 2, 8),
     (H100, 1400, 1, 4)],
)  # fmt: skip
def test_free_sums_are_in_parts(chip, units, rows, parts):
    """As many as a block has threads and memory for, and divided as otherwise."""
    one, free = (split(32, units, rows, chip, free=free) for free in (False, True))
    assert free == one._replace(parts=parts)
    assert 3 * free.units * free.rows // free.each * parts <= 256
    more = free.bytes(32, units) - one.bytes(32, units)
    assert more == (parts - 1) * 3 * free.units * free.rows * 4


@pytest.mark.parametrize("installed", [True, False])
def test_explain_says_who_multiplies(installed, monkeypatch):
    monkeypatch.setattr(limits, "cupy_found", lambda: installed)
    problem = dispatch.problem(GRU(16, precision="free").config, True)
    *_, last = dispatch.explain(problem).splitlines()
    assert last.startswith("  precision='free': products over all steps by ")
    assert ("not installed" in last) is not installed
    assert dispatch.explain(replace(problem, device="cpu")).count("\n") == 0
    assert dispatch.explain(replace(problem, precision="dtype")).count("free") == 0


@pytest.mark.parametrize("reset_after", [True, False])
def test_dropout_of_the_state_takes_room_for_copies_of_it(reset_after):
    """One for each gate whose product is not made after the others'."""
    seen = copies(reset_after, True)
    assert seen == (3 if reset_after else 2)
    assert copies(reset_after, False) == 1
    found = Split(8, 4, 2)
    assert found.bytes(32, 513, seen) - found.bytes(32, 513) == (
        (seen - 1) * 4 * 4 * 516
    )


def test_the_grid_with_dropout_of_the_state():
    call = {"sizes": (32, 5), "chip": H100}
    config, alike = GRU(640).config, GRU(256).config
    assert dispatch.problem(config, True, **call).at_once
    assert not dispatch.problem(config, True, **call, drops=True).at_once
    assert dispatch.problem(alike, True, **call, drops=True).at_once


def test_explain_follows_the_array():
    layer = GRU(200)
    assert layer.explain((2, 4, 3)).startswith("cpu_tiles")
    assert layer.explain(OnDevice()).startswith("cuda_grid")
    assert GRU(200, device="cuda").explain((640, 9, 3)).startswith("cuda_tiled")
    layer = GRU(200, device="cuda", time_major=True)
    assert layer.explain((640, 9, 3)).startswith("cuda_grid")
    assert GRU(2000, device="cuda").explain((2, 4, 3)).startswith("cuda_cached")
    with pytest.raises(ValueError, match="device='cpu' was requested"):
        GRU(20, device="cpu").explain(OnDevice())
    assert GRU(20, device="cuda").explain((2, 4, 3)).startswith("cuda_resident")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"activation": "softmax"}, "takes all units of a row"),
        ({"use_cudnn": False}, "use_cudnn=False forbids"),
    ],
)
def test_what_no_kernel_on_a_device_does(arguments, reason):
    with pytest.raises(RuntimeError, match=f"{reason}.*device='cpu'"):
        GRU(4, device="cuda", **arguments).explain((2, 4, 3))


def test_cpu_demanded_for_an_array_on_a_device():
    layer = GRU(4, device="cpu")
    layer.build((None, None, 3))
    with pytest.raises(ValueError, match=r"device='cpu'.*`sequences`.*device='auto'"):
        layer(OnDevice())


def test_without_a_device(monkeypatch):
    """Neither the package nor a driver is there, or both and no device."""
    layer = GRU(4, device="cuda")
    with pytest.raises(RuntimeError, match=r"device='cuda'.*device='cpu'"):
        layer(np.zeros((2, 4, 3), "float32"))
    layer = GRU(4)
    layer.build((None, None, 3))
    with pytest.raises(RuntimeError, match=r"[Ii]nstall.*device='cpu'"):
        layer(OnDevice())

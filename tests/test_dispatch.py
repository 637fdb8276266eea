"""The table of kernels as a table."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbagru import dispatch
from numbagru.dispatch import KERNELS, Problem, Row

DEFAULT = Problem(fused=True)
problems = st.builds(Problem, fused=st.booleans())


def test_names_are_unique():
    assert len({row.name for row in KERNELS}) == len(KERNELS)


def test_last_row_takes_everything():
    assert not KERNELS[-1].checks


def test_default_takes_the_first_row():
    assert dispatch.select(DEFAULT) is KERNELS[0]
    assert dispatch.explain(DEFAULT) == f"{KERNELS[0].name}: {KERNELS[0].why}"


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"fused": False}, ["use_cudnn=False forbids the fused kernels"]),
    ],
)
def test_explain_names_each_refusal(change, reasons):
    problem = dataclasses.replace(DEFAULT, **change)
    refused, taken = KERNELS[0], KERNELS[1]
    expected = [f"{taken.name}: {taken.why}"]
    expected += [f"  not {refused.name}: {reason}" for reason in reasons]
    assert dispatch.explain(problem).splitlines() == expected


@given(problems)
def test_first_row_without_refusal_is_selected(problem):
    row = dispatch.select(problem)
    before = KERNELS[: KERNELS.index(row)]
    assert not list(dispatch.refusals(row, problem))
    assert all(list(dispatch.refusals(earlier, problem)) for earlier in before)
    first, *others = dispatch.explain(problem).splitlines()
    assert first == f"{row.name}: {row.why}"
    assert len(others) == sum(len(list(dispatch.refusals(r, problem))) for r in before)


def test_rows_are_complete():
    for row in KERNELS:
        assert isinstance(row, Row)
        assert row.why
        assert all(map(callable, (row.forward, row.backward, row.saved_shapes)))

"""Ways to divide a call, of which the fastest is found out."""

import pytest

from numbagru.kernels import ways
from numbagru.kernels.ways import Plan, Ways

PLANS = Plan(2, 1, True), Plan(1, 1, False)


@pytest.fixture
def clock(monkeypatch):
    """Give a clock that stands still until it is moved on."""
    now = [0.0]
    monkeypatch.setattr(ways.time, "perf_counter", lambda: now[0])
    return now


def run(tested, clock, seconds, calls, refused=()):
    """Run calls that take `seconds` by plan; return the plans they were given."""
    taken = []

    def call(plan):
        taken.append(plan)
        clock[0] += seconds[plan]
        return plan not in refused

    for _ in range(calls):
        tested.run(call)
    return taken


def test_one_way_is_not_timed(monkeypatch):
    monkeypatch.setattr(ways.time, "perf_counter", None)
    assert run(Ways(PLANS[0]), [0.0], {PLANS[0]: 1.0}, 3) == [PLANS[0]] * 3


@pytest.mark.parametrize(
    ("fast", "unit", "trials_alone"),
    [(0, 1.0, 1), (0, 1e-4, ways._TRIALS), (1, 1.0, ways._TRIALS)],
)
def test_the_faster_way_is_taken_and_the_other_tried_again(
    clock, fast, unit, trials_alone
):
    tested = Ways(*PLANS)
    trials = [PLANS[0]] * ways._TRIALS + [PLANS[1]] * trials_alone
    waits = [ways._SHORTEST_WAIT]
    while waits[-1] < ways._LONGEST_WAIT:
        waits.append(2 * waits[-1])
    waits.append(ways._LONGEST_WAIT)
    expected = [plan for n in waits for plan in (*trials, *[PLANS[fast]] * n)]
    seconds = {PLANS[fast]: unit, PLANS[1 - fast]: 2 * unit}
    assert run(tested, clock, seconds, len(expected)) == expected


def test_it_follows_a_machine_that_changes(clock):
    tested = Ways(*PLANS)
    run(tested, clock, {PLANS[0]: 1.0, PLANS[1]: 2.0}, 1000)
    taken = run(tested, clock, {PLANS[0]: 3.0, PLANS[1]: 2.0}, 1000)
    assert taken[200:].count(PLANS[0]) <= 8 * ways._TRIALS


def test_some_slow_calls_change_nothing(clock, monkeypatch):
    monkeypatch.setattr(ways, "_SHORTEST_WAIT", 100)
    tested = Ways(*PLANS)
    seconds = {PLANS[0]: 1.0, PLANS[1]: 1.5}
    run(tested, clock, seconds, 20)
    run(tested, clock, {PLANS[0]: 2.0, PLANS[1]: 1.5}, 3)
    assert run(tested, clock, seconds, 1) == [PLANS[0]]
    # Unless it stays so.
    taken = run(tested, clock, {PLANS[0]: 2.0, PLANS[1]: 1.5}, 10)
    assert taken[-1] == PLANS[1]


def test_slow_trials_do_not_undo_what_is_known(clock):
    tested = Ways(*PLANS)
    seconds = {PLANS[0]: 1.0, PLANS[1]: 2.0}
    once = ways._TRIALS + 1
    run(tested, clock, seconds, once + ways._SHORTEST_WAIT)
    run(tested, clock, {PLANS[0]: 2.2, PLANS[1]: 2.0}, once)
    assert run(tested, clock, seconds, 1) == [PLANS[0]]


def test_a_change_of_mind_is_soon_looked_at_again(clock):
    tested = Ways(*PLANS)
    run(tested, clock, {PLANS[0]: 1e-4, PLANS[1]: 2e-4}, 1000)
    assert tested._wait == ways._LONGEST_WAIT
    run(tested, clock, {PLANS[0]: 3e-4, PLANS[1]: 2e-4}, ways._LONGEST_WAIT + 10)
    assert tested._wait <= 2 * ways._SHORTEST_WAIT


def test_a_trial_without_helpers_is_made_up_for(clock):
    tested = Ways(*PLANS)
    seconds = {PLANS[0]: 2.5, PLANS[1]: 2.0}
    assert run(tested, clock, seconds, 9, refused=PLANS[:1]) == [PLANS[0]] * 9
    assert run(tested, clock, {**seconds, PLANS[0]: 1.0}, 20)[-1] == PLANS[0]


def test_a_call_that_fails_is_not_timed(clock):
    tested = Ways(*PLANS)

    def fail(plan):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        tested.run(fail)
    assert run(tested, clock, {PLANS[0]: 1.0, PLANS[1]: 2.0}, 20)[-1] == PLANS[0]

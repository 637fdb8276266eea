"""Ways to divide a call among threads, of which the fastest is found out while running.

Whether threads gain by working together depends on how far apart their cores are, which
nobody tells a virtual machine: a meeting took 0.2 µs on one day and 1.0 µs on another,
and 100 steps of one row of 128 units 86 µs or 172 µs, 129 µs alone (Zen 5). Results do
not depend on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Plan(NamedTuple):
    """How many threads run a call, and how they divide it."""

    threads: int
    rows: int
    together: bool


# Each way is tried so often in a row, because helpers have to wake up; and again after
# so many calls, at first soon, because others may have been using the cores. What that
# loses is some hundredths of the time in the end.
_TRIALS, _SHORTEST_WAIT, _LONGEST_WAIT = 4, 8, 128


class Ways:
    """The plans for calls of one kind, the most promising first."""

    def __init__(self, *plans: Plan) -> None:
        self.plans = plans
        self._seconds = [float("inf")] * len(plans)
        self._trial = 0  # of all ways
        self._calls = 0  # after the trials
        self._wait = _SHORTEST_WAIT

    def run(self, call: Callable[[Plan], bool]) -> None:
        """Run ``call(plan)`` with one of the plans; it returns whether it kept to it.

        If not, because no helper was free, nothing is learned from it.
        """
        if len(self.plans) == 1:
            call(self.plans[0])
            return
        way = self._next()
        start = time.perf_counter()
        if call(self.plans[way]):
            self._note(way, time.perf_counter() - start)

    def _next(self) -> int:
        way, trial = divmod(self._trial, _TRIALS)
        if way < len(self.plans):
            if trial == 0:
                self._seconds[way] = float("inf")
            return way
        return self._seconds.index(min(self._seconds))

    def _note(self, way: int, seconds: float) -> None:
        """Believe a shorter time at once, a longer one, which others cause, slowly."""
        known = self._seconds[way]
        slowly = known + (seconds - known) / 4 if known < seconds else seconds
        self._seconds[way] = slowly
        if self._trial < _TRIALS * len(self.plans):
            self._trial += 1
            return
        self._calls += 1
        if self._calls >= self._wait:
            self._trial = self._calls = 0
            self._wait = min(2 * self._wait, _LONGEST_WAIT)

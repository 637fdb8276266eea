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
# so many calls, at first and after a change of mind soon, because others may have been
# using the cores. What that loses is some hundredths of the time in the end.
_TRIALS, _SHORTEST_WAIT, _LONGEST_WAIT = 4, 8, 128
# One trial is enough of a way that takes so much longer than the fastest and so many
# seconds, which no cold cache explains, if no helper has to wake up: of 1x50x128x1024
# in float64, 4 in 16 calls took 43 instead of 23 ms (Emerald Rapids).
_HOPELESS, _LONG = 1.25, 1e-3
# A shorter time than known counts at once, of a longer one this part: others cause it
# more often than the way. NumPy's BLAS leaves threads that spin for 20 ms after its
# work; trials at that time chose one thread for the next hundred calls and more (64
# rows, one step, 256 units, float64: 2.1 ms for the backward pass; 1.2 on two).
_LONGER = 1 / 8


class Ways:
    """The plans for calls of one kind, the most promising first."""

    def __init__(self, *plans: Plan) -> None:
        self.plans = plans
        self._seconds = [float("inf")] * len(plans)
        self._trial = 0  # of all ways
        self._best: int | None = None  # after the trials before
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
        way = self._trial // _TRIALS
        return way if way < len(self.plans) else self._fastest()

    def _fastest(self) -> int:
        return self._seconds.index(min(self._seconds))

    def _is_hopeless(self, way: int, seconds: float) -> bool:
        least = max(_LONG, _HOPELESS * min(self._seconds))
        return self.plans[way].threads == 1 and seconds > least

    def _note(self, way: int, seconds: float) -> None:
        known = self._seconds[way]
        longer = known < seconds
        self._seconds[way] = known + (seconds - known) * _LONGER if longer else seconds
        trials = _TRIALS * len(self.plans)
        if self._trial < trials:
            self._trial += 1
            if self._is_hopeless(way, seconds):
                self._trial = (way + 1) * _TRIALS
            if self._trial == trials:
                best = self._fastest()
                steady = best == self._best
                self._wait = (
                    min(2 * self._wait, _LONGEST_WAIT) if steady else _SHORTEST_WAIT
                )
                self._best = best
            return
        self._calls += 1
        if self._calls >= self._wait:
            self._trial = self._calls = 0

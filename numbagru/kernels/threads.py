"""Threads of our own that help a kernel: Numba's pools are never entered.

So callers may come from any number of threads, after a fork, and under any of Numba's
threading layers, one of which aborts the process when two callers enter; and no kernel
compiles a second time for ``prange`` (4 s more for the inference kernel).

A helper is a Python thread inside `team.serve`, without the GIL: after each piece of
work it spins for a moment, ready to begin the next one, before it sleeps on a lock.
Helpers belong to one caller at a time; who finds none works alone.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import config, types

from numbagru._jit import Kernel
from numbagru.kernels import team
from numbagru.kernels.simd import pointer

WORD_ARRAY = types.Array(types.int64, 1, "C")
# Seconds until a helper without work goes to sleep, from which waking it takes 40 to
# 130 µs. Between two calls of a layer with recurrent dropout its masks are drawn: with
# a patience of 75 µs 64x50x8x32 took 0.37 ms instead of 0.30 (Emerald Rapids).
_PATIENCE = 2e-4
# Seconds before a thread that waits lets others run, and the calling thread decides to
# go on alone. Longer than what keeps a thread from its work that nobody took the core
# from: with 0.12 ms, new pages for gradients made 5 to 35 % of the calls of large
# layers go on alone, for half of their time more (Zen 4); with 0.6, 4 % of those of
# 1x50x128x1024, with 1.5, 1 % or none (Emerald Rapids).
_PATIENCE_WITH_OTHERS = 1.5e-3
# Seconds without working together after helpers have kept a caller waiting, which takes
# it a time slice, some 4 ms: twice as long with each time, half as long with each call
# that need not wait. On cores that others use now and then, one call in fifty waits.
# What was long ago counts no more: programs that now and then leave threads spinning,
# as NumPy's BLAS does for 20 ms, would meet the longest pause every time.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 0.256


_current_cpu = None
if hasattr(os, "sched_setaffinity"):
    _current_cpu = getattr(ctypes.CDLL(None), "sched_getcpu", None)


def _serve(mailbox, patience):
    team.serve(pointer(mailbox), patience)


_SERVE = Kernel(_serve, lambda: (WORD_ARRAY, types.int64))


@functools.cache
def _round() -> float:
    """Measure seconds of a round of `team.serve`: 15e-9, or 25e-9 (Zen 4)."""
    mailbox, rounds, times = np.zeros(team.MAILBOX, np.int64), 1000, []
    for _ in range(3):
        start = time.perf_counter()
        _SERVE.entry()(mailbox, rounds)
        times.append(time.perf_counter() - start)
    return min(times) / rounds


def _rounds(seconds: float) -> int:
    return math.ceil(seconds / _round())


def new_words() -> np.ndarray:
    """Make the words of a call on several threads."""
    words = np.zeros(team.LENGTH, np.int64)
    words[team.PATIENCE] = _rounds(_PATIENCE_WITH_OTHERS)
    return words


class _Helper(threading.Thread):
    """One thread and the mailbox that kernels post work to."""

    def __init__(self) -> None:
        super().__init__(name="numbagru", daemon=True)
        self.mailbox = np.zeros(team.MAILBOX, np.int64)
        self.address = self.mailbox.ctypes.data  # asking takes a microsecond
        self.mailbox[0] = team.SPINNING
        self._alarm = threading.Lock()  # locked but for the moment of an alarm
        self._alarm.acquire()
        self._allowed: set[int] | None = None  # CPUs, while kept off one of them
        # Here, because the thread may be cut off when Python ends.
        self._serve, self._patience = _SERVE.entry(), _rounds(_PATIENCE)

    def run(self) -> None:
        while True:
            self._serve(self.mailbox, self._patience)
            self._alarm.acquire()

    def wake(self) -> None:
        """Wake it up, unless it is awake."""
        if self.mailbox[0] == team.SLEEPING:
            # RuntimeError: released already, and not yet noticed.
            with contextlib.suppress(RuntimeError):
                self._alarm.release()

    def note(self, came: bool) -> None:
        """Keep it off the caller's core from when it did not come until it does.

        Linux may leave it there to wait for its turn for 150 ms and more, with a core
        idle beside it.
        """
        if _current_cpu is None or (came and self._allowed is None):
            return
        with contextlib.suppress(OSError):
            if came:
                os.sched_setaffinity(self.native_id, self._allowed)
                self._allowed = None
                return
            allowed = self._allowed or os.sched_getaffinity(self.native_id)
            elsewhere = allowed - {_current_cpu()}
            if elsewhere:
                os.sched_setaffinity(self.native_id, elsewhere)
                self._allowed = allowed


class _Crew:
    """The helpers of this process, and how many threads a call may have."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.idle: list[_Helper] = []
        self.helpers: list[_Helper] = []
        self.lock = threading.Lock()
        self.spare: list[np.ndarray] = []
        # By thread: one that was interrupted before it left is not counted twice.
        self.callers: dict[int, None] = {}
        self.together_from = 0.0  # on the monotonic clock
        self.pause = _SHORTEST_PAUSE

    def claim(self, most: int) -> list[_Helper]:
        """Take up to `most` helpers; more are made while there are too few.

        None in place of other callers, who each have a thread of their own: a call on
        two of two cores and a second one beside it took turns on them, and 60 calls
        from a pool of two threads 14 ms instead of 12.
        """
        claimed: list[_Helper] = []
        most = min(most, self.threads - len(self.callers))
        while len(claimed) < most:
            helper = self._idle_helper()
            if helper is not None:
                claimed.append(helper)
            elif not self._add_helper():
                break
        return claimed

    def _idle_helper(self) -> _Helper | None:
        try:
            return self.idle.pop()  # atomic, and sooner than a lock
        except IndexError:
            return None

    def _add_helper(self) -> bool:
        """Make one more idle helper, unless there are enough."""
        with self.lock:
            lacks = len(self.helpers) < self.threads - 1
            if lacks:
                helper = _Helper()
                helper.start()
                self.helpers.append(helper)
                self.idle.append(helper)
        return lacks

    def learn(self, waited: bool) -> None:
        """Note whether helpers have kept a caller waiting."""
        if waited:
            now = time.monotonic()
            if now - self.together_from > _LONGEST_PAUSE:
                self.pause = _SHORTEST_PAUSE
            self.together_from = now + self.pause
            self.pause = min(2 * self.pause, _LONGEST_PAUSE)
        else:
            self.pause = max(self.pause / 2, _SHORTEST_PAUSE)


_crew = _Crew(min(config.NUMBA_NUM_THREADS, team.MOST_HELPERS + 1))


def _after_fork() -> None:
    """Begin anew: threads do not survive a fork."""
    global _crew
    _crew = _Crew(_crew.threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _fall_asleep() -> None:
    """Wait until no helper spins in compiled code, which is about to vanish."""
    end = time.monotonic() + 1
    while time.monotonic() < end and any(
        helper.mailbox[0] != team.SLEEPING for helper in _crew.helpers
    ):
        time.sleep(1e-4)


def get_num_threads() -> int:
    """Return how many threads a call may use, the calling one included."""
    return _crew.threads


def set_num_threads(threads: int) -> None:
    """Limit the threads of all calls in this process.

    Parameters
    ----------
    threads : int
        1 to 64. At the start it is ``numba.config.NUMBA_NUM_THREADS``: the CPUs of the
        process, or what the environment variable NUMBA_NUM_THREADS says.

    Raises
    ------
    TypeError
        If `threads` is not an integer.
    ValueError
        If it is out of range.
    """
    _crew.threads = checked_threads(threads)


def checked_threads(threads: Any) -> int:
    """Return a number of threads, or refuse it."""
    if isinstance(threads, (bool, np.bool_)) or not isinstance(
        threads, (int, np.integer)
    ):
        raise TypeError(
            "`threads` must be an integer, the number of threads a call may use. "
            f"Received: threads={threads!r} (of type {type(threads).__name__})"
        )
    if not 1 <= threads <= team.MOST_HELPERS + 1:
        raise ValueError(
            f"`threads` must be from 1 to {team.MOST_HELPERS + 1}; 1 keeps all work in "
            f"the calling thread. Received: threads={threads}"
        )
    return int(threads)


# The words of a call on one thread; kernels only read them.
NOBODY = np.zeros(team.LENGTH, np.int64)


def run(
    entry: Callable[..., None],
    arguments: Sequence[Any],
    threads: int,
    together: bool = False,
) -> bool:
    """Call ``entry(*arguments, words)`` on this thread and helpers.

    Parameters
    ----------
    entry
        Entry of a kernel whose work goes through `team.share`.
    arguments
        All but the last.
    threads : int
        How many threads the work is enough for.
    together : bool
        How the kernel is to divide it.

    Returns
    -------
    bool
        Whether it was divided so; else no helper came in time, or one was kept from
        its work.
    """
    if threads <= 1:
        entry(*arguments, NOBODY)
        return True
    crew = _crew
    caller = threading.get_ident()
    crew.callers[caller] = None
    try:
        helpers = []
        if not together or time.monotonic() >= crew.together_from:
            helpers = crew.claim(threads - 1)
        if not helpers:
            entry(*arguments, NOBODY)
            return False
        return _run_with(crew, helpers, entry, arguments, together)
    finally:
        crew.callers.pop(caller, None)


def _run_with(
    crew: _Crew,
    helpers: list[_Helper],
    entry: Callable[..., None],
    arguments: Sequence[Any],
    together: bool,
) -> bool:
    try:
        words = crew.spare.pop()
    except IndexError:
        words = new_words()
    words[team.HELPERS] = len(helpers)
    words[team.TOGETHER] = together
    for i, helper in enumerate(helpers):
        words[team.MAILBOXES + i] = helper.address
        helper.wake()
    try:
        entry(*arguments, words)
    finally:
        for helper in helpers:
            helper.note(came=helper.mailbox[0] != team.SLEEPING)
        crew.idle.extend(helpers)
    if words[team.FAILED]:
        # Once more, alone: that raises what went wrong.
        entry(*arguments, NOBODY)
    waited = bool(words[team.WAITED] != 0)
    if together:
        crew.learn(waited)
    kept_to_it = not together or (bool(words[team.JOINED] > 0) and not waited)
    crew.spare.append(words)
    return kept_to_it

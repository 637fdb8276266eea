"""Threads of our own: the same bits, no hanging, whoever calls, whoever is missing."""

import multiprocessing
import os
import subprocess
import sys
import sysconfig
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import dask
import numpy as np
import pytest
from numba import njit

import numbagru as ng
from numbagru.functional import threads_of
from numbagru.kernels import team, threads
from numbagru.kernels.simd import pointer

# One row and some rows, where threads work together; rows enough to work apart; and one
# row whose inputs helpers multiply.
SHAPES = [
    (1, 40, 33, 130),
    (5, 9, 3, 70),
    (8, 12, 40, 65),
    (40, 6, 9, 64),
    (1, 70, 130, 65),
]
# One reset mode per type: each of the four kernels compiles for seconds.
VARIANTS = [
    {"reset_after": True, "dtype": "float32"},
    {"reset_after": False, "dtype": "float64"},
    {"reset_after": True, "dtype": "float32", "activation": "softmax"},
    {"reset_after": False, "dtype": "float32", "recurrent_activation": "softmax"},
]


@pytest.fixture(autouse=True)
def limit():
    """Undo what a test does to the limit of the process and to the pause."""
    before = ng.get_num_threads()
    threads._crew.together_from = 0.0
    yield
    ng.set_num_threads(before)


class Case:
    """A layer, its input and cotangent, and all that comes of them."""

    def __init__(self, shape, variant, **arguments):
        B, T, F, U = shape
        rng = np.random.default_rng(0)
        dtype = variant["dtype"]
        self.layer = ng.GRU(U, return_sequences=True, **variant, **arguments)
        self.layer.build((B, T, F))
        self.layer.set_weights(
            [rng.normal(0, 0.2, w.shape) for w in self.layer.get_weights()]
        )
        self.x = rng.normal(size=(B, T, F)).astype(dtype)
        self.mask = rng.random((B, T)) < 0.7
        self.dy = rng.normal(size=(B, T, U)).astype(dtype)

    def everything(self):
        results = [self.layer(self.x)]
        for mask in (None, self.mask):
            y, pullback = self.layer.vjp(self.x, mask=mask)
            grads = pullback(self.dy)
            results += [y, grads.inputs, *grads.weights]
        return [array.tobytes() for array in results]


@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_number_of_threads(shape, variant):
    case = Case(shape, variant)
    ng.set_num_threads(1)
    expected = case.everything()
    for count in (2, 3, 8):
        ng.set_num_threads(count)
        for _ in range(3):
            threads._crew.together_from = 0.0
            assert case.everything() == expected


@pytest.fixture(params=[SHAPES[0], SHAPES[4]], ids=repr)
def case(request):
    case = Case(request.param, VARIANTS[0])
    ng.set_num_threads(1)
    case.expected = case.everything()
    return case


def test_helpers_that_others_have(case):
    ng.set_num_threads(3)
    taken = threads._crew.claim(2)
    try:
        assert case.everything() == case.expected
    finally:
        threads._crew.idle.extend(taken)


def test_helpers_that_never_come(case, monkeypatch):
    """As if the system never ran them: nobody waits for them."""
    ng.set_num_threads(3)
    mailboxes = [np.zeros(team.MAILBOX, np.int64) for _ in range(2)]

    class Absent:
        def __init__(self, mailbox):
            self.mailbox = mailbox
            self.address = mailbox.ctypes.data

        def wake(self):
            pass

        def note(self, came):
            assert not came

    absent = [Absent(mailbox) for mailbox in mailboxes]
    monkeypatch.setattr(threads._crew, "idle", absent)
    monkeypatch.setattr(threads._crew, "helpers", list(absent))
    assert case.everything() == case.expected
    assert [mailbox[0] for mailbox in mailboxes] == [team.SLEEPING] * 2


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two CPUs",
)
def test_a_helper_that_did_not_come_is_kept_off_this_core_until_it_does():
    helper = threads._Helper()
    helper.start()
    all_cpus = os.sched_getaffinity(helper.native_id)
    helper.note(came=True)
    assert os.sched_getaffinity(helper.native_id) == all_cpus
    for _ in range(2):
        helper.note(came=False)
        assert len(all_cpus - os.sched_getaffinity(helper.native_id)) == 1
    helper.note(came=True)
    assert os.sched_getaffinity(helper.native_id) == all_cpus


def test_more_threads_than_cores_and_busy_cores(case):
    """All cores spin, so that helpers come late and lose their core in between."""
    ng.set_num_threads(16)
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            sum(range(1000))

    spinning = [threading.Thread(target=spin) for _ in range(4)]
    for thread in spinning:
        thread.start()
    try:
        for _ in range(3):
            threads._crew.together_from = 0.0
            assert case.everything() == case.expected
    finally:
        stop.set()
        for thread in spinning:
            thread.join()


@pytest.fixture
def claimed(monkeypatch):
    """List how many helpers each call has asked for."""
    claimed = []
    original = threads._Crew.claim

    def claim(crew, most):
        claimed.append(most)
        return original(crew, most)

    monkeypatch.setattr(threads._Crew, "claim", claim)
    return claimed


def test_waiting_makes_a_pause(case, claimed):
    """After a long wait the next calls do without others."""
    ng.set_num_threads(2)
    case.everything()
    assert claimed
    claimed.clear()
    threads._crew.together_from = float("inf")
    assert case.everything() == case.expected
    assert not claimed


@pytest.mark.parametrize("callers", [1, 2, 3, 4])
def test_other_callers_keep_a_thread_each(callers):
    crew = threads._Crew(3)
    crew.idle, crew.helpers = ["one", "another"], ["one", "another"]
    crew.callers = dict.fromkeys(range(callers))
    assert len(crew.claim(2)) == max(0, 3 - callers)


def test_a_call_counts_while_it_runs(monkeypatch):
    crew = threads._Crew(2)
    monkeypatch.setattr(threads, "_crew", crew)
    seen = []

    def entry(words):
        seen.append((len(crew.callers), int(words[team.HELPERS])))
        if len(seen) == 1:
            other = threading.Thread(target=threads.run, args=(entry, (), 2))
            other.start()
            other.join()

    threads.run(entry, (), 2)
    assert seen == [(1, 1), (2, 0)]
    assert not crew.callers


def test_pauses_grow_with_each_wait_and_are_forgotten(monkeypatch):
    now = [1.0]
    monkeypatch.setattr(threads.time, "monotonic", lambda: now[0])
    crew = threads._Crew(2)
    pauses = []
    for _ in range(10):
        now[0] = max(now[0], crew.together_from)
        crew.learn(waited=True)
        pauses.append(crew.together_from - now[0])
    shortest, longest = threads._SHORTEST_PAUSE, threads._LONGEST_PAUSE
    doubled = [min(shortest * 2**k, longest) for k in range(10)]
    assert np.allclose(pauses, doubled)
    now[0] = crew.together_from + 2 * longest
    crew.learn(waited=True)
    assert np.isclose(crew.together_from - now[0], shortest)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=repr)
def test_limit_of_a_layer(shape, claimed):
    """The smaller of its own and the process's counts; `threads=1` asks for nobody."""
    ng.set_num_threads(4)
    limited = [Case(shape, VARIANTS[0], threads=n) for n in (1, 2, 3, 1000)]
    limits = [threads_of(case.layer.config) for case in limited]
    assert limits == [1, 2, 3, 4]
    expected = limited[0].everything()
    assert not claimed
    for case, limit in zip(limited[1:], limits[1:], strict=True):
        claimed.clear()
        assert case.everything() == expected
        assert claimed
        assert max(claimed) < limit
    claimed.clear()
    ng.set_num_threads(1)
    for case in limited:
        assert case.everything() == expected
    assert not claimed


@njit
def picky(x):
    if x > 1e6:
        raise ArithmeticError("too large")
    return x / (1 + abs(x))


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[4]], ids=repr)
def test_an_exception_in_a_kernel(shape):
    """It comes out of the call, and the helpers are there for the next one."""
    B, T, F, U = shape
    layer = ng.GRU(U, activation=picky, return_sequences=True)
    x = np.ones((B, T, F), "float32")
    ng.set_num_threads(1)
    expected = layer(x)
    ng.set_num_threads(4)
    for _ in range(3):
        with pytest.raises(ArithmeticError, match="too large"):
            layer(np.full_like(x, 1e9) * np.sign(layer.get_weights()[0][:, -1]))
        np.testing.assert_array_equal(layer(x), expected)


@pytest.fixture
def cases():
    """Give all shapes on three threads, with what they are on one."""
    cases = [Case(shape, VARIANTS[0]) for shape in SHAPES]
    ng.set_num_threads(1)
    for case in cases:
        case.expected = case.everything()
    ng.set_num_threads(3)
    return cases


def test_callers_from_many_threads(cases):
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(
            lambda _: [case.everything() for case in cases], range(8)
        ):
            assert results == [case.expected for case in cases]


def test_tasks_of_dask(cases):
    """Eight workers, all layers several times, two of their calls on one layer."""
    tasks = [dask.delayed(case.everything, pure=False)() for case in cases * 4]
    results = dask.compute(*tasks, scheduler="threads", num_workers=8)
    assert list(results) == [case.expected for case in cases * 4]


def _everything_of(shape):
    return Case(shape, VARIANTS[0]).everything()


def test_spawned_processes(cases):
    """Processes that begin with nothing, two of them at once."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, ng.set_num_threads, (3,)) as pool:
        results = list(pool.map(_everything_of, SHAPES))
    assert results == [case.expected for case in cases]


PROGRAM = """
import os, sys, threading
import numpy as np, numba
import numbagru as ng

layer = ng.GRU(70, return_sequences=True)
alone, many = np.ones((1, 50, 40), "float32"), np.ones((64, 20, 9), "float32")
many_layer = ng.GRU(70, return_sequences=True)
ng.set_num_threads(3)

def digest():
    y, pullback = many_layer.vjp(many)
    parts = [layer(alone), many_layer(many), y, *pullback(y).weights]
    return b"".join(part.tobytes() for part in parts)

expected = digest()
"""

AFTER_FORK = """
child = os.fork()
if child == 0:
    os._exit(0 if digest() == expected else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert digest() == expected
"""

BESIDE_NUMBA = """
@numba.njit(parallel=True)
def total(x):
    s = 0.0
    for i in numba.prange(x.size):
        s += x[i]
    return s

ones = np.ones(100_000)
total(ones)
assert numba.threading_layer() == sys.argv[1]
results = []
callers = [
    threading.Thread(target=lambda: results.extend(digest() for _ in range(10)))
    for _ in range(3)
]
for caller in callers:
    caller.start()
for _ in range(200):
    assert total(ones) == ones.size
for caller in callers:
    caller.join()
assert results == [expected] * 30
"""


def run(program, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


FREED = """
layer = ng.GRU(256)
x = np.ones((1, 20, 64), "float32")
for _ in range(300):
    layer(x)
    y, pullback = layer.vjp(x)
    pullback(y)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is glibc's")
def test_nobody_reads_what_another_has_freed():
    """Every freed array vanishes at once, so that reading it would end the process."""
    run(PROGRAM + FREED, MALLOC_MMAP_THRESHOLD_="4096")


@njit
def _entered(words, own):
    return team.enter(pointer(words), True, pointer(own))


@pytest.mark.parametrize(("admitted", "step"), [(3, 7), (-3, 7), (-1, -1)])
def test_who_was_let_in_stays_in(admitted, step):
    """Although nobody else is let in before it has noticed: others count on it."""
    words = np.zeros(team.LENGTH, np.int64)
    words[team.TOGETHER] = 1
    words[team.JOINED] = 1
    words[team.ADMITTED] = admitted
    words[team._ENTRIES + team._ENTRY * 2] = 7
    assert _entered(words, np.zeros(team.OWN, np.int64)) == step


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_fork():
    run(PROGRAM + AFTER_FORK)


@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_beside_the_threading_layers_of_numba(layer):
    """Numba's pool at work at the same time, in each of its layers."""
    environment = {"NUMBA_THREADING_LAYER": layer}
    if sys.platform == "linux":
        # Where pip puts libtbb, and the system does not look for it.
        folders = [f"{sysconfig.get_path('data')}/lib", os.getenv("LD_LIBRARY_PATH")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))
    available = run(
        "from numba.np.ufunc import parallel\n"
        "try:\n    parallel._launch_threads()\n    print('yes')\n"
        "except ValueError:\n    print('no')",
        **environment,
    )
    if available.stdout.strip() == "no":
        pytest.skip(f"this Numba has no threading layer '{layer}'")
    run(PROGRAM + BESIDE_NUMBA, layer, **environment)


@pytest.mark.parametrize("bad", [0, -1, 65, 10**20])
def test_out_of_range(bad):
    with pytest.raises(ValueError, match=r"`threads` must be from 1 to 64.*Received"):
        ng.set_num_threads(bad)


@pytest.mark.parametrize("bad", [True, 2.0, "2", None, np.float32(3)])
def test_not_an_integer(bad):
    with pytest.raises(TypeError, match=r"`threads` must be an integer.*Received"):
        ng.set_num_threads(bad)


def test_limits():
    ng.set_num_threads(np.int64(5))
    assert ng.get_num_threads() == 5

"""The same bits whatever the batch, the threads, the chunks of time and the CPU."""

import functools
import itertools
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbagru.config import GRUConfig
from numbagru.functional import (
    Weights,
    get_num_threads,
    gru,
    gru_vjp,
    set_num_threads,
)
from numbagru.kernels import weight_gradients
from numbagru.kernels.vector_ir import registers_of

VARIANTS = [(True, "float32"), (False, "float64")]


@dataclass
class Problem:
    """A layer, its inputs, and how to run it on some of the rows."""

    B: int
    T: int
    F: int
    U: int
    variant: tuple[bool, str]
    family: str | bool
    masked: bool
    seed: int

    def __post_init__(self):
        """Draw weights and inputs."""
        self.rng = np.random.default_rng(self.seed)
        reset_after, F, U = self.variant[0], self.F, self.U
        bias = (2, 3 * U) if reset_after else (3 * U,)
        arrays = (self.normal(*shape) for shape in [(F, 3 * U), (U, 3 * U), bias])
        self.weights = Weights(*arrays, reset_after)
        self.x = self.normal(self.B, self.T, F)
        self.h0 = self.normal(self.B, U)
        self.mask = self.rng.random((self.B, self.T)) < 0.6 if self.masked else None
        self.d = (
            self.normal(self.B, U),
            self.normal(self.B, self.T, U),
            self.normal(self.B, U),
        )

    def __repr__(self):
        """Show what makes it up, in an order that reads well."""
        return (
            f"{self.B}x{self.T}x{self.F}x{self.U} {self.variant} use_cudnn="
            f"{self.family} masked={self.masked} seed={self.seed}"
        )

    @functools.cached_property
    def config(self):
        # Late: drawing seeds of initializers is nothing that hypothesis lets pass
        # where it makes examples.
        return self.config_of()

    def config_of(self, **changes):
        reset_after, dtype = self.variant
        return GRUConfig(
            units=self.U,
            reset_after=reset_after,
            dtype=dtype,
            use_cudnn=self.family,
            return_sequences=True,
            # Outputs are states then, so that every chunk of time has the same.
            compat="keras3-jax",
            **changes,
        )

    def normal(self, *shape):
        return self.rng.normal(size=shape).astype(self.variant[1])

    def forward(self, rows=slice(None), steps=slice(None), h0=None):
        mask = None if self.mask is None else self.mask[rows, steps]
        h0 = self.h0[rows] if h0 is None else h0
        return gru(self.config, self.weights, self.x[rows, steps], h0, mask)

    def gradients(self, rows=slice(None)):
        mask = None if self.mask is None else self.mask[rows]
        _, pullback = gru_vjp(
            self.config, self.weights, self.x[rows], self.h0[rows], mask
        )
        return pullback(*(d[rows] for d in self.d))


problems = st.builds(
    Problem,
    B=st.integers(1, 20),
    T=st.integers(0, 6),
    F=st.integers(1, 9),
    U=st.sampled_from([1, 5, 8, 15, 16, 17, 33, 48, 64, 70]),
    variant=st.sampled_from(VARIANTS),
    family=st.sampled_from(["auto", False]),
    masked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


def same(results, expected):
    """Compare bits; the sign of zero and the kind of NaN count."""
    results, expected = list(results), list(expected)
    assert len(results) == len(expected)
    for result, right in zip(results, expected, strict=True):
        assert result.shape == right.shape
        assert result.dtype == right.dtype
        assert result.tobytes() == right.tobytes()


@given(problems, st.data())
def test_rows_do_not_depend_on_the_batch(problem, data):
    """Any rows, in any order, alone or together: outputs and their own gradients."""
    indices = st.integers(0, problem.B - 1)
    rows = data.draw(st.lists(indices, min_size=1, max_size=2 * problem.B))
    whole, part = problem.forward(), problem.forward(rows)
    same(part, [array[rows] for array in whole])
    whole, part = problem.gradients(), problem.gradients(rows)
    same(part[:2], [array[rows] for array in whole[:2]])


@given(problems)
def test_each_row_alone(problem):
    whole, gradients = problem.forward(), problem.gradients()
    for b in range(problem.B):
        row = slice(b, b + 1)
        same(problem.forward(row), [array[row] for array in whole])
        same(problem.gradients(row)[:2], [array[row] for array in gradients[:2]])


@given(problems, st.data())
def test_chunks_of_time_are_the_whole(problem, data):
    last, outputs, state = problem.forward()
    cuts = data.draw(st.lists(st.integers(0, problem.T), max_size=3).map(sorted))
    edges = [0, *cuts, problem.T]
    h, chunks = problem.h0, []
    for start, stop in itertools.pairwise(edges):
        last_of_chunk, y, h = problem.forward(steps=slice(start, stop), h0=h)
        chunks.append(y)
    same([last_of_chunk, np.concatenate(chunks, 1), h], [last, outputs, state])


@given(problems)
def test_ways_to_say_the_same(problem):
    """Time first, or backwards through reversed sequences, changes no bit."""
    x, h0, mask = problem.x, problem.h0, problem.mask
    last, outputs, state = problem.forward()
    major = problem.config_of(time_major=True)
    swapped = None if mask is None else mask.T
    results = gru(major, problem.weights, x.swapaxes(0, 1), h0, swapped)
    same([results[0], results[1].swapaxes(0, 1), results[2]], [last, outputs, state])
    backwards = problem.config_of(go_backwards=True)
    flipped = None if mask is None else mask[:, ::-1]
    results = gru(backwards, problem.weights, x[:, ::-1], h0, flipped)
    same(results, [last, outputs, state])


@given(problems)
def test_all_forward_kernels_agree(problem):
    """Without a state, without a mask, with saving for backward, plain or in tiles."""
    x, mask = problem.x, problem.mask
    zeros = np.zeros_like(problem.h0)
    ones = np.ones(x.shape[:2])
    expected = gru(problem.config, problem.weights, x, zeros, mask)
    same(gru(problem.config, problem.weights, x, None, mask), expected)
    same(gru_vjp(problem.config, problem.weights, x, None, mask)[0], expected)
    problem.family = not problem.family
    same(gru(problem.config_of(), problem.weights, x, None, mask), expected)
    unmasked = gru(problem.config, problem.weights, x, zeros)
    same(gru(problem.config, problem.weights, x, zeros, ones), unmasked)


@given(problems, st.data())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_stays_in_its_row(bad, problem, data):
    """Outputs and own gradients of the other rows do not change."""
    b = data.draw(st.integers(0, problem.B - 1))
    others = np.arange(problem.B) != b
    clean, gradients = problem.forward(), problem.gradients()
    problem.x[b] = bad
    problem.h0[b] = bad
    same(
        [array[others] for array in problem.forward()],
        [array[others] for array in clean],
    )
    same(
        [array[others] for array in problem.gradients()[:2]],
        [array[others] for array in gradients[:2]],
    )


@given(problems)
def test_nothing_under_the_mask_is_read(problem):
    problem.mask = problem.rng.random((problem.B, problem.T)) < 0.6
    results = []
    for garbage in (0, 1e30, np.nan, np.inf, -np.inf):
        problem.x[~problem.mask] = garbage
        results.append([*problem.forward(), *problem.gradients()])
    for other in results[1:]:
        same(other, results[0])
    assert all(np.isfinite(array).all() for array in results[0])
    assert not results[0][3][~problem.mask].any()


@given(problems)
def test_pullback_may_be_called_again(problem):
    arguments = problem.config, problem.weights, problem.x, problem.h0, problem.mask
    outputs, pullback = gru_vjp(*arguments)
    first = pullback(*problem.d)
    pullback(*outputs)
    same(pullback(*problem.d), first)


# Four panels of vectors of 64 or of 32 bytes that do not fit into the first-level cache
# together: a row alone goes through them back and forth.
@pytest.mark.parametrize(("F", "U"), [(4, 64), (9, 50), (90, 32), (90, 25)])
def test_a_row_alone_goes_through_its_weights_back_and_forth(F, U):
    problem = Problem(3, 5, F, U, VARIANTS[0], "auto", True, seed=0)
    together = problem.forward()
    for row in range(problem.B):
        one = slice(row, row + 1)
        same(problem.forward(one), [array[one] for array in together])
        *_, state = problem.forward(one, slice(3))
        *_, later = problem.forward(one, slice(3, None), state)
        same([later], [together[-1][one]])


# Rows alone, eight steps at a time, and more; two and four vectors of 32 or 64 bytes.
# And more than 1 MiB of weights: eight steps of eight rows at a time, of units that two
# threads share, and of inputs that do not fill their vectors.
@pytest.mark.parametrize(
    ("B", "T", "F", "U"),
    [(1, 21, 32, 9), (2, 9, 16, 9), (9, 5, 32, 9), (17, 11, 2656, 33),
     (8, 11, 688, 130), (17, 11, 2659, 33)],
)  # fmt: skip
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backwards", [False, True])
def test_gradients_of_inputs_of_whole_vectors(B, T, F, U, variant, backwards):
    """They are written where they belong, but under a mask, through scratch."""
    problem = Problem(B + 1, T, F, U, variant, "auto", True, seed=0)
    problem.config = problem.config_of(go_backwards=backwards)
    problem.mask[:B] = True
    problem.mask[B, 0] = False
    # Without a mask they are added in another order.
    problem.d[0][:] = 0
    expected = problem.gradients()
    problem.mask = None
    found = problem.gradients(slice(B))
    same(found[:2], [array[:B] for array in expected[:2]])


def bits(array):
    """See zeros of both signs as what they are; any NaN is as good as another."""
    whole = array.view(f"i{array.itemsize}").copy()
    whole[np.isnan(array)] = 0
    return whole


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("B", "T", "F", "U"), [(1, 1, 3, 5), (3, 2, 9, 40), (1, 9, 17, 70), (9, 2, 0, 33)]
)
def test_no_state_is_a_state_of_zeros(B, T, F, U, dtype, reset_after):
    """Also where the sign of a zero shows, or a weight is no number."""
    rng = np.random.default_rng(0)
    linear = {"activation": "linear", "recurrent_activation": "linear"}
    config = GRUConfig(
        U, dtype=dtype, reset_after=reset_after, return_sequences=True, **linear
    )
    W, R = (rng.standard_normal((n, 3 * U)).astype(dtype) for n in (F, U))
    W[:, ::2] = 0
    R[:, : 2 * U + U // 2] = -np.abs(R[:, : 2 * U + U // 2])
    R[0, -1] = np.inf
    R[U // 2, -2] = np.nan
    bias = np.full((2, 3 * U) if reset_after else (3 * U,), -0.0, dtype)
    weights = Weights(W, R, bias, reset_after)
    x = -np.abs(rng.standard_normal((B, T, F)).astype(dtype))
    found = gru(config, weights, x)
    expected = gru(config, weights, x, initial_state=np.zeros((B, U), dtype))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(bits(one), bits(other))


# One step in one part of rows and in several, whole vectors of units and not; more.
@pytest.mark.parametrize(
    ("B", "T", "F", "U"),
    [
        (1, 1, 3, 64), (9, 1, 3, 64), (40, 1, 0, 128), (90, 1, 9, 16), (90, 1, 3, 21),
        (0, 1, 2, 3), (3, 0, 2, 16), (1, 2, 3, 5), (40, 2, 17, 40),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "linear", "recurrent_activation": "linear"},
        {"dtype": "float64"},
        {"reset_after": False},
        {"activation": "softmax"},
        {"recurrent_dropout": 0.5},
    ],
    ids=repr,
)
@pytest.mark.parametrize("finite", [True, False])
def test_training_without_a_state_starts_from_zeros(B, T, F, U, options, finite):
    config = GRUConfig(U, return_sequences=True, **options)
    dtype = config.dtype
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    W, R, bias = normal(F, 3 * U), normal(U, 3 * U), np.full((2, 3 * U), -0.0, dtype)
    W[:, 2 * U :: 2] = 0
    R[:, : 2 * U + U // 2] = -np.abs(R[:, : 2 * U + U // 2])
    x, d = -np.abs(normal(B, T, F)), normal(B, T, U)
    if not finite:
        R[U // 2, -2], d[:, :, -1] = np.nan, np.inf
    if not config.reset_after:
        bias = bias[0]
    drop = normal(3, B, U) if config.recurrent_dropout > 0 else None
    results = []
    for h0 in (None, np.zeros((B, U), dtype)):
        weights = Weights(W, R, bias, config.reset_after)
        outputs, pullback = gru_vjp(config, weights, x, h0, recurrent_dropout=drop)
        gradients = pullback(None, d, None)
        assert (gradients.initial_state is None) == (h0 is None)
        results.append([*outputs, gradients.inputs, *gradients[2:]])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(bits(one), bits(other))


# Large enough for several threads, and for more blocks and parts of rows than threads.
LARGE = [
    Problem(B, T, F, U, variant, family, masked, seed=0)
    for B, T, F, U in [(33, 5, 17, 70), (300, 4, 8, 33), (2, 100, 4, 40)]
    for variant in VARIANTS
    for family in ("auto", False)
    for masked in (False, True)
]


def everything(problem):
    inference = gru(problem.config, problem.weights, problem.x)
    return [*inference, *problem.forward(), *problem.gradients()]


@pytest.fixture
def threads():
    """Give set_num_threads, undone after the test."""
    before = get_num_threads()
    yield set_num_threads
    set_num_threads(before)


@pytest.mark.parametrize("problem", LARGE, ids=repr)
def test_threads_of_our_own(problem, threads):
    """More than this machine has cores, too."""
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(everything(problem))
    for other in results[1:]:
        same(other, results[0])


@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
def test_threads_and_activations_of_whole_rows(B, variant, masked, threads):
    """As many units as threads cannot share evenly, and more threads than panels."""
    for names in (("softmax", "sigmoid"), ("tanh", "softmax"), ("softmax", "softmax")):
        problem = Problem(B, 20, 3, 110, variant, "auto", masked, seed=0)
        problem.config = problem.config_of(
            activation=names[0], recurrent_activation=names[1]
        )
        results = []
        for count in (1, 2, 3, 16):
            threads(count)
            results.append(everything(problem))
        for other in results[1:]:
            same(other, results[0])


@pytest.mark.parametrize(("B", "T", "U"), [(40, 3, 32), (70, 1, 32), (20, 2, 256)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_part_of_the_rows_may_be_packed_or_not(B, T, U, variant, monkeypatch):
    """And gradients of large weights start a cache line."""
    problem = Problem(B, T, 3, U, variant, "auto", False, seed=0)
    results = []
    for wide in (1, 10**9):
        monkeypatch.setattr(weight_gradients, "_WIDE_BYTES", wide)
        results.append(problem.gradients())
    same(*results)
    kernels = [
        array for array in results[0] if array.nbytes >= 2**16 and len(array) != B
    ]
    assert all(array.ctypes.data % 64 == 0 for array in kernels)
    assert len(kernels) == (1 if U == 256 else 0)


@pytest.mark.parametrize("family", ["auto", False])
def test_threads_of_python(family):
    """Many callers at once, on the same weights, in large and in small calls."""
    problems = [problem for problem in LARGE if problem.family == family]
    problems += [Problem(2, 3, 4, 5, variant, family, True, 1) for variant in VARIANTS]
    expected = [everything(problem) for problem in problems]
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda _: list(map(everything, problems)), range(8)):
            for result, right in zip(results, expected, strict=True):
                same(result, right)


def features(*names):
    """Whether this is an x86-64 machine with these features."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return all(llvm.get_host_cpu_features().get(name) for name in names)


@pytest.mark.skipif(
    not features("avx2", "fma"), reason="needs x86-64 with AVX2, to go back to SSE"
)
def test_cpus():
    """Vectors of 16 bytes without fma, of 32 bytes, and this machine's."""
    program = Path(__file__).with_name("digest.py")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(program.parents[1]), *sys.path]),
    }
    # The features as well: Numba would add those of this machine to the named CPU's.
    targets = [
        {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
        {},
    ]
    running = [
        subprocess.Popen(
            [sys.executable, program],
            env={**environment, **target},
            stdout=subprocess.PIPE,
            text=True,
        )
        for target in targets
    ]
    printed = [process.communicate()[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert [lines[0] for lines in printed[:2]] == ["16", "32"]
    assert len({digest for _, digest in printed}) == 1


@pytest.mark.parametrize(
    ("triple", "cpu", "registers"),
    [
        ("x86_64-unknown-linux-gnu", "skylake-avx512", (64, 32)),
        ("x86_64-unknown-linux-gnu", "haswell", (32, 16)),
        ("x86_64-unknown-linux-gnu", "nehalem", (16, 16)),
        ("x86_64-pc-windows-msvc", "skylake-avx512", (64, 32)),
        ("aarch64-unknown-linux-gnu", "generic", (16, 32)),
        ("arm64-apple-darwin", "apple-m1", (16, 32)),
    ],
)
def test_vector_registers(triple, cpu, registers):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this llvmlite cannot compile for {triple}")
    machine = target.create_target_machine(cpu=cpu, features="")
    assert registers_of(machine) == registers

"""Kernels for CUDA in the disk cache: found again, and nothing else in their place."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

pytest.importorskip("numba_cuda", reason="kernels are written with numba-cuda")
pytest.importorskip("nvidia.cu13", reason="compiling takes NVVM and nvJitLink")

from numba import types

from numbagru import _jit, _jit_cuda, activations
from numbagru._jit_cuda import identity_of, kernel_for
from numbagru.kernels.cuda import (
    backward_grid,
    backward_rows,
    backward_tiles,
    elementwise,
    forward_grid,
    forward_rows,
    forward_tiles,
    launch,
    limits,
    products,
    weight_gradients,
)
from pretended import device

CAPABILITY, TOOLKIT = (9, 0), (13, 0)
F4, F8 = types.float32, types.float64


def scalars(name):
    return launch.scalars(activations.get(name))


TANH, SIGMOID, RELU = map(scalars, ("tanh", "sigmoid", "relu"))


def collect():
    """Give a small kernel, its arguments and its threads."""
    w = weight_gradients
    return w.make_collect(F4), w.collect_signature(F4), w.COLUMNS


def kept(kernel=collect, capability=CAPABILITY, toolkit=TOOLKIT):
    with device(capability):
        return kernel_for(*kernel(), capability, toolkit)


def code(kernel, capability=CAPABILITY):
    return kernel._codelibrary.get_cubin(cc=capability).code


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Give a function that lists the files of an empty cache."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    # Numba reads all of its variables again when one has changed.
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return lambda: {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}


def compile_nothing(*arguments):
    raise AssertionError("compiled again")


def test_a_kernel_is_loaded_as_it_was_compiled(cache, monkeypatch):
    first, before = kept(), cache()
    assert {path.suffix for path in before} == {".nbi", ".nbc"}
    monkeypatch.setattr(_jit_cuda, "compiled", compile_nothing)
    again = kept()
    assert again is not first
    assert code(again) == code(first)
    assert again.entry_name == first.entry_name
    assert again.cooperative == first.cooperative
    assert again.argument_types == first.argument_types == collect()[1]
    assert cache() == before


def test_another_process_finds_it(cache, tmp_path):
    made = kept()
    before = cache()
    program = (
        "import test_cuda_kept as t; from numbagru import _jit_cuda;"
        "_jit_cuda.compiled = t.compile_nothing; print(hash(t.code(t.kept())))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert cache() == before
    check = [sys.executable, "-c", "import sys; print(hash(sys.stdin.buffer.read()))"]
    found = subprocess.run(
        check, input=code(made), env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True, check=True,
    )  # fmt: skip
    assert found.stdout.decode() == run.stdout


def test_a_cooperative_kernel_stays_one(cache):
    split = limits.split(32, 109, 2, limits.Chip(132, 228 * 1024, 227 * 1024), 1)
    kernel = forward_grid.make(F4, 109, split, TANH, SIGMOID, *(True, False) * 2)
    given = kernel, forward_grid.signature(F4), forward_grid.THREADS
    first, again = kept(lambda: given), kept(lambda: given)
    assert first is not again
    assert again.cooperative
    assert code(first) == code(again)


@pytest.mark.parametrize(
    "other",
    [
        {"capability": (8, 0)},
        {"toolkit": (12, 9)},
        {"kernel": lambda: (*collect()[:2], 64)},
        {"kernel": lambda: (collect()[0], weight_gradients.collect_signature(F8), 128)},
    ],
    ids=["capability", "toolkit", "threads", "signature"],
)
def test_what_differs_is_compiled(cache, other):
    kept()
    before = cache()
    kept(**other)
    assert before.items() < cache().items()
    assert len(cache()) == 2 * len(before)


def test_settings_of_numba_are_heeded(cache, monkeypatch):
    kept()
    monkeypatch.setenv("NUMBA_CUDA_DEBUGINFO", "1")
    kept()
    assert len(cache()) == 4


def test_kernels_of_other_sources_are_not_even_opened(cache, monkeypatch):
    kept()
    for path in cache():
        path.write_bytes(b"a pickle of classes that are gone")
    before = cache()
    monkeypatch.setattr(_jit, "source_stamp", lambda: "of later sources")
    kept()
    assert before.items() < cache().items()


def test_a_file_that_was_cut_off_is_replaced(cache, monkeypatch):
    kept()
    for path in cache():
        path.write_bytes(path.read_bytes()[:50])
    expected = code(kept())
    monkeypatch.setattr(_jit_cuda, "compiled", compile_nothing)
    assert code(kept()) == expected


def test_functions_of_the_user_are_not_kept(cache):
    user = launch.scalars(activations.Activation(lambda x: x / (1 + abs(x))))
    kernel = forward_rows.make(F4, 5, 1, user, SIGMOID, True, False, False, True)
    given = kernel, forward_rows.signature(F4), forward_rows.threads_of(5)
    with pytest.raises(_jit_cuda.Foreign):
        identity_of(kernel)
    kept(lambda: given)
    assert not cache()


def variants(real):
    """Make kernels that differ in one thing each."""
    flags = [[i == j for j in range(4)] for i in range(5)]
    chip = limits.Chip(132, 228 * 1024, 227 * 1024)
    splits = [limits.split(real.bitwidth, 200, B, chip, 3) for B in (1, 64)]
    for keeps in flags:
        yield forward_rows.make(real, 33, 2, TANH, SIGMOID, *keeps)
        yield forward_grid.make(real, 200, splits[0], TANH, SIGMOID, *keeps)
    for three in (*flags[:3], flags[4]):
        yield backward_rows.make(real, 33, 2, TANH, SIGMOID, *three[:3])
        yield backward_grid.make(real, 200, splits[0], TANH, SIGMOID, *three[:3])
        yield forward_tiles.make(real, TANH, SIGMOID, *three[:3])
        yield backward_tiles.make(real, TANH, SIGMOID, *three[:3])
    yield forward_grid.make(real, 200, splits[1], TANH, SIGMOID, *flags[0])
    yield forward_rows.make(real, 34, 2, TANH, SIGMOID, *flags[0])
    yield forward_rows.make(real, 33, 1, TANH, SIGMOID, *flags[0])
    yield forward_rows.make(real, 33, 2, RELU, SIGMOID, *flags[0])
    yield forward_rows.make(real, 33, 2, TANH, TANH, *flags[0])
    for per_gate in (False, True):
        yield products.make_project(real, per_gate, "dtype")
        yield products.make_input_gradient(real, per_gate, True, "dtype")
        yield weight_gradients.make_gradient(
            real, per_gate, True, False, False, "dtype"
        )
    if real == F4:
        yield products.make_project(real, True, "tf32")
    for op in flags[:4]:
        yield elementwise.make_combine(real, *op[:3])


@pytest.mark.parametrize("real", [F4, F8], ids=str)
def test_every_kernel_has_an_identity_of_its_own(real):
    identities = [identity_of(kernel) for kernel in variants(real)]
    assert len({*identities}) == len(identities) >= 40
    assert not any(" at 0x" in identity for identity in identities)

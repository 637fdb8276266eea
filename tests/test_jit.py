"""Compiling once, keeping it on disk, and never using what is out of date."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import njit, types
from numba.core import caching

from numbagru import _jit
from numbagru._jit import Kernel, source_stamp

PACKAGE = Path(_jit.__file__).parent


@njit
def twice(x):
    return x + x


def fill(x):
    for i in range(x.size):
        x[i] = i


def apply(act, x):
    for i in range(x.size):
        x[i] = act(x[i])


def kernel():
    """Make a small kernel that nobody has compiled yet."""
    return Kernel(fill, lambda real: (types.Array(real, 1, "C"),))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Give a function that tells the files of an empty cache from one another."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def files():
        return {
            path: path.stat().st_mtime_ns
            for path in tmp_path.rglob("*")
            if path.is_file()
        }

    return files


def run(entry, dtype="float32"):
    x = np.zeros(4, dtype)
    entry(x)
    np.testing.assert_array_equal(x, np.arange(4))


def test_second_process_loads_what_the_first_compiled(cache):
    run(kernel().entry(types.float32))
    before = cache()
    assert {path.suffix for path in before} == {".nbi", ".nbc"}
    run(kernel().entry(types.float32))
    assert cache() == before


def test_each_version_has_files_of_its_own(cache):
    """Processes that compile at the same time would overwrite a common list."""
    run(kernel().entry(types.float32))
    before = cache()
    run(kernel().entry(types.float64), "float64")
    after = cache()
    assert len(after) == 2 * len(before) == 4
    assert before.items() <= after.items()


def test_cache_of_other_sources_is_not_even_opened(cache, monkeypatch):
    run(kernel().entry(types.float32))
    for path in cache():
        path.write_bytes(b"a pickle of classes that are gone")
    before = cache()
    monkeypatch.setattr(_jit, "source_stamp", lambda: "of later sources")
    run(kernel().entry(types.float32))
    after = cache()
    assert before.items() < after.items()
    run(kernel().entry(types.float32))
    assert cache() == after


def test_users_functions_are_not_put_on_disk(cache):
    def signature(real, act):
        return act, types.Array(real, 1, "C")

    entry = Kernel(apply, signature).entry(types.float32, numba.typeof(twice))
    x = np.ones(3, np.float32)
    entry(twice, x)
    np.testing.assert_array_equal(x, [2, 2, 2])
    assert not cache()


def test_works_where_nothing_can_be_written(cache, monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    run(kernel().entry(types.float32))
    assert not cache()


def test_entries_are_kept():
    shared = kernel()
    entry = shared.entry(types.float32)
    assert shared.entry(types.float32) is entry
    assert shared.entry(types.float64) is not entry


def test_threads_compile_once(cache):
    shared = kernel()
    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda _: shared.entry(types.float32), range(8)))
    assert all(entry is entries[0] for entry in entries)
    run(entries[0])


@pytest.fixture
def copied(tmp_path):
    """Copy the package's sources."""
    target = tmp_path / "copy" / "numbagru"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def append(source):
    source.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: append(root / "gates.py"),
        lambda root: append(root / "kernels" / "simd.py"),
        lambda root: (root / "kernels" / "another.py").touch(),
        lambda root: (root / "gates.py").rename(root / "ports.py"),
        lambda root: (root / "dispatch.py").unlink(),
    ],
)
def test_stamp_changes_with_every_source(copied, monkeypatch, change):
    monkeypatch.setattr(_jit, "__file__", str(copied / "_jit.py"))
    stamp = source_stamp.__wrapped__
    assert stamp() == source_stamp()
    (copied / "notes.txt").touch()
    assert stamp() == source_stamp()
    change(copied)
    assert stamp() != source_stamp()


PACK = """
import numpy as np
from numba import types
from numbagru.kernels import panels
W, R, bias = (np.ones(shape, "float32") for shape in [(1, 3), (1, 3), (4, 1)])
assert panels.pack(types.float32, W, R, bias).weights.sum() == 6
"""


def test_an_edit_anywhere_compiles_anew(copied, cache):
    """In processes, as users have them; gates.py is not where the kernel stands."""

    def process():
        subprocess.run(
            [sys.executable, "-c", PACK],
            cwd=copied.parent,
            env={**os.environ, "NUMBA_CACHE_DIR": numba.config.CACHE_DIR},
            check=True,
        )
        return {path: when for path, when in cache().items() if path.suffix == ".nbc"}

    first = process()
    assert len(first) == 1
    assert process() == first
    append(copied / "gates.py")
    assert first.items() < process().items()

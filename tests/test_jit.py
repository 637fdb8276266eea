"""Compiling once, keeping it on disk, and never using what is out of date."""

import gc
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
from numbagru._jit import Kernel, sources, stamp_of

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
        # Not Python's own compiled code beside a copy of the sources, which a second
        # process once wrote anew.
        return {
            path: path.stat().st_mtime_ns
            for path in tmp_path.rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc")
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


@pytest.fixture
def once():
    """Let every test have its warning."""
    _jit._warn_once.cache_clear()
    yield
    _jit._warn_once.cache_clear()


@pytest.fixture
def blocked(tmp_path):
    """Give a folder that nobody can make, not even root: a file stands in its way."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "folder"


def test_works_where_nothing_can_be_written(cache, monkeypatch, once):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with pytest.warns(RuntimeWarning, match="No folder.*Set NUMBA_CACHE_DIR to"):
        run(kernel().entry(types.float32))
    run(kernel().entry(types.float64), "float64")  # it is said once
    assert not cache()


def test_a_cache_folder_that_cannot_be_written_is_named(blocked, monkeypatch, once):
    other = blocked.parents[1] / "other"

    class Elsewhere(caching.InTreeCacheLocator):
        def get_cache_path(self):
            return str(other)

    locators = [caching.UserProvidedCacheLocator, Elsewhere]
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", locators)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(blocked))
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR cannot be writ") as caught:
        run(kernel().entry(types.float32))
    message = str(caught[0].message)
    assert f"kept in {other}" in message
    assert f"NUMBA_CACHE_DIR={str(blocked)!r}" in message
    assert len([*other.iterdir()]) == 2
    run(kernel().entry(types.float64), "float64")  # it is said once


def test_nowhere_and_a_bad_folder_are_one_message(blocked, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(blocked))
    message = _jit.cache_problem(None)
    assert message.startswith("No folder")
    assert f"NUMBA_CACHE_DIR={str(blocked)!r}" in message
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert "Received" not in _jit.cache_problem(None)
    assert _jit.cache_problem(blocked) is None


def test_a_full_disk_stops_nobody(cache, monkeypatch, once):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    with pytest.warns(RuntimeWarning, match="No space left.*set NUMBA_CACHE_DIR"):
        run(kernel().entry(types.float32))
    assert not cache()


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:40], lambda b: b"?"])
def test_a_damaged_file_is_replaced(cache, suffix, damage):
    run(kernel().entry(types.float32))
    for path in cache():
        if path.suffix == suffix:
            path.write_bytes(damage(path.read_bytes()))
    before = cache()
    run(kernel().entry(types.float32))
    repaired = cache()
    assert before != repaired
    run(kernel().entry(types.float32))
    assert cache() == repaired


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
def test_stamp_changes_with_every_source(copied, change):
    imported = sources(copied)
    before = stamp_of(copied, imported)
    (copied / "notes.txt").touch()
    assert stamp_of(copied, imported) == before
    change(copied)
    found = stamp_of(copied, sources(copied))
    assert found != before
    # Imported before the change, and asked for after it.
    assert stamp_of(copied, imported) not in (before, found)


def test_stamp_is_of_contents(copied, tmp_path):
    again = tmp_path / "elsewhere"
    shutil.copytree(copied, again)
    os.utime(again / "gates.py", (1, 1))
    assert stamp_of(again, sources(again)) == stamp_of(copied, sources(copied))


@pytest.mark.parametrize("frozen", [False, True])
def test_compiling_leaves_collections_as_they_were(frozen):
    def nothing(array):
        pass

    kernel = Kernel(nothing, lambda real: (types.Array(real, 1, "C"),))
    if frozen:
        gc.freeze()
    try:
        kernel.entry(types.float32)
        assert (gc.get_freeze_count() > 0) == frozen
    finally:
        gc.unfreeze()


PACK = """
import sys
import numpy as np
from numbagru.kernels import panels
W, R, bias = (np.ones(shape, "float32") for shape in [(1, 3), (1, 3), 6])
packed = panels.pack(W, R, bias, backward=False, threads=1)
assert packed[-packed.ctypes.data % 64 // 4 :][:96].sum() == 6
print("numba.np.linalg" in sys.modules)
"""


def start(root, **environment):
    """Start a process that packs weights, with the package in `root`."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PACK],
        cwd=root,
        env={**os.environ, "NUMBA_CACHE_DIR": numba.config.CACHE_DIR, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Return whether a process has compiled."""
    out, _ = process.communicate()
    assert process.returncode == 0
    return out == "True\n"


def test_loading_needs_nothing_of_the_compiler(cache):
    """Numba would import all that it can compile, and SciPy: most of a first call."""
    assert finish(start(PACKAGE.parent))
    assert not finish(start(PACKAGE.parent))


def test_processes_that_start_at_once(cache):
    processes = [start(PACKAGE.parent) for _ in range(4)]
    compiled = [finish(process) for process in processes]
    assert any(compiled)
    assert sorted(path.suffix for path in cache()) == [".nbc", ".nbi"]
    assert not finish(start(PACKAGE.parent))


def test_a_read_only_install_keeps_kernels_in_the_folder_of_the_user(copied, tmp_path):
    shutil.rmtree(copied / "kernels" / "__pycache__", ignore_errors=True)
    (copied / "kernels" / "__pycache__").touch()  # stops root, too
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for compiles in (True, False):
        process = start(copied.parent, NUMBA_CACHE_DIR="", **home)
        assert finish(process) == compiles
    found = [path for path in tmp_path.rglob("*.nbc") if copied not in path.parents]
    assert len(found) == 1


def test_sources_are_stamped_when_they_are_imported(copied, cache):
    """What is compiled after an upgrade is the code of before, and kept as such."""
    upgrade = f"open({str(copied / 'gates.py')!r}, 'a').write('\\n')"
    code = f"import numbagru; {upgrade}{PACK}"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "NUMBA_CACHE_DIR": numba.config.CACHE_DIR}
    subprocess.run(command, cwd=copied.parent, env=environment, check=True)
    before = cache()
    assert finish(start(copied.parent))
    assert before.items() < cache().items()


def test_an_edit_anywhere_compiles_anew(copied, cache):
    """In processes, as users have them; gates.py is not where the kernel stands."""

    def process():
        finish(start(copied.parent))
        return {path: when for path, when in cache().items() if path.suffix == ".nbc"}

    first = process()
    assert len(first) == 1
    assert process() == first
    append(copied / "gates.py")
    assert first.items() < process().items()


DIGEST = """
import hashlib, sys
import numpy as np
import numbagru as ng

def digest(reset_after):
    layer = ng.GRU(20, reset_after=reset_after, return_sequences=True)
    rng = np.random.default_rng(0)
    layer.build((5, 7, 3))
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    x = rng.normal(size=(5, 7, 3))
    mask = rng.random((5, 7)) < 0.6
    y, pullback = layer.vjp(x, mask=mask)
    grads = pullback(y)
    parts = [layer(x), y, grads.inputs, *grads.weights]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

print(*[digest(after == "after") for after in sys.argv[1:]])
"""


def test_variants_from_different_processes_stay_apart(tmp_path):
    """Compiled in processes that number functions alike, then loaded into one.

    The third process needs both from the cache, the other two alone.
    """

    def run(*variants):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST, *variants],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    expected = [*run("after"), *run("before")]
    assert run("after", "before") == expected
    assert run("before", "after")[::-1] == expected

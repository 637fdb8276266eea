"""Every compile option of the package, with its reason."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys

from numbagru._linked import BodyCompiler, LinkedCompiler

# error_model="numpy": 1/0 is inf as in NumPy, and no division carries a branch that
# would keep the loop around it from being vectorised.
# No fastmath anywhere: sums keep the order they are written in (kernels/__init__.py).
OPTIONS = {"error_model": "numpy", "fastmath": False, "boundscheck": False}

# What only other compiled code calls needs no entry from Python or C, and no machine
# code outside of its callers.
_INNER = {
    **OPTIONS,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": LinkedCompiler,
}

# A formula of scalars, inlined into the loops that call it.
scalar = njit(**_INNER)


def routine(function: Callable[..., Any], **options: Any) -> Any:
    """Make a loop over arrays, for other compiled code."""
    made = njit(**{**_INNER, **options})(function)
    template = made.get_call_template

    # An integer that is known would be a type of its own, and the loop compiled once
    # more: 7 of 91 functions of a first inference, and the products of a training.
    def of_plain_integers(args: Any, kws: Any) -> Any:
        args = tuple(map(_plain, args))
        return template(args, {name: _plain(kind) for name, kind in kws.items()})

    made.get_call_template = of_plain_integers
    return made


def _plain(kind: types.Type) -> types.Type:
    return types.unliteral(kind) if isinstance(kind, types.IntegerLiteral) else kind


def body(function: Callable[..., Any]) -> Any:
    """Make a routine that is the whole of one kernel."""
    return routine(function, pipeline_class=BodyCompiler)


# A part of one larger loop, merged by Numba: LLVM optimises the code of a routine
# again in every caller on the way out, so deep nests of large ones compile for long.
# Steps and the loops around them, as routines, ran 1.2 times as long for 32 units.
section = njit(**_INNER, inline="always")


def variant_routine(
    *variant: Any, make: Callable[..., Any] = routine
) -> Callable[[Callable[..., Any]], Any]:
    """Make a decorator like `routine`, or `make`, for a function inside of another.

    The variant, all that the function takes from around it, becomes part of its name.
    Numba numbers functions of one name in each process anew, and the dynamic linker
    takes one for the other when both come from the disk cache.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ += repr(variant)
        return make(function)

    return decorate


def sources(root: Path) -> list[tuple[str, int, int]]:
    """List the source files of a package with their times of change and sizes."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted({*folders} - {"__pycache__"})
        paths = (f"{folder}/{name}" for name in sorted(names) if name.endswith(".py"))
        files = ((path, os.stat(path)) for path in paths)
        found += [(path, at.st_mtime_ns, at.st_size) for path, at in files]
    return found


def stamp_of(root: Path, imported: list[tuple[str, int, int]]) -> str:
    """Hash the sources of a package as they were when `sources` listed them.

    Numba's own stamp covers the file of the outermost function only, so an edit of
    gates.py would leave stale kernels in the cache. Of files that are other ones by
    now, the contents are lost: their hash is one that nothing else has.
    """
    digest = hashlib.sha256()
    for path, _, _ in imported:
        with contextlib.suppress(FileNotFoundError):
            digest.update(Path(path).relative_to(root).as_posix().encode())
            digest.update(Path(path).read_bytes())
    if sources(root) != imported:
        digest = hashlib.sha256(repr(imported).encode())
    return digest.hexdigest()


_ROOT = Path(__file__).parent
_IMPORTED = sources(_ROOT)


@functools.cache
def source_stamp() -> str:
    """Hash the sources of this package, at the first call: it takes 5 ms."""
    return stamp_of(_ROOT, _IMPORTED)


class Kernel:
    """A function that is compiled once per key: float type, types of activations.

    Calls go to the compiled entry point and skip Numba's type dispatch (about 1 µs for
    fifteen arguments), so the caller must pass just the types of `signature`.

    Parameters
    ----------
    function
        The Python function.
    signature
        ``signature(*key)`` gives the tuple of argument types.
    """

    def __init__(
        self,
        function: Callable[..., None],
        signature: Callable[..., tuple[types.Type, ...]],
    ) -> None:
        self.name = function.__name__
        self._function = function
        self._signature = signature
        self._options = {**OPTIONS, "nogil": True}
        self._dispatchers: dict[Any, Any] = {}
        self._entries: dict[Any, Callable[..., None]] = {}
        # By the identity of types, whose own hashes are slow: with the keys, so that
        # no identity is used again.
        self._quick: dict[tuple[int, ...], tuple[Any, Callable[..., None]]] = {}

    def entry(self, *key: types.Type) -> Callable[..., None]:
        """Compile, or load from the disk cache, and return the machine code's entry."""
        found = self._quick.get(tuple(map(id, key)))
        if found is not None:
            return found[1]
        with global_compiler_lock:
            if key not in self._entries:
                self._entries[key] = self._compiled(key)
            self._quick[tuple(map(id, key))] = key, self._entries[key]
        return self._entries[key]

    def _compiled(self, key: Any) -> Callable[..., None]:
        arguments = self._signature(*key)
        dispatcher = self._dispatchers[key] = njit(**self._options)(self._function)
        # A user's function has no stable identity on disk (numba#6972): kernels that
        # contain one live as long as the process.
        lasts = not any(isinstance(t, types.Dispatcher) for t in arguments)
        if lasts and writable_folder(self._function) is not None:
            dispatcher._cache = _Cache(self._function, arguments)
        with _nothing_old_to_trace():
            dispatcher.compile(arguments)
        return dispatcher.overloads[arguments].entry_point


@contextlib.contextmanager
def _nothing_old_to_trace() -> Iterator[None]:
    """Keep what there is by now out of garbage collections.

    A compiler makes so many objects that Python traces all others, Numba's own half
    million, again and again: 8 % of the time of a first call.
    """
    if gc.get_freeze_count() > 0:  # the program's own choice
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def cache_folder(function: Callable[..., None]) -> Path | None:
    """Return where Numba keeps what it compiles of `function`, None for nowhere.

    It takes the first that can be written of NUMBA_CACHE_DIR, ``__pycache__`` beside
    the sources, and the user's cache folder.
    """
    try:
        return Path(FunctionCache(function).cache_path)
    except RuntimeError:
        return None


def cache_problem(folder: Path | None) -> str | None:
    """Say why a `cache_folder` is not the one that was asked for; None if it is."""
    wanted = config.CACHE_DIR
    if folder is None:
        given = f" Received: NUMBA_CACHE_DIR={wanted!r}" if wanted else ""
        return (
            "No folder for compiled kernels can be written: each process compiles them "
            f"anew. Set NUMBA_CACHE_DIR to a folder that can be written.{given}"
        )
    if wanted and not folder.is_relative_to(wanted):
        return (
            "NUMBA_CACHE_DIR cannot be written: compiled kernels are kept in "
            f"{folder}. Set it to a folder that can be written, or unset it. Received: "
            f"NUMBA_CACHE_DIR={wanted!r}"
        )
    return None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def kept(function: Callable[..., Any], version: Any, make: Callable[[], Any]) -> Any:
    """Load what `make` makes of a function from the disk cache, or make and keep it.

    Parameters
    ----------
    function
        Whose cache folder and name the file has.
    version
        All that the thing depends on beside the sources of this package: its ``repr``
        says it.
    """
    folder = writable_folder(function)
    if folder is None:
        return make()
    cache = FunctionCache(function)
    file, key = _file_of(cache, folder, version), repr(version)
    found = _loaded(file, lambda: file.load(key))
    if found is None:
        found = make()
        _saved(folder, lambda: file.save(key, found))
    return found


def writable_folder(function: Callable[..., Any]) -> Path | None:
    """Return a `cache_folder`, and warn if it is not the one that was asked for."""
    folder = cache_folder(function)
    problem = cache_problem(folder)
    if problem is not None:
        _warn_once(problem)
    return folder


def _file_of(cache: FunctionCache, folder: Any, version: Any) -> IndexDataCacheFile:
    """Name the file of one version.

    Its name has all that the code depends on. Numba's own file lists all versions of a
    function: processes that compile at the same time overwrite each other's lists and
    may find the wrong code, and the list of an older package is unpickled, which fails
    when a class in it has moved, before its stamp tells that it is old.
    """
    text = repr((source_stamp(), version)).encode()
    name = f"{cache._impl.filename_base}-{hashlib.sha256(text).hexdigest()[:16]}"
    return IndexDataCacheFile(str(folder), name, source_stamp())


def _loaded(file: IndexDataCacheFile, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, EOFError, pickle.UnpicklingError):
        # Another user's, or cut off when the machine went down: begin anew.
        with contextlib.suppress(OSError):
            file.flush()
        return None


def _saved(folder: Any, save: Callable[[], None]) -> None:
    """Keep something; go on without where it cannot be written."""
    try:
        save()
    except OSError as error:
        _warn_once(
            f"Compiled kernels cannot be kept in {folder}: {error.strerror}. Each "
            "process compiles them anew. Make room there, or set NUMBA_CACHE_DIR to "
            "another folder."
        )


class _Cache(FunctionCache):
    """Numba's function cache with one file per compiled version."""

    def __init__(self, function: Callable[..., None], arguments: Any) -> None:
        super().__init__(function)
        target = cpu_target.target_context.codegen().magic_tuple()
        self._cache_file = _file_of(self, self._cache_path, (arguments, target))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load the machine code without all that Numba needs to compile.

        Numba's own method first imports every function that it knows, and
        scipy.linalg with them: 0.3 s. Code that is compiled needs the symbols of the
        runtime alone.
        """
        rtsys.initialize(target_context)
        return _loaded(
            self._cache_file, lambda: self._load_overload(sig, target_context)
        )

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the machine code."""
        save = super().save_overload
        _saved(self.cache_path, lambda: save(sig, data))

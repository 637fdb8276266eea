"""Every compile option of the package, with its reason."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

# error_model="numpy": 1/0 is inf as in NumPy, and no division carries a branch that
# would keep the loop around it from being vectorised.
# No fastmath anywhere: sums keep the order they are written in (kernels/__init__.py).
OPTIONS = {"error_model": "numpy", "fastmath": False, "boundscheck": False}

# What only other compiled code calls needs no entry from Python or C; each would be
# compiled too.
_INNER = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# A formula of scalars, inlined into the loops that call it.
scalar = njit(**_INNER)

# A loop over arrays.
routine = njit(**_INNER)

# A part of one larger loop, merged by Numba: LLVM optimises the code of a routine
# again in every caller on the way out, so deep nests of large ones compile for long.
section = njit(**_INNER, inline="always")


@functools.cache
def source_stamp() -> str:
    """Hash of every source file of the package.

    Numba's own stamp covers the file of the outermost function only, so an edit of
    gates.py would leave stale kernels in the cache.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Kernel:
    """A function that is compiled once per float type and combination of activations.

    Calls go to the compiled entry point and skip Numba's type dispatch (about 1 µs for
    fifteen arguments), so the caller must pass just the types of `signature`.

    Parameters
    ----------
    function
        The Python function.
    signature
        ``signature(real, *activation_types)`` gives the tuple of argument types.
    parallel
        Compile ``prange`` for Numba's thread pool.
    """

    def __init__(
        self,
        function: Callable[..., None],
        signature: Callable[..., tuple[types.Type, ...]],
        parallel: bool = False,
    ) -> None:
        self.name = function.__name__
        self._function = function
        self._signature = signature
        self._options = {**OPTIONS, "nogil": True, "parallel": parallel}
        self._dispatchers: dict[Any, Any] = {}
        self._entries: dict[Any, Callable[..., None]] = {}

    def entry(
        self, real: types.Float, *activation_types: types.Type
    ) -> Callable[..., None]:
        """Compile, or load from the disk cache, and return the machine code's entry."""
        key = (real, *activation_types)
        entry = self._entries.get(key)
        if entry is not None:
            return entry
        with global_compiler_lock:
            if key not in self._entries:
                self._entries[key] = self._compiled(key)
        return self._entries[key]

    def _compiled(self, key: Any) -> Callable[..., None]:
        arguments = self._signature(*key)
        dispatcher = self._dispatchers[key] = njit(**self._options)(self._function)
        # A user's function has no stable identity on disk (numba#6972): kernels that
        # contain one live as long as the process.
        if not any(isinstance(t, types.Dispatcher) for t in arguments):
            # RuntimeError: nowhere to write (a read-only install without a home).
            with contextlib.suppress(RuntimeError):
                dispatcher._cache = _Cache(self._function, arguments)
        dispatcher.compile(arguments)
        return dispatcher.overloads[arguments].entry_point


class _Cache(FunctionCache):
    """Numba's function cache with one file per compiled version.

    The name has all that the code depends on. Numba's own file lists all versions of a
    function: processes that compile at the same time overwrite each other's lists and
    may find the wrong code, and the list of an older package is unpickled, which fails
    when a class in it has moved, before its stamp tells that it is old.
    """

    def __init__(self, function: Callable[..., None], arguments: Any) -> None:
        super().__init__(function)
        target = cpu_target.target_context.codegen().magic_tuple()
        version = repr((source_stamp(), arguments, target)).encode()
        name = f"{self._impl.filename_base}-{hashlib.sha256(version).hexdigest()[:16]}"
        self._cache_file = IndexDataCacheFile(self._cache_path, name, source_stamp())

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
from numba.core.caching import FunctionCache

# error_model="numpy": 1/0 is inf as in NumPy, and no division carries a branch that
# would keep the loop around it from being vectorised.
# No fastmath anywhere: sums keep the order they are written in (kernels/__init__.py).
OPTIONS = {"error_model": "numpy", "fastmath": False, "boundscheck": False}

# What only other compiled code calls needs no entry from Python or C: a third of the
# compile time.
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
        options = {**OPTIONS, "nogil": True, "parallel": parallel}
        self._signature = signature
        self._cached = njit(**options)(function)
        self._uncached = njit(**options)(function)
        self._cache_ready = False
        self._entries: dict[Any, Callable[..., None]] = {}

    def entry(
        self, real: types.Float, *activation_types: types.Type
    ) -> Callable[..., None]:
        """Compile, or load from the disk cache, and return the machine code's entry."""
        key = (real, *activation_types)
        entry = self._entries.get(key)
        if entry is None:
            arguments = self._signature(real, *activation_types)
            # A user's function has no stable identity on disk (numba#6972): kernels
            # that contain one live as long as the process.
            own = any(isinstance(t, types.Dispatcher) for t in activation_types)
            dispatcher = self._uncached if own else self._with_cache()
            dispatcher.compile(arguments)
            entry = dispatcher.overloads[arguments].entry_point
            self._entries[key] = entry
        return entry

    def _with_cache(self) -> Any:
        if not self._cache_ready:
            # RuntimeError: nowhere to write (a read-only install without a home).
            with contextlib.suppress(RuntimeError):
                self._cached._cache = _Cache(self._cached.py_func)
            self._cache_ready = True
        return self._cached


class _Cache(FunctionCache):
    """Numba's function cache with a stamp over the whole package."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self._cache_file._source_stamp = source_stamp()

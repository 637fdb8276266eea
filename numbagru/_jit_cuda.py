"""Every compile option for CUDA, and how the package's formulas get there.

Only this file and kernels/cuda/ptx.py know numba-cuda, which is in maintenance mode:
its successor has another interface for extensions.
"""

from __future__ import annotations

import builtins
import dis
import functools
import os
import types as python_types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import cuda, types
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic
from numba.cuda.dispatcher import _Kernel
from numba.cuda.extending import intrinsic

from numbagru._jit import kept

# The oldest device that the kernels are compiled for in the tests, and CUDA 13
# compiles for.
LEAST_CAPABILITY = 7, 5
# No fastmath: it flushes small numbers to zero and takes approximate functions. Not
# link-time optimised: the linker would contract products and sums after all.
_OPTIONS = {"fastmath": False, "lto": False}


class DeviceFunction:
    """A function that kernels call, compiled into each of them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function


def on_device(value: Any) -> Any:
    """Return what stands on the device for a thing that a function refers to.

    Formulas that were compiled for the CPU have a twin, all else stands for itself.
    """
    has_twin = isinstance(value, _Intrinsic | Dispatcher | DeviceFunction)
    return _twin(value) if has_twin else value


@functools.cache
def _twin(value: Any) -> Any:
    if isinstance(value, _Intrinsic):
        return intrinsic(value._defn)
    return cuda.jit(device=True, **_OPTIONS)(translated(value.py_func, on_device))


def translated(
    function: Callable[..., Any], twin: Callable[[Any], Any]
) -> Callable[..., Any]:
    """Copy a Python function with the twins of all that it refers to."""
    code = function.__code__
    names = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname == "LOAD_GLOBAL"
    }
    around = {
        name: twin(function.__globals__[name])
        for name in names & function.__globals__.keys()
    }
    cells = tuple(
        python_types.CellType(twin(cell.cell_contents))
        for cell in function.__closure__ or ()
    )
    return python_types.FunctionType(
        code,
        {"__builtins__": builtins, "__name__": function.__module__, **around},
        function.__name__,
        function.__defaults__,
        cells,
    )


def compiled(
    function: Callable[..., None], arguments: Sequence[Any], threads: int
) -> _Kernel:
    """Compile a kernel for blocks of at most so many threads, on the current device.

    Products and sums are not contracted to fused multiply-adds, which NVVM does unless
    it is told not to: https://github.com/NVIDIA/numba-cuda/issues/118.
    """
    kernel = _Kernel(
        translated(function, on_device),
        tuple(arguments),
        launch_bounds=(threads, 1),
        **_OPTIONS,
    )
    library = kernel._codelibrary
    library._nvvm_options["fma"] = False
    library._ptx_cache.clear()
    return kernel


def kernel_for(
    function: Callable[..., None],
    arguments: Sequence[Any],
    threads: int,
    capability: tuple[int, int],
    toolkit: Any,
) -> _Kernel:
    """Load a kernel from the disk cache, or make it as `compiled` and keep it there.

    Compiling takes 0.1 to 1.5 s for each of the six kernels of a layer in training, 5 s
    in all, and loading 1 ms (Zen 4, without a device). A kernel with a function of the
    user's in it, which has no stable identity, is not kept.

    Parameters
    ----------
    function, arguments, threads
        As of `compiled`.
    capability
        Of the current device.
    toolkit
        Version of what compiles.
    """

    def make() -> _Kernel:
        kernel = compiled(function, arguments, threads)
        kernel._codelibrary.get_cubin(cc=capability)
        return kernel

    try:
        identity = identity_of(function)
    except Foreign:
        return compiled(function, arguments, threads)
    import numba_cuda  # which not all have who import this

    machine = (*capability,), toolkit, numba_cuda.__version__, _settings()
    version = identity, arguments, threads, machine
    return kept(function, version, make)


def _settings() -> list[tuple[str, str]]:
    """List what numba-cuda has been told by the environment."""
    return sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_CU"))


# What ``repr`` tells all about.
_PLAIN = bool, int, float, str, np.generic, types.Type


class Foreign(Exception):
    """Something that a kernel depends on and the package's sources do not tell."""


def identity_of(value: Any) -> str:
    """Write down what a kernel was made with: the same in all processes.

    For functions their place in the sources and, as functions inside of others are made
    with different values, what they hold of those.
    """
    value = getattr(value, "_defn", getattr(value, "py_func", value))  # of Numba's
    if isinstance(value, python_types.FunctionType):
        if value.__module__.partition(".")[0] != __name__.partition(".")[0]:
            raise Foreign
        line = value.__code__.co_firstlineno
        held = tuple(cell.cell_contents for cell in value.__closure__ or ())
        held += value.__defaults__ or ()
        place = f"{value.__module__}:{line}.{value.__qualname__}"
        return f"{place}({', '.join(map(identity_of, held))})"
    if isinstance(value, tuple):
        return f"{type(value).__name__}({', '.join(map(identity_of, value))})"
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    raise Foreign(value)

"""What this machine offers: versions, CPU, threads, GPU and the kernel cache."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numba
import numpy as np
from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target

import numbagru
from numbagru.kernels import plain_cpu, simd

# Of the many features that compilers know, those that decide how fast kernels are.
_FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512vl", "neon", "sve")


def describe() -> dict[str, str]:
    """Return a name and a line of text for each part."""
    _, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    vector_bytes, registers = simd.vector_registers()
    known = [name for name in _FEATURES if f"+{name}" in features.split(",")]
    versions = (
        f"numbagru {numbagru.__version__}, numba {numba.__version__}, "
        f"numpy {np.__version__}, Python {platform.python_version()}"
    )
    return {
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "CPU": f"{cpu} ({', '.join(known) or 'no vector extensions'})",
        "vectors": f"{registers} registers of {8 * vector_bytes} bits: "
        f"{vector_bytes // 4} float32 or {vector_bytes // 8} float64",
        "threads": f"{numba.get_num_threads()} of {os.cpu_count()} CPUs "
        f"(NUMBA_NUM_THREADS), threading layer {_threading_layer()}",
        "GPU": _gpu(),
        "kernel cache": str(cache_folder() or "none: no folder can be written"),
    }


def cache_folder() -> Path | None:
    """Return where compiled kernels are kept, None if nowhere can be written."""
    try:
        return Path(FunctionCache(plain_cpu.plain_forward).cache_path)
    except RuntimeError:
        return None


def _threading_layer() -> str:
    # Numba names the layer once its threads run; a kernel of ours would compile first.
    from numba.np.ufunc import parallel

    try:
        parallel._launch_threads()
        return parallel.threading_layer()
    except ValueError as error:
        return f"none ({error})"


def _gpu() -> str:
    try:
        from numba import cuda

        if not cuda.is_available():
            return "none visible to Numba"
        return cuda.get_current_device().name.decode()
    # A broken driver or toolkit shows itself in many ways, none of them our business.
    except Exception as error:
        return f"none usable ({type(error).__name__}: {error})"

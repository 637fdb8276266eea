"""What this machine offers: versions, CPU, threads, GPU and the kernel cache."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numba
import numpy as np
from numba.core.registry import cpu_target

import numbagru
from numbagru import _jit
from numbagru.kernels import plain_forward, vector_ir
from numbagru.kernels.threads import get_num_threads

# Of the many features that compilers know, those that decide how fast kernels are.
_FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512vl", "neon", "sve")


def describe() -> dict[str, str]:
    """Return a name and a line of text for each part."""
    _, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    vector_bytes, registers = vector_ir.vector_registers()
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
        "threads": f"{get_num_threads()} of {os.cpu_count()} CPUs "
        "(NUMBA_NUM_THREADS, numbagru.set_num_threads)",
        "GPU": _gpu(),
        "kernel cache": cache_problem() or str(cache_folder()),
    }


def cache_folder() -> Path | None:
    """Return where compiled kernels are kept, None if nowhere can be written."""
    return _jit.cache_folder(plain_forward.plain_forward)


def cache_problem() -> str | None:
    """Say why kernels are not kept where they should be; None if they are."""
    return _jit.cache_problem(cache_folder())


def cached_files() -> dict[str, int]:
    """Return name and bytes of each file of compiled kernels, of any version."""
    folder = cache_folder()
    found = [] if folder is None else [*folder.glob("*.nb[ic]")]
    return {path.name: path.stat().st_size for path in found}


def _gpu() -> str:
    try:
        from numba import cuda

        if not cuda.is_available():
            return "none visible to Numba"
        return cuda.get_current_device().name.decode()
    # A broken driver or toolkit shows itself in many ways, none of them our business.
    except Exception as error:
        return f"none usable ({type(error).__name__}: {error})"

"""The CUDA driver as the package needs it, and clear words for what is missing.

Beside _jit_cuda.py and kernels/cuda/ptx.py the only file that knows numba-cuda.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

_OTHERWISE = "Or pass device='cpu'."
_SHARED_BYTES = 48 * 1024  # of a block that did not ask for more


@functools.cache
def driver() -> Driver:
    """Return the driver.

    Raises
    ------
    RuntimeError
        If a package, the driver or a device is missing or too old; says which.
    """
    try:
        importlib.import_module("numba_cuda")  # Numba alone has a module of that name
        from numba import cuda
    except ImportError as error:
        raise RuntimeError(
            "device='cuda' and arrays on a CUDA device need the package numba-cuda and "
            f"parts of NVIDIA's toolkit, which were not found: {error}. Install them "
            f"with `pip install numbagru[cuda]`. {_OTHERWISE}"
        ) from error
    if not cuda.is_available():
        reason = " ".join(str(cuda.cuda_error() or "no device.").split())
        raise RuntimeError(
            "device='cuda' needs an NVIDIA driver and a device, which were not found: "
            f"{reason} Install a driver, and see what `nvidia-smi` says. {_OTHERWISE}"
        )
    return Driver(cuda)


class Driver:
    """Memory, copies and launches on the devices of this machine."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._kernels: dict[Any, Any] = {}
        version = _toolkit()
        have = cuda.cudadrv.driver.get_version()
        if version is not None and have[0] < version[0]:
            raise RuntimeError(
                f"The NVIDIA driver knows CUDA {have[0]}.{have[1]}, the installed "
                f"parts of the toolkit are of CUDA {version[0]}.{version[1]}. Update "
                f"the driver, or `pip install numba-cuda[cu{have[0]}]`. {_OTHERWISE}"
            )

    def device_at(self, address: int) -> int:
        """Return the number of the device that an address belongs to."""
        from cuda.bindings import driver as bindings

        kind = bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(
            self._cuda.cudadrv.driver.driver.cuPointerGetAttribute(kind, address)
        )

    def current_device(self) -> int:
        """Return the number of the device that this thread works with."""
        return int(self._cuda.current_context().device.id)

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Work with a device."""
        with self._cuda.gpus[device]:
            yield

    def chip(self) -> tuple[int, int, int]:
        """Count the current device's multiprocessors; shared bytes of each, of a block.

        What `limits.Chip` has.
        """
        device = self._cuda.get_current_device()
        return (
            int(device.MULTIPROCESSOR_COUNT),
            int(device.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
            int(device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        )

    def memory(self, size: int) -> Any:
        """Allocate bytes: something with ``__cuda_array_interface__``.

        Raises
        ------
        MemoryError
            If the device has none left.
        """
        try:
            return self._cuda.device_array(size, np.uint8)
        except self._cuda.cudadrv.driver.CudaAPIError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            free, total = self._cuda.current_context().get_memory_info()
            raise MemoryError(
                f"The call needs {size:,} bytes more on the CUDA device, which has "
                f"{free:,} of {total:,} left. Take fewer rows or steps at once."
            ) from error

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Allocate an array of Numba's for the caller."""
        size = int(np.prod(shape)) * dtype.itemsize
        return self.memory(max(1, size))[:size].view(dtype).reshape(shape)

    def to_device(self, target: Any, source: np.ndarray, stream: int) -> None:
        """Copy bytes of the host to what `memory` returned."""
        size = source.nbytes  # what is lent may be larger
        target[:size].copy_to_device(
            source.reshape(-1).view(np.uint8), self._stream(stream)
        )
        if stream:  # the source may change or go after the call
            self._stream(stream).synchronize()

    def to_host(self, source: Any, stream: int) -> np.ndarray:
        """Copy an array of any library to the host, and wait for it."""
        array = self._cuda.as_cuda_array(source, sync=False)
        found = array.copy_to_host(stream=self._stream(stream))
        if stream:
            self._stream(stream).synchronize()
        return found

    def run(self, launches: Iterable[Any], stream: int) -> None:
        """Launch kernels one after the other; does not wait for them."""
        for launch in launches:
            arguments = [
                argument.ctypes.data if isinstance(argument, np.ndarray) else argument
                for argument in launch.arguments
            ]
            blocks = (*launch.blocks, 1, 1)[:3]
            kernel = self._compiled(launch)
            where = self._launch_stream(stream)
            threads = (launch.threads, 1, 1)
            kernel.launch(arguments, blocks, threads, where, launch.shared_bytes)

    def multiply(self, tasks: Iterable[Any], stream: int) -> None:
        """Let CuPy make products on the current device; does not wait for them."""
        cupy = _cupy()
        queue = cupy.cuda.ExternalStream(stream) if stream else cupy.cuda.Stream.null
        with cupy.cuda.Device(self.current_device()), queue:
            for task in tasks:
                arguments = [
                    _array_of(cupy, one) if isinstance(one, np.ndarray) else one
                    for one in task.arguments
                ]
                task.function(cupy, *arguments)

    def _compiled(self, launch: Any) -> Any:
        from numbagru._jit_cuda import LEAST_CAPABILITY, kernel_for

        capability = self._cuda.get_current_device().compute_capability
        if capability < launch.capability:
            least = ".".join(map(str, launch.capability))
            what, instead = "The kernels need", _OTHERWISE
            if capability >= LEAST_CAPABILITY:
                what = "precision='tf32' needs"
                instead = "Pass precision='dtype'."
            raise RuntimeError(
                f"{what} a CUDA device of compute capability {least} or newer; this "
                f"one has {capability[0]}.{capability[1]}. {instead}"
            )
        key = launch.kernel, launch.signature, launch.threads, capability
        if key not in self._kernels:
            what = launch.kernel, launch.signature, launch.threads
            kernel = _with_toolkit(lambda: kernel_for(*what, capability, _toolkit()))
            if launch.shared_bytes > _SHARED_BYTES:
                self._let_have(kernel, launch.shared_bytes)
            self._kernels[key] = kernel
        return self._kernels[key]

    def _let_have(self, kernel: Any, size: int) -> None:
        """Let blocks of a kernel have more shared memory than they may unasked."""
        from cuda.bindings import driver as bindings

        what = bindings.CUfunction_attribute
        what = what.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        found = kernel._codelibrary.get_cufunc()
        self._cuda.cudadrv.driver.driver.cuKernelSetAttribute(
            what, size, found.handle, found.device.id
        )

    def _stream(self, stream: int) -> Any:
        return self._cuda.external_stream(stream) if stream else 0

    def _launch_stream(self, stream: int) -> Any:
        return self._cuda.cudadrv.driver._to_core_stream(self._stream(stream))


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            "precision='free' multiplies with CuPy, which is installed but cannot be "
            f"imported: {error}. Install the one for the driver's version of CUDA "
            "(cupy-cuda12x, cupy-cuda13x), or pass precision='dtype'."
        ) from error


class _Interface:
    """Memory of the device that an array of NumPy's stands for."""

    def __init__(self, array: np.ndarray) -> None:
        self.owner = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": array.strides,
            "version": 3,
        }


def _array_of(cupy: Any, array: np.ndarray) -> Any:
    if array.size == 0:  # which has no memory on the device
        return cupy.empty(array.shape, array.dtype)
    return cupy.asarray(_Interface(array))


def _toolkit() -> tuple[int, int] | None:
    """Return the CUDA version of the installed compiler, None if it is not found."""
    try:
        from cuda.bindings import nvrtc

        error, *version = nvrtc.nvrtcVersion()
    except Exception:  # a package or a library of it is missing: compiling says so
        return None
    return None if int(error) else (int(version[0]), int(version[1]))


def _with_toolkit(compile_it: Callable[[], Any]) -> Any:
    """Compile, and say what to install where parts of the toolkit are missing."""
    try:
        return compile_it()
    except (ImportError, OSError) as error:  # how numba-cuda reports missing parts
        raise RuntimeError(
            "Compiling for CUDA needs the NVVM and nvJitLink libraries of NVIDIA's "
            f"toolkit: {error}. Install them with `pip install numbagru[cuda]`. "
            f"{_OTHERWISE}"
        ) from error

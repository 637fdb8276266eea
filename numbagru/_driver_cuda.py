"""The CUDA driver as the package needs it, and clear words for what is missing.

Beside _jit_cuda.py and kernels/cuda/ptx.py the only file that knows numba-cuda.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

_OTHERWISE = "Or pass device='cpu'."


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
        from cuda.bindings import driver as bindings

        self._cuda, self._bindings = cuda, bindings
        self._kernels: dict[Any, Any] = {}
        self._loaded: dict[Any, tuple[Any, bool]] = {}
        self._contexts: dict[int, int] = {}  # addresses, by device
        self._chips: dict[int, tuple[int, int, int]] = {}
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
        kind = self._bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(
            self._cuda.cudadrv.driver.driver.cuPointerGetAttribute(kind, address)
        )

    def current_device(self) -> int:
        """Return the number of the device that this thread works with."""
        return int(self._cuda.current_context().device.id)

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Work with a device."""
        # Entering takes 20 µs, looking whether somebody has done so 1.
        _, current = self._bindings.cuCtxGetCurrent()
        if device in self._contexts and int(current) == self._contexts[device]:
            yield
            return
        with self._cuda.gpus[device]:
            self._contexts[device] = int(self._bindings.cuCtxGetCurrent()[1])
            yield

    def chip(self, number: int) -> tuple[int, int, int]:
        """Count a device's multiprocessors; shared bytes of each, of a block.

        What `limits.Chip` has.
        """
        if number not in self._chips:
            device = self._cuda.gpus[number]
            self._chips[number] = (
                int(device.MULTIPROCESSOR_COUNT),
                int(device.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
                int(device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            )
        return self._chips[number]

    def memory(self, size: int) -> Any:
        """Allocate bytes: something with ``__cuda_array_interface__``.

        Raises
        ------
        MemoryError
            If the device has none left.
        """
        return self._allocated(size, np.uint8, 0)

    def _allocated(self, shape: Any, dtype: Any, stream: Any) -> Any:
        try:
            return self._cuda.device_array(shape, dtype, stream=stream)
        except self._cuda.cudadrv.driver.CudaAPIError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            size = np.prod(shape) * np.dtype(dtype).itemsize
            free, total = self._cuda.current_context().get_memory_info()
            raise MemoryError(
                f"The call needs {size:,} bytes more on the CUDA device, which has "
                f"{free:,} of {total:,} left. Take fewer rows or steps at once."
            ) from error

    def array(self, shape: tuple[int, ...], dtype: np.dtype, stream: int) -> Any:
        """Allocate an array of Numba's for the caller, who works on a stream."""
        if 0 in shape:
            return self.memory(1)[:0].view(dtype).reshape(shape)
        return self._allocated(shape, dtype, self._stream(stream))

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
        if isinstance(source, np.ndarray):
            source = _Interface(source)
        array = self._cuda.as_cuda_array(source, sync=False)
        found = array.copy_to_host(stream=self._stream(stream))
        if stream:
            self._stream(stream).synchronize()
        return found

    def run(self, launches: Iterable[Any], stream: int) -> None:
        """Launch kernels one after the other; does not wait for them."""
        device = self.current_device()
        for launch in launches:
            arguments = [
                argument.ctypes.data if isinstance(argument, np.ndarray) else argument
                for argument in launch.arguments
            ]
            values = np.array([int(a) % 2**64 for a in arguments], np.uint64)
            places = _places(values)
            ready = self._ready(launch, device)
            self._start(ready, launch, places.ctypes.data, stream)

    def carry_out(
        self, plan: Any, addresses: list[int], device: int, stream: int
    ) -> None:
        """Launch what is planned with arrays at addresses; does not wait for it."""
        prepared = plan.prepared.get(device)
        if prepared is None:
            ready = [self._ready(launch, device) for launch in plan.tasks]
            prepared = plan.prepared[device] = _Prepared(plan, ready)
        with prepared.lock:  # the driver copies arguments when it starts a kernel
            prepared.put(addresses)
            for ready, launch, place in prepared.launches:
                self._start(ready, launch, place, stream)

    def _start(
        self, ready: tuple[Any, bool], launch: Any, arguments: int, stream: int
    ) -> None:
        """Start a kernel; `arguments` is the address of the addresses of each."""
        handle, cooperative = ready
        start = self._bindings.cuLaunchKernel
        sizes = *(*launch.blocks, 1, 1)[:3], launch.threads, 1, 1, launch.shared_bytes
        if cooperative:
            start = self._bindings.cuLaunchCooperativeKernel
            (error,) = start(handle, *sizes, stream, arguments)
        else:
            (error,) = start(handle, *sizes, stream, arguments, 0)
        if error != self._bindings.CUresult.CUDA_SUCCESS:
            raise self._cuda.cudadrv.driver.CudaAPIError(
                error, f"Starting a kernel results in {error.name}"
            )

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
        what = launch.kernel, launch.signature, launch.threads
        key = what, capability
        if key not in self._kernels:
            self._kernels[key] = _with_toolkit(
                lambda: kernel_for(*what, capability, _toolkit())
            )
        return self._kernels[key]

    def _ready(self, launch: Any, device: int) -> tuple[Any, bool]:
        """Load a kernel on the current device: what `_start` takes.

        And whether all its blocks must be there at once.
        """
        key = *launch[:2], launch.threads, launch.shared_bytes, device
        if key not in self._loaded:
            kernel = self._compiled(launch)
            handle = int(kernel._codelibrary.get_cufunc().handle)
            if launch.shared_bytes > 0:
                self._let_have(handle, launch.shared_bytes, device)
            function = self._bindings.CUfunction(handle)
            self._loaded[key] = function, kernel.cooperative
        return self._loaded[key]

    def _let_have(self, handle: int, size: int, device: int) -> None:
        """Let blocks of a kernel have more shared memory than they may unasked."""
        what = self._bindings.CUfunction_attribute
        self._cuda.cudadrv.driver.driver.cuKernelSetAttribute(
            what.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            size,
            self._bindings.CUkernel(handle),
            device,
        )

    def _stream(self, stream: int) -> Any:
        return self._cuda.external_stream(stream) if stream else 0


class _Prepared:
    """What carries out a plan: kernels, and room for their arguments."""

    def __init__(self, plan: Any, ready: list[Any]) -> None:
        found = [plan.place(a) for launch in plan.tasks for a in launch.arguments]
        self._arrays = np.array([number for number, _ in found], np.intp)
        self._rest = np.array([rest % 2**64 for _, rest in found], np.uint64)
        self._values = np.zeros(len(found), np.uint64)
        self._places = _places(self._values)
        counts = [len(launch.arguments) for launch in plan.tasks]
        firsts = self._places.ctypes.data + 8 * (np.cumsum(counts) - counts)
        self.launches = list(zip(ready, plan.tasks, firsts.tolist(), strict=True))
        self.lock = threading.Lock()

    def put(self, addresses: list[int]) -> None:
        """Take the addresses of a call's arrays."""
        table = np.array([*addresses, 0], np.uint64)  # the last is number -1
        np.take(table, self._arrays, out=self._values, mode="wrap")
        self._values += self._rest


def _places(values: np.ndarray) -> np.ndarray:
    """Return the address of each of some numbers."""
    return values.ctypes.data + 8 * np.arange(len(values), dtype=np.uint64)


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

"""A driver for CUDA that emulates the device: memory of its own, kernels in gridemu."""

import contextlib

import numpy as np

from gridemu import Grid, as_pointer


class DeviceArray:
    """An array of the device, as a library that knows the interface has them."""

    def __init__(self, numbers):
        self.numbers = numbers

    @property
    def shape(self):
        """Sizes of the axes."""
        return self.numbers.shape

    @property
    def dtype(self):
        """Type of the numbers."""
        return self.numbers.dtype

    @property
    def size(self):
        """Count of the numbers."""
        return self.numbers.size

    def reshape(self, shape):
        """Give a view of another shape."""
        return DeviceArray(self.numbers.reshape(shape))

    @property
    def __cuda_array_interface__(self):
        """Shape, type and address."""
        numbers = self.numbers
        return {
            "shape": numbers.shape,
            "typestr": numbers.dtype.str,
            "data": (numbers.ctypes.data if numbers.size else 0, False),
            "strides": None if numbers.flags.c_contiguous else numbers.strides,
            "version": 3,
            "stream": None,
        }


class EmulatedDriver:
    """Does what `_driver_cuda.Driver` does, on two devices of three processors."""

    def __init__(self):
        self.allocations = []
        self.launched = []
        self.left = None  # bytes

    def put(self, array, device=0):
        """Copy an array to a device."""
        array = np.array(array, order="C")
        self.allocations.append((np.lib.array_utils.byte_bounds(array), device, array))
        return DeviceArray(array)

    def device_at(self, address):
        """Find the device of an address."""
        for (low, high), device, _ in self.allocations:
            if low <= address < high:
                return device
        raise AssertionError("not an address of the device")

    def current_device(self):
        """Return the first."""
        return 0

    @contextlib.contextmanager
    def on(self, device):
        """Work with a device."""
        yield

    def chip(self, number):
        """Count the multiprocessors; shared bytes of each, of a block."""
        return 3, 64 * 1024, 48 * 1024

    def memory(self, size):
        """Allocate bytes that are NaN."""
        if self.left is not None and size > self.left:
            raise MemoryError(f"The call needs {size:,} bytes more on the CUDA device")
        return self.put(np.full(size, 0xFF, np.uint8))  # NaN

    def array(self, shape, dtype, stream):
        """Allocate an array."""
        return DeviceArray(
            self.memory(int(np.prod(shape)) * dtype.itemsize)
            .numbers.view(dtype)
            .reshape(shape)
        )

    def to_device(self, target, source, stream):
        """Copy bytes to `memory`."""
        target.numbers[: source.nbytes] = source.reshape(-1).view(np.uint8)

    def to_host(self, source, stream):
        """Copy an array back."""
        return np.array(getattr(source, "numbers", source))

    def run(self, launches, stream):
        """Run kernels in the emulator, on memory of the device only."""
        for launch in launches:
            self._look_at(launch)
            grid = Grid(
                launch.blocks, launch.threads, len(self.launched), launch.shared_bytes
            )
            grid.run(launch.kernel, *map(as_pointer, launch.arguments))
            self.launched.append(launch.kernel)  # not what it was given

    def carry_out(self, plan, addresses, device, stream):
        """Run what is planned."""
        self.run(plan.bound(addresses), stream)

    def multiply(self, tasks, stream):
        """Let NumPy multiply in place of CuPy."""
        for task in tasks:
            self._look_at(task)
            task.function(np, *task.arguments)
            self.launched.append(task.function)

    def _look_at(self, task):
        for argument in task.arguments:
            if isinstance(argument, np.ndarray) and argument.size > 0:
                self.device_at(argument.ctypes.data)

"""The arrays of a call on a CUDA device, as operands.py has them for the host.

Kernels take addresses and sizes, so the rest of the package sees an array of NumPy
whose memory is the device's: its shape, strides and address may be used, its numbers
may not. Anything with ``__cuda_array_interface__`` comes in as such a view, on the
stream that its library works on, and results are of the same library.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from typing import Any

import numpy as np

from numbagru._driver_cuda import driver
from numbagru.kernels.cuda.launch import Products
from numbagru.kernels.cuda.limits import Chip
from numbagru.kernels.cuda.plans import Plan, check_sizes, seen
from numbagru.libraries_cuda import Host, kind_of
from numbagru.operands import HOST, Operands, on_device

# What is kept of work memory that no call uses.
_MOST_BYTES, _MOST_BLOCKS = 2**30, 32
_LEAST_ZEROS = 2**16  # bytes


def place_of(x: Any) -> Device:
    """Return where the sequences x are, or the current device for those on the host.

    Raises
    ------
    RuntimeError
        If a package, the driver or a device is missing.
    """
    found = driver()
    if not on_device(x):
        return Device(found, found.current_device(), Host())
    interface = x.__cuda_array_interface__
    address = interface["data"][0]
    number = found.device_at(address) if address else found.current_device()
    return Device(found, number, kind_of(x)(x))


class Device(Operands):
    """Arrays in the memory of one device, on the stream of the caller's library."""

    def __init__(self, found: Any, number: int, library: Any) -> None:
        self.number = number
        self._driver, self._library = found, library
        self._results: dict[int, Any] = {}
        self.records = False
        self.carried: Any = None  # the last plan and its arrays, if it records

    @property
    def key(self) -> tuple[Any, ...]:
        """What memory is kept apart by: driver, device and stream."""
        return self._driver, self.number, self._library.stream

    def array(self, value: Any, name: str, dtype: np.dtype) -> np.ndarray:
        """Take real numbers, which must have the layer's dtype if on the device."""
        if not on_device(value):
            return self.sent(HOST.array(value, name, dtype))
        array = self.view(value, name)
        if array.dtype != dtype:
            raise TypeError(
                f"`{name}` must have the layer's dtype, {dtype.name}: arrays on a "
                f"device are not converted. Received: dtype={array.dtype}. Convert it "
                f"first, or make the layer with dtype={array.dtype.name!r}."
            )
        return array

    def raw(self, value: Any, name: str) -> np.ndarray:
        """Take an array of booleans; on the host, of any numbers."""
        if on_device(value):
            array = self.view(value, name)
            if array.dtype.itemsize != 1:
                raise TypeError(
                    f"`{name}` must hold booleans: arrays on a device are not "
                    f"converted. Received: dtype={array.dtype}"
                )
            return array
        array = np.asarray(value)
        return self.sent(HOST.flags(array)) if array.dtype.kind in "fiub" else array

    def flags(self, array: np.ndarray) -> np.ndarray:
        """See the booleans as bytes."""
        return array.view(np.uint8)

    def contiguous(self, array: np.ndarray) -> np.ndarray:
        """Return the array, which came without gaps."""
        return array

    rows = contiguous

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Give a state of zeros, which nobody may write to: there is one for all."""
        from numbagru.kernels.cuda import elementwise

        key, size = self.key, math.prod(shape) * dtype.itemsize
        found = _zeros.get(key)
        if found is None or found.nbytes < size:
            found = self.work((max(size, _LEAST_ZEROS) // 4,), np.float32)
            self.run(elementwise.fill(found))
            if len(_zeros) >= _MOST_BLOCKS:
                _zeros.clear()
            _zeros[key] = found
        return seen(found, shape, dtype, found.ctypes.data)

    def gradients(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Make an array as `empty`."""
        return self.empty(shape, dtype)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Make an array that the caller gets, by the caller's library."""
        if self._library.__class__ is Host:  # who gets a copy
            return self.work(shape, dtype)
        result, address = self.made(shape, dtype)
        if 0 in shape:
            array = np.empty(shape, dtype)
        else:
            array = seen(result, shape, dtype, address)
        self._results[array.ctypes.data] = result
        return array

    def made(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[Any, int]:
        """Make an array of the caller's library; gives its address too."""
        with self._driver.on(self.number):
            result = self._library.empty(self._driver, shape, dtype)
        return result, result.__cuda_array_interface__["data"][0]

    def work(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Make an array that nobody else sees; its memory may be used again."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return np.empty(shape, dtype)
        loan = _Loan(self, self.key, size)
        return seen(loan, shape, dtype, loan.address)

    def scaled(self, x: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Multiply x, and leave it as it is."""
        product = self.work(x.shape, x.dtype)
        self._write("multiply", product, x, np.broadcast_to(factor, x.shape))
        return product

    def scale(self, x: np.ndarray, factor: np.ndarray) -> None:
        """Multiply x in place."""
        self._write("multiply", x, x, np.broadcast_to(factor, x.shape))

    def add(self, array: Any, term: np.ndarray) -> None:
        """Add an array of the host to one of the caller's."""
        view = self.view(array, "array")
        same = self.sent(np.broadcast_to(np.asarray(term, view.dtype), view.shape))
        self._write("add", *(a.reshape(1, 1, -1) for a in (view, view, same)))

    def combine(
        self, op: str, first: np.ndarray, second: np.ndarray | None = None
    ) -> Any:
        """Make one of `elementwise.OPS` of views of up to three axes."""
        result = self.empty(first.shape, first.dtype)
        self._write(op, result, first, first if second is None else second)
        return self.given(result)

    def concatenate(self, first: np.ndarray, second: np.ndarray) -> Any:
        """Put two views of up to three axes side by side, along the last one."""
        size = first.shape[-1]
        result = self.empty((*first.shape[:-1], size + second.shape[-1]), first.dtype)
        self._write("copy", result[..., :size], first, first)
        self._write("copy", result[..., size:], second, second)
        return self.given(result)

    def _write(
        self, op: str, target: np.ndarray, first: np.ndarray, second: np.ndarray
    ) -> None:
        from numbagru.kernels.cuda import elementwise

        # Never a reshape: NumPy could copy what it cannot read.
        axes = {1: (None, None), 2: (slice(None), None), 3: ()}[target.ndim]
        target, first, second = (a[axes] for a in (target, first, second))
        self.run(elementwise.combine(op, target, first, second))

    def given(self, array: np.ndarray) -> Any:
        """Return the caller's own array for one of `empty`, or a view of it."""
        if self._library.__class__ is Host:
            if array.size == 0:
                return array
            with self._driver.on(self.number):
                return self._driver.to_host(array, 0)
        result = self._results.pop(array.ctypes.data)
        same = tuple(result.shape) == array.shape
        return result if same else result.reshape(array.shape)

    def fetched(self, array: Any) -> np.ndarray:
        """Copy an array of the caller's to the host."""
        with self._driver.on(self.number):
            return self._driver.to_host(array, self._library.stream)

    def run(self, tasks: Any) -> None:
        """Carry out one after the other, without waiting for them."""
        tasks = list(tasks)
        for task in tasks:
            check_sizes(task)
        with self._driver.on(self.number):
            for kind, same in itertools.groupby(tasks, type):
                by = self._driver.multiply if kind is Products else self._driver.run
                by(same, self._library.stream)

    def carry_out(self, plan: Plan, arrays: list[np.ndarray]) -> None:
        """Do what a pass does to arrays, without waiting for it."""
        addresses = [array.ctypes.data if array.size else 0 for array in arrays]
        if self.records:
            self.carried = plan, arrays
        self.start(plan, addresses)

    def start(self, plan: Plan, addresses: list[int]) -> None:
        """Do it to arrays at addresses, which others keep alive."""
        key = self.key
        loan = _Loan(self, key, plan.work_bytes)
        addresses = addresses + [loan.address + place for place in plan.work]
        if plan.multiplies:
            self.run(plan.bound(addresses))
            return
        with self._driver.on(self.number):
            self._driver.carry_out(plan, addresses, self.number, key[-1])

    def chip(self) -> Chip:
        """Say what the device has for blocks that wait for each other."""
        return Chip(*self._driver.chip(self.number))

    def sent(self, array: np.ndarray) -> np.ndarray:
        """Bring an array of the host to the device."""
        if array.size == 0:
            return array
        loan = _Loan(self, self.key, array.nbytes)
        with self._driver.on(self.number):
            self._driver.to_device(
                loan.block, np.ascontiguousarray(array), self._library.stream
            )
        return seen(loan, array.shape, array.dtype, loan.address)

    def view(self, value: Any, name: str) -> np.ndarray:
        """See an array of the caller's, which must be here and without gaps."""
        interface = value.__cuda_array_interface__
        shape, dtype = interface["shape"], np.dtype(interface["typestr"])
        address, strides = interface["data"][0], interface.get("strides")
        if interface.get("mask") is not None:
            raise TypeError(f"`{name}` must be an array without a mask of its own.")
        if 0 in shape:
            return np.empty(shape, dtype)
        owner = self._driver.device_at(address)
        if owner != self.number:
            raise ValueError(
                f"`{name}` must be on the device of `sequences`, number {self.number}. "
                f"Received: an array on device {owner}. Copy it there first."
            )
        array = seen(value, shape, dtype, address, strides)
        if not array.flags.c_contiguous:
            raise ValueError(
                f"`{name}` must be contiguous: arrays on a device are not copied. "
                f"Received: shape={tuple(shape)}, strides={array.strides} bytes. Pass "
                f"`{name}.contiguous()` (PyTorch) or `ascontiguousarray({name})`."
            )
        return array


class _Loan:
    """Memory of the device to work with; goes back when nothing sees it any more.

    To those who work on the same stream: what they launch waits for what was launched.
    """

    def __init__(self, device: Device, key: tuple[Any, ...], size: int) -> None:
        self._key = key
        self.address, self.block = 0, None
        if size == 0:
            return
        for _ in range(len(_spare)):
            try:
                key, block, bytes_ = _spare.popleft()
            except IndexError:  # another thread was first
                break
            if key == self._key and size <= bytes_ <= 2 * size:
                self.block, self._bytes = block, bytes_
                break
            _spare.append((key, block, bytes_))
        if self.block is None:
            with device._driver.on(device.number):
                self.block, self._bytes = device._driver.memory(size), size
        self.address = self.block.__cuda_array_interface__["data"][0]

    def __del__(self) -> None:
        if self.block is not None and _spare is not None:  # as when Python ends
            _spare.append((self._key, self.block, self._bytes))
            with _trimming:
                while sum([bytes_ for _, _, bytes_ in tuple(_spare)]) > _MOST_BYTES:
                    _spare.popleft()


_spare: deque[Any] = deque(maxlen=_MOST_BLOCKS)
_zeros: dict[tuple[Any, ...], np.ndarray] = {}
_trimming = threading.RLock()

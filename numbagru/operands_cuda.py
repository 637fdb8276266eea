"""The arrays of a call on a CUDA device, as operands.py has them for the host.

Kernels take addresses and sizes, so the rest of the package sees an array of NumPy
whose memory is the device's: its shape, strides and address may be used, its numbers
may not. Anything with ``__cuda_array_interface__`` comes in as such a view, on the
stream that its library works on, and results are of the same library.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Any

import numpy as np

from numbagru._driver_cuda import driver
from numbagru.kernels.cuda.launch import Products
from numbagru.kernels.cuda.limits import Chip
from numbagru.operands import HOST, Operands, on_device

# What is kept of work memory that no call uses; a training step asks for ten blocks.
_MOST_BYTES, _MOST_BLOCKS = 2**30, 32


def place_of(x: Any) -> Device:
    """Return where the sequences x are, or the current device for those on the host.

    Raises
    ------
    RuntimeError
        If a package, the driver or a device is missing.
    """
    found = driver()
    if not on_device(x):
        return Device(found, found.current_device(), _Host())
    interface = x.__cuda_array_interface__
    address = interface["data"][0]
    number = found.device_at(address) if address else found.current_device()
    return Device(found, number, _library_of(x))


class _Host:
    """Arrays of NumPy, which go to the device and come back."""

    stream = 0
    empty = None


class _Numba:
    """Arrays of Numba's, for those of any library that is not known here."""

    empty = None

    def __init__(self, x: Any) -> None:
        self.stream = x.__cuda_array_interface__.get("stream") or 0


class _CuPy:
    def __init__(self, x: Any) -> None:
        import cupy

        self._module = cupy

    @property
    def stream(self) -> int:
        return self._module.cuda.get_current_stream().ptr

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return self._module.empty(shape, dtype)


class _Torch:
    def __init__(self, x: Any) -> None:
        import torch

        self._module, self._device = torch, x.device

    @property
    def stream(self) -> int:
        return self._module.cuda.current_stream(self._device).cuda_stream

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        kind = getattr(self._module, dtype.name)
        return self._module.empty(shape, dtype=kind, device=self._device)


def _library_of(x: Any) -> Any:
    known = {"cupy": _CuPy, "torch": _Torch}
    return known.get(type(x).__module__.partition(".")[0], _Numba)(x)


class Device(Operands):
    """Arrays in the memory of one device, on the stream of the caller's library."""

    def __init__(self, found: Any, number: int, library: Any) -> None:
        self.number = number
        self._driver, self._library = found, library
        self._results: dict[int, Any] = {}

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
        """Make a state of zeros."""
        from numbagru.kernels.cuda import elementwise

        array = self.work(shape, dtype)
        self.run(elementwise.fill(array))
        return array

    def gradients(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Make an array as `empty`."""
        return self.empty(shape, dtype)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Make an array that the caller gets, by the caller's library."""
        with self._driver.on(self.number):
            make = self._library.empty or self._driver.array
            result = make(shape, dtype)
        array = self.view(result, "result")
        self._results[array.ctypes.data] = result
        return array

    def work(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Make an array that nobody else sees; its memory may be used again."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if size == 0:
            return np.empty(shape, dtype)
        return _seen(_Loan(self, size), shape, dtype)

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
        result = self._results.pop(array.ctypes.data)
        if self._library.__class__ is not _Host:
            same = tuple(result.shape) == array.shape
            return result if same else result.reshape(array.shape)
        with self._driver.on(self.number):
            return self._driver.to_host(result, 0).reshape(array.shape)

    def fetched(self, array: Any) -> np.ndarray:
        """Copy an array of the caller's to the host."""
        with self._driver.on(self.number):
            return self._driver.to_host(array, self._library.stream)

    def run(self, tasks: Any) -> None:
        """Carry out one after the other, without waiting for them."""
        for task in tasks:
            for size in task.arguments:
                if isinstance(size, int) and size >= 2**31:
                    raise ValueError(
                        "The call is too large for kernels whose sizes have 32 bits: "
                        f"one would be {size:,}. Take fewer rows or steps at once."
                    )
        with self._driver.on(self.number):
            for kind, same in itertools.groupby(tasks, type):
                by = self._driver.multiply if kind is Products else self._driver.run
                by(same, self._library.stream)

    def chip(self) -> Chip:
        """Say what the device has for blocks that wait for each other."""
        with self._driver.on(self.number):
            return Chip(*self._driver.chip())

    def sent(self, array: np.ndarray) -> np.ndarray:
        """Bring an array of the host to the device."""
        if array.size == 0:
            return array
        loan = _Loan(self, array.nbytes)
        with self._driver.on(self.number):
            self._driver.to_device(
                loan.block, np.ascontiguousarray(array), self._library.stream
            )
        return _seen(loan, array.shape, array.dtype)

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
        array = _seen(value, shape, dtype, address, strides)
        if not array.flags.c_contiguous:
            raise ValueError(
                f"`{name}` must be contiguous: arrays on a device are not copied. "
                f"Received: shape={tuple(shape)}, strides={array.strides} bytes. Pass "
                f"`{name}.contiguous()` (PyTorch) or `ascontiguousarray({name})`."
            )
        return array


class _Address:
    """What NumPy needs to know, and what keeps the memory alive."""

    def __init__(
        self, owner: Any, shape: Any, dtype: np.dtype, address: int, strides: Any
    ) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "shape": tuple(shape),
            "typestr": dtype.str,
            "data": (address, False),
            "strides": strides,
            "version": 3,
        }


def _seen(
    owner: Any,
    shape: Any,
    dtype: np.dtype,
    address: int | None = None,
    strides: Any = None,
) -> np.ndarray:
    """See memory of the device as an array, which keeps its owner alive."""
    if address is None:
        address = owner.block.__cuda_array_interface__["data"][0]
    return np.asarray(_Address(owner, shape, dtype, address, strides))


class _Loan:
    """Memory of the device to work with; goes back when nothing sees it any more.

    To those who work on the same stream: what they launch waits for what was launched.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._key = device.key
        self.block = None
        for _ in range(len(_spare)):
            try:
                key, block = _spare.popleft()
            except IndexError:  # another thread was first
                break
            if key == self._key and size <= block.size <= 2 * size:
                self.block = block
                break
            _spare.append((key, block))
        if self.block is None:
            with device._driver.on(device.number):
                self.block = device._driver.memory(size)

    def __del__(self) -> None:
        if self.block is not None:
            _spare.append((self._key, self.block))
            with _trimming:
                while sum(block.size for _, block in tuple(_spare)) > _MOST_BYTES:
                    _spare.popleft()


_spare: deque[Any] = deque(maxlen=_MOST_BLOCKS)
_trimming = threading.RLock()

"""The libraries whose arrays come in on a device, and go out again."""

from __future__ import annotations

from typing import Any

import numpy as np

# An array's address, and what else kernels depend on: shape, dtype, device.
Direct = tuple[int, tuple[Any, ...]]


class Host:
    """Arrays of NumPy, which go to the device and come back."""

    stream = 0


class Numba:
    """Arrays of Numba's, for those of any library that is not known here."""

    def __init__(self, x: Any) -> None:
        self.stream = x.__cuda_array_interface__.get("stream") or 0

    def empty(self, driver: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Make an array."""
        return driver.array(shape, dtype, self.stream)

    @staticmethod
    def direct(x: Any) -> Direct | None:
        """Leave all to the interface."""
        return None


class CuPy:
    """Arrays of CuPy's, on its current stream."""

    def __init__(self, x: Any) -> None:
        import cupy

        self._module = cupy

    @property
    def stream(self) -> int:
        """Address of the stream, 0 for the null stream."""
        return self._module.cuda.get_current_stream().ptr

    def empty(self, driver: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Make an array on the current device."""
        return self._module.empty(shape, dtype)

    @staticmethod
    def direct(x: Any) -> Direct | None:
        """Look at an array without gaps; None for others."""
        if not x.flags.c_contiguous:
            return None
        return x.data.ptr, (x.shape, x.dtype, x.device.id)


class Torch:
    """Tensors of PyTorch's, on the current stream of their device."""

    def __init__(self, x: Any) -> None:
        import torch

        self._module, self._device = torch, x.device

    @property
    def stream(self) -> int:
        """Address of the stream, 0 for the null stream."""
        return self._module.cuda.current_stream(self._device).cuda_stream

    def empty(self, driver: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Make a tensor on the device of the one that came."""
        double = dtype.itemsize == 8
        kind = self._module.float64 if double else self._module.float32
        return self._module.empty(shape, dtype=kind, device=self._device)

    @staticmethod
    def direct(x: Any) -> Direct | None:
        """Look at a tensor without gaps or gradients; None for others."""
        if not x.is_cuda or x.requires_grad or x.is_sparse or not x.is_contiguous():
            return None
        return x.data_ptr(), (x.shape, x.dtype, x.device)


_KNOWN = {"cupy": CuPy, "torch": Torch}


def kind_of(x: Any) -> Any:
    """Return the class above for an array on a device."""
    return _KNOWN.get(type(x).__module__.partition(".")[0], Numba)

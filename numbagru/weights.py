"""Weights, and what kernels derive from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from numbagru import dispatch, operands
from numbagru.kernels import forward_cpu, panels
from numbagru.kernels.call import REAL, OnDevice, bias_shape, whole_rows
from numbagru.prepared import Inference


class Weights:
    """The weights of one GRU, and what kernels derive from them.

    Immutable: make another one when a weight changes.

    Parameters
    ----------
    kernel : ndarray (F, 3 U)
        Gates z, r, candidate.
    recurrent_kernel : ndarray (U, 3 U)
    bias : ndarray (2, 3 U), (3 U,) or None
        Input and recurrent bias, or the input bias alone.
    reset_after : bool
        Which of the two shapes `bias` has.
    """

    def __init__(
        self,
        kernel: np.ndarray,
        recurrent_kernel: np.ndarray,
        bias: np.ndarray | None,
        reset_after: bool,
    ) -> None:
        self.kernel = _contiguous(kernel, kernel.dtype)
        self.recurrent_kernel = _contiguous(recurrent_kernel, recurrent_kernel.dtype)
        self.bias = None if bias is None else _contiguous(bias, kernel.dtype)
        self.reset_after = reset_after
        self._prepared: tuple[Any, Callable[..., Any]] | None = None
        self._fits: Any = None  # the config that was checked last
        # Packed for the forward pass alone, and for both; then the other is dropped.
        self._packed: np.ndarray | None = None
        self._packed_both: np.ndarray | None = None
        self._devices: dict[Any, OnDevice] = {}
        self._recordings: Any = None  # of calls on a device

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again on demand."""
        kept = ("kernel", "recurrent_kernel", "bias", "reset_after")
        made_again = dict.fromkeys(
            ("_prepared", "_fits", "_packed", "_packed_both", "_recordings")
        )
        arrays = {name: self.__dict__[name] for name in kept}
        return {**arrays, **made_again, "_devices": {}}

    @cached_property
    def sum_bias(self) -> np.ndarray:
        """Where the sums start (4, U): z, r, candidate's input and recurrent part."""
        W = self.kernel
        U = self.recurrent_kernel.shape[0]
        return panels.sum_bias(REAL[W.dtype], self.flat_bias, U)

    def on(self, place: Any) -> OnDevice:
        """Give what kernels for CUDA take, copied there at the first request.

        Of each stream its own: work memory is safe on one stream alone.
        """
        found = self._devices.get(place.key)
        if found is None:
            arrays = self.kernel, self.recurrent_kernel, self.sum_bias
            found = OnDevice(*(place.sent(array) for array in arrays))
            self._devices[place.key] = found
        return found

    @property
    def flat_bias(self) -> np.ndarray:
        """The bias (3 U,) or (6 U,); (0,) without one."""
        if self.bias is None:
            return operands.nothing(1, self.kernel.dtype)
        return self.bias.reshape(-1)

    def packed(self, training: bool, threads: int) -> np.ndarray:
        """Give what tiles take, for the forward and, if `training`, the backward pass.

        It is packed (kernels/panels.py) at the first request, on at most `threads`
        threads.
        """
        found = self._packed_both
        if found is None and not training:
            found = self._packed
        if found is None:
            W, R, bias = self.kernel, self.recurrent_kernel, self.flat_bias
            found = panels.pack(W, R, bias, training, threads)
            if training:
                self._packed, self._packed_both = None, found
            else:
                self._packed = found
        return found

    @property
    def packed_for_training(self) -> bool:
        """Whether `packed` has what the backward pass takes."""
        return self._packed_both is not None

    def inference(self, config: Any) -> Inference | None:
        """Prepare calls with a config; None where the general call is needed."""
        family = dispatch.family(config)
        self.check(config)
        plain = not (config.go_backwards or config.time_major)
        ours = family.forward is forward_cpu.forward and not whole_rows(config)
        return Inference(config, self) if plain and ours else None

    def call(self, config: Any) -> Callable[..., Any]:
        """Give `Inference.call` for a config; the last one is remembered."""
        prepared = self._prepared  # which another thread may replace at any time
        if prepared is None or prepared[0] is not config:
            inference = self.inference(config)
            call = _general if inference is None else inference.call
            prepared = self._prepared = (config, call)
        return prepared[1]

    def again(self, config: Any, x: Any, h0: Any) -> Any:
        """Call as before with arrays of a device; None if there was no such call."""
        recordings = self._recordings
        return None if recordings is None else recordings.call(config, x, h0)

    def record(self, *of_call: Any) -> None:
        """Remember a call on a device: see `recorded_cuda.Recordings.add`."""
        from numbagru.recorded_cuda import Recordings

        if self._recordings is None:
            self._recordings = Recordings()
        self._recordings.add(*of_call)

    def check(self, config: Any) -> None:
        """Refuse the config of another layer: kernels trust shapes and types."""
        if self._fits is config:
            return
        W, R, bias = self.kernel, self.recurrent_kernel, self.bias
        expected, dtype = _expected(config)
        found = W.shape[1:], R.shape, None if bias is None else bias.shape
        if found != expected or W.dtype != dtype or R.dtype != dtype:
            U = config.units
            raise ValueError(
                f"`weights` must have shapes (features, {3 * U}), {expected[1]} and "
                f"{expected[2]}, and dtype {config.dtype}, to fit the layer. Received: "
                f"{W.shape}, {R.shape} and {found[2]}, {W.dtype} and {R.dtype}"
            )
        self._fits = config


@lru_cache
def _expected(config: Any) -> tuple[tuple[Any, ...], np.dtype]:
    """Give the shapes, but for the features, and the dtype that fit a layer."""
    U = config.units
    bias = bias_shape(config) if config.use_bias else None
    return ((3 * U,), (U, 3 * U), bias), np.dtype(config.dtype)


def _contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.flags.c_contiguous and array.dtype is dtype:
        return array
    return np.ascontiguousarray(array, dtype)


def _general(x: Any, h0: Any) -> None:
    """Stand for `Inference.call` where every call needs the general one."""

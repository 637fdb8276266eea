"""Initializers that do not draw: constants, the identity, given values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbagru import registry
from numbagru.random import check_dtype, check_shape
from numbagru.registry import finite_number


class Initializer(registry.Configurable):
    """Base of all initializers; a subclass defines `__call__(shape, dtype=None)`."""

    def __call__(
        self, shape: Sequence[int], dtype: DTypeLike | None = None
    ) -> np.ndarray:
        """Return an array of that shape and dtype ("float32" or "float64").

        Raises
        ------
        ValueError
            If the initializer cannot fill that shape, or `dtype` is another one.
        """
        return self._fill(check_shape(shape), check_dtype(dtype))

    def _fill(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        raise NotImplementedError(
            "An Initializer must define `__call__(shape, dtype=None)`. "
            f"Received: {type(self).__name__}"
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Build the initializer; the `dtype` key of old tf.keras configs is dropped."""
        return cls(**{key: v for key, v in config.items() if key != "dtype"})


class Constant(Initializer):
    """Every element is `value`.

    Parameters
    ----------
    value : float, default 0.0
        A finite scalar.
    """

    def __init__(self, value: float = 0.0) -> None:
        self.value = finite_number(value, "value")

    def _fill(self, shape, dtype):
        return np.full(shape, self.value, dtype)


class Zeros(Initializer):
    """Every element is 0."""

    def _fill(self, shape, dtype):
        return np.zeros(shape, dtype)


class Ones(Initializer):
    """Every element is 1."""

    def _fill(self, shape, dtype):
        return np.ones(shape, dtype)


class Identity(Initializer):
    """`gain` on the diagonal of a matrix, 0 elsewhere; rank 2 only.

    On the `(units, 3 * units)` recurrent kernel that is the identity in the block of
    the update gate.

    Parameters
    ----------
    gain : float, default 1.0
        Finite.
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = finite_number(gain, "gain")

    def _fill(self, shape, dtype):
        if len(shape) != 2:
            raise ValueError(
                "Identity can only fill a matrix, `shape` of rank 2. "
                f"Received: shape={shape} of rank {len(shape)}"
            )
        return dtype.type(self.gain) * np.eye(*shape, dtype=dtype)


class Values(Initializer):
    """The given array, cast to the dtype asked for.

    Parameters
    ----------
    value : array_like
        Real numbers; copied. The shape asked for must be its own.

    Raises
    ------
    TypeError
        If the array is not of real numbers.
    """

    def __init__(self, value: Any) -> None:
        if isinstance(value, Mapping):
            value = np.array(value["config"]["value"], value["config"]["dtype"])
        self.value = np.array(value)
        if self.value.dtype.kind not in "biuf":
            raise TypeError(
                "An array given as an initializer must hold real numbers. "
                f"Received: dtype={self.value.dtype}"
            )

    def _fill(self, shape, dtype):
        if shape != self.value.shape:
            raise ValueError(
                f"Expected `shape` to be {self.value.shape}, that of the array given "
                f"as the initializer. Received: shape={shape}"
            )
        return self.value.astype(dtype)


class STFT(Initializer):
    """Known by name only: it makes rank-3 kernels of a convolution, no GRU weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "The initializer STFT makes kernels of rank 3 and no weight of a GRU or "
            "Dense layer has that rank. Pass another initializer, such as "
            "'glorot_uniform'."
        )

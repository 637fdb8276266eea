"""Projections of weights after an optimizer's update, as in Keras 3.

`constraint(w)` returns the projected array. Formulas are those of `keras.constraints`,
with the bits of its NumPy backend.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from numbagru import registry
from numbagru.registry import KERAS_EPSILON, finite_number, float_array, non_negative

Axis: TypeAlias = "int | Sequence[int] | None"


class Constraint(registry.Configurable):
    """Base of all constraints; itself it changes nothing."""

    def __call__(self, w: np.ndarray) -> np.ndarray:
        """Return the projection of `w`, an array like `w`."""
        return w


class NonNeg(Constraint):
    """Negative elements become 0."""

    def __call__(self, w: np.ndarray) -> np.ndarray:
        """Return `max(w, 0)`."""
        return np.maximum(float_array(w), 0)


class _NormConstraint(Constraint):
    """Rescale `w` so that its norms along `axis` become `_desired(norms)`."""

    axis: Axis

    def __call__(self, w):
        w = float_array(w)
        try:
            norms = np.sqrt(
                np.sum(np.square(w), axis=_as_tuple(self.axis), keepdims=True)
            )
        except ValueError:
            raise ValueError(
                f"`axis` of {self!r} must be an axis of the weight it constrains. "
                f"Received: axis={self.axis}, w.shape={w.shape}"
            ) from None
        return self._rescale(w, norms)

    def _rescale(self, w, norms):
        return w * (self._desired(norms) / (KERAS_EPSILON + norms))


class MaxNorm(_NormConstraint):
    """Norms along `axis` are at most `max_value`.

    Parameters
    ----------
    max_value : float, default 2
        Finite and >= 0.
    axis : int or sequence of int, default 0
        The axes a norm sums over; 0 is per gate and unit for a GRU kernel. None is
        the whole weight.

    Raises
    ------
    ValueError
        If an argument is not as above, or on a call with a `w` without that axis.
    """

    def __init__(self, max_value: float = 2, axis: Axis = 0) -> None:
        self.max_value = non_negative(max_value, "max_value")
        self.axis = _check_axis(axis)

    def _desired(self, norms):
        return np.clip(norms, 0, self.max_value)


class MinMaxNorm(_NormConstraint):
    """Norms along `axis` move into `[min_value, max_value]`.

    Parameters
    ----------
    min_value, max_value : float, default 0.0 and 1.0
        Finite, `0 <= min_value <= max_value`.
    rate : float, default 1.0
        How far, in [0, 1]: the new norm is
        `rate * clip(norm, min_value, max_value) + (1 - rate) * norm`.
    axis : int or sequence of int, default 0
        As in `MaxNorm`.

    Raises
    ------
    ValueError
        If an argument is not as above, or on a call with a `w` without that axis.
    """

    def __init__(
        self,
        min_value: float = 0.0,
        max_value: float = 1.0,
        rate: float = 1.0,
        axis: Axis = 0,
    ) -> None:
        self.min_value = non_negative(min_value, "min_value")
        self.max_value = finite_number(
            max_value,
            "max_value",
            f"a number >= min_value={min_value}",
            lambda v: v >= self.min_value,
        )
        self.rate = finite_number(
            rate, "rate", "a number in [0, 1]", lambda v: 0 <= v <= 1
        )
        self.axis = _check_axis(axis)

    def _desired(self, norms):
        clipped = np.clip(norms, self.min_value, self.max_value)
        return self.rate * clipped + (1 - self.rate) * norms


class UnitNorm(_NormConstraint):
    """Norms along `axis` become 1, up to Keras' epsilon of 1e-7.

    Parameters
    ----------
    axis : int or sequence of int, default 0
        As in `MaxNorm`.

    Raises
    ------
    ValueError
        If `axis` is not as above, or on a call with a `w` without that axis.
    """

    def __init__(self, axis: Axis = 0) -> None:
        self.axis = _check_axis(axis)

    def _rescale(self, w, norms):
        # One quotient and no product: the bits of Keras.
        return w / (KERAS_EPSILON + norms)


def _as_tuple(axis: Axis) -> int | tuple[int, ...] | None:
    return tuple(axis) if isinstance(axis, Sequence) else axis


def _check_axis(axis: Axis) -> Axis:
    """Return `axis` in Python ints, a list for a sequence, or raise ValueError."""
    try:
        if axis is None:
            return None
        if isinstance(axis, Sequence):
            return [operator.index(a) for a in axis]
        return operator.index(axis)
    except TypeError:
        raise ValueError(
            "Argument `axis` must be an integer, a list of integers or None. "
            f"Received: axis={axis!r}"
        ) from None


_TABLE = registry.name_table(
    "keras.constraints",
    Constraint,
    MaxNorm,
    MinMaxNorm,
    NonNeg,
    UnitNorm,
    maxnorm=MaxNorm,
    nonneg=NonNeg,
    unitnorm=UnitNorm,
)

__getattr__ = partial(registry.module_attribute, __name__, _TABLE)

serialize = registry.serialize_object


def get(
    identifier: Any, custom_objects: Mapping[str, Any] | None = None
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the constraint that an identifier stands for.

    Parameters
    ----------
    identifier : None, str, dict, class or callable
        A Keras name ("max_norm", "MaxNorm", the older "maxnorm", ...; case counts), a
        config dict of Keras 3 or tf.keras 2, a class, an instance, or a function of
        the weight. None stays None.
    custom_objects : mapping, optional
        Names to classes or functions, ahead of the built-in ones.

    Raises
    ------
    ValueError
        If the identifier is none of these.
    TypeError
        If a config does not fit its class.
    """
    return registry.resolve(identifier, _TABLE, "constraint", custom_objects)


deserialize = get

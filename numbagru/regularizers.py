"""Weight penalties of Keras 3 and their gradients.

`penalty(w)` is a scalar of the dtype of `w`, `penalty.gradient(w)` its derivative.
Formulas are those of `keras.regularizers`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from numbagru import registry
from numbagru.registry import float_array, non_negative


class Regularizer(registry.Configurable):
    """Base of all penalties; itself it is none.

    A subclass defines `__call__(w)` and, to be trained with, `gradient(w)`.
    """

    def __call__(self, w: np.ndarray) -> np.floating | float:
        """Return the penalty, a scalar."""
        return 0.0


class _Penalty(Regularizer):
    """A penalty given by `_value` and `_gradient` on float arrays."""

    _value: Callable[[np.ndarray], np.floating]
    _gradient: Callable[[np.ndarray], np.ndarray]

    def __call__(self, w):
        return self._value(float_array(w))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """Return the derivative of the penalty by `w`, an array like `w`."""
        return self._gradient(float_array(w))


def _l1(factor, w):
    return w.dtype.type(factor) * np.sum(np.abs(w))


def _l1_gradient(factor, w):
    return w.dtype.type(factor) * np.sign(w)


def _l2(factor, w):
    return w.dtype.type(factor) * np.sum(np.square(w))


def _l2_gradient(factor, w):
    return w.dtype.type(2 * factor) * w


class L1(_Penalty):
    """`l1 * sum(|w|)`, with the subgradient 0 at 0.

    Parameters
    ----------
    l1 : float, default 0.01
        Finite and >= 0; None means the default. Rounded to float32, as in Keras.
    """

    def __init__(self, l1: float | None = 0.01) -> None:
        self.l1 = np.float32(non_negative(0.01 if l1 is None else l1, "l1"))

    def _value(self, w):
        return _l1(self.l1, w)

    def _gradient(self, w):
        return _l1_gradient(self.l1, w)


class L2(_Penalty):
    """`l2 * sum(w**2)`.

    Parameters
    ----------
    l2 : float, default 0.01
        Finite and >= 0; None means the default.
    """

    def __init__(self, l2: float | None = 0.01) -> None:
        self.l2 = float(non_negative(0.01 if l2 is None else l2, "l2"))

    def _value(self, w):
        return _l2(self.l2, w)

    def _gradient(self, w):
        return _l2_gradient(self.l2, w)


class L1L2(_Penalty):
    """`l1 * sum(|w|) + l2 * sum(w**2)`, with the subgradient 0 of |w| at 0.

    The name "l1_l2" stands for `L1L2(0.01, 0.01)`, as tf.keras has it and Keras 3
    documents it; the name "l1l2" for `L1L2()`, which is no penalty at all.

    Parameters
    ----------
    l1, l2 : float, default 0.0
        Finite and >= 0; None means 0.
    """

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0) -> None:
        self.l1 = float(non_negative(0.0 if l1 is None else l1, "l1"))
        self.l2 = float(non_negative(0.0 if l2 is None else l2, "l2"))

    def _value(self, w):
        # A term that is switched off must not turn an infinite weight into nan.
        value = w.dtype.type(0)
        if self.l1:
            value += _l1(self.l1, w)
        if self.l2:
            value += _l2(self.l2, w)
        return value

    def _gradient(self, w):
        gradient = np.zeros_like(w)
        if self.l1:
            gradient += _l1_gradient(self.l1, w)
        if self.l2:
            gradient += _l2_gradient(self.l2, w)
        return gradient


class OrthogonalRegularizer(_Penalty):
    """`factor` times the mean |cosine| between the rows, or columns, of a matrix.

    Parameters
    ----------
    factor : float, default 0.01
        Finite and >= 0. Rounded to float32, as in Keras.
    mode : {"rows", "columns"}
        Whose pairs are counted. With fewer than two of them there is no pair, and
        the penalty is 0 (Keras divides by zero).

    Raises
    ------
    ValueError
        If an argument is not as above, or on a call with `w` not of rank 2.
    """

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        self.factor = np.float32(non_negative(factor, "factor"))
        if mode not in ("rows", "columns"):
            raise ValueError(
                "Invalid value for argument `mode`: expected 'rows' or 'columns'. "
                f"Received: mode={mode!r}"
            )
        self.mode = mode

    def _value(self, w):
        unit, _ = self._unit_rows(w)
        if len(unit) < 2:
            return unit.dtype.type(0)
        total = np.sum(np.abs(_off_diagonal(unit @ unit.T)))
        return self._weight(unit) * total / unit.dtype.type(_pairs(unit))

    def _gradient(self, w):
        unit, inverse_norm = self._unit_rows(w)
        if len(unit) < 2:
            return np.zeros_like(w)
        # Each pair stands twice in the symmetric Gram matrix.
        scale = 2 * self._weight(unit) / unit.dtype.type(_pairs(unit))
        d_unit = scale * (np.sign(_off_diagonal(unit @ unit.T)) @ unit)
        # The norm of a row shorter than epsilon is replaced by epsilon, a constant.
        radial = np.sum(d_unit * unit, axis=1, keepdims=True)
        radial[inverse_norm == _longest(unit.dtype)] = 0
        d_rows = inverse_norm * (d_unit - radial * unit)
        return np.ascontiguousarray(self._as_rows(d_rows))

    def _as_rows(self, w):
        """Transpose in mode "columns"; its own inverse."""
        return w if self.mode == "rows" else w.T

    def _unit_rows(self, w):
        """Return the vectors scaled to norm 1, as rows, and the scales."""
        if w.ndim != 2:
            raise ValueError(
                "OrthogonalRegularizer needs a matrix, `w` of rank 2. "
                f"Received: w.shape={w.shape}"
            )
        rows = self._as_rows(w)
        with np.errstate(divide="ignore"):
            inverse_norm = 1 / np.sqrt(np.sum(np.square(rows), axis=1, keepdims=True))
        inverse_norm = np.minimum(inverse_norm, _longest(w.dtype))
        return rows * inverse_norm, inverse_norm

    def _weight(self, unit):
        return unit.dtype.type(self.factor * np.float32(0.5))


def _longest(dtype):
    """Return the factor that a vector of norm epsilon or less is scaled by."""
    return dtype.type(1 / registry.KERAS_EPSILON)


def _off_diagonal(gram):
    np.fill_diagonal(gram, 0)
    return gram


def _pairs(unit):
    return len(unit) * (len(unit) - 1) / 2


_TABLE = registry.name_table(
    "keras.regularizers",
    Regularizer,
    L1,
    L2,
    L1L2,
    OrthogonalRegularizer,
    l1_l2=L1L2,
)

__getattr__ = partial(registry.module_attribute, __name__, _TABLE)


serialize = registry.serialize_object


def get(
    identifier: Any, custom_objects: Mapping[str, Any] | None = None
) -> Callable[[np.ndarray], Any] | None:
    """Return the regularizer that an identifier stands for.

    Parameters
    ----------
    identifier : None, str, dict, class or callable
        A Keras name ("l1", "L2", "l1_l2", "orthogonal_regularizer", ...; case
        counts), a config dict of Keras 3 or tf.keras 2, a class, an instance, or a
        function of the weight. None stays None.
    custom_objects : mapping, optional
        Names to classes or functions, ahead of the built-in ones.

    Raises
    ------
    ValueError
        If the identifier is none of these.
    TypeError
        If a config does not fit its class.
    """
    if isinstance(identifier, str) and identifier == "l1_l2":
        return L1L2(0.01, 0.01)
    return registry.resolve(identifier, _TABLE, "regularizer", custom_objects)


deserialize = get

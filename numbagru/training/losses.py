"""Losses: Keras' names and numbers, each with the gradient in its predictions.

A loss is two formulas side by side: `call`, one value per sample, and `pullback`, its
reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from numbagru import registry
from numbagru.registry import KERAS_EPSILON, finite_number
from numbagru.training.loss import Loss


class _Elementwise(Loss):
    """The mean over one axis of an elementwise `_value` with its `_slope`."""

    axis = -1

    def call(self, y_true, y_pred):
        return np.mean(self._value(y_true, y_pred), axis=self.axis)

    def pullback(self, y_true, y_pred, d_values):
        share = np.expand_dims(d_values, self.axis) / y_pred.shape[self.axis]
        return self._slope(y_true, y_pred) * share

    def _value(self, y_true, y_pred):
        raise NotImplementedError

    def _slope(self, y_true, y_pred):
        raise NotImplementedError


class MeanSquaredError(_Elementwise):
    """Mean over the last axis of `(y_true - y_pred)**2`.

    Parameters are those of `Loss`.
    """

    def _value(self, y_true, y_pred):
        return np.square(y_true - y_pred)

    def _slope(self, y_true, y_pred):
        return 2 * (y_pred - y_true)


class MeanAbsoluteError(_Elementwise):
    """Mean over the last axis of `|y_true - y_pred|`; slope 0 where they are equal.

    Parameters are those of `Loss`.
    """

    def _value(self, y_true, y_pred):
        return np.abs(y_true - y_pred)

    def _slope(self, y_true, y_pred):
        return np.sign(y_pred - y_true)


class Huber(_Elementwise):
    """Half the squared error up to `delta`, and linear beyond it.

    Parameters
    ----------
    delta : float
        Where the parabola `error**2 / 2` becomes the line
        `delta * |error| - delta**2 / 2`. Positive and finite; default 1.
    reduction, name, dtype
        As for `Loss`.
    """

    def __init__(
        self,
        delta: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "huber_loss",
        dtype: str | None = None,
    ):
        super().__init__(reduction, name, dtype)
        self.delta = finite_number(delta, "delta", "a positive float", lambda v: v > 0)

    def _value(self, y_true, y_pred):
        error = y_pred - y_true
        delta = error.dtype.type(self.delta)
        half = error.dtype.type(0.5)
        line = delta * np.abs(error) - half * np.square(delta)
        return np.where(np.abs(error) <= delta, half * np.square(error), line)

    def _slope(self, y_true, y_pred):
        return np.clip(y_pred - y_true, -self.delta, self.delta)


class _Crossentropy(Loss):
    """The arguments that both crossentropies share."""

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: str | None = None,
    ):
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise ValueError(f"`axis` must be an int. Received: {axis=}")
        super().__init__(reduction, name, dtype)
        self.from_logits = bool(from_logits)
        self.label_smoothing = finite_number(
            label_smoothing,
            "label_smoothing",
            "a float in [0, 1]",
            lambda v: 0 <= v <= 1,
        )
        self.axis = axis


class BinaryCrossentropy(_Crossentropy, _Elementwise):
    """Mean over `axis` of `-t log p - (1 - t) log(1 - p)`.

    Probabilities are clipped to [1e-7, 1 - 1e-7]. Logits are not clipped, as in Keras
    on JAX, PyTorch and TensorFlow (its NumPy backend clips their sigmoid).

    Parameters
    ----------
    from_logits : bool
        Whether `y_pred` holds logits, not probabilities. Default False.
    label_smoothing : float
        In [0, 1]: how far the targets move towards 1/2. Default 0.
    axis : int
        The axis of the mean. Default -1.
    reduction, name, dtype
        As for `Loss`.
    """

    def _smooth(self, y_true):
        s = self.label_smoothing
        return y_true * (1.0 - s) + 0.5 * s if s else y_true

    def _value(self, y_true, y_pred):
        t = self._smooth(y_true)
        if self.from_logits:
            # -log sigmoid(x) = softplus(-x), and softplus(x) = x + softplus(-x)
            return np.logaddexp(y_pred.dtype.type(0), -y_pred) + (1 - t) * y_pred
        p = np.clip(y_pred, KERAS_EPSILON, 1.0 - KERAS_EPSILON)
        return -(t * np.log(p) + (1.0 - t) * np.log(1.0 - p))

    def _slope(self, y_true, y_pred):
        t = self._smooth(y_true)
        if self.from_logits:
            e = np.exp(-np.abs(y_pred))
            return np.where(y_pred >= 0, 1 / (1 + e), e / (1 + e)) - t
        p, inside = _clip(y_pred)
        return inside * ((1 - t) / (1 - p) - t / p)


class CategoricalCrossentropy(_Crossentropy):
    """Minus the sum over the classes of `t log p`, for one-hot or soft targets.

    Probabilities are divided by their sum and clipped to [1e-7, 1 - 1e-7].

    Parameters
    ----------
    from_logits : bool
        Whether `y_pred` holds logits, not probabilities. Default False.
    label_smoothing : float
        In [0, 1]: how far the targets move towards uniform ones. Default 0.
    axis : int
        The axis of the classes. Default -1.
    reduction, name, dtype
        As for `Loss`.
    """

    def _smooth(self, y_true):
        s = self.label_smoothing
        # Keras counts the classes on the last axis, whatever `axis` is.
        classes = y_true.dtype.type(y_true.shape[-1])
        return y_true * (1.0 - s) + (s / classes) if s else y_true

    def call(self, y_true, y_pred):
        """Return `-sum(t log p)` along `axis`."""
        if self.from_logits:
            shifted = y_pred - np.max(y_pred, axis=self.axis, keepdims=True)
            norm = np.log(np.sum(np.exp(shifted), axis=self.axis, keepdims=True))
            log_p = shifted - norm
        else:
            p = y_pred / np.sum(y_pred, axis=self.axis, keepdims=True)
            log_p = np.log(np.clip(p, KERAS_EPSILON, 1.0 - KERAS_EPSILON))
        return -np.sum(self._smooth(y_true) * log_p, axis=self.axis)

    def pullback(self, y_true, y_pred, d_values):
        """Return the cotangent of `y_pred`."""
        t = self._smooth(y_true)
        if self.from_logits:
            e = np.exp(y_pred - np.max(y_pred, axis=self.axis, keepdims=True))
            p = e / np.sum(e, axis=self.axis, keepdims=True)
            slope = p * np.sum(t, axis=self.axis, keepdims=True) - t
        else:
            total = np.sum(y_pred, axis=self.axis, keepdims=True)
            p = y_pred / total
            clipped, inside = _clip(p)
            d_p = inside * -t / clipped
            slope = (d_p - np.sum(d_p * p, axis=self.axis, keepdims=True)) / total
        return slope * np.expand_dims(d_values, self.axis)


def mean_squared_error(y_true, y_pred) -> np.ndarray:
    """Return `MeanSquaredError` per sample."""
    return MeanSquaredError(None)(y_true, y_pred)


def mean_absolute_error(y_true, y_pred) -> np.ndarray:
    """Return `MeanAbsoluteError` per sample."""
    return MeanAbsoluteError(None)(y_true, y_pred)


def huber(y_true, y_pred, delta: float = 1.0) -> np.ndarray:
    """Return `Huber` per sample."""
    return Huber(delta, None)(y_true, y_pred)


def binary_crossentropy(
    y_true, y_pred, from_logits=False, label_smoothing=0.0, axis=-1
) -> np.ndarray:
    """Return `BinaryCrossentropy` per sample."""
    return BinaryCrossentropy(from_logits, label_smoothing, axis, None)(y_true, y_pred)


def categorical_crossentropy(
    y_true, y_pred, from_logits=False, label_smoothing=0.0, axis=-1
) -> np.ndarray:
    """Return `CategoricalCrossentropy` per sample."""
    loss = CategoricalCrossentropy(from_logits, label_smoothing, axis, None)
    return loss(y_true, y_pred)


_CLASSES = registry.name_table(
    "keras.losses",
    MeanSquaredError,
    MeanAbsoluteError,
    Huber,
    BinaryCrossentropy,
    CategoricalCrossentropy,
)
_SHORT = {
    "mse": mean_squared_error,
    "mae": mean_absolute_error,
    "bce": binary_crossentropy,
}
FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "mean_squared_error": mean_squared_error,
    "mean_absolute_error": mean_absolute_error,
    "huber": huber,
    "binary_crossentropy": binary_crossentropy,
    "categorical_crossentropy": categorical_crossentropy,
    **_SHORT,
    **{name.upper(): function for name, function in _SHORT.items()},
}


def deserialize(
    config: Any, custom_objects: Mapping[str, Any] | None = None
) -> Loss | Callable | None:
    """Return the loss for a config or a name; see `get`."""
    return registry.resolve(config, _CLASSES | FUNCTIONS, "loss", custom_objects)


def get(identifier: Any) -> Loss | Callable | None:
    """Return a loss.

    Parameters
    ----------
    identifier : None, str, dict, class, Loss or callable
        A class name gives an instance, a snake_case or short name ("mse") the function
        of the values per sample, as in Keras.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    return deserialize(identifier)


def serialize(loss: Loss | Callable | None) -> Any:
    """Return the plain Python form of a loss, as Keras 3 writes it."""
    return registry.serialize_object(loss)


def trainable_loss(identifier: Any) -> Loss:
    """Return the loss to train with; the snake_case functions become their classes.

    Raises
    ------
    ValueError
        For None, for a function, which has no gradient, and for a loss that is not
        reduced to a scalar.
    """
    loss = get(identifier)
    if isinstance(loss, Loss):
        return loss.require_scalar()
    for name, function in FUNCTIONS.items():
        if loss is function:
            return _CLASSES[name]()
    raise ValueError(
        "`loss` must be a name, or a `numbagru.losses.Loss` with `call` and "
        f"`pullback`, since a function has no gradient. Received: loss={loss!r}"
    )


def _clip(p):
    """Return `p` clipped, and 1 where it was inside (the slope of the clip)."""
    low, high = p.dtype.type(KERAS_EPSILON), p.dtype.type(1.0 - KERAS_EPSILON)
    return np.clip(p, low, high), ((p >= low) & (p <= high)).astype(p.dtype)

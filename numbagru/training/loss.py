"""What every loss shares: operands, sample weights, masks and the reduction."""

from __future__ import annotations

import numpy as np

from numbagru import registry
from numbagru.registry import float_array

_MEANS = ("sum_over_batch_size", "mean")
_REDUCTIONS = (*_MEANS, "mean_with_sample_weight", "sum", "none", None)


class Loss(registry.Configurable):
    """Base of the losses; subclass it to train with a loss of your own.

    A subclass writes `call(y_true, y_pred)`, the values per sample, and
    `pullback(y_true, y_pred, d_values)`, the cotangent of `y_pred`. Both receive
    arrays of one floating dtype and one shape.

    Parameters
    ----------
    reduction : {"sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", \
"none", None}
        How the values become one number. The first two are the mean over all values
        (weights do not enter the divisor), the third divides by the sum of the weights;
        "none" and None keep the values.
    name : str, optional
        Default: the class name in snake case.
    dtype : {"float32", "float64"}, optional
        Default: that of `y_pred` when it is float32 or float64, else float32.

    Raises
    ------
    ValueError
        For an unknown `reduction` or `dtype`.
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: str | None = None,
    ):
        if reduction not in _REDUCTIONS:
            raise ValueError(
                f"`reduction` must be one of {_REDUCTIONS}. "
                f"Received: reduction={reduction!r}"
            )
        if dtype not in (None, "float32", "float64"):
            raise ValueError(
                f"`dtype` must be 'float32', 'float64' or None. Received: {dtype=}"
            )
        self.reduction = reduction
        self.name = name or registry.snake_case(type(self).__name__)
        self.dtype = dtype

    def call(self, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
        """Return the loss of each sample, without weights."""
        raise NotImplementedError(f"{type(self).__name__} must define `call`")

    def pullback(
        self, y_true: np.ndarray, y_pred: np.ndarray, d_values: np.ndarray
    ) -> np.ndarray:
        """Return the cotangent of `y_pred` for the cotangent `d_values` of `call`."""
        raise NotImplementedError(
            f"{type(self).__name__} must define `pullback` to be trained with"
        )

    def __call__(self, y_true, y_pred, sample_weight=None, mask=None):
        """Return the reduced loss.

        Parameters
        ----------
        y_true, y_pred : array_like
            Targets and predictions of the same shape; one of them may lack, or have in
            excess, a last axis of size 1.
        sample_weight : array_like, optional
            Factors of the values, shape of their leading axes, for example (B,) or
            (B, T) for values (B, T).
        mask : array_like of bool, optional
            False entries do not count; the mean is over the True ones (Keras 3
            `apply_mask`).

        Returns
        -------
        numpy floating or ndarray
            A scalar; the weighted values for reduction None.

        Raises
        ------
        TypeError
            For arrays that are not real numbers.
        ValueError
            For shapes that do not fit; nothing is broadcast silently.
        """
        return self._forward(y_true, y_pred, sample_weight, mask)[0]

    def gradient(self, y_true, y_pred, sample_weight=None, mask=None) -> np.ndarray:
        """Return the gradient of the loss in `y_pred`, in the shape of `y_pred`."""
        return self.value_and_gradient(y_true, y_pred, sample_weight, mask)[1]

    def value_and_gradient(self, y_true, y_pred, sample_weight=None, mask=None):
        """Return `(loss, gradient)`; needs a reduction to a scalar."""
        self.require_scalar()
        loss, operands, d_values = self._forward(y_true, y_pred, sample_weight, mask)
        gradient = self.pullback(*operands, d_values)
        return loss, gradient.reshape(np.shape(y_pred))

    def require_scalar(self) -> Loss:
        """Return the loss if it is reduced to a scalar, else raise ValueError."""
        if self.reduction in ("none", None):
            raise ValueError(
                "Training needs a scalar loss: use `reduction='sum_over_batch_size'` "
                f"or 'sum'. Received: reduction={self.reduction!r}"
            )
        return self

    def _forward(self, y_true, y_pred, sample_weight, mask):
        """Return the loss, the operands of `call` and d loss / d values."""
        y_true, y_pred = self._operands(y_true, y_pred)
        values = self.call(y_true, y_pred)
        weights = _merge(sample_weight, mask, values, self.reduction)
        if weights is not None:
            values = values * weights
        if self.reduction in ("none", None):
            return values, (y_true, y_pred), None
        if self.reduction == "sum":
            divisor = values.dtype.type(1)
        elif self.reduction == "mean_with_sample_weight" and weights is not None:
            divisor = np.sum(np.broadcast_to(weights, values.shape))
        else:
            divisor = values.dtype.type(values.size)
        if divisor == 0:  # no value, or no weight, is no loss: Keras' divide_no_nan
            return divisor, (y_true, y_pred), np.zeros_like(values)
        share = (1 if weights is None else weights) / divisor
        d_values = np.broadcast_to(share, values.shape).astype(values.dtype)
        return np.sum(values) / divisor, (y_true, y_pred), d_values

    def _operands(self, y_true, y_pred) -> tuple[np.ndarray, np.ndarray]:
        y_pred = float_array(y_pred, "y_pred")
        dtype = self.dtype or y_pred.dtype
        y_true = _cast(y_true, "y_true", dtype)
        y_pred = y_pred.astype(dtype, copy=False)
        a, b = same_rank(y_true, y_pred)
        if a.shape != b.shape:
            raise ValueError(
                "`y_true` and `y_pred` must have the same shape, up to a last axis of "
                f"size 1. Received: y_true.shape={y_true.shape}, "
                f"y_pred.shape={y_pred.shape}"
            )
        return a, b


def same_rank(y_true, y_pred):
    """Add or drop a last axis of size 1 as Keras' `squeeze_or_expand_to_same_rank`."""
    if y_true.ndim == y_pred.ndim + 1:
        return _without_last_axis(y_true, y_pred)
    if y_pred.ndim == y_true.ndim + 1:
        return _without_last_axis(y_pred, y_true)[::-1]
    return y_true, y_pred


def _without_last_axis(longer, shorter):
    if longer.shape[-1] != 1:
        return longer, shorter
    if shorter.ndim == 1:
        return longer, shorter[:, None]
    return longer[..., 0], shorter


def _merge(sample_weight, mask, values, reduction):
    """Return the factors of `values` from weights and mask (Keras `apply_mask`)."""
    weights = None
    if sample_weight is not None:
        weights = _cast(sample_weight, "sample_weight", values.dtype)
        weights = _leading("sample_weight", weights, values)
    if mask is None:
        return weights
    keep = _leading("mask", np.asarray(mask, dtype=bool), values)
    factor = keep.astype(values.dtype)
    if reduction in _MEANS and keep.any():
        factor *= values.dtype.type(keep.size) / np.sum(factor)
    return factor if weights is None else weights * factor


def _leading(name, factors, values):
    """Give `factors` the rank of `values`: its axes are the leading ones."""
    shape = factors.shape
    if factors.ndim == values.ndim + 1 and shape[-1] == 1:
        shape = shape[:-1]
    shape += (1,) * (values.ndim - len(shape))
    if len(shape) != values.ndim or any(
        have not in (1, want) for have, want in zip(shape, values.shape, strict=True)
    ):
        raise ValueError(
            f"`{name}` must have the leading axes of the losses per sample, "
            f"{values.shape}. Received: {name}.shape={factors.shape}"
        )
    return factors.reshape(shape)


def _cast(array, name, dtype):
    return float_array(array, name).astype(dtype, copy=False)

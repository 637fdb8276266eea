"""Metrics: running means over the rows of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from numbagru import registry
from numbagru.training import losses
from numbagru.training.data import Data
from numbagru.training.loss import same_rank


class Mean:
    """A weighted mean that grows; the sums are kept in the dtype of the values."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._total = self._weight = np.float32(0)

    def add(self, value: np.floating, weight: float) -> None:
        """Add `value` with `weight`."""
        self._total = self._total + value * value.dtype.type(weight)
        self._weight = self._weight + value.dtype.type(weight)

    def result(self) -> float:
        """Return the mean, 0 when nothing was added."""
        return float(self._total / self._weight) if self._weight else 0.0


class Metric:
    """The mean over all rows of a function.

    Parameters
    ----------
    function : callable
        `function(y_true, y_pred)` returns one value per row, or per row and step.
    name : str, optional
        The key in the logs; default: the name of the function.
    direction : {"down", "up", None}
        Which way is better, for callbacks with `mode="auto"`.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray, np.ndarray], np.ndarray],
        name: str | None = None,
        direction: str | None = None,
    ):
        self.function = function
        self.name = name or function.__name__
        self.direction = direction
        self._mean = Mean()

    def reset(self) -> None:
        """Start a new mean."""
        self._mean.reset()

    def update(
        self, y_true: np.ndarray, y_pred: np.ndarray, mask: np.ndarray | None = None
    ) -> None:
        """Add the rows of a batch; entries where `mask` is False do not count."""
        values = registry.float_array(self.function(y_true, y_pred), self.name)
        if mask is None:
            # The weight of a batch is its rows, whatever other axes the values have.
            self._mean.add(np.mean(values), len(values))
            return
        keep = np.broadcast_to(mask.reshape(mask.shape[: values.ndim]), values.shape)
        if keep.any():
            weight = np.sum(keep, dtype=values.dtype) / (values.size / len(values))
            self._mean.add(np.mean(values[keep]), weight)

    def result(self) -> float:
        """Return the mean so far."""
        return self._mean.result()

    def get_config(self) -> dict[str, Any]:
        """Return name and function; a known function by its name."""
        for known, function in _TABLE.items():
            if function is self.function:
                return {"name": self.name, "function": known}
        return {
            "name": self.name,
            "function": registry.serialize_object(self.function),
        }


class Totals:
    """The means over one epoch: the loss, weighted by rows, and the metrics."""

    def __init__(self, compiled: Sequence[Metric]):
        self._loss = Mean()
        self._metrics = compiled
        for metric in compiled:
            metric.reset()

    def add(
        self,
        batch: Data,
        loss: np.floating,
        y_pred: np.ndarray,
        mask: np.ndarray | None,
    ) -> None:
        """Add a batch."""
        self._loss.add(loss, batch.rows)
        for metric in self._metrics:
            metric.update(batch.y, y_pred, mask)

    def logs(self) -> dict[str, float]:
        """Return the means so far by name, the loss first."""
        logs = {"loss": self._loss.result()}
        return logs | {metric.name: metric.result() for metric in self._metrics}


def binary_accuracy(y_true, y_pred, threshold: float = 0.5) -> np.ndarray:
    """Return for each row how much of `y_pred > threshold` equals `y_true`."""
    y_true, y_pred = same_rank(np.asarray(y_true), np.asarray(y_pred))
    return np.mean(y_true == (y_pred > threshold), axis=-1, dtype=np.float32)


def categorical_accuracy(y_true, y_pred) -> np.ndarray:
    """Return 1 for each row where both have their maximum at the same class."""
    hit = np.argmax(y_true, axis=-1) == np.argmax(y_pred, axis=-1)
    return hit.astype(np.float32)


def accuracy(y_true, y_pred) -> np.ndarray:
    """Return `binary_accuracy` for one output, else `categorical_accuracy`."""
    binary = np.shape(y_pred)[-1] == 1
    return (binary_accuracy if binary else categorical_accuracy)(y_true, y_pred)


_ACCURACIES: dict[str, Callable] = {
    "accuracy": accuracy,
    "acc": accuracy,
    "binary_accuracy": binary_accuracy,
    "categorical_accuracy": categorical_accuracy,
}


_TABLE = losses.FUNCTIONS | _ACCURACIES


def get(identifier: Any) -> Metric:
    """Return a metric.

    Parameters
    ----------
    identifier : str, Metric or callable
        "accuracy" ("acc"), "binary_accuracy", "categorical_accuracy", the snake_case or
        short name of a loss, or a function as for `Metric`. A name is also the key in
        the logs.

    Raises
    ------
    ValueError
        For None or an unknown name.
    """
    if isinstance(identifier, Metric):
        return identifier
    function = registry.resolve(identifier, _TABLE, "metric")
    if function is None:
        raise ValueError("A metric must be a name or a function. Received: None")
    direction = None
    if function in losses.FUNCTIONS.values():
        direction = "down"
    elif function in _ACCURACIES.values():
        direction = "up"
    name = identifier if isinstance(identifier, str) else None
    return Metric(function, name, direction)


def get_all(given: Any) -> list[Metric]:
    """Return the metrics of a list, or none for None; names must differ."""
    if given is None:
        return []
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"`metrics` must be a list. Received: metrics={given!r}")
    found = [get(metric) for metric in given]
    names = ["loss", *(metric.name for metric in found)]
    if len(set(names)) < len(names):
        raise ValueError(
            "`metrics` must have names of their own, and not 'loss'. "
            f"Received: {names[1:]}"
        )
    return found


def deserialize(config: Mapping[str, Any]) -> Metric:
    """Return the metric that `Metric.get_config` described."""
    metric = get(config["function"])
    metric.name = str(config["name"])
    return metric

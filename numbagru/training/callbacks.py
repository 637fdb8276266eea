"""Callbacks: what `fit` calls between its steps."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

from numbagru.registry import finite_number
from numbagru.training.data import non_negative_int

Logs = dict[str, float]


class Callback:
    """Base of all callbacks; override the methods of interest.

    `model` is the model in training, `params` a dict with "epochs", "steps" (batches of
    an epoch) and "verbose". `model.stop_training = True` ends the training after the
    running batch.
    """

    model: Any = None
    params: dict[str, Any] | None = None

    def set_model(self, model: Any) -> None:
        """Remember the model."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Remember what the training is about."""
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Run before the first epoch."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Run after the last epoch, with its logs."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Run before each epoch; `epoch` counts from 0."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Run after each epoch and its validation."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Run before each batch; `batch` counts from 0 in each epoch."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Run after each batch; the logs are means over the epoch so far."""


class CallbackList(Callback):
    """Several callbacks as one, in their order."""

    def __init__(self, callbacks: Iterable[Callback]):
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    "`callbacks` must hold instances of `numbagru.callbacks.Callback`. "
                    f"Received: {callback!r}"
                )

    def set_model(self, model):  # noqa: D102
        self._each("set_model", model)

    def set_params(self, params):  # noqa: D102
        self._each("set_params", params)

    def on_train_begin(self, logs=None):  # noqa: D102
        self._each("on_train_begin", logs)

    def on_train_end(self, logs=None):  # noqa: D102
        self._each("on_train_end", logs)

    def on_epoch_begin(self, epoch, logs=None):  # noqa: D102
        self._each("on_epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch, logs=None):  # noqa: D102
        self._each("on_epoch_end", epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):  # noqa: D102
        self._each("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):  # noqa: D102
        self._each("on_train_batch_end", batch, logs)

    def _each(self, hook, *arguments):
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)


class History(Callback):
    """What `fit` returns: `epoch`, a list, and `history`, a list for each log."""

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}

    def on_train_begin(self, logs=None):
        """Start empty."""
        self.epoch, self.history = [], {}

    def on_epoch_end(self, epoch, logs=None):
        """Append the logs."""
        self.epoch.append(epoch)
        for key, value in (logs or {}).items():
            self.history.setdefault(key, []).append(value)


class EarlyStopping(Callback):
    """Stop when a log has not improved for a while.

    Parameters
    ----------
    monitor : str
        The log to watch. Default "val_loss".
    min_delta : float
        A smaller change is no improvement. Default 0.
    patience : int
        How many epochs without improvement to bear. Default 0.
    verbose : {0, 1}
        1 writes a line when it acts. Default 0.
    mode : {"auto", "min", "max"}
        Which way is better; "auto" knows it for losses and for metrics by name.
    baseline : float, optional
        Stop also when the log has not become better than this.
    restore_best_weights : bool
        Whether to end with the weights of the best epoch. Default False.
    start_from_epoch : int
        Epochs that are not watched. Default 0.

    Raises
    ------
    ValueError
        For values out of range; in training, if "auto" does not know the direction.

    Notes
    -----
    As in Keras 3, the first epoch (number 0) never stops the training, and a log that
    does not exist gives a warning.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ):
        if mode not in ("auto", "min", "max"):
            raise ValueError(
                f"`mode` must be 'auto', 'min' or 'max'. Received: mode={mode!r}"
            )
        self.monitor = monitor
        self.min_delta = abs(finite_number(min_delta, "min_delta"))
        self.patience = non_negative_int(patience, "patience")
        self.verbose = verbose
        self.mode = mode
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = non_negative_int(start_from_epoch, "start_from_epoch")
        self.on_train_begin()

    def on_train_begin(self, logs=None):
        """Start anew, so that one instance serves several trainings."""
        self.wait = 0
        self.stopped_epoch = 0
        self.best: float | None = None
        self.best_epoch = 0
        self.best_weights = None

    def on_epoch_end(self, epoch, logs=None):
        """Compare with the best epoch."""
        current = (logs or {}).get(self.monitor)
        if current is None:
            warnings.warn(
                f"EarlyStopping watches '{self.monitor}', which is not there. "
                f"Available: {', '.join(logs or {})}",
                stacklevel=2,
            )
            return
        if epoch < self.start_from_epoch:
            return
        if self.restore_best_weights and self.best_weights is None:
            self._remember(epoch)
        self.wait += 1
        if self._better(current, self.best):
            self.best = current
            self._remember(epoch)
            if self._better(current, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Give the model its best weights back, if wanted."""
        if self.stopped_epoch > 0:
            self._say(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self.restore_best_weights and self.best_weights is not None:
            self._say(f"Restoring the weights of epoch {self.best_epoch + 1}")
            self.model.set_weights(self.best_weights)

    def _remember(self, epoch):
        self.best_epoch = epoch
        if self.restore_best_weights:
            self.best_weights = self.model.get_weights()

    def _better(self, value, reference):
        sign = 1 if self._direction() == "min" else -1
        if reference is None:
            return True
        return sign * value + self.min_delta < sign * reference

    def _direction(self):
        if self.mode != "auto":
            return self.mode
        name = self.monitor.removeprefix("val_")
        directions = {"loss": "down"}
        directions |= {metric.name: metric.direction for metric in self.model.metrics}
        known = {"down": "min", "up": "max"}.get(directions.get(name))
        if known is None:
            raise ValueError(
                f"Whether a small or a large '{self.monitor}' is better cannot be "
                "told from its name. Pass `mode='min'` or `mode='max'`"
            )
        return known

    def _say(self, text):
        if self.verbose:
            sys.stdout.write(text + "\n")


class Progress(Callback):
    """Shows the training: a tqdm bar, or one line for each epoch without tqdm.

    Parameters
    ----------
    verbose : {1, 2}
        2 writes the lines even when tqdm is installed.
    """

    def __init__(self, verbose: int = 1):
        self.verbose = verbose
        self._bar: Any = None

    def on_train_begin(self, logs=None):
        """Open the bar."""
        if self.verbose == 1:
            self._bar = _tqdm(self.params["epochs"] * self.params["steps"])

    def on_epoch_begin(self, epoch, logs=None):
        """Name the epoch."""
        if self._bar is not None:
            steps = self.params["steps"]
            self._bar.set_description(f"Epoch {epoch + 1}/{self.params['epochs']}")
            self._bar.update(epoch * steps - self._bar.n)

    def on_train_batch_end(self, batch, logs=None):
        """Move the bar by one batch."""
        if self._bar is not None:
            self._bar.update(1)

    def on_epoch_end(self, epoch, logs=None):
        """Show the logs."""
        shown = {key: f"{value:.4g}" for key, value in (logs or {}).items()}
        if self._bar is not None:
            self._bar.set_postfix(shown)
            return
        parts = [f"Epoch {epoch + 1}/{self.params['epochs']}"]
        parts += [f"{key}: {value}" for key, value in shown.items()]
        sys.stdout.write(" - ".join(parts) + "\n")

    def close(self) -> None:
        """Close the bar, also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _tqdm(total: int) -> Any:
    """Return a bar on standard output, or None if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, file=sys.stdout, unit="batch")

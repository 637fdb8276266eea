"""The training loop: compile, fit, evaluate, predict.

`_train_step` is the whole of training: forward, loss, backward, update.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numbagru.layers.base import Layer
from numbagru.random import check_seed, draw_seed
from numbagru.registry import finite_number
from numbagru.training import losses, optimizers
from numbagru.training.callbacks import Callback, CallbackList, History, Progress
from numbagru.training.data import (
    Data,
    checked,
    non_negative_int,
    positive_int,
    require_rows,
    validation_tuple,
)
from numbagru.training.metrics import Metric, Totals, get_all

DEFAULT_BATCH_SIZE = 32


class Trainer(Layer):
    """A layer that trains itself on arrays; `Sequential` is one."""

    optimizer: optimizers.Optimizer | None = None
    loss: losses.Loss | None = None
    history: History | None = None
    stop_training = False

    def compile(
        self, optimizer: Any = "adam", loss: Any = None, metrics: Any = None
    ) -> None:
        """Choose how to train.

        Parameters
        ----------
        optimizer : str, dict or Optimizer
            Default "adam" (Keras: "rmsprop").
        loss : str, dict or Loss
            As for `losses.get`; needed.
        metrics : list of str or callable, optional
            As for `metrics.get`; they are means over all rows without the weights.

        Raises
        ------
        ValueError
            For what is not an optimizer, a loss or a metric.
        """
        chosen = optimizers.get(optimizer), losses.trainable_loss(loss)
        self._metrics = get_all(metrics)
        self.optimizer, self.loss = chosen

    @property
    def compiled(self) -> bool:
        """Whether `compile` has been called."""
        return self.loss is not None

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of `compile`."""
        return list(self._metrics) if self.compiled else []

    def fit(
        self,
        x: Any,
        y: Any,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        initial_epoch: int = 0,
        seed: int | None = None,
    ) -> History:
        """Train for some epochs.

        Parameters
        ----------
        x : array_like
            Inputs, rows first.
        y : array_like
            Targets, as many rows.
        batch_size : int, optional
            Rows of one step. Default 32.
        epochs : int, default 1
            Number of the epoch to stop at, counted from 0 whatever `initial_epoch` is.
        verbose : {"auto", 0, 1, 2}
            0 shows nothing, 1 ("auto") a bar if tqdm is installed, 2 a line per epoch.
        callbacks : list of Callback, optional
            Called in their order.
        validation_split : float, default 0
            Fraction of the rows, in [0, 1), that is cut off at the end, before any
            shuffling, and used for validation.
        validation_data : tuple, optional
            `(x, y)`, `(x, y, sample_weight)` or `(x, y, sample_weight, mask)`; wins
            over `validation_split`.
        shuffle : bool, default True
            Whether each epoch takes the rows in another order.
        sample_weight : array_like, optional
            Factors of the loss, (B,) or (B, T).
        mask : array_like of bool, optional
            Steps to use, (B, T), as in a call of the model.
        initial_epoch : int, default 0
            Number of the first epoch. With the same `seed`, epochs 0 to n in one run
            or in several are the same bit for bit.
        seed : int, optional
            For the shuffling. None draws one from Python's `random`.

        Returns
        -------
        History
            `history["loss"]` and so on, one value per epoch.

        Raises
        ------
        RuntimeError
            If the model is not compiled.
        ValueError, TypeError
            For arguments or arrays that do not fit; nothing has changed then.
        FloatingPointError
            When the loss or an update is not finite. The weights are those before
            that step.
        """
        self._require_compiled("fit")
        batch_size = _batch_size(batch_size)
        epochs = non_negative_int(epochs, "epochs")
        initial_epoch = non_negative_int(initial_epoch, "initial_epoch")
        seed = check_seed(draw_seed() if seed is None else seed)
        data = require_rows(self._data(x, y, sample_weight, mask))
        data, validation = self._split(data, validation_split, validation_data)
        history, progress, callbacks = self._callbacks(
            callbacks, verbose, epochs=epochs, steps=-(-data.rows // batch_size)
        )
        self._prepare(batch_size, *filter(None, (data, validation)))

        self.history = history
        self.stop_training = False
        try:
            callbacks.on_train_begin()
            logs = None
            for epoch in range(initial_epoch, epochs):
                callbacks.on_epoch_begin(epoch)
                order = _order(data.rows, (seed, epoch)) if shuffle else None
                logs = self._train_epoch(epoch, data, batch_size, order, callbacks)
                if validation is not None:
                    measured = self._evaluate(validation, batch_size)
                    logs |= {f"val_{key}": value for key, value in measured.items()}
                callbacks.on_epoch_end(epoch, logs)
                if self.stop_training:
                    break
            callbacks.on_train_end(logs)
        finally:
            progress.close()
        return history

    def _train_epoch(self, epoch, data, batch_size, order, callbacks):
        totals = Totals(self.metrics)
        for step, batch in enumerate(data.batches(batch_size, order)):
            callbacks.on_train_batch_begin(step)
            try:
                totals.add(batch, *self._train_step(batch))
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error} at epoch {epoch + 1}, batch {step + 1}. The weights are "
                    "those before this batch. Look for NaN or very large values in the "
                    "data, or lower the learning rate, or clip the gradients "
                    "(`clipnorm`)."
                ) from None
            callbacks.on_train_batch_end(step, totals.logs())
            if self.stop_training:
                break
        return totals.logs()

    # Overflow needs no warning of its own: what is not finite raises.
    @np.errstate(over="ignore", invalid="ignore")
    def _train_step(self, batch: Data) -> tuple[Any, ...]:
        y_pred, pullback = self.vjp(batch.x, training=True, mask=batch.mask)
        mask = self.compute_mask(batch.x, batch.mask)
        loss, d_pred = self.loss.value_and_gradient(
            batch.y, y_pred, batch.sample_weight, mask
        )
        loss = self._with_penalties(loss)
        if not np.isfinite(loss):
            raise FloatingPointError("The loss is not finite")
        gradients = pullback(d_pred, include_losses=True).weights
        trained = [
            (variable, gradient)
            for variable, gradient in zip(self.weights, gradients, strict=True)
            if variable.trainable and self.trainable
        ]
        self.optimizer.apply([g for _, g in trained], [v for v, _ in trained])
        return loss, y_pred, mask

    def evaluate(
        self,
        x: Any,
        y: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        *,
        sample_weight: Any = None,
        mask: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Return the loss, or `[loss, *metrics]` if there are metrics.

        Parameters
        ----------
        x, y, sample_weight, mask
            As for `fit`.
        batch_size : int, optional
            Default 32.
        verbose : optional
            Taken for Keras' sake; nothing is shown.
        return_dict : bool, default False
            Whether to return a dict by name.

        Raises
        ------
        RuntimeError
            If the model is not compiled.
        ValueError, TypeError
            For arrays that do not fit.
        """
        self._require_compiled("evaluate")
        batch_size = _batch_size(batch_size)
        data = require_rows(self._data(x, y, sample_weight, mask))
        self._prepare(batch_size, data)
        return _flat(self._evaluate(data, batch_size), return_dict)

    def _evaluate(self, data, batch_size):
        totals = Totals(self.metrics)
        for batch in data.batches(batch_size):
            y_pred = self(batch.x, training=False, mask=batch.mask)
            mask = self.compute_mask(batch.x, batch.mask)
            loss = self.loss(batch.y, y_pred, batch.sample_weight, mask)
            totals.add(batch, self._with_penalties(loss), y_pred, mask)
        return totals.logs()

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        *,
        mask: Any = None,
    ) -> Any:
        """Return the outputs for all rows, computed in batches.

        Parameters
        ----------
        x : array_like
            Inputs, rows first; zero rows are fine.
        batch_size : int, optional
            Default 32.
        verbose : optional
            Taken for Keras' sake; nothing is shown.
        mask : array_like of bool, optional
            Steps to use, (B, T).

        Raises
        ------
        ValueError, TypeError
            For arrays that do not fit.
        """
        batch_size = _batch_size(batch_size)
        data = self._data(x, mask=mask)
        self._require_one_size(batch_size, data)
        outputs = [self(b.x, mask=b.mask) for b in data.batches(batch_size)]
        if isinstance(outputs[0], np.ndarray):
            return np.concatenate(outputs)
        return type(outputs[0])(map(np.concatenate, zip(*outputs, strict=True)))

    def train_on_batch(
        self,
        x: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        mask: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Take one step on all the rows; parameters and errors as for `fit`.

        Returns
        -------
        float, list or dict
            The loss before the step, as `evaluate` returns it.
        """
        self._require_compiled("train_on_batch")
        data = require_rows(self._data(x, y, sample_weight, mask))
        self._prepare(data.rows, data)
        totals = Totals(self.metrics)
        totals.add(data, *self._train_step(data))
        return _flat(totals.logs(), return_dict)

    def predict_on_batch(self, x: Any, *, mask: Any = None) -> Any:
        """Return the outputs for all rows, computed in one batch."""
        return self.predict(x, max(len(x), 1), mask=mask)

    def reset_states(self) -> None:
        """Set the states of all stateful layers to zero."""
        for layer in self._stateful_layers():
            layer.reset_states()

    # ------------------------------------------------------------------- checks

    def _require_compiled(self, method):
        if not self.compiled:
            raise RuntimeError(
                f"Call `model.compile(optimizer, loss)` before `{method}`."
            )

    def _data(self, x, y=None, sample_weight=None, mask=None) -> Data:
        return checked(self.dtype, x, y, sample_weight, mask)

    def _split(self, data, validation_split, validation_data):
        fraction = finite_number(
            validation_split,
            "validation_split",
            "a float in [0, 1)",
            lambda v: 0 <= v < 1,
        )
        if validation_data is not None:
            return data, validation_tuple(self.dtype, validation_data)
        return data.split(fraction) if fraction else (data, None)

    def _callbacks(self, callbacks, verbose, **params):
        if verbose not in ("auto", 0, 1, 2):
            raise ValueError(
                f"`verbose` must be 'auto', 0, 1 or 2. Received: verbose={verbose!r}"
            )
        verbose = 1 if verbose == "auto" else int(verbose)
        if isinstance(callbacks, Callback):
            callbacks = [callbacks]
        history, progress = History(), Progress(verbose)
        group = [*(callbacks or ()), history, *([progress] if verbose else ())]
        every = CallbackList(group)
        every.set_params({**params, "verbose": verbose})
        every.set_model(self)
        return history, progress, every

    def _prepare(self, batch_size: int, *runs: Data) -> None:
        """Build if needed, and try shapes of rows, targets and weights together."""
        if any(getattr(layer, "time_major", False) for layer in layers_of(self)):
            raise ValueError(
                "Batches are rows of the first axis: a model with a `time_major=True` "
                "layer can be called, not trained or evaluated in batches."
            )
        self._require_one_size(batch_size, *runs)
        self._require_features(self._build_shape or runs[0].x.shape, *runs)
        if not self.built:
            self._build((min(batch_size, runs[0].rows), *runs[0].x.shape[1:]))
        for data in runs:
            shape = self.compute_output_shape((1, *data.x.shape[1:]))
            if any(not isinstance(n, int) for n in shape):
                raise ValueError(
                    "Training needs a model with one output. Use `return_state=False` "
                    f"in the last layer. Received: output shapes {shape}"
                )
            row = data.take(slice(0, 1))
            self.loss(
                row.y,
                np.ones(shape, self.dtype),
                row.sample_weight,
                self.compute_mask(row.x, row.mask),
            )

    def _require_features(self, built_for, *runs):
        for x in (data.x for data in runs):
            if x.ndim != len(built_for) or x.shape[-1] != built_for[-1]:
                raise ValueError(
                    f"`x` must have {len(built_for)} axes and {built_for[-1]} features "
                    f"in the last one. Received: x.shape={x.shape}"
                )

    def _require_one_size(self, batch_size, *runs):
        if not self._stateful_layers():
            return
        sizes = {b.rows for data in runs for b in data.batches(batch_size)}
        if len(sizes) > 1:
            raise ValueError(
                "A stateful model needs batches of one size, in validation too: "
                "`batch_size` must divide the numbers of rows. Received: "
                f"batch_size={batch_size}, batches of {sorted(sizes)} rows"
            )

    def _stateful_layers(self):
        return [x for x in layers_of(self) if getattr(x, "stateful", False)]

    def _with_penalties(self, loss):
        return np.sum(np.asarray([loss, *self.losses], dtype=loss.dtype))


def _flat(logs, return_dict):
    if return_dict:
        return logs
    values = list(logs.values())
    return values if len(values) > 1 else values[0]


def _order(rows: int, seed: tuple[int, int]) -> np.ndarray:
    """Return the order of the rows in one epoch; depends on nothing but the seed."""
    return np.random.default_rng(seed).permutation(rows)


def _batch_size(given: int | None) -> int:
    return DEFAULT_BATCH_SIZE if given is None else positive_int(given, "batch_size")


def layers_of(layer: Layer) -> list[Layer]:
    """Return a layer and all below it."""
    return [layer, *(found for part in layer.sublayers for found in layers_of(part))]

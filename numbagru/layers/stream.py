"""A GRU layer one step at a time, everything but the new input prepared before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from numbagru import functional
from numbagru.layers.checks import read_state, row_mask
from numbagru.registry import refuse_device


class Stream:
    """What `GRU.stream` returns: sequences that arrive one step after the other.

    The outputs have the bits of one call with all steps. A stream follows the weights
    of its layer, has states of its own and belongs to one thread at a time.

    Attributes
    ----------
    batch_size : int
        Sequences side by side.
    """

    def __init__(self, layer: Any, batch_size: int, initial_state: Any = None) -> None:
        if not layer.built:
            raise ValueError(
                f"Layer '{layer.name}' is not built: build or call it before `stream`."
            )
        if layer.config.go_backwards:
            raise ValueError(
                f"Layer '{layer.name}' has go_backwards=True: it starts with the last "
                "step, which a stream does not have yet. Make the layer with "
                "go_backwards=False."
            )
        if isinstance(batch_size, (bool, np.bool_)) or not isinstance(
            batch_size, (int, np.integer)
        ):
            raise TypeError(
                "`batch_size` must be an integer, the number of sequences side by "
                f"side. Received: batch_size={batch_size!r}"
            )
        if batch_size < 1:
            raise ValueError(
                "`batch_size` must be at least 1, the number of sequences side by "
                f"side. Received: batch_size={batch_size}"
            )
        self.batch_size = int(batch_size)
        self._cell = layer.cell
        self._config = replace(
            layer.config,
            return_sequences=False,
            return_state=False,
            time_major=False,
            stateful=False,
        )
        dtype, units = np.dtype(layer.dtype), layer.config.units
        self._dtype = dtype
        self._shape = (self.batch_size, layer.cell.kernel.shape[0])
        self._x = np.empty(self._shape, dtype)
        self._sequence = self._x[:, None]
        self._output = np.empty((self.batch_size, units), dtype)
        self._state = np.zeros((self.batch_size, units), dtype)
        if initial_state is not None:
            given = read_state(initial_state, [self._state.shape])
            self._state[...] = given[0]
        self._weights: Any = None
        self._step: Any = None

    def push(self, x_t: np.ndarray) -> np.ndarray:
        """Take the next step of all sequences.

        Parameters
        ----------
        x_t : ndarray (batch_size, features)
            Of the layer's dtype.

        Returns
        -------
        ndarray (batch_size, units)
            The output, in memory that the next `push` uses again: copy what you keep.

        Raises
        ------
        TypeError
            If `x_t` is not an array of the layer's dtype.
        ValueError
            If its shape does not fit.
        """
        if (
            type(x_t) is not np.ndarray
            or x_t.dtype is not self._dtype
            or x_t.shape != self._shape
        ):
            x_t = self._checked(x_t)
        self._x[...] = x_t
        if self._cell._packed is not self._weights or self._weights is None:
            self._prepare()
        self._step()
        return self._output

    @property
    def state(self) -> np.ndarray:
        """A copy of the states after the last `push`, shape (batch_size, units)."""
        return self._state.copy()

    def reset(self, rows: Any = None) -> None:
        """Start again from zeros.

        Parameters
        ----------
        rows : array_like of bool (batch_size,), optional
            The sequences that start again; all by default.

        Raises
        ------
        ValueError
            If `rows` is anything else.
        """
        if rows is None:
            self._state[...] = 0
        else:
            self._state[row_mask(rows, self.batch_size)] = 0

    def _checked(self, x_t: Any) -> np.ndarray:
        refuse_device(x_t, "x_t")
        if not isinstance(x_t, np.ndarray) or x_t.dtype != self._dtype:
            kind = getattr(x_t, "dtype", type(x_t).__name__)
            raise TypeError(
                f"`x_t` must be an array of dtype {self._dtype}, that of the layer. "
                f"Received: {kind}. Convert it first: nothing is cast in a stream."
            )
        if x_t.shape != self._shape:
            raise ValueError(
                f"`x_t` must have the shape (batch_size, features) = {self._shape}, "
                f"one step of each sequence. Received: shape={x_t.shape}"
            )
        return x_t

    def _prepare(self) -> None:
        weights = self._cell.packed
        inference = weights.inference(self._config)
        if inference is None:
            self._step = self._general_step
        else:
            self._step = inference.stepper(self._sequence, self._state, self._output)
        self._weights = weights

    def _general_step(self) -> None:
        output, _, state = functional.gru(
            self._config, self._weights, self._sequence, self._state
        )
        self._output[...] = output
        self._state[...] = state

    def __repr__(self) -> str:
        """Show the shape of a step."""
        return f"<Stream of {self._shape[1]} features, batch_size={self.batch_size}>"

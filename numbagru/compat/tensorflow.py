"""Where the methods of tf.keras layers have other arguments than those of Keras 3."""

from __future__ import annotations

from typing import Any

import numpy as np


class CallOrder:
    """Before a recurrent layer: ``layer(inputs, mask, training, initial_state)``."""

    def __call__(
        self,
        inputs: Any,
        mask: Any = None,
        training: bool | None = None,
        initial_state: Any = None,
        *,
        lengths: Any = None,
    ) -> Any:
        """Run along time; arguments as in `numbagru.RNN`, in the order of tf.keras."""
        return super().__call__(inputs, initial_state, mask, training, lengths=lengths)

    def get_initial_state(self, inputs: Any) -> list[Any]:
        """Return the zero state, as a list, for the rows of `inputs`."""
        return super().get_initial_state(np.shape(inputs)[self._row_axis])


class TrainingFirst:
    """Before `Bidirectional`: ``layer(inputs, training, mask, initial_state)``."""

    def __call__(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        initial_state: Any = None,
        *,
        lengths: Any = None,
    ) -> Any:
        """Run both layers; arguments as in `numbagru.Bidirectional`."""
        return super().__call__(inputs, initial_state, mask, training, lengths=lengths)


class CellState:
    """Before a cell: its initial state, asked for by inputs or by batch size."""

    def get_initial_state(
        self, inputs: Any = None, batch_size: int | None = None, dtype: Any = None
    ) -> Any:
        """Return the zero state: one array for a `GRUCell`, a tuple for a stack.

        Parameters
        ----------
        inputs : array_like, optional
            Gives `batch_size`, its first axis, and `dtype`.
        batch_size : int, optional
            Needed without `inputs`.
        dtype : str, optional
            By default that of the cell.

        Raises
        ------
        ValueError
            If the batch size is missing.
        """
        if inputs is not None:
            inputs = np.asarray(inputs)
            batch_size, dtype = inputs.shape[0], inputs.dtype
        if batch_size is None:
            raise ValueError(
                "`batch_size` cannot be None while constructing the initial state; "
                "pass it, or `inputs`. Received: batch_size=None"
            )
        states = super().get_initial_state(batch_size)
        if dtype is not None:
            states = [np.asarray(state, dtype) for state in states]
        return self._arranged(states)

    def _arranged(self, states: list[np.ndarray]) -> Any:
        return states[0]


class StackState(CellState):
    """Before `StackedRNNCells`."""

    def _arranged(self, states: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        return tuple(states)

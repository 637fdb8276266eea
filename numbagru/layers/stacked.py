"""Several cells that step together as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numbagru.layers import saving
from numbagru.layers.base import Grads, Layer
from numbagru.layers.cellular import (
    check_cell,
    output_size_of,
    step,
    step_vjp,
    zero_state_of,
)
from numbagru.layers.structure import flatten, flatten_cotangent, pack_like


@saving.register()
class StackedRNNCells(Layer):
    """A stack of cells that behaves as one cell: each feeds the next at every step.

    Parameters
    ----------
    cells : sequence of cells
        From the input to the output.
    name, dtype, trainable
        As for every `Layer`.

    Raises
    ------
    ValueError
        If there is no cell, or one lacks `call` or `state_size`.

    Examples
    --------
    >>> import numpy as np, numbagru as ng
    >>> stack = ng.StackedRNNCells([ng.GRUCell(8), ng.GRUCell(4)])
    >>> ng.RNN(stack)(np.ones((2, 5, 3))).shape
    (2, 4)
    """

    def __init__(self, cells: Sequence[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not cells:
            raise ValueError("`cells` must hold at least one cell. Received: cells=[]")
        for cell in cells:
            check_cell(cell, "All cells", "cell")
        self.cells = list(cells)

    @property
    def state_size(self) -> list[Any]:
        """The `state_size` of each cell."""
        return [cell.state_size for cell in self.cells]

    @property
    def output_size(self) -> int:
        """Width of the output of the last cell."""
        return output_size_of(self.cells[-1])

    def build(self, input_shape: Any) -> None:
        """Build each cell for the output of the one below."""
        for cell in self.cells:
            if isinstance(cell, Layer):
                self._build_sublayer(cell, input_shape)
            input_shape = (input_shape[0], output_size_of(cell))
        self.built = True

    def get_initial_state(self, batch_size: int | None = None) -> list[Any]:
        """Return the initial state of each cell, nested as the cells give it."""
        return [zero_state_of(cell, batch_size, self.dtype) for cell in self.cells]

    def _prepared(self, inputs: Any, kwargs: dict[str, Any]) -> tuple[Any, dict]:
        """Build, and leave it to the cells to cast."""
        if not self.built:
            self._build(np.shape(inputs))
        return inputs, kwargs

    def call(
        self, inputs: Any, states: Sequence[Any], training: bool | None = False
    ) -> tuple[np.ndarray, list[Any]]:
        """Take one step with all cells.

        Parameters
        ----------
        inputs : array_like
            Shape `(batch, features)`.
        states : list
            One entry for each cell: an array, or a list of the cell's arrays.
        training : bool, default False
            Handed to the cells that take it.

        Returns
        -------
        output : ndarray
            Of the last cell.
        states : list
            Nested like `states`.
        """
        finals = []
        for cell, state in zip(self.cells, states, strict=True):
            inputs, new = step(cell, inputs, flatten(state), training)
            finals.append(pack_like(state, new))
        return inputs, finals

    def _vjp(
        self, inputs: Any, states: Sequence[Any], training: bool | None = False
    ) -> tuple[Any, Callable]:
        finals, pulls = [], []
        for cell, state in zip(self.cells, states, strict=True):
            (inputs, new), pull = step_vjp(cell, inputs, flatten(state), training)
            finals.append(pack_like(state, new))
            pulls.append(pull)

        out = inputs, finals

        def pullback(cotangent: Any, include_losses: bool) -> Grads:
            d_inputs, *d_states = flatten_cotangent(out, cotangent)
            d_initial, total = [], {}
            for cell, pull, final in zip(
                reversed(self.cells), reversed(pulls), reversed(finals), strict=True
            ):
                first = len(d_states) - len(flatten(final))
                g = pull(d_inputs, d_states[first:])
                del d_states[first:]
                d_inputs = g.inputs
                d_initial.append(pack_like(final, flatten(g.initial_state)))
                for variable, gradient in zip(
                    getattr(cell, "weights", []), g.weights, strict=True
                ):
                    total[id(variable)] = total.get(id(variable), 0) + gradient
            weights = [total[id(variable)] for variable in self.weights]
            return Grads(d_inputs, d_initial[::-1], weights)

        return out, pullback

    def get_config(self) -> dict[str, Any]:
        """Return the base configuration and that of each cell, under 'cells'."""
        cells = [self._inner_saved(cell) for cell in self.cells]
        return {**super().get_config(), "cells": cells}

    def to_keras_config(self, flavor: str = "keras3") -> dict[str, Any]:
        """Return what Keras of `flavor` ("keras3" or "tf_keras") saves."""
        cells = [self._inner_keras(cell, flavor) for cell in self.cells]
        return {**self._base_config(flavor), "cells": cells}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> StackedRNNCells:
        """Make a stack from `get_config`; `custom_objects` gives classes by name."""
        config = dict(config)
        cells = [cls._inner_loaded(c, custom_objects) for c in config.pop("cells")]
        return cls(cells, **config)

"""Any cell run along time, one Python call at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numbagru.config import SequenceConfig
from numbagru.layers.base import Layer
from numbagru.layers.cell import GRUCell
from numbagru.layers.cellular import (
    output_size_of,
    step,
    step_vjp,
    zero_state_of,
)
from numbagru.layers.checks import check_rank, read_state
from numbagru.layers.stacked import StackedRNNCells
from numbagru.layers.structure import add_gradients, flatten, pack_like
from numbagru.layers.variable import Variable


class _Step(NamedTuple):
    """What the way back needs of one step."""

    t: int
    keep: np.ndarray | None
    pull: Callable | None


class Loop:
    """A user's cell, or a stack that holds one, along time.

    The same interface as `Chain`.

    Parameters
    ----------
    cell : object
        See `numbagru.layers.cellular`.
    config : SequenceConfig
        The arguments of the layer.
    name, dtype : str
        Of the layer.
    """

    def __init__(
        self, cell: Any, config: SequenceConfig, name: str, dtype: str
    ) -> None:
        self.cell = cell
        self.config = config
        self.name = name
        self.dtype = dtype
        self._stack = cell.cells if isinstance(cell, StackedRNNCells) else [cell]
        # Keras takes the first state, of the last cell of a stack, for the output.
        sizes = [len(flatten(c.state_size)) for c in self._stack]
        self._as_output = sum(sizes[:-1])

    def check_inputs(self, x: Any) -> None:
        """Raise ValueError unless `x` has at least batch, time and features."""
        check_rank(x, 3, self.name, at_least=True)

    def read_state(self, given: Any, rows: int) -> list[Any]:
        """Return `given` nested as it came; one array is a state of one."""
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        shapes = [(rows, size) for size in flatten(self.cell.state_size)]
        return read_state(given, shapes, nesting=given)

    def zero_state(self, rows: int | None) -> list[Any]:
        """Return what the cell starts from, as a list."""
        state = zero_state_of(self.cell, rows, self.dtype)
        return list(state) if isinstance(state, (list, tuple)) else [state]

    @property
    def weights(self) -> list[Variable]:
        """The weights of the cell; none for one that is no layer."""
        return self.cell.weights if isinstance(self.cell, Layer) else []

    def draw(self, x: Any, training: bool | None) -> None:
        """Let GRU cells draw the dropout masks that they keep for the call."""
        features = x.shape[-1]
        for cell in self._stack:
            if isinstance(cell, GRUCell):
                cell._hold_masks(self._rows(x), features, training)
            features = output_size_of(cell)

    def explain(self, sequences: Any) -> str:
        """Say that no kernel runs, and why."""
        return (
            f"python_loop: {type(self.cell).__name__} is called at each step\n"
            "  not the kernels: they run GRUCell, and stacks of it, only"
        )

    def forward(
        self,
        x: Any,
        states: list,
        mask: Any,
        masks: None,
        training: bool | None,
        from_zeros: bool,
    ) -> tuple:
        """Return `(last_output, outputs, states)`."""

        def take(x_t: Any, states: list) -> tuple:
            return step(self.cell, x_t, states, training), None

        return self._walk(x, states, mask, take)[0]

    def vjp(
        self,
        x: Any,
        states: list,
        mask: Any,
        masks: None,
        training: bool | None,
        from_zeros: bool,
    ) -> tuple:
        """Return `(last_output, outputs, states)` and their pullback; see `Chain`."""

        def take(x_t: Any, states: list) -> tuple:
            return step_vjp(self.cell, x_t, states, training)

        results, steps = self._walk(x, states, mask, take)
        shape, finals, i_out = np.shape(x), flatten(results[2]), self._as_output

        def pullback(d_last: Any, d_outputs: Any, d_states: list) -> tuple:
            d_x = np.zeros(shape, self.dtype)
            d_x_steps = self._by_step(d_x)
            d_out_steps = None if d_outputs is None else self._by_step(d_outputs)
            d_weights = [np.zeros_like(v.value) for v in self.weights]
            d_states = [
                np.zeros_like(y) if d is None else d
                for y, d in zip(finals, d_states, strict=True)
            ]
            d_previous = d_last
            for i in reversed(range(len(steps))):
                t, keep, pull = steps[i]
                d_out = None if d_out_steps is None else d_out_steps[i]
                d_out, d_previous = _split(keep, add_gradients(d_out, d_previous))
                halves = [_split(keep, d) for d in d_states]
                g = pull(d_out, [new for new, _ in halves])
                d_x_steps[t] = _blend(keep, g.inputs, 0)
                d_states = [
                    add_gradients(d, kept)
                    for d, (_, kept) in zip(
                        flatten(g.initial_state), halves, strict=True
                    )
                ]
                if self._repeats_state:
                    d_states[i_out] = add_gradients(d_states[i_out], d_previous)
                if self._repeats_state or self.config.zero_output_for_mask:
                    d_previous = None
                d_weights = [a + b for a, b in zip(d_weights, g.weights, strict=True)]
            if not steps:
                d_states[i_out] = add_gradients(d_states[i_out], d_last)
            return d_x, d_states, d_weights

        return results, pullback

    def _walk(self, x: Any, states: list, mask: Any, take: Callable) -> tuple:
        """Take all steps: `take(x_t, states) -> ((output, new_states), pull)`."""
        c = self.config
        x_steps = self._by_step(np.asarray(x))
        keeps = None if mask is None else self._by_step(np.asarray(mask))
        order = range(len(x_steps))
        output = np.zeros((self._rows(x), output_size_of(self.cell)), self.dtype)
        if not order:
            output = flatten(states)[self._as_output]
        outputs, steps = [], []
        for t in reversed(order) if c.go_backwards else order:
            keep = None if keeps is None else keeps[t]
            # What is masked is never read, not even to be thrown away.
            (new, new_states), pull = take(_blend(keep, x_steps[t], 0), states)
            steps.append(_Step(t, keep, pull))
            if self._repeats_state:
                output = flatten(states)[self._as_output]
            elif c.zero_output_for_mask:
                output = np.zeros_like(new)
            output = _blend(keep, new, output)
            states = list(
                pack_like(
                    states,
                    [
                        _blend(keep, a, b)
                        for a, b in zip(
                            flatten(new_states), flatten(states), strict=True
                        )
                    ],
                )
            )
            if c.return_sequences:
                outputs.append(output)
        for cell in self._stack:
            if isinstance(cell, GRUCell):
                cell.reset_dropout_mask()
                cell.reset_recurrent_dropout_mask()
        sequence = None
        if c.return_sequences:
            sequence = np.stack(outputs) if outputs else output[None][:0]
            sequence = self._by_step(sequence)
        return (output, sequence, states), steps

    @property
    def _repeats_state(self) -> bool:
        """Whether a masked step outputs the state instead of the previous output."""
        c = self.config
        return c.masked_output == "state" and not c.zero_output_for_mask

    def _by_step(self, array: np.ndarray) -> np.ndarray:
        """Swap rows and time unless time comes first; its own inverse."""
        return array if self.config.time_major else array.swapaxes(0, 1)

    def _rows(self, x: Any) -> int:
        return x.shape[1 if self.config.time_major else 0]


def _blend(keep: np.ndarray | None, new: Any, old: Any) -> Any:
    """Return `new` where the step counts, `old` where it is masked."""
    if keep is None:
        return new
    return np.where(keep.reshape(-1, *[1] * (np.ndim(new) - 1)), new, old)


def _split(keep: np.ndarray | None, gradient: Any) -> tuple[Any, Any]:
    """Return the parts of a gradient that belong to `new` and to `old` of `_blend`."""
    if keep is None or gradient is None:
        return gradient, None
    return _blend(keep, gradient, 0), _blend(~keep, gradient, 0)

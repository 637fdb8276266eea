"""The states that a stateful layer records from one call to the next."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbagru.config import SequenceConfig
from numbagru.layers.checks import real_array, row_mask
from numbagru.layers.structure import flatten, pack_like
from numbagru.layers.variable import Variable


class Stateful:
    """The part of `RNN` that keeps `states`: nested variables, None before a batch."""

    name: str
    path: str
    dtype: str
    config: SequenceConfig
    states: list[Any] | None
    _scan: Any

    def _record(self, states: list[Any]) -> None:
        if self.states is None:
            path = f"{self.path}/rnn_state"
            leaves = [
                Variable(s, name="rnn_state", path=path, dtype=self.dtype)
                for s in flatten(states)
            ]
            for variable in leaves:
                variable.trainable = False
            self.states = pack_like(states, leaves)
        else:
            for variable, state in zip(
                flatten(self.states), flatten(states), strict=True
            ):
                variable.assign(state)

    def get_initial_state(self, batch_size: int | None = None) -> list[Any]:
        """Return the state a call starts from by default, as a list.

        Raises
        ------
        ValueError
            If `batch_size` is missing.
        """
        return self._scan.zero_state(batch_size)

    def reset_state(self, states: Any = None, rows: Any = None) -> None:
        """Set the recorded state; see `reset_states`."""
        self.reset_states(states, rows)

    def reset_states(self, states: Any = None, rows: Any = None) -> None:
        """Set the recorded state of a stateful layer.

        Parameters
        ----------
        states : array_like or list, optional
            New state, or a list of one for each state of the cell; zeros by default.
        rows : array_like of bool, optional
            Shape `(batch,)`: the rows to set; all by default.

        Raises
        ------
        AttributeError
            If the layer is not stateful, and `states` or `rows` is given. (The
            tf_keras profiles: also without them.)
        ValueError
            If number or shape of the states does not fit, or the batch size is not
            known yet.
        """
        plan = self._planned_reset(states, rows)
        if plan is not None:
            self._record(plan)

    def _planned_reset(self, states: Any, rows: Any) -> list[Any] | None:
        """Return what `reset_states` is to record; None where there is nothing to."""
        asked = states is not None or rows is not None
        if not self.config.stateful:
            if asked or self.config.profile.strict_reset:
                raise AttributeError("Layer must be stateful.")
            return None
        if self.states is not None:
            old = pack_like(self.states, [v.value for v in flatten(self.states)])
        elif states is not None and rows is None:
            shape = np.shape(flatten(states)[0])
            old = self._scan.zero_state(shape[0] if shape else 0)
        elif asked or self.config.profile.strict_reset:
            raise ValueError(
                "If a RNN is stateful, it needs to know its batch size. Build or call "
                "the layer first, or pass `states` for all rows."
            )
        else:
            return None
        new = self._new_states(flatten(old), states)
        if rows is not None:
            chosen = row_mask(rows, flatten(old)[0].shape[0])[:, None]
            new = [
                np.where(chosen, n, o) for n, o in zip(new, flatten(old), strict=True)
            ]
        return pack_like(old, new)

    def _new_states(self, old: list[np.ndarray], states: Any) -> list[np.ndarray]:
        if states is None:
            return [np.zeros_like(state) for state in old]
        given = flatten(states)
        if len(given) != len(old):
            raise ValueError(
                f"Layer {self.name} expects {len(old)} states, but it received "
                f"{len(given)} state values. Input received: {states!r}"
            )
        new = [real_array("states", state, self.dtype) for state in given]
        for i, (value, state) in enumerate(zip(new, old, strict=True)):
            if value.shape != state.shape:
                raise ValueError(
                    f"State {i} is incompatible with layer {self.name}: expected "
                    f"shape={state.shape} but found shape={value.shape}"
                )
        return new

    def _check_recorded(self, rows: int) -> None:
        recorded = flatten(self.states)[0].shape[0]
        if rows != recorded:
            raise ValueError(
                "If an RNN is stateful, the batch size of the input sequences must be "
                "the same as the batch size of the initial state. \n"
                f"- Expected batch size: {recorded}\n- Received batch size: {rows}"
            )

    def _recorded_or(self, given: list[Any] | None, rows: int) -> list[Any]:
        """Return the state a stateful call starts from."""
        if self.states is None:
            self._record(self._scan.zero_state(rows))
        recorded = [variable.value for variable in flatten(self.states)]
        wins = self.config.profile.recorded_state_wins and any(map(np.any, recorded))
        if given is None or wins:
            return pack_like(self.states, recorded)
        return given

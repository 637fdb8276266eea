"""The layer that runs a cell along time: states, masks, dropout, what is returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from inspect import Parameter
from typing import Any, NamedTuple

import numpy as np

from numbagru import functional
from numbagru.config import SequenceConfig
from numbagru.layers import saving
from numbagru.layers.arguments import SEQUENCE, bind, configured
from numbagru.layers.base import Grads, Layer
from numbagru.layers.cellular import check_cell, output_size_of
from numbagru.layers.checks import read_mask, real_array
from numbagru.layers.dialects import from_dict, to_dict, to_own_dict
from numbagru.layers.fused import Chain, chain_configs, is_gru_cell
from numbagru.layers.lengths import TakesLengths
from numbagru.layers.stacked import StackedRNNCells
from numbagru.layers.stateful import Stateful
from numbagru.layers.stepwise import Loop
from numbagru.layers.structure import flatten, flatten_cotangent, pack_like, penalized


class _Start(NamedTuple):
    """A call whose arguments are checked and whose dropout masks are drawn."""

    x: Any
    states: list[Any]
    mask: Any
    masks: Any
    training: bool | None
    from_zeros: bool  # whether the states are zeros because there are none


@saving.register()
@configured(SEQUENCE, Parameter("cell", Parameter.POSITIONAL_OR_KEYWORD))
class RNN(Stateful, TakesLengths, Layer):
    """A cell, or a stack of cells, run along time.

    GRU cells run in the kernels; any other cell in a Python loop.

    Parameters
    ----------
    cell : cell or list of cells
        A `GRUCell`, a `StackedRNNCells`, or an object with ``call(x_t, states)`` that
        returns ``(output, new_states)``, and `state_size`, an integer or a list of
        them. Optional are `output_size`, `get_initial_state(batch_size)`, an argument
        `training` of `call`, and, for gradients, ``vjp(x_t, states)``, which returns
        what `Layer.vjp` returns. A list is stacked.
    {parameters}

    Raises
    ------
    ValueError
        If `cell` or an argument is not as above, or a keyword is unknown.

    Examples
    --------
    >>> import numpy as np, numbagru as ng
    >>> layer = ng.RNN([ng.GRUCell(8), ng.GRUCell(4)], return_sequences=True)
    >>> layer(np.ones((2, 5, 3))).shape
    (2, 5, 4)
    """

    config: SequenceConfig
    _stack_class = StackedRNNCells

    def __init__(self, cell: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(cell, (list, tuple)):
            cell = self._stack_class(cell)
        check_cell(cell, "Argument `cell`", "cell")
        self._set_up(cell, bind(type(self), SEQUENCE, args, kwargs))

    def _set_up(self, cell: Any, config: SequenceConfig) -> None:
        super().__init__(
            name=config.name,
            dtype=config.dtype,
            trainable=config.trainable,
            activity_regularizer=config.activity_regularizer,
        )
        self.supports_masking = True
        self.config = replace(config, name=self.name)
        self.cell = cell
        self.states: list[Any] | None = None
        if isinstance(cell, Layer) and not self._trainable:
            cell.trainable = False
        self._config_changed()

    def _config_changed(self) -> None:
        """Choose how to run the cell; called again when an option is set."""
        cells = [self.cell]
        if isinstance(self.cell, StackedRNNCells) and not _overrides_call(self.cell):
            cells = self.cell.cells
        if all(map(is_gru_cell, cells)):
            self._scan: Any = Chain(
                cells, self._cell_configs(cells), self.name, self._dropout_varies
            )
        else:
            self._scan = Loop(self.cell, self.config, self.name, self.dtype)

    _dropout_varies = False

    def _cell_configs(self, cells: list[Any]) -> list[Any]:
        return chain_configs(cells, self.config)

    # ------------------------------------------------------------------- states

    @property
    def state_size(self) -> list[Any]:
        """The `state_size` of the cell as a list."""
        size = self.cell.state_size
        return list(size) if isinstance(size, (list, tuple)) else [size]

    def build(self, sequences_shape: Any) -> None:
        """Create the weights, and the recorded state of a stateful layer.

        Building a stateful layer again resets its state.

        Raises
        ------
        ValueError
            If the layer is stateful and the number of rows is open.
        """
        rows = sequences_shape[self._row_axis]
        if self.config.stateful and self.states is None and rows is None:
            raise ValueError(
                "When using `stateful=True` in a RNN, the batch size must be static. "
                f"Found dynamic batch size: sequence.shape={tuple(sequences_shape)}"
            )
        if isinstance(self.cell, Layer):
            self._build_sublayer(self.cell, (rows, *sequences_shape[2:]))
        if self.config.stateful:
            if self.states is None:
                self._record(self._scan.zero_state(rows))
            else:
                self.reset_states()
        self.built = True

    @property
    def _row_axis(self) -> int:
        return 1 if self.config.time_major else 0

    def _rows(self, output: np.ndarray) -> int:
        return output.shape[self._row_axis if len(output.shape) > 2 else 0]

    # -------------------------------------------------------------------- calls

    def __call__(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
        *,
        lengths: Any = None,
    ) -> Any:
        """Run along time.

        Parameters
        ----------
        sequences : array_like
            Shape `(batch, time, features)`, or `(time, batch, features)` with
            `time_major`. `time` and `batch` may be 0. Or a list of arrays
            `(steps, features)`: where their steps differ, zeros are put after the
            shorter ones, and `lengths` follow. An array on a CUDA device is computed
            there, if the cells are GRU cells; see `numbagru.functional.gru`.
        initial_state : array_like or list, optional
            State before the first step, `(batch, units)`; for several states a list.
            By default zeros, or what a stateful layer has recorded.
        mask : array_like, optional
            Shape `(batch, time)` or `(batch, time, 1)`, `(time, batch)` first with
            `time_major`: where it is false the step is skipped. The state stays, and
            the output repeats the one before (see `zero_output_for_mask` and
            `compat`). Of a list, the first entry.
        training : bool, optional
            Whether dropout is active; not by default.
        lengths : array_like of int, optional
            Shape `(batch,)`: how many steps of each row count, from 0 to `time`. The
            same as a `mask` that is true at just the first of them, which may be given
            as well.

        Returns
        -------
        ndarray or tuple
            The last output `(batch, units)`, or with `return_sequences` all outputs
            `(batch, time, units)` in the order of processing; with `return_state`
            a tuple of it and the final states.

        Raises
        ------
        ValueError
            If a shape does not fit, a length is out of range, `mask` contradicts
            `lengths`, or one of them comes with a list of different lengths.
        TypeError
            If an array is not made of real numbers, or `lengths` are not integers.
        """
        sequences, mask = self._rectangular(sequences, mask, lengths)
        self._losses = []
        out = self.call(sequences, initial_state, mask, training)
        self._record_activity(out)
        return out

    def call(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Compute what a call returns, without recording activity losses."""
        start = self._start(sequences, initial_state, mask, training)
        return self._finish(*self._scan.forward(*start))

    def _vjp(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, Callable]:
        start = self._start(sequences, initial_state, mask, training)
        results, pull = self._scan.vjp(*start)
        out = self._finish(*results)
        n_states = len(flatten(results[2]))
        return out, self._pullback(out, pull, n_states, start.from_zeros)

    def _pullback(
        self, out: Any, pull: Callable[..., tuple], n_states: int, from_zeros: bool
    ) -> Any:
        """Make the pullback of `out` from that of `Chain.vjp` or `Loop.vjp`."""
        return_sequences, scan = self.config.return_sequences, self._scan

        def pullback(cotangent: Any, include_losses: bool) -> Grads:
            d_out, *d_states = flatten_cotangent(out, cotangent)
            d_last, d_outputs = (None, d_out) if return_sequences else (d_out, None)
            d_states = d_states or [None] * n_states
            d_x, d_initial, d_weights = pull(d_last, d_outputs, d_states)
            if include_losses:
                d_weights = penalized(scan.weights, d_weights)
            if from_zeros:
                return Grads(d_x, None, d_weights)
            single = len(d_initial) == 1
            return Grads(d_x, d_initial[0] if single else d_initial, d_weights)

        return pullback

    def _prepared(self, inputs: Any, kwargs: dict[str, Any]) -> tuple[Any, dict]:
        self._losses = []
        return inputs, kwargs  # `_start` checks first and builds then

    def _checked(self, sequences: Any, initial_state: Any, mask: Any) -> tuple:
        """Return `(x, states or None, mask)`; nothing is built, drawn or recorded."""
        x = real_array("sequences", sequences, self.dtype)
        self._scan.check_inputs(x)
        rows = x.shape[self._row_axis]
        shape = (rows, x.shape[1 - self._row_axis])
        mask = read_mask(mask, shape, self.config.time_major)
        states = None
        if initial_state is not None:
            states = self._scan.read_state(initial_state, rows)
        if self.config.stateful and self.states is not None:
            self._check_recorded(rows)
        return x, states, mask

    def _start(
        self, sequences: Any, initial_state: Any, mask: Any, training: bool | None
    ) -> _Start:
        x, states, mask = self._checked(sequences, initial_state, mask)
        if not self.built:
            self._build(x.shape)
        rows = x.shape[self._row_axis]
        from_zeros = states is None and not self.config.stateful
        if self.config.stateful:
            states = self._recorded_or(states, rows)
        elif from_zeros:
            states = self._scan.zero_state(rows)
        masks = self._scan.draw(x, training)
        return _Start(x, states, mask, masks, training, from_zeros)

    def _finish(self, last: Any, outputs: Any, states: list[Any]) -> Any:
        """Record the state and arrange what is returned."""
        if self.config.stateful:
            self._record(pack_like(states, map(functional.on_host, flatten(states))))
        output = self._cast(outputs if self.config.return_sequences else last)
        if not self.config.return_state:
            return output
        # Keras unpacks the state of a stack of one.
        if len(states) == 1:
            states = flatten(states)
        states = pack_like(states, map(self._cast, flatten(states)))
        return self.config.profile.returns((output, *states))

    def _cast(self, array: Any) -> Any:
        if functional.on_device(array) or array.dtype == self.dtype:
            return array  # kernels on a device convert nothing
        return array.astype(self.dtype)

    def inner_loop(
        self,
        sequences: Any,
        initial_state: Any,
        mask: Any = None,
        training: bool | None = False,
        *,
        lengths: Any = None,
    ) -> tuple[Any, Any, list[Any]]:
        """Run the cell of a built layer, without recording states or losses.

        Parameters
        ----------
        sequences, initial_state, mask, training, lengths
            As in a call.

        Returns
        -------
        last_output : ndarray
            Shape `(batch, units)`.
        outputs : ndarray
            All outputs with `return_sequences`, otherwise the last as one step.
        states : list
            Final states.
        """
        if not self.built:
            raise ValueError(
                f"Layer '{self.name}' is not built: build or call it before "
                "`inner_loop`."
            )
        sequences, mask = self._rectangular(sequences, mask, lengths)
        x, states, mask = self._checked(sequences, initial_state, mask)
        from_zeros = states is None
        if from_zeros:
            states = self._scan.zero_state(x.shape[self._row_axis])
        masks = self._scan.draw(x, training)
        last, outputs, states = self._scan.forward(
            x, states, mask, masks, training, from_zeros
        )
        if outputs is None:
            outputs = last[None] if self.config.time_major else last[:, None]
        return last, outputs, states

    def explain(
        self, sequences: Any, mask: Any = None, training: bool | None = False
    ) -> str:
        """Say which kernel a call would run, and what rules out each faster one.

        Parameters
        ----------
        sequences : array or tuple of int
            As in a call, or only the shape.
        mask, training
            As in a call.
        """
        return self._scan.explain(sequences)

    # ------------------------------------------------------- shapes and configuration

    def compute_output_shape(self, sequences_shape: Any) -> Any:
        """Return the shape of the output, and of the states with `return_state`."""
        rows = sequences_shape[self._row_axis]
        output = (rows, output_size_of(self.cell))
        if self.config.return_sequences:
            output = (*sequences_shape[:2], output[1])
        if not self.config.return_state:
            return output
        states = [
            [(rows, n) for n in size]
            if isinstance(size, (list, tuple))
            else (rows, size)
            for size in self.state_size
        ]
        return (output, *states)

    def compute_mask(self, inputs: Any, mask: Any) -> Any:
        """Return the mask of the output: `mask` where all outputs are returned."""
        if isinstance(mask, (list, tuple)):
            mask = mask[0]
        output_mask = mask if self.config.return_sequences else None
        if self.config.return_state:
            return [output_mask, *[None] * len(self.state_size)]
        return output_mask

    def get_config(self) -> dict[str, Any]:
        """Return Keras' keys, and other arguments that are not at their default."""
        saved = self._saved(to_own_dict(self.config, SEQUENCE, self._compat))
        return {**saved, "cell": self._inner_saved(self.cell)}

    def to_keras_config(self, flavor: str = "keras3") -> dict[str, Any]:
        """Return exactly what Keras of `flavor` ("keras3" or "tf_keras") saves.

        Raises
        ------
        ValueError
            If that Keras cannot express this layer.
        """
        saved = self._saved(to_dict(self.config, SEQUENCE, flavor))
        return {**saved, "cell": self._inner_keras(self.cell, flavor)}

    def _saved(self, from_fields: dict[str, Any]) -> dict[str, Any]:
        """Complete what the config says by what has been set on the layer since."""
        saved = {**from_fields, "trainable": self.trainable}
        current = super().get_config()
        if "activity_regularizer" in {**saved, **current}:
            saved["activity_regularizer"] = current.get("activity_regularizer")
        return saved

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> RNN:
        """Make a layer, with fresh weights, from the result of `get_config`."""
        config = from_dict(config)
        cell = cls._inner_loaded(config.pop("cell"), custom_objects)
        return cls(cell, **config)

    def _remade(self, **changes: Any) -> RNN:
        """Return a layer like this one with fresh weights and some changes."""
        config = {f.name: getattr(self.config, f.name) for f in fields(self.config)}
        cell = self._inner_loaded(
            self._inner_saved(self.cell), {type(self.cell).__name__: type(self.cell)}
        )
        return type(self)(cell, **{**config, **changes})


def _overrides_call(stack: StackedRNNCells) -> bool:
    return type(stack).call is not StackedRNNCells.call

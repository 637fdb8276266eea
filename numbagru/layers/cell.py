"""One step of the GRU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from numbagru import functional
from numbagru.config import GRUConfig
from numbagru.layers.arguments import CELL, bind, configured
from numbagru.layers.base import Grads, Layer
from numbagru.layers.checks import check_features, check_rank, read_state, real_array
from numbagru.layers.dialects import from_dict, to_dict, to_own_dict
from numbagru.layers.saving import register
from numbagru.layers.structure import add_gradients, flatten_cotangent
from numbagru.layers.variable import RandomState, Variable
from numbagru.random import SeedGenerator, fill_dropout_mask, generator


@register()
@configured(CELL)
class GRUCell(Layer):
    """One step of the Gated Recurrent Unit (Cho et al. 2014).

    With the gates z, r and the candidate hh of `numbagru.gates`, a call returns
    ``h = z * h_tm1 + (1 - z) * hh``.

    Parameters
    ----------
    {parameters}

    Raises
    ------
    ValueError
        If an argument has an illegal value, or a keyword is unknown.
    TypeError
        If `units` is missing, or an argument is given twice.

    Examples
    --------
    >>> import numpy as np, numbagru as ng
    >>> cell = ng.GRUCell(4)
    >>> h, states = cell(np.ones((32, 8)), cell.get_initial_state(32))
    >>> h.shape
    (32, 4)
    """

    kernel: Variable
    recurrent_kernel: Variable
    bias: Variable | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        config = bind(type(self), CELL, args, kwargs)
        super().__init__(
            name=config.name, dtype=config.dtype, trainable=config.trainable
        )
        self.config: GRUConfig = replace(config, name=self.name)
        self.seed_generator = SeedGenerator(config.seed)
        self._dropout_mask: np.ndarray | None = None
        self._recurrent_dropout_mask: np.ndarray | None = None
        self._packed: functional.Weights | None = None

    # ------------------------------------------------------------------ weights

    @property
    def state_size(self) -> int:
        """Width of the state: `units`."""
        return self.config.units

    @property
    def output_size(self) -> int:
        """Width of the output: `units`."""
        return self.config.units

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of shape `(..., features)`."""
        c, gates = self.config, 3 * self.config.units
        self._variables = []
        self.kernel = self.add_weight(
            (input_shape[-1], gates),
            c.kernel_initializer,
            name="kernel",
            regularizer=c.kernel_regularizer,
            constraint=c.kernel_constraint,
        )
        self.recurrent_kernel = self.add_weight(
            (c.units, gates),
            c.recurrent_initializer,
            name="recurrent_kernel",
            regularizer=c.recurrent_regularizer,
            constraint=c.recurrent_constraint,
        )
        self.bias = None
        if c.use_bias:
            self.bias = self.add_weight(
                (2, gates) if c.reset_after else (gates,),
                c.bias_initializer,
                name="bias",
                regularizer=c.bias_regularizer,
                constraint=c.bias_constraint,
            )
        self._packed = None
        self.built = True

    @property
    def packed(self) -> functional.Weights:
        """The weights as the kernels take them; made anew after each change."""
        if self._packed is None:
            self._packed = functional.Weights(
                self.kernel.value,
                self.recurrent_kernel.value,
                None if self.bias is None else self.bias.value,
                self.config.reset_after,
            )
        return self._packed

    def _weights_changed(self) -> None:
        self._packed = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is derived from the weights out of pickles and copies."""
        return {**vars(self), "_packed": None}

    def _random_states(self) -> list[Variable]:
        return [RandomState(self.seed_generator)]

    # -------------------------------------------------------------------- calls

    def get_initial_state(self, batch_size: int | None = None) -> list[np.ndarray]:
        """Return `[zeros]` of shape `(batch_size, units)`.

        Raises
        ------
        ValueError
            If `batch_size` is missing.
        """
        return [self._zero_state(batch_size)]

    def _zero_state(self, rows: Any) -> np.ndarray:
        if rows is None:
            raise ValueError(
                "`batch_size` must be given to make an initial state. "
                "Received: batch_size=None"
            )
        return np.zeros((rows, self.config.units), self.dtype)

    def __call__(
        self, inputs: Any, states: Any, training: bool | None = False
    ) -> tuple[np.ndarray, Any]:
        """Take one step.

        Parameters
        ----------
        inputs : array_like
            Shape `(batch, features)`.
        states : array_like or list
            The state, shape `(batch, units)`, or a list or tuple of it.
        training : bool, default False
            Whether dropout is active. Its masks stay the same until
            `reset_dropout_mask` and `reset_recurrent_dropout_mask`.

        Returns
        -------
        h : ndarray
            The output, shape `(batch, units)`.
        states : list or ndarray
            The new state: `[h]`, or `h` if `states` was an array.

        Raises
        ------
        ValueError
            If a shape does not fit.
        """
        if not training and self._packed is not None and type(inputs) is np.ndarray:
            h = self._fast_step(inputs, states)
            if h is not None:
                return h, [h] if isinstance(states, (list, tuple)) else h
        return self.call(inputs, states, training)

    def _fast_step(self, inputs: np.ndarray, states: Any) -> np.ndarray | None:
        """Take a step without the checks; None where it is not that simple."""
        if inputs.ndim != 2 or type(self).call is not GRUCell.call:
            return None
        if type(states) is list and len(states) == 1:
            states = states[0]
        if type(states) is not np.ndarray:
            return None
        result = self._packed.call(self.config)(inputs[:, None], states)
        return None if result is None else result[2]

    def call(
        self, inputs: Any, states: Any, training: bool | None = False
    ) -> tuple[np.ndarray, Any]:
        """Take one step; what a call of the cell does."""
        x, h_tm1, masks = self._step(inputs, states, training)
        h = functional.gru(self.config, self.packed, x, h_tm1, None, *masks)[2]
        return h, [h] if isinstance(states, (list, tuple)) else h

    def _prepared(self, inputs: Any, kwargs: dict[str, Any]) -> tuple[Any, dict]:
        return inputs, kwargs  # `_step` checks first and builds then

    def _vjp(
        self, inputs: Any, states: Any, training: bool | None = False
    ) -> tuple[Any, Callable]:
        x, h_tm1, masks = self._step(inputs, states, training)
        (_, _, h), pull = functional.gru_vjp(
            self.config, self.packed, x, h_tm1, None, *masks
        )
        out = h, [h] if isinstance(states, (list, tuple)) else h

        def pullback(cotangent: Any, include_losses: bool) -> Grads:
            g = pull(None, None, add_gradients(*flatten_cotangent(out, cotangent)))
            d_x = g.inputs.reshape((x.shape[0], x.shape[2]))
            return Grads(d_x, g.initial_state, weight_gradients(g))

        return out, pullback

    def _step(self, inputs: Any, states: Any, training: bool | None) -> tuple:
        """Check, build and draw; return one-step sequences, the state and the masks."""
        x = real_array("inputs", inputs, self.dtype)
        check_rank(x, 2, self.name)
        check_features(x, self)
        (h_tm1,) = read_state(states, [(x.shape[0], self.config.units)], "states")
        if not self.built:
            self._build(x.shape)
        masks = None, None
        if training:
            self.get_dropout_mask(x)
            self.get_recurrent_dropout_mask(h_tm1)
            masks = self._dropout_mask, self._recurrent_dropout_mask
        return x.reshape((x.shape[0], 1, x.shape[1])), h_tm1, masks

    # ------------------------------------------------------------------ dropout

    def get_dropout_mask(self, step_input: Any) -> np.ndarray | list | None:
        """Return the input dropout mask, drawn at the first request after a reset.

        One array, or a list of three (gates z, r, h) with `implementation=1`; None
        without input dropout.
        """
        if self._dropout_mask is None:
            self._dropout_mask = self._draw_inputs(step_input.shape)
        return _as_keras_gives(self._dropout_mask)

    def get_recurrent_dropout_mask(self, step_input: Any) -> list | None:
        """Return the three state dropout masks, drawn at the first request."""
        if self._recurrent_dropout_mask is None:
            self._recurrent_dropout_mask = self._draw_state(step_input.shape)
        return _as_keras_gives(self._recurrent_dropout_mask)

    def reset_dropout_mask(self) -> None:
        """Forget the input dropout mask, so that the next request draws anew."""
        self._dropout_mask = None

    def reset_recurrent_dropout_mask(self) -> None:
        """Forget the state dropout masks, so that the next request draws anew."""
        self._recurrent_dropout_mask = None

    def _hold_masks(self, rows: int, features: int, training: bool | None) -> None:
        """Draw the masks of a call that steps through the cell itself."""
        if training or self.config.profile.draws_at_inference:
            self.get_dropout_mask(np.empty((rows, features)))
            self.get_recurrent_dropout_mask(np.empty((rows, self.state_size)))

    def _draw_inputs(self, shape: tuple[int, ...]) -> np.ndarray | None:
        rate, per_gate = self.config.dropout, self.config.implementation == 1
        return self._draw(shape, rate, 3 if per_gate else None)

    def _draw_state(self, shape: tuple[int, ...]) -> np.ndarray | None:
        return self._draw(shape, self.config.recurrent_dropout, 3)

    def _draw(
        self, shape: tuple[int, ...], rate: float, count: int | None = None
    ) -> np.ndarray | None:
        """Draw one mask, or `count` in a row; None where nothing is dropped."""
        if not rate:
            return None
        masks = np.empty((count or 1, *shape), self.dtype)
        for mask in masks:
            fill_dropout_mask(mask, rate, generator(self.seed_generator))
        return masks if count else masks[0]

    def _call_masks(
        self, rows: int, features: int, training: bool | None, steps: tuple[int, ...]
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the masks of one layer call, and forget those held.

        `steps` is the shape of the inputs where input dropout varies over time, else
        empty. The cell is not written to unless it holds masks, so that several
        threads may call one layer.
        """
        c = self.config
        if not c.dropout and not c.recurrent_dropout:
            return None, None
        inputs, state = self._dropout_mask, self._recurrent_dropout_mask
        if training:
            if inputs is None:
                inputs = (
                    self._draw(steps, c.dropout)
                    if steps
                    else self._draw_inputs((rows, features))
                )
            if state is None:
                state = self._draw_state((rows, c.units))
        elif c.profile.draws_at_inference:
            self._skip_draws(inputs is None, state is None)
        if self._dropout_mask is not None:
            self.reset_dropout_mask()
        if self._recurrent_dropout_mask is not None:
            self.reset_recurrent_dropout_mask()
        return (inputs, state) if training else (None, None)

    def _skip_draws(self, inputs: bool, state: bool) -> None:
        """Advance the generator as the draws would: Keras makes them at inference."""
        c = self.config
        count = 3 if state and c.recurrent_dropout else 0
        if inputs and c.dropout:
            count += 3 if c.implementation == 1 else 1
        for _ in range(count):
            self.seed_generator.next()

    # ------------------------------------------------------------ configuration

    def compute_output_shape(self, input_shape: Any, *args: Any) -> Any:
        """Return the shapes of output and state for inputs `(batch, features)`."""
        shape = (input_shape[0], self.config.units)
        return shape, shape

    def get_config(self) -> dict[str, Any]:
        """Return Keras' keys, and other arguments that are not at their default."""
        saved = to_own_dict(self.config, CELL, self._compat)
        return {**saved, "trainable": self.trainable}

    def to_keras_config(self, flavor: str = "keras3") -> dict[str, Any]:
        """Return exactly what Keras of `flavor` ("keras3" or "tf_keras") saves.

        Raises
        ------
        ValueError
            If that Keras cannot express this cell.
        """
        saved = to_dict(self.config, CELL, flavor)
        return {**saved, "trainable": self.trainable}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GRUCell:
        """Make a cell from a configuration of numbagru, Keras 3 or tf_keras."""
        return cls(**from_dict(config))


def _as_keras_gives(mask: np.ndarray | None) -> np.ndarray | list | None:
    return list(mask) if mask is not None and mask.ndim == 3 else mask


def weight_gradients(gradients: Any) -> list[np.ndarray]:
    """Return the gradients of a cell's weights in the order of `get_weights`."""
    weights = [gradients.kernel, gradients.recurrent_kernel]
    return weights if gradients.bias is None else [*weights, gradients.bias]

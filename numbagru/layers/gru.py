"""The GRU layer: a cell run along time by the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from numbagru import activations, functional
from numbagru.config import GRUConfig
from numbagru.layers.arguments import CELL, LAYER, bind, configured
from numbagru.layers.base import Grads
from numbagru.layers.cell import GRUCell, weight_gradients
from numbagru.layers.dialects import fresh_arguments, from_dict, to_dict, to_own_dict
from numbagru.layers.rnn import RNN
from numbagru.layers.saving import register
from numbagru.layers.stream import Stream
from numbagru.layers.structure import flatten_cotangent, penalized
from numbagru.layers.variable import Variable

_NESTED = (list, tuple)


@register()
@configured(LAYER)
class GRU(RNN):
    """Gated Recurrent Unit (Cho et al. 2014), the layer of Keras on NumPy arrays.

    ``layer(sequences, initial_state=None, mask=None, training=False, *, lengths=None)``
    takes a batch of sequences `(batch, time, features)` and returns the last output
    `(batch, units)`, or all of them `(batch, time, units)`, and if asked for the
    final state. See `RNN` for masks, lengths and states.

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
    >>> x = np.random.default_rng(0).normal(size=(32, 10, 8))
    >>> ng.GRU(4)(x).shape
    (32, 4)
    >>> y, h = ng.GRU(4, return_sequences=True, return_state=True)(x)
    >>> y.shape, h.shape
    ((32, 10, 4), (32, 4))
    """

    config: GRUConfig
    cell: GRUCell
    _cell_class = GRUCell

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        config = bind(type(self), LAYER, args, kwargs)
        arguments = {name: getattr(config, name) for name in CELL.names}
        cell = self._cell_class(**{**arguments, "name": "gru_cell"})
        self._set_up(cell, config)

    def __call__(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
        *,
        lengths: Any = None,
    ) -> Any:
        """Run along time; see `RNN.__call__`."""
        if lengths is not None or isinstance(sequences, _NESTED):
            sequences, mask = self._rectangular(sequences, mask, lengths)
        if (
            self._plain
            and self.activity_regularizer is None
            and not self._losses
            and not isinstance(initial_state, _NESTED)
            and not isinstance(mask, _NESTED)
        ):
            config, cell = self.config, self.cell
            if config.stateful:
                recorded = self._recorded_for(sequences)
                if recorded is None or initial_state is not None:
                    return super().__call__(sequences, initial_state, mask, training)
                initial_state = recorded.value
            last, outputs, state = functional.gru(
                config, cell._packed or cell.packed, sequences, initial_state, mask
            )
            if config.stateful:
                # The caller may get it, or a view of it.
                recorded.adopt(np.array(functional.on_host(state)))
            output = outputs if config.return_sequences else last
            return self._returns((output, state)) if config.return_state else output
        if not self.built:
            # Then once more: the first call runs, and compiles, what the others run.
            x, _, _ = self._checked(sequences, initial_state, mask)
            self._build(x.shape)
            return GRU.__call__(self, sequences, initial_state, mask, training)
        return super().__call__(sequences, initial_state, mask, training)

    def vjp(
        self,
        inputs: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
        *,
        lengths: Any = None,
    ) -> tuple[Any, Callable]:
        """Do what `Layer.vjp` does; see there. The arguments are those of a call."""
        config = self.config
        if (
            not self._plain
            or config.stateful
            or lengths is not None
            or self.activity_regularizer is not None
            or isinstance(inputs, _NESTED)
            or isinstance(initial_state, _NESTED)
            or isinstance(mask, _NESTED)
        ):
            return super().vjp(inputs, initial_state, mask, training, lengths=lengths)
        # All checks are left to `functional`, as in a call.
        (last, outputs, state), pull = functional.gru_vjp(
            config, self.cell.packed, inputs, initial_state, mask
        )
        self._losses = []
        output = outputs if config.return_sequences else last
        out = self._returns((output, state)) if config.return_state else output

        def pullback(cotangent: Any, include_losses: bool = False) -> Grads:
            d_out, *d_states = flatten_cotangent(out, cotangent)
            d_last, d_outputs = (None, d_out) if outputs is not None else (d_out, None)
            g = pull(d_last, d_outputs, *d_states)
            d_weights = weight_gradients(g)
            if include_losses:
                d_weights = penalized(self.cell.weights, d_weights)
            return Grads(g.inputs, g.initial_state, d_weights)

        return out, pullback

    def stream(self, batch_size: int = 1, initial_state: Any = None) -> Stream:
        """Prepare to take sequences one step at a time, without dropout.

        Parameters
        ----------
        batch_size : int, default 1
            How many sequences run side by side.
        initial_state : array_like (batch_size, units), optional
            Zeros by default. The recorded state of a stateful layer has no part in it.

        Returns
        -------
        Stream
            ``stream.push(x_t)`` takes the next step and returns its output;
            ``stream.state`` and ``stream.reset(rows=None)`` see `Stream`.

        Raises
        ------
        ValueError
            If the layer is not built or has `go_backwards`, or a value does not fit.
        TypeError
            If `batch_size` is not an integer.

        Examples
        --------
        >>> import numpy as np, numbagru as ng
        >>> layer = ng.GRU(2)
        >>> layer.build((None, None, 3))
        >>> stream = layer.stream(batch_size=4)
        >>> stream.push(np.ones((4, 3), "float32")).shape
        (4, 2)
        """
        return Stream(self, batch_size, initial_state)

    def _recorded_for(self, sequences: Any) -> Variable | None:
        """Return the recorded state if it has the rows of `sequences`."""
        shape = getattr(sequences, "shape", ())
        if self.states is None or len(shape) != 3:
            return None
        recorded = self.states[0]
        return recorded if shape[self._row_axis] == recorded.shape[0] else None

    def _cell_configs(self, cells: list[GRUCell]) -> list[GRUConfig]:
        if self._dropout_varies:  # one mask, whatever `implementation`
            return [replace(self.config, implementation=2)]
        return [self.config]

    def _checked(self, sequences: Any, *args: Any) -> tuple:
        c = self.config
        if (
            c.use_cudnn is True
            and c.device != "cuda"
            and not functional.on_device(sequences)
        ):
            raise ValueError(
                "use_cudnn=True was specified, but the fused CUDA kernel cannot run: "
                "`sequences` is not a CUDA array and "
                f"device={c.device!r}. Pass use_cudnn='auto' to take the fastest "
                "kernel that can."
            )
        return super()._checked(sequences, *args)

    @property
    def _dropout_varies(self) -> bool:
        """Whether TensorFlow draws input dropout for each step: its fused path."""
        c = self.config
        return (
            c.profile.dropout_per_step
            and c.activation == activations.get("tanh")
            and c.recurrent_activation == activations.get("sigmoid")
            and c.use_bias
            and c.reset_after
            and not (c.recurrent_dropout or c.unroll)
        )

    def _config_changed(self) -> None:
        super()._config_changed()
        c = self.config
        self._returns = c.profile.returns
        # Calls that draw and build nothing leave all checks to `functional`.
        self._plain = (
            self.built
            and not (c.dropout or c.recurrent_dropout)
            and c.use_cudnn is not True
            and type(self).call is RNN.call
        )

    def build(self, sequences_shape: Any) -> None:
        """Create the weights, and the recorded state of a stateful layer."""
        super().build(sequences_shape)
        self.built = True
        self._config_changed()

    def get_config(self) -> dict[str, Any]:
        """Return Keras' 27 keys, and other arguments that are not at their default."""
        return self._saved(to_own_dict(self.config, LAYER, self._compat))

    def to_keras_config(self, flavor: str = "keras3") -> dict[str, Any]:
        """Return exactly what Keras of `flavor` ("keras3" or "tf_keras") saves.

        Raises
        ------
        ValueError
            If that Keras cannot express this layer, as Keras 3 `time_major`.
        """
        return self._saved(to_dict(self.config, LAYER, flavor))

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GRU:
        """Make a layer from a configuration of numbagru, Keras 3 or tf_keras.

        In one from tf_keras, "hard_sigmoid" is the function of that Keras.
        """
        return cls(**from_dict(config))

    def _remade(self, **changes: Any) -> GRU:
        return type(self)(**{**fresh_arguments(self.config, LAYER), **changes})

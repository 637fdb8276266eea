"""Two layers that read the same sequences from both ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numbagru import functional
from numbagru.layers import saving
from numbagru.layers.base import Grads, Layer
from numbagru.layers.checks import real_array
from numbagru.layers.lengths import TakesLengths
from numbagru.layers.rnn import RNN
from numbagru.layers.structure import flatten, flatten_cotangent, pack_like

MERGE_MODES = ("sum", "mul", "ave", "concat", None)
_OPS = {"sum": "add", "mul": "multiply", "ave": "mean"}


@saving.register()
class Bidirectional(TakesLengths, Layer):
    """A recurrent layer, and one like it that starts from the end.

    Both are made anew from the configuration of `layer`, with fresh weights. Where all
    outputs are returned, those of the backward layer are put into the order of the
    inputs, and masked steps give zeros.

    Parameters
    ----------
    layer : GRU or RNN
        What to run forwards, and backwards.
    merge_mode : {"concat", "sum", "mul", "ave", None}, default "concat"
        How the outputs are joined; None returns both.
    weights : sequence of array_like, optional
        What the weights start from: those of the forward layer, then the others.
    backward_layer : GRU or RNN, optional
        Used as it is instead of one made from `layer`.
    name, dtype, trainable, activity_regularizer
        As for every layer; outputs are cast to `dtype`, "float32" by default.

    Raises
    ------
    ValueError
        If an argument is not as above, the layers do not differ in `go_backwards`, or
        they differ in `stateful`, `return_sequences`, `return_state` or `time_major`.

    Examples
    --------
    >>> import numpy as np, numbagru as ng
    >>> layer = ng.Bidirectional(ng.GRU(4, return_sequences=True))
    >>> layer(np.ones((2, 5, 3))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        layer: RNN,
        merge_mode: str | None = "concat",
        weights: Sequence[Any] | None = None,
        backward_layer: RNN | None = None,
        **kwargs: Any,
    ) -> None:
        _check_layer("layer", layer)
        if backward_layer is not None:
            _check_layer("backward_layer", backward_layer)
        if merge_mode not in MERGE_MODES:
            raise ValueError(
                f"Invalid merge mode. Received: {merge_mode!r}. Merge mode should be "
                'one of {"sum", "mul", "ave", "concat", None}'
            )
        self._check_agreement(layer, backward_layer)
        super().__init__(**kwargs)
        self.merge_mode = merge_mode
        self.supports_masking = True
        self._given = {"layer": _identity(layer)}
        if backward_layer is not None:
            self._given["backward_layer"] = _identity(backward_layer)
        name = layer.name.removeprefix("forward_")
        self.forward_layer = layer._remade(name=f"forward_{name}")
        if backward_layer is None:
            name = layer.name.removeprefix("backward_")
            backward_layer = layer._remade(name=f"backward_{name}", go_backwards=True)
        self.backward_layer = backward_layer
        for child in self._children:
            child.zero_output_for_mask = child.return_sequences
        if not self.trainable:
            self.trainable = False
        self._initial_weights = None if weights is None else list(weights)

    def _check_agreement(self, forward: RNN, backward: RNN | None) -> None:
        backwards = True if backward is None else backward.go_backwards
        if forward.go_backwards == backwards:
            raise ValueError(
                "Forward layer and backward layer should have different `go_backwards` "
                f"value. Received: forward_layer.go_backwards={forward.go_backwards}, "
                f"backward_layer.go_backwards={backwards}"
            )
        shared = ("stateful", "return_sequences", "return_state", "time_major")
        for name in shared if backward is not None else ():
            ours, theirs = getattr(forward, name), getattr(backward, name)
            if ours != theirs:
                raise ValueError(
                    "Forward layer and backward layer are expected to have the same "
                    f'value for attribute "{name}", got "{ours}" for forward layer '
                    f'and "{theirs}" for backward layer'
                )

    @property
    def _children(self) -> tuple[RNN, RNN]:
        return self.forward_layer, self.backward_layer

    @property
    def stateful(self) -> bool:
        """Whether the layers record their states."""
        return self.forward_layer.stateful

    @property
    def return_sequences(self) -> bool:
        """Whether all outputs are returned."""
        return self.forward_layer.return_sequences

    @property
    def return_state(self) -> bool:
        """Whether the final states are returned."""
        return self.forward_layer.return_state

    @property
    def time_major(self) -> bool:
        """Whether time is the first axis."""
        return self.forward_layer.time_major

    @property
    def states(self) -> list[Any] | None:
        """Recorded states, forward and backward; None before there are any."""
        states = [child.states for child in self._children]
        return None if None in states else states[0] + states[1]

    def reset_state(self, states: Any = None, rows: Any = None) -> None:
        """Set the recorded states; see `reset_states`."""
        self.reset_states(states, rows)

    def reset_states(self, states: Any = None, rows: Any = None) -> None:
        """Set the recorded states; as `RNN.reset_states`, `states` for both layers.

        Raises
        ------
        AttributeError
            If the layers are not stateful.
        ValueError
            If number or shape of the states does not fit.
        """
        if not self.stateful:
            raise AttributeError("Layer must be stateful.")
        plans = [
            child._planned_reset(half, rows)
            for child, half in zip(
                self._children, _halves(states, "states"), strict=True
            )
        ]
        for child, plan in zip(self._children, plans, strict=True):
            if plan is not None:
                child._record(plan)

    def build(self, sequences_shape: Any) -> None:
        """Build both layers."""
        for child in self._children:
            self._build_sublayer(child, sequences_shape)
        if self._initial_weights is not None:
            self.set_weights(self._initial_weights)
            self._initial_weights = None
        self.built = True

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
        """Run both layers and join their outputs.

        Parameters
        ----------
        sequences, mask, training, lengths
            As for `RNN`.
        initial_state : list, optional
            The states of the forward layer, then as many of the backward layer.

        Returns
        -------
        ndarray or tuple
            The joined output; two with `merge_mode=None`; then the final states of the
            forward and of the backward layer with `return_state`.

        Raises
        ------
        ValueError
            If a shape does not fit; see `RNN` for more.
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
        x, states = self._begin(sequences, initial_state, mask)
        return self._joined(
            *(
                child(x, initial_state=state, mask=mask, training=training)
                for child, state in zip(self._children, states, strict=True)
            )
        )

    def _rectangular(self, sequences: Any, mask: Any, lengths: Any) -> tuple[Any, Any]:
        return self.forward_layer._rectangular(sequences, mask, lengths)

    def _prepared(self, inputs: Any, kwargs: dict[str, Any]) -> tuple[Any, dict]:
        self._losses = []
        return inputs, kwargs  # `_begin` checks first and builds then

    def _begin(self, sequences: Any, initial_state: Any, mask: Any) -> tuple:
        """Check for both layers before one of them draws or records anything."""
        x = real_array("sequences", sequences, self.dtype)
        states = _halves(initial_state, "initial_state")
        for child, state in zip(self._children, states, strict=True):
            child._checked(x, state, mask)
        if not self.built:
            self._build(x.shape)
        return x, states

    def _vjp(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, Callable]:
        x, states = self._begin(sequences, initial_state, mask)
        outs, pulls = zip(
            *(
                child.vjp(x, initial_state=state, mask=mask, training=training)
                for child, state in zip(self._children, states, strict=True)
            ),
            strict=True,
        )
        out = self._joined(*outs)
        ys = [flatten(y)[0] for y in outs]
        n_states = len(flatten(outs[0])) - 1

        def pullback(cotangent: Any, include_losses: bool) -> Grads:
            given = flatten_cotangent(out, cotangent)
            n_outputs = 2 if self.merge_mode is None else 1
            d_ys = self._split(given[:n_outputs], *ys)
            d_states = given[n_outputs:]
            parts = []
            for i, (y, pull) in enumerate(zip(outs, pulls, strict=True)):
                own = d_states[i * n_states : (i + 1) * n_states]
                parts.append(pull(pack_like(y, [d_ys[i], *own]), include_losses))
            forward, backward = parts
            place = functional.place_of(forward.inputs)
            views = (place.view(part.inputs, "inputs") for part in parts)
            return Grads(
                place.combine("add", *views),
                _joined_states(forward.initial_state, backward.initial_state),
                forward.weights + backward.weights,
            )

        return out, pullback

    def _joined(self, out: Any, out_rev: Any) -> Any:
        states: list[Any] = []
        if self.return_state:
            (out, *states), (out_rev, *states_rev) = out, out_rev
            states += states_rev
        place = functional.place_of(out)
        y, y_rev = (
            place.array(one, "outputs", np.dtype(self.dtype)) for one in (out, out_rev)
        )
        y_rev = self._flipped(y_rev)
        returns = self.forward_layer.config.profile.returns
        if self.merge_mode is None:
            both = (place.combine("copy", one) for one in (y, y_rev))
            return returns((*both, *states))
        if self.merge_mode == "concat":
            merged = place.concatenate(y, y_rev)
        else:
            merged = place.combine(_OPS[self.merge_mode], y, y_rev)
        return returns((merged, *states)) if self.return_state else merged

    def _split(self, given: list, y: Any, y_rev: Any) -> list:
        """Return the gradients of both layers' outputs from those of the joined one."""
        place = functional.place_of(y)
        dtype = np.dtype(self.dtype)
        d, d_rev = (
            None if one is None else place.array(one, "cotangent", dtype)
            for one in (given[0], given[-1])
        )
        op, factor, factor_rev = "copy", None, None
        if self.merge_mode == "concat" and d is not None:
            units = y.shape[-1]
            d, d_rev = d[..., :units], d[..., units:]
        elif self.merge_mode == "mul":
            op, factor = "multiply", self._flipped(place.view(y_rev, "outputs"))
            factor_rev = self._flipped(place.view(y, "outputs"))
        elif self.merge_mode == "ave":
            op = "half"
        if d is not None:
            d = place.combine(op, d, factor)
        if d_rev is not None:
            d_rev = place.combine(op, self._flipped(d_rev), factor_rev)
        return [d, d_rev]

    def _flipped(self, y: np.ndarray) -> np.ndarray:
        """Reverse time in the outputs of all steps; its own inverse."""
        if not self.return_sequences:
            return y
        return y[::-1] if self.time_major else y[:, ::-1]

    def _rows(self, output: np.ndarray) -> int:
        return self.forward_layer._rows(output)

    # ------------------------------------------------------- shapes and configuration

    def compute_output_shape(self, sequences_shape: Any) -> Any:
        """Return the shape of the joined output, and of what comes with it."""
        shape = self.forward_layer.compute_output_shape(sequences_shape)
        shape, states = (shape[0], shape[1:]) if self.return_state else (shape, ())
        if self.merge_mode is None:
            return (shape, shape, *states, *states)
        if self.merge_mode == "concat":
            shape = (*shape[:-1], shape[-1] * 2)
        return (shape, *states, *states) if self.return_state else shape

    def compute_mask(self, inputs: Any, mask: Any) -> Any:
        """Return the mask of each output: `mask` where all outputs are returned."""
        if isinstance(mask, (list, tuple)):
            mask = mask[0]
        output_mask = mask if self.return_sequences else None
        n_outputs = 2 if self.merge_mode is None else 1
        n_states = 2 * len(self.forward_layer.state_size) if self.return_state else 0
        if n_outputs + n_states == 1:
            return output_mask
        return (*[output_mask] * n_outputs, *[None] * n_states)

    def get_config(self) -> dict[str, Any]:
        """Return the base configuration, 'merge_mode' and that of the layers."""
        config = {**super().get_config(), "merge_mode": self.merge_mode}
        layers = self._layers_to_save(self._flavor).items()
        return {**config, **{key: self._inner_saved(one) for key, one in layers}}

    def to_keras_config(self, flavor: str = "keras3") -> dict[str, Any]:
        """Return what Keras of `flavor` ("keras3" or "tf_keras") saves.

        Raises
        ------
        ValueError
            If that Keras cannot express a layer inside.
        """
        config = {**self._base_config(flavor), "merge_mode": self.merge_mode}
        layers = self._layers_to_save(flavor).items()
        return {
            **config,
            **{key: self._inner_keras(one, flavor) for key, one in layers},
        }

    def _layers_to_save(self, flavor: str) -> dict[str, RNN]:
        """Return the layers made, as Keras 3 saves, or copies of those given."""
        made = dict(zip(("layer", "backward_layer"), self._children, strict=True))
        if flavor == "keras3":
            return made
        return {key: made[key]._remade(**given) for key, given in self._given.items()}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> Bidirectional:
        """Make a layer, with fresh weights, from the result of `get_config`."""
        config = dict(config)
        for name in ("layer", "backward_layer"):
            if config.get(name) is not None:
                config[name] = cls._inner_loaded(config[name], custom_objects)
        return cls(**config)


def _check_layer(name: str, layer: Any) -> None:
    if not isinstance(layer, RNN):
        raise ValueError(
            f"`{name}` must be a GRU or RNN layer instance. Received: {name}={layer!r}"
        )


def _identity(layer: RNN) -> dict[str, Any]:
    """Return what `Bidirectional` changes in the layers it is given."""
    zero_output = layer.zero_output_for_mask
    return {"name": layer.name, "zero_output_for_mask": zero_output}


def _halves(states: Any, name: str) -> tuple[Any, Any]:
    if states is None:
        return None, None
    if not isinstance(states, (list, tuple)) or len(states) % 2 or not states:
        raise ValueError(
            f"`{name}` must be a list of the forward layer's states and as many of the "
            f"backward layer. Received: {type(states).__name__}"
            + (f" of length {len(states)}" if hasattr(states, "__len__") else "")
        )
    half = len(states) // 2
    return list(states[:half]), list(states[half:])


def _joined_states(forward: Any, backward: Any) -> list[Any] | None:
    """Make one list of gradients of both layers' states; None where there are none."""
    if forward is None:
        return None
    return [*_listed(forward), *_listed(backward)]


def _listed(states: Any) -> list[Any]:
    return states if isinstance(states, list) else [states]

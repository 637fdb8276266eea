"""A stack of layers, each fed with the output of the one before."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np

from numbagru.layers import saving as layer_saving
from numbagru.layers.base import Grads, Layer
from numbagru.training import saving
from numbagru.training.trainer import Trainer


@layer_saving.register("keras")
class Sequential(Trainer):
    """A stack of layers that is trained as one model.

    Parameters
    ----------
    layers : iterable of Layer, optional
        From the input to the output; `add` appends more. The first one gives the dtype
        of the inputs.
    trainable : bool, default True
        Whether the weights are to be updated.
    name : str, optional
        Default "sequential", numbered when taken.

    Raises
    ------
    ValueError
        For what is not a layer, and for a layer or a name that comes twice.

    Notes
    -----
    Weights are created by the first call on data or by `build(input_shape)`. A mask
    goes to every layer up to the first that has no mask for its output, as in Keras 3
    up to 3.15.

    Examples
    --------
    >>> import numpy as np
    >>> import numbagru as ng
    >>> model = ng.Sequential([ng.GRU(4), ng.Dense(1)])
    >>> model.compile(optimizer="adam", loss="mse")
    >>> history = model.fit(np.zeros((8, 5, 2)), np.zeros(8), verbose=0)
    >>> model.predict(np.zeros((3, 5, 2))).shape
    (3, 1)
    """

    def __init__(
        self,
        layers: Iterable[Layer] | None = None,
        trainable: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, trainable=trainable)
        self.supports_masking = True
        self._layers: list[Layer] = []
        for layer in layers or ():
            self.add(layer)

    @property
    def layers(self) -> list[Layer]:
        """The layers, in a new list; `add` and `pop` change the stack."""
        return list(self._layers)

    def add(self, layer: Layer) -> None:
        """Append a layer.

        Raises
        ------
        ValueError
            If it is not a layer, or it or its name is in the stack already.
        """
        if not isinstance(layer, Layer):
            raise ValueError(
                "Only layers can be added to a Sequential model. "
                f"Received: {layer!r} of type {type(layer).__name__}"
            )
        if any(layer.name == other.name for other in self._layers):
            raise ValueError(
                "All layers of a Sequential model must have unique names. "
                f"Received: '{layer.name}' a second time; pass another `name`."
            )
        self._layers.append(layer)
        self._stack_changed()

    def pop(self) -> Layer:
        """Remove and return the last layer.

        Raises
        ------
        ValueError
            If there is none.
        """
        if not self._layers:
            raise ValueError(f"Sequential model '{self.name}' has no layers to pop.")
        layer = self._layers.pop()
        self._stack_changed()
        return layer

    def _stack_changed(self) -> None:
        self.built, self._build_shape = False, None
        self.dtype = self._layers[0].dtype if self._layers else "float32"

    def build(self, input_shape: Any) -> None:
        """Build every layer for inputs of `input_shape`; None marks an open axis.

        Raises
        ------
        ValueError
            If there are no layers, or the shape does not fit.
        """
        if not self._layers:
            raise ValueError(
                f"Sequential model '{self.name}' cannot be built because it has no "
                "layers. Call `model.add(layer)`."
            )
        shape = tuple(input_shape)
        if not self._stateful_layers():
            shape = (None, *shape[1:])
        for layer in self._layers:
            if any(isinstance(axis, (tuple, list)) for axis in shape):
                raise ValueError(
                    "Only the last layer of a Sequential model may have several "
                    "outputs; use `return_state=False` in the one before "
                    f"'{layer.name}'. Received: output shapes {shape}"
                )
            self._build_sublayer(layer, shape)
            shape = layer.compute_output_shape(shape)
        self._build_shape = tuple(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        """Return the output of the last layer.

        Parameters
        ----------
        inputs : array_like
            For the first layer.
        training : bool, default False
            Whether dropout is active.
        mask : array_like of bool, optional
            (B, T), True for the steps to use.
        """

        def run(layer: Layer, x: Any, **kwargs: Any) -> Any:
            return layer(x, **kwargs)

        return self._through(run, inputs, training, mask)

    def _vjp(
        self, inputs: Any, training: bool = False, mask: Any = None
    ) -> tuple[Any, Callable[..., Grads]]:
        pullbacks = []

        def run(layer: Layer, x: Any, **kwargs: Any) -> Any:
            y, pullback = layer.vjp(x, **kwargs)
            pullbacks.append(pullback)
            return y

        def pull(cotangent: Any, include_losses: bool) -> Grads:
            weights: list[np.ndarray] = []
            for pullback in reversed(pullbacks):
                grads = pullback(cotangent, include_losses=include_losses)
                cotangent = grads.inputs
                weights = grads.weights + weights
            return Grads(cotangent, None, weights)

        return self._through(run, inputs, training, mask), pull

    def _through(
        self, run: Callable[..., Any], x: Any, training: Any, mask: Any
    ) -> Any:
        """Run the layers one after the other, each with the mask that reaches it."""
        for layer in self._layers:
            y = run(layer, x, training=training, mask=mask)
            if mask is not None and not layer.supports_masking:
                warnings.warn(
                    f"Layer '{layer.name}' does not support masking: the mask ends "
                    "there.",
                    stacklevel=4,
                )
            mask = _mask_after(layer, x, mask)
            x = y
        return x

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Return the mask of the output, None where a layer has none."""
        for layer in self._layers:
            previous_mask = _mask_after(layer, inputs, previous_mask)
        return previous_mask

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the last layer's output for `input_shape`."""
        for layer in self._layers:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def summary(self, print_fn: Callable[[str], Any] | None = None) -> None:
        """Show the layers as a table.

        Parameters
        ----------
        print_fn : callable, optional
            Receives the whole text. By default it goes to standard output.
        """
        write = print_fn or (lambda text: sys.stdout.write(text + "\n"))
        write(f'Model: "{self.name}"\n' + "\n".join(_table(self._rows())))

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [("Layer (type)", "Output shape", "Parameters")]
        shape = self._open_shape() if self.built else None
        for layer in self._layers:
            title = f"{layer.name} ({type(layer).__name__})"
            if shape is None:
                rows.append((title, "?", "not built"))
                continue
            shape = layer.compute_output_shape(shape)
            rows.append((title, str(shape), f"{layer.count_params():,}"))
        for title, weights in (
            ("Trainable", self.trainable_weights),
            ("Not trainable", self.non_trainable_weights),
        ):
            rows.append((title, "", f"{sum(math.prod(v.shape) for v in weights):,}"))
        return rows

    def _open_shape(self) -> tuple[int | None, ...]:
        """Return the shape of `build` with any number of rows, unless stateful."""
        first, *rest = self._build_shape
        return (first if self._stateful_layers() else None, *rest)

    def get_config(self) -> dict[str, Any]:
        """Return name, layers and, once built, the input shape, as Keras 3 does."""
        config = super().get_config()
        config["layers"] = [layer_saving.serialize(layer) for layer in self._layers]
        if self.built:
            config["build_input_shape"] = self._open_shape()
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, type] | None = None
    ) -> Sequential:
        """Make a model, with fresh weights, from the result of `get_config`.

        Parameters
        ----------
        config : dict
            Of this class or of `keras.Sequential`; a layer may stand for its
            configuration.
        custom_objects : mapping, optional
            Classes of layers by name.

        Raises
        ------
        ValueError
            If a layer is unknown or there is no list of layers.
        """
        if not isinstance(config.get("layers"), (list, tuple)):
            raise ValueError(
                "The configuration of a Sequential model must have a list `layers`. "
                f"Received: config={config}"
            )
        model = cls(
            [
                layer
                if isinstance(layer, Layer)
                else layer_saving.deserialize(layer, custom_objects)
                for layer in config["layers"]
                if isinstance(layer, Layer) or layer["class_name"] != "InputLayer"
            ],
            trainable=config.get("trainable", True),
            name=config.get("name"),
        )
        if config.get("build_input_shape") is not None:
            model._build(tuple(config["build_input_shape"]))
        return model

    def save(self, filepath: str | PathLike[str]) -> None:
        """Write the model, its weights and the state of its training into one file.

        `load_model` reads it, and training goes on as if it had not been interrupted;
        only recorded states of stateful layers are not kept, as in Keras.

        Parameters
        ----------
        filepath : path-like
            Where to; ".npz" is the usual ending. A file that is there is replaced at
            once, or not at all.

        Raises
        ------
        ValueError
            If the model is not built, or has functions of yours without a name.
        """
        saving.save_model(self, filepath)


def _mask_after(layer: Layer, inputs: Any, mask: Any) -> Any:
    if mask is None or not layer.supports_masking:
        return None
    return layer.compute_mask(inputs, mask)


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    """Return the lines of a table: a head, a body, and two rows of totals."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}".rstrip()
        for a, b, c in rows
    ]
    rule = "-" * (sum(widths) + 4)
    return [lines[0], rule, *lines[1:-2], rule, *lines[-2:]]

"""The weights of a layer and of the layers inside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from numbagru import initializers, regularizers
from numbagru.config import check_trainable
from numbagru.layers.variable import Variable


class WeightHolder:
    """The part of `Layer` that keeps weights: its own, and those of sublayers."""

    name: str
    path: str
    dtype: str
    built: bool

    def __init__(self, trainable: bool) -> None:
        self._trainable = check_trainable(trainable)
        self._variables: list[Variable] = []

    @property
    def compute_dtype(self) -> str:
        """Dtype of outputs; the same as `dtype`."""
        return self.dtype

    @property
    def variable_dtype(self) -> str:
        """Dtype of weights; the same as `dtype`."""
        return self.dtype

    @property
    def sublayers(self) -> list[WeightHolder]:
        """Layers held in attributes, also in lists, in the order of assignment."""
        found: dict[int, WeightHolder] = {}
        for value in vars(self).values():
            kind = _KINDS[type(value)]
            if kind is None:
                continue
            for item in value if kind is list else (value,):
                if _KINDS[type(item)] is WeightHolder:
                    found.setdefault(id(item), item)
        return list(found.values())

    def add_weight(
        self,
        shape: Sequence[int] = (),
        initializer: Any = None,
        *,
        name: str = "variable",
        regularizer: Any = None,
        constraint: Any = None,
        trainable: bool = True,
    ) -> Variable:
        """Create a weight of this layer.

        Parameters
        ----------
        shape : sequence of int, default ()
            Shape of the weight.
        initializer : str, Initializer or callable, optional
            "glorot_uniform" by default.
        name : str, default "variable"
            Name, the last part of the path.
        regularizer, constraint : optional
            Penalty in `losses` and projection after each optimizer step.
        trainable : bool, default True
            Whether an optimizer updates it.

        Returns
        -------
        Variable
            The weight; also appended to `weights`.
        """
        shape = tuple(int(n) for n in shape)
        initializer = initializers.get(
            "glorot_uniform" if initializer is None else initializer
        )
        value = np.asarray(initializer(shape, dtype=self.dtype))
        if value.shape != shape:
            raise ValueError(
                f"The initializer of `{name}` must return an array of shape {shape}. "
                f"Received: shape={value.shape}"
            )
        variable = Variable(
            value,
            name=name,
            dtype=self.dtype,
            trainable=trainable,
            path=f"{self.path}/{name}",
            regularizer=regularizers.get(regularizer),
            constraint=constraint,
            owner=self,
        )
        variable.trainable = trainable and self._trainable
        self._variables.append(variable)
        return variable

    def _weights_changed(self) -> None:
        """Forget whatever was derived from the weights; called after each `assign`."""

    @property
    def weights(self) -> list[Variable]:
        """Own weights, then those of the sublayers, each once."""
        sublayers = self.sublayers
        if not sublayers:
            return list(self._variables)
        found = dict.fromkeys(self._variables)
        for layer in sublayers:
            found.update(dict.fromkeys(layer.weights))
        return list(found)

    @property
    def trainable_weights(self) -> list[Variable]:
        """The weights an optimizer updates; none when the layer is frozen."""
        return [v for v in self.weights if v.trainable] if self._trainable else []

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """The weights an optimizer leaves alone."""
        if not self._trainable:
            return self.weights
        return [v for v in self.weights if not v.trainable]

    @property
    def variables(self) -> list[Variable]:
        """The weights and the states of the random generators, layer by layer."""
        found = dict.fromkeys((*self._variables, *self._random_states()))
        for layer in self.sublayers:
            found.update(dict.fromkeys(layer.variables))
        return list(found)

    @property
    def trainable_variables(self) -> list[Variable]:
        """The same as `trainable_weights`."""
        return self.trainable_weights

    @property
    def non_trainable_variables(self) -> list[Variable]:
        """`non_trainable_weights` and the states of the random generators."""
        trainable = set(self.trainable_weights)
        return [v for v in self.variables if v not in trainable]

    def _random_states(self) -> list[Variable]:
        """Return the states of the random generators of this very layer."""
        return []

    @property
    def trainable(self) -> bool:
        """Whether the weights are updated by an optimizer; settable at any time."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = check_trainable(value)
        for variable in self._variables:
            variable.trainable = self._trainable and variable.learnable
        for layer in self.sublayers:
            layer.trainable = self._trainable

    def get_weights(self) -> list[np.ndarray]:
        """Return the values of `weights` as read-only arrays."""
        return [variable.value for variable in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Replace the values of all `weights`, or of none.

        Parameters
        ----------
        weights : sequence of array_like
            In the order and the shapes of `get_weights()`.

        Raises
        ------
        ValueError
            If the number of arrays or a shape does not fit.
        TypeError
            If an array is not made of real numbers.
        """
        variables = self.weights
        weights = list(weights)
        if len(weights) != len(variables):
            raise ValueError(
                f"You called `set_weights(weights)` on layer '{self.name}' with a "
                f"weight list of length {len(weights)}, but the layer was expecting "
                f"{len(variables)} weights."
                + ("" if self.built else " Build or call the layer first.")
            )
        values = [
            variable.converted(value)
            for variable, value in zip(variables, weights, strict=True)
        ]
        for variable, value in zip(variables, values, strict=True):
            if value.shape != variable.shape:
                raise ValueError(
                    f"Layer {self.name} weight shape {variable.shape} is not "
                    f"compatible with provided weight shape {value.shape}."
                )
        for variable, value in zip(variables, values, strict=True):
            variable.adopt(value)

    def regularization_losses(self) -> list[Any]:
        """Return the penalties of the trainable weights, as in `losses`."""
        return [v.regularizer(v.value) for v in self.trainable_weights if v.regularizer]

    def apply_constraints(self) -> None:
        """Project each trainable weight; an optimizer does so after every step."""
        for variable in self.trainable_weights:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable.value))

    def count_params(self) -> int:
        """Return the number of scalars in the weights.

        Raises
        ------
        ValueError
            If the layer is not built.
        """
        if not self.built:
            raise ValueError(
                f"You tried to call `count_params` on layer '{self.name}', but the "
                "layer isn't built. Build it with `layer.build(input_shape)`, or call "
                "it on data."
            )
        return sum(math.prod(variable.shape) for variable in self.weights)


class _Kinds(dict):
    """By type: layers, what may hold some (list), other attributes (None).

    A dictionary, because every training step asks for each attribute several times.
    """

    def __missing__(self, cls: type) -> type | None:
        kind = None
        if issubclass(cls, WeightHolder):
            kind = WeightHolder
        elif issubclass(cls, (list, tuple)):
            kind = list
        self[cls] = kind
        return kind


_KINDS = _Kinds()

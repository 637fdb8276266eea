"""The densely connected layer: `activation(x @ kernel + bias)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numbagru import activations, constraints, initializers, regularizers
from numbagru.layers import saving
from numbagru.layers.base import Grads, Layer
from numbagru.layers.variable import Variable
from numbagru.registry import finite_number, float_array


@saving.register()
class Dense(Layer):
    """Densely connected layer on the last axis of its inputs.

    Parameters
    ----------
    units : int
        Size of the last axis of the output.
    activation : str, Activation or callable, optional
        None is linear.
    use_bias : bool, default True
        Whether to add a bias.
    kernel_initializer : str or Initializer, default "glorot_uniform"
        For `kernel`, shape (features, units).
    bias_initializer : str or Initializer, default "zeros"
        For `bias`, shape (units,).
    kernel_regularizer, bias_regularizer : str or Regularizer, optional
        Penalties on the weights.
    activity_regularizer : str or Regularizer, optional
        Penalty on the output, divided by its rows.
    kernel_constraint, bias_constraint : str or Constraint, optional
        Projections after each optimizer step.
    name, dtype, trainable
        As for every layer.

    Raises
    ------
    ValueError
        If `units` is not a positive integer, or another argument is not understood.

    Examples
    --------
    >>> import numpy as np
    >>> import numbagru as ng
    >>> ng.Dense(2)(np.zeros((3, 5, 4))).shape
    (3, 5, 2)
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        self.units = finite_number(
            units,
            "units",
            "a positive integer",
            lambda v: isinstance(v, int) and v > 0,
        )
        self.activation = activations.get(activation)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        super().__init__(
            name=name,
            dtype=dtype,
            trainable=trainable,
            activity_regularizer=activity_regularizer,
        )
        self.supports_masking = True
        self.bias: Variable | None = None

    def build(self, input_shape: Any) -> None:
        """Create `kernel` and `bias` for inputs of `input_shape` (..., features).

        Raises
        ------
        ValueError
            If the shape has fewer than two axes, or an open last one.
        """
        features = self._features(input_shape)
        self.kernel = self.add_weight(
            (features, self.units),
            self.kernel_initializer,
            name="kernel",
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                (self.units,),
                self.bias_initializer,
                name="bias",
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.built = True

    def call(self, inputs: Any) -> np.ndarray:
        """Return `activation(inputs @ kernel + bias)`, shape (..., units).

        Raises
        ------
        ValueError
            If the last axis of `inputs` is not that of the kernel.
        TypeError
            If `inputs` are not real numbers.
        """
        return self.activation(self._affine(self._checked(inputs)))

    def _vjp(self, inputs: Any) -> tuple[np.ndarray, Callable[..., Grads]]:
        x = self._checked(inputs)
        kernel = self.kernel.value
        s = self._affine(x)
        y = self.activation(s)

        def pull(cotangent: Any, include_losses: bool) -> Grads:
            d_y = np.zeros_like(y) if cotangent is None else np.asarray(cotangent)
            d_s = self.activation.pullback(s, y, d_y.astype(y.dtype, copy=False))
            rows = d_s.reshape(-1, self.units)
            weights = [x.reshape(-1, x.shape[-1]).T @ rows]
            if self.use_bias:
                weights.append(np.sum(rows, axis=0))
            return Grads(d_s @ kernel.T, None, weights)

        return y, pull

    def _affine(self, x: np.ndarray) -> np.ndarray:
        s = x @ self.kernel.value
        return s if self.bias is None else s + self.bias.value

    def _checked(self, inputs: Any) -> np.ndarray:
        """Return the inputs in the layer's dtype, if their last axis fits."""
        x = float_array(inputs, "inputs").astype(self.dtype, copy=False)
        if self._features(x.shape) != self.kernel.shape[0]:
            raise ValueError(
                f"`inputs` of layer '{self.name}' must have {self.kernel.shape[0]} "
                f"features in their last axis. Received: inputs.shape={x.shape}"
            )
        return x

    def _features(self, shape: Any) -> int:
        if len(shape) < 2 or shape[-1] is None:
            raise ValueError(
                f"`inputs` of layer '{self.name}' must have the shape (..., features), "
                f"at least two axes. Received: shape={tuple(shape)}"
            )
        return int(shape[-1])

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return `input_shape` with `units` in its last place."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make the same layer, with the keys of Keras 3."""
        return super().get_config() | {
            "units": self.units,
            "activation": activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
            "kernel_regularizer": regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": constraints.serialize(self.kernel_constraint),
            "bias_constraint": constraints.serialize(self.bias_constraint),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Dense:
        """Make a layer from the result of `get_config`, of Keras' Dense too.

        Raises
        ------
        ValueError
            If the configuration is quantized or of low rank.
        """
        config = dict(config)
        for name in ("quantization_config", "lora_rank", "lora_alpha"):
            if config.pop(name, None) is not None:
                raise ValueError(
                    f"A Dense layer with `{name}` is not supported; merge it into an "
                    "ordinary one in Keras first."
                )
        return cls(**config)

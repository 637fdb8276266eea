"""Optimizers: Keras' update rules, in the dtype of each variable.

An optimizer is one formula, `update`: from a value, its gradient and its slots to the
new value and slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from numbagru import registry
from numbagru.registry import finite_number, non_negative
from numbagru.training.optimizer import Optimizer


class SGD(Optimizer):
    """Gradient descent, with momentum if asked for.

    Parameters
    ----------
    learning_rate : float
        Default 0.01.
    momentum : float
        In [0, 1]; default 0. The velocity is `momentum * velocity - learning_rate *
        gradient` and is added to the variable.
    nesterov : bool
        Whether the step looks ahead by one more velocity. Default False.
    weight_decay, clipnorm, clipvalue, global_clipnorm, name
        As for `Optimizer`.
    """

    def __init__(
        self,
        learning_rate: float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
    ):
        super().__init__(
            learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm, name
        )
        self.momentum = finite_number(
            momentum, "momentum", "a float in [0, 1]", lambda v: 0 <= v <= 1
        )
        self.nesterov = bool(nesterov)

    def slot_names(self):
        """Return ("momentum",), or nothing without momentum."""
        return ("momentum",) if self.momentum else ()

    def update(self, value, gradient, slots, learning_rate):
        """Return the new value and velocity."""
        step = gradient * learning_rate
        if not slots:
            return value - step, []
        momentum = value.dtype.type(self.momentum)
        velocity = slots[0] * momentum - step
        ahead = velocity * momentum - step if self.nesterov else velocity
        return value + ahead, [velocity]


class Adam(Optimizer):
    """Adam (Kingma and Ba 2014, arXiv:1412.6980), in the form before section 2.1.

    Parameters
    ----------
    learning_rate : float
        Default 0.001.
    beta_1, beta_2 : float
        Decay of the first and second moments, in [0, 1). Default 0.9 and 0.999.
    epsilon : float
        "Epsilon hat" of the paper, added to the root of the second moment. Default
        1e-7.
    amsgrad : bool
        Whether the second moment never falls (Reddi et al. 2018). Default False.
    weight_decay, clipnorm, clipvalue, global_clipnorm, name
        As for `Optimizer`.
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
    ):
        super().__init__(
            learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm, name
        )
        self.beta_1 = _decay_rate(beta_1, "beta_1")
        self.beta_2 = _decay_rate(beta_2, "beta_2")
        self.epsilon = non_negative(epsilon, "epsilon")
        self.amsgrad = bool(amsgrad)

    def slot_names(self):
        """Return ("momentum", "velocity") and "velocity_hat" for amsgrad."""
        return ("momentum", "velocity", "velocity_hat")[: 3 if self.amsgrad else 2]

    def update(self, value, gradient, slots, learning_rate):
        """Return the new value and moments."""
        real = value.dtype.type
        step = real(self.iterations + 1)
        rise_1 = real(1) - np.power(real(self.beta_1), step)
        rise_2 = real(1) - np.power(real(self.beta_2), step)
        alpha = learning_rate * np.sqrt(rise_2) / rise_1
        m, v, *hat = slots
        m = m + (gradient - m) * (1 - self.beta_1)
        v = v + (np.square(gradient) - v) * (1 - self.beta_2)
        hat = [np.maximum(hat[0], v)] if self.amsgrad else []
        bound = np.sqrt(hat[0] if hat else v) + self.epsilon
        return value - m * alpha / bound, [m, v, *hat]


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    Parameters
    ----------
    learning_rate : float
        Default 0.001.
    weight_decay : float
        Default 0.004; not None.
    beta_1, beta_2, epsilon, amsgrad
        As for `Adam`.
    clipnorm, clipvalue, global_clipnorm, name
        As for `Optimizer`.
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
    ):
        super().__init__(
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            amsgrad,
            non_negative(weight_decay, "weight_decay"),
            clipnorm,
            clipvalue,
            global_clipnorm,
            name,
        )


_TABLE = registry.name_table("keras.optimizers", SGD, Adam, AdamW)
# Keras' own names: all lower case, no underscores.
_TABLE |= {name.lower(): cls for name, cls in _TABLE.items()}


def deserialize(
    config: Any, custom_objects: Mapping[str, Any] | None = None
) -> Optimizer:
    """Return the optimizer for a config or a name; see `get`."""
    if isinstance(config, Optimizer):
        return config
    optimizer = registry.resolve(config, _TABLE, "optimizer", custom_objects)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"Could not interpret optimizer identifier: {config!r}. Expected one of "
            "the names 'sgd', 'adam', 'adamw', or a config dict, a class, an instance."
        )
    return optimizer


def get(identifier: Any) -> Optimizer:
    """Return an optimizer.

    Parameters
    ----------
    identifier : str, dict, class or Optimizer
        A name ("adam") or a class gives one with default arguments.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    return deserialize(identifier)


def serialize(optimizer: Optimizer) -> Any:
    """Return the plain Python form of an optimizer, as Keras 3 writes it."""
    return registry.serialize_object(optimizer)


def _decay_rate(value, name):
    return finite_number(value, name, "a float in [0, 1)", lambda v: 0 <= v < 1)

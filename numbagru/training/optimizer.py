"""What every optimizer shares: clipping, decay, constraints, state, configuration."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from numbagru import registry
from numbagru.registry import finite_number, non_negative

# Keras arguments that this package leaves out: to be off in a configuration.
_LEFT_OUT = (
    "use_ema",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)


class Optimizer(registry.Configurable):
    """Base of the optimizers.

    Parameters
    ----------
    learning_rate : float
        Step size, kept in float32 as in Keras.
    weight_decay : float, optional
        Each step first takes `weight_decay * learning_rate` of every variable away.
    clipnorm, global_clipnorm, clipvalue : float, optional
        Bound on the norm of each gradient, on the norm of all of them together, or on
        each element. At most one of the three.
    name : str, optional
        Default: the class name in lower case, as in Keras.

    Raises
    ------
    ValueError
        For values out of range, or more than one way to clip.
    """

    def __init__(
        self,
        learning_rate: float,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
    ):
        clips = {
            "clipnorm": clipnorm,
            "clipvalue": clipvalue,
            "global_clipnorm": global_clipnorm,
        }
        given = {key: value for key, value in clips.items() if value is not None}
        if len(given) > 1:
            raise ValueError(
                "At most one of `clipnorm`, `clipvalue` and `global_clipnorm` can be "
                f"set. Received: {given}"
            )
        for key, value in given.items():
            finite_number(value, key, "a positive float", lambda v: v > 0)
        if weight_decay is not None:
            non_negative(weight_decay, "weight_decay")
        self.name = name or type(self).__name__.lower()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        self.iterations = 0
        self.built = False
        self._variables: list[Any] = []
        self._slots: list[list[np.ndarray]] = []

    @property
    def learning_rate(self) -> float:
        """The step size; assign to change it."""
        return float(self._learning_rate)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = np.float32(non_negative(value, "learning_rate"))

    @property
    def trainable_variables(self) -> list[Any]:
        """The variables it was built with."""
        return list(self._variables)

    def slot_names(self) -> tuple[str, ...]:
        """Return the names of the arrays kept for each variable."""
        raise NotImplementedError(f"{type(self).__name__} must define `slot_names`")

    def update(
        self,
        value: np.ndarray,
        gradient: np.ndarray,
        slots: Sequence[np.ndarray],
        learning_rate: np.floating,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the new value and slots; changes nothing."""
        raise NotImplementedError(f"{type(self).__name__} must define `update`")

    def build(self, variables: Sequence[Any]) -> None:
        """Create zero slots for `variables`; does nothing when built already."""
        if self.built:
            return
        self._variables = list(variables)
        self._slots = [
            [np.zeros(v.shape, v.dtype) for _ in self.slot_names()]
            for v in self._variables
        ]
        self.built = True

    def apply(
        self,
        gradients: Sequence[np.ndarray],
        variables: Sequence[Any] | None = None,
    ) -> None:
        """Take one step: update the variables, then apply their constraints.

        Parameters
        ----------
        gradients : sequence of ndarray
            One per variable, of its shape.
        variables : sequence of Variable, optional
            Default: those of `build`. The first call builds the optimizer with them.

        Raises
        ------
        ValueError
            For gradients that do not match, or for variables unknown to the optimizer.
        FloatingPointError
            If a new value is not finite. Nothing has changed in either case.
        """
        if variables is None and not self.built:
            raise ValueError(
                "`variables` is needed in the first call of `apply`, or call "
                "`optimizer.build(variables)` before"
            )
        if variables is None:
            variables = self._variables
        if not len(gradients) + len(variables):  # as in Keras, not even an iteration
            return
        gradients, index = self._matched(gradients, variables)
        self.build(variables)
        new = []
        for v, g, i in zip(variables, self._clipped(gradients), index, strict=True):
            rate = v.value.dtype.type(self._learning_rate)
            value = self._decayed(v.value, rate)
            value, slots = self.update(value, g, self._slots[i], rate)
            if not all(np.isfinite(array).all() for array in (value, *slots)):
                raise FloatingPointError(f"The update of '{v.path}' is not finite")
            new.append((value if v.constraint is None else v.constraint(value), slots))
        for v, i, (value, slots) in zip(variables, index, new, strict=True):
            v.assign(value)
            self._slots[i] = slots
        self.iterations += 1

    def _matched(self, gradients, variables):
        """Return the gradients as arrays of the variables' dtype, and slot indices."""
        if len(gradients) != len(variables):
            raise ValueError(
                "`gradients` must hold one array per variable. "
                f"Received: {len(gradients)} gradients, {len(variables)} variables"
            )
        known = self._variables if self.built else variables
        places = {id(v): i for i, v in enumerate(known)}
        arrays = []
        for v, g in zip(variables, gradients, strict=True):
            if id(v) not in places:
                raise ValueError(
                    f"Unknown variable '{v.path}': an optimizer serves only the "
                    "variables it was built with. Make a new optimizer for others"
                )
            arrays.append(np.asarray(g).astype(v.dtype, copy=False))
            if arrays[-1].shape != v.shape:
                raise ValueError(
                    f"`gradients` must have the shapes of the variables: {v.shape} for "
                    f"'{v.path}'. Received: shape={arrays[-1].shape}"
                )
        return arrays, [places[id(v)] for v in variables]

    def _clipped(self, gradients):
        if self.clipvalue is not None:
            return [np.clip(g, -self.clipvalue, self.clipvalue) for g in gradients]
        if self.clipnorm is not None:
            return [
                g * self.clipnorm / np.maximum(_norm([g]), self.clipnorm)
                for g in gradients
            ]
        if self.global_clipnorm is not None:
            bound = self.global_clipnorm
            with np.errstate(divide="ignore"):  # 1 / 0 = inf is not the minimum
                scale = bound * np.minimum(1.0 / _norm(gradients), 1.0 / bound)
            return [g * scale.astype(g.dtype) for g in gradients]
        return gradients

    def _decayed(self, value, rate):
        if self.weight_decay is None:
            return value
        return value - value * value.dtype.type(self.weight_decay) * rate

    def save_own_variables(self, store: MutableMapping[str, np.ndarray]) -> None:
        """Write the state into `store`: iteration, learning rate, slots.

        Keys are "0", "1", ...
        """
        arrays = [np.int64(self.iterations), self._learning_rate]
        arrays += [slot for slots in self._slots for slot in slots]
        store.update({str(i): np.array(a) for i, a in enumerate(arrays)})

    def load_own_variables(self, store: Mapping[str, np.ndarray]) -> None:
        """Take over a state that `save_own_variables` wrote.

        Raises
        ------
        ValueError
            If number or shapes of the arrays differ from those of this optimizer
            (which must be built, unless the saved one was not). Nothing has changed
            then.
        """
        shapes = [(), (), *(slot.shape for slots in self._slots for slot in slots)]
        arrays = [np.asarray(store[str(i)]) for i in range(len(store))]
        if [a.shape for a in arrays] != shapes:
            raise ValueError(
                f"The state does not fit optimizer '{self.name}': expected arrays of "
                f"shapes {shapes}. Received: {[a.shape for a in arrays]}"
            )
        width = len(self.slot_names())
        slots = [
            a.astype(self._variables[i // width].dtype)
            for i, a in enumerate(arrays[2:])
        ]
        self.learning_rate = arrays[1].item()
        self.iterations = int(arrays[0])
        self._slots = [
            slots[i * width : (i + 1) * width] for i in range(len(self._variables))
        ]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Optimizer:
        """Return the optimizer of a configuration, Keras' own included.

        Raises
        ------
        ValueError
            If it uses what this package leaves out (moving averages of the weights,
            loss scaling, gradient accumulation).
        """
        config = {k: v for k, v in config.items() if k != "ema_momentum"}
        for key in _LEFT_OUT:
            value = config.pop(key, None)
            if value:
                raise ValueError(
                    f"`{key}` is not supported; remove it from the configuration. "
                    f"Received: {key}={value!r}"
                )
        return cls(**config)


def _norm(gradients):
    return np.sqrt(np.sum(np.stack([np.sum(np.square(g)) for g in gradients])))

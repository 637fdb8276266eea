"""What every layer is: named weights, configuration, losses, calls and their pullback.

A layer implements `build(input_shape)`, `call(x, ...)` and `_vjp(x, ...)`; everything
that Keras' `Layer` does around them stands here.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numbagru import functional, regularizers
from numbagru.config import (
    PROFILES,
    canonical_dtype,
    check_name,
    dtype_policy,
)
from numbagru.layers import saving
from numbagru.layers.structure import (
    add_gradients,
    as_array,
    differs_from_gradient,
    flatten,
    flatten_cotangent,
    gradient_of,
    pack_like,
    parameters_of,
    penalized,
)
from numbagru.layers.weights import WeightHolder

_names_given: defaultdict[str, int] = defaultdict(int)
_names_lock = threading.Lock()
# One for all layers, so that they stay picklable; building is rare.
_build_lock = threading.RLock()


class Grads(NamedTuple):
    """What a pullback returns.

    `inputs` has the shape of the inputs. `initial_state` is an array for one state, a
    list for several, and None where there is nothing to take the gradient of: the layer
    has no state, or none was given and, in a stateful layer, recorded. Zeros that are
    given count, too. `weights` follows `get_weights()`, trainable or not.
    """

    inputs: np.ndarray
    initial_state: Any
    weights: list[np.ndarray]


class OutputSpec(NamedTuple):
    """Shape and dtype of an output that was not computed."""

    shape: tuple[int | None, ...]
    dtype: str


def auto_name(prefix: str) -> str:
    """Return `prefix` in snake case, numbered from the second use on (`gru_1`)."""
    prefix = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", prefix))
    prefix = re.sub(r"([a-z])([A-Z])", r"\1_\2", prefix).lower()
    with _names_lock:
        count = _names_given[prefix]
        _names_given[prefix] += 1
    return f"{prefix}_{count}" if count else prefix


class Layer(WeightHolder):
    """Base class of all layers.

    Parameters
    ----------
    name : str, optional
        By default the class name in snake case, numbered when taken.
    dtype : str or dict, optional
        "float32" (default) or "float64", or the configuration of a Keras dtype policy
        of one of these names.
    trainable : bool, default True
        Whether the weights are to be updated by an optimizer.
    activity_regularizer : str, Regularizer or callable, optional
        Penalty on each output, divided by the number of rows.

    Raises
    ------
    ValueError
        For an illegal `name`, `dtype` or `trainable`.
    """

    _compat = "keras3"  # the profile of the class; an instance may have another

    def __init__(
        self,
        *,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        activity_regularizer: Any = None,
    ) -> None:
        super().__init__(trainable)
        self.dtype = canonical_dtype(dtype)
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self.name = auto_name(type(self).__name__) if name is None else check_name(name)
        self.path = self.name
        self.built = False
        self._build_shape: tuple[int | None, ...] | None = None
        self.supports_masking = False
        self._losses: list[Any] = []

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of `input_shape`; None marks an open axis."""
        self.built = True

    def _build_sublayer(self, layer: Layer, input_shape: Any) -> None:
        """Build `layer`, unless it is built, under the name of this layer."""
        if not layer.built:
            layer.path = f"{self.path}/{layer.name}"
            layer._build(input_shape)

    def _build(self, input_shape: Any) -> None:
        """Build once, also when several threads make the first call."""
        with _build_lock:
            if not self.built:
                self.build(input_shape)
                self.built = True
                self._build_shape = tuple(input_shape)

    def get_build_config(self) -> dict[str, Any] | None:
        """Return the shape the layer was built for, None before that."""
        if self._build_shape is None:
            return None
        kind = list if self._flavor == "tf_keras" else tuple
        return {"input_shape": kind(self._build_shape)}

    @property
    def _flavor(self) -> str:
        return PROFILES[self._compat].flavor

    # ------------------------------------------------------------------- losses

    def add_loss(self, loss: Any) -> None:
        """Add one scalar, or a list of scalars, to `losses` until the next call."""
        for item in flatten(loss):
            if np.ndim(item) != 0:
                raise ValueError(
                    "`loss` must be a scalar or a list of scalars. "
                    f"Received: shape={np.shape(item)}"
                )
            self._losses.append(item)

    @property
    def losses(self) -> list[Any]:
        """Scalars of the last call, own then sublayers', then weight penalties."""
        return self._call_losses() + self.regularization_losses()

    def _call_losses(self) -> list[Any]:
        own = list(self._losses)
        return own + [loss for layer in self.sublayers for loss in layer._call_losses()]

    def _record_activity(self, out: Any) -> None:
        if self.activity_regularizer is not None:
            self.add_loss(
                [
                    self._per_row(self.activity_regularizer(functional.on_host(y)), y)
                    for y in flatten(out)
                    if y is not None
                ]
            )

    def _per_row(self, value: Any, output: np.ndarray) -> Any:
        """Divide by the number of rows of `output`; zero rows give zero."""
        rows = self._rows(output)
        return value / rows if rows else value * 0

    def _rows(self, output: np.ndarray) -> int:
        return output.shape[0]

    # -------------------------------------------------------------------- calls

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Build the layer if needed, compute its output and record its losses."""
        inputs, kwargs = self._prepared(inputs, kwargs)
        out = self.call(inputs, *args, **kwargs)
        self._record_activity(out)
        return out

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; implemented by subclasses."""
        raise NotImplementedError(
            f"Layer {type(self).__name__} does not have a `call` method implemented."
        )

    def vjp(
        self, inputs: Any, *args: Any, **call_kwargs: Any
    ) -> tuple[Any, Callable[..., Grads]]:
        """Compute the output and the function that pulls gradients back through it.

        Parameters
        ----------
        inputs : array_like
            As in a call.
        *args, **call_kwargs
            As in a call.

        Returns
        -------
        out : ndarray or tuple of ndarray
            What a call returns. It is kept for the pullback: do not write into it.
        pullback : callable
            `pullback(cotangent, include_losses=False) -> Grads`. `cotangent` is nested
            and shaped like `out`; None stands for zeros. The result is the gradient of
            ``<cotangent, out>``, plus ``sum(layer.losses)`` with `include_losses`.
            It may be called any number of times.

        Raises
        ------
        NotImplementedError
            If the layer, or the class of a user that changes `call`, has no `_vjp`.
        """
        if differs_from_gradient(type(self)):
            raise NotImplementedError(
                f"{type(self).__name__} has a `call` of its own, but inherits the "
                "gradient of another: implement `_vjp`."
            )
        inputs, call_kwargs = self._prepared(inputs, call_kwargs)
        out, pull = self._vjp(inputs, *args, **call_kwargs)
        self._record_activity(out)
        own = list(self._variables)

        def pullback(cotangent: Any, include_losses: bool = False) -> Grads:
            if include_losses and self.activity_regularizer is not None:
                cotangent = self._with_activity_gradient(out, cotangent)
            grads = pull(cotangent, include_losses)
            if include_losses:
                grads = grads._replace(weights=penalized(own, grads.weights))
            return grads

        return out, pullback

    def _vjp(self, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Any, Callable]:
        """Return `out` and `pull(cotangent, include_losses) -> Grads`.

        `include_losses` is to be handed to the pullbacks of sublayers; the activity
        penalty and the penalties on the weights of this very layer are not its matter.
        """
        raise NotImplementedError(
            f"Layer {type(self).__name__} has no gradient: implement `_vjp`."
        )

    def _prepared(self, inputs: Any, kwargs: dict[str, Any]) -> tuple[Any, dict]:
        """Build for `inputs`, start new losses, drop keywords that `call` lacks."""
        inputs = as_array(inputs, self.dtype)
        accepted = parameters_of(type(self).call)
        for name in ("training", "mask"):
            if name not in accepted and name in kwargs:
                kwargs = {k: v for k, v in kwargs.items() if k != name}
        if not self.built:
            self._build(inputs.shape)
        self._losses = []
        return inputs, kwargs

    def _with_activity_gradient(self, out: Any, cotangent: Any) -> Any:
        def term(y: Any) -> Any:
            gradient = gradient_of(self.activity_regularizer, functional.on_host(y))
            return np.broadcast_to(self._per_row(gradient, y), tuple(y.shape))

        given = flatten_cotangent(out, cotangent)
        terms = [
            add_gradients(d_y, term(y))
            for y, d_y in zip(flatten(out), given, strict=True)
        ]
        return pack_like(out, terms)

    # ------------------------------------------------------- shapes and configuration

    def _inner_saved(self, layer: Any) -> dict[str, Any]:
        """Serialize a layer or cell inside this one.

        tf_keras has no profiles: inside a layer of that flavor all modules are Keras'.
        """
        saved = saving.serialize(layer)
        if self._flavor == "tf_keras" and not saved["registered_name"]:
            saved["module"] = saving.KERAS
        return saved

    def _inner_keras(self, layer: Any, flavor: str) -> dict[str, Any]:
        """Serialize a layer or cell inside this one as Keras of `flavor` does."""
        saved = self._inner_saved(layer)
        if hasattr(layer, "to_keras_config"):
            saved["config"] = layer.to_keras_config(flavor)
        if not saved["registered_name"]:
            saved["module"] = saving.KERAS
        return saved

    @classmethod
    def _inner_loaded(cls, saved: Any, custom_objects: Any = None) -> Any:
        """Make the layer or cell that `_inner_saved` wrote."""
        return saving.deserialize(saved, custom_objects, cls._compat)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the output for `input_shape`."""
        raise NotImplementedError(
            f"Layer {type(self).__name__} should implement "
            "`def compute_output_shape(self, input_shape)`."
        )

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Return the mask that belongs to the output; here the one that came in."""
        return previous_mask

    def output_spec(self, inputs: Any, **call_kwargs: Any) -> Any:
        """Return shape and dtype of the output without computing it.

        Parameters
        ----------
        inputs : array or tuple of int
            Anything with a `shape`, or the shape itself.
        **call_kwargs
            Accepted as in a call, and without influence.
        """
        shape = self.compute_output_shape(tuple(getattr(inputs, "shape", inputs)))
        return _specs(shape, self.dtype)

    def symbolic_call(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same as `output_spec`, under the name Keras has for it."""
        return self.output_spec(*args, **kwargs)

    @property
    def input(self) -> Any:
        """Raise AttributeError: arrays leave no symbolic trace."""
        raise AttributeError(self._no_node("input"))

    @property
    def output(self) -> Any:
        """Raise AttributeError: arrays leave no symbolic trace."""
        raise AttributeError(self._no_node("output"))

    def _no_node(self, what: str) -> str:
        return (
            f"The layer {self.name} has never been called and thus has no defined "
            f"{what}. (numbagru computes on arrays and keeps no graph.)"
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make the same layer, ready for JSON."""
        config = self._base_config(self._flavor)
        if self.activity_regularizer is not None:
            config["activity_regularizer"] = regularizers.serialize(
                self.activity_regularizer
            )
        return config

    def _base_config(self, flavor: str) -> dict[str, Any]:
        keras3 = flavor == "keras3"
        return {
            "name": self.name,
            "trainable": self._trainable,
            "dtype": dtype_policy(self.dtype) if keras3 else self.dtype,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Layer:
        """Make a layer, with fresh weights, from the result of `get_config`."""
        return cls(**config)

    def __repr__(self) -> str:
        """Show class, name and whether the weights exist."""
        return f"<{type(self).__name__} name={self.name}, built={self.built}>"


def _specs(shape: Any, dtype: str) -> Any:
    if all(n is None or isinstance(n, int) for n in shape):
        return OutputSpec(tuple(shape), dtype)
    return type(shape)(_specs(part, dtype) for part in shape)

"""Keras' activations: callable on arrays, and usable inside the kernels.

`formulas` has the functions, `compiled` how kernels get at them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit, typeof, types
from numba.core.dispatcher import Dispatcher

from numbagru.activations.compiled import Builtin, activate, pull_back
from numbagru.activations.formulas import OF_INPUT, SCALAR
from numbagru.activations.rows import ROWWISE

__all__ = ["Activation", "get", "serialize"]


def _flat(x: Any, real: Any = None) -> np.ndarray:
    """Copy to a flat array of a kernel's float type."""
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise TypeError(
            f"An activation expects an array of real numbers. Received: dtype={x.dtype}"
        )
    if real is None:
        wide = x.dtype.kind == "f" and x.dtype.itemsize > 4
        real = np.float64 if wide else np.float32
    return x.astype(real).reshape(-1)


@dataclass(frozen=True)
class Activation:
    """An activation function, callable on arrays and usable inside the kernels.

    Parameters
    ----------
    function : callable
        Scalar function of one real number: compiled by ``numba.njit``, or plain Python
        that Numba can compile.
    derivative : callable, optional
        Scalar function x -> df/dx. Only gradients need it.
    name : str, optional
        Shown in configs and messages. Default: the function's name.

    Raises
    ------
    TypeError
        When Numba cannot compile `function` or `derivative` for one float argument, or
        the result is not a real number.

    Examples
    --------
    >>> import numbagru as ng
    >>> squash = ng.activations.Activation(lambda x: x / (1 + abs(x)), name="squash")
    >>> layer = ng.GRU(8, activation=squash)
    """

    function: Callable[[float], float]
    derivative: Callable[[float], float] | None = None
    name: str = ""
    builtin: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        """Compile and try a user's functions."""
        if self.builtin:
            return
        set_field = object.__setattr__
        set_field(self, "function", _compiled(self.function, "function"))
        if self.derivative is not None:
            set_field(self, "derivative", _compiled(self.derivative, "derivative"))
        set_field(self, "name", self.name or self.function.py_func.__name__)

    def __hash__(self) -> int:
        """Hash the name: calls look kernels up by their activations."""
        return hash(self.name)

    @property
    def rowwise(self) -> bool:
        """Whether it acts on all the units of a row at once, as softmax does."""
        return self.builtin and self.name in ROWWISE

    @cached_property
    def forward_argument(self) -> Any:
        """What compiled code takes for `evaluate`."""
        return Builtin(self._key) if self.builtin else self.function

    @cached_property
    def backward_argument(self) -> Any:
        """What compiled code takes for `slope`."""
        if self.builtin:
            return Builtin(self._key)
        if self.derivative is None:
            raise ValueError(
                f"The activation `{self.name}` has no derivative, so there are no "
                "gradients. Pass numbagru.activations.Activation(function, derivative) "
                "with `derivative` a scalar function x -> df/dx."
            )
        return self.derivative

    @cached_property
    def forward_type(self) -> types.Type:
        """The Numba type of `forward_argument`."""
        return typeof(self.forward_argument)

    @cached_property
    def backward_type(self) -> types.Type:
        """The Numba type of `backward_argument`."""
        return typeof(self.backward_argument)

    @property
    def _key(self) -> str:
        """The name in the tables, where the two hard sigmoids stand apart."""
        return "hard_sigmoid_tf" if self == _HARD_SIGMOID_TF else self.name

    def __call__(self, x: Any) -> np.ndarray:
        """Apply to an array; softmax and its kin along the last axis."""
        y = _flat(x)
        activate(self.forward_argument, y, self._width(x))
        return y.reshape(np.shape(x))

    def pullback(self, x: Any, y: Any, dy: Any) -> np.ndarray:
        """Turn the gradient of ``y = act(x)`` into the gradient of x; same shapes."""
        act = self.backward_argument
        v = _flat(x if not self.builtin or self.name in OF_INPUT else y)
        both = np.concatenate([v, _flat(dy, v.dtype)])
        pull_back(act, both, self._width(x))
        return both[v.size :].reshape(np.shape(x))

    def _width(self, x: Any) -> int:
        """Length of a row."""
        shape = np.shape(x)
        if self.rowwise and not shape:
            raise ValueError(
                f"`{self.name}` acts along the last axis and needs at least one. "
                f"Received: shape={shape}"
            )
        return max(1, shape[-1]) if shape else 1

    def __reduce__(self) -> Any:
        """Pickle a built-in by its name."""
        if self.builtin:
            return _builtin, (self._key,)
        return Activation, (self.function, self.derivative, self.name)


def _compiled(function: Any, what: str) -> Dispatcher:
    """Compile a user's scalar function and try it on both float types."""
    if not callable(function):
        raise TypeError(
            f"`{what}` must be a scalar function of one number. Received: {function!r}"
        )
    compiled = function
    for real in (types.float32, types.float64):
        try:
            if not isinstance(compiled, Dispatcher):
                compiled = njit(function)
            compiled.compile((real,))
            result = compiled.overloads[(real,)].signature.return_type
        except Exception as error:
            raise TypeError(
                f"`{what}` must be a function of one number that numba.njit can "
                f"compile. Received: {function!r}, for which Numba says: {error}"
            ) from error
        if not isinstance(result, types.Float | types.Integer | types.Boolean):
            raise TypeError(
                f"`{what}` must give one real number for one real number. "
                f"Received: {function!r}, which gives {result}"
            )
    return compiled


def _builtin(key: str) -> Activation:
    function, derivative = {**SCALAR, **ROWWISE}[key]
    return Activation(function, derivative, key.removesuffix("_tf"), builtin=True)


_HARD_SIGMOID_TF = _builtin("hard_sigmoid_tf")
_ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}
_REGISTRY = {
    name: _builtin(name) for name in [*SCALAR, *ROWWISE] if name != "hard_sigmoid_tf"
}
_UNUSABLE = {
    "glu": "it halves the width of its input",
    "threshold": "it takes two more arguments; pass a scalar function instead",
}


def get(identifier: Any, era: str = "keras3") -> Activation:
    """Resolve Keras' ways of naming an activation.

    Parameters
    ----------
    identifier : None, str, Activation, callable or dict
        None is linear. A callable is a scalar function, as for `Activation`. A dict is
        Keras' serialised form with the name in ``"config"``.
    era : {"keras3", "tf_keras"}, default "keras3"
        Which "hard_sigmoid": clip(x/6 + 0.5) of Keras 3 or clip(0.2 x + 0.5) of
        tf.keras up to 2.15 and tf.compat.v1.

    Raises
    ------
    ValueError
        For a name that is not an activation of one GRU gate.
    TypeError
        For a callable that Numba cannot compile as a scalar function.
    """
    if identifier is None:
        identifier = "linear"
    if isinstance(identifier, dict):
        config = identifier.get("config")
        identifier = config if isinstance(config, str) else identifier
    if isinstance(identifier, Activation):
        return identifier
    if isinstance(identifier, str):
        name = _ALIASES.get(identifier, identifier)
        if name in _UNUSABLE:
            raise ValueError(
                f"The activation '{name}' cannot be used here: {_UNUSABLE[name]}."
            )
        if name == "hard_sigmoid" and era == "tf_keras":
            return _HARD_SIGMOID_TF
        if name in _REGISTRY:
            return _REGISTRY[name]
    elif callable(identifier):
        return Activation(identifier)
    raise ValueError(
        f"Could not interpret activation function identifier: {identifier}. Expected "
        f"None, a scalar function or one of {sorted([*_REGISTRY, *_ALIASES])}."
    )


def serialize(activation: Activation) -> str:
    """Give the name that `get` resolves."""
    return activation.name


def __getattr__(name: str) -> Activation:
    """Find the built-ins as ``numbagru.activations.relu``, as in Keras."""
    if name in _REGISTRY or name in _ALIASES:
        return get(name)
    raise AttributeError(f"module 'numbagru.activations' has no attribute '{name}'")

"""Keras' activation functions and their derivatives, for arrays and inside kernels.

A derivative is written in the output, ``d_f(y)`` with ``y = f(x)``, wherever the output
determines it; the few that need the input are listed in `OF_INPUT`. Kernels are
compiled per activation: each built-in is a Numba type of its own, so the loops
vectorise and the compiled code can be kept on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit, types, typeof
from numba.core.dispatcher import Dispatcher
from numba.extending import (
    NativeValue,
    models,
    overload,
    register_model,
    typeof_impl,
    unbox,
)

from numbagru import elementary
from numbagru._jit import OPTIONS, routine, scalar
from numbagru.elementary import clip, erf, exp, expm1_negative, log1p_unit
from numbagru.scalar import constant, fma

_sixth = constant(1 / 6, 1 / 6)
_half = constant(0.5, 0.5)
_fifth = constant(0.2, 0.2)
_selu_alpha = constant(1.6732632423543772, 1.6732632423543772)
_selu_scale = constant(1.0507009873554805, 1.0507009873554805)
_sqrt_half = constant(math.sqrt(0.5), math.sqrt(0.5))
_normal_density = constant(1 / math.sqrt(2 * math.pi), 1 / math.sqrt(2 * math.pi))


@scalar
def _step(condition, x):
    """One where the condition holds, else zero, in the type of x."""
    return type(x)(1) if condition else type(x)(0)


@scalar
def tanh(x):
    return elementary.tanh(x)


@scalar
def d_tanh(y):
    return fma(-y, y, type(y)(1))


@scalar
def sigmoid(x):
    return elementary.sigmoid(x)


@scalar
def d_sigmoid(y):
    return fma(-y, y, y)


@scalar
def linear(x):
    return x


@scalar
def d_linear(y):
    return type(y)(1)


@scalar
def relu(x):
    return type(x)(0) if x < type(x)(0) else x


@scalar
def d_relu(y):
    return _step(y > type(y)(0), y)


@scalar
def relu6(x):
    return clip(x, type(x)(0), type(x)(6))


@scalar
def d_relu6(y):
    return _step(y > type(y)(0) and y < type(y)(6), y)


@scalar
def leaky_relu(x):
    return _fifth(x) * x if x < type(x)(0) else x


@scalar
def d_leaky_relu(y):
    return type(y)(1) if y > type(y)(0) else _fifth(y)


@scalar
def elu(x):
    return x if x > type(x)(0) else expm1_negative(x)


@scalar
def d_elu(y):
    return type(y)(1) if y > type(y)(0) else y + type(y)(1)


@scalar
def selu(x):
    return _selu_scale(x) * (
        x if x > type(x)(0) else _selu_alpha(x) * expm1_negative(x)
    )


@scalar
def d_selu(y):
    slope = _selu_scale(y)
    return slope if y > type(y)(0) else fma(slope, _selu_alpha(y), y)


@scalar
def exponential(x):
    return exp(x)


@scalar
def d_exponential(y):
    return y


@scalar
def softplus(x):
    return relu(x) + log1p_unit(exp(-abs(x)))


@scalar
def d_softplus(y):
    return -expm1_negative(-y)


@scalar
def log_sigmoid(x):
    return -softplus(-x)


@scalar
def d_log_sigmoid(y):
    return -expm1_negative(y)


@scalar
def softsign(x):
    return x / (type(x)(1) + abs(x))


@scalar
def d_softsign(y):
    rest = type(y)(1) - abs(y)
    return rest * rest


@scalar
def hard_sigmoid(x):
    return clip(fma(x, _sixth(x), _half(x)), type(x)(0), type(x)(1))


@scalar
def d_hard_sigmoid(y):
    return _sixth(y) * _step(y > type(y)(0) and y < type(y)(1), y)


@scalar
def hard_sigmoid_tf(x):
    """The hard sigmoid of tf.keras up to 2.15 and of tf.compat.v1."""
    return clip(fma(x, _fifth(x), _half(x)), type(x)(0), type(x)(1))


@scalar
def d_hard_sigmoid_tf(y):
    return _fifth(y) * _step(y > type(y)(0) and y < type(y)(1), y)


@scalar
def _logistic(x):
    """The sigmoid that falls to zero, for products with x."""
    return type(x)(1) / (type(x)(1) + exp(-x))


@scalar
def silu(x):
    return x * _logistic(x)


@scalar
def d_silu(x):
    s = _logistic(x)
    return fma(x * s, type(x)(1) - s, s)


@scalar
def hard_silu(x):
    return x * hard_sigmoid(x)


@scalar
def d_hard_silu(x):
    y = hard_sigmoid(x)
    return fma(x, d_hard_sigmoid(y), y)


@scalar
def mish(x):
    return x * elementary.tanh(softplus(x))


@scalar
def d_mish(x):
    t = elementary.tanh(softplus(x))
    return fma(x * fma(-t, t, type(x)(1)), _logistic(x), t)


@scalar
def _normal_cdf(x):
    return _half(x) * (type(x)(1) + erf(x * _sqrt_half(x)))


@scalar
def gelu(x):
    return x * _normal_cdf(x)


@scalar
def d_gelu(x):
    return fma(x * _normal_density(x), exp(-_half(x) * x * x), _normal_cdf(x))


@scalar
def hard_tanh(x):
    return clip(x, type(x)(-1), type(x)(1))


@scalar
def d_hard_tanh(y):
    return _step(abs(y) < type(y)(1), y)


@scalar
def tanh_shrink(x):
    return x - elementary.tanh(x)


@scalar
def d_tanh_shrink(x):
    t = elementary.tanh(x)
    return t * t


@scalar
def soft_shrink(x):
    half = _half(x)
    return x - half if x > half else (x + half if x < -half else x * type(x)(0))


@scalar
def hard_shrink(x):
    return x * type(x)(0) if abs(x) <= _half(x) else x


@scalar
def d_shrink(y):
    return _step(abs(y) > type(y)(0), y)


@scalar
def squareplus(x):
    return _half(x) * (x + math.sqrt(fma(x, x, type(x)(4))))


@scalar
def d_squareplus(y):
    square = y * y
    return square / (square + type(y)(1))


@scalar
def sparse_plus(x):
    one = type(x)(1)
    half = _half(x) * (x + one)
    return x if x >= one else (type(x)(0) if x <= -one else half * half)


@scalar
def sparse_sigmoid(x):
    return clip(fma(x, _half(x), _half(x)), type(x)(0), type(x)(1))


@scalar
def d_sparse_plus(y):
    return type(y)(1) if y >= type(y)(1) else math.sqrt(y)


@scalar
def d_sparse_sigmoid(y):
    return _half(y) * _step(y > type(y)(0) and y < type(y)(1), y)


SCALAR = {
    "tanh": (tanh, d_tanh),
    "sigmoid": (sigmoid, d_sigmoid),
    "linear": (linear, d_linear),
    "relu": (relu, d_relu),
    "relu6": (relu6, d_relu6),
    "leaky_relu": (leaky_relu, d_leaky_relu),
    "elu": (elu, d_elu),
    "celu": (elu, d_elu),  # Keras' default alpha is 1, where the two agree
    "selu": (selu, d_selu),
    "exponential": (exponential, d_exponential),
    "softplus": (softplus, d_softplus),
    "log_sigmoid": (log_sigmoid, d_log_sigmoid),
    "softsign": (softsign, d_softsign),
    "hard_sigmoid": (hard_sigmoid, d_hard_sigmoid),
    "hard_sigmoid_tf": (hard_sigmoid_tf, d_hard_sigmoid_tf),
    "silu": (silu, d_silu),
    "hard_silu": (hard_silu, d_hard_silu),
    "mish": (mish, d_mish),
    "gelu": (gelu, d_gelu),
    "hard_tanh": (hard_tanh, d_hard_tanh),
    "tanh_shrink": (tanh_shrink, d_tanh_shrink),
    "soft_shrink": (soft_shrink, d_shrink),
    "hard_shrink": (hard_shrink, d_shrink),
    "squareplus": (squareplus, d_squareplus),
    "sparse_plus": (sparse_plus, d_sparse_plus),
    "sparse_sigmoid": (sparse_sigmoid, d_sparse_sigmoid),
}


@routine
def _softmax(s, start, n):
    top = s[start]
    for i in range(start + 1, start + n):
        top = max(top, s[i])
    total = type(top)(0)
    for i in range(start, start + n):
        s[i] = exp(s[i] - top)
        total += s[i]
    for i in range(start, start + n):
        s[i] = s[i] / total


@routine
def _d_softmax(s, v, g, n):
    dot = type(s[g])(0)
    for i in range(n):
        dot = fma(s[g + i], s[v + i], dot)
    for i in range(n):
        s[g + i] = s[v + i] * (s[g + i] - dot)


@routine
def _log_softmax(s, start, n):
    top = s[start]
    for i in range(start + 1, start + n):
        top = max(top, s[i])
    total = type(top)(0)
    for i in range(start, start + n):
        total += exp(s[i] - top)
    offset = top + type(top)(math.log(total))
    for i in range(start, start + n):
        s[i] = s[i] - offset


@routine
def _d_log_softmax(s, v, g, n):
    total = type(s[g])(0)
    for i in range(n):
        total += s[g + i]
    for i in range(n):
        s[g + i] = fma(-exp(s[v + i]), total, s[g + i])


@routine
def _sparsemax(s, start, n):
    """Project onto the simplex (Martins and Astudillo 2016, algorithm 1).

    Relative to the largest entry, beside which the 1 could vanish.
    """
    ordered = np.sort(s[start : start + n])[::-1]
    top = ordered[0]
    total = type(top)(0)
    threshold = type(top)(0)
    for k in range(n):
        total += ordered[k] - top
        candidate = (total - type(top)(1)) / type(top)(k + 1)
        if ordered[k] - top > candidate:
            threshold = candidate
    for i in range(start, start + n):
        s[i] = relu(s[i] - top - threshold)


@routine
def _d_sparsemax(s, v, g, n):
    zero = type(s[g])(0)
    total = zero
    support = zero
    for i in range(n):
        if s[v + i] > zero:
            total += s[g + i]
            support += type(zero)(1)
    for i in range(n):
        s[g + i] = s[g + i] - total / support if s[v + i] > zero else zero


# The derivative takes the input where the output does not determine it.
OF_INPUT = {"silu", "hard_silu", "mish", "gelu", "tanh_shrink"}

ROWWISE = {
    "softmax": (_softmax, _d_softmax),
    "log_softmax": (_log_softmax, _d_log_softmax),
    "sparsemax": (_sparsemax, _d_sparsemax),
}


def evaluate(act, x):
    """In compiled code: act(x); x itself for a row-wise act, which `apply_row` does."""
    raise TypeError("`evaluate` runs in compiled code only. Call the Activation.")


def slope(d_act, v):
    """In compiled code: the derivative where the output, or with `of_input` the input,
    is v; 1 for a row-wise act, which `chain_row` does.
    """
    raise TypeError("`slope` runs in compiled code only. See Activation.pullback.")


def apply_row(act, s, start, n):
    """In compiled code: apply a row-wise act to ``s[start:start + n]``, else nothing."""
    raise TypeError("`apply_row` runs in compiled code only.")


def chain_row(act, s, v, g, n):
    """In compiled code: pull the gradient ``s[g:g + n]`` back through a row-wise act.

    ``s[v:v + n]`` are its outputs. Does nothing for the others.
    """
    raise TypeError("`chain_row` runs in compiled code only.")


def of_input(act):
    """In compiled code, as a constant: whether `slope` wants the inputs of act."""
    raise TypeError("`of_input` runs in compiled code only.")


class BuiltinType(types.Opaque):
    """The Numba type of one built-in activation; its value carries nothing."""

    def __init__(self, name: str) -> None:
        self.activation = name
        super().__init__(name=f"Activation({name})")


register_model(BuiltinType)(models.OpaqueModel)


@dataclass(frozen=True)
class Builtin:
    """What compiled code takes for a built-in activation."""

    name: str


@typeof_impl.register(Builtin)
def _typeof_builtin(value, context):
    return BuiltinType(value.name)


@unbox(BuiltinType)
def _unbox_builtin(kind, value, context):
    return NativeValue(context.context.get_dummy_value())


def _is_rowwise(act):
    return isinstance(act, BuiltinType) and act.activation in ROWWISE


@overload(evaluate)
def _evaluate(act, x):
    if _is_rowwise(act):
        return lambda act, x: x
    if isinstance(act, BuiltinType):
        f = SCALAR[act.activation][0]
        return lambda act, x: f(x)
    return lambda act, x: type(x)(act(x))


@overload(slope)
def _slope(d_act, v):
    if _is_rowwise(d_act):
        return lambda d_act, v: type(v)(1)
    if isinstance(d_act, BuiltinType):
        df = SCALAR[d_act.activation][1]
        return lambda d_act, v: df(v)
    return lambda d_act, v: type(v)(d_act(v))


@overload(apply_row)
def _apply_row(act, s, start, n):
    if _is_rowwise(act):
        row = ROWWISE[act.activation][0]
        return lambda act, s, start, n: row(s, start, n)
    return lambda act, s, start, n: None


@overload(chain_row)
def _chain_row(act, s, v, g, n):
    if _is_rowwise(act):
        row = ROWWISE[act.activation][1]
        return lambda act, s, v, g, n: row(s, v, g, n)
    return lambda act, s, v, g, n: None


@overload(of_input)
def _of_input(act):
    if isinstance(act, BuiltinType) and act.activation not in OF_INPUT:
        return lambda act: False
    return lambda act: True


@njit(**OPTIONS)
def _apply_rows(act, s, width):
    for start in range(0, s.size, width):
        apply_row(act, s, start, width)
    for i in range(s.size):
        s[i] = evaluate(act, s[i])


@njit(**OPTIONS)
def _chain_rows(act, s, width):
    half = s.size // 2
    for start in range(0, half, width):
        chain_row(act, s, start, half + start, width)
    for i in range(half):
        s[half + i] = s[half + i] * slope(act, s[i])


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
        if self.builtin:
            return
        set_field = object.__setattr__
        set_field(self, "function", _compiled(self.function, "function"))
        if self.derivative is not None:
            set_field(self, "derivative", _compiled(self.derivative, "derivative"))
        set_field(self, "name", self.name or self.function.py_func.__name__)

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
        _apply_rows(self.forward_argument, y, self._width(x))
        return y.reshape(np.shape(x))

    def pullback(self, x: Any, y: Any, dy: Any) -> np.ndarray:
        """Turn the gradient of ``y = act(x)`` into the gradient of x; same shapes."""
        act = self.backward_argument
        v = _flat(x if not self.builtin or self.name in OF_INPUT else y)
        both = np.concatenate([v, _flat(dy, v.dtype)])
        _chain_rows(act, both, self._width(x))
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

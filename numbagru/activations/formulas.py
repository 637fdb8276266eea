"""The activation functions of one number and their derivatives.

A derivative is written in the output, ``d_f(y)`` with ``y = f(x)``, wherever the output
determines it; the few that need the input are listed in `OF_INPUT`.
"""

from __future__ import annotations

import math

from numbagru._jit import scalar
from numbagru.elementary import clip, erf, exp, expm1_negative, log1p_unit
from numbagru.elementary import sigmoid as elementary_sigmoid
from numbagru.elementary import tanh as elementary_tanh
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
    return elementary_tanh(x)


@scalar
def d_tanh(y):
    return fma(-y, y, type(y)(1))


@scalar
def sigmoid(x):
    return elementary_sigmoid(x)


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
    """Return the hard sigmoid of tf.keras up to 2.15 and of tf.compat.v1."""
    return clip(fma(x, _fifth(x), _half(x)), type(x)(0), type(x)(1))


@scalar
def d_hard_sigmoid_tf(y):
    return _fifth(y) * _step(y > type(y)(0) and y < type(y)(1), y)


@scalar
def _logistic(x):
    """Return the sigmoid that falls to zero, for products with x."""
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
    return x * elementary_tanh(softplus(x))


@scalar
def d_mish(x):
    t = elementary_tanh(softplus(x))
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
    return x - elementary_tanh(x)


@scalar
def d_tanh_shrink(x):
    t = elementary_tanh(x)
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

# The derivative takes the input where the output does not determine it.
OF_INPUT = {"silu", "hard_silu", "mish", "gelu", "tanh_shrink"}

# Those of many instructions: an exponential or a logarithm each.
LONG = {
    "tanh", "sigmoid", "elu", "celu", "selu", "exponential", "softplus", "log_sigmoid",
    "silu", "mish", "gelu", "tanh_shrink",
}  # fmt: skip

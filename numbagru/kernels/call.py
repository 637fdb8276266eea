"""What the door hands to a kernel family, ready checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types, typeof

REAL = {"float32": types.float32, "float64": types.float64}


class Call(NamedTuple):
    """Inputs of one run over a sequence; letters and shapes in kernels/__init__.py."""

    activation: Any  # Activation of the candidate
    recurrent_activation: Any  # Activation of z and r
    reset_after: bool
    x: np.ndarray
    h0: np.ndarray
    mask: np.ndarray
    weights: Any  # functional.Weights
    x_drop: np.ndarray
    h_drop: np.ndarray
    zero_output: bool
    first_is_state: bool

    @property
    def real(self) -> types.Float:
        """The Numba type of the arrays."""
        return REAL[self.x.dtype.name]

    @property
    def forward_activations(self) -> tuple[tuple[Any, ...], tuple[types.Type, ...]]:
        """Candidate's and gates' activation for `apply`, and their Numba types."""
        values = (
            self.activation.forward_argument,
            self.recurrent_activation.forward_argument,
        )
        return values, tuple(typeof(value) for value in values)

    @property
    def backward_activations(self) -> tuple[tuple[Any, ...], tuple[types.Type, ...]]:
        """The same for `apply` and then for `chain_rule`."""
        values = (
            *self.forward_activations[0],
            self.activation.backward_argument,
            self.recurrent_activation.backward_argument,
        )
        return values, tuple(typeof(value) for value in values)


class Outputs(NamedTuple):
    """Where the forward kernels write."""

    y: np.ndarray
    last: np.ndarray
    state: np.ndarray
    saved: np.ndarray
    states: np.ndarray


class Cotangents(NamedTuple):
    """Gradients of the outputs, arrays of size 0 for none."""

    y: np.ndarray
    last: np.ndarray
    state: np.ndarray


class Parts(NamedTuple):
    """Where the backward kernels write; the weights' gradients in parts."""

    x: np.ndarray
    h0: np.ndarray
    W: np.ndarray
    R: np.ndarray
    bias: np.ndarray

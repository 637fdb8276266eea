"""The arguments of the recurrent layers, each once: default, check, meaning.

`GRUConfig` is what `GRU` and `GRUCell` are made of: their signatures, the Parameters
section of their documentation, their properties and their saved configurations come
from its fields. `PROFILES` holds every point where Keras' own versions disagree.
"""

# ruff: noqa: RUF009 - the calls in the dataclasses are dataclasses.field, with a check
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from numbagru import activations, constraints, initializers, regularizers
from numbagru.config.checks import (
    Check,
    activation_of,
    boolean,
    canonical_dtype,
    check_name,
    check_trainable,
    dtype_policy,
    object_of,
    one_of,
    optional_name,
    positive_integer,
    rate,
    seed_or_none,
    thread_count,
)
from numbagru.config.profiles import PROFILES, Profile

__all__ = [
    "PROFILES",
    "GRUConfig",
    "Profile",
    "SequenceConfig",
    "canonical_dtype",
    "check_name",
    "check_trainable",
    "default_of",
    "dtype_policy",
]

_BY_PROFILE = object()


def _argument(
    default: Any,
    kind: str,
    meaning: str,
    check: Check,
    *,
    serialize: Callable[[Any], Any] | None = None,
    cell: bool = False,
    settable: bool = False,
) -> Any:
    """Declare one argument.

    `cell`: GRUCell has it too. `settable`: the layer's attribute may be set later.
    """
    return field(
        default=_BY_PROFILE,
        metadata={
            "default": default,
            "kind": kind,
            "meaning": meaning,
            "check": check,
            "serialize": serialize,
            "cell": cell,
            "settable": settable,
        },
    )


def _option(meaning: str) -> Any:
    return _argument(False, "bool", meaning, boolean, settable=True)


def _gate(default: str, what: str) -> Any:
    return _argument(
        default,
        "str or callable",
        f"Activation function of {what}; None is linear.",
        activation_of,
        serialize=activations.serialize,
        cell=True,
    )


def _initializer(default: str, what: str) -> Any:
    return _argument(
        default,
        "str, Initializer or array",
        f"How `{what}` starts.",
        object_of(initializers),
        serialize=initializers.serialize,
        cell=True,
    )


def _regularizer(what: str, cell: bool = True) -> Any:
    return _argument(
        None,
        "str, Regularizer or callable",
        f"Penalty on {what}, part of `losses`.",
        object_of(regularizers),
        serialize=regularizers.serialize,
        cell=cell,
    )


def _constraint(what: str) -> Any:
    return _argument(
        None,
        "str, Constraint or callable",
        f"Projection of `{what}` after each optimizer step.",
        object_of(constraints),
        serialize=constraints.serialize,
        cell=True,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class SequenceConfig:
    """The arguments of `RNN`: how a cell is applied along time."""

    activity_regularizer: Any = _regularizer("each output", cell=False)
    return_sequences: bool = _option(
        "Return the output of every step, not only the last."
    )
    return_state: bool = _option("Return the final state as well.")
    go_backwards: bool = _option(
        "Process the steps from last to first, and return them in that order.",
    )
    stateful: bool = _option(
        "Start each row from the state in which the last call left it."
    )
    unroll: bool = _option("Accepted for Keras; changes no value.")
    zero_output_for_mask: bool = _option(
        "Output zeros at masked steps instead of the previous output; also where "
        "only the last output is returned.",
    )
    time_major: bool = _option(
        "Inputs, outputs and mask have time as first axis, rows second."
    )
    name: str | None = _argument(
        None,
        "str",
        "Name of the layer; by default that of the class, numbered when taken.",
        optional_name,
        cell=True,
    )
    dtype: str = _argument(
        "float32",
        "str or dict",
        'Of weights and outputs: "float32" or "float64", or a Keras policy of it. '
        "Inputs are cast to it.",
        lambda name, value, profile: canonical_dtype(value),
        cell=True,
    )
    trainable: bool = _argument(
        True,
        "bool",
        "Whether an optimizer updates the weights.",
        lambda name, value, profile: check_trainable(value),
        cell=True,
    )
    device: str = _argument(
        "auto",
        "str",
        'Where to compute: "cpu", "cuda", or "auto" for where the input lives.',
        one_of("auto", "cpu", "cuda"),
        cell=True,
    )
    threads: int | None = _argument(
        None,
        "int",
        "Most threads that a call may use; None for the limit of the process, see "
        "`numbagru.set_num_threads`. Values do not depend on it.",
        thread_count,
        cell=True,
    )
    compat: str = _argument(
        "keras3",
        "str",
        "Whose behaviour where Keras' versions differ: "
        + ", ".join(f'"{name}"' for name in PROFILES)
        + ".",
        one_of(*PROFILES),
        cell=True,
    )

    def __post_init__(self) -> None:
        """Fill in defaults and check every argument."""
        specs = {spec.name: spec for spec in fields(self)}
        if self.compat is _BY_PROFILE:
            object.__setattr__(self, "compat", specs["compat"].metadata["default"])
        one_of(*PROFILES)("compat", self.compat, None)
        for name, spec in specs.items():
            value = getattr(self, name)
            if value is _BY_PROFILE:
                value = default_of(spec, self.profile)
            value = spec.metadata["check"](name, value, self.profile)
            object.__setattr__(self, name, value)

    @property
    def profile(self) -> Profile:
        """The row of `PROFILES` that `compat` names."""
        return PROFILES[self.compat]

    @property
    def masked_output(self) -> str:
        """Output at masked steps before the first valid one: "zero" or "state"."""
        return self.profile.masked_output


@dataclass(frozen=True, eq=False)
class GRUConfig(SequenceConfig):
    """The arguments of `GRU` and, where they apply, of `GRUCell`.

    Activations, initializers, regularizers and constraints are resolved to objects.
    """

    units: int = _argument(
        _BY_PROFILE,
        "int",
        "Width of the state and of the output.",
        positive_integer,
        cell=True,
    )
    activation: Any = _gate("tanh", "the candidate")
    recurrent_activation: Any = _gate("sigmoid", "the update and reset gates")
    use_bias: bool = _argument(
        True, "bool", "Whether to add a bias.", boolean, cell=True
    )
    kernel_initializer: Any = _initializer("glorot_uniform", "kernel")
    recurrent_initializer: Any = _initializer("orthogonal", "recurrent_kernel")
    bias_initializer: Any = _initializer("zeros", "bias")
    kernel_regularizer: Any = _regularizer("`kernel`")
    recurrent_regularizer: Any = _regularizer("`recurrent_kernel`")
    bias_regularizer: Any = _regularizer("`bias`")
    kernel_constraint: Any = _constraint("kernel")
    recurrent_constraint: Any = _constraint("recurrent_kernel")
    bias_constraint: Any = _constraint("bias")
    dropout: float = _argument(
        0.0,
        "float",
        "Share of the input features dropped in training, the same ones at all steps.",
        rate,
        cell=True,
    )
    recurrent_dropout: float = _argument(
        0.0,
        "float",
        "Share of the state dropped in training, in the gates' products only.",
        rate,
        cell=True,
    )
    seed: int | None = _argument(
        None,
        "int",
        "Seed of the dropout masks; None draws one from Python's `random`.",
        seed_or_none,
        cell=True,
    )
    reset_after: bool = _argument(
        True,
        "bool",
        "Apply the reset gate after the recurrent product (arXiv:1406.1078v1, with "
        "two biases) or before it (v3).",
        boolean,
        cell=True,
    )
    use_cudnn: str | bool = _argument(
        "auto",
        'bool or "auto"',
        'True demands the fused CUDA kernel, False forbids fused kernels, "auto" '
        "takes the fastest.",
        one_of("auto", True, False),
        settable=True,
    )
    precision: str = _argument(
        "dtype",
        "str",
        'Of sums on a CUDA device: "dtype", with the CPU\'s bits; for float32 "tf32", '
        "which rounds the factors of products over all steps at once (inputs, weight "
        'gradients) to 11 bits for tensor cores; "free", sums in any order: CuPy makes '
        "those products where it is installed, and where blocks share a layer's units "
        "idle threads share the recurrence's sums. The CPU stays as it is.",
        one_of("dtype", "tf32", "free"),
        cell=True,
    )
    implementation: int = _argument(
        2,
        "int",
        "1 draws a dropout mask for each gate, 2 (or 0) one for all; recurrent "
        "dropout always needs 1.",
        one_of(0, 1, 2),
        cell=True,
    )

    def __post_init__(self) -> None:
        """Fill in defaults and check every argument."""
        if self.units is _BY_PROFILE:
            raise TypeError("GRUConfig() misses the required argument `units`.")
        super().__post_init__()
        if self.precision == "tf32" and self.dtype != "float32":
            raise ValueError(
                "precision='tf32' takes dtype='float32'. Received: "
                f"dtype={self.dtype!r}. Pass precision='dtype'."
            )
        if self.recurrent_dropout:
            object.__setattr__(self, "implementation", 1)


def default_of(spec: Any, profile: Profile) -> Any:
    """Return the default of a field of a config in `profile`."""
    return profile.defaults.get(spec.name, spec.metadata["default"])

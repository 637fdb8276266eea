"""Checks of arguments. A failed one names the argument, what it takes and what came."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from numbagru import activations
from numbagru.config.profiles import Profile

DTYPES = ("float32", "float64")

# (argument's name, its value, the profile) -> the value that is kept.
Check = Callable[[str, Any, Profile], Any]


def canonical_dtype(dtype: Any) -> str:
    """Return "float32" (also for None) or "float64" for what Keras calls a dtype.

    Raises
    ------
    ValueError
        For every other dtype or policy.
    """
    name = dtype
    if dtype is None:
        name = "float32"
    elif isinstance(dtype, Mapping):
        name = (dtype.get("config") or {}).get("name")
    elif not isinstance(dtype, str):
        name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    if name not in DTYPES:
        raise ValueError(
            "`dtype` must be 'float32' or 'float64', or the configuration of a Keras "
            "DTypePolicy of one of these names; half-precision and mixed policies are "
            f"not available. Received: dtype={dtype!r}"
        )
    return name


def dtype_policy(dtype: str) -> dict[str, Any]:
    """Return the form in which Keras 3 saves a dtype."""
    return {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": dtype},
        "registered_name": None,
    }


def check_trainable(value: Any) -> bool:
    """Return `value` if it is a bool, else raise ValueError."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(
            "Expected `trainable` to be a boolean. "
            f"Received: trainable={value!r} (of type {type(value).__name__})"
        )
    return bool(value)


def check_name(value: Any) -> str:
    """Return `value` if it is a string without "/", else raise ValueError."""
    if not isinstance(value, str) or "/" in value:
        raise ValueError(
            "Argument `name` must be a string and cannot contain the character `/`. "
            f"Received: name={value!r} (of type {type(value).__name__})"
        )
    return value


def positive_integer(name: str, value: Any, profile: Profile) -> int:
    """Take an integer from 1 up."""
    if not _is_positive_integer(value):
        raise ValueError(
            f"Received an invalid value for argument `{name}`, "
            f"expected a positive integer, got {value!r}."
        )
    return int(value)


def _is_positive_integer(value: Any) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value > 0


def thread_count(name: str, value: Any, profile: Profile) -> int | None:
    """Take an integer from 1 up, or None."""
    if value is None:
        return None
    if not _is_positive_integer(value):
        raise ValueError(
            f"`{name}` must be a positive integer, the most threads that a call may "
            "use, or None for the limit of the process. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def boolean(name: str, value: Any, profile: Profile) -> bool:
    """Take True or False."""
    integral = isinstance(value, (np.bool_, numbers.Integral))
    if not integral or value not in (0, 1):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)


def rate(name: str, value: Any, profile: Profile) -> float:
    """Take a number in [0, 1]."""
    real = isinstance(value, numbers.Real) and math.isfinite(value)
    if not real or not 0 <= value <= 1:
        raise ValueError(
            f"`{name}` must be a number between 0 (drop nothing) and 1 (drop "
            f"everything). Received: {name}={value!r}"
        )
    return float(value)


def seed_or_none(name: str, value: Any, profile: Profile) -> int | None:
    """Take a Python integer or None."""
    if value is not None and not isinstance(value, int):
        raise ValueError(
            f"Argument `{name}` must be an integer. Received: {name}={value!r}. "
            "Pass `int(seed)` for a NumPy integer."
        )
    return value


def one_of(*choices: Any) -> Check:
    """Return a check that takes one of `choices`."""

    def check(name: str, value: Any, profile: Profile) -> Any:
        for choice in choices:
            if isinstance(value, (str, int, np.bool_)) and value == choice:
                return choice
        raise ValueError(
            f"Invalid value received for argument `{name}`. Expected one of "
            f"{', '.join(map(repr, choices))}. Received: {name}={value!r}"
        )

    return check


def activation_of(name: str, value: Any, profile: Profile) -> Any:
    """Resolve an activation; names mean what they mean in the profile."""
    return activations.get(value, era=profile.era)


def object_of(module: Any) -> Check:
    """Return a check that resolves what `module.get` does."""
    return lambda name, value, profile: module.get(value)


def optional_name(name: str, value: Any, profile: Profile) -> str | None:
    """Take a layer's name or None."""
    return None if value is None else check_name(value)

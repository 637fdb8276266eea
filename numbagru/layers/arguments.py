"""How the fields of a config become a layer's signature, text and properties."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import Parameter, Signature
from typing import Any

from numbagru.config import (
    PROFILES,
    GRUConfig,
    Profile,
    SequenceConfig,
    default_of,
)

SPECS = {spec.name: spec for spec in fields(GRUConfig)}
_OWN = [name for name in SPECS if name not in {f.name for f in fields(SequenceConfig)}]
_BASE = ("name", "trainable", "dtype")
_OPTIONS = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll")

# Arguments of some Keras version that say nothing about a layer on arrays.
IGNORED = frozenset(
    {
        "autocast",
        "batch_input_shape",
        "enable_caching_device",
        "input_dim",
        "input_length",
        "input_shape",
        "num_constants",
        "rng_type",
    }
)


@dataclass(frozen=True)
class Role:
    """What a class takes from the config: the arguments and their order.

    Attributes
    ----------
    config : type
        The config class.
    names : frozenset of str
        All arguments.
    order : callable
        The profile's positional arguments.
    keys : mapping
        For each flavor of saved configuration, its keys in order.
    """

    config: type
    names: frozenset[str]
    order: Callable[[Profile], tuple[str, ...]]
    keys: Mapping[str, tuple[str, ...]]


# What has the same place in all versions of Keras: from `units` to `recurrent_dropout`.
_CELL_ARGUMENTS = tuple(_OWN[: _OWN.index("recurrent_dropout") + 1])
_split = _OWN.index("kernel_constraint")
_LAYER_ARGUMENTS = (
    *_CELL_ARGUMENTS[:_split],
    "activity_regularizer",
    *_CELL_ARGUMENTS[_split:],
)

LAYER = Role(
    GRUConfig,
    frozenset(SPECS),
    lambda profile: (*_LAYER_ARGUMENTS, *profile.layer_order),
    {
        "keras3": (
            *_BASE,
            *_OPTIONS,
            "zero_output_for_mask",
            *_LAYER_ARGUMENTS,
            "reset_after",
            "seed",
        ),
        "tf_keras": (
            *_BASE,
            *_OPTIONS,
            "time_major",
            *_LAYER_ARGUMENTS,
            "implementation",
            "reset_after",
        ),
    },
)
CELL = Role(
    GRUConfig,
    frozenset(name for name, spec in SPECS.items() if spec.metadata["cell"]),
    lambda profile: (*_CELL_ARGUMENTS, *profile.cell_order),
    {
        "keras3": (*_BASE, *_CELL_ARGUMENTS, "reset_after", "seed"),
        "tf_keras": (*_BASE, *_CELL_ARGUMENTS, "implementation", "reset_after"),
    },
)
SEQUENCE = Role(
    SequenceConfig,
    frozenset(spec.name for spec in fields(SequenceConfig)),
    lambda profile: (*_OPTIONS, *profile.sequence_order),
    {
        "keras3": (*_BASE, *_OPTIONS, "zero_output_for_mask"),
        "tf_keras": (*_BASE, *_OPTIONS, "time_major"),
    },
)


def bind(
    owner: type, role: Role, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> SequenceConfig:
    """Make the config that a call of the constructor of `owner` asks for.

    Raises
    ------
    TypeError
        If there are too many positional arguments, one is given twice, or `units`
        is missing.
    ValueError
        If a keyword is unknown, or the config refuses a value.
    """
    label = owner.__name__
    order = role.order(PROFILES[owner._compat])
    if len(args) > len(order):
        raise TypeError(
            f"{label} takes at most {len(order)} positional arguments. "
            f"Received: {len(args)}"
        )
    given = dict(zip(order, args))  # noqa: B905
    twice = given.keys() & kwargs.keys()
    if twice:
        raise TypeError(f"{label} got multiple values for {sorted(twice)}.")
    unknown = {
        name: value
        for name, value in kwargs.items()
        if name not in role.names and name not in IGNORED
    }
    if unknown:
        raise ValueError(f"Unrecognized keyword arguments passed to {label}: {unknown}")
    given.update((k, v) for k, v in kwargs.items() if k in role.names)
    if "units" in order and "units" not in given:
        raise TypeError(f"{label} misses the required argument `units`.")
    return role.config(**{"compat": owner._compat, **given})


def configured(role: Role, *before: Parameter) -> Callable[[type], type]:
    """Decorate a class with the signature, text and properties that `role` gives.

    Its constructor keeps the config as `self.config` and reports a changed option to
    `self._config_changed()`. `before` are leading parameters of its own.
    """

    def decorate(cls: type) -> type:
        profile = PROFILES[cls._compat]
        init = cls.__init__

        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)

        __init__.__signature__ = _signature(role, profile, before)
        cls.__init__ = __init__
        cls.__doc__ = cls.__doc__.replace("{parameters}", _text(role, profile))
        for name in role.names - set(vars(cls)) - {*_BASE, "activity_regularizer"}:
            setattr(cls, name, _property(name))
        return cls

    return decorate


def _in_order(role: Role, profile: Profile) -> list[tuple[Any, Any]]:
    order = role.order(profile)
    rest = [name for name in SPECS if name in role.names and name not in order]
    return [
        (SPECS[name], kind)
        for names, kind in (
            (order, Parameter.POSITIONAL_OR_KEYWORD),
            (sorted(rest), Parameter.KEYWORD_ONLY),
        )
        for name in names
    ]


def _signature(
    role: Role, profile: Profile, before: tuple[Parameter, ...]
) -> Signature:
    own = [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *before]
    for spec, kind in _in_order(role, profile):
        default = Parameter.empty
        if spec.name != "units":
            default = default_of(spec, profile)
        own.append(Parameter(spec.name, kind, default=default, annotation=spec.type))
    return Signature(own)


def _text(role: Role, profile: Profile) -> str:
    lines = []
    for spec, _ in _in_order(role, profile):
        default = default_of(spec, profile)
        ending = (
            ""
            if spec.name == "units"
            else ", optional"
            if default is None
            else f", default {default!r}"
        ).replace("'", '"')
        lines.append(f"{spec.name} : {spec.metadata['kind']}{ending}")
        lines += textwrap.wrap(
            spec.metadata["meaning"],
            width=84,
            initial_indent="    ",
            subsequent_indent="    ",
        )
    return textwrap.indent("\n".join(lines), "    ").lstrip()


def _property(name: str) -> property:
    spec = SPECS[name]

    def get(self: Any) -> Any:
        return getattr(self.config, name)

    def set_(self: Any, value: Any) -> None:
        self.config = replace(self.config, **{name: value})
        self._config_changed()

    get.__doc__ = spec.metadata["meaning"]
    return property(get, set_ if spec.metadata["settable"] else None)

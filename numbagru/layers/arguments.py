"""How the fields of a config become a layer's signature, text, properties and dicts."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import Parameter, Signature
from typing import Any

from numbagru import activations
from numbagru.config import (
    PROFILES,
    GRUConfig,
    Profile,
    SequenceConfig,
    default_of,
    dtype_policy,
)

_SPECS = {spec.name: spec for spec in fields(GRUConfig)}
_HEAD = (
    "units",
    "activation",
    "recurrent_activation",
    "use_bias",
    "kernel_initializer",
    "recurrent_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "recurrent_regularizer",
    "bias_regularizer",
)
_TAIL = (
    "kernel_constraint",
    "recurrent_constraint",
    "bias_constraint",
    "dropout",
    "recurrent_dropout",
)
_INITIALIZERS = {"kernel_initializer", "recurrent_initializer", "bias_initializer"}
_ACTIVATIONS = {"activation", "recurrent_activation"}
_TF_NAMES = {"silu": "swish"}
_ERAS = {"keras.activations": "keras3", "tf_keras.activations": "tf_keras"}
_BASE = ("name", "trainable", "dtype")
_OPTIONS = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll")

# Arguments of some Keras version that say nothing about a layer on arrays.
_IGNORED = frozenset(
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


_LAYER_ARGUMENTS = (*_HEAD, "activity_regularizer", *_TAIL)
_CELL_ARGUMENTS = (*_HEAD, *_TAIL)

LAYER = Role(
    GRUConfig,
    frozenset(_SPECS),
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
    frozenset(name for name, spec in _SPECS.items() if spec.metadata["cell"]),
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
        if name not in role.names and name not in _IGNORED
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
    rest = [name for name in _SPECS if name in role.names and name not in order]
    return [
        (_SPECS[name], kind)
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
    spec = _SPECS[name]

    def get(self: Any) -> Any:
        return getattr(self.config, name)

    def set_(self: Any, value: Any) -> None:
        self.config = replace(self.config, **{name: value})
        self._config_changed()

    get.__doc__ = spec.metadata["meaning"]
    return property(get, set_ if spec.metadata["settable"] else None)


def to_dict(config: SequenceConfig, role: Role, flavor: str) -> dict[str, Any]:
    """Return the configuration that Keras of `flavor` writes for the same layer.

    Raises
    ------
    ValueError
        If `flavor` is unknown, or that Keras has no way to say it.
    """
    if flavor not in role.keys:
        raise ValueError(
            f"`flavor` must be one of {', '.join(map(repr, role.keys))}. "
            f"Received: flavor={flavor!r}"
        )
    saved = _dict(config, role.keys[flavor], flavor)
    if flavor == "keras3" and config.time_major:
        raise ValueError(
            "Keras 3 has no `time_major`: use flavor='tf_keras', or a layer with "
            "time_major=False. Received: time_major=True"
        )
    for name in _ACTIVATIONS & saved.keys():
        if not isinstance(saved[name], str):
            raise ValueError(
                f"The `{name}` of this layer is the one of {saved[name]['module']}; "
                f"under its name flavor={flavor!r} has another function."
            )
    if flavor == "tf_keras" and config.zero_output_for_mask:
        saved["zero_output_for_mask"] = True
    return saved


def to_own_dict(
    config: SequenceConfig, role: Role, default_compat: str
) -> dict[str, Any]:
    """Return Keras' keys, and those beyond them whose value is not the default.

    So a round trip loses nothing, and an ordinary layer writes what Keras writes.
    """
    flavor = config.profile.flavor
    saved = _dict(config, role.keys[flavor], flavor)
    standard = {"compat": default_compat}
    if getattr(config, "recurrent_dropout", 0):
        standard["implementation"] = 1
    for name in sorted(role.names - saved.keys() - {"activity_regularizer"}):
        value = getattr(config, name)
        if value != standard.get(name, default_of(_SPECS[name], config.profile)):
            saved[name] = value
    return saved


def _dict(config: Any, names: Sequence[str], flavor: str) -> dict[str, Any]:
    saved = {}
    for name in names:
        value = getattr(config, name)
        serialize = _SPECS[name].metadata["serialize"]
        saved[name] = value if serialize is None else serialize(value)
    for name in _ACTIVATIONS & saved.keys():
        saved[name] = _named(getattr(config, name), flavor)
    if flavor == "keras3":
        saved["dtype"] = dtype_policy(config.dtype)
    else:
        for name in _INITIALIZERS & saved.keys():
            if isinstance(saved[name], dict) and isinstance(
                saved[name]["config"], dict
            ):
                for key in ("input_axes", "output_axes"):
                    saved[name]["config"].pop(key, None)
    return saved


def _named(activation: Any, flavor: str) -> str | dict[str, Any]:
    """Return the name of an activation; with its module if that of the other Keras."""
    name = activations.serialize(activation)
    if not activation.builtin:
        return name
    if activations.get(name, era=flavor) == activation:
        return _TF_NAMES.get(name, name) if flavor == "tf_keras" else name
    return {
        "module": next(m for m, era in _ERAS.items() if era != flavor),
        "class_name": name,
        "config": {},
        "registered_name": None,
    }


def from_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's keywords for a saved configuration of either flavor.

    In one from tf_keras, "hard_sigmoid" is the function of that Keras.
    """
    given = {name: value for name, value in config.items() if name not in _IGNORED}
    from_tf = isinstance(given.get("dtype"), str) and "implementation" in given
    if from_tf:
        given["implementation"] = given["implementation"] or 1
    for name in _ACTIVATIONS & given.keys():
        value = given[name]
        if isinstance(value, dict) and value.get("module") in _ERAS:
            era = _ERAS[value["module"]]
            given[name] = activations.get(value["class_name"], era=era)
        elif from_tf and isinstance(value, str):
            given[name] = activations.get(value, era="tf_keras")
    return given


def fresh_arguments(config: GRUConfig, role: Role) -> dict[str, Any]:
    """Return the arguments of a layer like this one, with initializers of its own.

    An initializer without a seed gives the same numbers at each call, so that layers
    which share one would start alike.
    """
    arguments = {name: getattr(config, name) for name in role.names}
    for name in _INITIALIZERS & arguments.keys():
        initializer = arguments[name]
        if hasattr(initializer, "get_config"):
            arguments[name] = type(initializer).from_config(initializer.get_config())
    return arguments

"""Configurations as plain dictionaries: those of numbagru, Keras 3 and tf_keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numbagru import activations
from numbagru.config import GRUConfig, SequenceConfig, default_of, dtype_policy
from numbagru.layers.arguments import IGNORED, SPECS, Role

ACTIVATIONS = {name for name in SPECS if name.endswith("activation")}
INITIALIZERS = {name for name in SPECS if name.endswith("initializer")}
_TF_NAMES = {"silu": "swish"}
_ERAS = {"keras.activations": "keras3", "tf_keras.activations": "tf_keras"}


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
    for name in ACTIVATIONS & saved.keys():
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
        if value != standard.get(name, default_of(SPECS[name], config.profile)):
            saved[name] = value
    return saved


def _dict(config: Any, names: Sequence[str], flavor: str) -> dict[str, Any]:
    saved = {}
    for name in names:
        value = getattr(config, name)
        serialize = SPECS[name].metadata["serialize"]
        saved[name] = value if serialize is None else serialize(value)
    for name in ACTIVATIONS & saved.keys():
        saved[name] = _named(getattr(config, name), flavor)
    if flavor == "keras3":
        saved["dtype"] = dtype_policy(config.dtype)
    else:
        for name in INITIALIZERS & saved.keys():
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
    given = {name: value for name, value in config.items() if name not in IGNORED}
    from_tf = isinstance(given.get("dtype"), str) and "implementation" in given
    if from_tf:
        given["implementation"] = given["implementation"] or 1
    for name in ACTIVATIONS & given.keys():
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
    for name in INITIALIZERS & arguments.keys():
        initializer = arguments[name]
        if hasattr(initializer, "get_config"):
            arguments[name] = type(initializer).from_config(initializer.get_config())
    return arguments

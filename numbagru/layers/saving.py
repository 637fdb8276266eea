"""Layers as plain dictionaries, in the form Keras saves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

KERAS = "keras.layers"
# Where the classes of each profile are saved; that of Keras itself for the default.
HOMES = {
    "keras3": KERAS,
    "keras3-jax": KERAS,
    "tf_keras": "numbagru.compat.v2",
    "tf1": "numbagru.compat.v1",
}
# Those that register their classes when they are imported, which may not have happened.
_LATER = set(HOMES.values()) - {KERAS}
_CLASSES: dict[tuple[str, str], type] = {}
_MODULES: dict[type, str] = {}


def register(module: str = KERAS) -> Callable[[type], type]:
    """Decorate a class that is saved under `module` and found there again."""

    def decorate(cls: type) -> type:
        _CLASSES[module, cls.__name__] = cls
        _MODULES[cls] = module
        return cls

    return decorate


def serialize(layer: Any) -> dict[str, Any]:
    """Return the class and the configuration of a layer or cell.

    Parameters
    ----------
    layer : Layer
        Anything with a `get_config` method.

    Returns
    -------
    dict
        With 'module', 'class_name', 'config', 'registered_name', and 'build_config'
        for a layer that is built.

    Raises
    ------
    TypeError
        If `layer` has no `get_config`.
    """
    cls = type(layer)
    if not hasattr(layer, "get_config"):
        raise TypeError(
            f"A layer or cell needs a `get_config` method to be saved. "
            f"Received: {layer!r} of type {cls.__name__}"
        )
    module = _MODULES.get(cls)
    saved = {
        "module": module or cls.__module__,
        "class_name": cls.__name__,
        "config": layer.get_config(),
        "registered_name": None if module else cls.__name__,
    }
    build_config = getattr(layer, "get_build_config", lambda: None)()
    if build_config is not None:
        saved["build_config"] = build_config
    return saved


def deserialize(
    saved: Mapping[str, Any],
    custom_objects: Mapping[str, type] | None = None,
    compat: str = "keras3",
) -> Any:
    """Make the layer or cell that `serialize` described, with fresh weights.

    Parameters
    ----------
    saved : mapping
        From `serialize`, from Keras 3, or the older form of 'class_name' and 'config'.
    custom_objects : mapping, optional
        Classes by name, ahead of those of this package.
    compat : str, default "keras3"
        The profile whose classes stand for the names of Keras.

    Raises
    ------
    ValueError
        If the class is unknown.
    """
    name = saved.get("class_name") if isinstance(saved, Mapping) else None
    cls = (custom_objects or {}).get(name)
    if cls is None:
        module = saved.get("module", KERAS) if name else KERAS
        home = HOMES[compat] if module == KERAS else module
        if home in _LATER:
            import_module(home)
        cls = _CLASSES.get((home, name), _CLASSES.get((KERAS, name)))
    if cls is None:
        known = ", ".join(sorted({known for _, known in _CLASSES}))
        raise ValueError(
            f"Could not interpret the layer {saved!r}: its 'class_name' must be one of "
            f"{known}, or a key of `custom_objects`."
        )
    return cls.from_config(dict(saved["config"]))

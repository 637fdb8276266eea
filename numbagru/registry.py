"""What the modules of named objects share: lookup, configs, argument checks.

Initializers, regularizers, constraints, optimizers, ... are each a table from names
to classes or functions. `resolve` turns whatever Keras accepts as an identifier into
the object, `serialize_object` goes the other way, in the form Keras 3 writes.
"""

import inspect
import math
import numbers
import re
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np

KERAS_EPSILON = 1e-7  # keras.config.epsilon()

_KERAS_MODULES: dict[type, str] = {}


class Configurable:
    """An object whose config is its constructor's arguments, kept as attributes."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain Python values.

        Raises
        ------
        NotImplementedError
            If an argument is not kept as an attribute of the same name.
        """
        names = inspect.signature(type(self)).parameters
        missing = [name for name in names if not hasattr(self, name)]
        if missing:
            raise NotImplementedError(
                f"{type(self).__name__} must define `get_config()`, or keep its "
                f"arguments as attributes. Received: no attributes {missing}"
            )
        return {name: serialize_object(getattr(self, name)) for name in names}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Build the object from what `get_config` returned."""
        return cls(**config)

    def __repr__(self) -> str:
        """Return the constructor call that makes the object."""
        names = inspect.signature(type(self)).parameters
        shown = ", ".join(f"{n}={getattr(self, n, '?')!r}" for n in names)
        return f"{type(self).__name__}({shown})"


def snake_case(name: str) -> str:
    """Return the Keras snake_case form of a class name (`L1L2` gives `l1l2`)."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def name_table(keras_module: str, *classes: type, **aliases: type) -> dict[str, type]:
    """Return `{name: class}` with CamelCase, snake_case and alias names.

    The classes are from then on serialized as members of `keras_module`.
    """
    _KERAS_MODULES.update(dict.fromkeys(classes, keras_module))
    names = {cls.__name__: cls for cls in classes}
    return names | {snake_case(n): cls for n, cls in names.items()} | aliases


def module_attribute(module: str, table: Mapping[str, Any], name: str) -> Any:
    """Serve a module's `__getattr__` from its table, as in `regularizers.l2(1e-4)`."""
    if name in table:
        return table[name]
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def resolve(
    identifier: Any,
    table: Mapping[str, Any],
    kind: str,
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """Return the object that a Keras identifier stands for.

    Parameters
    ----------
    identifier : None, str, dict, class or callable
        A name of the table, a config dict (Keras 3, or the older `{'class_name',
        'config'}`), a class (called without arguments) or the object itself.
        None stays None.
    table : mapping
        Names to classes (which are instantiated) or functions (returned as they are).
    kind : str
        What the error message calls the object, such as "initializer".
    custom_objects : mapping, optional
        More names, ahead of those of the table.

    Raises
    ------
    ValueError
        If the identifier is none of these, or its name is unknown.
    TypeError
        If a config does not fit its class.
    """
    known = {**table, **(custom_objects or {})}
    found = identifier
    if isinstance(identifier, str):
        found = known.get(identifier)
    elif isinstance(identifier, dict):
        found = _from_dict(identifier, known, kind)
    if inspect.isclass(found):
        found = found()
    classes = tuple(entry for entry in known.values() if inspect.isclass(entry))
    if not (identifier is None or callable(found) or isinstance(found, classes)):
        names = ", ".join(sorted(name for name in known if name.islower()))
        raise ValueError(
            f"Could not interpret {kind} identifier: {identifier}. Expected one of "
            f"the names {names}, or a config dict, a class, an instance, a callable."
        )
    return found


def _from_dict(identifier: dict, known: Mapping[str, Any], kind: str) -> Any:
    name = identifier.get("class_name")
    if not isinstance(name, str):
        raise ValueError(
            f"A {kind} config must have a string under 'class_name'. "
            f"Received: config={identifier}"
        )
    config: Any = identifier.get("config") or {}
    if name == "function":
        return known.get(str(config))
    found: Any = known.get(name, known.get(str(identifier.get("registered_name"))))
    if not inspect.isclass(found):
        return found
    if not isinstance(config, Mapping):
        raise TypeError(
            f"The config of {name} must be a dict. Received: config={config!r}"
        )
    try:
        return found.from_config(config)
    except TypeError as error:
        raise TypeError(
            f"The {kind} {name} could not be built from its config: {error}. "
            f"Received: config={config}"
        ) from error


def serialize_object(obj: Any) -> Any:
    """Return the plain Python form of an object, as Keras 3 writes it in a config.

    None, numbers, strings and containers of them stay themselves; an object with a
    `get_config` becomes `{'module', 'class_name', 'config', 'registered_name'}`.

    Raises
    ------
    TypeError
        If the object has no `get_config` and is no function.
    """
    if isinstance(obj, np.generic):
        return obj.item()
    if obj is None or isinstance(obj, (bool, int, float, str)):
        return obj
    if isinstance(obj, (list, tuple)):
        return type(obj)(serialize_object(item) for item in obj)
    if isinstance(obj, np.ndarray):
        config: Any = {"value": obj.tolist(), "dtype": obj.dtype.name}
        return {"class_name": "__numpy__", "config": config}
    if isinstance(obj, FunctionType):
        module = "builtins"
        name, config, registered = "function", obj.__name__, "function"
    elif hasattr(obj, "get_config"):
        name, config = type(obj).__name__, obj.get_config()
        module = _KERAS_MODULES.get(type(obj), type(obj).__module__)
        registered = "" if type(obj) in _KERAS_MODULES else name
    else:
        raise TypeError(
            "An object must define `get_config()` to be serialized. "
            f"Received: {obj!r} of type {type(obj).__name__}"
        )
    return {
        "module": module,
        "class_name": name,
        "config": config,
        "registered_name": registered or None,
    }


def finite_number(
    value: Any,
    name: str,
    expected: str = "a finite number",
    accepts: Callable[[Any], bool] = lambda value: True,
) -> Any:
    """Return `value` as a Python number, or raise a ValueError that names it."""
    if isinstance(value, np.generic):
        value = value.item()
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or not accepts(value)
    ):
        raise ValueError(
            f"Invalid value for argument `{name}`: expected {expected}. "
            f"Received: {name}={value!r}"
        )
    return value


def non_negative(value: Any, name: str) -> Any:
    """Return `value` as a Python number >= 0, or raise a ValueError that names it."""
    return finite_number(value, name, "a non-negative float", lambda v: v >= 0)


def on_device(value: Any) -> bool:
    """Whether `value` is an array in the memory of a CUDA device."""
    return not isinstance(value, np.ndarray) and hasattr(
        value, "__cuda_array_interface__"
    )


def refuse_device(value: Any, name: str) -> None:
    """Raise TypeError for an array on a CUDA device, where only GRUs compute."""
    if on_device(value):
        raise TypeError(
            f"`{name}` is an array on a CUDA device, but only GRU layers and cells, "
            "RNN layers of such cells, and Bidirectional layers compute there. Copy it "
            "to the host first."
        )


def float_array(w: Any, name: str = "w") -> np.ndarray:
    """Return `w` as float32 or float64; other real dtypes become float32.

    Raises
    ------
    TypeError
        If `w` holds complex numbers or no numbers at all.
    """
    refuse_device(w, name)
    w = np.asarray(w)
    if w.dtype in (np.float32, np.float64):
        return w
    if w.dtype.kind in "biuf":
        return w.astype(np.float32)
    raise TypeError(
        f"`{name}` must hold real numbers, float32 or float64. "
        f"Received: {name}.dtype={w.dtype}"
    )

"""Models as files: one .npz of a JSON header and plain arrays, no pickle, no code.

A header says what to build, in the form of Keras' configurations. Reading one builds
registered classes by name and nothing else, so a file cannot run code; functions and
classes of a user come back only from the `custom_objects` of whoever loads.
"""

from __future__ import annotations

import io
import json
import os
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from numbagru import activations
from numbagru.layers import saving as layer_saving
from numbagru.layers.base import Layer
from numbagru.training import losses, optimizers
from numbagru.training.metrics import deserialize as metric_of
from numbagru.training.trainer import Trainer, layers_of

FORMAT, VERSION = "numbagru model", 1

_ACTIVATIONS = ("activation", "recurrent_activation")


def save_model(model: Trainer, filepath: str | PathLike[str]) -> None:
    """Write a built model into a file; see `Sequential.save`."""
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' has no weights to save yet. Build it with "
            "`model.build(input_shape)` or call it on data first."
        )
    _require_names(model)
    weights, states = model.weights, _random_states(model)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": layer_saving.serialize(model),
        "weights": [v.path for v in weights],
        "compile": _compile_config(model),
    }
    _require_importable(header)
    arrays = {f"weights/{i}": v.value for i, v in enumerate(weights)}
    arrays |= {f"random/{i}": v.value for i, v in enumerate(states)}
    if model.compiled:
        store: dict[str, np.ndarray] = {}
        model.optimizer.save_own_variables(store)
        arrays |= {f"optimizer/{key}": value for key, value in store.items()}
    text = json.dumps(header).encode()
    _write(Path(filepath), {"header": np.frombuffer(text, np.uint8), **arrays})


def load_model(
    filepath: str | PathLike[str], custom_objects: Mapping[str, Any] | None = None
) -> Trainer:
    """Return the model that `Sequential.save` wrote, ready to go on training.

    Parameters
    ----------
    filepath : path-like
        The file.
    custom_objects : mapping, optional
        Your own activations, losses, layers, ... by name, if the model has any.

    Returns
    -------
    Sequential
        With weights, random states and, if it was compiled, loss, metrics and the state
        of the optimizer.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, of another kind or from a later version, or something
        in it is neither part of numbagru nor in `custom_objects`.
    """
    path = Path(filepath)
    content = path.read_bytes()
    try:
        header, arrays = _read(content)
        return _model(header, arrays, dict(custom_objects or {}))
    except Exception as error:
        # What goes wrong from here on is the content's doing, in one of countless ways.
        raise ValueError(f"Cannot load a model from '{path}': {error}") from error


def _model(header, arrays, custom):
    model = _revived(header["model"], custom)
    if not isinstance(model, Trainer):
        model = layer_saving.deserialize(model)
    if not isinstance(model, Trainer) or not model.built:
        raise ValueError(f"it holds a {type(model).__name__}, not a built model")
    _assign("weights", model.weights, arrays)
    _assign("random", _random_states(model), arrays)
    settings = header["compile"]
    if settings is not None:
        model.compile(
            optimizers.deserialize(_revived(settings["optimizer"], custom)),
            losses.deserialize(_revived(settings["loss"], custom)),
            [metric_of(_revived(m, custom)) for m in settings["metrics"]],
        )
        if settings["variables"] is not None:
            weights = model.weights
            model.optimizer.build([weights[i] for i in settings["variables"]])
        model.optimizer.load_own_variables(_group("optimizer", arrays))
    return model


def _compile_config(model):
    if not model.compiled:
        return None
    places = {id(v): i for i, v in enumerate(model.weights)}
    variables = model.optimizer.trainable_variables
    if any(id(v) not in places for v in variables):
        raise ValueError(
            "The optimizer belongs to weights that the model has no more. "
            "Call `model.compile` again before `save`."
        )
    return {
        "optimizer": optimizers.serialize(model.optimizer),
        "loss": losses.serialize(model.loss),
        "metrics": [metric.get_config() for metric in model.metrics],
        "variables": [places[id(v)] for v in variables]
        if model.optimizer.built
        else None,
    }


# ------------------------------------------------------------------ files and arrays


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz beside `path` and put it in place at once."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _read(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not an .npz file, or it was cut off")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if "header" not in arrays:
        raise ValueError("it was not written by `Sequential.save`: it has no header")
    header = json.loads(arrays.pop("header").tobytes())
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError("it was not written by `Sequential.save`")
    if header["version"] != VERSION:
        raise ValueError(
            f"it has version {header['version']} of the format, this numbagru reads "
            f"version {VERSION}. Update numbagru"
        )
    return header, arrays


def _group(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = name + "/"
    return {
        k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)
    }


def _assign(name: str, variables: Sequence[Any], arrays: Mapping[str, Any]) -> None:
    stored = _group(name, arrays)
    if stored.keys() != {str(i) for i in range(len(variables))}:
        raise ValueError(
            f"the model needs {len(variables)} arrays under '{name}', "
            f"it has {len(stored)}"
        )
    for i, variable in enumerate(variables):
        array = stored[str(i)]
        if array.shape != variable.shape or array.dtype != variable.value.dtype:
            raise ValueError(
                f"'{variable.path}' needs {variable.value.dtype} of shape "
                f"{variable.shape}, '{name}/{i}' is {array.dtype} of {array.shape}"
            )
        variable.assign(array)


def _random_states(model: Layer) -> list[Any]:
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights]


# ------------------------------------------------------------- functions of the user


def _require_names(model: Layer) -> None:
    """Raise if an activation of the user goes by a name that means something else."""
    for layer in layers_of(model):
        for attribute in _ACTIVATIONS:
            activation = getattr(layer, attribute, None)
            if getattr(activation, "builtin", True):
                continue
            name = activation.name
            if not name.isidentifier() or _is_builtin(name):
                raise ValueError(
                    f"The `{attribute}` of layer '{layer.name}' is a function of yours "
                    f"named '{name}', under which it could not be found again. Give it "
                    "a name of its own: numbagru.activations.Activation(..., name=...)"
                )


def _is_builtin(name: str) -> bool:
    try:
        return activations.get(name).builtin
    except ValueError:
        return False


def _require_importable(node: Any) -> None:
    """Raise if a configuration names a function without a name, such as a lambda."""
    if isinstance(node, (list, tuple)):
        for part in node:
            _require_importable(part)
    elif isinstance(node, dict):
        name = _custom_name(node)
        if name is not None and not str(name).isidentifier():
            raise ValueError(
                f"A function named '{name}' cannot be saved: it could not be found "
                "again. Define it with `def`, and give it to `custom_objects` of "
                "`load_model`."
            )
        for part in node.values():
            _require_importable(part)


def _custom_name(node: Mapping[str, Any]) -> Any:
    """Return the name of a function or class of the user, None for anything else."""
    if node.get("class_name") == "function":
        return node.get("config")
    return node.get("registered_name") if "class_name" in node else None


def _revived(node: Any, custom: Mapping[str, Any]) -> Any:
    """Return a configuration in which the user's names have become his objects."""
    if isinstance(node, list):
        return [_revived(part, custom) for part in node]
    if not isinstance(node, dict):
        return node
    name = _custom_name(node)
    if name is not None and name not in custom:
        raise ValueError(
            f"it needs '{name}', which is not part of numbagru. Pass "
            f"custom_objects={{'{name}': ...}} if you trust the file"
        )
    node = {key: _revived(value, custom) for key, value in node.items()}
    for key in _ACTIVATIONS:
        if isinstance(node.get(key), str) and node[key] in custom:
            node[key] = custom[node[key]]
    if name is None:
        return node
    found = custom[name]
    return found.from_config(node["config"]) if isinstance(found, type) else found

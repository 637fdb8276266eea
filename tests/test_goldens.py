"""numbagru.compat repeats what tf_keras computed (recorded by goldens/)."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from goldens.cases import CASES, Reset

with np.load(Path(__file__).parent / "goldens" / "tf_keras.npz") as archive:
    ARRAYS = dict(archive)
RECORD = json.loads(str(ARRAYS.pop("record")))
BY_NAME = {case.name: case for case in CASES}


def flatten(out):
    if not isinstance(out, list | tuple):
        return [out]
    return [array for item in out for array in flatten(item)]


def like(out, arrays):
    """Arrange the arrays of an iterator as `out` is arranged."""
    if not isinstance(out, list | tuple):
        return next(arrays)
    return type(out)(like(item, arrays) for item in out)


def replay_call(layer, call, cotangents):
    names = {"mask": call.mask, "initial_state": call.initial_state}
    inputs = {k: ARRAYS[RECORD["inputs"][v]] for k, v in names.items() if v}
    x = ARRAYS[RECORD["inputs"][call.x]]
    if call.gradients:
        out, pullback = layer.vjp(x, **inputs)
        along = like(out, (ARRAYS[name] for name in cotangents))
        gradients = pullback(along, include_losses=True)
        yield "gradients/inputs", gradients.inputs
        if call.initial_state:
            yield "gradients/initial_state", *flatten(gradients.initial_state)
        for i, gradient in enumerate(gradients.weights):
            yield f"gradients/weights/{i}", gradient
    else:
        out = layer(x, **inputs)
    for i, array in enumerate(flatten(out)):
        yield f"outputs/{i}", array
    for i, loss in enumerate(layer.losses):
        yield f"losses/{i}", loss
    if getattr(layer, "stateful", False):
        yield "recorded_state", *flatten(layer.states)


def replay(api, case, golden):
    layer = case.build(importlib.import_module(f"numbagru.compat.{api}"))
    call = next(step for step in case.steps if not isinstance(step, Reset))
    layer.build(ARRAYS[RECORD["inputs"][call.x]].shape)
    layer.set_weights([ARRAYS[name] for name in golden["weights"]])
    cotangents = iter(golden["cotangents"])
    results = {}
    for number, step in enumerate(case.steps):
        if isinstance(step, Reset):
            states = ARRAYS[RECORD["inputs"][step.states]] if step.states else None
            layer.reset_states(states)
        else:
            named = dict(replay_call(layer, step, next(cotangents)))
            # Copies: the recorded state is a variable, and the next call changes it.
            results |= {f"{number}/{key}": np.array(a) for key, a in named.items()}
    return layer, results


def plain(config):
    """Drop names, which count instances, and round as float32 does."""
    if isinstance(config, dict):
        return {k: plain(v) for k, v in config.items() if k != "name"}
    if isinstance(config, list):
        return [plain(item) for item in config]
    return float(np.float32(config)) if isinstance(config, float) else config


def test_every_case_is_recorded():
    assert set(RECORD["cases"]) == {f"{a}/{n}" for a in ("v1", "v2") for n in BY_NAME}


@pytest.mark.parametrize("key", RECORD["cases"])
def test_same_numbers_as_tf_keras(key):
    api, name = key.split("/")
    golden = RECORD["cases"][key]
    layer, results = replay(api, BY_NAME[name], golden)
    assert set(results) == set(golden["shapes"])
    flat = iter(ARRAYS[golden["results"]])
    for field, shape in golden["shapes"].items():
        expected = np.fromiter(flat, "float32", int(np.prod(shape))).reshape(shape)
        # A float32 evaluation may err twice as much as the one of tf_keras does.
        kind = "gradients" if "/gradients/" in field else "forward"
        atol = 2 * RECORD["float32_error"][kind] * max(1.0, abs(expected).max())
        np.testing.assert_allclose(results[field], expected, 0, atol, err_msg=field)
        assert np.shape(results[field]) == tuple(shape)
    assert plain(layer.get_config()) == plain(golden["config"])

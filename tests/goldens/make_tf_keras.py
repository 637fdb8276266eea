"""Record what tf_keras computes for `cases.CASES` in ``tf_keras.npz``.

Run by hand: ``pip install tensorflow==2.21.* tf_keras==2.21.*``, then
``python tests/goldens/make_tf_keras.py``. Results are those of float64 layers, rounded
to float32. The same cases run in float32 too, and the largest distance between the two
is recorded as ``float32_error``: what float32 itself costs, whoever computes.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import tensorflow as tf
import tf_keras
from cases import CASES, UNITS, Reset

BATCH, STEPS, FEATURES = 3, 5, 4
LAYERS = {"v1": tf.compat.v1.keras.layers, "v2": tf.keras.layers}


def make_inputs():
    """Return the inputs, masks and states that the cases name, exact in float32."""
    rng = np.random.default_rng(20)
    masks = {
        "left": [[0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]],
        "right": [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]],
        "gaps": [[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [1, 1, 1, 0, 1]],
        "one_empty": [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 1, 1]],
    }
    arrays = {name: np.array(rows, dtype=bool) for name, rows in masks.items()}
    for name in ("x", "x2"):
        arrays[name] = rng.standard_normal((BATCH, STEPS, FEATURES), dtype="float32")
    arrays["h0"] = rng.standard_normal((BATCH, UNITS), dtype="float32")
    arrays["x_one_step"] = arrays["x"][:, :1]
    arrays["x_time_major"] = arrays["x"].swapaxes(0, 1)
    arrays["gaps_time_major"] = arrays["gaps"].swapaxes(0, 1)
    return arrays


def draw(seed, shapes, scale=1.0):
    """Return one float32 normal array per shape."""
    rng = np.random.default_rng(seed)
    return [np.float32(scale) * rng.standard_normal(s, dtype="float32") for s in shapes]


def run_call(layer, call, inputs):
    """Take one call; return its results by name and its cotangents."""
    dtype = layer.dtype

    def tensor(name):
        return None if name is None else tf.constant(inputs[name], dtype)

    x, state = tensor(call.x), tensor(call.initial_state)
    mask = None if call.mask is None else tf.constant(inputs[call.mask])
    sources = {f"weights/{i}": w for i, w in enumerate(layer.trainable_weights)}
    sources |= {"inputs": x} | ({} if state is None else {"initial_state": state})
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x] if state is None else [x, state])
        outputs = tf.nest.flatten(layer(x, mask=mask, initial_state=state))
        cotangents = draw(22, [o.shape for o in outputs])
        along = [
            tf.reduce_sum(o * dy) for o, dy in zip(outputs, cotangents, strict=True)
        ]
        target = tf.add_n(along + layer.losses)
    results = {f"outputs/{i}": o for i, o in enumerate(outputs)}
    results |= {f"losses/{i}": loss for i, loss in enumerate(layer.losses)}
    if getattr(layer, "stateful", False):
        results["recorded_state"] = layer.states[0]
    if call.gradients:
        gradients = tape.gradient(target, sources)
        results |= {
            f"gradients/{k}": tf.convert_to_tensor(g) for k, g in gradients.items()
        }
    return {k: v.numpy() for k, v in results.items()}, cotangents


def run_case(case, layers, inputs, dtype):
    """Take all steps of a case; return results, weights, cotangents and the config."""
    tf_keras.backend.set_floatx(dtype)
    layer = case.build(layers)
    first = inputs[next(s.x for s in case.steps if not isinstance(s, Reset))]
    layer.build(first.shape)
    weights = draw(21, [w.shape for w in layer.get_weights()], 0.6)
    layer.set_weights(weights)
    results, cotangents = {}, []
    for number, step in enumerate(case.steps):
        if isinstance(step, Reset):
            layer.reset_states(step.states and inputs[step.states])
            continue
        named, along = run_call(layer, step, inputs)
        results |= {f"{number}/{key}": value for key, value in named.items()}
        cotangents.append(along)
    return results, weights, cotangents, layer.get_config()


def distance(single, double):
    """Return the largest distance, relative to the larger of one and the values."""
    return float(abs(single - double).max() / max(1.0, abs(double).max()))


class Store(dict):
    """Arrays by number; equal arrays are kept once."""

    def put(self, array):
        """Keep an array and return its name."""
        for name, known in self.items():
            if known.dtype == array.dtype and np.array_equal(known, array):
                return name
        name = f"a{len(self)}"
        self[name] = array
        return name


def main():
    """Write ``tf_keras.npz`` beside this file."""
    inputs, store, cases = make_inputs(), Store(), {}
    errors = {"forward": 0.0, "gradients": 0.0}
    for api, layers in LAYERS.items():
        for case in CASES:
            double, *_ = run_case(case, layers, inputs, "float64")
            single, weights, cotangents, config = run_case(
                case, layers, inputs, "float32"
            )
            for key, value in double.items():
                kind = "gradients" if "/gradients/" in key else "forward"
                errors[kind] = max(errors[kind], distance(single[key], value))
            flat = np.concatenate([np.ravel(v) for v in double.values()])
            cases[f"{api}/{case.name}"] = {
                "weights": [store.put(w) for w in weights],
                "cotangents": [[store.put(dy) for dy in c] for c in cotangents],
                "results": store.put(flat.astype("float32")),
                "shapes": {key: value.shape for key, value in double.items()},
                "config": config,
            }
    record = {
        "versions": {
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "tensorflow": tf.__version__,
            "tf_keras": tf_keras.__version__,
        },
        "float32_error": errors,
        "inputs": {name: store.put(array) for name, array in inputs.items()},
        "cases": cases,
    }
    path = Path(__file__).with_name("tf_keras.npz")
    np.savez_compressed(path, record=json.dumps(record), **store)


if __name__ == "__main__":
    main()

"""Record how Keras trains the models of `training_cases` in ``training.npz``.

Run by hand: ``pip install keras==3.15.* torch``, then
``KERAS_BACKEND=torch python tests/goldens/make_training.py``. (The NumPy backend cannot
train; JAX forgets the mask of the predictions for the metrics of a training step.)
"""

from pathlib import Path

import keras
import numpy as np
from training_cases import CASES, MASK_VALUE, OPTIONS, layers, make_inputs


def run(case, inputs):
    """Train one model; return its history and its weights, before and after."""
    head = [keras.layers.Masking(MASK_VALUE)] if case.masked else []
    model = keras.Sequential([*head, *layers(keras.layers, case)])
    x = inputs["x_masked" if case.masked else "x"]
    y = inputs["y_steps" if case.sequences else "y"]
    model.build((None, *x.shape[1:]))
    rng = np.random.default_rng(12)
    start = [rng.normal(0, 0.4, w.shape).astype("float32") for w in model.get_weights()]
    model.set_weights(start)
    model.compile(keras.optimizers.get(case.optimizer), case.loss, metrics=["mae"])
    weights = inputs[case.sample_weight] if case.sample_weight else None
    history = model.fit(x, y, sample_weight=weights, **OPTIONS).history
    return history, start, model.get_weights()


def main():
    """Write the file."""
    record, inputs = {}, make_inputs()
    for case in CASES:
        history, before, after = run(case, inputs)
        record |= {f"{case.name}/history/{k}": np.array(v) for k, v in history.items()}
        record |= {f"{case.name}/before/{i}": w for i, w in enumerate(before)}
        record |= {f"{case.name}/after/{i}": w for i, w in enumerate(after)}
    np.savez_compressed(Path(__file__).with_name("training.npz"), **record)


if __name__ == "__main__":
    main()

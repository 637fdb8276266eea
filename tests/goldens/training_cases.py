"""Trainings that Keras recorded and numbagru repeats: one table for both."""

from typing import Any, NamedTuple

import numpy as np

ROWS, LENGTH, FEATURES, UNITS = 30, 6, 3, 4
MASK_VALUE = -9.0
OPTIONS = {
    "batch_size": 7,
    "epochs": 3,
    "shuffle": False,
    "validation_split": 0.2,
    "verbose": 0,
}


class Case(NamedTuple):
    """A model, how to train it, and on what."""

    name: str
    optimizer: dict[str, Any]
    loss: str = "mse"
    sequences: bool = False
    masked: bool = False
    penalised: bool = False
    sample_weight: str | None = None


def _optimizer(name, **config):
    return {"module": "keras.optimizers", "class_name": name, "config": config}


SGD = _optimizer("SGD", learning_rate=0.1, momentum=0.9, nesterov=True, clipnorm=0.5)
ADAM = _optimizer("Adam", learning_rate=0.01, global_clipnorm=0.3)
ADAMW = _optimizer("AdamW", learning_rate=0.01, weight_decay=0.1)

CASES = (
    Case("sgd", SGD),
    Case("adam", ADAM, loss="mae"),
    Case("adamw", ADAMW, loss="huber"),
    Case("penalties", SGD, penalised=True),
    Case("weights", ADAM, sample_weight="weights"),
    Case("steps", ADAMW, sequences=True, penalised=True, sample_weight="step_weights"),
    Case("mask", SGD, sequences=True, masked=True),
    Case(
        "mask_weights", ADAM, sequences=True, masked=True, sample_weight="step_weights"
    ),
    Case("mask_last", ADAM, masked=True, penalised=True, sample_weight="weights"),
)


def layers(module, case):
    """Return the layers of a case, built from `module`."""
    recurrent, dense = {}, {}
    if case.penalised:
        recurrent = {"kernel_regularizer": "l2", "activity_regularizer": "l1"}
        dense = {"kernel_constraint": "unit_norm", "bias_regularizer": "l1"}
    return [
        module.GRU(UNITS, return_sequences=case.sequences, **recurrent),
        module.Dense(1, **dense),
    ]


def make_inputs():
    """Return the arrays that the cases name, exact in float32."""
    rng = np.random.default_rng(11)

    def normal(*shape):
        return rng.standard_normal(shape, dtype="float32")

    mask = rng.random((ROWS, LENGTH)) < 0.7
    mask[:, 0] |= ~mask.any(axis=1)
    x = normal(ROWS, LENGTH, FEATURES)
    return {
        "x": x,
        "mask": mask,
        "x_masked": np.where(mask[..., None], x, np.float32(MASK_VALUE)),
        "y": normal(ROWS, 1),
        "y_steps": normal(ROWS, LENGTH, 1),
        "weights": rng.random(ROWS, dtype="float32") + np.float32(0.5),
        "step_weights": rng.random((ROWS, LENGTH), dtype="float32"),
    }

"""Inference: the twelve shapes, and what arguments cost at one of them."""

import numpy as np

import numbagru

from .shapes import BY_NAME, Shape, make_data

MIDDLE = Shape(32, 100, 32, 128)
VARIANTS = {
    "plain": {},
    "reset_before": {"reset_after": False},
    "no_bias": {"use_bias": False},
    "backwards": {"go_backwards": True},
    "relu": {"activation": "relu"},
    "softmax": {"activation": "softmax"},
    "hard_sigmoid": {"recurrent_activation": "hard_sigmoid"},
    "last_output": {"return_sequences": False},
    "masked": {},
}


def build(shape, dtype="float32", **kwargs):
    """Return a layer with drawn weights and its input."""
    data = make_data(shape, dtype)
    arguments = {"return_sequences": True, "dtype": dtype} | kwargs
    layer = numbagru.GRU(shape.units, **arguments)
    layer.build(data.x.shape)
    return layer, data


class Forward:
    params = (list(BY_NAME), ["float32", "float64"])
    param_names = ("shape", "dtype")

    def setup(self, shape, dtype):
        self.layer, data = build(BY_NAME[shape], dtype)
        self.x = data.x
        self.layer(self.x)

    def time_call(self, shape, dtype):
        self.layer(self.x)


class Variants:
    params = tuple(VARIANTS)
    param_names = ("variant",)

    def setup(self, variant):
        self.layer, data = build(MIDDLE, **VARIANTS[variant])
        self.x = data.x
        rng = np.random.default_rng(1)
        self.mask = rng.random(MIDDLE[:2]) < 0.7 if variant == "masked" else None
        self.layer(self.x, mask=self.mask)

    def time_call(self, variant):
        self.layer(self.x, mask=self.mask)


class Step:
    params = (16, 32, 64, 128)
    param_names = ("units",)

    def setup(self, units):
        self.cell = numbagru.GRUCell(units)
        self.x = np.ones((1, 8), "float32")
        self.states = [np.zeros((1, units), "float32")]
        self.cell(self.x, self.states)

    def time_cell(self, units):
        self.cell(self.x, self.states)

"""Layers: the twelve shapes, and what arguments cost at one of them."""

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
    "recurrent_dropout": {"recurrent_dropout": 0.1, "seed": 0},
    "masked": {},
    "right_padded": {},
}


def build(shape, dtype="float32", **kwargs):
    """Return a layer with drawn weights and its input."""
    data = make_data(shape, dtype)
    arguments = {"return_sequences": True, "dtype": dtype} | kwargs
    layer = numbagru.GRU(shape.units, **arguments)
    layer.build(data.x.shape)
    return layer, data


def mask_of(variant):
    """Return a mask for the variants that have one."""
    rng = np.random.default_rng(1)
    batch, steps = MIDDLE[:2]
    if variant == "masked":
        return rng.random((batch, steps)) < 0.7
    if variant == "right_padded":
        return np.arange(steps) < rng.integers(1, steps + 1, (batch, 1))
    return None


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
        self.dy = data.dy[:, -1] if variant == "last_output" else data.dy
        self.arguments = {"mask": mask_of(variant), "training": True}
        self.time_call(variant)
        self.time_training_step(variant)

    def time_call(self, variant):
        self.layer(self.x, **self.arguments)

    def time_training_step(self, variant):
        _, pullback = self.layer.vjp(self.x, **self.arguments)
        pullback(self.dy)


class Step:
    params = (16, 32, 64, 128)
    param_names = ("units",)

    def setup(self, units):
        self.cell = numbagru.GRUCell(units)
        self.layer = numbagru.GRU(units)
        self.x = np.ones((1, 8), "float32")
        self.states = [np.zeros((1, units), "float32")]
        self.time_cell(units)
        self.time_layer(units)

    def time_cell(self, units):
        self.cell(self.x, self.states)

    def time_layer(self, units):
        self.layer(self.x[:, None])


class Stream:
    params = (16, 32, 64, 128)
    param_names = ("units",)

    def setup(self, units):
        layer = numbagru.GRU(units)
        if not hasattr(layer, "stream"):
            raise NotImplementedError("asv continuous also runs commits before it")
        self.x = np.ones((1, 8), "float32")
        layer.build((1, None, 8))
        self.stream = layer.stream(1)
        self.stream.push(self.x)

    def time_push(self, units):
        self.stream.push(self.x)

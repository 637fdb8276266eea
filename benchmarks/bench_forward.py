"""Layers: the twelve shapes, and what arguments cost at one of them."""

import numpy as np

import numbagru

from .shapes import BY_NAME, Shape, make_data
from .variants import VARIANTS, Subject


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
    params = ("plain", *VARIANTS)
    param_names = ("variant",)

    def setup(self, variant):
        self.subject = Subject(Shape(32, 100, 32, 128), variant)
        self.time_call(variant)
        self.time_training_step(variant)

    def time_call(self, variant):
        self.subject.inference()

    def time_training_step(self, variant):
        self.subject.training()


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

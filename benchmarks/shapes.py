"""The shapes of every benchmark, in families, and the data that goes with a shape."""

from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """Rows, time steps, features and units of one GRU call."""

    batch: int
    steps: int
    features: int
    units: int

    def __str__(self):
        """Return the name of the shape in tables and in asv's parameters."""
        return f"{self.batch}x{self.steps}x{self.features}x{self.units}"


# The tables of the README and the parameters of the asv suite.
SHAPES = (
    Shape(1, 100, 4, 16),
    Shape(1, 100, 8, 64),
    Shape(1, 100, 32, 256),
    Shape(1, 1, 8, 32),
    Shape(32, 100, 8, 32),
    Shape(32, 100, 32, 128),
    Shape(64, 100, 64, 256),
    Shape(64, 50, 128, 512),
    Shape(128, 20, 256, 1024),
    Shape(1024, 100, 4, 32),
    Shape(8192, 50, 4, 16),
    Shape(8, 5000, 8, 64),
)
FAMILIES = {
    "twelve": SHAPES,
    "few rows": (
        Shape(1, 100, 16, 128),
        Shape(2, 100, 32, 256),
        Shape(4, 100, 64, 256),
        Shape(8, 100, 64, 512),
        Shape(1, 50, 128, 1024),
    ),
    "wide inputs": (
        Shape(1, 100, 1024, 64),
        Shape(32, 50, 512, 32),
        Shape(256, 20, 1024, 64),
    ),
    "few steps": (
        Shape(1, 1, 64, 256),
        Shape(64, 1, 64, 256),
        Shape(1024, 2, 16, 64),
        Shape(8192, 1, 8, 32),
    ),
    "many rows": (
        Shape(512, 10, 128, 512),
        Shape(2048, 50, 16, 64),
        Shape(4096, 20, 32, 128),
        Shape(8192, 100, 1, 16),
    ),
    "long sequences": (
        Shape(1, 5000, 4, 32),
        Shape(2, 5000, 16, 128),
        Shape(32, 2000, 8, 64),
    ),
}
BY_NAME = {str(shape): shape for shape in SHAPES}


class Data(NamedTuple):
    """Input, weights in Keras' layout (gates z, r, h) and a cotangent of the output."""

    x: np.ndarray  # (B, T, F)
    weights: list[np.ndarray]  # (F, 3u), (u, 3u), (2, 3u)
    dy: np.ndarray  # (B, T, u)


def make_data(shape, dtype="float32"):
    """Return the same random `Data` for a shape every time."""
    batch, steps, features, units = shape
    rng = np.random.default_rng(0)

    def normal(*size, scale=1.0):
        return (scale * rng.standard_normal(size, dtype="float32")).astype(dtype)

    return Data(
        x=normal(batch, steps, features),
        weights=[
            normal(features, 3 * units, scale=features**-0.5),
            normal(units, 3 * units, scale=units**-0.5),
            normal(2, 3 * units, scale=0.1),
        ],
        dy=normal(batch, steps, units),
    )

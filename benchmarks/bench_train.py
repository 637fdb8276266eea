"""One training step: new weights, forward, all gradients."""

import numpy as np

import numbagru

from .bench_forward import build
from .shapes import BY_NAME


class Train:
    params = (list(BY_NAME), ["float32", "float64"])
    param_names = ("shape", "dtype")

    def setup(self, shape, dtype):
        self.layer, self.data = build(BY_NAME[shape], dtype)
        self.time_step(shape, dtype)

    def time_step(self, shape, dtype):
        self.layer.set_weights(self.data.weights)
        _, pullback = self.layer.vjp(self.data.x)
        pullback(self.data.dy)


class Fit:
    def setup(self):
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((512, 48, 4), dtype="float32")
        self.y = self.x[:, -1, :1]
        self.model = numbagru.Sequential([numbagru.GRU(32), numbagru.Dense(1)])
        self.model.compile(optimizer=numbagru.optimizers.Adam(), loss="mse")
        self.time_epoch()

    def time_epoch(self):
        self.model.fit(self.x, self.y, batch_size=64, epochs=1, verbose=0)

"""The kernels behind the layers, from plain arrays to plain arrays."""

import numbagru
from numbagru import functional

from .shapes import BY_NAME, make_data

# use_cudnn=False forbids the fast kernels.
PATHS = {"fast": "auto", "plain": False}


class Kernels:
    params = (
        ["1x100x32x256", "32x100x32x128", "1024x100x4x32"],
        ["float32", "float64"],
        list(PATHS),
    )
    param_names = ("shape", "dtype", "path")

    def setup(self, shape, dtype, path):
        shape = BY_NAME[shape]
        self.data = make_data(shape, dtype)
        self.config = numbagru.GRUConfig(
            shape.units, return_sequences=True, dtype=dtype, use_cudnn=PATHS[path]
        )
        self.weights = functional.Weights(*self.data.weights, reset_after=True)
        self.time_forward(shape, dtype, path)
        self.time_forward_saving(shape, dtype, path)
        self.time_backward(shape, dtype, path)

    def time_forward(self, shape, dtype, path):
        functional.gru(self.config, self.weights, self.data.x)

    def time_forward_saving(self, shape, dtype, path):
        _, self.pullback = functional.gru_vjp(self.config, self.weights, self.data.x)

    def time_backward(self, shape, dtype, path):
        self.pullback(None, self.data.dy, None)

"""Peak memory of a process that infers or trains, all that it has loaded included."""

from .bench_forward import build
from .shapes import BY_NAME


class Memory:
    params = ("64x100x64x256", "8x5000x8x64", "8192x50x4x16")
    param_names = ("shape",)

    def setup(self, shape):
        self.layer, self.data = build(BY_NAME[shape])

    def peakmem_inference(self, shape):
        self.layer(self.data.x)

    def peakmem_training(self, shape):
        _, pullback = self.layer.vjp(self.data.x)
        pullback(self.data.dy)

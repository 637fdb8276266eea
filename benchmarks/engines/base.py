"""What engines share, and numbagru itself."""

import os

import numpy as np

THREADS = int(os.environ.get("PEERS_THREADS", "2"))
ISA = os.environ.get("PEERS_ISA", "native")


def as_time_major(array):
    """Return a (T, B, .) copy of (B, T, .)."""
    return np.ascontiguousarray(array.swapaxes(0, 1))


def swap_gates(array, axis):
    """Reorder the gates z, r, h into PyTorch's r, z, n, or back."""
    z, r, h = np.split(array, 3, axis)
    return np.ascontiguousarray(np.concatenate([r, z, h], axis))


class Engine:
    """What engines share.

    `packages` are those whose versions count, `dtypes` what the GRU takes. One that is
    not `restrictable` runs every instruction the CPU has, whatever ``--isa`` says. One
    that `traces` compiles a program anew for each shape.
    """

    keras_backend = "numpy"
    dtypes = ("float32", "float64")
    restrictable = True
    traces = False

    def keras_layout(self, results):
        """Return results as (y, dx, dkernel, drecurrent_kernel, dbias)."""
        return results


class Numbagru(Engine):
    """The public layer with its defaults."""

    packages = ("numbagru", "numba", "numpy")

    def layer(self, data):
        """Return a built layer that holds the weights."""
        import numbagru

        layer = numbagru.GRU(
            data.dy.shape[2], return_sequences=True, dtype=data.x.dtype.name
        )
        layer.build(data.x.shape)
        layer.set_weights(data.weights)
        return layer

    def inference(self, data):
        """Call the layer."""
        layer = self.layer(data)
        return {"": lambda: (layer(data.x),)}

    def training(self, data):
        """Set weights, call with `vjp`, pull the cotangent back.

        Or do so without a layer, in a function of the weights, as on JAX.
        """
        from numbagru.functional import Weights, gru_vjp

        layer = self.layer(data)

        def step():
            layer.set_weights(data.weights)
            y, pullback = layer.vjp(data.x)
            gradients = pullback(data.dy)
            return y, gradients.inputs, *gradients.weights

        def function():
            weights = Weights(*data.weights, layer.reset_after)
            (_, y, _), pullback = gru_vjp(layer.config, weights, data.x)
            gradients = pullback(None, data.dy)
            return y, gradients.inputs, *gradients[2:]

        return {"function": function, "layer": step}

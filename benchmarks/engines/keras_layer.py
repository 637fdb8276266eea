"""The layer of Keras on JAX and on TensorFlow."""

import functools

import numpy as np

from benchmarks.engines.base import ISA, Engine


def keras_layer(data, **arguments):
    """Return a built keras.layers.GRU that holds the weights."""
    import keras

    layer = keras.layers.GRU(
        data.dy.shape[2],
        return_sequences=True,
        dtype=data.x.dtype.name,
        **arguments,
    )
    layer.build(data.x.shape)
    layer.set_weights(data.weights)
    return layer


class KerasJax(Engine):
    """Keras' layer, stateless call under jax.jit.

    XLA multiplies with YNNPACK, which asks the CPU alone: held to AVX2 by
    ``--xla_cpu_max_isa``, one core (Zen 5) did 257 GFLOP/s, where AVX2's peak is 133,
    in a function named ``ynn::dot_fp32_5x64x1_1x16x1_avx512``.
    """

    packages = ("keras", "jax")
    restrictable = False
    keras_backend = "jax"
    traces = True

    def function(self, data):
        """Return y as a function of the weights and x, and the weights."""
        import jax

        jax.config.update("jax_enable_x64", data.x.dtype == np.float64)
        # Keras' own tanh takes its argument to float32 here.
        layer = keras_layer(data, activation=jax.numpy.tanh)
        rest = [v.value for v in layer.non_trainable_variables]
        weights = [v.value for v in layer.trainable_variables]
        return lambda w, x: layer.stateless_call(w, rest, x)[0], weights

    def inference(self, data):
        """Call the jitted layer; its weights are constants of the program."""
        import jax

        call = jax.jit(functools.partial(*self.function(data)))
        return {"": lambda: (np.asarray(call(data.x)),)}

    def training(self, data):
        """Call and differentiate in one jitted function."""
        import jax

        function, _ = self.function(data)

        @jax.jit
        def both(weights, x, dy):
            y, pullback = jax.vjp(function, weights, x)
            weight_gradients, dx = pullback(dy)
            return y, dx, *weight_gradients

        return {
            "": lambda: [np.asarray(a) for a in both(data.weights, data.x, data.dy)]
        }


class KerasTensorFlow(Engine):
    """Keras' layer under tf.function, with and without XLA.

    Held to AVX2 it goes without: XLA multiplied with 227 GFLOP/s there, oneDNN, which
    the graph calls, with 107.
    """

    packages = ("keras", "tensorflow")
    keras_backend = "tensorflow"
    traces = True

    def prepare(self, data):
        """Return the layer and its input on the device."""
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        return tf, keras_layer(data)

    def settings(self, build):
        """Return what `build` makes without and, if nothing forbids, with XLA."""
        settings = {"graph": build(False)}
        if ISA == "native":
            settings["XLA"] = build(True)
        return settings

    def inference(self, data):
        """Call the traced layer."""
        tf, layer = self.prepare(data)

        def build(xla):
            call = tf.function(layer, jit_compile=xla)
            return lambda: (call(tf.constant(data.x)).numpy(),)

        return self.settings(build)

    def training(self, data):
        """Assign weights, call and differentiate in one traced function."""
        tf, layer = self.prepare(data)

        def build(xla):
            @functools.partial(tf.function, jit_compile=xla)
            def both(weights, x, dy):
                variables = [v.value for v in layer.trainable_variables]
                for variable, value in zip(variables, weights, strict=True):
                    variable.assign(value)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = layer(x)
                return y, *tape.gradient(y, [x, *variables], dy)

            def step():
                weights, x, dy = tf.nest.map_structure(
                    tf.constant, (data.weights, data.x, data.dy)
                )
                return [tf.convert_to_tensor(a).numpy() for a in both(weights, x, dy)]

            return step

        return self.settings(build)

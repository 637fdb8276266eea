"""The engines that `peers.py` compares, each at its best setting.

An engine's ``inference(data)`` and ``training(data)`` return the settings worth trying
as ``{name: step}``. The worker checks each step against the NumPy reference, times it
for a moment and keeps the fastest. A step goes from NumPy arrays to NumPy arrays, both
in the layout that the engine likes best: x to the output sequence or, in training, new
weights, x and a cotangent to the output sequence and the gradients of x, kernel,
recurrent kernel and bias. ``keras_layout`` undoes the layout for the check.
"""

import functools
import importlib
import os
import sys

import numpy as np

THREADS = int(os.environ.get("PEERS_THREADS", "2"))


def as_time_major(array):
    """Return a (T, B, .) copy of (B, T, .)."""
    return np.ascontiguousarray(array.swapaxes(0, 1))


def swap_gates(array, axis):
    """Reorder the gates z, r, h into PyTorch's r, z, n, or back."""
    z, r, h = np.split(array, 3, axis)
    return np.ascontiguousarray(np.concatenate([r, z, h], axis))


class Engine:
    """What engines share: ``packages`` are those whose versions count."""

    keras_backend = "numpy"

    def keras_layout(self, results):
        """Return results as (y, dx, dkernel, drecurrent_kernel, dbias)."""
        return results


class Numbagru(Engine):
    """The public layer with its defaults."""

    packages = ("numbagru", "numba", "numpy")

    def layer(self, data):
        """Return a built layer that holds the weights."""
        import numbagru

        layer = numbagru.GRU(data.dy.shape[2], return_sequences=True)
        layer.build(data.x.shape)
        layer.set_weights(data.weights)
        return layer

    def inference(self, data):
        """Call the layer."""
        layer = self.layer(data)
        return {"": lambda: (layer(data.x),)}

    def training(self, data):
        """Set weights, call with `vjp`, pull the cotangent back."""
        layer = self.layer(data)

        def step():
            layer.set_weights(data.weights)
            y, pullback = layer.vjp(data.x)
            gradients = pullback(data.dy)
            return y, gradients.inputs, *gradients.weights

        return {"": step}


class Prototype(Engine):
    """``cpu_tile.py`` of the folder in ``PEERS_PROTOTYPE``: `pack` and `run`."""

    packages = ("numba", "numpy")

    def inference(self, data):
        """Run into a preallocated output, as its own benchmark does."""
        sys.path.insert(0, os.environ["PEERS_PROTOTYPE"])
        cpu_tile = importlib.import_module("cpu_tile")
        kernel, recurrent_kernel, bias = data.weights
        packed = cpu_tile.pack(kernel, recurrent_kernel, *bias)
        batch = len(data.x)
        rows = max(1, -(-batch // 2))
        rows = min(-(-rows // 8) * 8 if batch > 16 else rows, 64)
        y, h0 = np.empty_like(data.dy), np.zeros_like(data.dy[:, 0])

        def step():
            cpu_tile.run(data.x, y, h0, *packed, rows)
            return (y,)

        return {"": step}


class OpenVINO(Engine):
    """GRUSequence in float32, latency hint, inputs and outputs shared."""

    packages = ("openvino",)

    def inference(self, data):
        """Infer with one and with all threads."""
        import openvino as ov
        from openvino import opset13 as ops

        batch, steps, features = data.x.shape
        units = data.dy.shape[2]
        kernel, recurrent_kernel, (bias, recurrent_bias) = data.weights
        gates = 2 * units  # z and r take one bias, the candidate keeps two
        four = [(bias + recurrent_bias)[:gates], bias[gates:], recurrent_bias[gates:]]
        x = ops.parameter([batch, steps, features], np.float32)
        gru = ops.gru_sequence(
            x,
            ops.constant(np.zeros((batch, 1, units), "float32")),
            ops.constant(np.full(batch, steps, "int32")),
            ops.constant(kernel.T[None].copy()),
            ops.constant(recurrent_kernel.T[None].copy()),
            ops.constant(np.concatenate(four)[None]),
            units,
            "forward",
            linear_before_reset=True,
        )
        y = ops.squeeze(gru.output(0), ops.constant(np.array([1])))
        model = ov.Model([y], [x])

        def setting(threads):
            hints = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads,
            }
            request = ov.Core().compile_model(model, "CPU", hints)
            request = request.create_infer_request()

            def step():
                result = request.infer([data.x], share_inputs=True, share_outputs=True)
                return (result[0],)

            return step

        return {f"{n} threads": setting(n) for n in {1, THREADS}}


class OnnxRuntime(Engine):
    """The ONNX operator, time major, which is the only layout of its CPU kernel."""

    packages = ("onnxruntime",)

    def inference(self, data):
        """Run sessions with one and with all threads."""
        import onnx
        import onnxruntime as ort
        from onnx import TensorProto, helper, numpy_helper

        kernel, recurrent_kernel, bias = data.weights
        constants = {
            "W": kernel.T[None],
            "R": recurrent_kernel.T[None],
            "B": bias.reshape(1, -1),
        }
        node = helper.make_node(
            "GRU",
            ["X", *constants],
            ["Y"],
            hidden_size=data.dy.shape[2],
            linear_before_reset=1,
        )
        x = as_time_major(data.x)
        y_shape = len(x), 1, *data.dy.shape[::2]
        graph = helper.make_graph(
            [node],
            "gru",
            [helper.make_tensor_value_info("X", TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, y_shape)],
            [numpy_helper.from_array(v.copy(), k) for k, v in constants.items()],
        )
        opsets = [helper.make_opsetid("", 14)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model)

        def setting(threads):
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return lambda: session.run(["Y"], {"X": x})

        return {f"{n} threads": setting(n) for n in {1, THREADS}}

    def keras_layout(self, results):
        """Undo (T, 1, B, u)."""
        return (results[0][:, 0].swapaxes(0, 1),)


class PyTorch(Engine):
    """nn.GRU, time major (its native layout), with one and with all threads."""

    packages = ("torch",)
    threads = 0

    def module(self, data):
        """Return the module, its parameters in Keras' order and their new values."""
        import torch

        features, units = data.x.shape[2], data.dy.shape[2]
        module = torch.nn.GRU(features, units)
        parameters = [
            module.weight_ih_l0,
            module.weight_hh_l0,
            module.bias_ih_l0,
            module.bias_hh_l0,
        ]
        kernel, recurrent_kernel, bias = data.weights
        values = [swap_gates(a.T, 0) for a in (kernel, recurrent_kernel)]
        values = [torch.from_numpy(v) for v in (*values, *swap_gates(bias, 1))]
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        return module, parameters, values

    def settings(self, step):
        """Return the step bound to numbers of threads."""
        import torch

        def setting(threads):
            def bound():
                if self.threads != threads:
                    torch.set_num_threads(threads)
                    self.threads = threads
                return step()

            return bound

        return {f"{n} threads": setting(n) for n in {1, THREADS}}

    def keras_layout(self, results):
        """Undo the time major layout and PyTorch's order of gates."""
        sequences, weights = results[:2], results[2:]
        if weights:
            kernel, recurrent_kernel, *biases = weights
            weights = [kernel.T, recurrent_kernel.T, np.stack(biases)]
        swapped = [swap_gates(w, 1) for w in weights]
        return *(a.swapaxes(0, 1) for a in sequences), *swapped

    def inference(self, data):
        """Call under inference_mode."""
        import torch

        module, _, _ = self.module(data)
        x = as_time_major(data.x)

        @torch.inference_mode()
        def step():
            y, _ = module(torch.from_numpy(x))
            return (y.numpy(),)

        return self.settings(step)

    def training(self, data):
        """Copy weights in, call, differentiate."""
        import torch

        module, parameters, values = self.module(data)
        x, dy = as_time_major(data.x), torch.from_numpy(as_time_major(data.dy))

        def step():
            with torch.no_grad():
                for parameter, value in zip(parameters, values, strict=True):
                    parameter.copy_(value)
            inputs = torch.from_numpy(x).requires_grad_()
            y, _ = module(inputs)
            gradients = torch.autograd.grad(y, [inputs, *parameters], dy)
            return [y.detach().numpy(), *(g.numpy() for g in gradients)]

        return self.settings(step)


def keras_layer(data):
    """Return a built keras.layers.GRU that holds the weights."""
    import keras

    layer = keras.layers.GRU(data.dy.shape[2], return_sequences=True)
    layer.build(data.x.shape)
    layer.set_weights(data.weights)
    return layer


class KerasJax(Engine):
    """Keras' layer, stateless call under jax.jit."""

    packages = ("keras", "jax")
    keras_backend = "jax"

    def function(self, data):
        """Return y as a function of the weights and x, and the weights."""
        layer = keras_layer(data)
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
    """Keras' layer under tf.function, with and without XLA."""

    packages = ("keras", "tensorflow")
    keras_backend = "tensorflow"

    def prepare(self, data):
        """Return the layer and its input on the device."""
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        return tf, keras_layer(data)

    def settings(self, build):
        """Return what `build` makes without and with XLA."""
        return {"graph": build(False), "XLA": build(True)}

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


ENGINES = {
    "numbagru": Numbagru,
    "prototype": Prototype,
    "OpenVINO": OpenVINO,
    "ONNX Runtime": OnnxRuntime,
    "PyTorch": PyTorch,
    "Keras/JAX": KerasJax,
    "Keras/TensorFlow": KerasTensorFlow,
}

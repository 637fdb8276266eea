"""Inference engines: OpenVINO and ONNX Runtime."""

import numpy as np

from benchmarks.engines.base import THREADS, Engine, as_time_major


class OpenVINO(Engine):
    """GRUSequence, latency hint, inputs and outputs shared.

    Given float64 it computes in less than float32.
    """

    packages = ("openvino",)
    dtypes = ("float32",)

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
    """The ONNX operator, time major, which is the only layout of its CPU kernel.

    Its kernel refuses float64. MLAS, its library of products, asks the CPU alone which
    instructions there are: no option and no environment variable holds it back.
    """

    packages = ("onnxruntime",)
    dtypes = ("float32",)
    restrictable = False

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

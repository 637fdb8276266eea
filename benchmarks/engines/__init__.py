"""The engines that `peers.py` compares, each at its best setting.

An engine's ``inference(data)`` and ``training(data)`` return the settings worth trying
as ``{name: step}``. The worker checks each step against the NumPy reference, times it
for a moment and keeps the fastest. A step goes from NumPy arrays to NumPy arrays, both
in the layout that the engine likes best: x to the output sequence or, in training, new
weights, x and a cotangent to the output sequence and the gradients of x, kernel,
recurrent kernel and bias. ``keras_layout`` undoes the layout for the check.
"""

from benchmarks.engines.base import Numbagru
from benchmarks.engines.keras_layer import KerasJax, KerasTensorFlow
from benchmarks.engines.pytorch import PyTorch
from benchmarks.engines.runtimes import OnnxRuntime, OpenVINO

ENGINES = {
    "numbagru": Numbagru,
    "OpenVINO": OpenVINO,
    "ONNX Runtime": OnnxRuntime,
    "PyTorch": PyTorch,
    "Keras/JAX": KerasJax,
    "Keras/TensorFlow": KerasTensorFlow,
}


def able(what, dtype):
    """Return the names of the engines that have `what` in a float type."""
    return [
        name
        for name, engine in ENGINES.items()
        if hasattr(engine, what) and dtype in engine.dtypes
    ]

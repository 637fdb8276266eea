"""The layers as TensorFlow's own Keras had them: `v1` and `v2`."""

from numbagru.compat import v1, v2

__all__ = ["v1", "v2"]

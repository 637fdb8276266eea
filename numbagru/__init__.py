"""The Keras GRU layer for people who work in NumPy.

The same arguments and the same numbers as ``keras.layers.GRU``, trained and run by
Numba kernels, with bits that do not depend on batch, threads, chunks of time or CPU.
"""

from numbagru import (
    activations,
    compat,
    constraints,
    initializers,
    layers,
    random,
    regularizers,
)
from numbagru.config import GRUConfig
from numbagru.layers import (
    GRU,
    RNN,
    Bidirectional,
    Dense,
    GRUCell,
    StackedRNNCells,
    Variable,
)
from numbagru.training import (
    Sequential,
    callbacks,
    load_model,
    losses,
    metrics,
    optimizers,
)

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "RNN",
    "Bidirectional",
    "Dense",
    "GRUCell",
    "GRUConfig",
    "Sequential",
    "StackedRNNCells",
    "Variable",
    "__version__",
    "activations",
    "callbacks",
    "compat",
    "constraints",
    "initializers",
    "layers",
    "load_model",
    "losses",
    "metrics",
    "optimizers",
    "random",
    "regularizers",
]

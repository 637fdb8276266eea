"""The Keras GRU layer for people who work in NumPy.

The same arguments and the same numbers as ``keras.layers.GRU``, trained and run by
Numba kernels, with bits that do not depend on batch, threads, chunks of time or CPU.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from numbagru import (
    activations,
    constraints,
    initializers,
    layers,
    random,
    regularizers,
)
from numbagru.config import GRUConfig
from numbagru.functional import get_num_threads, set_num_threads
from numbagru.layers import (
    GRU,
    RNN,
    Bidirectional,
    Dense,
    GRUCell,
    StackedRNNCells,
    Variable,
)

if TYPE_CHECKING:
    from numbagru import compat
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
    "get_num_threads",
    "initializers",
    "layers",
    "load_model",
    "losses",
    "metrics",
    "optimizers",
    "random",
    "regularizers",
    "set_num_threads",
]

# Imported when they are first asked for: a program that runs one layer needs neither.
_MODULES = ("compat", "training")
_OF_TRAINING = (
    "Sequential",
    "callbacks",
    "load_model",
    "losses",
    "metrics",
    "optimizers",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _OF_TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"{__name__}.training"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)

"""The Keras GRU layer for people who work in NumPy.

The same arguments and the same numbers as ``keras.layers.GRU``, trained and run by
Numba kernels, with bits that do not depend on batch, threads, chunks of time or CPU.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from numbagru.config import GRUConfig

if TYPE_CHECKING:
    from numbagru import (
        activations,
        compat,
        constraints,
        functional,
        initializers,
        layers,
        random,
        regularizers,
    )
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
    "functional",
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

# Where names come from that are imported when they are first asked for. Layers and
# kernels take 0.04 s beside Numba's 0.2 s, which not all programs need.
_MODULES = (
    "activations",
    "compat",
    "constraints",
    "functional",
    "initializers",
    "layers",
    "random",
    "regularizers",
    "training",
)
_HOMES = {
    "functional": ("get_num_threads", "set_num_threads"),
    "layers": (
        "GRU",
        "RNN",
        "Bidirectional",
        "Dense",
        "GRUCell",
        "StackedRNNCells",
        "Variable",
    ),
    "training": (
        "Sequential",
        "callbacks",
        "load_model",
        "losses",
        "metrics",
        "optimizers",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOME_OF[name]}")
    globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)

"""Training: models, losses, optimizers, callbacks, and models as files."""

from numbagru.training import callbacks, losses, metrics, optimizers
from numbagru.training.saving import load_model
from numbagru.training.sequential import Sequential

__all__ = [
    "Sequential",
    "callbacks",
    "load_model",
    "losses",
    "metrics",
    "optimizers",
]

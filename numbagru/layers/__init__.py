"""What a user builds: layers and cells with Keras' names, arguments and methods."""

from numbagru.layers.base import Grads, Layer, OutputSpec
from numbagru.layers.bidirectional import Bidirectional
from numbagru.layers.cell import GRUCell
from numbagru.layers.dense import Dense
from numbagru.layers.gru import GRU
from numbagru.layers.rnn import RNN
from numbagru.layers.saving import deserialize, serialize
from numbagru.layers.stacked import StackedRNNCells
from numbagru.layers.variable import Variable

__all__ = [
    "GRU",
    "RNN",
    "Bidirectional",
    "Dense",
    "GRUCell",
    "Grads",
    "Layer",
    "OutputSpec",
    "StackedRNNCells",
    "Variable",
    "deserialize",
    "serialize",
]

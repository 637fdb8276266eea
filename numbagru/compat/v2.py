"""The layers under the names, defaults and habits of ``tf.keras.layers`` 2.x.

By default where TensorFlow takes its fused path, input dropout is drawn for every step.
Several results come in a list, arguments of a call in the order of TensorFlow, and
activation names mean what they mean there.
"""

from __future__ import annotations

from inspect import Parameter

from numbagru import layers
from numbagru.compat.tensorflow import CallOrder, CellState, StackState, TrainingFirst
from numbagru.layers.arguments import CELL, LAYER, SEQUENCE, configured
from numbagru.layers.saving import register

__all__ = ["GRU", "RNN", "Bidirectional", "GRUCell", "StackedRNNCells"]


@register(__name__)
@configured(CELL)
class GRUCell(CellState, layers.GRUCell):
    """One step of a GRU; see `numbagru.GRUCell`.

    Parameters
    ----------
    {parameters}
    """

    _compat = "tf_keras"


@register(__name__)
class StackedRNNCells(StackState, layers.StackedRNNCells):
    """Several cells that step together; see `numbagru.StackedRNNCells`."""

    _compat = "tf_keras"


@register(__name__)
@configured(SEQUENCE, Parameter("cell", Parameter.POSITIONAL_OR_KEYWORD))
class RNN(CallOrder, layers.RNN):
    """A cell, or a stack of cells, run along time; see `numbagru.RNN`.

    Parameters
    ----------
    cell : cell or list of cells
        What to run.
    {parameters}
    """

    _compat = "tf_keras"
    _stack_class = StackedRNNCells


@register(__name__)
@configured(LAYER)
class GRU(CallOrder, layers.GRU):
    """Gated Recurrent Unit; see `numbagru.GRU`.

    Parameters
    ----------
    {parameters}
    """

    _compat = "tf_keras"
    _cell_class = GRUCell


@register(__name__)
class Bidirectional(TrainingFirst, layers.Bidirectional):
    """A layer, and one like it that starts from the end; see `layers.Bidirectional`."""

    _compat = "tf_keras"

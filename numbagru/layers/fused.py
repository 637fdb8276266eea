"""GRU cells run along time by the kernels: each cell over all steps, one after another.

For cells that are stacked on the same clock this gives what running all cells at each
step gives, since a cell never looks at the future of the one below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from numbagru import functional
from numbagru.config import GRUConfig, SequenceConfig
from numbagru.layers.cell import GRUCell, weight_gradients
from numbagru.layers.checks import check_features, check_rank, read_state
from numbagru.layers.structure import add_gradients, flatten, pack_like
from numbagru.layers.variable import Variable

Masks = list[tuple[np.ndarray | None, np.ndarray | None]]
_OWN = frozenset({"name", "dtype", "trainable", "activity_regularizer", "device"})


def is_gru_cell(cell: Any) -> bool:
    """Whether the kernels compute what calling `cell` computes."""
    return (
        isinstance(cell, GRUCell)
        and type(cell).__call__ is GRUCell.__call__
        and type(cell).call is GRUCell.call
    )


def chain_configs(
    cells: Sequence[GRUCell], sequence: SequenceConfig
) -> list[GRUConfig]:
    """Return what each cell's run needs: only the last one shapes the output."""
    shared = {
        spec.name: getattr(sequence, spec.name)
        for spec in fields(SequenceConfig)
        if spec.name not in _OWN
    }
    if sequence.threads is None:
        del shared["threads"]  # each cell keeps its own limit
    last = len(cells) - 1
    configs = []
    for i, cell in enumerate(cells):
        changes = dict(shared)
        if i > 0:
            changes["go_backwards"] = False
        if i < last:
            changes.update(return_sequences=True, zero_output_for_mask=False)
        configs.append(replace(cell.config, **changes))
    return configs


class Chain:
    """One GRU cell, or several stacked ones, along time.

    Parameters
    ----------
    cells : sequence of GRUCell
        From the input to the output.
    configs : sequence of GRUConfig
        The layer arguments under which each runs.
    name : str
        Of the layer, for messages.
    dropout_varies : bool
        Whether input dropout is drawn for each step.
    """

    def __init__(
        self,
        cells: Sequence[GRUCell],
        configs: Sequence[GRUConfig],
        name: str,
        dropout_varies: bool = False,
    ) -> None:
        self.cells = list(cells)
        self.configs = list(configs)
        self.name = name
        self.dropout_varies = dropout_varies

    def check_inputs(self, x: Any) -> None:
        """Raise ValueError unless the first cell can take `x`."""
        check_rank(x, 3, self.name)
        check_features(x, self.cells[0])

    def read_state(self, given: Any, rows: int) -> list[Any]:
        """Return `given` as a list with an entry for each cell, nested as it came."""
        shapes = [(rows, cell.state_size) for cell in self.cells]
        single = len(self.cells) == 1
        nesting = None if single or not isinstance(given, (list, tuple)) else given
        return list(read_state(given, shapes, nesting=nesting))

    def zero_state(self, rows: int) -> list[Any]:
        """Return zeros nested as Keras nests the state of these cells."""
        zeros = [cell._zero_state(rows) for cell in self.cells]
        nested = len(zeros) > 1 and self.configs[0].profile.nested_states
        return [[zero] for zero in zeros] if nested else zeros

    def draw(self, x: Any, training: bool | None) -> Masks:
        """Draw the dropout masks of one call in Keras' order."""
        time_major = self.configs[0].time_major
        rows, features = x.shape[1 if time_major else 0], x.shape[2]
        masks = []
        for cell in self.cells:
            steps = tuple(x.shape) if self.dropout_varies else ()
            masks.append(cell._call_masks(rows, features, training, steps))
            features = cell.state_size
        return masks

    def forward(
        self,
        x: Any,
        states: list,
        mask: Any,
        masks: Masks,
        training: bool | None,
        from_zeros: bool,
    ) -> tuple:
        """Return `(last_output, outputs, states)`."""
        finals = []
        last = outputs = x
        given = None if from_zeros else states
        for config, cell, state, mask_i, drop in self._runs(given, mask, masks):
            last, outputs, final = functional.gru(
                config, cell.packed, outputs, state, mask_i, *drop
            )
            finals.append(final)
        return last, outputs, pack_like(states, finals)

    def vjp(
        self,
        x: Any,
        states: list,
        mask: Any,
        masks: Masks,
        training: bool | None,
        from_zeros: bool,
    ) -> tuple:
        """Return `(last_output, outputs, states)` and their pullback.

        `pull(d_last, d_outputs, d_states) -> (d_x, d_states, d_weights)`, states as
        flat lists, gradients None for those of zeros that nobody gave.
        """
        finals, pulls = [], []
        last = outputs = x
        given = None if from_zeros else states
        for config, cell, state, mask_i, drop in self._runs(given, mask, masks):
            (last, outputs, final), pull = functional.gru_vjp(
                config, cell.packed, outputs, state, mask_i, *drop
            )
            finals.append(final)
            pulls.append(pull)

        def pullback(d_last: Any, d_outputs: Any, d_states: list) -> tuple:
            d_initial = []
            # A cell may stand twice in a stack.
            total: dict[int, Any] = dict.fromkeys(map(id, self.cells))
            for cell, pull, d_state in zip(
                reversed(self.cells), reversed(pulls), reversed(d_states), strict=True
            ):
                g = pull(d_last, d_outputs, d_state)
                d_last, d_outputs = None, g.inputs
                d_initial.append(g.initial_state)
                above, here = total[id(cell)], weight_gradients(g)
                total[id(cell)] = [*map(add_gradients, above, here)] if above else here
            d_weights = [gradient for part in total.values() for gradient in part]
            return d_outputs, d_initial[::-1], d_weights

        return (last, outputs, pack_like(states, finals)), pullback

    def _runs(self, states: list | None, mask: Any, masks: Masks) -> Any:
        # Cells above the first see its outputs, which stand in processing order.
        clocks = [mask] * len(self.cells)
        if mask is not None and self.configs[0].go_backwards:
            mask = functional.on_host(mask)
            above = mask[::-1] if self.configs[0].time_major else mask[:, ::-1]
            clocks[1:] = [above] * (len(self.cells) - 1)
        states = [None] * len(self.cells) if states is None else flatten(states)
        return zip(self.configs, self.cells, states, clocks, masks, strict=True)

    @property
    def weights(self) -> list[Variable]:
        """The weights of the cells, each once."""
        return list({id(v): v for cell in self.cells for v in cell.weights}.values())

    def explain(self, sequences: Any) -> str:
        """Say which kernel runs each cell, and what ruled out faster ones."""
        lines = []
        for config, cell in zip(self.configs, self.cells, strict=True):
            text = functional.explain(config, sequences)
            lines.append(text if len(self.cells) == 1 else f"{cell.name}: {text}")
        return "\n".join(lines)

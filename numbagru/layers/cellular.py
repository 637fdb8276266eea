"""The contract of a cell: what `RNN` and `StackedRNNCells` ask of a user's object.

`call(x_t, states)` gives `(output, new_states)`, `state_size` is an integer or a list
of them; optional are `output_size`, `get_initial_state(batch_size)`, the argument
`training` of `call`, and for gradients `vjp(x_t, states)`, which gives
`((output, new_states), pullback)` as `Layer.vjp` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from numbagru.layers.structure import flatten, pack_like, parameters_of


def check_cell(cell: Any, subject: str, name: str) -> None:
    """Raise ValueError unless `cell` has `call` and a usable `state_size`."""
    if not hasattr(cell, "call"):
        raise ValueError(
            f"{subject} should have a `call` method. Received: {name}={cell!r}"
        )
    if not hasattr(cell, "state_size"):
        raise ValueError(
            f"{subject} should have a `state_size` attribute (single integer or list "
            f"of integers, one integer per RNN state). Received: {name}={cell!r}"
        )
    sizes = flatten(cell.state_size)
    if not all(isinstance(size, Integral) for size in sizes):
        raise ValueError(
            "state_size must be an integer, or a list/tuple of integers (one for each "
            f"state array). Received: state_size={cell.state_size!r}"
        )
    if not isinstance(output_size_of(cell), Integral):
        raise ValueError(
            f"output_size must be an integer. Received: {cell.output_size!r}"
        )


def output_size_of(cell: Any) -> int:
    """Return the width of the output: `output_size`, else that of the first state."""
    size = getattr(cell, "output_size", None)
    return flatten(cell.state_size)[0] if size is None else size


def zero_state_of(cell: Any, rows: int | None, dtype: str) -> Any:
    """Return what `cell` starts from: its `get_initial_state`, or zeros."""
    if hasattr(cell, "get_initial_state"):
        return cell.get_initial_state(batch_size=rows)
    if rows is None:
        raise ValueError("`batch_size` must be given to make an initial state.")
    zeros = [np.zeros((rows, size), dtype) for size in flatten(cell.state_size)]
    return pack_like(cell.state_size, zeros)


def accepts_training(cell: Any) -> bool:
    """Whether the `call` of `cell` has a `training` argument."""
    return "training" in parameters_of(getattr(type(cell), "call", cell.call))


def step(
    cell: Any, x_t: Any, states: Sequence[Any], training: bool | None
) -> tuple[Any, list[Any]]:
    """Take one step; new states come as a list."""
    function = cell if callable(cell) else cell.call
    output, new_states = function(x_t, states, **_training(cell, training))
    return output, _listed(new_states)


def step_vjp(
    cell: Any, x_t: Any, states: Sequence[Any], training: bool | None
) -> tuple[tuple[Any, list[Any]], Callable]:
    """Take one step with the cell's own `vjp`.

    Here the pullback is `pull(d_output, d_states) -> Grads`, and None stands for zeros.

    Raises
    ------
    NotImplementedError
        If the cell has none.
    """
    if not hasattr(cell, "vjp"):
        raise NotImplementedError(
            f"The cell {type(cell).__name__} has no gradient: give it a method "
            "`vjp(x_t, states)` that returns ((output, new_states), pullback), where "
            "pullback((d_output, d_new_states)) has the fields `inputs`, "
            "`initial_state` and `weights`."
        )
    out, pullback = cell.vjp(x_t, states, **_training(cell, training))

    def pull(d_output: Any, d_states: Sequence[Any]) -> Any:
        cotangents = [
            np.zeros_like(y) if d is None else d
            for y, d in zip(flatten(out), [d_output, *d_states], strict=True)
        ]
        return pullback(pack_like(out, cotangents))

    return (out[0], _listed(out[1])), pull


def _training(cell: Any, training: bool | None) -> dict[str, Any]:
    return {"training": training} if accepts_training(cell) else {}


def _listed(states: Any) -> list[Any]:
    return list(states) if isinstance(states, (list, tuple)) else [states]

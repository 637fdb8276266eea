"""Sequences of different lengths: `lengths` beside `mask`, and lists of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numbagru.layers.checks import read_mask, real_array


def rectangular(layer: Any, sequences: Any, mask: Any, lengths: Any) -> tuple[Any, Any]:
    """Return sequences of one length, and the mask that says where each ends.

    Parameters
    ----------
    layer : RNN
        For whose call they are; it is left as it is.
    sequences, mask, lengths
        As in that call.

    Raises
    ------
    ValueError
        If a shape does not fit, a length is out of range, `mask` says something else
        than `lengths`, or either comes with a list that has lengths of its own.
    TypeError
        If `lengths` are not integers, or `sequences` not real numbers.
    """
    if isinstance(sequences, (list, tuple)) and _is_ragged(sequences):
        if mask is not None or lengths is not None:
            raise ValueError(
                "`sequences` of different lengths bring their own mask: pass neither "
                "`mask` nor `lengths` with them, or pad them to one length. Received: "
                f"{'mask' if lengths is None else 'lengths'} is not None"
            )
        if layer.config.time_major:
            raise ValueError(
                "A list of `sequences` of different lengths needs time_major=False: "
                "pad them to one array (time, batch, features) and pass `lengths`. "
                "Received: time_major=True"
            )
        sequences, lengths = _padded(sequences, layer.dtype)
    if lengths is None:
        return sequences, mask
    x = real_array("sequences", sequences, layer.dtype)
    layer._scan.check_inputs(x)
    time_major = layer.config.time_major
    rows, steps = x.shape[1::-1] if time_major else x.shape[:2]
    lengths = _read_lengths(lengths, rows, steps)
    valid = np.arange(steps) < lengths[:, None]
    given = read_mask(mask, (rows, steps), time_major)
    if given is not None:
        _check_agreement(given.T if time_major else given, valid, lengths)
    return x, valid.T if time_major else valid


class TakesLengths:
    """Before `Layer` in a recurrent layer: `vjp` with the arguments of its calls."""

    def _rectangular(self, sequences: Any, mask: Any, lengths: Any) -> tuple[Any, Any]:
        return rectangular(self, sequences, mask, lengths)

    def vjp(
        self,
        inputs: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
        *,
        lengths: Any = None,
    ) -> tuple[Any, Callable]:
        """Do what `Layer.vjp` does; see there. The arguments are those of a call."""
        inputs, mask = self._rectangular(inputs, mask, lengths)
        return super().vjp(inputs, initial_state, mask, training)


def _is_ragged(sequences: Sequence[Any]) -> bool:
    return len({np.shape(row)[:1] for row in sequences}) > 1


def _padded(sequences: Sequence[Any], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a list with zeros after each, and their lengths."""
    rows = [real_array("sequences", row, dtype) for row in sequences]
    features = rows[0].shape[1:]
    for i, row in enumerate(rows):
        if row.ndim < 2 or row.shape[1:] != features:
            raise ValueError(
                "A list of `sequences` of different lengths must hold arrays of shape "
                "(steps, features) with the same features. Received: "
                f"sequences[0].shape={rows[0].shape}, sequences[{i}].shape={row.shape}"
            )
    lengths = np.array([len(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max(), *features), dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded, lengths


def _read_lengths(lengths: Any, rows: int, steps: int) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.dtype.kind not in "iu" and lengths.size:
        raise TypeError(
            "`lengths` must be integers, the number of valid steps of each row. "
            f"Received: lengths.dtype={lengths.dtype}. Convert them, for example with "
            "`.astype(int)`, or pass booleans for each step as `mask`."
        )
    if lengths.shape != (rows,):
        raise ValueError(
            f"`lengths` must have the shape (batch,) = ({rows},), one entry for each "
            f"row. Received: lengths.shape={lengths.shape}"
        )
    wrong = np.flatnonzero((lengths < 0) | (lengths > steps))
    if wrong.size:
        i = wrong[0]
        raise ValueError(
            f"`lengths` must be from 0 to {steps}, the number of steps. Received: "
            f"lengths[{i}]={lengths[i]}"
        )
    return lengths


def _check_agreement(given: Any, valid: np.ndarray, lengths: np.ndarray) -> None:
    wrong = np.flatnonzero((given != valid).any(1))
    if wrong.size:
        i = wrong[0]
        raise ValueError(
            "`mask` contradicts `lengths`: it must be true at just the first "
            f"lengths[i] steps of row i. Pass one of the two. Received: lengths[{i}]="
            f"{lengths[i]} with {np.count_nonzero(given[i])} true steps in mask[{i}]"
        )

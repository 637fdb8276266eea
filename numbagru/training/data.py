"""The arrays of one run: checked once, then cut into batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from numbagru.registry import finite_number, float_array


@dataclass(frozen=True)
class Data:
    """Inputs, targets, weights and mask that share their first axis, the rows."""

    x: np.ndarray
    y: np.ndarray | None = None
    sample_weight: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """Length of the first axis."""
        return len(self.x)

    def take(self, index: slice | np.ndarray) -> Data:
        """Return the rows of `index`."""
        parts = (self.x, self.y, self.sample_weight, self.mask)
        return Data(*(None if part is None else part[index] for part in parts))

    def batches(
        self, batch_size: int, order: np.ndarray | None = None
    ) -> Iterator[Data]:
        """Cut into batches, the last one with what is left, in `order` if given.

        Without rows there is one batch, an empty one.
        """
        for start in range(0, max(self.rows, 1), batch_size):
            rows = slice(start, start + batch_size)
            yield self.take(rows if order is None else order[rows])

    def split(self, fraction: float) -> tuple[Data, Data]:
        """Cut off the last `fraction` of the rows, as Keras does.

        Raises
        ------
        ValueError
            If one of the two parts would be empty.
        """
        at = math.floor(self.rows * (1.0 - fraction))
        if at in (0, self.rows):
            raise ValueError(
                f"{self.rows} rows cannot be split into a training and a validation "
                "set: one would be empty. Give more data, or another "
                f"`validation_split`. Received: validation_split={fraction}"
            )
        return self.take(slice(0, at)), self.take(slice(at, None))


def checked(
    dtype: str,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    mask: Any = None,
    prefix: str = "",
) -> Data:
    """Return the arrays as `Data`, `x` in `dtype`, or say which does not fit.

    Raises
    ------
    TypeError
        For arrays that are not real numbers.
    ValueError
        For scalars, and for arrays whose numbers of rows differ.
    """
    given = {"x": x, "y": y, "sample_weight": sample_weight, "mask": mask}
    arrays = {
        name: float_array(value, f"{prefix}{name}")
        for name, value in given.items()
        if value is not None
    }
    for name, array in arrays.items():
        if array.ndim == 0:
            raise ValueError(
                f"`{prefix}{name}` must have rows, an array of at least one axis. "
                "Received: a scalar"
            )
    if len({len(array) for array in arrays.values()}) > 1:
        found = ", ".join(f"{prefix}{n}: {len(a)}" for n, a in arrays.items())
        raise ValueError(
            "The arrays must have the same number of rows (the first axis). "
            f"Received: {found}"
        )
    arrays["x"] = arrays["x"].astype(dtype, copy=False)
    if "mask" in arrays:
        arrays["mask"] = arrays["mask"] != 0
    return Data(**arrays)


def require_rows(data: Data, prefix: str = "") -> Data:
    """Return `data` if it has targets and at least one row.

    Raises
    ------
    ValueError
        If not.
    """
    if data.y is None:
        raise ValueError(f"`{prefix}y` is needed: the targets. Received: None")
    if not data.rows:
        raise ValueError(
            f"`{prefix}x` must have at least one row. "
            f"Received: {prefix}x.shape={data.x.shape}"
        )
    return data


def validation_tuple(dtype: str, validation_data: Any) -> Data:
    """Return `(x, y)`, `(x, y, sample_weight)` or with a mask as fourth as `Data`.

    Raises
    ------
    ValueError
        For anything else.
    """
    if not isinstance(validation_data, (tuple, list)) or not (
        2 <= len(validation_data) <= 4
    ):
        raise ValueError(
            "`validation_data` must be a tuple (x, y), (x, y, sample_weight) or "
            "(x, y, sample_weight, mask). "
            f"Received: {type(validation_data).__name__}"
        )
    data = checked(dtype, *validation_data, prefix="validation ")
    return require_rows(data, "validation ")


def positive_int(value: Any, name: str) -> int:
    """Return `value` if it is a positive whole number, else raise ValueError."""
    return _whole(value, name, "a positive integer", 1)


def non_negative_int(value: Any, name: str) -> int:
    """Return `value` if it is a whole number from 0 on, else raise ValueError."""
    return _whole(value, name, "a non-negative integer", 0)


def _whole(value, name, expected, least):
    return finite_number(
        value, name, expected, lambda v: isinstance(v, int) and v >= least
    )

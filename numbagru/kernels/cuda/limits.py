"""How wide a layer may be for what: read by the dispatch, without numba-cuda."""

from __future__ import annotations

# Weights of a thread in registers: 112 units have 352 threads with 168 registers each.
# With 120 units the compiler puts some of them into memory, on devices of compute
# capability 10.0 also with 112 units and four rows.
MOST_RESIDENT = {32: 112, 64: 56}
# The backward kernel with four rows of 88 units needs 40 bytes of memory for them.
_FOUR_ROWS_UP_TO = {32: 80, 64: 48}

# From so many rows on, a tile's, wide layers take their steps one by one. A model:
# below, reading the weights for blocks of few rows takes no longer than a launch.
TILED_FROM_ROWS = 64


def fits(bits: int, units: int) -> bool:
    """Whether the recurrent weights of a thread fit its registers."""
    return units <= MOST_RESIDENT[bits]


def most_rows(bits: int, units: int) -> int:
    """How many rows of a block leave enough registers."""
    return 4 if units <= _FOUR_ROWS_UP_TO[bits] else 2

"""How wide a layer may be for what: read by the dispatch, without numba-cuda."""

from __future__ import annotations

import functools
import importlib.util
from typing import NamedTuple

# Weights of a thread in registers: 104 units have 320 threads with 168 registers each.
# With the reset gate before the product, a mask and dropout of the state the compiler
# puts 8 bytes of them into memory for 100 units (compute capability 7.5 and 8.0).
MOST_RESIDENT = {32: 104, 64: 56}
_RESET_BEFORE = {32: 96, 64: 56}
# The backward kernel with four rows of 88 units needs 40 bytes of memory for them.
_FOUR_ROWS_UP_TO = {32: 80, 64: 48}
MOST_ROWS = 4

# From so many rows on, a tile's, wide layers take their steps one by one. A model:
# below, reading the weights for blocks of few rows takes no longer than a launch.
TILED_FROM_ROWS = 64


@functools.cache
def cupy_found() -> bool:
    """Whether CuPy is installed."""
    return importlib.util.find_spec("cupy") is not None


def by_cupy(precision: str) -> bool:
    """Whether CuPy makes the products over all steps."""
    return precision == "free" and cupy_found()


def most_resident(bits: int, reset_after: bool) -> int:
    """Return how many recurrent weights of a thread fit its registers."""
    most = MOST_RESIDENT[bits]
    return most if reset_after else min(most, _RESET_BEFORE[bits])


def fits(bits: int, units: int, reset_after: bool) -> bool:
    """Whether a layer's do."""
    return units <= most_resident(bits, reset_after)


def spares_registers(bits: int, units: int) -> bool:
    """Whether weights leave registers for more than a step needs."""
    return units <= _FOUR_ROWS_UP_TO[bits]


def most_rows(bits: int, units: int, reset_after: bool) -> int:
    """How many rows of a block leave enough registers.

    With the reset gate before the product the forward kernel needs 8 to 32 bytes of
    memory for them with two rows of 92 units or more.
    """
    if spares_registers(bits, units):
        return MOST_ROWS
    return 1 if not reset_after and fits(bits, units, False) else 2


class Chip(NamedTuple):
    """What a device has for blocks that wait for each other."""

    processors: int
    shared_bytes: int  # of each multiprocessor
    block_bytes: int  # of shared memory that a block may ask for


# For `explain` where no device is at hand: an A100.
TYPICAL = Chip(108, 164 * 1024, 163 * 1024)

# Of a block: for its sums two to six warps would do, and all read what others show.
GRID_THREADS = 256
_RESERVED_BYTES, _MOST_BLOCKS = 1024, 16  # for each block; on a multiprocessor
_MOST_UNITS = 16  # of a block


class Split(NamedTuple):
    """How a layer is divided: units and rows of a block, rows of a thread.

    And in how many parts a sum is, each of some units and with a thread of its own: one
    but for ``precision="free"``.
    """

    units: int
    rows: int
    each: int
    parts: int = 1

    def blocks(self, units: int, B: int) -> tuple[int, int]:
        """Return the blocks along units and along rows."""
        return -(-units // self.units), -(-B // self.rows)

    def bytes(self, bits: int, units: int, copies: int = 1) -> int:
        """Count the bytes of a block in shared memory.

        Recurrent weights, `copies` of the states of all units, and of each of its own
        units and rows the parts of the three sums, the candidate's input, the state and
        the output.
        """
        lanes = 128 // bits
        weights = -(-3 * self.units * units // lanes) * lanes
        states = copies * self.rows * -(-units // lanes) * lanes
        own = 3 * (self.parts + 1) * self.units * self.rows
        return (weights + states + own) * bits // 8


def copies(reset_after: bool, drops: bool) -> int:
    """Count the states that gates see: with dropout of the state one for each gate.

    With the reset gate before the product the candidate's are made in between. Going
    back there are always as many, the gradients of the gates' sums.
    """
    if not drops:
        return 1
    return 3 if reset_after else 2


def split(
    bits: int, units: int, B: int, chip: Chip, copies: int = 1, free: bool = False
) -> Split | None:
    """Divide a layer among blocks that are all there at once, None if they are not.

    As few blocks as possible: each has to wait for all others. Three warps of eight
    units and rows wait for their own multiply-adds anyway, so more units only where
    there are too few multiprocessors for that. Where sums are free to be in parts, as
    many as a block has threads for.
    """
    if B == 0:
        return None
    most = min(8, 1 << (B - 1).bit_length())
    for own in (*range(8, _MOST_UNITS + 1), *range(7, 0, -1)):
        rows = most
        while rows > 0:
            for parts in (8, 4, 2, 1) if free else (1,):
                found = Split(own, rows, min(2, rows), parts)
                if _at_once(found, bits, units, B, chip, copies):
                    return found
            rows //= 2
    return None


def _at_once(
    found: Split, bits: int, units: int, B: int, chip: Chip, copies: int
) -> bool:
    """Whether a device has room for all blocks, and a block threads for all parts."""
    size = found.bytes(bits, units, copies) + _RESERVED_BYTES
    at_once = min(chip.shared_bytes // size, _MOST_BLOCKS)
    along_units, along_rows = found.blocks(units, B)
    sums = 3 * found.units * (found.rows // found.each) * found.parts
    fits_block = size <= chip.block_bytes and (sums <= GRID_THREADS or found.parts == 1)
    return fits_block and along_units * along_rows <= chip.processors * at_once

"""The least time that a GRU with this package's gates and order of sums takes.

The longest of what has to be done and cannot be done faster than the rates that
`roofline.py` measures:
    multiplying   the products on whole vectors of units, and after them the gates, by
                  all threads
    waiting       each step begins with the states of the one before: the sum over them
                  is one chain (kernels/__init__.py has the order of sums), and gates
                  follow. A row alone has to be multiplied in that time, by one thread
                  or by all, which then meet.
    reading       few rows read the recurrent weights once per step, in training twice
    moving        inputs, outputs and their gradients, once each, from where they fit
and then what Python and NumPy take for a call. What a kernel keeps for the way back,
packing, and the rest of what a step of many rows does in turn are not counted.
"""

import numpy as np

from benchmarks import tables
from benchmarks.rates import (
    BACK_IN_TURN,
    CHAIN,
    GATES,
    GATES_BACK,
    IN_TURN,
    MEETINGS,
)

# A prepared call of 32 units (`stream.push`) takes so long; training is three calls:
# new weights, forward, backward.
CALL = {"inference": 2e-6, "training": 6e-6}


def least_seconds(what, shape, dtype, roof):
    """Return the least time of a call; `roof` is what `roofline.roofline` returns."""
    batch, steps, features, units = shape
    itemsize = np.dtype(dtype).itemsize
    back = what == "training"
    rate = {name: 1e9 * rates[-1] for name, rates in roof["bound"][dtype].items()}
    width = roof["vector_bits"] // 8 // itemsize
    padded = -(-units // width) * width
    whole = tables.flops(what, shape) * padded / units
    gates = batch * steps * padded
    multiplying = whole / (1e9 * roof["fma"][dtype][-1]) + gates / rate[GATES]
    if back:
        multiplying += gates / rate[GATES_BACK]
    ways = 2 if back else 1
    size = 3 * itemsize * units * units
    step = units / rate[CHAIN]
    if batch == 1:
        step = max(step, alone(roof, dtype, 6 * units * padded, size))
    gates_in_turn = 1 / rate[IN_TURN] + (1 / rate[BACK_IN_TURN] if back else 0)
    with_states = tables.steps_with_states(steps)
    waiting = with_states * ways * step + steps * gates_in_turn
    few = batch <= tables.FEW_ROWS
    reading = ways * with_states * size / tables.bandwidth(roof, size) if few else 0
    moved = ways * itemsize * batch * steps * (features + units)
    moving = moved / tables.bandwidth(roof, moved)
    return max(multiplying, waiting, reading, moving) + CALL[what]


def alone(roof, dtype, operations, size):
    """Return the least time in which weights of a size are multiplied with one row."""
    times = []
    for i, threads in enumerate(roof["threads"]):
        multiplying = operations / (1e9 * roof["fma"][dtype][i])
        meeting = 1e-9 / roof["bound"][dtype][MEETINGS][i] if threads > 1 else 0
        reading = size / tables.bandwidth(roof, size, i)
        times.append(max(multiplying, reading) + meeting)
    return min(times)

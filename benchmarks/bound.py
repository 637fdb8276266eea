"""The least time that a GRU with this package's gates and order of sums takes.

The longest of what has to be done and cannot be done faster than the rates that
`roofline.py` measures:
    multiplying   the products on whole vectors of units, and after them the gates, by
                  all threads
    waiting       each step begins with the states of the one before, and the sum over
                  them is one chain (kernels/__init__.py has the order of sums)
    reading       few rows read the recurrent weights once per step, in training twice
    moving        inputs, outputs and their gradients, once each, from where they fit
and then what Python and NumPy take for a call. What a kernel keeps for the way back,
packing, meeting of threads and the latency of gates are not counted.
"""

import numpy as np

from benchmarks import tables
from benchmarks.rates import CHAIN, GATES, GATES_BACK

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
    waiting = ways * steps * units / rate[CHAIN]
    size = 3 * itemsize * units * units
    few = batch <= tables.FEW_ROWS
    reading = ways * steps * size / tables.bandwidth(roof, size) if few else 0
    moved = ways * itemsize * batch * steps * (features + units)
    moving = moved / tables.bandwidth(roof, moved)
    return max(multiplying, waiting, reading, moving) + CALL[what]

"""What an NVIDIA GPU runs: the arrays and the order of sums of kernels/__init__.py.

Results have the bits of the CPU's: the same formulas (gates.py, activations/), nothing
contracted, no approximate functions (_jit_cuda.py), unless something else is asked for:
precision="tf32", products over all steps on tensor cores (products.py); "free", those
by CuPy (library.py), and sums of the recurrence in parts where threads are idle
(forward_grid.py). Nothing here has run on a device yet: kernels are emulated and
compiled, and what was compiled runs on the CPU (tests/test_cuda_*.py).

Where things are
    ptx                 what Numba lacks on the device
    limits              how wide a layer may be for what
    launch              what a pass hands to whoever carries it out
    passes              both passes as the dispatch table has them
    forward_cuda        the launches of a pass, forward and
    backward_cuda       backward
    gradients           of inputs and weights, once the recurrence went back
    products            many samples at once: inputs and weights, and back
    library             the same by CuPy, where asked for
    forward_rows        the recurrence, blocks of few rows that wait for nobody, and
    backward_rows       back
    forward_grid        the recurrence, blocks of few units that meet in every step,
    backward_grid       and back, and
    grid_parts          what both are made of
    forward_tiles       a step of many rows, wide layers,
    backward_tiles      and back
    step                a unit's step from its sums, and back
    elementwise         what NumPy does around a pass on the host
    weight_gradients    what backward adds up: parts of rows, and their sum
"""

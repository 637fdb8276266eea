"""Prints the vector bytes and a hash of results: the same hash on every machine.

Run as a program by test_bits.py, with Numba told to compile for some CPU. Fails if a
kernel writes beside the arrays of its results.
"""

import hashlib
import math

import numpy as np

from numbagru.config import GRUConfig
from numbagru.functional import Weights, gru, gru_vjp
from numbagru.kernels.vector_ir import vector_registers
from numbagru.operands import HOST

# Twelve units are whole vectors of four, but not whole tiles of eight rows.
SHAPES = [(1, 3, 2, 5), (1, 3, 2, 12), (5, 3, 2, 12), (3, 2, 1, 70), (20, 4, 9, 33)]
# One reset mode per type: each of the four kernels compiles for seconds.
VARIANTS = [(True, "float32"), (False, "float64")]


GUARD, GUARDED = 4096, 3.0
made = []


def guarded(shape, dtype):
    """Make an array of results amid numbers that nobody may change."""
    size = math.prod(np.atleast_1d(shape))
    whole = np.full(size + 2 * GUARD, GUARDED, dtype)
    made.append(whole)
    return whole[GUARD:-GUARD].reshape(shape)


def main():
    """Hash outputs and gradients of all shapes."""
    HOST.empty = guarded
    digest = hashlib.sha256()
    for B, T, F, U in SHAPES:
        for reset_after, dtype in VARIANTS:
            rng = np.random.default_rng(U)
            config = GRUConfig(
                units=U, reset_after=reset_after, dtype=dtype, return_sequences=True
            )
            bias = (2, 3 * U) if reset_after else (3 * U,)
            arrays = (rng.normal(size=s) for s in [(F, 3 * U), (U, 3 * U), bias])
            weights = Weights(*(a.astype(dtype) for a in arrays), reset_after)
            x, mask = rng.normal(size=(B, T, F)), rng.random((B, T)) < 0.7
            results = [*gru(config, weights, x)]
            for h0 in (None, rng.normal(size=(B, U))):
                outputs, pullback = gru_vjp(config, weights, x, h0, mask)
                results += [*outputs, *pullback(*outputs)]
            for array in results:
                digest.update(b"" if array is None else array.tobytes())
    for whole in made:
        assert (whole[:GUARD] == GUARDED).all()
        assert (whole[-GUARD:] == GUARDED).all()
    print(vector_registers()[0], digest.hexdigest())  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()

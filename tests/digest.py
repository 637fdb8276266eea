"""Prints the vector bytes and a hash of results: the same hash on every machine.

Run as a program by test_bits.py, with Numba told to compile for some CPU.
"""

import hashlib

import numpy as np

from numbagru.config import GRUConfig
from numbagru.functional import Weights, gru, gru_vjp
from numbagru.kernels.vector_ir import vector_registers

SHAPES = [(1, 3, 2, 5), (3, 2, 1, 70), (20, 4, 9, 33)]
# One reset mode per type: each of the four kernels compiles for seconds.
VARIANTS = [(True, "float32"), (False, "float64")]


def main():
    """Hash outputs and gradients of all shapes."""
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
            outputs, pullback = gru_vjp(config, weights, x, mask=mask)
            gradients = pullback(*outputs)
            for array in (*outputs, *gradients, *gru(config, weights, x)):
                digest.update(array.tobytes())
    print(vector_registers()[0], digest.hexdigest())  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()

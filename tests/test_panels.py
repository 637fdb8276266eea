"""Packed weights against NumPy, around whole vectors, on one thread and on two."""

import numpy as np
import pytest

from numbagru.kernels import panels
from numbagru.kernels.call import REAL
from numbagru.kernels.vector_ir import lanes, padded

SIZES = [(0, 1), (1, 1), (3, 5), (8, 16), (16, 17), (33, 32), (5, 48), (200, 130)]


def weights(F, U, dtype):
    rng = np.random.default_rng(F + U)
    return [rng.standard_normal((n, 3 * U)).astype(dtype) for n in (F, U)]


def in_vectors(matrix, width):
    """Bring (rows, columns) to (vectors of columns, rows, lanes), zeros at the end."""
    rows, columns = matrix.shape
    wide = np.zeros((rows, padded(columns, width)), matrix.dtype)
    wide[:, :columns] = matrix
    return wide.reshape(rows, -1, width).swapaxes(0, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("biases", [0, 1, 2])
@pytest.mark.parametrize(("F", "U"), SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_packed_weights(F, U, biases, threads, dtype):
    W, R = weights(F, U, dtype)
    bias = np.arange(biases * 3 * U, dtype=dtype)
    width = lanes(REAL[W.dtype])
    gates = [in_vectors(np.vstack([W, R])[:, g * U :][:, :U], width) for g in range(3)]
    b = np.zeros((2, 3, U), dtype)
    b[:biases] = bias.reshape(biases, 3, U)
    starts = np.stack([b[0, 0] + b[1, 0], b[0, 1] + b[1, 1], b[0, 2], b[1, 2]])
    of_zeros = np.zeros((padded(U, width) // width, 3, width), dtype)
    forward = [np.stack(gates, 2), in_vectors(starts, width), of_zeros]
    candidate_first = np.hstack([W[:, 2 * U :], W[:, : 2 * U]])
    backward = [in_vectors(matrix.T, width) for matrix in (candidate_first, R)]
    for both, parts in ((False, forward), (True, forward + backward)):
        packed = panels.pack(W, R, bias, both, threads)
        panels.pack_zeros(W, R, packed)
        expected = np.concatenate([part.reshape(-1) for part in parts])
        start = -packed.ctypes.data % 64 // packed.itemsize
        found = packed[start : start + expected.size]
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(panels.sum_bias(REAL[W.dtype], bias, U), starts)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_over_states_of_zero(dtype):
    """The zeros of a chain of products, and NaN where one is no number."""
    W, R = weights(3, 37, dtype)
    R[:, 5] = -1
    R[:, 6] = 1
    R[2, 7] = np.inf
    R[3, 8] = np.nan
    packed = panels.pack(W, R, np.zeros(0, dtype), False, 1)
    panels.pack_zeros(W, R, packed)
    expected = np.full(3 * 37, -0.0, dtype)
    with np.errstate(invalid="ignore"):
        for row in R:
            expected += row * np.zeros((), dtype)
    width = lanes(REAL[W.dtype])
    place = panels.places.py_func(3, 37, width)[1]
    start = -packed.ctypes.data % 64 // packed.itemsize + place
    found = packed[start:][: padded(37, width) * 3].reshape(-1, 3, width)
    found = found.swapaxes(0, 1).reshape(3, -1)[:, :37].reshape(-1)
    np.testing.assert_array_equal(found, expected)
    numbers = np.isfinite(expected)
    assert not np.signbit(expected[numbers]).all()
    np.testing.assert_array_equal(
        np.signbit(found[numbers]), np.signbit(expected[numbers])
    )

"""One training step over one time step, with weights read where they stand."""

import itertools

import numpy as np
import pytest

from numbagru.config import GRUConfig
from numbagru.functional import Weights, gru_vjp

# Whole vectors of every machine; features of none, of one and of more than a vector.
# Rows of less than a tile, of one, and of more; on one thread and on more.
SHAPES = [
    (1, 1, 16), (1, 40, 64), (2, 16, 48), (3, 7, 32), (8, 33, 128), (7, 5, 144),
    (9, 0, 128), (23, 6, 144), (64, 33, 128),
]  # fmt: skip
VARIANTS = [
    {"dtype": "float32"},
    {"dtype": "float64"},
    {"dtype": "float32", "use_bias": False, "return_sequences": True},
    {"dtype": "float32", "activation": "softmax", "recurrent_activation": "silu"},
    {"dtype": "float32", "go_backwards": True, "return_state": True},
    {"dtype": "float32", "time_major": True, "return_sequences": True},
]


def make(shape, variant):
    B, F, U = shape
    rng = np.random.default_rng(0)
    config = GRUConfig(units=U, **variant)

    def normal(*shape):
        return rng.normal(size=shape).astype(config.dtype)

    bias = normal(2, 3 * U) if config.use_bias else None
    arrays = normal(F, 3 * U), normal(U, 3 * U), bias

    def sequences(last):
        return normal(1, B, last) if config.time_major else normal(B, 1, last)

    given = sequences(F), normal(B, U)
    d = normal(B, U), sequences(U) if config.return_sequences else None, None
    return config, arrays, given, d


def results(config, weights, x, h0, d):
    outputs, pullback = gru_vjp(config, weights, x, h0)
    return [a for a in (*outputs, *pullback(*d)) if a is not None]


def placed(array, offset):
    """Copy an array to so many bytes after the start of a cache line."""
    raw = np.zeros(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    copy = np.ndarray(array.shape, array.dtype, raw, start)
    copy[...] = array
    return copy


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("units", [64, 128, 144, 256, 400])
def test_the_bits_are_the_same_wherever_the_weights_of_one_row_start(units, dtype):
    config, arrays, (x, h0), d = make((1, 33, units), {"dtype": dtype})
    expected = results(config, Weights(*arrays, True), x, h0, d)
    # The last one is that of a view of bytes, whose numbers are not aligned.
    for offset in [*range(0, 64, 4 if dtype == "float32" else 8), 7]:
        weights = Weights(*(placed(array, offset) for array in arrays), True)
        for found, right in zip(
            results(config, weights, x, h0, d), expected, strict=True
        ):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_the_bits_are_those_of_packed_weights(shape, variant):
    config, arrays, (x, h0), d = make(shape, variant)
    gradients = [d, (d[0], d[1], h0), (None, None, h0), (None, None, None)]
    for state, cotangents in itertools.product((None, h0), gradients):
        fresh, packed = (Weights(*arrays, True) for _ in range(2))
        packed.packed(training=True, threads=1)
        alone = results(config, fresh, x, state, cotangents)
        expected = results(config, packed, x, state, cotangents)
        assert len(alone) == len(expected)
        for result, right in zip(alone, expected, strict=True):
            assert result.shape == right.shape
            assert result.tobytes() == right.tobytes()
        assert not fresh.packed_for_training or shape[0] > 2  # parts of rows pack


@pytest.mark.parametrize(
    ("shape", "steps"),
    [((65, 3, 128), 1), ((1, 3, 128), 2), ((1, 3, 130), 1)],
    ids=repr,
)
def test_the_others_pack(shape, steps):
    config, arrays, (x, h0), d = make(shape, {"dtype": "float32"})
    weights = Weights(*arrays, True)
    results(config, weights, np.repeat(x, steps, 1), h0, d)
    assert weights.packed_for_training

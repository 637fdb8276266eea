import copy
import pickle
import random as python_random
import threading

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbagru import random

SHAPES = [(), (0,), (1,), (7,), (5, 3), (2, 0, 3), (13, 11)]
RATES = [0.0, 0.1, 0.25, 0.3, 0.5, 0.9, 0.999, 1.0]


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1])
def test_states_are_those_of_keras(seed):
    ours, keras_generator = random.SeedGenerator(seed), keras.random.SeedGenerator(seed)
    for _ in range(3):
        expected = keras_generator.next()
        state = ours.next()
        np.testing.assert_array_equal(state, expected)
        assert state.dtype == expected.dtype == np.uint32
    np.testing.assert_array_equal(ours.state, keras_generator.state.value)


def test_seed_none_is_drawn_from_python_random():
    python_random.seed(3)
    expected = keras.random.SeedGenerator().state.value
    python_random.seed(3)
    generator = random.SeedGenerator()
    np.testing.assert_array_equal(generator.state, expected)
    assert generator.get_config()["seed"] is None
    python_random.seed(3)
    assert random.draw_seed() == expected[0]


def test_state_can_be_put_back():
    generator = random.SeedGenerator(5)
    before = generator.state
    first = generator.next()
    assert generator.state[1] == 1
    generator.state = before
    np.testing.assert_array_equal(generator.next(), first)


def test_state_is_a_copy():
    generator = random.SeedGenerator(5)
    generator.state[:] = 9
    generator.next()[:] = 9
    np.testing.assert_array_equal(generator.state, [5, 1])


def test_counter_wraps_as_uint32():
    generator = random.SeedGenerator(5)
    generator.state = (5, 2**32 - 1)
    generator.next()
    np.testing.assert_array_equal(generator.state, [5, 0])


def test_each_thread_gets_its_own_counter():
    generator, counters = random.SeedGenerator(1), []

    def work():
        counters.extend(int(generator.next()[1]) for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counters) == list(range(2000))


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))]
)
def test_copies_go_on_from_the_state(clone):
    generator = random.SeedGenerator(5)
    generator.next()
    twin = clone(generator)
    np.testing.assert_array_equal(twin.next(), [5, 1])
    np.testing.assert_array_equal(generator.next(), [5, 1])


def test_config_is_that_of_keras():
    ours = random.SeedGenerator(5, name="mine")
    assert ours.get_config() == keras.random.SeedGenerator(5, name="mine").get_config()
    twin = random.SeedGenerator.from_config(ours.get_config())
    np.testing.assert_array_equal(twin.state, [5, 0])


@pytest.mark.parametrize("seed", [1.0, "1", np.int64(1), [1], -1, 2**32])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match=r"Argument `seed` must .*Received: seed="):
        random.SeedGenerator(seed)


@pytest.mark.parametrize("state", [5, (1, 2, 3), (1, -1), (1.0, 2), (2**32, 0), "ab"])
def test_bad_states(state):
    generator = random.SeedGenerator(5)
    with pytest.raises(ValueError, match=r"pair `\(seed, counter\)`"):
        generator.state = state
    with pytest.raises(ValueError, match="seed"):
        random.dropout_mask((2,), 0.5, state if state != 5 else -5)
    np.testing.assert_array_equal(generator.state, [5, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_those_of_keras(shape, rate, dtype):
    generator, keras_generator = random.SeedGenerator(7), keras.random.SeedGenerator(7)
    ones = np.ones(shape, dtype)
    for _ in range(2):
        expected = keras.random.dropout(ones, rate, seed=keras_generator)
        mask = random.dropout_mask(shape, rate, generator, dtype)
        np.testing.assert_array_equal(mask, expected)
        assert mask.dtype == dtype
        assert mask.shape == shape


def test_masks_of_a_keras_cell():
    """One state for each mask, input masks first (BEHAVIOUR 1.8)."""
    cell = keras.layers.GRUCell(5, dropout=0.3, recurrent_dropout=0.2, seed=11)
    x, h = np.ones((4, 3), np.float32), np.ones((4, 5), np.float32)
    inputs, recurrent = cell.get_dropout_mask(x), cell.get_recurrent_dropout_mask(h)
    for k, expected in enumerate(inputs):
        mask = random.dropout_mask((4, 3), 0.3, (11, k))
        np.testing.assert_array_equal(mask, expected)
    for k, expected in enumerate(recurrent):
        mask = random.dropout_mask((4, 5), 0.2, (11, len(inputs) + k))
        np.testing.assert_array_equal(mask, expected)


@given(rate=st.floats(0, 1, allow_subnormal=False), seed=st.integers(0, 2**32 - 1))
def test_a_mask_holds_two_values(rate, seed):
    mask = random.dropout_mask((17,), rate, (seed, 0), "float64")
    np.testing.assert_array_equal(
        mask, random.dropout_mask((17,), rate, seed, "float64")
    )
    kept = mask[mask != 0]
    if rate == 1:
        assert kept.size == 0
    else:
        np.testing.assert_array_equal(kept, 1 / (1 - rate))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2,), -0.1), "`rate`.*Received: rate=-0.1"),
        (((2,), 1.1), "`rate`"),
        (((2,), np.nan), "`rate`"),
        (((2,), "0.5"), "`rate`"),
        (((2,), 0.5j), "`rate`"),
        (((-2,), 0.5), r"`shape`.*Received: shape=\(-2,\)"),
        (((2.5,), 0.5), "`shape`"),
        ((3, 0.5), "`shape`"),
    ],
)
def test_bad_mask_arguments_leave_the_generator_alone(arguments, message):
    generator = random.SeedGenerator(5)
    with pytest.raises(ValueError, match=message):
        random.dropout_mask(*arguments, generator)
    np.testing.assert_array_equal(generator.state, [5, 0])


@pytest.mark.parametrize("dtype", ["float16", "int32", "complex64", "nonsense", 3, "O"])
def test_bad_dtypes_leave_the_generator_alone(dtype):
    generator = random.SeedGenerator(5)
    with pytest.raises(ValueError, match="`dtype` must be 'float32' or 'float64'"):
        random.dropout_mask((2,), 0.5, generator, dtype)
    np.testing.assert_array_equal(generator.state, [5, 0])

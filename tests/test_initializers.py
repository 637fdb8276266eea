import copy
import pickle
import random as python_random

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbagru import initializers
from numbagru.random import SeedGenerator

RANDOM = {
    "RandomNormal": [{}, {"mean": 0.5, "stddev": 2.0}, {"mean": 1, "stddev": 0}],
    "TruncatedNormal": [{}, {"mean": 0.5, "stddev": 2.0}, {"mean": 1, "stddev": 0}],
    "RandomUniform": [{}, {"minval": -1, "maxval": 3}, {"minval": 2, "maxval": 2}],
    "VarianceScaling": [
        {"scale": scale, "mode": mode, "distribution": distribution}
        for scale in (1.0, 0.3)
        for mode in ("fan_in", "fan_out", "fan_avg")
        for distribution in (
            "truncated_normal",
            "untruncated_normal",
            "uniform",
            "normal",
            "Uniform",
        )
    ],
    "GlorotUniform": [{}, {"input_axes": [0], "output_axes": [0, 1]}],
    "GlorotNormal": [{}, {"input_axes": [0]}],
    "HeNormal": [{}],
    "HeUniform": [{}],
    "LecunNormal": [{}, {"output_axes": [1]}],
    "LecunUniform": [{}],
    "Orthogonal": [{}, {"gain": 0.3}, {"gain": -2}],
}
RANDOM_CASES = [(name, options) for name, cases in RANDOM.items() for options in cases]
FIXED_CASES = [
    ("Zeros", {}),
    ("Ones", {}),
    ("Constant", {"value": 0.1}),
    ("Constant", {"value": -3}),
    ("Identity", {}),
    ("Identity", {"gain": 0.1}),
]
MATRICES = [(3, 6), (7, 21), (13, 5), (1, 1), (1, 3), (3, 1), (0, 3), (3, 0), (0, 0)]
OTHER_SHAPES = [(), (0,), (1,), (17,), (2, 3, 5)]

# Keras 3 cannot make "Constant" from its bare name (it needs config["value"]), and STFT
# has no use here.
KERAS_NAMES = sorted(
    set(keras.src.initializers.ALL_OBJECTS_DICT)
    - {"Constant", "constant", "STFT", "stft", "STFTInitializer"}
)


def seed_options(name):
    return {"seed": 1337} if name in RANDOM else {}


def both(name, options):
    return getattr(initializers, name)(**options), getattr(keras.initializers, name)(
        **options
    )


def assert_same_bits(ours, expected, shape, dtype):
    expected = np.asarray(expected)
    np.testing.assert_array_equal(ours, expected)
    assert ours.dtype == expected.dtype == dtype
    assert ours.shape == shape
    assert ours.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize(("name", "options"), FIXED_CASES + RANDOM_CASES)
def test_matrices_have_the_bits_of_keras(name, options, shape, dtype):
    ours, theirs = both(name, options | seed_options(name))
    # Keras returns float32 from Orthogonal for every dtype; its layers cast.
    expected = np.asarray(theirs(shape, dtype)).astype(dtype)
    assert_same_bits(ours(shape, dtype), expected, shape, dtype)


@pytest.mark.parametrize("shape", OTHER_SHAPES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        case
        for case in FIXED_CASES + RANDOM_CASES
        if case[0] not in ("Identity", "Orthogonal") and "output_axes" not in case[1]
    ],
)
def test_other_ranks_have_the_bits_of_keras(name, options, shape):
    ours, theirs = both(name, options | seed_options(name))
    assert_same_bits(ours(shape), theirs(shape), shape, "float32")


def test_orthogonal_of_rank_3():
    ours, theirs = both("Orthogonal", {"seed": 3})
    assert_same_bits(ours((2, 3, 5)), theirs((2, 3, 5)), (2, 3, 5), "float32")


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_seeds_have_the_bits_of_keras(seed):
    ours, theirs = both("GlorotUniform", {"seed": seed})
    assert_same_bits(ours((3, 4)), theirs((3, 4)), (3, 4), "float32")


def test_weights_of_a_keras_gru():
    """The fused kernel counts 3 * units outputs."""
    layer = keras.layers.GRU(
        5,
        kernel_initializer=keras.initializers.GlorotUniform(seed=1),
        recurrent_initializer=keras.initializers.Orthogonal(seed=2),
    )
    layer.build((None, 7, 3))
    kernel, recurrent_kernel, bias = (weight.value for weight in layer.weights)
    ours = initializers.GlorotUniform(seed=1)((3, 15))
    np.testing.assert_array_equal(ours, kernel)
    assert np.abs(ours).max() <= np.float32(np.sqrt(6 / (3 + 15)))
    recurrent = initializers.Orthogonal(seed=2)((5, 15))
    np.testing.assert_array_equal(recurrent, recurrent_kernel)
    np.testing.assert_array_equal(initializers.Zeros()((2, 15)), bias)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 99))
def test_orthogonal_is_orthogonal(dtype, rows, columns, seed):
    q = initializers.Orthogonal(seed=seed)((rows, columns), dtype).astype("float64")
    gram = q @ q.T if rows <= columns else q.T @ q
    # Householder QR: the error of Q is a modest multiple of n eps (Higham 2002, 19.3).
    bound = 20 * 12 * np.finfo("float32").eps
    assert np.abs(gram - np.eye(min(rows, columns))).max() <= bound


@given(
    mean=st.floats(-5, 5, allow_subnormal=False),
    stddev=st.floats(0, 5, allow_subnormal=False),
    seed=st.integers(0, 2**32 - 1),
)
def test_truncated_normal_stays_within_two_deviations(mean, stddev, seed):
    values = initializers.TruncatedNormal(mean, stddev, seed)((101,), "float64")
    assert np.all((values >= mean - 2 * stddev) & (values <= mean + 2 * stddev))


def test_int_and_none_seeds_repeat_and_a_generator_does_not():
    for seed in (5, None):
        initializer = initializers.RandomNormal(seed=seed)
        np.testing.assert_array_equal(initializer((3,)), initializer((3,)))
    ours = initializers.RandomNormal(seed=SeedGenerator(5))
    theirs = keras.initializers.RandomNormal(seed=keras.random.SeedGenerator(5))
    first, second = ours((3,)), ours((3,))
    np.testing.assert_array_equal(first, theirs((3,)))
    np.testing.assert_array_equal(second, theirs((3,)))
    assert not np.array_equal(first, second)


def test_seed_none_is_drawn_at_construction():
    python_random.seed(1)
    theirs = keras.initializers.HeNormal()
    python_random.seed(1)
    ours = initializers.HeNormal()
    assert ours.seed == theirs.seed
    python_random.seed(2)
    np.testing.assert_array_equal(ours((3, 4)), theirs((3, 4)))


@pytest.mark.parametrize("name", KERAS_NAMES)
def test_every_keras_name_gives_the_same_class(name):
    theirs = keras.initializers.get(name)
    ours = initializers.get(name)
    assert type(ours).__name__ == type(theirs).__name__
    assert getattr(initializers, name) is type(ours)
    # Keras forgets the gain of Identity, and files the abstract class elsewhere.
    if type(ours) not in (initializers.Identity, initializers.Initializer):
        assert initializers.serialize(ours) == keras.initializers.serialize(theirs)


def test_names_keras_has_no_instance_for():
    assert initializers.get("constant").value == 0
    with pytest.raises(NotImplementedError, match="must define `__call__"):
        initializers.get("Initializer")((2, 3))


@pytest.mark.parametrize(
    "name", ["GlorotUniform", "glorot_uniform", "Zeros", "Identity"]
)
def test_names_of_tf_keras(name):
    assert type(initializers.get(f"{name}V2")) is type(initializers.get(name))


@pytest.mark.parametrize(("name", "options"), FIXED_CASES + RANDOM_CASES)
def test_configs_round_trip_between_the_two(name, options):
    ours, theirs = both(name, options | seed_options(name))
    config = initializers.serialize(ours)
    if name != "Identity":  # Keras forgets its gain
        assert config == keras.initializers.serialize(theirs)
    shape = (3, 4)
    for twin in (
        initializers.get(config),
        initializers.get({"class_name": name, "config": config["config"]}),
        initializers.get(
            {"class_name": name, "config": {**config["config"], "dtype": "float32"}}
        ),
        keras.initializers.get(config),
        type(ours).from_config(ours.get_config()),
    ):
        np.testing.assert_array_equal(twin(shape), ours(shape))


def test_config_of_a_seed_generator():
    ours = initializers.RandomNormal(seed=SeedGenerator(5))
    theirs = keras.initializers.RandomNormal(
        seed=keras.random.SeedGenerator(5, name="seed_generator")
    )
    config = initializers.serialize(ours)
    assert config == keras.initializers.serialize(theirs)
    np.testing.assert_array_equal(initializers.get(config)((3,)), ours((3,)))


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda i: pickle.loads(pickle.dumps(i))]
)
@pytest.mark.parametrize("name", [*RANDOM, "Zeros", "Ones", "Constant", "Identity"])
def test_copies_keep_an_unseeded_draw(name, clone):
    initializer = initializers.get(name)
    np.testing.assert_array_equal(clone(initializer)((3, 4)), initializer((3, 4)))


def test_none_instances_classes_and_callables():
    def ones(shape, dtype=None):
        return np.ones(shape, dtype)

    instance = initializers.Ones()
    assert initializers.get(None) is None
    assert initializers.serialize(None) is None
    assert initializers.get(instance) is instance
    assert isinstance(initializers.get(initializers.HeNormal), initializers.HeNormal)
    assert initializers.get(ones) is ones
    assert initializers.serialize(ones) == keras.initializers.serialize(ones)
    config = initializers.serialize(ones)
    assert initializers.get(config, custom_objects={"ones": ones}) is ones


class Ramp(initializers.Initializer):
    def __init__(self, step=1.0):
        self.step = step

    def __call__(self, shape, dtype=None):
        return np.arange(np.prod(shape), dtype=dtype).reshape(shape) * self.step


def test_a_users_own_class():
    config = initializers.serialize(Ramp(2.0))
    assert config == {
        "module": __name__,
        "class_name": "Ramp",
        "config": {"step": 2.0},
        "registered_name": "Ramp",
    }
    assert initializers.get(config, {"Ramp": Ramp}).step == 2.0
    config |= {"class_name": "Other", "registered_name": "mine>Ramp"}
    assert initializers.get(config, {"mine>Ramp": Ramp}).step == 2.0
    with pytest.raises(ValueError, match="Could not interpret initializer identifier"):
        initializers.get(config)


def test_a_class_without_its_arguments_as_attributes():
    class Forgetful(initializers.Initializer):
        def __init__(self, step):
            pass

    with pytest.raises(NotImplementedError, match=r"get_config.*\['step'\]"):
        initializers.serialize(Forgetful(1))


def test_an_object_without_config_cannot_be_serialized():
    with pytest.raises(TypeError, match="must define `get_config"):
        initializers.serialize(object())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_are_taken_as_they_are(dtype):
    values = np.arange(6).reshape(2, 3) / 7
    ours, theirs = initializers.get(values), keras.initializers.get(values)
    assert_same_bits(ours((2, 3), dtype), theirs((2, 3), dtype), (2, 3), dtype)
    kept = values.copy()
    values[:] = -1
    np.testing.assert_array_equal(ours((2, 3), "float64"), kept)
    ours((2, 3), "float64")[:] = -1
    np.testing.assert_array_equal(ours((2, 3), "float64"), kept)
    twin = initializers.get(initializers.serialize(ours))
    np.testing.assert_array_equal(twin((2, 3), "float64"), kept)
    with pytest.raises(ValueError, match=r"`shape` to be \(2, 3\)"):
        ours((3, 2))


@pytest.mark.parametrize(
    "values", [np.ones(2, complex), np.array(["a"]), np.array([None])]
)
def test_arrays_of_no_real_numbers(values):
    with pytest.raises(TypeError, match="must hold real numbers"):
        initializers.get(values)


@pytest.mark.parametrize(
    "identifier",
    ["nonsense", "Glorot_Uniform", "", 3, 0.5, [1, 2], {"class_name": "nonsense"}],
)
def test_unknown_identifiers(identifier):
    with pytest.raises(
        ValueError, match="Could not interpret initializer identifier: "
    ):
        initializers.get(identifier)


@pytest.mark.parametrize("config", [{}, {"config": {}}, {"class_name": ["Zeros"]}])
def test_configs_without_a_class(config):
    with pytest.raises(ValueError, match="string under 'class_name'"):
        initializers.get(config)


@pytest.mark.parametrize("config", [{"nonsense": 1}, "text", [1]])
def test_configs_that_do_not_fit(config):
    with pytest.raises(TypeError, match=r"HeNormal.*Received: config="):
        initializers.get({"class_name": "HeNormal", "config": config})


@pytest.mark.parametrize("identifier", ["STFT", "stft", "STFTInitializer", "stftV2"])
def test_stft_is_refused(identifier):
    with pytest.raises(ValueError, match="rank 3"):
        initializers.get(identifier)
    with pytest.raises(ValueError, match="rank 3"):
        initializers.get({"class_name": identifier, "config": {"side": "real"}})


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="'nonsense'"):
        initializers.nonsense  # noqa: B018


BAD_NUMBERS = [np.nan, np.inf, -np.inf, 1j, "1", None, [1.0], np.ones(1), True]


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("Constant", "value"),
        ("Identity", "gain"),
        ("Orthogonal", "gain"),
        ("RandomNormal", "mean"),
        ("RandomNormal", "stddev"),
        ("TruncatedNormal", "stddev"),
        ("RandomUniform", "minval"),
        ("RandomUniform", "maxval"),
        ("VarianceScaling", "scale"),
    ],
)
def test_numbers_must_be_finite_and_real(name, argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`.*Received: {argument}="):
        getattr(initializers, name)(**{argument: value})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("RandomNormal", {"stddev": -1}, "`stddev`: expected a non-negative"),
        ("RandomUniform", {"minval": 1, "maxval": 0}, "`maxval`: expected .* minval=1"),
        ("VarianceScaling", {"scale": 0}, "`scale`: expected a positive"),
        ("VarianceScaling", {"scale": -1}, "`scale`: expected a positive"),
        ("VarianceScaling", {"mode": "fan"}, "`mode` must be one of .*'fan'"),
        (
            "VarianceScaling",
            {"distribution": "x"},
            "`distribution` must be one of .*'x'",
        ),
        ("VarianceScaling", {"distribution": 3}, "`distribution` must be one of .*3"),
        ("GlorotUniform", {"input_axes": 1}, "`input_axes` must be a list"),
        ("GlorotUniform", {"output_axes": [0.5]}, "`output_axes` must be a list"),
        ("HeNormal", {"seed": 1.5}, "`seed` must be an integer.*seed=1.5"),
        ("HeNormal", {"seed": np.int64(1)}, r"`seed` must be an integer.*int\(seed\)"),
        ("HeNormal", {"seed": -1}, "`seed` must lie in"),
        ("HeNormal", {"seed": 2**32}, "`seed` must lie in"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(initializers, name)(**options)


def test_numpy_numbers_do_not_change_the_dtype():
    gain = np.float64(0.3)
    for name in ("Orthogonal", "Identity"):
        values = getattr(initializers, name)(gain=gain)((3, 4))
        assert values.dtype == np.float32
    assert isinstance(initializers.Constant(gain).get_config()["value"], float)


@pytest.mark.parametrize(
    ("identifier", "shape", "message"),
    [
        ("identity", (3,), "rank 2.*rank 1"),
        ("identity", (3, 3, 3), "rank 2.*rank 3"),
        ("orthogonal", (3,), "rank 2 or more.*rank 1"),
        ("orthogonal", (), "rank 2 or more.*rank 0"),
        ("zeros", (3, -1), "`shape` must be a tuple of non-negative integers"),
        ("he_normal", 3, "`shape` must be a tuple of non-negative integers"),
        ("he_normal", (2.0, 3), "`shape` must be a tuple of non-negative integers"),
    ],
)
def test_bad_shapes(identifier, shape, message):
    with pytest.raises(ValueError, match=message):
        initializers.get(identifier)(shape)


@pytest.mark.parametrize("name", ["Orthogonal", "GlorotUniform", "RandomNormal"])
def test_a_failed_call_leaves_the_generator_alone(name):
    generator = SeedGenerator(5)
    options = {"input_axes": [0], "output_axes": [7]} if name == "GlorotUniform" else {}
    initializer = getattr(initializers, name)(seed=generator, **options)
    with pytest.raises(ValueError, match="shape"):
        initializer((3,) if options or name == "Orthogonal" else (-3,))
    with pytest.raises(ValueError, match="`dtype`"):
        initializer((3, 4), "complex64")
    np.testing.assert_array_equal(generator.state, [5, 0])


def test_repr_shows_the_call():
    assert repr(initializers.RandomNormal(1, 2, seed=3)) == (
        "RandomNormal(mean=1, stddev=2, seed=3)"
    )

"""The arguments of the layers: defaults, order, checks, and the text made of them."""

import inspect

import keras
import numpy as np
import pytest

from numbagru import activations, layers
from numbagru.compat import v1, v2
from numbagru.config import PROFILES, GRUConfig, SequenceConfig, canonical_dtype


def test_units_is_all_that_is_needed():
    config = GRUConfig(4)
    assert config.units == 4
    assert config.activation == activations.get("tanh")
    assert config.recurrent_activation == activations.get("sigmoid")
    assert config.reset_after
    assert config.implementation == 2
    assert config.dtype == "float32"
    assert config.masked_output == "zero"


@pytest.mark.parametrize(
    ("compat", "expected"),
    [
        ("keras3", (True, "sigmoid", 2, "zero", tuple)),
        ("keras3-jax", (True, "sigmoid", 2, "state", tuple)),
        ("tf_keras", (True, "sigmoid", 2, "zero", list)),
        ("tf1", (False, "hard_sigmoid", 1, "zero", list)),
    ],
)
def test_profiles(compat, expected):
    c = GRUConfig(4, compat=compat)
    assert expected == (
        c.reset_after,
        c.recurrent_activation.name,
        c.implementation,
        c.masked_output,
        c.profile.returns,
    )


def test_every_profile_is_tested():
    assert set(PROFILES) == {"keras3", "keras3-jax", "tf_keras", "tf1"}


def test_hard_sigmoid_is_the_one_of_the_profile():
    x = np.ones(1, "float32")
    values = [
        float(GRUConfig(1, "hard_sigmoid", compat=compat).activation(x)[0])
        for compat in ("keras3", "tf_keras")
    ]
    np.testing.assert_allclose(values, [2 / 3, 0.7], rtol=1e-6)


def test_recurrent_dropout_needs_a_mask_for_each_gate():
    assert GRUConfig(4, recurrent_dropout=0.1).implementation == 1


def test_threads_reach_every_run_of_a_kernel():
    assert GRUConfig(4).threads is None
    assert GRUConfig(4, threads=np.int64(3)).threads == 3
    layer = layers.GRU(4, threads=2)
    assert layer.threads == layer.cell.threads == 2
    pair = layers.Bidirectional(layer)
    assert pair.forward_layer.threads == pair.backward_layer.threads == 2
    cells = [layers.GRUCell(4, threads=1), layers.GRUCell(3)]
    for own, expected in ((None, [1, None]), (5, [5, 5])):
        stack = layers.RNN(cells, threads=own)
        assert [config.threads for config in stack._scan.configs] == expected


def test_threads_are_saved_where_they_are_set():
    for layer in (
        layers.GRU(4, threads=2),
        layers.GRUCell(4, threads=2),
        layers.RNN(layers.GRUCell(4), threads=2),
        v2.GRU(4, threads=2),
    ):
        config = layer.get_config()
        assert config["threads"] == 2
        assert type(layer).from_config(config).threads == 2
        for flavor in ("keras3", "tf_keras"):
            assert "threads" not in layer.to_keras_config(flavor)
    assert "threads" not in layers.GRU(4).get_config()


def test_frozen():
    with pytest.raises(AttributeError):
        GRUConfig(4).units = 5


REFUSED = [
    ("units", 0, ValueError, "positive integer"),
    ("units", -3, ValueError, "positive integer"),
    ("units", 4.0, ValueError, "positive integer"),
    ("units", True, ValueError, "positive integer"),
    ("units", "4", ValueError, "positive integer"),
    ("activation", "tanhh", ValueError, "activation function identifier"),
    ("activation", "glu", ValueError, "glu"),
    ("recurrent_activation", 3, ValueError, "activation function identifier"),
    ("use_bias", None, ValueError, "True or False"),
    ("reset_after", "no", ValueError, "True or False"),
    ("return_sequences", 2, ValueError, "True or False"),
    ("kernel_initializer", "glorot", ValueError, "initializer identifier"),
    ("bias_regularizer", "l3", ValueError, "regularizer identifier"),
    ("kernel_constraint", "max", ValueError, "constraint identifier"),
    ("dropout", -0.1, ValueError, "between 0"),
    ("dropout", 1.5, ValueError, "between 0"),
    ("recurrent_dropout", float("nan"), ValueError, "between 0"),
    ("recurrent_dropout", "0.5", ValueError, "between 0"),
    ("seed", 1.0, ValueError, "must be an integer"),
    ("seed", np.int64(1), ValueError, "must be an integer"),
    ("use_cudnn", "yes", ValueError, "'auto', True, False"),
    ("use_cudnn", None, ValueError, "'auto', True, False"),
    ("implementation", 3, ValueError, "0, 1, 2"),
    ("device", "gpu", ValueError, "'auto', 'cpu', 'cuda'"),
    ("precision", "fp16", ValueError, "'dtype', 'tf32', 'free'"),
    ("threads", 0, ValueError, "`threads` must be a positive integer.*or None"),
    ("threads", -1, ValueError, "`threads` must be a positive integer.*or None"),
    ("threads", True, ValueError, "`threads` must be a positive integer.*or None"),
    ("threads", 2.0, ValueError, "`threads` must be a positive integer.*or None"),
    ("threads", "2", ValueError, "`threads` must be a positive integer.*or None"),
    ("compat", "keras2", ValueError, "'keras3', 'keras3-jax', 'tf_keras', 'tf1'"),
    ("name", "a/b", ValueError, "cannot contain"),
    ("name", 3, ValueError, "must be a string"),
    ("trainable", 1, ValueError, "boolean"),
    ("dtype", "float16", ValueError, "float32"),
    ("dtype", "mixed_float16", ValueError, "float32"),
    ("dtype", {"config": {"name": "bfloat16"}}, ValueError, "float32"),
    ("dtype", np.int32, ValueError, "float32"),
]


@pytest.mark.parametrize(("name", "value", "error", "words"), REFUSED)
def test_refused(name, value, error, words):
    arguments = {"units": 4, name: value}
    with pytest.raises(error, match=words) as caught:
        layers.GRU(**arguments)
    message = str(caught.value)
    assert name in message or "identifier" in message or "used here" in message


def test_use_cudnn_takes_numbers_for_booleans():
    assert GRUConfig(4, use_cudnn=1).use_cudnn is True
    assert GRUConfig(4, use_cudnn=0).use_cudnn is False


@pytest.mark.parametrize("label", ["GRU", "GRUCell", "RNN"])
def test_unknown_keyword(label):
    cls = getattr(layers, label)
    first = layers.GRUCell(2) if label == "RNN" else 4
    with pytest.raises(ValueError, match=f"passed to {label}: .'unit': 3"):
        cls(first, unit=3)


def test_units_missing_twice_and_too_many():
    with pytest.raises(TypeError, match="units"):
        layers.GRU()
    with pytest.raises(TypeError, match="units"):
        GRUConfig()
    with pytest.raises(TypeError, match="multiple values"):
        layers.GRU(4, units=4)
    with pytest.raises(TypeError, match="positional"):
        layers.GRU(*range(1, 30))
    with pytest.raises(ValueError, match="return_state"):
        layers.GRUCell(4, return_state=True)


def test_what_says_nothing_about_arrays_is_ignored():
    layer = layers.GRU(4, input_shape=(3, 2), autocast=True, input_dim=2)
    assert layer.units == 4


@pytest.mark.parametrize(
    "dtype",
    [
        "float64",
        np.float64,
        np.dtype("float64"),
        {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float64"}},
        keras.DTypePolicy("float64"),
    ],
)
def test_dtypes(dtype):
    assert canonical_dtype(dtype) == "float64"
    assert layers.GRU(2, dtype=dtype).cell.dtype == "float64"


def positional(cls):
    return [
        p.name
        for p in inspect.signature(cls).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]


@pytest.mark.parametrize("name", ["GRU", "GRUCell", "RNN"])
def test_positional_arguments_and_defaults_are_those_of_keras(name):
    ours = inspect.signature(getattr(layers, name)).parameters
    theirs = inspect.signature(getattr(keras.layers, name)).parameters
    expected = [p for p in theirs if p != "kwargs"]
    assert positional(getattr(layers, name)) == expected
    for p in expected:
        assert ours[p].default == theirs[p].default, p


def test_positional_arguments_of_tensorflow():
    # tf.keras.layers.GRU and tf.compat.v1.keras.layers.GRU, seeds 000 and 002.
    tail = ["return_sequences", "return_state", "go_backwards", "stateful", "unroll"]
    assert positional(v2.GRU)[-8:] == [
        "recurrent_dropout",
        *tail,
        "time_major",
        "reset_after",
    ]
    assert positional(v1.GRU)[-7:] == ["recurrent_dropout", *tail, "reset_after"]
    assert positional(v1.GRUCell)[-1] == "reset_after"
    assert v1.GRU(4, "relu", "tanh").recurrent_activation.name == "tanh"


@pytest.mark.parametrize("cls", [layers.GRU, layers.GRUCell, layers.RNN, v1.GRU])
def test_documentation_has_each_argument(cls):
    assert "{parameters}" not in cls.__doc__
    assert max(map(len, cls.__doc__.splitlines())) <= 88
    for name in inspect.signature(cls).parameters:
        assert f"\n    {name} : " in cls.__doc__, name


def test_a_subclass_shows_its_own_signature():
    class Small(layers.GRU):
        def __init__(self, scale):
            super().__init__(2 * scale)

    assert list(inspect.signature(Small).parameters) == ["scale"]
    assert Small(3).units == 6


def test_sequence_config_is_the_part_of_rnn():
    names = set(inspect.signature(SequenceConfig).parameters)
    assert names < set(inspect.signature(GRUConfig).parameters)
    assert "units" not in names


def test_tf32_takes_float32():
    assert GRUConfig(4).precision == "dtype"
    assert layers.GRU(4, precision="tf32").get_config()["precision"] == "tf32"
    with pytest.raises(ValueError, match=r"'tf32' takes dtype='float32'.*'float64'"):
        GRUConfig(4, precision="tf32", dtype="float64")

"""Side by side with Keras 3 on its NumPy backend, over seeded random configurations.

A float32 result may be at most twice as far from Keras in float64 as Keras in float32
is, plus a few roundings of the result itself.
"""

import keras
import numpy as np
import pytest

from numbagru import layers

EPS = np.finfo("float32").eps

# Keras 3.15's variables under NumPy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def flatten(out):
    if isinstance(out, list | tuple):
        return [leaf for part in out for leaf in flatten(part)]
    return [np.asarray(out)]


def close(ours, theirs, exact):
    """Compare lists of arrays: ours, Keras' in float32 and in float64."""
    ours, theirs, exact = flatten(ours), flatten(theirs), flatten(exact)
    assert len(ours) == len(theirs)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = max(1.0, np.abs(c).max(initial=0))
        error = np.abs(b - c).max(initial=0)
        assert np.abs(a - c).max(initial=0) <= 2 * error + 8 * EPS * scale


def trio(name, *args, **kwargs):
    """Return a layer of ours, Keras' twin of it and the float64 twin of that."""
    ours = getattr(layers, name)(*args, **kwargs, compat="keras3-jax")
    make = getattr(keras.layers, name)
    return ours, make(*args, **kwargs), make(*args, **{**kwargs, "dtype": "float64"})


def share_weights(ours, theirs, exact, shape):
    for layer in (ours, theirs, exact):
        layer.build(shape)
    rng = np.random.default_rng(5)
    weights = [0.8 * rng.normal(size=w.shape) for w in ours.get_weights()]
    for layer in (ours, theirs, exact):
        layer.set_weights([w.astype("float32") for w in weights])


def pick(rng, options):
    return {name: values[rng.integers(len(values))] for name, values in options.items()}


FLAGS = ("use_bias", "reset_after", "return_sequences", "return_state", "go_backwards")
OPTIONS = {
    **dict.fromkeys((*FLAGS, "stateful", "zero_output_for_mask"), (False, True)),
    "units": (1, 2, 5),
    "dropout": (0.0, 0.3),
    "recurrent_dropout": (0.0, 0.0, 0.4),
    "seed": (1, 99),
    "activity_regularizer": (None, "l2"),
    "kernel_regularizer": (None, "l1"),
    "bias_regularizer": (
        None,
        {"class_name": "L1L2", "config": {"l1": 0.1, "l2": 0.2}},
    ),
}


def arguments_of(rng):
    arguments = pick(rng, OPTIONS)
    if rng.random() < 0.2:
        arguments.update(activation="relu", recurrent_activation="hard_sigmoid")
    return arguments


@pytest.mark.parametrize("case", range(60))
def test_gru(case):
    rng = np.random.default_rng(case)
    arguments = arguments_of(rng)
    three = trio("GRU", **arguments)
    ours, theirs, exact = three
    B, T, F = rng.integers(1, 6, 3)
    share_weights(*three, (B, T, F))
    for _ in range(3):
        x = rng.normal(size=(B, T, F)).astype("float32")
        call = {"training": bool(rng.integers(2))}
        if rng.integers(2):
            call["mask"] = rng.integers(0, 2, (B, T)).astype(bool)
        if rng.integers(2):
            state = rng.normal(size=(B, arguments["units"])).astype("float32")
            call["initial_state"] = [state] if rng.integers(2) else state
        out = ours(x, **call)
        close(out, theirs(x, **call), exact(x, **call))
        assert isinstance(out, tuple) == arguments["return_state"]
        close(ours.losses, theirs.losses, exact.losses)
        if arguments["stateful"]:
            close(ours.states, theirs.states, exact.states)
        # The draws, made or skipped, leave the generators in the same state.
        assert [v.path.split("/")[-1] for v in ours.variables] == [
            v.path.split("/")[-1] for v in theirs.variables
        ]
        np.testing.assert_array_equal(
            ours.variables[-1].value, np.asarray(theirs.variables[-1])
        )


@pytest.mark.parametrize("case", range(12))
def test_stacked_cells(case):
    rng = np.random.default_rng(case)
    names = ("return_sequences", "return_state", "go_backwards", "zero_output_for_mask")
    options = pick(rng, dict.fromkeys(names, (False, True)))
    cells = [
        pick(rng, {k: OPTIONS[k] for k in ("units", "use_bias", "dropout", "seed")})
        for _ in range(rng.integers(2, 4))
    ]

    def build(module, **kwargs):
        made = [module.GRUCell(**c, **kwargs) for c in cells]
        # Keras: a stack casts its inputs to its own dtype.
        return made if not kwargs else module.StackedRNNCells(made, **kwargs)

    ours = layers.RNN(build(layers), compat="keras3-jax", **options)
    theirs = keras.layers.RNN(build(keras.layers), **options)
    exact = keras.layers.RNN(
        build(keras.layers, dtype="float64"), dtype="float64", **options
    )
    share_weights(ours, theirs, exact, (3, 4, 2))
    x = rng.normal(size=(3, 4, 2)).astype("float32")
    for training in (False, True):
        call = {"training": training}
        if rng.integers(2):
            call["mask"] = rng.integers(0, 2, (3, 4)).astype(bool)
        out, expected = ours(x, **call), theirs(x, **call)
        close(out, expected, exact(x, **call))
        if options["return_state"]:
            assert [type(part) for part in out[1:]] == [list] * len(cells)
            assert [type(part) for part in expected[1:]] == [list] * len(cells)


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_bidirectional(merge_mode, return_sequences):
    def build(module, dtype="float32", **kwargs):
        layer = module.GRU(
            3,
            return_sequences=return_sequences,
            return_state=True,
            dtype=dtype,
            kernel_regularizer="l2",
            **kwargs,
        )
        return module.Bidirectional(layer, merge_mode=merge_mode, dtype=dtype)

    three = (
        build(layers, compat="keras3-jax"),
        build(keras.layers),
        build(keras.layers, "float64"),
    )
    share_weights(*three, (2, 4, 3))
    ours, theirs, exact = three
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    states = [rng.normal(size=(2, 3)).astype("float32") for _ in range(2)]
    for mask in (None, np.array([[1, 1, 0, 1], [0, 1, 1, 0]], bool)):
        for given in (None, states):
            call = {"mask": mask, "initial_state": given}
            close(ours(x, **call), theirs(x, **call), exact(x, **call))
            close(ours.losses, theirs.losses, exact.losses)


@pytest.mark.parametrize("implementation", [1, 2])
def test_cell(implementation):
    three = trio(
        "GRUCell",
        3,
        dropout=0.3,
        recurrent_dropout=0.4 * (implementation == 1),
        implementation=implementation,
        seed=4,
    )
    share_weights(*three, (2, 5))
    ours, theirs, exact = three
    rng = np.random.default_rng(0)
    x, h = rng.normal(size=(2, 5)), rng.normal(size=(2, 3))
    x, h = x.astype("float32"), h.astype("float32")
    for training in (False, True, True):
        call = {"training": training}
        close(ours(x, [h], **call), theirs(x, [h], **call), exact(x, [h], **call))
        assert ours.variables[-1].value[1] == np.asarray(theirs.variables[-1])[1]
    for a, b in zip(
        flatten(ours.get_dropout_mask(x)),
        flatten(theirs.get_dropout_mask(x)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("kernel", "recurrent", "bias"),
    [
        ("GlorotUniform", "Orthogonal", "Zeros"),
        ("HeNormal", "LecunUniform", "RandomNormal"),
        ("TruncatedNormal", "Identity", "Ones"),
    ],
)
def test_weights_of_seeded_initializers(kernel, recurrent, bias):
    def seeded(name, seed):
        unseeded = {"Zeros", "Ones", "Identity"}
        config = {} if name in unseeded else {"seed": seed}
        return {"class_name": name, "config": config}

    arguments = {
        "kernel_initializer": seeded(kernel, 1),
        "recurrent_initializer": seeded(recurrent, 2),
        "bias_initializer": seeded(bias, 3),
    }
    ours, theirs = (module.GRU(4, **arguments) for module in (layers, keras.layers))
    for layer in (ours, theirs):
        layer.build((None, None, 3))
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert [v.path.split("/")[-2:] for v in ours.weights] == [
        v.path.split("/")[-2:] for v in theirs.weights
    ]


@pytest.mark.parametrize("case", range(20))
@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
def test_configs_are_equal_and_load_both_ways(case, name):
    rng = np.random.default_rng(case)
    arguments = {"name": "g", **arguments_of(rng), "use_cudnn": bool(rng.integers(2))}
    if name == "GRUCell":
        names = layers.GRUCell(1).get_config()
        arguments = {k: v for k, v in arguments.items() if k in names}
    arguments["kernel_constraint"] = ("max_norm", None)[rng.integers(2)]
    arguments["activation"] = ("silu", "gelu", None)[rng.integers(3)]
    ours = getattr(layers, name)(**arguments)
    theirs = getattr(keras.layers, name)(**arguments)
    expected = theirs.get_config()
    assert ours.to_keras_config() == expected
    assert expected.items() <= ours.get_config().items()
    assert type(ours).from_config(expected).to_keras_config() == expected
    assert type(theirs).from_config(ours.to_keras_config()).get_config() == expected


@pytest.mark.parametrize("stacked", [False, True])
def test_rnn_configs_are_equal(stacked):
    def build(module):
        cells = [module.GRUCell(n, name=f"c{n}") for n in (3, 2)]
        cell = module.StackedRNNCells(cells, name="s") if stacked else cells[0]
        return module.RNN(cell, return_state=True, name="r")

    ours, theirs = build(layers), build(keras.layers)
    assert ours.get_config() == theirs.get_config()
    for layer in (ours, theirs):
        layer(np.zeros((2, 3, 4), "float32"))
    assert ours.get_config() == theirs.get_config()
    assert ours.compute_output_shape((2, 3, 4)) == theirs.compute_output_shape(
        (2, 3, 4)
    )


def test_bidirectional_configs_are_equal():
    ours, theirs = (
        m.Bidirectional(m.GRU(3, name="g", return_sequences=True), name="b")
        for m in (layers, keras.layers)
    )
    assert ours.get_config() == theirs.get_config()
    for shape in ((None, None, 4), (2, 3, 4)):
        assert ours.compute_output_shape(shape) == theirs.compute_output_shape(shape)


X, H = np.zeros((2, 4, 3), "float32"), np.zeros((2, 2), "float32")


def built(module, **kwargs):
    layer = module.GRU(2, **kwargs)
    layer(X)
    return layer


@pytest.mark.parametrize(
    "act",
    [
        lambda m: m.GRU(0),
        lambda m: m.GRU(),
        lambda m: m.GRU(2, activation="tanhh"),
        lambda m: m.GRU(2, kernel_initializer="glorot"),
        lambda m: m.GRU(2, kernel_regularizer="l3"),
        lambda m: m.GRU(2, bias_constraint="max"),
        lambda m: m.GRU(2, seed=1.5),
        lambda m: m.GRU(2, use_cudnn="yes"),
        lambda m: m.GRU(2, trainable="yes"),
        lambda m: m.GRU(2, name="a/b"),
        lambda m: m.GRU(2, units_=3),
        lambda m: m.GRU(2)(X[0]),
        lambda m: m.GRU(2, use_cudnn=True)(X),
        lambda m: m.GRU(2, stateful=True).build((None, 4, 3)),
        lambda m: built(m)(X[..., :2]),
        lambda m: built(m, stateful=True)(X[:1]),
        lambda m: built(m).set_weights([]),
        lambda m: built(m).set_weights([np.zeros(3)] * 3),
        lambda m: m.GRU(2).count_params(),
        lambda m: built(m).input,
        lambda m: m.GRUCell(2, return_state=True),
        lambda m: m.RNN(3),
        lambda m: m.RNN([m.GRUCell(2), 3]),
        lambda m: m.Bidirectional(3),
        lambda m: m.Bidirectional(m.GRU(2), merge_mode="mean"),
        lambda m: m.Bidirectional(m.GRU(2), backward_layer=m.GRU(2)),
        lambda m: m.Bidirectional(m.GRU(2)).reset_state(),
    ],
)
def test_errors_are_of_the_same_type(act):
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        act(keras.layers)
    with pytest.raises(theirs.type):
        act(layers)

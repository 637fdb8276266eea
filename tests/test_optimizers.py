import copy
import json
import pickle

import keras
import numpy as np
import pytest

from numbagru import constraints
from numbagru.layers.variable import Variable
from numbagru.training import optimizers

SHAPES = [(3, 4), (4,), (2, 1, 3)]
CASES = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"learning_rate": 0.1, "momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.7, "nesterov": True}),
    "sgd-decay": ("SGD", {"momentum": 0.7, "weight_decay": 0.3}),
    "adam": ("Adam", {}),
    "adam-rates": (
        "Adam",
        {"learning_rate": 0.1, "beta_1": 0.5, "beta_2": 0.7, "epsilon": 0.3},
    ),
    "amsgrad": ("Adam", {"amsgrad": True, "beta_2": 0.4}),
    "adamw": ("AdamW", {}),
    "adamw-decay": ("AdamW", {"learning_rate": 0.2, "weight_decay": 0.1}),
}
# keras.Variable.numpy() in Keras 3.15 with NumPy 2.
KERAS_ARRAY = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
CLIPS = [{}, {"clipnorm": 0.8}, {"clipvalue": 0.4}, {"global_clipnorm": 1.3}]


def start(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in SHAPES]


def variables(values):
    return [Variable(v, dtype=v.dtype.name, name=f"v{i}") for i, v in enumerate(values)]


def gradients(step, dtype="float32"):
    rng = np.random.default_rng(100 + step)
    scale = 0 if step == 2 else 3.0 ** (step % 3)  # one step without any slope
    return [(rng.normal(size=s) * scale).astype(dtype) for s in SHAPES]


@pytest.mark.parametrize("clip", CLIPS, ids=lambda c: next(iter(c), "unclipped"))
@pytest.mark.parametrize("case", CASES)
def test_float32_steps_have_the_bits_of_keras(case, clip):
    name, options = CASES[case]
    mine = getattr(optimizers, name)(**options, **clip)
    theirs = getattr(keras.optimizers, name)(**options, **clip)
    ours, kerases = variables(start("float32")), start("float32")
    kerases = [keras.Variable(value) for value in kerases]
    for step in range(12):
        mine.apply(gradients(step), ours)
        with np.errstate(divide="ignore"):  # 1 / norm of nothing, in Keras too
            theirs.apply(gradients(step), kerases)
        for v, k in zip(ours, kerases, strict=True):
            assert v.value.dtype == np.float32
            np.testing.assert_array_equal(v.value, np.asarray(k.value), str(step))


def reference(name, options, values, steps):
    """Take the steps in float64, from the papers' formulas."""
    o = {"SGD": {"learning_rate": 0.01}, "Adam": {}, "AdamW": {"weight_decay": 0.004}}
    o = {"learning_rate": 0.001, **o[name], **options}
    rate = float(np.float32(o["learning_rate"]))
    values = [v.copy() for v in values]
    m, v, top = ([np.zeros_like(w) for w in values] for _ in range(3))
    for t in range(1, steps + 1):
        for i, g in enumerate(gradients(t - 1, "float64")):
            w = values[i] * (1 - rate * o.get("weight_decay", 0))
            if name == "SGD":
                mu = o.get("momentum", 0)
                m[i] = mu * m[i] - rate * g
                values[i] = w + (mu * m[i] - rate * g if o.get("nesterov") else m[i])
                continue
            b1, b2 = o.get("beta_1", 0.9), o.get("beta_2", 0.999)
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g * g
            top[i] = np.maximum(top[i], v[i]) if o.get("amsgrad") else v[i]
            alpha = rate * np.sqrt(1 - b2**t) / (1 - b1**t)
            values[i] = w - alpha * m[i] / (np.sqrt(top[i]) + o.get("epsilon", 1e-7))
    return values


@pytest.mark.parametrize("case", CASES)
def test_float64_steps_are_those_of_the_formulas(case):
    name, options = CASES[case]
    optimizer = getattr(optimizers, name)(**options)
    mine = variables(start("float64"))
    for step in range(12):
        optimizer.apply(gradients(step, "float64"), mine)
    expected = reference(name, options, start("float64"), 12)
    for v, e in zip(mine, expected, strict=True):
        assert v.value.dtype == np.float64
        # A dozen operations a step; a quotient near 1 / sqrt(1 - b2) of roundings.
        np.testing.assert_allclose(v.value, e, rtol=0, atol=12 * 12 * 64 * 2.3e-16)


def test_constraints_come_after_the_step():
    v = Variable(np.ones((2, 2)), constraint=constraints.NonNeg())
    optimizers.SGD(1.0).apply([np.array([[0.5, 2], [2, 0.5]])], [v])
    assert np.array_equal(v.value, [[0.5, 0], [0, 0.5]])


@pytest.mark.parametrize("case", CASES)
def test_state_goes_on_exactly(case):
    name, options = CASES[case]
    first = getattr(optimizers, name)(**options)
    ours = variables(start("float32"))
    for step in range(5):
        first.apply(gradients(step), ours)
    first.learning_rate = 0.037
    store = {}
    first.save_own_variables(store)
    second = getattr(optimizers, name)(**options)
    theirs = variables([v.value for v in ours])
    second.build(theirs)
    second.load_own_variables(store)
    third, copies = copy.deepcopy((first, ours))
    fourth, pickles = pickle.loads(pickle.dumps((first, ours)))
    for step in range(5, 8):
        first.apply(gradients(step), ours)
        second.apply(gradients(step), theirs)
        third.apply(gradients(step), copies)
        fourth.apply(gradients(step))
    for others in (theirs, copies, pickles):
        for a, b in zip(ours, others, strict=True):
            assert np.array_equal(a.value, b.value)
    assert second.iterations == 8
    assert second.learning_rate == np.float32(0.037)


def test_a_state_that_does_not_fit_changes_nothing():
    optimizer = optimizers.Adam()
    optimizer.apply(gradients(0), variables(start("float32")))
    store = {}
    optimizer.save_own_variables(store)
    fresh = optimizers.Adam(0.5)
    with pytest.raises(ValueError, match="does not fit"):
        fresh.load_own_variables(store)
    other = optimizers.Adam(0.5)
    other.build(variables([np.ones((2, 2), "float32")] * 3))
    with pytest.raises(ValueError, match="does not fit"):
        other.load_own_variables(store)
    assert (fresh.iterations, fresh.learning_rate, other.iterations) == (0, 0.5, 0)


@KERAS_ARRAY
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("clip", CLIPS, ids=lambda c: next(iter(c), "unclipped"))
def test_config_round_trip(case, clip):
    name, options = CASES[case]
    optimizer = getattr(optimizers, name)(**options, **clip)
    saved = json.loads(json.dumps(optimizers.serialize(optimizer)))
    assert optimizers.get(saved).get_config() == optimizer.get_config()
    theirs = getattr(keras.optimizers, name)(**options, **clip)
    config = theirs.get_config()
    for key, value in optimizer.get_config().items():
        assert key == "name" or config[key] == value, key
    loaded = optimizers.get(keras.optimizers.serialize(theirs))
    assert loaded.get_config() == {**optimizer.get_config(), "name": config["name"]}
    again = keras.optimizers.get(saved)
    assert again.get_config() == {**config, "name": optimizer.name}


@pytest.mark.parametrize("identifier", ["adam", "Adam", optimizers.Adam])
def test_names(identifier):
    optimizer = optimizers.get(identifier)
    assert type(optimizer) is optimizers.Adam
    assert optimizers.get(optimizer) is optimizer
    assert type(optimizers.get("adamw")) is optimizers.AdamW


def test_a_learning_rate_is_kept_in_float32():
    optimizer = optimizers.SGD(np.float64(0.1))
    assert optimizer.learning_rate == np.float32(0.1)
    v = Variable(np.zeros(1), dtype="float64")
    optimizer.apply([np.ones(1)], [v])
    assert v.value[0] == -np.float64(np.float32(0.1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SGD", {"learning_rate": -1.0}, "learning_rate"),
        ("SGD", {"learning_rate": np.nan}, "learning_rate"),
        ("SGD", {"learning_rate": "fast"}, "learning_rate"),
        ("SGD", {"learning_rate": lambda: 0.1}, "learning_rate"),
        ("SGD", {"momentum": 1.5}, "momentum"),
        ("SGD", {"momentum": True}, "momentum"),
        ("SGD", {"clipnorm": 0}, "clipnorm"),
        ("SGD", {"clipnorm": 1.0, "clipvalue": 1.0}, "At most one"),
        ("Adam", {"beta_1": 1.0}, "beta_1"),
        ("Adam", {"beta_2": -0.1}, "beta_2"),
        ("Adam", {"epsilon": -1e-7}, "epsilon"),
        ("AdamW", {"weight_decay": None}, "weight_decay"),
        ("AdamW", {"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_wrong_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(optimizers, name)(**options)


@pytest.mark.parametrize("identifier", ["rmsprop", None, 3, "function", len])
def test_what_is_no_optimizer(identifier):
    with pytest.raises(ValueError, match="optimizer"):
        optimizers.get(identifier)


@KERAS_ARRAY
@pytest.mark.parametrize(
    "option",
    [
        {"use_ema": True},
        {"gradient_accumulation_steps": 2},
        {"loss_scale_factor": 2.0},
    ],
    ids=lambda o: next(iter(o)),
)
def test_configurations_of_keras_that_ask_for_more(option):
    saved = keras.optimizers.serialize(keras.optimizers.SGD(**option))
    with pytest.raises(ValueError, match=next(iter(option))):
        optimizers.get(saved)


def test_wrong_gradients_change_nothing():
    optimizer, ours = optimizers.Adam(), variables(start("float32"))
    optimizer.apply(gradients(0), ours)
    before = [v.value for v in ours]
    store = {}
    optimizer.save_own_variables(store)
    wrong = gradients(1)[:2]
    with pytest.raises(ValueError, match="one array per variable"):
        optimizer.apply(wrong, ours)
    with pytest.raises(ValueError, match=r"shapes of the variables.*'v2'"):
        optimizer.apply([*wrong, np.ones(3)], ours)
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(gradients(1), variables(before))
    with pytest.raises(FloatingPointError, match="'v2' is not finite"):
        optimizer.apply([*wrong, np.full(SHAPES[2], np.nan)], ours)
    with (
        np.errstate(over="ignore"),
        pytest.raises(FloatingPointError, match="'v0' is not finite"),
    ):
        optimizer.apply([np.full(SHAPES[0], 1e30), *gradients(1)[1:]], ours)
    after = {}
    optimizer.save_own_variables(after)
    assert all(a is b.value for a, b in zip(before, ours, strict=True))
    assert all(np.array_equal(store[key], after[key]) for key in store)
    with pytest.raises(ValueError, match="first call of `apply`"):
        optimizers.SGD().apply(gradients(0))


def test_a_frozen_variable_may_be_left_out_later():
    optimizer, ours = optimizers.Adam(), variables(start("float32"))
    optimizer.apply(gradients(0), ours)
    alone, single = copy.deepcopy((optimizer, ours))
    optimizer.apply(gradients(1), ours)
    alone.apply(gradients(1)[1:], single[1:])
    assert np.array_equal(ours[2].value, single[2].value)
    assert not np.array_equal(ours[0].value, single[0].value)


def test_without_gradients_nothing_happens():
    optimizer = optimizers.SGD()
    optimizer.apply([], [])
    assert optimizer.iterations == 0

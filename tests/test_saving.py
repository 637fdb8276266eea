import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from numbagru import activations, initializers, regularizers
from numbagru.layers.base import Layer
from numbagru.layers.bidirectional import Bidirectional
from numbagru.layers.dense import Dense
from numbagru.layers.gru import GRU
from numbagru.training import Sequential, load_model, losses, optimizers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 5, 2)).astype("float32")
Y = np.sin(X.sum(axis=(1, 2)))[:, None]
OPTIMIZERS = {
    "sgd": optimizers.SGD(0.05),
    "momentum": optimizers.SGD(0.05, momentum=0.9, nesterov=True, clipnorm=1.0),
    "adam": optimizers.Adam(0.01),
    "amsgrad": optimizers.Adam(0.01, amsgrad=True, global_clipnorm=0.5),
    "adamw": optimizers.AdamW(0.01, weight_decay=0.1),
}


def model_with(optimizer="adam", loss="mse", dtype="float32", **options):
    model = Sequential(
        [
            GRU(4, return_sequences=True, dropout=0.2, seed=3, dtype=dtype, **options),
            Sequential(
                [Bidirectional(GRU(3, recurrent_dropout=0.2, seed=4, dtype=dtype))]
            ),
            Dense(1, "tanh", kernel_regularizer="l2", dtype=dtype),
        ]
    )
    model.compile(optimizers.get(optimizers.serialize(optimizers.get(optimizer))), loss)
    return model


def equal(a, b):
    return all(np.array_equal(v, w) for v, w in zip(a, b, strict=True))


def train(model, first, last):
    return model.fit(
        X, Y, 8, last, 0, initial_epoch=first, seed=5, validation_split=0.25
    ).history


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_as_if_never_interrupted(tmp_path, optimizer, dtype):
    model = model_with(OPTIMIZERS[optimizer], dtype=dtype)
    train(model, 0, 2)
    model.optimizer.learning_rate = 0.007
    model.save(tmp_path / "m.npz")
    loaded = load_model(tmp_path / "m.npz")
    assert equal(model.get_weights(), loaded.get_weights())
    assert train(model, 2, 4) == train(loaded, 2, 4)
    assert equal(model.get_weights(), loaded.get_weights())
    assert equal(
        [v.value for v in model.variables], [v.value for v in loaded.variables]
    )
    assert loaded.optimizer.iterations == model.optimizer.iterations == 4 * 3
    assert loaded.get_config() == model.get_config()
    assert loaded.loss.get_config() == model.loss.get_config()


def test_models_that_are_not_compiled(tmp_path):
    model = Sequential([GRU(2, name="g"), Dense(1)], name="mine", trainable=False)
    model.build((None, None, 2))
    model.save(str(tmp_path / "plain"))
    assert os.listdir(tmp_path) == ["plain"]
    loaded = load_model(os.fspath(tmp_path / "plain"))
    assert not loaded.compiled
    assert loaded.name == "mine"
    assert not loaded.trainable
    assert np.array_equal(loaded.predict(X), model.predict(X))


def test_a_compiled_model_before_its_first_step(tmp_path):
    model = model_with(loss=losses.Huber(0.3, "sum"))
    model.build(X.shape)
    model.save(tmp_path / "m.npz")
    loaded = load_model(tmp_path / "m.npz")
    assert loaded.loss.get_config() == model.loss.get_config()
    assert train(model, 0, 1) == train(loaded, 0, 1)


def own_metric(y_true, y_pred):
    return np.abs(y_true - y_pred)[:, 0]


def test_metrics_come_back(tmp_path):
    model = model_with()
    model.compile("sgd", "mse", metrics=["mae", "acc", own_metric])
    model.build(X.shape)
    model.save(tmp_path / "m.npz")
    loaded = load_model(tmp_path / "m.npz", {"own_metric": own_metric})
    expected = model.evaluate(X, Y, return_dict=True)
    assert list(expected) == ["loss", "mae", "acc", "own_metric"]
    assert loaded.evaluate(X, Y, return_dict=True) == expected
    with pytest.raises(ValueError, match=r"custom_objects=\{'own_metric'"):
        load_model(tmp_path / "m.npz")


def test_frozen_after_training(tmp_path):
    model = model_with()
    train(model, 0, 1)
    model.layers[0].trainable = False
    train(model, 1, 2)
    model.save(tmp_path / "m.npz")
    loaded = load_model(tmp_path / "m.npz")
    assert train(model, 2, 3) == train(loaded, 2, 3)
    for m in (model, loaded):
        m.layers[0].trainable = True
    assert train(model, 3, 4) == train(loaded, 3, 4)


def test_a_changed_stack_must_be_compiled_again(tmp_path):
    model = model_with()
    train(model, 0, 1)
    model.pop()
    model.add(Dense(1))
    model.build(X.shape)
    with pytest.raises(ValueError, match=r"`model\.compile` again"):
        model.save(tmp_path / "m.npz")
    assert not os.listdir(tmp_path)


def test_a_model_without_weights_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no weights to save"):
        Sequential([Dense(1)]).save(tmp_path / "m.npz")
    assert not os.listdir(tmp_path)


# -------------------------------------------------------------- objects of the user


@njit
def cube(x):
    return x * x * x


@njit
def d_cube(x):
    return 3 * x * x


class OwnLoss(losses.Loss):
    def call(self, y_true, y_pred):
        return np.mean(np.abs(y_true - y_pred), axis=-1)

    def pullback(self, y_true, y_pred, d_values):
        return np.sign(y_pred - y_true) * d_values[..., None] / y_pred.shape[-1]


class OwnPenalty(regularizers.Regularizer):
    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, w):
        return self.factor * np.sum(w)

    def gradient(self, w):
        return np.full_like(w, self.factor)


class Double(Layer):
    def call(self, x):
        return 2 * x

    def compute_output_shape(self, shape):
        return shape


def activation():
    return activations.Activation(cube, d_cube, name="cube")


CUSTOM = {
    "activation": (
        # A state fed back through a cube may grow beyond all numbers.
        [GRU(2, activation=activation(), recurrent_initializer="zeros")],
        "mse",
        {"cube": activation()},
    ),
    "loss": ([GRU(2)], OwnLoss("sum"), {"OwnLoss": OwnLoss}),
    "penalty": (
        [GRU(2, kernel_regularizer=OwnPenalty(0.25))],
        "mse",
        {"OwnPenalty": OwnPenalty},
    ),
    "layer": ([Double(), GRU(2)], "mse", {"Double": Double}),
}


@pytest.mark.parametrize("what", CUSTOM)
def test_objects_of_the_user_come_from_the_loader(tmp_path, what):
    layers, loss, custom = CUSTOM[what]
    model = Sequential(layers)
    model.compile("adam", loss)
    model.build(X.shape)
    model.save(tmp_path / "m.npz")
    loaded = load_model(tmp_path / "m.npz", custom)
    assert np.array_equal(loaded.predict(X), model.predict(X))
    y = np.zeros((24, 2))
    assert loaded.evaluate(X, y) == model.evaluate(X, y)
    (name,) = custom
    with pytest.raises(ValueError, match=rf"m\.npz.*{name}"):
        load_model(tmp_path / "m.npz")


@pytest.mark.parametrize(
    "layer",
    [
        Dense(1, activations.Activation(lambda x: x * x)),
        Dense(1, activations.Activation(cube, name="tanh")),
        Dense(1, kernel_regularizer=lambda w: 0.0),
        Dense(1, kernel_initializer=lambda shape, dtype: np.ones(shape)),
    ],
    ids=["lambda", "name of another", "lambda penalty", "lambda initializer"],
)
def test_what_could_not_be_found_again_is_not_saved(tmp_path, layer):
    model = Sequential([layer])
    model.build((None, 2))
    with pytest.raises(ValueError, match=r"found\s+again"):
        model.save(tmp_path / "m.npz")
    assert not os.listdir(tmp_path)


def test_functions_of_the_user_come_from_the_loader(tmp_path):
    def ones(shape, dtype=None):
        return np.ones(shape, dtype)

    model = Sequential([Dense(1, kernel_initializer=ones)])
    model.build((None, 2))
    model.save(tmp_path / "m.npz")
    loaded = load_model(tmp_path / "m.npz", {"ones": ones})
    assert loaded.layers[0].kernel_initializer is ones


def test_initializers_with_arrays(tmp_path):
    values = initializers.Constant(0.5)
    model = Sequential([Dense(1, bias_initializer=values)])
    model.build((None, 2))
    model.save(tmp_path / "m.npz")
    config = load_model(tmp_path / "m.npz").layers[0].get_config()
    assert config == model.layers[0].get_config()


# ------------------------------------------------------------------- files and harm


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the bytes of a file with a compiled, trained model."""
    path = tmp_path_factory.mktemp("saved") / "m.npz"
    model = model_with("adam")
    train(model, 0, 1)
    model.save(path)
    return path.read_bytes()


def assert_refused(path, match=None):
    with pytest.raises(ValueError, match=match) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_truncated_files(saved, tmp_path):
    path = tmp_path / "m.npz"
    for length in [*range(0, len(saved), len(saved) // 40), len(saved) - 1]:
        path.write_bytes(saved[:length])
        assert_refused(path, "cut off|not an .npz")


def test_damaged_bytes(saved, tmp_path):
    path = tmp_path / "m.npz"
    middle = np.frombuffer(saved, np.uint8).copy()
    start = saved.index(b"\x93NUMPY", 200) + 128
    middle[start : start + 40] ^= 0xFF
    path.write_bytes(middle.tobytes())
    assert_refused(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_model(tmp_path / "nowhere.npz")
    model = Sequential([Dense(1)])
    model.build((None, 2))
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "nowhere" / "m.npz")


def test_foreign_files(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.ones(3))
    assert_refused(path, "no header")
    np.savez(path, header=np.frombuffer(b'{"format": "other"}', np.uint8))
    assert_refused(path, "not written by")
    np.savez(path, header=np.frombuffer(b"[1, 2", np.uint8))
    assert_refused(path)
    path.write_bytes(pickle.dumps([1, 2, 3]))
    assert_refused(path, "not an .npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert_refused(path, "no header")


def change(saved, header=None, arrays=None):
    """Return the file with its header and its arrays put through functions."""
    with np.load(io.BytesIO(saved)) as archive:
        found = dict(archive)
    text = json.loads(found.pop("header").tobytes())
    if header is not None:
        header(text)
    if arrays is not None:
        arrays(found)
    found["header"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **found)
    return file.getvalue()


def dense_config(header):
    return header["model"]["config"]["layers"][-1]


HEADERS = {
    "newer": (lambda h: h.update(version=2), "version 2.*Update"),
    "no version": (lambda h: h.pop("version"), "version"),
    "no model": (lambda h: h.pop("model"), "model"),
    "a model of numbers": (lambda h: h.update(model=3), None),
    "unknown layer": (lambda h: dense_config(h).update(class_name="os.system"), None),
    "class of a module": (
        lambda h: dense_config(h).update(module="os", class_name="system"),
        "system",
    ),
    "no layer": (lambda h: dense_config(h).update(config=None), None),
    "not a model": (
        lambda h: h.update(model=dense_config(h)),
        "Dense",
    ),
    "unknown argument": (
        lambda h: dense_config(h)["config"].update(color="red"),
        "color",
    ),
    "other units": (lambda h: dense_config(h)["config"].update(units=2), "shape"),
    "wrong units": (lambda h: dense_config(h)["config"].update(units=-2), "units"),
    "code": (
        lambda h: dense_config(h)["config"].update(
            activation={"class_name": "function", "config": "__import__('os')"}
        ),
        "custom_objects",
    ),
    "other dtype": (
        lambda h: dense_config(h)["config"].update(dtype="float64"),
        "float",
    ),
    "unknown loss": (lambda h: h["compile"].update(loss="mystery"), "mystery"),
    "unknown optimizer": (
        lambda h: h["compile"]["optimizer"].update(class_name="Lion"),
        "optimizer",
    ),
    "other optimizer": (
        lambda h: h["compile"]["optimizer"].update(
            class_name="SGD", config={"learning_rate": 0.1}
        ),
        "does not fit",
    ),
    "optimizer of other weights": (
        lambda h: h["compile"].update(variables=[0, 1]),
        "does not fit",
    ),
}


@pytest.mark.parametrize("what", HEADERS)
def test_tampered_headers(saved, tmp_path, what):
    header, message = HEADERS[what]
    path = tmp_path / "m.npz"
    path.write_bytes(change(saved, header=header))
    assert_refused(path, message)


class Boom:
    def __reduce__(self):  # noqa: D105
        return os.mkdir, ("boom",)


def weight_of(a, value):
    a["weights/0"] = value


ARRAYS = {
    "missing weight": (lambda a: a.pop("weights/0"), "under 'weights'"),
    "too many weights": (lambda a: a.update({"weights/99": np.ones(2)}), "'weights'"),
    "other shape": (lambda a: weight_of(a, a["weights/0"][:-1]), "shape"),
    "other dtype": (
        lambda a: weight_of(a, a["weights/0"].astype("float64")),
        "float64",
    ),
    "complex": (lambda a: weight_of(a, a["weights/0"] * 1j), "complex"),
    "pickle": (lambda a: weight_of(a, np.array([Boom()], dtype=object)), "pickle"),
    "no random state": (lambda a: a.pop("random/0"), "under 'random'"),
    "no optimizer state": (lambda a: a.pop("optimizer/3"), None),
    "other optimizer state": (lambda a: a.update({"optimizer/2": np.ones(2)}), "fit"),
    "text as learning rate": (lambda a: a.update({"optimizer/1": np.array("a")}), None),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_tampered_arrays(saved, tmp_path, what, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays, message = ARRAYS[what]
    path = tmp_path / "m.npz"
    path.write_bytes(change(saved, arrays=arrays))
    assert_refused(path, message)
    assert not (tmp_path / "boom").exists()


def test_the_unchanged_file_is_fine(saved, tmp_path):
    path = tmp_path / "m.npz"
    path.write_bytes(change(saved))
    assert load_model(path).predict(X).shape == (24, 1)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    model = Sequential([Dense(1)])
    model.build((None, 2))
    path = tmp_path / "m.npz"
    model.save(path)
    before = path.read_bytes()
    model.set_weights([2 * w for w in model.get_weights()])

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for module, name in ((np, "savez"), (os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, no_space)
            with pytest.raises(OSError, match="No space"):
                model.save(path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["m.npz"]
    model.save(path)
    assert path.read_bytes() != before
    assert equal(load_model(path).get_weights(), model.get_weights())


def test_a_file_is_as_readable_as_any_other(tmp_path):
    model = Sequential([Dense(1)])
    model.build((None, 2))
    model.save(tmp_path / "m.npz")
    (tmp_path / "other").write_bytes(b"")
    modes = [(tmp_path / name).stat().st_mode for name in ("m.npz", "other")]
    assert modes[0] == modes[1]

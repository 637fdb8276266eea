import copy
import pickle
import random
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from differences import central_difference
from goldens.training_cases import CASES, OPTIONS, layers, make_inputs
from numbagru import layers as ng_layers
from numbagru.layers.base import Grads, Layer
from numbagru.layers.dense import Dense
from numbagru.layers.gru import GRU
from numbagru.training import Sequential, callbacks, losses, optimizers

with np.load(Path(__file__).parent / "goldens" / "training.npz") as archive:
    RECORDED = dict(archive)


def recorded(case, kind):
    prefix = f"{case.name}/{kind}/"
    return {
        k.removeprefix(prefix): v for k, v in RECORDED.items() if k.startswith(prefix)
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_is_that_of_keras(case):
    inputs = make_inputs()
    model = Sequential(layers(ng_layers, case))
    x, mask = inputs["x"], inputs["mask"] if case.masked else None
    model.build(x.shape)
    model.set_weights(list(recorded(case, "before").values()))
    model.compile(case.optimizer, case.loss, metrics=["mae"])
    history = model.fit(
        x,
        inputs["y_steps" if case.sequences else "y"],
        mask=mask,
        sample_weight=inputs.get(case.sample_weight),
        **OPTIONS,
    ).history
    expected = recorded(case, "history")
    assert history.keys() == expected.keys()
    # Twelve steps, each some hundred float32 operations deep.
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=12 * 100 * 6e-8)
    after = recorded(case, "after").values()
    for mine, theirs in zip(model.get_weights(), after, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=12 * 100 * 6e-8)


def data(rows=20, seed=0, features=3, dtype="float32"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)).astype(dtype)
    return x, np.sin(x.sum(axis=1, keepdims=True))


def dense(optimizer="sgd", loss="mse", dtype="float32", **compiled):
    """Return a small compiled model, built for `data`, always with the same weights."""
    model = Sequential([Dense(4, "tanh", dtype=dtype), Dense(1, dtype=dtype)])
    model.build((None, 3))
    rng = np.random.default_rng(9)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    model.compile(optimizer, loss, **compiled)
    return model


def equal(a, b):
    return all(np.array_equal(v, w) for v, w in zip(a, b, strict=True))


class Decay(Layer):
    """A recurrent layer of one weight: h = a * h + x."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.a = self.add_weight((), "ones", name="a", regularizer="l2")

    def call(self, x, mask=None, training=False):
        return self._vjp(x, mask)[0]

    def _vjp(self, x, mask=None, training=False):
        mask = np.ones(x.shape[:2]) if mask is None else np.asarray(mask)
        keep = mask.reshape(*x.shape[:2], 1).astype(x.dtype)
        a, h, d_h_da = self.a.value, 0 * x[:, 0], 0 * x[:, 0]
        d_x = []
        for t in range(x.shape[1]):
            k = keep[:, t]
            d_h_da = k * (h + a * d_h_da) + (1 - k) * d_h_da
            d_x = [d * (k * a + 1 - k) for d in d_x] + [k * np.ones_like(h)]
            h = k * (a * h + x[:, t]) + (1 - k) * h

        def pull(d, include_losses):
            inputs = d[:, None] * np.stack(d_x, axis=1)
            return Grads(inputs, None, [np.sum(d * d_h_da)])

        return h, pull

    def compute_output_shape(self, shape):
        return shape[0], shape[2]

    def compute_mask(self, inputs, mask):
        return None


def stacks(dtype):
    options = {"dtype": dtype, "kernel_regularizer": "l2", "activity_regularizer": "l2"}
    return {
        "toy": [
            Dense(3, "tanh", **options),
            Decay(dtype=dtype),
            Dense(1, **options),
        ],
        "gru": [GRU(3, **options), Dense(1, **options)],
        "sequences": [GRU(3, return_sequences=True, **options), Dense(1, **options)],
        "nested": [
            Sequential([Dense(2, **options), GRU(3, return_sequences=True, **options)]),
            Sequential([GRU(2, **options), Dense(1, dtype=dtype)]),
        ],
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["toy", "gru", "sequences", "nested"])
def test_a_step_goes_down_the_gradient_of_the_whole_loss(name, masked):
    rng = np.random.default_rng(2)
    model = Sequential(stacks("float64")[name])
    x = rng.normal(size=(4, 5, 2))
    model.build(x.shape)
    y = rng.normal(size=(4, *model.compute_output_shape(x.shape)[1:]))
    weights = [rng.normal(0, 0.5, w.shape) for w in model.get_weights()]
    mask = rng.random((4, 5)) < 0.7 if masked else None
    options = {"sample_weight": rng.uniform(0.5, 2, 4), "mask": mask}
    model.compile(optimizers.SGD(1.0), "mse")

    def loss_at(i, w):
        model.set_weights([*weights[:i], w, *weights[i + 1 :]])
        return model.evaluate(x, y, **options)

    expected = [
        central_difference(lambda w, i=i: loss_at(i, w), w)
        for i, w in enumerate(weights)
    ]
    model.set_weights(weights)
    before = model.evaluate(x, y, **options)
    assert model.train_on_batch(x, y, **options) == before
    for w, new, gradient in zip(weights, model.get_weights(), expected, strict=True):
        # h^2 f''' / 6 and eps f / h for a loss and derivatives of order one to ten.
        np.testing.assert_allclose(w - new, gradient, rtol=0, atol=1e-8)


def test_the_gradient_of_the_inputs():
    rng = np.random.default_rng(2)
    model = Sequential(stacks("float64")["nested"])
    x, c = rng.normal(size=(4, 5, 2)), rng.normal(size=(4, 1))
    y, pullback = model.vjp(x)
    assert np.array_equal(y, model(x))
    grads = pullback(c)
    expected = central_difference(lambda v: np.sum(c * model(v)), x)
    np.testing.assert_allclose(grads.inputs, expected, rtol=0, atol=1e-8)
    assert [g.shape for g in grads.weights] == [w.shape for w in model.get_weights()]
    plain = pullback(c, include_losses=True)
    assert not np.allclose(plain.weights[0], grads.weights[0])


# ------------------------------------------------------------------ the loop of fit


def test_fit_is_train_on_batch_in_a_loop():
    x, y = data(20)
    model, twin = dense("adam"), dense("adam")
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for _ in range(2):
        steps = [twin.train_on_batch(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]
    assert equal(model.get_weights(), twin.get_weights())
    mean = np.average(steps, weights=[8, 8, 4])
    np.testing.assert_allclose(history.history["loss"][1], mean, rtol=1e-6)
    assert history.epoch == [0, 1]
    assert model.history is history


def test_same_seed_same_bits():
    x, y = data(50)
    runs = []
    for seed in (1, 1, 2):
        model = dense("adam")
        state = random.getstate()
        model.fit(x, y, epochs=3, batch_size=16, seed=seed, verbose=0)
        assert random.getstate() == state
        runs.append(model.get_weights())
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_without_a_seed_python_random_decides():
    x, y = data(50)
    runs = []
    for seed in (1, 1, 2):
        random.seed(seed)
        model = dense("adam")
        model.fit(x, y, epochs=3, batch_size=16, verbose=0)
        runs.append(model.get_weights())
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


@pytest.mark.parametrize(
    "copy_model", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_epochs_in_parts_are_the_same(copy_model):
    x, y = data(50)
    whole, part = dense("adam"), dense("adam")
    whole.fit(x, y, epochs=5, seed=3, verbose=0)
    part.fit(x, y, epochs=2, seed=3, verbose=0)
    part = copy_model(part)
    history = part.fit(x, y, epochs=5, initial_epoch=2, seed=3, verbose=0)
    assert equal(whole.get_weights(), part.get_weights())
    assert history.epoch == [2, 3, 4]


def test_validation_split_is_the_end_of_the_data():
    x, y = data(20)
    w = np.linspace(0.5, 1.5, 20)
    model, twin = dense(), dense()
    history = model.fit(
        x, y, epochs=1, validation_split=0.25, sample_weight=w, seed=4, verbose=0
    ).history
    other = twin.fit(
        x[:15],
        y[:15],
        sample_weight=w[:15],
        validation_data=(x[15:], y[15:], w[15:]),
        seed=4,
        verbose=0,
    ).history
    assert history == other
    assert history["val_loss"] == [model.evaluate(x[15:], y[15:], sample_weight=w[15:])]
    assert equal(model.get_weights(), twin.get_weights())


class Log(callbacks.Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("begin")
        assert self.model is not None
        assert self.params == {"epochs": 2, "steps": 3, "verbose": 0}

    def on_train_end(self, logs=None):
        self.calls.append(("end", sorted(logs)))

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch end", epoch, sorted(logs)))

    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(("batch", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("batch end", batch, sorted(logs)))


def test_callbacks_are_called_in_order():
    x, y = data(20)
    log = Log()
    dense(metrics=["mae"]).fit(
        x, y, 8, 2, 0, callbacks=log, validation_data=(x, y), shuffle=False
    )
    batches = [
        call
        for batch in range(3)
        for call in (("batch", batch), ("batch end", batch, ["loss", "mae"]))
    ]
    logs = ["loss", "mae", "val_loss", "val_mae"]
    expected = ["begin"]
    for epoch in range(2):
        expected += [("epoch", epoch), *batches, ("epoch end", epoch, logs)]
    assert log.calls == [*expected, ("end", logs)]


class StopAt(callbacks.Callback):
    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == self.batch


def test_a_callback_can_stop_the_training():
    x, y = data(20)
    model, twin = dense(), dense()
    history = model.fit(x, y, 5, 9, 0, callbacks=[StopAt(1)], shuffle=False)
    twin.fit(x[:10], y[:10], 5, 1, 0, shuffle=False)
    assert history.epoch == [0]
    assert equal(model.get_weights(), twin.get_weights())


# ----------------------------------------------------------------- early stopping


class Recorder:
    """What an EarlyStopping needs of a model."""

    def __init__(self):
        self.metrics = []
        self.stop_training = False
        self.weights = None

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = weights


def run_epochs(stopping, values):
    """Play a training; return its last epoch and the weights it ends with."""
    model = Recorder()
    stopping.set_model(model)
    stopping.on_train_begin()
    for epoch, value in enumerate(values):
        model.weights = epoch
        stopping.on_epoch_end(epoch, {"val_loss": value})
        if model.stop_training:
            break
    stopping.on_train_end()
    return epoch, model.weights, stopping.stopped_epoch, stopping.best_epoch


@given(
    values=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12),
    min_delta=st.sampled_from([0, 0.5, -1, 2]),
    patience=st.integers(0, 3),
    mode=st.sampled_from(["auto", "min", "max"]),
    baseline=st.sampled_from([None, 0.0, 1.0]),
    restore_best_weights=st.booleans(),
    start_from_epoch=st.integers(0, 3),
)
def test_early_stopping_is_that_of_keras(values, **options):
    theirs = run_epochs(keras.callbacks.EarlyStopping(**options), values)
    mine = callbacks.EarlyStopping(**options)
    for _ in range(2):  # an instance serves several trainings
        assert run_epochs(mine, values) == theirs


def test_early_stopping_in_fit(capsys):
    x, y = data(40)
    model = dense(optimizers.SGD(0.0), metrics=["accuracy"])
    before = model.get_weights()
    for monitor, patience in (("val_loss", 2), ("accuracy", 3)):
        stopping = callbacks.EarlyStopping(
            monitor, patience=patience, restore_best_weights=True, verbose=1
        )
        history = model.fit(
            x, y, epochs=50, callbacks=[stopping], validation_split=0.5, verbose=0
        )
        assert len(history.epoch) == patience + 1
        text = capsys.readouterr().out
        assert text.startswith(f"Epoch {patience + 1}: early stopping\nRestoring")
    assert equal(model.get_weights(), before)


def test_early_stopping_restores_the_best_weights():
    x, y = data(40)
    model, twin = dense(optimizers.SGD(3.0)), dense(optimizers.SGD(3.0))
    stopping = callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True)
    history = model.fit(x, y, epochs=20, callbacks=stopping, seed=1, verbose=0)
    best = int(np.argmin(history.history["loss"]))
    assert best < len(history.epoch) - 1
    twin.fit(x, y, epochs=best + 1, seed=1, verbose=0)
    assert equal(model.get_weights(), twin.get_weights())


def test_early_stopping_speaks_up():
    x, y = data()
    model = dense(metrics=[own_metric])
    with pytest.raises(ValueError, match="mode='min'"):
        model.fit(x, y, callbacks=[callbacks.EarlyStopping("own_metric")], verbose=0)
    with pytest.warns(UserWarning, match="'val_loss', which is not there"):
        model.fit(x, y, callbacks=[callbacks.EarlyStopping()], verbose=0)
    with pytest.raises(ValueError, match="mode"):
        callbacks.EarlyStopping(mode="least")
    with pytest.raises(ValueError, match="patience"):
        callbacks.EarlyStopping(patience=-1)


# ------------------------------------------------------------------------ progress


def test_silence(capfd):
    x, y = data()
    model = dense()
    model.fit(x, y, epochs=2, verbose=0)
    model.evaluate(x, y)
    model.predict(x)
    assert capfd.readouterr() == ("", "")


def test_lines(capsys):
    x, y = data()
    dense(metrics=["mae"]).fit(x, y, epochs=2, verbose=2, validation_split=0.5)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Epoch 1/2 - loss: ")
    assert [part.split(":")[0] for part in second.split(" - ")[1:]] == [
        "loss",
        "mae",
        "val_loss",
        "val_mae",
    ]


def test_a_bar(capsys):
    pytest.importorskip("tqdm")
    x, y = data()
    dense().fit(x, y, epochs=2)
    text = capsys.readouterr().out
    assert "Epoch 2/2: 100%" in text
    assert "2/2 [" in text
    assert "loss=" in text


def test_lines_when_there_is_no_tqdm(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    x, y = data()
    dense().fit(x, y, epochs=2)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_bar_is_closed_after_an_error(monkeypatch):
    closed = []
    monkeypatch.setattr(callbacks.Progress, "close", lambda self: closed.append(self))
    x, y = data()
    with pytest.raises(FloatingPointError):
        dense().fit(np.full_like(x, np.nan), y)
    assert len(closed) == 1


# ------------------------------------------------------------------------- metrics


def own_metric(y_true, y_pred):
    return np.abs(y_true - y_pred)[:, 0]


def test_metrics():
    x, y = data(20)
    model = dense(metrics=["mae", "mean_squared_error", own_metric, "acc"])
    logs = model.evaluate(x, y > 0, batch_size=8, return_dict=True)
    assert list(logs) == ["loss", "mae", "mean_squared_error", "own_metric", "acc"]
    p = model.predict(x)
    np.testing.assert_allclose(logs["mae"], np.mean(abs((y > 0) - p)), rtol=1e-6)
    np.testing.assert_allclose(logs["own_metric"], logs["mae"], rtol=1e-6)
    np.testing.assert_allclose(logs["loss"], logs["mean_squared_error"], rtol=1e-6)
    assert logs["acc"] == pytest.approx(np.mean((y > 0) == (p > 0.5)), rel=1e-6)
    values = model.evaluate(x, y > 0, batch_size=8)
    assert values == list(logs.values())
    assert model.train_on_batch(x, y > 0, return_dict=True).keys() == logs.keys()


def test_accuracy_of_classes():
    model = Sequential([Dense(3, "softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    x, labels = data(30)[0], np.arange(30) % 3
    _, accuracy = model.evaluate(x, np.eye(3)[labels])
    expected = np.mean(np.argmax(model.predict(x), axis=1) == labels)
    assert accuracy == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "given", ["mae", ["nonsense"], [None], ["mae", "mae"], [losses.Huber(), "loss"]]
)
def test_wrong_metrics(given):
    model = Sequential([Dense(1)])
    with pytest.raises((ValueError, AttributeError), match=r"metric|name"):
        model.compile("sgd", "mse", metrics=given)
    assert not model.compiled


# -------------------------------------------------------------------------- errors


def test_a_model_must_be_compiled():
    model, (x, y) = Sequential([Dense(1)]), data()
    for method in ("fit", "evaluate", "train_on_batch"):
        with pytest.raises(RuntimeError, match=f"compile.*{method}"):
            getattr(model, method)(x, y)
    with pytest.raises(ValueError, match="loss"):
        model.compile("sgd")
    with pytest.raises(ValueError, match="optimizer"):
        model.compile("newton", "mse")
    assert model.predict(x).shape == (20, 1)


X, Y = data()
WRONG = {
    "rows of y": ({"y": Y[:-1]}, ValueError, "x: 20, y: 19"),
    "rows of weights": ({"sample_weight": np.ones(3)}, ValueError, "sample_weight: 3"),
    "rows of mask": ({"mask": np.ones((3, 5))}, ValueError, "mask: 3"),
    "features": ({"x": X[:, :2]}, ValueError, "3 features"),
    "rank": ({"x": X[:, 0]}, ValueError, "2 axes|two axes"),
    "scalar": ({"x": 1.0}, ValueError, "`x` must have rows"),
    "no rows": ({"x": X[:0], "y": Y[:0]}, ValueError, "at least one row"),
    "no targets": ({"y": None}, ValueError, "`y` is needed"),
    "targets": ({"y": np.zeros((20, 2))}, ValueError, "same shape"),
    "complex": ({"x": X + 1j}, TypeError, "`x`"),
    "objects": ({"y": np.array([None] * 20)}, TypeError, "`y`"),
    "strings": ({"x": np.full((20, 3), "a")}, TypeError, "`x`"),
    "weights": ({"sample_weight": np.ones((20, 2))}, ValueError, "sample_weight"),
    "split 1": ({"validation_split": 1.0}, ValueError, "validation_split"),
    "split < 0": ({"validation_split": -0.1}, ValueError, "validation_split"),
    "split of all": ({"validation_split": 0.999}, ValueError, "would be empty"),
    "validation": ({"validation_data": X}, ValueError, "validation_data"),
    "validation rows": ({"validation_data": (X, Y[1:])}, ValueError, "validation y"),
    "validation shape": ({"validation_data": (X[:, 1:], Y)}, ValueError, "3 features"),
    "validation y": ({"validation_data": (X, X)}, ValueError, "same shape"),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size"),
    "batch_size 2.5": ({"batch_size": 2.5}, ValueError, "batch_size"),
    "epochs": ({"epochs": -1}, ValueError, "epochs"),
    "initial_epoch": ({"initial_epoch": 0.5}, ValueError, "initial_epoch"),
    "seed": ({"seed": "a"}, ValueError, "seed"),
    "verbose": ({"verbose": 3}, ValueError, "verbose"),
    "callbacks": ({"callbacks": [print]}, TypeError, "callbacks"),
}


@pytest.mark.parametrize(
    ("what", "built"),
    [(w, b) for w in WRONG for b in (True, False) if b or w != "features"],
)
def test_wrong_arguments_change_nothing(what, built):
    changes, error, message = WRONG[what]
    model = dense("adam") if built else Sequential([Dense(1)])
    model.compile("adam", "mse")
    before = model.get_weights()
    state = random.getstate()
    arguments = {"x": X, "y": Y, "verbose": 0, "seed": 1, **changes}
    with pytest.raises(error, match=message):
        model.fit(**arguments)
    assert not built or equal(before, model.get_weights())
    assert model.optimizer.iterations == 0
    assert not model.optimizer.built
    assert not built or random.getstate() == state


def test_wrong_arrays_for_the_others():
    model = dense()
    for method in (model.evaluate, model.train_on_batch):
        with pytest.raises(ValueError, match="x: 20, y: 19"):
            method(X, Y[1:])
        with pytest.raises(TypeError, match="`x`"):
            method(X * 1j, Y)
    with pytest.raises(ValueError, match="batch_size"):
        model.predict(X, batch_size=-1)
    with pytest.raises(TypeError, match="`x`"):
        model.predict(X * 1j)


def test_a_loss_that_is_not_finite_stops_with_the_weights_before():
    x, y = data(20)
    x[13] = np.nan
    model, twin = dense("adam"), dense("adam")
    with pytest.raises(FloatingPointError, match=r"loss .* epoch 1, batch 4\."):
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    twin.fit(x[:12], y[:12], batch_size=4, shuffle=False, verbose=0)
    assert equal(model.get_weights(), twin.get_weights())
    assert model.optimizer.iterations == 3


def test_a_step_that_is_not_finite_stops_with_the_weights_before():
    x, y = data(20)
    model = dense(optimizers.SGD(1e38))
    before = model.get_weights()
    with pytest.raises(FloatingPointError, match=r"update of '.*' .* epoch 1, batch 1"):
        model.fit(1e3 * x, y * 1e10, verbose=0)
    assert equal(model.get_weights(), before)


# ----------------------------------------------------------------------- inference


def test_predict():
    x, _ = data(20)
    model = dense()
    whole = model.predict(x, batch_size=20)
    assert np.array_equal(whole, model(x))
    # Dense products may round differently for other numbers of rows.
    np.testing.assert_allclose(model.predict(x, 7), whole, rtol=1e-6, atol=1e-7)
    assert np.array_equal(model.predict_on_batch(x), whole)
    assert model.predict(x[:0]).shape == (0, 1)
    assert model.predict(x.tolist()).shape == (20, 1)


def test_predict_of_several_outputs():
    model = Sequential([GRU(3, return_sequences=True, return_state=True)])
    x = np.random.default_rng(0).normal(size=(7, 4, 2))
    y, h = model.predict(x, batch_size=3)
    assert y.shape == (7, 4, 3)
    assert np.array_equal(h, y[:, -1])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="one output"):
        model.fit(x, y, verbose=0)


def test_float64_models_train_in_float64():
    x, y = data(20, dtype="float64")
    model = dense("adam", dtype="float64")
    loss = model.evaluate(x, y)
    assert loss == np.mean((model(x) - y) ** 2)
    assert float(np.float32(loss)) != loss


# ------------------------------------------------------------------------ stateful


def stateful():
    model = Sequential(
        [GRU(3, return_sequences=True, stateful=True), GRU(2, stateful=True), Dense(1)]
    )
    model.compile("adam", "mse")
    return model


def test_stateful_models():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 6, 2)), rng.normal(size=(4, 1))
    model = stateful()
    whole = Sequential(
        [GRU(3, return_sequences=True, name="a"), GRU(2, name="b"), Dense(1)]
    )
    whole.build(x.shape)
    model.build(x.shape)
    model.set_weights(whole.get_weights())
    model(x[:, :3])
    np.testing.assert_allclose(model(x[:, 3:]), whole(x), rtol=1e-6, atol=1e-7)
    first = model(x)
    model.reset_states()
    assert np.array_equal(model(x), whole(x))
    assert not np.array_equal(first, whole(x))
    for rows in (4, 8):
        more = np.concatenate([x, x])[:rows], np.concatenate([y, y])[:rows]
        assert model.fit(*more, batch_size=4, verbose=0).epoch == [0]


def test_stateful_models_need_batches_of_one_size():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 6, 2)), rng.normal(size=(10, 1))
    model = stateful()
    with pytest.raises(ValueError, match=r"stateful .*batches of \[2, 4\] rows"):
        model.fit(x, y, batch_size=4, verbose=0)
    with pytest.raises(ValueError, match=r"stateful .*batches of \[3, 5\] rows"):
        model.fit(x, y, 5, validation_data=(x[:3], y[:3]), verbose=0)
    assert not model.built
    model.fit(x, y, batch_size=5, validation_data=(x[:5], y[:5]), verbose=0)
    before = model.get_weights()
    with pytest.raises(ValueError, match="batch size"):
        model.fit(x, y, batch_size=2, verbose=0)
    assert equal(model.get_weights(), before)


def test_time_major_models_are_not_cut_into_batches():
    model = Sequential([GRU(2, time_major=True)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="time_major"):
        model.fit(np.zeros((4, 5, 2)), np.zeros((4, 2)), verbose=0)


# -------------------------------------------------------------------- with the GRU


def sine(rows=200, steps=12):
    wave = np.sin(np.arange(rows + steps) * 0.3)
    x = np.stack([wave[i : i + steps] for i in range(rows)])[..., None]
    return x, wave[steps:, None]


def recurrent(seed=0, **options):
    layers = [
        GRU(8, return_sequences=True, dropout=0.1, seed=5, name="low", **options),
        GRU(6, recurrent_dropout=0.1, seed=6, name="high", **options),
        Dense(1, name="out"),
    ]
    model = Sequential(layers)
    model.build((None, 12, 1))
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
    model.compile(optimizers.Adam(1e-2), "mse")
    return model


def test_a_sine_is_learnt():
    x, y = sine()
    model = recurrent()
    history = model.fit(x, y, epochs=15, seed=1, validation_split=0.2, verbose=0)
    assert history.history["val_loss"][-1] < 0.02 * np.var(y)
    assert history.history["loss"][-1] < 0.2 * history.history["loss"][0]


def test_dropout_too_has_the_same_bits():
    x, y = sine(60)
    runs = []
    for _ in range(2):
        model = recurrent()
        model.fit(x, y, epochs=3, seed=1, verbose=0)
        runs.append(model.get_weights())
    assert equal(*runs)


def test_a_mask_hides_what_it_covers():
    x, y = sine(40)
    mask = np.arange(12) < np.random.default_rng(0).integers(1, 13, (40, 1))
    garbage = np.where(mask[..., None], x, np.nan)
    runs = []
    for inputs in (x, garbage):
        model = recurrent()
        history = model.fit(
            inputs, y, epochs=2, mask=mask, seed=1, validation_split=0.2, verbose=0
        )
        runs.append([*model.get_weights(), model.predict(inputs, mask=mask)])
    assert equal(*runs)
    assert history.history["val_loss"][1] == model.evaluate(
        garbage[32:], y[32:], mask=mask[32:]
    )

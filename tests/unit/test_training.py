"""same_run: one seed for a whole training, and a training that goes on where it was killed."""

import errno
import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np
import pytest

import multibackend_lstm as ml
from multibackend_lstm.agreement import fit_order, initialize
from multibackend_lstm.files import WriteError
from multibackend_lstm.training import same_run
from unit.tools import assert_equal, needs_gradients, normal

pytestmark = needs_gradients
X = normal(10, 6, 3)
Y = (np.arange(10) % 2).astype("int32")


def new_model(dropout=ml.Dropout):
    model = keras.Sequential(
        [
            keras.Input((6, 3)),
            ml.LSTM(4, dropout=0.3),
            keras.layers.BatchNormalization(),
            dropout(0.4),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(model=None, epochs=3, **arguments):
    model = model or new_model()
    history = same_run(
        model, X, Y, seed=3, epochs=epochs, **{"batch_size": 4, "verbose": 0, **arguments}
    )
    return model, history


def test_it_is_the_loop_that_it_stands_for():
    model, history = train()
    other = new_model()
    initialize(other, 3)
    losses = []
    for epoch in range(3):
        order = fit_order(10, 3, epoch)
        fitted = other.fit(X[order], Y[order], batch_size=4, shuffle=False, verbose=0)
        losses += fitted.history["loss"]
    assert history["loss"] == losses
    assert len(history["accuracy"]) == 3
    assert_same_weights(model, other)


def assert_same_weights(model, other):
    for found, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        assert_equal(found, expected)


class Killed(Exception):  # noqa: N818 - no error
    """Stands for the kill of a process."""


class Kill(keras.callbacks.Callback):
    """Ends the training at a step of an epoch, counted in steps from its start."""

    def __init__(self, step):
        super().__init__()
        self.steps = step

    def on_train_batch_end(self, batch, logs=None):
        self.steps -= 1
        if self.steps < 0:
            raise Killed


@pytest.mark.parametrize("step", [0, 2, 4, 8])
def test_it_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path, step):
    unbroken, expected = train()
    with pytest.raises(Killed):
        train(checkpoint=tmp_path, callbacks=[Kill(step)])
    model, history = train(checkpoint=tmp_path)
    assert history == expected
    assert_same_weights(model, unbroken)
    assert [path.name for path in tmp_path.glob("*.h5")] == ["epoch_3.weights.h5"]


@pytest.mark.parametrize("save_freq", [1, 2])
def test_it_goes_on_within_an_epoch(tmp_path, save_freq):
    unbroken, expected = train()
    with pytest.raises(Killed):
        train(checkpoint=tmp_path, save_freq=save_freq, callbacks=[Kill(5)])
    note = json.loads((tmp_path / "run.json").read_text())
    assert (note["epochs"], note["steps"]) == (1, 2)  # the sixth step is that where it is killed

    steps, begun = [], []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(1),
        on_epoch_begin=lambda epoch, logs: begun.append(epoch),
    )
    model, history = train(checkpoint=tmp_path, save_freq=save_freq, callbacks=[count])
    assert begun == [2]
    assert len(steps) == 4  # one of the second epoch's three, and the third
    assert history == expected
    assert_same_weights(model, unbroken)
    assert sorted(path.name for path in tmp_path.glob("epoch_*")) == [
        "epoch_3.npz",
        "epoch_3.weights.h5",
    ]


@pytest.mark.parametrize("save_freq", [1, 3])
def test_a_kill_between_the_last_step_of_an_epoch_and_its_end(tmp_path, save_freq):
    unbroken, expected = train()

    def end(epoch, logs):
        raise Killed

    kill = keras.callbacks.LambdaCallback(on_epoch_end=end)
    with pytest.raises(Killed):
        train(checkpoint=tmp_path, save_freq=save_freq, callbacks=[kill])
    model, history = train(checkpoint=tmp_path, save_freq=save_freq)
    assert history == expected
    assert_same_weights(model, unbroken)


def test_an_optimizer_within_another_goes_on(tmp_path):
    def run(**arguments):
        model = new_model()
        inner = keras.optimizers.Adam(0.01)
        model.compile(keras.optimizers.LossScaleOptimizer(inner), "sparse_categorical_crossentropy")
        history = same_run(model, X, Y, seed=3, epochs=3, batch_size=4, verbose=0, **arguments)
        return model, history

    unbroken, expected = run()
    with pytest.raises(Killed):
        run(checkpoint=tmp_path, callbacks=[Kill(4)])
    model, history = run(checkpoint=tmp_path)
    assert history == expected
    assert_same_weights(model, unbroken)


def test_a_kill_while_weights_are_written(tmp_path, monkeypatch):
    _, expected = train()
    write = keras.Model.save_weights

    def cut(model, path):
        if path.name.startswith("epoch_2"):
            path.write_bytes(b"half")
            raise Killed
        write(model, path)

    monkeypatch.setattr(keras.Model, "save_weights", cut)
    with pytest.raises(Killed):
        train(checkpoint=tmp_path)
    monkeypatch.undo()
    assert train(checkpoint=tmp_path)[1] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process as Linux does")
def test_a_full_disk_is_one_error_and_leaves_the_checkpoint(tmp_path):
    import resource

    train(epochs=1, checkpoint=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(WriteError, match=r"cannot write .*epoch_2.weights.h5: File too large"):
            train(epochs=2, checkpoint=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(checkpoint=tmp_path)[1] == train()[1]


def test_a_disk_that_becomes_read_only_is_one_error_and_leaves_the_checkpoint(
    tmp_path, monkeypatch
):
    """Such a disk refuses to remove a file even where there is none."""
    train(epochs=1, checkpoint=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    class MadeReadOnly(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            opened = pathlib.Path.open
            monkeypatch.setattr(
                pathlib.Path,
                "open",
                lambda path, mode="r", *more, **options: (
                    refuse() if "w" in mode else opened(path, mode, *more, **options)
                ),
            )
            for name in ("unlink", "touch", "mkdir"):
                monkeypatch.setattr(pathlib.Path, name, refuse)

    with pytest.raises(WriteError, match=r"^cannot write .*epoch_2.weights.h5: Read-only file sys"):
        train(epochs=2, checkpoint=tmp_path, callbacks=[MadeReadOnly()])
    with pytest.raises(WriteError, match=r"^cannot write to the folder .*: Read-only file system$"):
        train(epochs=2, checkpoint=tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(checkpoint=tmp_path)[1] == train()[1]


def test_a_checkpoint_below_a_file_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "checkpoint"):
        with pytest.raises(WriteError, match=r"^cannot write to the folder .*(exists|directory)$"):
            train(epochs=1, checkpoint=folder)


def test_weights_of_classes():
    _, weighed = train(class_weight={1: 3.0})
    _, expected = train(sample_weight=np.where(Y == 1, 3.0, 1.0).astype("float32"))
    assert weighed == expected
    assert weighed != train()[1]
    with pytest.raises(ValueError, match="`class_weight` and `sample_weight` cannot both be given"):
        train(class_weight={1: 3.0}, sample_weight=np.ones(10))


def test_weights_of_classes_are_of_the_run(tmp_path):
    train(epochs=1, checkpoint=tmp_path, class_weight={1: 3.0})
    with pytest.raises(ValueError, match="of another run, with another data"):
        train(checkpoint=tmp_path)


def test_more_epochs_go_on_and_a_whole_run_is_not_repeated(tmp_path):
    train(epochs=2, checkpoint=tmp_path)
    model, history = train(epochs=3, checkpoint=tmp_path)
    unbroken, expected = train()
    assert history == expected
    assert_same_weights(model, unbroken)
    assert train(checkpoint=tmp_path, callbacks=[Kill(0)])[1] == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 5}, "batch_size"),
        ({"model": "other"}, "weights"),
        ({"x": X + 1}, "data"),
        ({"compile": {"optimizer": keras.optimizers.Adam(0.1)}}, "optimizer"),
        ({"compile": {"loss": "mse"}}, "loss"),
        ({"class_weight": {0: 1.0, 1: 2.0}}, "class_weight"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, named):
    train(epochs=1, checkpoint=tmp_path)
    model = new_model()
    if "model" in change:
        model = keras.Sequential([keras.Input((6, 3)), ml.LSTM(2), keras.layers.Dense(2)])
        model.compile("adam", "sparse_categorical_crossentropy")
    if "compile" in change:
        start = {"optimizer": "adam", "loss": "sparse_categorical_crossentropy"}
        model.compile(**{**start, **change["compile"]})
    with pytest.raises(ValueError, match=f"of another run, with another .*{named}"):
        same_run(
            model, change.get("x", X), Y, seed=3, epochs=2,
            batch_size=change.get("batch_size", 4), checkpoint=tmp_path,
            class_weight=change.get("class_weight"),
        )  # fmt: skip
    assert json.loads((tmp_path / "run.json").read_text())["epochs"] == 1


def test_weights_of_cases_and_validation():
    weights = np.linspace(0, 1, 10)
    _, history = train(epochs=1, sample_weight=weights, validation_data=(X, Y))
    order = fit_order(10, 3, 0)
    model = new_model()
    initialize(model, 3)
    fitted = model.fit(
        X[order], Y[order], sample_weight=weights[order], batch_size=4, shuffle=False, verbose=0
    )
    assert history["loss"] == fitted.history["loss"]
    assert len(history["val_loss"]) == 1


def early_stopping():
    # A loss of another sign than is watched gets worse at each epoch.
    return keras.callbacks.EarlyStopping(
        monitor="loss", mode="max", min_delta=10, patience=2, restore_best_weights=True
    )


def test_early_stopping_stops_and_what_has_stopped_does_not_go_on(tmp_path):
    unbroken, expected = train(epochs=6, callbacks=[early_stopping()])
    assert len(expected["loss"]) == 3
    model, history = train(epochs=6, callbacks=[early_stopping()], checkpoint=tmp_path)
    again, same = train(epochs=6, callbacks=[early_stopping(), Kill(0)], checkpoint=tmp_path)
    assert history == same == expected
    assert_same_weights(model, unbroken)
    assert_same_weights(again, unbroken)
    assert_same_weights(train(epochs=1)[0], unbroken)  # the best epoch's


def test_callbacks_remember_past_a_kill(tmp_path):
    unbroken, expected = train(epochs=6, callbacks=[early_stopping()])
    with pytest.raises(Killed):
        train(epochs=6, callbacks=[early_stopping(), Kill(7)], checkpoint=tmp_path)
    model, history = train(epochs=6, callbacks=[early_stopping()], checkpoint=tmp_path)
    assert history == expected
    assert_same_weights(model, unbroken)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"draw other random numbers.*drop \(Dropout\)"):
        train(new_model(lambda rate: keras.layers.Dropout(rate, name="drop")))
    with pytest.raises(ValueError, match="must be built and compiled"):
        train(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match=r"`save_freq` must be .*Received 0"):
        train(save_freq=0)
    with pytest.raises(ValueError, match="shuffle cannot be given"):
        train(shuffle=True)
    with pytest.raises(ValueError, match=r"`validation_split` cannot be given.*validation_data"):
        train(validation_split=0.2)
    with pytest.raises(ValueError, match="steps_per_epoch cannot be given"):
        train(steps_per_epoch=1)
    for name in ("seed", "epochs", "batch_size"):
        with pytest.raises(ValueError, match=f"same_run: `{name}` must be an integer"):
            same_run(new_model(), X, Y, **{"seed": 0, "epochs": 1, name: 2.5})
    for x in ([[0.0, 1.0]], ml.windows(X[0], 2), np.array([{}], object)):
        with pytest.raises(ValueError, match="must be arrays of numbers"):
            same_run(new_model(), x, Y, seed=0, epochs=1)
    with pytest.raises(ValueError, match=r"same number of cases.*\[9, 10\]"):
        same_run(new_model(), X, Y[:9], seed=0, epochs=1)


def test_integers_of_numpy_are_written_too(tmp_path):
    numbers = {"batch_size": np.int64(4), "epochs": np.int32(3), "save_freq": np.int64(2)}
    assert train(checkpoint=tmp_path, **numbers)[1] == train()[1]


@pytest.mark.parametrize("name", ["run.json", "epoch_1.npz", "epoch_1.weights.h5"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "other"])
def test_a_damaged_checkpoint_is_one_error(tmp_path, name, damage):
    if (name, damage) == ("run.json", "gone"):
        pytest.skip("without a note a training begins anew")
    train(epochs=1, checkpoint=tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-40], "empty": b"", "other": b"{}"}[damage])
    with pytest.raises((ValueError, OSError)) as raised:
        train(epochs=2, checkpoint=tmp_path)
    assert name in str(raised.value)


def test_a_metric_of_several_numbers(tmp_path):
    def new():
        model = new_model()
        metric = keras.metrics.F1Score(name="f1")
        model.compile("adam", "categorical_crossentropy", metrics=[metric])
        return model

    y = np.eye(2, dtype="float32")[Y]
    arguments = {"seed": 0, "batch_size": 4, "verbose": 0, "checkpoint": tmp_path}
    same_run(new(), X, y, epochs=1, **arguments)
    history = same_run(new(), X, y, epochs=2, **arguments)
    assert np.shape(history["f1"]) == (2, 2)


def test_moving_averages_come_at_the_end_alone(tmp_path):
    def new():
        model = new_model(lambda rate: keras.layers.Activation("tanh"))
        optimizer = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5)
        model.compile(optimizer, "sparse_categorical_crossentropy")
        return model

    def run(**arguments):
        return train(new(), batch_size=5, **arguments)

    unbroken, expected = run()
    # The same steps as one epoch of Keras, which has one end.
    order = np.concatenate([fit_order(10, 3, epoch) for epoch in range(3)])
    other = new()
    initialize(other, 3)
    other.fit(X[order], Y[order], batch_size=5, shuffle=False, verbose=0)
    assert_same_weights(unbroken, other)

    with pytest.raises(Killed):
        run(checkpoint=tmp_path, save_freq=1, callbacks=[Kill(3)])
    for _ in range(2):  # the second time there is nothing left to train
        model, history = run(checkpoint=tmp_path, save_freq=1)
        assert history == expected
        assert_same_weights(model, unbroken)

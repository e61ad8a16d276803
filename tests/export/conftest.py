"""Saved models to export. Every test here needs all backends and all runtimes installed."""

import keras
import numpy as np
import pytest

import multibackend_lstm
from multibackend_lstm import build_model
from multibackend_lstm.environment import BACKENDS, installed_backends
from multibackend_lstm.export.formats import FORMATS, missing

SHAPE = (None, 3, 2)  # (time, channels, features)
UNITS = 4


@pytest.fixture(scope="session", autouse=True)
def _everything_installed():
    absent = {*BACKENDS} - {*installed_backends()}
    absent |= {*missing(tuple(kind.runtime for kind in FORMATS.values()))}
    absent |= {*missing(("onnx", "tf2onnx"))}
    assert not absent, f"these tests run every exporter: install {', '.join(sorted(absent))}"


def randomise(model, seed=0):
    """Give every weight, biases too, a value of its own."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.5, w.shape).astype("float32") for w in model.get_weights()])
    return model


def several():
    """Two inputs, one of integers, and two outputs; sequences with a mask inside."""
    words = keras.Input((None,), dtype="int32", name="words")
    sensors = keras.Input(SHAPE, name="sensors")
    x = keras.layers.Embedding(9, 3, mask_zero=True)(words)
    x = keras.layers.Bidirectional(multibackend_lstm.GRU(UNITS))(x)
    y = keras.layers.Masking(0.0)(sensors)
    y = multibackend_lstm.LSTM(UNITS, return_sequences=True)(y)
    y = multibackend_lstm.LSTM(UNITS, go_backwards=True)(y)
    z = keras.layers.Concatenate()([x, y])
    outputs = [keras.layers.Dense(2, name="first")(z), keras.layers.Dense(1, name="second")(z)]
    return keras.Model([words, sensors], outputs)


def relu():
    """With an LSTM that no kernel computes, which loops in Python on torch."""
    inputs = keras.Input((None, 3))
    return keras.Model(inputs, keras.layers.LSTM(UNITS, activation="relu", name="odd")(inputs))


def stock():
    """With the LSTM of Keras, whose place that of this package takes."""
    inputs = keras.Input((None, 3))
    return keras.Model(inputs, keras.layers.LSTM(UNITS)(inputs))


def steps():
    """A layer of Keras in each time step."""
    inputs = keras.Input(SHAPE)
    x = multibackend_lstm.TimeDistributed(keras.layers.Conv1D(3, 2, activation="relu"))(inputs)
    return keras.Model(inputs, multibackend_lstm.LSTM(UNITS)(x))


BUILDERS = {
    **{
        solution: lambda solution=solution: build_model(
            SHAPE, solution, units=UNITS, filters=3, masking=0.0
        )
        for solution in ("reshape", "pre_reshape", "conv", "channelwise", "conv_lstm")
    },
    "known": lambda: build_model((6, 3, 2), units=UNITS, masking=0.0),
    "several": several,
    "steps": steps,
    "relu": relu,
    "stock": stock,
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A function: the path of a model saved under a name of `BUILDERS`."""
    folder = tmp_path_factory.mktemp("models")

    def save(name):
        path = folder / f"{name}.keras"
        if not path.exists():
            randomise(BUILDERS[name]()).save(path)
        return path

    return save


@pytest.fixture(scope="session")
def onnx_file(saved, tmp_path_factory):
    """An artefact of the model `reshape`."""
    path = tmp_path_factory.mktemp("artefact") / "model.onnx"
    multibackend_lstm.porting.export(saved("reshape"), path, "onnx", backend="torch", check=False)
    return path

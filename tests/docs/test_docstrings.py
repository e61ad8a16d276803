"""The examples of docstrings run, and give what stands there."""

import doctest

import keras
import numpy as np
import pytest
from unit.test_reference import NAMES, WITHOUT_EXAMPLE, documentation, public

import multibackend_lstm
from multibackend_lstm import agreement, data, porting, random

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def small_model(units=4):
    return multibackend_lstm.build_model((None, 3, 5), units=units)


def torch_lstm():
    layer = keras.layers.LSTM(4, name="lstm")
    layer.build((None, 10, 3))
    return {"lstm": layer, "torch": pytest.importorskip("torch")}


def old_file():
    inputs = keras.Input((10, 3, 5))
    merge = keras.layers.Lambda(lambda t: keras.ops.reshape(t, (-1, 10, 15)), name="merge")
    keras.Model(inputs, keras.layers.LSTM(4, name="lstm")(merge(inputs))).save("old.h5")


def model_file():
    multibackend_lstm.build_model((10, 3, 5), units=4).save("model.keras")


def artefact():
    model_file()
    porting.export("model.keras", "model.onnx", "onnx", check=False)


def torch_pair():
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.ReLU()])
    return {"module": module, "model": porting.from_torch(module, model)}


def recordings():
    rng = np.random.default_rng(0)
    names = ("anna", "bert", "carl")
    found = {name: rng.normal(size=(1000, 3, 5)) for name in names}
    labels = {name: number for number, name in enumerate(names)}
    dataset = multibackend_lstm.windows(found, length=50, stride=25, targets=labels)
    return {"recordings": found, "labels": labels, "dataset": dataset}


def compiled():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    return model


X = np.random.default_rng(0).normal(size=(8, 10, 3, 5)).astype("float32")
COLUMNS = ("time", *(f"{place}_{axis}" for place in ("ankle", "leg") for axis in "xyz"))
# What the examples take for granted.
GIVEN = {
    "LSTMClassifier": lambda: {"X": X, "y": ["walking", "running"] * 4},
    "LSTMRegressor": lambda: {"X": X, "y": np.arange(8.0)},
    "Normalization": lambda: {"x": X, "mask": np.ones((8, 10), bool)},
    "Stream": lambda: {"model": small_model(), "samples": X[0]},
    "agreement.Workers": lambda: {"model": multibackend_lstm.build_model((10, 3, 5), units=4)},
    "porting.check_export": lambda: artefact() or {},
    "porting.check_port": torch_pair,
    "porting.export": lambda: model_file() or {},
    "agreement.fit_order": lambda: {
        "x": np.ones((8, 3)),
        "y": np.ones((8, 1)),
        "model": compiled(),
    },
    "layout": lambda: {"table": {name: np.arange(1000.0) for name in COLUMNS}},
    "porting.migrate": lambda: old_file() or {},
    "porting.replace_lambdas": lambda: old_file() or {},
    "split_windows": recordings,
    "data.to_torch": lambda: pytest.importorskip("torch") and {},
    "data.to_tensorflow": lambda: pytest.importorskip("tensorflow") and {},
    "data.to_grain": lambda: pytest.importorskip("grain") and {},
    "porting.to_torch": torch_lstm,
    "windows": recordings,
}


# They start processes.
SLOW = {"Workers", "check", "check_export", "export"}


def examples():
    """The names whose docstring has one; that of a constant is not there when it runs."""
    for name in NAMES:
        last = name.rpartition(".")[2]
        if last not in {*WITHOUT_EXAMPLE, "SOLUTIONS"}:
            marks = pytest.mark.slow if last in SLOW else ()
            yield pytest.param(name, marks=marks, id=name.partition(".")[2])


@pytest.mark.parametrize("name", [*examples()])
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.clear_session()  # names of layers are counted
    last = name.rpartition(".")[2]
    names = {
        public_name: getattr(source, public_name)
        for source in (data, porting, multibackend_lstm)
        for public_name in source.__all__
    }
    names |= {"keras": keras, "np": np, "agreement": agreement, "porting": porting}
    names["random"] = random
    names |= {last: public(name)} | GIVEN.get(name.partition(".")[2], dict)()
    test = doctest.DocTestParser().get_doctest(documentation(name), names, name, None, 0)
    assert test.examples
    said = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)

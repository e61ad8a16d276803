"""Names of inputs and outputs, metadata, and the version of operators, in each format."""

import hashlib
import json
import zipfile

import keras
import pytest

import multibackend_lstm
from export.conftest import randomise
from multibackend_lstm import porting
from multibackend_lstm.export.formats import FORMATS


def named():
    """Two inputs, one with a space in its name, and a dict of outputs in another order."""
    left = keras.Input((6, 3), name="my input")
    right = keras.Input((6, 3), name="a-second")
    x = multibackend_lstm.LSTM(4)(left)
    y = multibackend_lstm.GRU(4)(right)
    both = keras.layers.Concatenate()([x, y])
    outputs = {
        "risk": keras.layers.Dense(2)(both),
        "alarm 10": keras.layers.Dense(1)(x),
        "alarm 9": keras.layers.Dense(1)(y),
    }
    return randomise(keras.Model([left, right], outputs))


INPUTS = ["my_input", "a_second"]
OUTPUTS = ["alarm_10", "alarm_9", "risk"]
FAST = {("onnx", "torch"), ("saved_model", "tensorflow"), ("torch", "torch")}
CELLS = [(format, backend) for format, kind in FORMATS.items() for backend in kind.backends]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("named") / "named.keras"
    named().save(path)
    return path


def described(format, path):
    """Names of inputs and outputs, and the metadata."""
    prefix = "multibackend_lstm."
    if format == "onnx":
        import onnx

        model = onnx.load(path)
        onnx.checker.check_model(model)
        about = {x.key.removeprefix(prefix): x.value for x in model.metadata_props}
        return [x.name for x in model.graph.input], [x.name for x in model.graph.output], about
    if format == "openvino":
        import openvino

        model = openvino.Core().read_model(path)
        about = {key: value.value for key, value in model.rt_info["multibackend_lstm"].items()}
        return [x.any_name for x in model.inputs], [x.any_name for x in model.outputs], about
    if format == "torch":
        with zipfile.ZipFile(path) as archive:
            (name,) = [x for x in archive.namelist() if x.endswith("multibackend_lstm.json")]
            about = json.loads(archive.read(name))
    elif format == "saved_model":
        about = json.loads((path / "assets.extra" / "multibackend_lstm.json").read_text())
    return [x["name"] for x in json.loads(about["inputs"])], json.loads(about["outputs"]), about


@pytest.mark.parametrize(
    ("format", "backend"),
    [pytest.param(*cell, marks=[] if cell in FAST else [pytest.mark.slow]) for cell in CELLS],
)
def test_names_and_metadata(format, backend, file, tmp_path):
    path = tmp_path / f"artefact{FORMATS[format].suffix}"
    report = porting.export(file, path, format, backend=backend, time=6)
    assert [spec["name"] for spec in report.attempts[-1].inputs] == INPUTS
    if format == "litert":
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(path)).get_signature_runner()
        assert sorted(runner.get_input_details()) == sorted(INPUTS)
        return
    inputs, outputs, about = described(format, path)
    assert sorted(inputs) == sorted(INPUTS)
    assert outputs == OUTPUTS
    assert about["model_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert about["backend"] == backend
    assert about["keras"] == keras.__version__
    assert about["version"] == multibackend_lstm.__version__
    layout = json.loads(about["inputs"])
    assert layout[0] == {"name": "my_input", "dtype": "float32", "axes": ["batch", 6, 3]}


@pytest.mark.parametrize(
    ("backend", "opset"),
    [
        ("torch", 17),
        pytest.param("tensorflow", 15, marks=pytest.mark.slow),
    ],
)
def test_opset(backend, opset, tmp_path):
    import onnx

    inputs = keras.Input((None, 3))
    x = multibackend_lstm.LSTM(4, name="lstm")(inputs)
    model = keras.Model(inputs, [x, keras.layers.Dense(2, name="lstm_1")(x)])
    path = tmp_path / "model.onnx"
    porting.export(model, path, "onnx", backend=backend, opset=opset)
    found = onnx.load(path)
    assert {x.version for x in found.opset_import if x.domain in ("", "ai.onnx")} == {opset}
    assert [x.name for x in found.graph.output] == ["lstm", "lstm_1"]
    assert not any(x.key.endswith("sha256") for x in found.metadata_props)


def test_what_cannot_be_named_is_refused(tmp_path):
    left, right = keras.Input((3,), name="a b"), keras.Input((3,), name="a_b")
    model = keras.Model([left, right], left + right)
    with pytest.raises(porting.ExportError, match="'a b', 'a_b'"):
        porting.export(model, tmp_path / "model.onnx", "onnx", backend="torch")
    with pytest.raises(ValueError, match="opset=18 for litert"):
        porting.export(named(), tmp_path / "model.tflite", "litert", opset=18)


def test_outputs_of_one_name_get_numbers(tmp_path):
    import onnx

    layer, inputs = keras.layers.Dense(2, name="twice"), keras.Input((3,), name="twice_1")
    model = keras.Model(inputs, [layer(inputs), layer(2 * inputs)])
    path = tmp_path / "model.onnx"
    porting.export(model, path, "onnx", backend="torch")
    found = onnx.load(path)
    assert [x.name for x in found.graph.output] == ["twice", "twice_2"]

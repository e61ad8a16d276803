"""Names of inputs and outputs, metadata, and the version of operators, in each format."""

import hashlib
import json

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
    scale = multibackend_lstm.Normalization(
        mean=[1.0, 2.0, 3.0], variance=[4.0, 4.0, 4.0], name="scale"
    )
    x = multibackend_lstm.LSTM(4)(scale(left))
    y = multibackend_lstm.GRU(4)(right)
    both = keras.layers.Concatenate()([x, y])
    outputs = {
        "risk": keras.layers.Dense(2)(both),
        "alarm 10": keras.layers.Dense(1)(x),
        "alarm 9": keras.layers.Dense(1)(y),
    }
    model = randomise(keras.Model([left, right], outputs))
    scale.mean.assign([1.0, 2.0, 3.0])
    scale.variance.assign([4.0, 4.0, 4.0])
    return model


# OpenVINO forks where it is first imported, of which JAX warns.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

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
    """Names of inputs and outputs as the engine of a format has them, and the metadata."""
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
        import torch

        files = {"multibackend_lstm.json": ""}
        program = torch.export.load(path, extra_files=files)
        outputs = program.module()(*(torch.zeros(2, 6, 3) for _ in INPUTS))
        about = json.loads(files["multibackend_lstm.json"])
        return list(program.graph_signature.user_inputs), list(outputs), about
    if format == "saved_model":
        import tensorflow as tf

        signature = tf.saved_model.load(path).signatures["serving_default"]
        about = json.loads((path / "assets.extra" / "multibackend_lstm.json").read_text())
        inputs = signature.structured_input_signature[1]
        return list(inputs), list(signature.structured_outputs), about
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    (entry,) = [x for x in model.metadata if x.name == b"multibackend_lstm.json"]
    about = json.loads(bytes(model.buffers[entry.buffer].data))
    return list(runner.get_input_details()), list(runner.get_output_details()), about


@pytest.mark.parametrize(
    ("format", "backend"),
    [pytest.param(*cell, marks=[] if cell in FAST else [pytest.mark.slow]) for cell in CELLS],
)
def test_names_and_metadata(format, backend, file, tmp_path):
    """The check of the values, which runs too, holds each output to its place."""
    path = tmp_path / f"artefact{FORMATS[format].suffix}"
    report = porting.export(file, path, format, backend=backend, time=6)
    assert [spec["name"] for spec in report.attempts[-1].inputs] == INPUTS
    inputs, outputs, about = described(format, path)
    ordered = format not in ("saved_model", "litert")  # which have them by name alone
    assert sorted(inputs) == sorted(INPUTS)
    assert outputs == OUTPUTS if ordered else sorted(outputs) == sorted(OUTPUTS)
    assert json.loads(about["outputs"]) == OUTPUTS
    assert about["model_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert about["backend"] == backend
    assert about["keras"] == keras.__version__
    assert about["version"] == multibackend_lstm.__version__
    layout = json.loads(about["inputs"])
    assert layout[0] == {"name": "my_input", "dtype": "float32", "axes": ["batch", 6, 3]}
    (normalization,) = json.loads(about["normalization"])
    assert normalization == {"layer": "scale", "mean": [1.0, 2.0, 3.0], "variance": [4.0] * 3}


def unsorted(name):
    """Outputs whose order is not that of their names."""
    inputs = keras.Input((3,), name=name)
    outputs = [keras.layers.Dense(2, name=name)(inputs) for name in ("zeta", "alpha", "middle")]
    return randomise(keras.Model(inputs, outputs))


@pytest.mark.parametrize(
    ("format", "backend"),
    [
        pytest.param(*cell, marks=[] if cell == ("litert", "tensorflow") else [pytest.mark.slow])
        for cell in CELLS
    ],
)
def test_outputs_of_a_list_keep_their_order(format, backend, tmp_path):
    path = tmp_path / f"artefact{FORMATS[format].suffix}"
    # Python has no parameter named `1st`.
    model = unsorted("1st" if format == "torch" else "values")
    report = porting.export(model, path, format, backend=backend)
    assert report.succeeded
    if format == "torch":
        import torch

        program = torch.export.load(path)
        assert program.graph_signature.user_inputs == ("_1st",)
        assert list(program.module()(torch.zeros(2, 3))) == ["zeta", "alpha", "middle"]
        return
    inputs, outputs, _ = described(format, path)
    assert inputs == ["values"]
    assert sorted(outputs) == ["alpha", "middle", "zeta"]


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
    assert not any(x.key.endswith("model_sha256") for x in found.metadata_props)


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

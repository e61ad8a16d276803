"""A recurrent layer from TensorFlow is one operator, and what cannot be one says why."""

import collections

import keras
import numpy as np
import pytest

import multibackend_lstm
from export.conftest import UNITS, randomise, relu, several, stock
from multibackend_lstm import porting
from multibackend_lstm.export import exports


def stacked(**options):
    """Two layers behind one another, the second backwards."""
    inputs = keras.Input((None, 3))
    x = multibackend_lstm.GRU(UNITS, return_sequences=True, **options)(inputs)
    return keras.Model(inputs, multibackend_lstm.LSTM(UNITS, go_backwards=True)(x))


def onnx_operations(path):
    """How often each operator is in the graph and its loops."""
    import onnx

    found = collections.Counter()
    graphs = [onnx.load(path).graph]
    while graphs:
        for node in graphs.pop().node:
            found[node.op_type] += 1
            graphs += [attribute.g for attribute in node.attribute if attribute.g.node]
    return found


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: stacked(reset_after=False), {"GRU": 1, "LSTM": 1}),
        pytest.param(stacked, {"GRU": 1, "LSTM": 1}, marks=pytest.mark.slow),
        pytest.param(stock, {"LSTM": 1}, marks=pytest.mark.slow),
        pytest.param(several, {"GRU": 2, "LSTM": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_layer_from_tensorflow_is_one_operator_of_onnx(build, expected, tmp_path):
    path = tmp_path / "model.onnx"
    report = porting.export(randomise(build()), path, "onnx", backend="tensorflow")
    assert [check.batch for check in report.attempts[0].checks] == [2, 1, 5]
    assert [check.time for check in report.attempts[0].checks] == [7, 1, 12]
    assert report.attempts[0].notes == ()
    found = onnx_operations(path)
    assert {name: found[name] for name in ("GRU", "LSTM", "Loop") if found[name]} == expected


@pytest.mark.parametrize("writer", ["torch", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_a_model_on_any_backend_becomes_operators_of_onnx_that_give_its_numbers(
    writer, tmp_path, monkeypatch
):
    """On JAX, which cannot write it, another backend does, and what is written is JAX's."""
    import onnxruntime

    inputs = keras.Input((None, 3), name="inputs")
    x = keras.layers.Masking(0.0)(inputs)
    x = multibackend_lstm.GRU(UNITS, return_sequences=True)(x)
    model = randomise(keras.Model(inputs, keras.layers.LSTM(UNITS)(x)))
    # As where only one of them is installed beside JAX.
    monkeypatch.setattr(exports, "installed_backends", lambda: ["jax", writer])
    path = tmp_path / "model.onnx"
    (attempt,) = porting.export(model, path, "onnx").attempts
    said = f"{writer} wrote it, from the .keras file: there is no exporter of jax to onnx"
    assert attempt.notes[:1] == ((said,) if keras.backend.backend() == "jax" else ())
    found = onnx_operations(path)
    assert (found["LSTM"], found["GRU"], found["Loop"]) == (1, 1, 0)
    values = np.random.default_rng(1).normal(size=(3, 6, 3)).astype("float32")
    values[0, 4:] = values[1, 2] = values[2] = 0.0
    (outputs,) = onnxruntime.InferenceSession(path).run(None, {"inputs": values})
    np.testing.assert_allclose(outputs, model.predict(values, verbose=0), atol=1e-6)


@pytest.mark.slow
def test_a_loop_says_why(tmp_path):
    path = tmp_path / "model.onnx"
    report = porting.export(randomise(relu()), path, "onnx", backend="tensorflow")
    assert report.attempts[0].notes == ("odd is a loop: activation is relu, and kernels have tanh",)
    assert onnx_operations(path)["Loop"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_an_lstm_is_one_operator_of_litert_where_there_is_no_mask(masked, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    inputs = keras.Input((None, 3))
    x = keras.layers.Masking(0.0)(inputs) if masked else inputs
    model = randomise(keras.Model(inputs, multibackend_lstm.LSTM(UNITS)(x)))
    path = tmp_path / "model.tflite"
    options = {"batch": 2, "time": 7, "backend": "tensorflow"}
    report = porting.export(model, path, "litert", fused=True, **options)
    interpreter = Interpreter(str(path))
    found = [operation["op_name"] for operation in interpreter._get_ops_details()]
    assert found.count("UNIDIRECTIONAL_SEQUENCE_LSTM") == (not masked)
    assert ("WHILE" in found) == masked
    if masked:
        (note,) = report.attempts[0].notes
        assert note == "an LSTM of 4 units is a loop, since LiteRT's operator has no mask"
        return
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner()
    (name,) = run.get_input_details()
    sequences = np.random.default_rng(0).normal(size=(2, 7, 3)).astype("float32")
    for _ in range(2):  # as the documentation says, from zeros each time
        interpreter.reset_all_variables()
        (outputs,) = run(**{name: sequences}).values()
        np.testing.assert_allclose(outputs, model.predict(sequences, verbose=0), atol=1e-6)


@pytest.mark.parametrize(("format", "batch"), [("onnx", 2), ("litert", None)])
def test_fused_is_refused_where_it_means_nothing(format, batch, tmp_path):
    path = tmp_path / {"onnx": "m.onnx", "litert": "m.tflite"}[format]
    with pytest.raises(ValueError, match="`fused` is of the format litert"):
        porting.export(stock(), path, format, fused=True, batch=batch)

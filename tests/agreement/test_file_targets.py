"""Targets that load a file, or call a function, in place of Keras building the model."""

import errno
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from unit.tools import BACKEND, no_file_beyond

from multibackend_lstm import LSTM, agreement
from multibackend_lstm.agreement.truth import Truth
from multibackend_lstm.files import WriteError
from multibackend_lstm.runtimes.targets import Target

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="the module is one of torch")


def randomised(model, seed=0):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.5, w.shape).astype("float32") for w in model.get_weights()])
    return model


def one_output(units=3, seed=0):
    inputs = keras.Input((5, 4), name="sensors")
    return randomised(keras.Model(inputs, LSTM(units, name="lstm")(inputs)), seed)


@pytest.fixture(scope="module")
def model():
    return one_output()


def check(model, target, **options):
    return agreement.check(model, targets=[target], steps=None, **options)


def test_a_file_of_keras_agrees_with_its_model(model, tmp_path):
    model.save(tmp_path / "model.keras")
    target = f"keras_file:{tmp_path / 'model.keras'}"
    report = check(model, target)
    report.raise_if_disagrees()
    (result,) = report.results
    assert result.target == target
    assert result.versions["keras"] == keras.__version__
    # Predictions alone, under the name that they have in the model.
    assert [(c.kind, c.path) for c in result.comparisons] == [("output", "0")]
    assert not report.findings


def test_a_file_of_another_model_does_not(model, tmp_path):
    one_output(seed=1).save(tmp_path / "model.keras")
    report = check(model, f"keras_file:{tmp_path / 'model.keras'}")
    (finding,) = report.findings
    assert finding.verdict == "disagrees"
    assert "from output '0' on" in finding.message


def test_outputs_of_another_form(model, tmp_path):
    path = tmp_path / "model.keras"
    one_output(units=2).save(path)
    (finding,) = check(model, f"keras_file:{path}").findings
    assert "shape (4, 2) in place of (4, 3)" in finding.message
    inputs = keras.Input((5, 4))
    y = LSTM(3)(inputs)
    two = keras.Model(inputs, [y, y])
    two.set_weights(model.get_weights())
    two.save(path)
    (finding,) = check(model, f"keras_file:{path}").findings
    assert "the model has no such output" in finding.message


def test_a_file_that_does_not_load_could_not_run(model, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"nothing")
    report = check(model, f"keras_file:{path}")
    assert report.could_not_run == [f"keras_file:{path}"]
    assert not report.disagreeing


def test_a_mask_value_is_exact_in_the_twins_and_in_float64(workers):
    """In float64 the 0.1 of float32 is no 0.1, and a marker that is moved marks nothing."""
    inputs = keras.Input((6, 2))
    x = keras.layers.Masking(0.1)(inputs)
    model = randomised(keras.Model(inputs, LSTM(3)(x)))
    x = np.random.default_rng(0).normal(size=(4, 6, 2)).astype("float32")
    x[1:, 3:] = 0.1
    report = agreement.check(model, x, workers=workers, steps=0)
    report.raise_if_disagrees()
    (output,) = [c for r in report.results for c in r.comparisons if c.kind == "output"]
    assert output.floor < 1e-6  # far below what a lost mask moves


@needs_torch
def test_a_torch_module(workers):
    report = check(cases_model(), "torch_module:agreement.cases:torch_dense")
    report.raise_if_disagrees()
    (finding,) = check(cases_model(), "torch_module:agreement.cases:no_module").findings
    assert "must return a torch.nn.Module. Received int" in finding.message


def cases_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.set_weights([np.arange(8, dtype="float32").reshape(4, 2), np.ones(2, "float32")])
    return model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onnxruntime", "onnxruntime:PATH"),
        ("onnxruntime:", "onnxruntime:PATH"),
        ("onnxruntime:/no/such/file.onnx", "there is no file /no/such/file.onnx"),
        ("jaxx@cpu", "or runtime:file"),
    ],
)
def test_targets_that_name_nothing(text, message):
    with pytest.raises(ValueError, match=message):
        Target.parse(text)


def test_a_label_needs_another_python():
    assert str(Target.parse("jax@cpu#next")) == "jax@cpu#next"
    with pytest.raises(ValueError, match="Add jax#next=PYTHON"):
        agreement.Workers(["jax@cpu", "jax@cpu#next"])
    with pytest.raises(ValueError, match=r"interpreters.*nonsense#next"):
        agreement.Workers(["jax@cpu"], interpreters={"nonsense#next": "python"})


def test_a_truth_that_cannot_be_written_is_named_before_anything_is_computed(workers, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot write to the folder"):
        agreement.check(
            "no such model", workers=workers, save_truth=tmp_path / "file" / "truth.npz"
        )


@pytest.mark.parametrize("size", [0, 200, 4096])
def test_a_full_disk_under_the_truth_is_named(tmp_path, size):
    """NumPy says "1000 requested and 0 written"."""
    truth = Truth(tmp_path, "", True, BACKEND)
    with no_file_beyond(size), pytest.raises(OSError) as raised:  # noqa: PT011
        truth.add_call({}, {"values": np.ones(10_000, "float32")})
    assert raised.value.errno == errno.EFBIG


def test_a_truth_is_saved_and_compared_with_later(workers, model, tmp_path):
    path = tmp_path / "truth.npz"
    computed = agreement.check(model, workers=workers, steps=2, save_truth=path, seed=3)
    other = one_output(seed=1)  # only its form is taken
    report = agreement.check(other, workers=workers, truth=path)
    report.raise_if_disagrees()
    assert report.reference == f"{computed.reference}, of truth.npz"
    assert report.settings["seed"] == 3
    assert report.twins == computed.twins
    (before,), (after,) = computed.results, report.results
    assert [(c.kind, c.path, c.score) for c in after.comparisons] == [
        (c.kind, c.path, c.score) for c in before.comparisons
    ]
    with pytest.raises(ValueError, match="holds inputs and labels"):
        agreement.check(other, np.zeros((2, 5, 4)), workers=workers, truth=path)
    with pytest.raises(agreement.CaseError, match="of another model"):
        agreement.check(one_output(units=2), workers=workers, truth=path)
    np.savez(tmp_path / "none.npz", x=np.zeros(2))
    with pytest.raises(agreement.CaseError, match="holds no truth"):
        agreement.check(model, workers=workers, truth=tmp_path / "none.npz")

"""Other batches, and the values at which backends part."""

import json

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from agreement.conftest import TARGET
from multibackend_lstm import LSTM
from multibackend_lstm.agreement import CaseError, check
from multibackend_lstm.agreement.case import Case
from multibackend_lstm.agreement.more_inputs import MORE_INPUTS, inputs_named
from multibackend_lstm.cli import main

from . import cases

ALL = [*MORE_INPUTS]


def sequence(*layers, batch=None):
    return keras.Sequential([keras.Input((5, 2), batch_size=batch), *layers])


@pytest.mark.parametrize(
    ("layer", "name"), [(cases.OffForOne, "single"), (cases.OffAtZero, "zeros")]
)
def test_what_shows_on_them_alone_is_found(workers, layer, name):
    model = sequence(layer(name="off"), keras.layers.Dense(2))
    assert check(model, workers=workers, steps=1).agrees
    report = check(model, workers=workers, steps=1, more_inputs=["double", "tails", name])
    assert report.disagreeing == [TARGET]
    (finding,) = report.findings
    assert finding.path.startswith("off")
    assert finding.message.startswith(f"on {name}: {TARGET} disagrees in layer alone")
    assert report.settings["more_inputs"] == dict.fromkeys(["double", "tails", name], "compared")
    with pytest.raises(AssertionError, match=f"on {name}"):
        report.raise_if_disagrees()


def test_a_healthy_masked_model_agrees_on_all(workers):
    model = sequence(keras.layers.Masking(), LSTM(3), keras.layers.Dense(2, "tanh"))
    report = check(model, workers=workers, steps=1, more_inputs=ALL)
    report.raise_if_disagrees()
    assert report.settings["more_inputs"] == dict.fromkeys(ALL, "compared")


def test_what_a_model_does_not_take_is_left_out_and_said(workers):
    model = sequence(keras.layers.Dense(2), batch=4)
    report = check(model, workers=workers, steps=0, more_inputs=["single", "holes", "zeros"])
    assert report.settings["more_inputs"] == {
        "single": "left out: the model's batch is of a fixed size",
        "holes": "left out: no layer of the model makes a mask of its inputs",
        "zeros": "compared",
    }


def test_the_inputs_themselves():
    x = np.arange(1, 13, dtype="float32").reshape(2, 3, 2)
    tokens = np.array([[3, 1, 2]] * 2, "int32")
    described = {
        "inputs": [{"shape": [None, 3, 2]}, {"shape": [None, 3]}],
        "layers": {"tokens": {"class_name": "Embedding", "config": {"mask_zero": True}}},
    }
    case = Case("case", {}, inputs=[x, tokens], described=described)
    found = {name: inputs_named(case, name) for name in ALL}
    np.testing.assert_array_equal(found["single"][0], x[:1])
    np.testing.assert_array_equal(found["double"][1], np.repeat(tokens, 2, 0))
    np.testing.assert_array_equal(found["tails"][0], 10 * x)
    np.testing.assert_array_equal(found["zeros"][0], 0 * x)
    np.testing.assert_array_equal(found["repeated"][0][:, 2], x[:, 0])
    np.testing.assert_array_equal(np.argwhere(np.isnan(found["nan"][0])), [[0, 2, 1]])
    np.testing.assert_array_equal(found["holes"][1], [[3, 0, 2]] * 2)
    for name in ("tails", "zeros", "repeated", "nan"):
        np.testing.assert_array_equal(found[name][1], tokens)
    assert {x.dtype for x, _ in found.values()} == {np.dtype("float32")}
    with pytest.raises(CaseError, match="they would be the inputs that there are"):
        inputs_named(Case("case", {}, inputs=[0 * x], described=described), "zeros")


def test_wrong_use_is_refused():
    model = sequence(keras.layers.Dense(2))
    with pytest.raises(ValueError, match=r"of single, double.*Received zeroes"):
        check(model, targets=[TARGET], more_inputs=["zeroes"])
    with pytest.raises(ValueError, match="`truth` holds its inputs"):
        check(model, targets=[TARGET], more_inputs=["zeros"], truth="truth.npz")


def test_on_the_command_line(tmp_path):
    path = tmp_path / "model.keras"
    sequence(keras.layers.Dense(2)).save(path)
    arguments = ["agree", str(path), "--targets", TARGET, "--steps", "0", "--json"]
    given = ["--inputs-from", "agreement.cases:inputs_of_three", "--more-inputs", "zeros,single"]
    done = CliRunner().invoke(main, [*arguments, *given])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["settings"]["more_inputs"] == {"zeros": "compared", "single": "compared"}
    tensors = {(t["kind"], t["path"]): t for t in report["targets"][0]["comparisons"]}
    assert tensors["output", "0"]["shape"] == [3, 5, 2]
    np.savez(tmp_path / "x.npz", cases.inputs_of_three())
    for wrong, message in (
        (["--inputs-from", "cases"], "names a function"),
        (["--inputs-from", "agreement.cases:none"], "which 'agreement.cases' has not"),
        ([*given[:2], "--inputs", str(tmp_path / "x.npz")], "give one"),
        (["--more-inputs", "ones"], "Received ones"),
    ):
        done = CliRunner().invoke(main, [*arguments, *wrong])
        assert done.exit_code == 2
        assert message in done.stderr

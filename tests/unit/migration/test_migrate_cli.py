"""`multibackend-lstm migrate`, and the comparison with the old file."""

import json
import os
import pathlib
import re
import shutil
import sys
from importlib.util import find_spec

import h5py
import keras
import numpy as np
import pytest
from click.testing import CliRunner
from packaging.version import Version

from multibackend_lstm.cli import main
from multibackend_lstm.environment import BACKENDS
from multibackend_lstm.migration.verification import VerificationError, holds_functions, verify
from multibackend_lstm.porting import migrate
from unit.tools import run_python

FOLDER = pathlib.Path(__file__).parent / "files"
BACKEND = keras.backend.backend()
if BACKEND not in BACKENDS:
    pytest.skip("the command line runs on the training backends", allow_module_level=True)


def run(*arguments):
    """The command's exit status and output."""
    result = CliRunner().invoke(
        main, ["migrate", *map(str, arguments)], env={"KERAS_BACKEND": BACKEND}
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


TF_KERAS_OF_TESTS = """
import numpy as np


class Answers:
    def __init__(self, arrays):
        self.arrays = arrays

    def __call__(self, x, training):
        return self.arrays[str(len(x))]


class models:
    @staticmethod
    def load_model(path, custom_objects, compile, safe_mode):
        with np.load({answers!r}) as arrays:
            return Answers(dict(arrays))


class backend: pass
class layers:
    class Layer:
        def add_weight(self): pass
__version__ = "2.15.0"
"""


@pytest.fixture
def python(tmp_path):
    """Makes an interpreter whose tf-keras gives predictions by batch size, whatever the file."""

    def make(predictions=None):
        # A file of the right answers stands in for tf-keras, which is not installed here.
        script = tmp_path / "python"
        if predictions is None:
            script.write_text(f"#!{sys.executable}\nraise RuntimeError('no tf-keras here')\n")
        else:
            answers = tmp_path / "answers.npz"
            np.savez(answers, **predictions)
            folder = tmp_path / "modules"
            folder.mkdir(exist_ok=True)
            (folder / "tf_keras.py").write_text(TF_KERAS_OF_TESTS.format(answers=str(answers)))
            script.write_text(
                f'#!/bin/sh\nPYTHONPATH="{folder}:$PYTHONPATH" exec {sys.executable} "$@"\n'
            )
        script.chmod(0o755)
        return str(script)

    return make


def test_table_and_file(tmp_path):
    out = tmp_path / "folder" / "new.keras"
    status, output = run(FOLDER / "tf_shape.h5", "--out", out, "--upgrade")
    assert status == 0, output
    assert "merge" in output
    assert "FlattenFeatures" in output
    assert "--verify compares" in output
    assert f"Written: {out}" in output.replace("\n", "") or out.exists()
    loaded = keras.saving.load_model(out, safe_mode=True)
    assert type(loaded.get_layer("lstm")).__module__.startswith("multibackend_lstm")


def test_no_other_backend_is_imported(tmp_path):
    """TensorFlow takes 410 MB, and JAX 107: a hostile file may have the rest of a gigabyte."""
    old, out = tmp_path / "old.keras", tmp_path / "new.keras"
    # Rescaling asks whether it is within a graph of TensorFlow.
    keras.Sequential([keras.Input((3, 2)), keras.layers.Rescaling(2.0), keras.layers.LSTM(2)]).save(
        old
    )
    code = (
        "import sys\n"
        "from importlib.util import find_spec\n"
        "from multibackend_lstm.cli import main\n"
        "try:\n"
        f"    main(['migrate', {str(old)!r}, '--out', {str(out)!r}])\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        "print(*{'tensorflow', 'jax', 'torch'} & {*sys.modules})\n"
        "print(*[name for name in ('tensorflow', 'jax') if find_spec(name)])\n"
    )
    imported, installed = run_python(code).splitlines()[-2:]
    assert imported == BACKEND
    assert installed.split() == [name for name in ("tensorflow", "jax") if find_spec(name)]
    assert out.exists()


def test_what_is_left_gives_status_1_and_no_file(tmp_path):
    out = tmp_path / "new.keras"
    status, output = run(FOLDER / "transposing.h5", "--out", out)
    assert status == 1
    assert "left: transpose: Lambda: its stored function names transpose" in output
    assert "Nothing is written" in output
    assert not out.exists()


def test_the_reshape_to_add_is_printed_and_works(tmp_path):
    out = tmp_path / "new.keras"
    status, output = run(FOLDER / "split.h5", "--out", out)
    assert (status, out.exists()) == (1, False)
    (option,) = re.findall(r"^ +(--reshape .+)$", output, re.MULTILINE)
    assert run(FOLDER / "split.h5", "--out", out, *option.split())[0] == 0
    assert out.exists()
    status, output = run(FOLDER / "split.h5", "--json")
    assert [step["reshapes"] for step in json.loads(output)["steps"] if step["reshapes"]] == [
        ["split=10,3,5"]
    ]


def test_of_many_reshapes_some_are_printed(tmp_path):
    inputs = keras.Input((60, 7))
    x = keras.layers.Lambda(lambda t: keras.ops.reshape(t, (-1, 6, 10, 7)), name="split")(inputs)
    keras.Model(inputs, keras.layers.Conv2D(2, 3)(x)).save(tmp_path / "model.h5")
    status, output = run(tmp_path / "model.h5")
    assert status == 1
    assert re.findall(r"^    --reshape split=(\d+),(\d+),7$", output, re.MULTILINE) == [
        (str(n), str(60 // n)) for n in (1, 2, 3, 4, 5, 6, 10, 12)
    ]
    assert "and 4 more sizes: see --json" in output


def test_a_shape_may_be_given(tmp_path):
    out = tmp_path / "new.keras"
    status, output = run(FOLDER / "scaling.h5", "--out", out, "--reshape", "scale=10,15")
    assert (status, out.exists()) == (0, True), output
    status, output = run(FOLDER / "scaling.h5", "--reshape", "scale=10,15,2")
    assert status == 2
    assert "scale: Keras cannot" in output.replace("\n", " ")
    for wrong in ("scale", "scale=", "scale=0,3", "scale=-1,-1", "=3"):
        assert run(FOLDER / "scaling.h5", "--reshape", wrong)[0] == 2
    assert run(FOLDER / "scaling.h5", "--reshape", "other=10,15")[0] == 2


def test_an_operation_may_be_named(tmp_path):
    out = tmp_path / "new.keras"
    status, output = run(FOLDER / "slicing.h5", "--out", out, "--replace", "slice=max:2")
    assert (status, out.exists()) == (0, True), output
    x = np.random.default_rng(0).normal(size=(2, 10, 3, 5)).astype("float32")
    loaded = keras.saving.load_model(out, safe_mode=True)
    inner = loaded.get_layer("slice")(x)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(inner), x.max(2))
    # What the caller says goes before what the bytecode says.
    status, output = run(FOLDER / "scaling.h5", "--replace", "scale=scale:3,0", "--json")
    (step,) = [s for s in json.loads(output)["steps"] if s["action"] == "replaced"]
    assert "multiply(3.0), add(0.0), as the caller says" in step["detail"]
    status, output = run(FOLDER / "slicing.h5", "--replace", "slice=sum:4")
    assert status == 1
    assert "left: slice: sum(4), as the caller says, does not fit" in output
    for wrong in ("slice", "slice=", "=max:1", "slice=min:1", "other=max:1"):
        assert run(FOLDER / "slicing.h5", "--replace", wrong)[0] == 2
    both = ("--replace", "slice=max:1", "--reshape", "slice=30,5")
    assert run(FOLDER / "slicing.h5", *both)[0] == 2


def test_a_folder_is_surveyed(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("cudnn_gru.h5", "hard_sigmoid.h5", "slicing.h5"):
        shutil.copy(FOLDER / name, tmp_path / "more" / name)
    shutil.copy(FOLDER / "keras1.h5", tmp_path / "first.hdf5")
    (tmp_path / "notes.txt").write_text("no model")
    status, output = run("--dry-run", tmp_path)
    assert status == 1
    lines = output.splitlines()
    assert len(lines) == 5
    assert re.match(r"refused  first\.hdf5: .*Keras 1\.2\.2 wrote it", lines[0])
    assert re.match(r"migrated more/cudnn_gru\.h5: It loads with Keras alone\.", lines[1])
    assert re.match(r"migrated more/hard_sigmoid\.h5: It loads with Keras alone\.", lines[2])
    assert lines[3].startswith("left     more/slicing.h5: slice: Lambda: ")
    assert lines[4] == (
        "4 files: 2 would be migrated, 1 hold functions that are left, 1 are refused."
    )
    status, output = run("--dry-run", tmp_path, "--json")
    document = json.loads(output)
    assert (status, document["migrated"], document["left"], document["refused"]) == (1, 2, 1, 1)
    for path in (tmp_path / "first.hdf5", tmp_path / "more" / "slicing.h5"):
        path.unlink()
    assert run("--dry-run", tmp_path)[0] == 0
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == [
        "cudnn_gru.h5", "hard_sigmoid.h5", "notes.txt"
    ]  # fmt: skip


def test_a_folder_needs_dry_run_and_a_file_has_none(tmp_path):
    for arguments in (
        [tmp_path],
        ["--dry-run", FOLDER / "tf_shape.h5"],
        ["--dry-run", tmp_path, "--out", tmp_path / "new.keras"],
        ["--dry-run", tmp_path, "--verify"],
        ["--dry-run", tmp_path, "--replace", "a=last_step"],
    ):
        assert run(*arguments)[0] == 2
    assert run("--dry-run", tmp_path) == (
        0, "0 files: 0 would be migrated, 0 hold functions that are left, 0 are refused.\n"
    )  # fmt: skip


def test_the_report_says_where_the_file_loads(tmp_path):
    _, output = run(FOLDER / "scaling.h5", "--out", tmp_path / "new.keras")
    assert "It loads with Keras alone." in output
    _, output = run(FOLDER / "scaling.h5", "--upgrade")
    assert "multibackend_lstm has to be imported, for LSTM." in output
    _, output = run(FOLDER / "tf_shape.h5", "--json")
    assert json.loads(output)["needed"] == []
    _, output = run(FOLDER / "tf_shape.h5", "--upgrade", "--json")
    assert json.loads(output)["needed"] == ["FlattenFeatures", "LSTM"]


def test_nan_weights_give_status_1(tmp_path):
    path = shutil.copy(FOLDER / "tf_shape.h5", tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        file["model_weights/dense/dense/bias:0"][0] = np.inf
    status, output = run(path, "--out", tmp_path / "new.keras", "--json")
    assert status == 1
    document = json.loads(output)
    assert [s["place"] for s in document["steps"] if s["action"] == "not finite"] == [
        "dense/dense/bias:0"
    ]


def test_wrong_use_and_bad_files_give_status_2(tmp_path):
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"no model")
    for arguments in (
        [bad],
        [tmp_path / "none.h5"],
        [FOLDER / "tf_shape.h5", "--out", tmp_path / "new.h5"],
        [FOLDER / "tf_shape.h5", "--trust"],
        [FOLDER / "tf_shape.h5", "--python", sys.executable],
    ):
        status, output = run(*arguments)
        assert status == 2, output


def test_verify_runs_a_file_without_functions_here(tmp_path):
    # Keras 3 wrote it, so this interpreter can run it, whatever backend it has.
    status, output = run(FOLDER / "keras3_legacy.h5", "--upgrade", "--verify")
    if Version(keras.__version__) < Version("3.15"):
        # Its initializers have arguments that earlier versions do not know.
        assert status == 2
        assert re.search(r"Keras 3\.15\.\d+ wrote it, and this is 3\.14\.\d+: upgrade", output)
        return
    assert status == 0, output
    assert output.count("agrees") == 3


def test_verify_runs_no_stored_function_without_trust(python):
    status, output = run(FOLDER / "tf_shape.h5", "--verify", "--python", python({}))
    assert status == 3
    assert "add --trust" in output


def test_verify_says_where_predictions_differ(python, tmp_path, monkeypatch):
    model = migrate(FOLDER / "tf_shape.h5").model
    rng = np.random.default_rng(0)
    answers = {}
    for batch in (1, 3, 8):
        x = rng.normal(size=(batch, 10, 3, 5)).astype("float32")
        answers[str(batch)] = keras.ops.convert_to_numpy(model(x))
    out = tmp_path / "new.keras"
    arguments = (FOLDER / "tf_shape.h5", "--out", out, "--verify", "--trust", "--python")
    status, output = run(*arguments, python(answers))
    assert status == 0, output
    assert out.exists()
    out.unlink()
    monkeypatch.chdir(tmp_path)
    status, output = run(*arguments, os.path.join(".", pathlib.Path(python(answers)).name))
    assert status == 0, output
    out.unlink()
    answers["3"] = answers["3"] + np.float32(1e-3)
    status, output = run(*arguments, python(answers))
    assert status == 1
    assert re.search(r"batch 3: .* disagrees from output", output)
    assert "batch 8: agrees" in output
    for wrong in (answers["3"][:2], np.full((3, 1), np.nan, "float32")):
        answers["3"] = wrong
        assert run(*arguments, python(answers))[0] == 1
    assert not out.exists()


def test_verify_that_cannot_run_gives_status_3_and_writes_nothing(python, tmp_path):
    out = tmp_path / "new.keras"
    arguments = (FOLDER / "tf_shape.h5", "--out", out, "--verify", "--trust", "--python", python())
    status, output = run(*arguments, "--json")
    assert status == 3
    assert "no tf-keras here" in json.loads(output)["not_verified"]
    status, output = run(*arguments)
    assert status == 3
    assert "Nothing is written" in output
    assert not out.exists()
    model = migrate(FOLDER / "tf_shape.h5").model
    with pytest.raises(VerificationError, match="does not run"):
        verify(model, FOLDER / "tf_shape.h5", python="/no/such/python", trust=True)


def test_functions_are_seen_wherever_they_stand():
    assert holds_functions({"layers": [{"class_name": "Lambda"}]})
    assert holds_functions({"a": {"class_name": "Dense", "config": {"class_name": "__lambda__"}}})
    assert not holds_functions({"class_name": "Dense", "config": {"name": "Lambda"}})


TF_KERAS = os.environ.get("TF_KERAS_PYTHON")


@pytest.mark.skipif(not TF_KERAS, reason="nox -s legacy runs it: TF_KERAS_PYTHON")
@pytest.mark.parametrize(
    "name", ["tf_shape.h5", "bidirectional_v2.keras", "shared.h5", "masked.h5", "scaling.h5"]
)
@pytest.mark.filterwarnings("ignore:Layer 'merge' .*does not support masking")
def test_verify_against_tf_keras(name):
    status, output = run(FOLDER / name, "--verify", "--trust", "--python", TF_KERAS)
    assert status == 0, output
    assert output.count("agrees") == 3


@pytest.mark.skipif(not TF_KERAS, reason="nox -s legacy runs it: TF_KERAS_PYTHON")
def test_verify_against_tf_keras_finds_a_wrong_reshape():
    arguments = ("--reshape", "transpose=10,15", "--verify", "--trust", "--python", TF_KERAS)
    status, output = run(FOLDER / "transposing.h5", *arguments)
    assert status == 1
    assert output.count("disagrees from output") == 3

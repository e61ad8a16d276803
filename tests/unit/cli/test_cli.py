"""The command line, run as people run it."""

import errno
import io
import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from multibackend_lstm import GRU, LSTM, Dropout, environment, load_basic_motions
from multibackend_lstm.agreement import Comparison, Report, Workers
from multibackend_lstm.agreement.checking import check_predictions
from multibackend_lstm.agreement.report import TargetResult, findings_of
from multibackend_lstm.cli import main
from multibackend_lstm.cli.demo import _table
from multibackend_lstm.demo import Result, standardise, to_json
from multibackend_lstm.environment import BACKENDS, BackendError
from multibackend_lstm.files import WriteError, check_writable, replacing
from multibackend_lstm.runtimes import probe
from multibackend_lstm.runtimes.errors import InputError
from multibackend_lstm.runtimes.upstream import known_problems, upstream_problems

BACKEND = keras.backend.backend()
if BACKEND not in BACKENDS:
    pytest.skip("the command line runs on the training backends", allow_module_level=True)


def run(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "multibackend_lstm", *map(str, arguments)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_imports_neither_keras_nor_numpy_nor_rich():
    code = (
        "import sys; from click.testing import CliRunner; from multibackend_lstm.cli import main;"
        "result = CliRunner().invoke(main, ['demo', '--help']); assert result.exit_code == 0;"
        "print([m for m in ('keras', 'numpy', 'rich', 'matplotlib') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "[]", process.stderr


def test_demo_writes_models_and_results(tmp_path):
    out = tmp_path / "deep" / "demo"
    process = run(
        "demo", "--solution", "reshape", "--solution", "pre_reshape", "--epochs", 1,
        "--seed", 3, "--out", out, "--json", "--backend", BACKEND,
    )  # fmt: skip
    document = json.loads(process.stdout)
    assert document == json.loads((out / "results.json").read_text())
    assert document["backend"] == BACKEND
    assert document["seed"] == 3
    assert document["versions"]["keras"] == keras.__version__
    assert [s["solution"] for s in document["solutions"]] == ["reshape", "pre_reshape"]
    data = standardise(load_basic_motions())
    for solution in document["solutions"]:
        assert np.sum(solution["confusion"]) == 40
        assert np.trace(solution["confusion"]) / 40 == solution["test_accuracy"]
        assert len(solution["history"]["loss"]) == 1
        installed = environment.installed_backends()
        assert set(solution["largest_difference"]) == (set(installed) if installed[1:] else set())
        assert solution["agrees"]
        assert all(d <= 1e-5 for d in solution["largest_difference"].values())
        model = keras.saving.load_model(out / solution["model"], safe_mode=True)
        x = data.x_test.reshape(model.input_shape and (40, *model.input_shape[1:]))
        predicted = model.predict(x, verbose=0).argmax(axis=1)
        assert (predicted == data.y_test).mean() == solution["test_accuracy"]
    assert process.returncode == 0, process.stderr
    for name in set(BACKENDS) - set(environment.installed_backends()):
        assert f"pip install 'multibackend-lstm[{name}]'" in process.stderr.replace("\n", "")
    files = {path.name for path in out.iterdir()}
    assert files - {"report.html"} == {"reshape.keras", "pre_reshape.keras", "results.json"}
    report = (out / "report.html").read_text()
    assert "<svg" in report
    assert "src=" not in report  # opens offline
    assert "Badminton" in report


@pytest.mark.skipif(BACKEND != "torch", reason="starts all of them from any")
def test_demo_on_all_backends_has_a_row_for_each(tmp_path):
    process = run(
        "demo", "--all-backends", "--solution", "reshape", "--epochs", 1, "--seed", 3,
        "--out", tmp_path, COLUMNS="200",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    installed = environment.installed_backends()
    documents = json.loads((tmp_path / "results.json").read_text())
    assert [document["backend"] for document in documents] == installed
    for document in documents:
        assert document == json.loads((tmp_path / document["backend"] / "results.json").read_text())
        assert document["seed"] == 3
        [solution] = document["solutions"]
        assert (tmp_path / document["backend"] / "reshape.keras").exists()
        assert set(solution["largest_difference"]) == (set(installed) if installed[1:] else set())
        assert all(d <= 1e-5 for d in solution["largest_difference"].values())
        # A row starts with the solution, then with what it was trained on where there are several.
        name = document["backend"] if len(installed) > 1 else ""
        accuracy = f"{solution['test_accuracy']:.3f}"
        assert re.search(rf"reshape\W+{name}.*{accuracy}", process.stdout)


@pytest.mark.parametrize("score", [None, 0.5, np.inf])
def test_a_demo_whose_backends_failed_or_differ_is_still_reported(score):
    """In JSON that any reader takes, in the table and on the page."""
    render_demo = pytest.importorskip("multibackend_lstm.demo_page").render_demo
    compared = [Comparison("output", "0", "disagrees" if score else "agrees", score or 0.0)]
    failed = {} if score else {"target": "it does not start"}
    target = TargetResult("jax@cpu", comparisons=compared if score else [], failed=failed)
    report = Report("m", "float64", True, {}, [target])
    report.findings += findings_of(report)
    result = Result("reshape", 1, 1.0, {"loss": [1.0], "accuracy": [1.0]}, 0.5, [[1]], "m.keras")
    result.report = report
    document = {
        "backend": "jax", "seed": 0, "versions": {}, "solutions": [to_json(result)],
    }  # fmt: skip
    document = json.loads(json.dumps(document, allow_nan=False))
    (row,) = document["solutions"]
    assert row["score"] == ("inf" if score == np.inf else score)
    assert row["agrees"] is False
    assert bool(row["errors"]) == (score is None)
    assert "reshape" in render_demo(document)
    console = Console(file=io.StringIO(), width=200)
    console.print(_table([document]))
    assert "DISAGREES" in console.file.getvalue()


def test_demo_takes_one_backend_or_all():
    process = run("demo", "--all-backends", "--backend", BACKEND)
    assert process.returncode == 2
    assert "either --backend or --all-backends" in process.stderr


def test_demo_refuses_a_folder_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("mine")
    process = run("demo", "--out", tmp_path / "file" / "demo")
    assert process.returncode == 2
    assert "cannot write to the folder" in process.stderr
    assert "Traceback" not in process.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_demo_names_an_unknown_backend():
    process = run("demo", KERAS_BACKEND="theano")
    assert process.returncode == 2
    assert "KERAS_BACKEND must be one of jax, torch, tensorflow" in process.stderr


def test_doctor(tmp_path):
    process = run("doctor", "--json")
    assert process.returncode == 0, process.stderr
    document = json.loads(process.stdout)
    assert document["versions"]["keras"] == keras.__version__
    for name, report in document["backends"].items():
        if name in environment.installed_backends():
            assert report["devices"]
            assert report["precision"]["floatx"] == "float32"
        else:
            assert f"multibackend-lstm[{name}]" in report["error"]
    for problem in document["known_problems"]:
        assert problem["upstream"].startswith("https://github.com/")
        assert problem["reference"].partition("#")[2].isdigit()


def test_doctor_names_layers_of_a_model_that_draw_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "probe", lambda name: {"devices": [], "precision": {}})
    path = tmp_path / "model.keras"
    drops = [keras.layers.Dropout(0.5, name="theirs"), Dropout(0.5, name="ours")]
    keras.Sequential([keras.Input((2,)), *drops]).save(path)
    result = CliRunner().invoke(main, ["doctor", str(path), "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["random"]
    assert row["layer"].endswith("theirs")
    assert "theirs (keras.Dropout)" in CliRunner().invoke(main, ["doctor", str(path)]).output
    path.write_bytes(b"no model")
    assert CliRunner().invoke(main, ["doctor", str(path)]).exit_code == 2


def test_doctor_prints_tables_and_fails_if_a_backend_does_not_start(monkeypatch):
    reports = {"jax": {"devices": ["cpu:0"], "precision": {"floatx": "float32"}}}
    monkeypatch.setattr(environment, "installed_backends", lambda: ["jax", "torch"])
    monkeypatch.setattr(
        probe, "probe", lambda name: reports.get(name, {"error": "torch does not start: x"})
    )
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 3
    for words in ("cpu:0", "torch does not start: x", "keras#", "multibackend_lstm"):
        assert words in result.output


def explain(path, *arguments):
    result = CliRunner().invoke(main, ["explain", str(path), "--backend", BACKEND, *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_explain_names_the_path_of_each_recurrent_layer(tmp_path):
    inputs = keras.Input((None, 2, 3))
    x = LSTM(4, return_sequences=True, name="plain")(inputs)
    x = keras.layers.Bidirectional(GRU(3, return_sequences=True, name="gru"))(x)
    x = LSTM(4, activation="relu", return_sequences=True, name="relu")(x)
    x = LSTM(4, recurrent_dropout=0.5, return_sequences=True, name="dropped")(x)
    x = keras.layers.LSTM(4, name="stock")(x)
    path = tmp_path / "model.keras"
    keras.Model(inputs, x).save(path)

    def layers(*arguments):
        document = json.loads(explain(path, "--json", *arguments))
        assert document["backend"] == BACKEND
        return {row["layer"]: row for row in document["layers"]}

    rows = layers()
    assert set(rows) == {"plain", "forward_gru", "backward_gru", "relu", "dropped", "stock"}
    for name in ("plain", "forward_gru", "backward_gru", "dropped"):
        assert rows[name]["implementation"] == "native"
        assert rows[name]["refused"] is None
    assert rows["relu"]["implementation"] == "ops"
    assert "activation is relu" in rows["relu"]["refused"]
    assert rows["stock"]["notes"] == ["multibackend_lstm.LSTM takes its place"]
    assert "recurrent_dropout" in layers("--training")["dropped"]["refused"]
    assert "relu (multibackend_lstm.LSTM): keras.ops (ops); native refused" in explain(path)


def test_explain_names_what_draws_other_numbers_on_each_backend(tmp_path):
    inputs = x = keras.Input((None, 3))
    for layer in (
        LSTM(4, dropout=0.5, return_sequences=True),
        Dropout(0.5),
        keras.layers.Dropout(0.5, name="theirs"),
        keras.layers.Dropout(0.0, name="never"),
        keras.layers.AlphaDropout(0.5, name="alpha"),
        keras.layers.GRU(4, dropout=0.5, name="gru"),
    ):
        x = layer(x)
    path = tmp_path / "model.keras"
    keras.Model(inputs, x).save(path)
    rows = json.loads(explain(path, "--json"))["random"]
    assert {row["layer"]: row["remedy"] for row in rows} == {
        "theirs": "multibackend_lstm.Dropout draws the same on each",
        "alpha": None,
        "gru/gru_cell": "multibackend_lstm.GRU draws the same on each",
    }
    assert "alpha (keras.AlphaDropout)" in explain(path)


def test_explain_computes_nothing(tmp_path):
    """The size asked for, 240 GB of input alone, has room nowhere."""
    inputs = {"a": keras.Input((None, 2, 3), name="a"), "b": keras.Input((None, 2), name="b")}
    x = keras.layers.TimeDistributed(LSTM(3, name="inside"))(inputs["a"])
    x = keras.layers.Concatenate()([x, inputs["b"]])
    x = LSTM(4, name="last")(keras.layers.Masking()(x))
    keras.Model(inputs, x).save(tmp_path / "model.keras")
    rows = json.loads(explain(tmp_path / "model.keras", "--batch", "1000000000", "--json"))[
        "layers"
    ]
    assert {row["layer"]: row["implementation"] for row in rows} == {
        "inside": "native", "last": "native"
    }  # fmt: skip


def test_explain_refuses_what_is_no_model(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("not a model")
    result = CliRunner().invoke(main, ["explain", str(path), "--backend", BACKEND])
    assert result.exit_code == 2
    assert "cannot be loaded" in result.output


def test_known_problems_are_those_of_the_installed_version(monkeypatch):
    monkeypatch.setattr(environment, "version_of", lambda package: "3.15.1")
    at_3_15 = {problem["id"] for problem in known_problems()}
    monkeypatch.setattr(environment, "version_of", lambda package: "3.16.0")
    at_3_16 = {problem["id"] for problem in known_problems()}
    monkeypatch.setattr(environment, "version_of", lambda package: None)
    assert known_problems() == []
    assert at_3_15 - at_3_16  # mended
    assert at_3_16 - at_3_15 == {"recurrent-layers-drop-mask"}


def test_every_known_problem_is_whole():
    needed = {"id", "title", "upstream", "package", "versions", "backends", "remedy", "reference"}
    recognised = {"groups", "layers", "config", "together_with", "error", "operations"}
    recognised |= {"precision_only"}
    for problem in upstream_problems():
        assert needed <= problem.keys() <= needed | recognised
        assert ("groups" in problem) == ("layers" in problem) == bool(problem.keys() & recognised)
        assert set(problem["backends"]) <= set(BACKENDS)
    ids = [problem["id"] for problem in upstream_problems()]
    assert len(ids) == len(set(ids))


def test_backend_is_chosen_by_option_then_variable_then_default(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))  # without a configuration file
    monkeypatch.setattr(environment, "installed_backends", lambda: ["jax", "torch", "tensorflow"])
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert environment.choose_backend("torch") == "torch"
    assert environment.choose_backend() == "tensorflow"
    monkeypatch.delenv("KERAS_BACKEND")
    assert environment.choose_backend() == "jax"
    monkeypatch.setattr(environment, "installed_backends", lambda: ["torch"])
    assert environment.choose_backend() == "torch"
    with pytest.raises(BackendError, match=r"jax is not installed.*multibackend-lstm\[jax\]"):
        environment.choose_backend("jax")
    monkeypatch.setattr(environment, "installed_backends", list)
    with pytest.raises(BackendError, match="no backend is installed"):
        environment.choose_backend()


def test_keras_cannot_change_its_backend():
    other = next(name for name in BACKENDS if name != BACKEND)
    with pytest.raises(BackendError, match=f"already runs on {BACKEND}"):
        environment.set_backend(other)


def test_files_that_workers_cannot_use_are_named(tmp_path):
    """Damaged ones, and one with a function, which is not run."""
    good, bad = tmp_path / "good.keras", tmp_path / "bad.keras"
    inputs = keras.Input((4, 3))
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(good)
    keras.Model(inputs, keras.layers.Lambda(lambda t: t * 2)(inputs)).save(bad)
    contents = {
        bad.read_bytes(): r"Lambda|unsafe",
        good.read_bytes()[:-200]: r"damaged|truncated|zip",
        b"not a model": r"zip|file|format",
    }
    batches = [[np.ones((2, 4, 3), "float32")]]
    with Workers([f"{BACKEND}@cpu"], timeout=120) as workers:
        for content, message in contents.items():
            bad.write_bytes(content)
            with pytest.raises(InputError, match=message):
                list(check_predictions(bad, batches, workers))
        (report,) = check_predictions(good, batches, workers)
        report.raise_if_disagrees()


def test_nothing_half_written_stands_under_a_final_name(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("hal")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def full():
        with replacing(path) as temporary:
            temporary.write_text("hal")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        WriteError, match=r"^cannot write .*results\.json: No space left on device$"
    ):
        full()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_read_only_disk_is_one_line(tmp_path, monkeypatch):
    """Which refuses to remove even a file that is not there."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    monkeypatch.setattr("pathlib.Path.write_text", refuse)

    def write():
        with replacing(tmp_path / "results.json") as temporary:
            temporary.write_text("new")

    with pytest.raises(WriteError, match=r"^cannot write .*results\.json: Read-only file system$"):
        write()


def test_check_writable_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []

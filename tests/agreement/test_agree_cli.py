"""`multibackend-lstm agree`, run as people run it; the comparison itself is tested elsewhere."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from unit.tools import normal

from multibackend_lstm.agreement import Comparison, Finding, Report, WorkerError, checking
from multibackend_lstm.agreement.report import TargetResult
from multibackend_lstm.cli import main
from multibackend_lstm.cli.agree import _inputs, _labels, exit_status
from multibackend_lstm.environment import BACKENDS

BACKEND = keras.backend.backend()
if BACKEND not in BACKENDS:
    pytest.skip("the command line runs on the training backends", allow_module_level=True)
HERE = f"{BACKEND}@cpu"
ROOT = pathlib.Path(__file__).parents[2]


def command(*arguments):
    return [sys.executable, "-m", "multibackend_lstm", "agree", *map(str, arguments)]


def in_process(*arguments):
    return CliRunner().invoke(main, ["agree", *map(str, arguments)])


def variables():
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def test_help_imports_neither_keras_nor_numpy_nor_rich():
    code = (
        "import sys; from click.testing import CliRunner; from multibackend_lstm.cli import main;"
        "result = CliRunner().invoke(main, ['agree', '--help']); assert result.exit_code == 0;"
        "print([m for m in ('keras', 'numpy', 'rich', 'matplotlib') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "[]", process.stderr


def test_a_saved_model_with_inputs_and_labels(tmp_path):
    inputs = {name: keras.Input((4, 3), name=name) for name in ("left", "right")}
    x = keras.layers.Concatenate()([inputs["left"], inputs["right"]])
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "x.npz", right=normal(2, 4, 3), left=normal(2, 4, 3, seed=1))
    np.savez(tmp_path / "y.npz", normal(2, 4, 2, seed=2))
    (tmp_path / "page.html").write_text("old")
    process = subprocess.run(
        command(
            "model.keras", "--inputs", "x.npz", "--labels", "y.npz", "--targets", HERE,
            "--steps", 1, "--optimizer", '{"class_name": "SGD", "config": {"momentum": 0.5}}',
            "--twins", 2, "--json", "--html", "page.html",
        ),
        cwd=tmp_path, env=variables(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    document = json.loads(process.stdout)
    assert document["agrees"]
    assert document["settings"]["training"]["optimizer"]["class_name"] == "SGD"
    (target,) = document["targets"]
    assert target["target"] == HERE
    assert target["worker"]["versions"]["keras"] == keras.__version__
    shapes = {(c["kind"], c["path"]): c["shape"] for c in target["comparisons"]}
    assert shapes["layer", "head"] == [2, 4, 2]
    assert {kind for kind, _ in shapes} >= {"output", "input gradient", "weight gradient", "weight"}
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras", "x.npz", "y.npz", "page.html"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input-shape", "0,3"], "a shape is its sizes without the batch"),
        (["--input-shape", "3;4"], "Received '3;4'"),
        (["--interpreter", "torch"], "such as torch=/path/python"),
        (["--interpreter", "torch=a", "--interpreter", "torch=b"], "Received two for torch"),
        (["--interpreter", "theano=/bin/python"], "Received theano"),
        (["--targets", "torch@tpu"], "Received 'torch@tpu'"),
        (["--targets", "jax,jax@cpu"], "each target may be named once"),
        (["--twins", "1"], "x>=2"),
        (["--dtype", "float31"], "float31"),
        (["--optimizer", "{bad"], "--optimizer is no JSON"),
        (["--inputs", "missing.npz"], "does not exist"),
        (["--inputs", __file__], "must be an .npz file"),
        (["--html", "/proc/nowhere/page.html"], "cannot write to the folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_ends_with_status_2(arguments, words):
    result = in_process("module:function", *arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_what_is_no_model_ends_with_status_2():
    result = in_process("nothing.here")
    assert result.exit_code == 2
    assert "a model is a .keras file or package.module:function" in result.output


def test_objects_in_a_file_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", np.array([{}], dtype=object))
    result = in_process("module:function", "--inputs", tmp_path / "x.npz")
    assert result.exit_code == 2
    assert "Object arrays cannot be loaded" in " ".join(result.output.split())


def test_files_of_arrays(tmp_path):
    path = tmp_path / "x.npz"
    arrays = [np.full(1, number) for number in range(11)]
    np.savez(path, arrays[0])
    assert _inputs(path).tolist() == [0]
    np.savez(path, *arrays)
    assert [int(x[0]) for x in _inputs(path)] == [*range(11)]
    assert [int(x[0]) for x in _labels(path)] == [*range(11)]
    np.savez(path, b=arrays[2], a=arrays[1])
    assert {name: int(x[0]) for name, x in _inputs(path).items()} == {"a": 1, "b": 2}
    assert [int(x[0]) for x in _labels(path)] == [1, 2]


def report(*verdicts):
    comparison = Comparison("output", "0", "agrees", 1.0)
    ready = {
        "device": "CPU 0",
        "versions": {"keras": "3.15.1"},
        "set_switches": {"TF32": "off"},
        "precision": {},
    }
    return Report(
        case="model",
        reference="float64 on tensorflow@cpu",
        float64=True,
        settings={"precision": "strict"},
        results=[TargetResult("torch@cpu", ready, [comparison])],
        findings=[Finding("torch@cpu", v, "layers", f"it {v} [here]") for v in verdicts],
    )


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([], 0),
        (["suspicious", "not compared"], 0),
        (["disagrees"], 1),
        (["failed"], 3),
        (["failed", "disagrees"], 1),
    ],
    ids=str,
)
def test_status_and_output_follow_the_findings(monkeypatch, verdicts, status):
    monkeypatch.setattr(checking, "check", lambda *_, **__: report(*verdicts))
    result = in_process("module:function")
    assert result.exit_code == status, result.output
    for words in ("float64 on tensorflow@cpu", "CPU 0", "keras 3.15.1", "TF32 = off"):
        assert words in result.output
    for verdict in verdicts:
        assert f"{verdict} it {verdict} [here]" in result.output


def test_a_target_without_any_comparison_has_not_agreed():
    nothing = report()
    nothing.results[0].comparisons.clear()
    assert exit_status(nothing) == 3


def test_no_worker_at_all_ends_with_status_3(monkeypatch):
    def check(*_, **__):
        raise WorkerError("no worker could build the model")

    monkeypatch.setattr(checking, "check", check)
    result = in_process("module:function")
    assert result.exit_code == 3
    assert "Error: no worker could build the model" in result.output


def test_html_needs_the_extra(monkeypatch):
    for name in ("multibackend_lstm.agreement.page", "multibackend_lstm.pages"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = in_process("module:function", "--html", "page.html")
    assert result.exit_code == 3
    assert "jinja2, which is not installed: pip install 'multibackend-lstm[plot]'" in " ".join(
        result.output.split()
    )


def children(parent):
    """Processes that a process has started."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "while_starting"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False)],
    ids=["ctrl-c while starting", "terminated while computing", "killed while computing"],
)
def test_no_worker_outlives_the_command(tmp_path, number, while_starting):
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def model():\n"
        "    pathlib.Path('computing').touch()\n"
        "    time.sleep(600)\n"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        command("slow:model", "--targets", HERE),
        cwd=tmp_path,
        env={**variables(), "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        wait_for(lambda: children(process.pid), 60)
        if not while_starting:
            wait_for((tmp_path / "computing").exists, 120)
        workers = children(process.pid)
        process.send_signal(number)
        status = process.wait(30)
        errors = process.stderr.read()
    wait_for(lambda: not any(pathlib.Path(f"/proc/{w}").exists() for w in workers), 30)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert list(temporary.iterdir()) == []

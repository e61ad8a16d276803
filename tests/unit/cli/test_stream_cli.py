"""`multibackend-lstm stream`: a sample a line in, a prediction a line out."""

import json
import os
import signal
import subprocess
import sys
from inspect import signature

import click
import keras
import numpy as np
import pytest
from click.testing import CliRunner

from multibackend_lstm import build_model
from multibackend_lstm.cli import main
from unit.tools import BACKEND, normal, to_numpy

X = normal(5, 2, 3)
# Up to click 8.1 both streams come as one unless told otherwise.
APART = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
RUNNER = CliRunner(**APART)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    built = build_model((None, 2, 3), "reshape", units=4, outputs=2)
    path = tmp_path_factory.mktemp("models") / "model.keras"
    built.save(path)
    return path, to_numpy(built(X[None]))[0]


def stream(path, lines, *arguments):
    return RUNNER.invoke(
        main, ["stream", str(path), "--backend", BACKEND, *arguments], input="\n".join(lines)
    )


def csv(sample):
    return ",".join(map(str, sample.reshape(-1).tolist()))


def test_a_prediction_a_line(model):
    path, expected = model
    found = stream(path, [csv(X[0]), "", json.dumps(X[1].tolist()), *map(csv, X[2:])])
    assert found.exit_code == 0, found.stderr
    rows = np.array([line.split(",") for line in found.stdout.splitlines()], "float64")
    assert rows.shape == (5, 2)
    np.testing.assert_allclose(rows[-1], expected, atol=1e-6)


def test_json_lines(model):
    path, expected = model
    found = stream(path, [json.dumps({"inputs": x.tolist()}) for x in X], "--json")
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert [line["line"] for line in lines] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(lines[-1]["prediction"], expected, atol=1e-6)


def test_lines_that_are_no_text_or_nested_too_deep_are_reported(model):
    path, _ = model
    lines = [b"\xff\xfe\x00", b"[" * 200_000, csv(X[0]).encode()]
    found = RUNNER.invoke(
        main, ["stream", str(path), "--backend", BACKEND], input=b"\n".join(lines)
    )
    assert found.exit_code == 1, found.exception
    assert "line 1: " in found.stderr
    assert "line 2: it begins as JSON and is none" in found.stderr
    assert len(found.stdout.splitlines()) == 1


def test_an_onnx_file_of_which_names_are_no_text_is_refused_in_one_line(tmp_path):
    pytest.importorskip("onnxruntime")

    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    node = field(2, b"y") + field(4, b"\xff")  # its operator
    graph = field(1, node) + field(2, b"graph") + field(12, field(1, b"y"))
    path = tmp_path / "bad.onnx"
    path.write_bytes(bytes([8, 8]) + field(7, graph) + field(8, bytes([16, 13])))
    found = stream(path, [])
    assert found.exit_code == 2
    assert f"{path} cannot be loaded by onnxruntime" in found.stderr
    assert found.stdout == ""


def test_a_malformed_line_is_reported_and_leaves_the_state(model):
    path, expected = model
    bad = [
        "1,2,3",
        "a,b,c,d,e,f",
        "1,,3,4,5,6",
        "nan,0,0,0,0,0",
        "[1, 2",
        '{"other": 1}',
        "[[1],[2,3]]",
        "[[1,2],[3,4],[5,6]]",
        "[1,2,3,4,5,1" + "0" * 400 + "]",
        '[1,2,3,4,5,"6"]',
        "[1,2,3,4,5,true]",
        "[1,2,3,4,5,null]",
        '{"inputs": {"a": 1}}',
        "1,2,3,4,5,6_0",
    ]
    lines = [csv(X[0]), *bad, *map(csv, X[1:])]
    found = stream(path, lines)
    assert found.exit_code == 1
    assert len(found.stdout.splitlines()) == 5
    for number, words in enumerate(
        [
            "6 values",
            "numbers alone",
            "numbers alone",
            "has nan",
            "begins as JSON",
            "no input",
            "alone",
            "must have 6 values, (2, 3). Received (3, 2)",
            "alone",
            'alone: "6"',
            "alone: true",
            "alone: null",
            "alone",
            "alone",
        ],
        start=2,
    ):
        (line,) = [text for text in found.stderr.splitlines() if text.startswith(f"line {number}:")]
        assert words in line
    last = np.array(found.stdout.splitlines()[-1].split(","), "float64")
    np.testing.assert_allclose(last, expected, atol=1e-6)


def test_the_state_goes_on_where_it_stopped(model, tmp_path):
    path, expected = model
    state = str(tmp_path / "state.npz")
    assert stream(path, map(csv, X[:2]), "--state", state).exit_code == 0
    found = stream(path, map(csv, X[2:]), "--state", state)
    assert "going on after 2 samples; sample 3 is the next" in found.stderr
    last = np.array(found.stdout.splitlines()[-1].split(","), "float64")
    np.testing.assert_allclose(last, expected, atol=1e-6)


@pytest.mark.slow
def test_kill_9_loses_one_prediction_at_most(model, tmp_path):
    path, expected = model
    state = tmp_path / "state.npz"
    command = [
        sys.executable,
        "-m",
        "multibackend_lstm",
        "stream",
        str(path),
        "--state",
        str(state),
    ]
    environment = {**os.environ, "KERAS_BACKEND": BACKEND}
    seen, printed = 0, []
    rng = np.random.default_rng(0)
    while seen < len(X):
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for sample in X[seen : seen + int(rng.integers(1, 4))]:
            process.stdin.write(csv(sample) + "\n")
            process.stdin.flush()
            printed.append(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with np.load(state) as arrays:
            assert arrays["stream/steps"].tolist() == [len(printed)]
        seen = len(printed)
    last = np.array(printed[-1].split(","), "float64")
    np.testing.assert_allclose(last, expected, atol=1e-6)


def test_what_cannot_stream_is_wrong_use(tmp_path):
    path = tmp_path / "model.keras"
    build_model((None, 2, 3), "reshape", units=2, bidirectional=True).save(path)
    found = stream(path, [])
    assert found.exit_code == 2
    assert "its backward half begins at the end of the series" in found.stderr


# OpenVINO forks as it starts, of which JAX warns.
@pytest.mark.filterwarnings("ignore:os.fork", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".xml"])
def test_an_artefact_that_is_none_is_wrong_use(tmp_path, suffix):
    path = tmp_path / f"step{suffix}"
    path.write_bytes(b"no artefact")
    found = stream(path, [])
    assert found.exit_code in (2, 3)  # 3 where its engine is not installed
    assert path.name in found.stderr or "is not installed" in found.stderr


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_state_that_is_none_is_wrong_use(model, tmp_path, content):
    state = tmp_path / "state.npz"
    state.write_bytes(content)
    found = stream(model[0], [], "--state", str(state))
    assert found.exit_code == 2
    assert state.read_bytes() == content
    assert keras.backend.backend() == BACKEND


def test_the_mark_and_line_ends_of_windows_are_no_part_of_a_sample(model):
    path, expected = model
    text = "\ufeff" + "\r\n".join(map(csv, X)) + "\r\n"
    found = RUNNER.invoke(main, ["stream", str(path), "--backend", BACKEND], input=text.encode())
    assert found.exit_code == 0, found.stderr
    last = np.array(found.stdout.splitlines()[-1].split(","), "float64")
    np.testing.assert_allclose(last, expected, atol=1e-6)


def test_a_closed_standard_input_is_wrong_use(model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(click.UsageError, match="standard input is closed"):
        main(["stream", str(model[0]), "--backend", BACKEND], standalone_mode=False)


def test_an_infinite_prediction_is_null_in_json(tmp_path):
    inputs = keras.Input((None, 1))
    model = keras.Model(inputs, keras.ops.log(inputs))
    model.save(tmp_path / "model.keras")
    found = stream(tmp_path / "model.keras", ["0", "1"], "--json")
    values = [json.loads(line)["prediction"] for line in found.stdout.splitlines()]
    assert values == [[None], [0.0]]

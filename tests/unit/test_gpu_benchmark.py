"""The one command for a GPU, `benchmarks/gpu.py`, as far as it goes without one."""

import contextlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import jsonschema
import keras
import pytest

from multibackend_lstm.backends import Refused
from multibackend_lstm.runtimes import backend_runtime

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BACKEND = keras.backend.backend()


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield runpy.run_path(str(BENCHMARKS / "gpu.py"))
    finally:
        sys.path.remove(str(BENCHMARKS))


def check_form(document):
    schema = json.loads((BENCHMARKS / "gpu_schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)


def run(folder, device, minutes):
    """The exit status, the JSON and the page."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", device]
    command += ["--minutes", str(minutes), "--least", "300", "--backends", BACKEND]
    command += ["--out", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    name = "gpu" if device == "gpu" else "gpu_on_cpu"
    document = json.loads((folder / f"{name}.json").read_text())
    check_form(document)
    page = (folder / f"{name}.md").read_text(encoding="utf-8")
    return process, document, page


def part(name, **more):
    found = {"cases": [], "left_out": []}
    return {"part": name, "status": "done", "seconds": 1.0, "found": found, **more}


def agreement(mode, digits):
    case = {"case": "lstm", "agrees": True, "findings": [], "devices": {"jax@gpu": "a GPU"}}
    case["targets"] = {"jax@gpu": {"lstm_1": {"outputs": digits}}}
    return part(f"agreement_{mode}", found={"cases": [case], "left_out": ["gru"]})


@pytest.fixture
def document():
    return {
        "schema": 1,
        "question": "?",
        "device": "gpu",
        "minutes": 8.0,
        "backends": ["jax"],
        "machine": {"architecture": "x86_64", "cores": 2},
        "versions": {"keras": "3"},
        "parts": [agreement("strict", 6.5), agreement("default", 3.25)],
    }


def test_page(script, document):
    page = script["page"](document)
    assert "| lstm | lstm_1 | outputs | 6.5 | 3.2 |  | 3.2 |" in page
    assert "| agreement_strict | done | 1 | 1 | 1 |" in page
    assert "not" not in page.split("##")[0]
    document["device"] = "cpu"
    assert "nothing here is of a GPU" in script["page"](document)


def test_page_of_failures(script, document):
    document["parts"].append(part("speed_jax", status="failed", error="no GPU\nhere", found=None))
    check_form(document)
    page = script["page"](document)
    assert "`speed_jax`, failed:\n\n```text\nno GPU\nhere\n```" in page


def test_the_schema_refuses(document):
    check_form(document)
    document["parts"][0]["status"] = "failed"  # without an error
    with pytest.raises(jsonschema.ValidationError):
        check_form(document)


def test_digits(script):
    from multibackend_lstm.agreement.comparison import Comparison

    kinds = {"layer alone": 1e-6, "layer alone in training": 1e-3, "weight gradient alone": 0.0}
    found = [
        Comparison(kind, "a/b", "agrees", 1.0, max_relative=error, layer="a")
        for kind, error in kinds.items()
    ]
    other = Comparison("output", "out", "agrees", 1.0, max_relative=1.0)
    assert script["digits_of"]([*found, other]) == {"a": {"outputs": 3.0, "gradients": 16.0}}


@pytest.mark.slow
def test_on_a_processor(tmp_path):
    if BACKEND == "jax":
        pytest.importorskip("optax", reason="the rival's training step is by optax")
    process, document, page = run(tmp_path, "cpu", 0.1)
    statuses = {report["part"]: report["status"] for report in document["parts"]}
    assert set(statuses.values()) == {"done"}, document["parts"]
    assert process.returncode == 0
    assert f"speed_{BACKEND}" in statuses
    assert all(report["found"]["cases"] for report in document["parts"])
    assert "nothing here is of a GPU" in page
    assert "## Right digits, layer by layer" in page


@pytest.mark.slow
def test_no_gpu_is_a_failure(tmp_path):
    with contextlib.suppress(Refused):
        backend_runtime.active().use_device("gpu")
        pytest.skip("there is a GPU here")
    process, document, page = run(tmp_path, "gpu", 0.1)
    failed = {r["part"]: r["error"] for r in document["parts"] if r["status"] == "failed"}
    assert set(failed) == {report["part"] for report in document["parts"]}
    assert "gpu" in failed[f"speed_{BACKEND}"]
    assert process.returncode == 1
    assert "not done: agreement_strict" in process.stderr
    assert failed[f"speed_{BACKEND}"].splitlines()[-1] in page

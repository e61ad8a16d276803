"""Every public name is in the reference of the documentation, with a docstring and an example."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "multibackend_lstm"
TOP = import_module(PACKAGE)
# With the names that `import *` leaves out.
NAMES = [f"{PACKAGE}.{name}" for name in (*TOP.__all__, "LSTMClassifier", "LSTMRegressor")]
NAMES += [
    f"{PACKAGE}.{module}.{name}"
    for module in (
        "agreement",
        "data",
        "porting",
        "random",
        "streaming",
        "training",
        "distribution",
    )
    for name in import_module(f"{PACKAGE}.{module}").__all__
    if name not in TOP.__all__
]
# What functions raise or return; the example of the function shows it.
WITHOUT_EXAMPLE = {
    *("CaseError", "DisagreementError", "WorkerError", "ExportError", "ModelFileError"),
    *("PortingError", "Comparison", "Finding", "Report", "ExportReport", "Migration", "Upgrade"),
    "threefry2x32",  # `bits` is for use
    *("BasicMotions", "Layout", "Recording", "WindowDataset"),
}
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))


def public(name):
    """What a dotted name stands for."""
    module, _, last = name.rpartition(".")
    if last in ("LSTMClassifier", "LSTMRegressor"):
        pytest.importorskip("sklearn")
    return getattr(import_module(module), last)


def documentation(name):
    """Its docstring; of a constant, the text below it."""
    if name == f"{PACKAGE}.SOLUTIONS":
        return (ROOT / PACKAGE / "solutions.py").read_text("utf-8").rpartition("SOLUTIONS: ")[2]
    return inspect.getdoc(public(name)) or ""


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring_and_an_example(name):
    assert documentation(name)
    if name.rpartition(".")[2] not in WITHOUT_EXAMPLE:
        assert re.search(r"^ *Example:\n +>>> ", documentation(name), re.MULTILINE)


def test_the_reference_has_every_public_name_and_no_other():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert sorted(re.findall(r"^::: (.+)$", text, re.MULTILINE)) == sorted(NAMES)


def test_what_needs_no_example_is_public():
    assert {name.rpartition(".")[2] for name in NAMES} >= WITHOUT_EXAMPLE

"""Every public name is in the reference of the documentation, with a docstring and an example."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "multibackend_lstm"
MODULES = (
    PACKAGE,
    *(f"{PACKAGE}.{name}" for name in ("agreement", "data", "porting", "streaming")),
)
# What functions raise or return; the example of the function shows it.
WITHOUT_EXAMPLE = {
    *("CaseError", "DisagreementError", "WorkerError", "ExportError", "ModelFileError"),
    *("PortingError", "Comparison", "Finding", "Report", "ExportReport", "Migration", "Upgrade"),
    *("BasicMotions", "Layout", "Recording", "WindowDataset"),
}
NAMES = {
    name: f"{module}.{name}"
    for module in reversed(MODULES)
    for name in import_module(module).__all__
}
NAMES |= {name: f"{PACKAGE}.{name}" for name in ("LSTMClassifier", "LSTMRegressor")}
REFERENCE = "".join(p.read_text("utf-8") for p in sorted((ROOT / "docs/reference").glob("*.md")))


def documentation(name):
    """Its docstring; of a constant, that below it."""
    module = import_module(NAMES[name].rpartition(".")[0])
    if name == "SOLUTIONS":
        return (ROOT / PACKAGE / "solutions.py").read_text("utf-8").rpartition("SOLUTIONS: ")[2]
    if name.startswith("LSTM") and name != "LSTM":
        pytest.importorskip("sklearn")
    return inspect.getdoc(getattr(module, name)) or ""


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_documented(name):
    assert re.search(rf"^::: {re.escape(NAMES[name])}$", REFERENCE, re.MULTILINE), (
        "put it into a page of docs/reference/"
    )
    assert documentation(name)
    if name not in WITHOUT_EXAMPLE:
        assert re.search(r"^ *Example:\n +>>> ", documentation(name), re.MULTILINE)


def test_the_reference_names_nothing_else():
    named = re.findall(r"^::: (.+)$", REFERENCE, re.MULTILINE)
    assert sorted(named) == sorted(NAMES.values())
    assert {*NAMES} >= WITHOUT_EXAMPLE

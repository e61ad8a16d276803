"""Modules that a process is to leave alone."""

import importlib
import sys
from importlib.util import find_spec

import pytest

from multibackend_lstm.hiding import hidden, without_jax


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that nothing has imported."""
    (tmp_path / "never_imported.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield "never_imported"
    sys.modules.pop("never_imported", None)


def test_a_hidden_module_is_installed_and_cannot_be_imported(module):
    with hidden([module, "surely_absent"]):
        with pytest.raises(ModuleNotFoundError, match="never_imported"):
            importlib.import_module(module)
        assert module not in sys.modules
        with pytest.raises(ModuleNotFoundError, match="never_imported"):
            importlib.import_module(f"{module}.within")
        assert find_spec(module)
        assert find_spec("surely_absent") is None
    assert importlib.import_module(module)


def test_a_module_that_was_imported_stays(module):
    importlib.import_module(module)
    with hidden([module]):
        assert importlib.import_module(module)


def test_it_ends_with_an_exception(module):
    before = [*sys.meta_path]
    with pytest.raises(KeyError), hidden([module]):
        raise KeyError
    assert sys.meta_path == before


@pytest.mark.parametrize(
    ("backend", "found"), [("torch", False), ("tensorflow", False), ("jax", True), ("numpy", True)]
)
def test_jax_is_left_to_what_computes_with_it(tmp_path, monkeypatch, backend, found):
    (tmp_path / "jax.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    with without_jax():
        if found:
            assert importlib.import_module("jax").__file__ == str(tmp_path / "jax.py")
        else:
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module("jax")

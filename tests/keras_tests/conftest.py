"""Keras's own tests of recurrent layers, run with this package's classes in Keras's place.

The tests lie in Keras's wheel (not in that of keras-nightly). They take every layer from the module
`keras.src.layers`, so that is where ours are put, before pytest imports the tests.
`differences.toml` names the tests that fail by design; each must fail, with the error given there.
"""

import os
import re
import tomllib
from pathlib import Path

# Before JAX starts: the tests compile many programs, each of which runs once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import pytest
from keras.src import layers
from keras.src.layers.rnn import conv_lstm
from packaging.specifiers import SpecifierSet

import multibackend_lstm

# Stand for those of the same name in `keras.layers`, and must do what those do.
IN_PLACE = (
    "LSTM",
    "GRU",
    "Bidirectional",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
    "TimeDistributed",
)
DIFFERENCES = Path(__file__).parent / "differences.toml"


def conv_lstm_of_rank(rank, **arguments):
    """Ours in place of Keras's base class, to whose test the rank is an argument."""
    return getattr(multibackend_lstm, f"ConvLSTM{rank}D")(**arguments)


for _name in IN_PLACE:
    setattr(layers, _name, getattr(multibackend_lstm, _name))
conv_lstm.ConvLSTM = conv_lstm_of_rank


def all_differences():
    """The entries of `differences.toml`."""
    return tomllib.loads(DIFFERENCES.read_text(encoding="utf-8"))["difference"]


def difference(item):
    """The entry that expects a test to fail, or None."""
    parent = item.getparent(pytest.Class)
    for entry in all_differences() if parent is not None else []:
        if (
            f"{parent.name}.{item.name}" in entry["tests"]
            and keras.backend.backend() in entry["backends"]
            and SpecifierSet(entry["versions"]).contains(keras.__version__, prereleases=True)
        ):
            return entry
    return None


def pytest_configure(config):
    """Make known what Keras's tests and its testing tools bring."""
    config.addinivalue_line("markers", "requires_trainable_backend: a marker of Keras's tests")
    # Its `run_layer_test` trains every layer with a generator.
    config.addinivalue_line("filterwarnings", "ignore:`shuffle=True` was passed, but:UserWarning")


def pytest_collection_modifyitems(items):
    """Expect the failures that are listed, and no other."""
    for item in items:
        entry = difference(item)
        if entry is not None:
            item.add_marker(pytest.mark.xfail(reason=entry["why"], strict=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A listed test that fails with another error than the one given fails after all."""
    report = yield
    entry = difference(item)
    if entry is not None and call.excinfo is not None:
        error = f"{call.excinfo.typename}: {call.excinfo.value}"
        if not re.search(entry["error"], error):
            report.outcome = "failed"
            report.longrepr = f"expected an error like {entry['error']!r}. Got {error}"
    return report

"""The option `--one-in`, and this package's own pytest plugin where it is not installed."""

import collections
from importlib.metadata import entry_points

import pytest

if not entry_points(group="pytest11", name="multibackend_lstm"):
    pytest_plugins = ["multibackend_lstm.pytest_plugin"]


def pytest_addoption(parser):
    """Each case is compiled anew on JAX and traced on TensorFlow."""
    parser.addoption(
        "--one-in", type=int, default=1, metavar="N", help="Of each file, every N-th test."
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """With `--one-in N`, leave out the others of those that `-m` and `-k` choose."""
    every = config.getoption("--one-in")
    seen = collections.Counter()
    chosen, left_out = [], []
    for item in items:
        (left_out if seen[item.path] % every else chosen).append(item)
        seen[item.path] += 1
    items[:] = chosen
    config.hook.pytest_deselected(items=left_out)

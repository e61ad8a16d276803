"""Brings this package's own pytest plugin where the package is not installed."""

from importlib.metadata import entry_points

if not entry_points(group="pytest11", name="multibackend_lstm"):
    pytest_plugins = ["multibackend_lstm.pytest_plugin"]

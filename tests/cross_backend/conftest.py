"""One set of workers on every backend for all tests here."""

import pytest

from multibackend_lstm.agreement import Workers
from multibackend_lstm.environment import installed_backends

TARGETS = [f"{name}@cpu" for name in installed_backends()]


@pytest.fixture(scope="session")
def workers():
    """A worker on each backend, and the float64 reference."""
    assert len(TARGETS) == 3, "these tests compare all backends: install the missing ones"
    with Workers(TARGETS) as workers:
        yield workers

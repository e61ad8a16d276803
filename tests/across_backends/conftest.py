"""One set of workers on every backend for all tests here: that of the package's own plugin."""

import pytest

from multibackend_lstm.environment import BACKENDS


@pytest.fixture(scope="session")
def workers(agreement_workers):
    """A worker on each backend, and the float64 reference."""
    missing = set(BACKENDS) - {target.backend for target in agreement_workers.targets}
    assert not missing, f"these tests compare all backends: install {', '.join(missing)}"
    return agreement_workers

"""One set of workers for all tests: starting one takes seconds."""

import keras
import pytest

from multibackend_lstm.agreement import Workers

TARGET = f"{keras.backend.backend()}@cpu"


@pytest.fixture(scope="session")
def workers():
    """A worker on the backend of these tests, and the reference."""
    with Workers([TARGET], timeout=120) as workers:
        yield workers

"""One set of workers for all tests: starting one takes seconds."""

import signal

import keras
import pytest

from multibackend_lstm.agreement import Workers

BACKEND = keras.backend.backend()
TARGET = f"{BACKEND}@cpu"


@pytest.fixture(scope="session", autouse=True)
def _heed_ctrl_c():
    """Shells have what they start in the background ignore Ctrl-C, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def workers():
    """A worker on the backend of these tests, and the reference."""
    with Workers([TARGET], timeout=120) as workers:
        yield workers

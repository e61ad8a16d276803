"""One set of workers for all tests: starting one takes seconds."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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


def repro(folder):
    """Run the script of a bundle, on this backend."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "KERAS_BACKEND": BACKEND,
    }
    command = [sys.executable, str(folder / "repro.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

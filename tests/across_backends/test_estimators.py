"""Estimators train alike on every backend, and load from every other.

This file is also the program that each backend runs: a trained estimator, and what it predicts.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from multibackend_lstm import LSTMClassifier
from multibackend_lstm.environment import installed_backends

# A part of CI, beside `nox -s tests`, which is to take minutes.
pytestmark = pytest.mark.slow

BACKENDS = installed_backends()
TOLERANCE = 1e-5


def cases():
    """Series of unequal length, and their labels."""
    rng = np.random.default_rng(0)
    series = [rng.normal(size=(length, 3, 2)) for length in rng.integers(4, 9, size=24)]
    return series, np.array(["low", "middle", "high"])[rng.integers(3, size=24)]


def main(folder, backend):
    """Train, save, and write what the estimator predicts."""
    series, labels = cases()
    classifier = LSTMClassifier(
        "conv", units=4, epochs=4, batch_size=8, dropout=0.3, random_state=0
    )
    classifier.fit(series, labels).save(Path(folder, f"{backend}.keras"))
    np.save(Path(folder, f"{backend}.npy"), classifier.predict_proba(series))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where each backend wrote."""
    folder = tmp_path_factory.mktemp("estimators")
    for backend in BACKENDS:
        subprocess.run(
            [sys.executable, "-W", "ignore", __file__, folder, backend],
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            check=True,
            timeout=300,
        )
    return folder


def predictions(folder, backend):
    return np.load(folder / f"{backend}.npy", allow_pickle=False)


def test_there_is_another_backend_to_compare_with():
    assert len(BACKENDS) > 1, "these tests compare backends: install a second one"


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_random_state_trains_the_same_model(folder, backend):
    expected = predictions(folder, BACKENDS[0])
    np.testing.assert_allclose(predictions(folder, backend), expected, atol=TOLERANCE)
    assert expected.std(axis=0).min() > 100 * TOLERANCE  # or any model would do


@pytest.mark.parametrize("backend", BACKENDS)
def test_loads_from_every_backend(folder, backend):
    series, _ = cases()
    loaded = LSTMClassifier.load(folder / f"{backend}.keras")
    np.testing.assert_allclose(
        loaded.predict_proba(series), predictions(folder, backend), atol=1e-6
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A training that is killed on one backend goes on on another as if nothing had ended it."""

import json
import os
import signal
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest

from multibackend_lstm.environment import BACKENDS, installed_backends

PROGRAM = """
import json, os, signal, sys
import keras, numpy as np
from multibackend_lstm import build_model, load_basic_motions
from multibackend_lstm.training import same_run

folder, kill_at = sys.argv[1], int(sys.argv[2])

class Kill(keras.callbacks.Callback):
    steps = 0
    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

data = load_basic_motions()
model = build_model((100, 2, 3), units=6, outputs=4, task="multiclass", dropout=0.3)
model.compile("adam", "sparse_categorical_crossentropy")
history = same_run(
    model, data.x_train, data.y_train, seed=1, epochs=4, batch_size=12, verbose=0,
    checkpoint=folder, callbacks=[Kill()],
)
print(json.dumps(history["loss"]))
"""


def run(backend, folder, kill_at=0):
    """The losses of a run on a backend; None if it was killed at a step, which 0 never is."""
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), str(kill_at)],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if kill_at:
        assert finished.returncode == -signal.SIGKILL, finished.stderr
        return None
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Losses by backend, of runs that nothing ended."""
    found = {}

    def losses(backend):
        if backend not in found:
            found[backend] = run(backend, tmp_path_factory.mktemp(backend))
        return found[backend]

    return losses


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [*permutations(BACKENDS, 2)])
def test_it_goes_on_on_another_backend(first, second, unbroken, tmp_path):
    if not {first, second} <= {*installed_backends()}:
        pytest.skip("needs both backends")
    # Steps of an epoch are 4, the last one of 4 cases: one kill in the second, one in the third.
    kills = np.random.default_rng(sum(map(ord, first + 2 * second)))
    run(first, tmp_path, kill_at=int(kills.integers(5, 9)))
    run(second, tmp_path, kill_at=int(kills.integers(5, 9)))
    losses = run(first, tmp_path)
    # What rounding makes of four epochs; another mask or order moves a loss by a hundredth.
    for backend in (first, second):
        np.testing.assert_allclose(losses, unbroken(backend), rtol=2e-5)

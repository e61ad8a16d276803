"""A training that is killed on one backend goes on on another as if nothing had ended it."""

import json
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest

from multibackend_lstm.environment import BACKENDS, installed_backends

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "killed_trainings.py"


@pytest.mark.slow
@pytest.mark.parametrize("pair", [*permutations(BACKENDS, 2)], ids="-".join)
def test_it_goes_on_on_another_backend(pair):
    if not {*pair} <= {*installed_backends()}:
        pytest.skip("needs both backends")
    # Twice: docs/same_start.md has 20 times.
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, "--pair", *pair, "--kills", "2"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    row = json.loads(finished.stdout.splitlines()[-1])
    assert (row["pair"], row["kills"]) == ([*pair], 2)

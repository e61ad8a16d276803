"""Every example runs, and all print the losses of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from multibackend_lstm.environment import installed_backends

FOLDER = Path(__file__).parent
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
COMMANDS = {
    "jax_data_parallel": ["jax_data_parallel.py", "--devices", "2"],
    "jax_model_parallel": ["jax_model_parallel.py", "--devices", "2"],
    "jax_processes": ["jax_processes.py", "--processes", "2"],
    "tensorflow_mirrored": ["tensorflow_mirrored.py", "--devices", "2"],
    "tensorflow_workers": ["tensorflow_workers.py", "--workers", "2"],
    "torch_ddp": [*TORCHRUN, "torch_ddp.py"],
    "torch_loop": [*TORCHRUN, "torch_loop.py"],
}
# On the CPU, where there is a GPU too, of which two processes would both take all memory.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
}
# Of `torch_loop` in one process; 40 cases in batches of 12, so that the last has 4.
LOSSES = [1.4855671, 1.5384733, 1.4010661]


def test_every_example_is_run():
    scripts = {path.stem for path in FOLDER.glob("*.py")}
    assert {*COMMANDS} == scripts - {"common", "processes", "test_examples"}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_it_has_the_losses_of_one_device(name):
    if name.partition("_")[0] not in installed_backends():
        pytest.skip("needs the backend")
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", *COMMANDS[name], "--json"],
        cwd=FOLDER,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    (line,) = [line for line in finished.stdout.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert found["devices"] == 2
    # Rounding, and optimizers of torch and Keras; another mask or mean moves a loss by a hundredth.
    np.testing.assert_allclose(found["loss"], LOSSES, rtol=5e-5)

"""A process that is killed, and a disk that cannot be written to."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from distributed import engines, kills
from multibackend_lstm.environment import installed_backends

# Without tensorflow_workers: `fit` does not run there, so that there are no checkpoints of ours.
ENGINES = ("torch_ddp", "jax_processes")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_kill_ends_the_job_and_the_same_command_goes_on(engine, tmp_path):
    if engine.partition("_")[0] not in installed_backends():
        pytest.skip("needs the backend")
    expected = kills.unbroken(engine, tmp_path)
    more = {"heartbeat": 10} if engine == "jax_processes" else {}
    found, arrays = kills.resumed(engine, tmp_path, kills=2, seed=1, **more)
    for kill in found:
        assert any(kill["statuses"]), kill
        assert kill["named"], kill
        if engine == "torch_ddp":  # torchrun has the last word
            assert "Signal 9 (SIGKILL)" in kill["output"]
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value)
    assert [path.name for path in (tmp_path / "checkpoint").glob("*.h5")] == ["epoch_6.weights.h5"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits of a process are POSIX's")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    if "torch" not in installed_backends():
        pytest.skip("needs torch")
    checkpoint = tmp_path / "checkpoint"
    arguments = {"solutions": ["reshape"], "checkpoint": str(checkpoint)}
    engines.run("torch_ddp", 2, tmp_path / "one.npz", epochs=1, **arguments)
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    out = str(tmp_path / "two.npz")
    # No file may become larger than 4 KiB, as on a disk that is full.
    started = engines.start("torch_ddp", 2, out=out, epochs=2, file_limit=4096, **arguments)
    ((status, output),) = engines.finish(started, 300)
    assert status != 0
    assert output.count("WriteError: cannot write") == 1, output
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    engines.run("torch_ddp", 2, tmp_path / "three.npz", epochs=2, **arguments)


NOBODY = 65534
# A mount that only the command sees, read-only for root too.
MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def may_mount():
    """Whether a process may have mounts of its own."""
    if not shutil.which("unshare"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "-rm", "sh", "-c", MOUNT, folder, "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="users and mounts are POSIX's")
@pytest.mark.parametrize("why", ["Permission denied", "Read-only file system"])
def test_a_read_only_folder_leaves_the_old_checkpoint(why):
    if "torch" not in installed_backends():
        pytest.skip("needs torch")
    if why == "Read-only file system" and not may_mount():
        pytest.skip("needs mounts of its own")
    # Another user cannot enter pytest's folders. (See `user` of program.py.)
    with tempfile.TemporaryDirectory() as name:
        folder, checkpoint = Path(name), Path(name, "checkpoint")
        arguments = {"solutions": ["reshape"], "checkpoint": str(checkpoint)}
        engines.run("torch_ddp", 2, folder / "one.npz", epochs=1, **arguments)
        before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        folder.chmod(0o777)
        checkpoint.chmod(0o555)
        how = {}
        if why == "Read-only file system":
            how = {"before": ["unshare", "-rm", "sh", "-c", MOUNT, str(checkpoint)]}
        elif os.geteuid() == 0:  # whom modes do not stop
            how = {"user": NOBODY}
        out = str(folder / "two.npz")
        started = engines.start("torch_ddp", 2, out=out, epochs=2, **how, **arguments)
        ((status, output),) = engines.finish(started, 300)
        assert status != 0
        assert output.count("WriteError: cannot write") == 1, output
        assert f"cannot write to the folder {checkpoint}: {why}" in output
        assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
        checkpoint.chmod(0o755)
        engines.run("torch_ddp", 2, folder / "three.npz", epochs=2, **arguments)

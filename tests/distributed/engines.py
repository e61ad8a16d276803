"""Start the program of these tests as each engine wants it, and wait for it a bounded time."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("program.py")
# Of several on few cores, a thread pool each.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def environment() -> dict[str, str]:
    """That of this process, with this checkout to import from."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # A test session of JAX has flags of its own.
    inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return {**inherited, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}


def commands(engine: str, devices: int, arguments: dict[str, Any]) -> list[list[str]]:
    """A command for each process that we have to start."""
    given = {"engine": engine, "devices": devices, **arguments}
    python = [sys.executable, "-W", "ignore"]

    def call(**more: Any) -> list[str]:
        return [str(PROGRAM), json.dumps({**given, **more})]

    if engine == "torch_ddp":
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        return [[*python, *launcher, f"--nproc-per-node={devices}", *call()]]
    if engine == "jax_processes":
        address = f"127.0.0.1:{free_port()}"
        each = [call(address=address, process=number) for number in range(devices)]
        return [[*python, *one] for one in each]
    return [[*python, *call()]]


def start(
    engine: str,
    devices: int,
    *,
    before: Sequence[str] = (),
    **arguments: Any,
) -> list[subprocess.Popen[str]]:
    """The processes of a run, started; what torchrun starts is its own.

    Args:
        engine: of `program.py`.
        devices: how many devices or processes.
        before: the beginning of each command, which runs the rest.
        **arguments: of `program.py`.
    """
    return [
        subprocess.Popen(
            [*before, *command],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command in commands(engine, devices, arguments)
    ]


def finish(processes: list[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str]]:
    """Exit status and output of each process, which all end within some seconds."""
    ends = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=seconds)
            ends.append((process.returncode, output))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return ends


def run(engine: str, devices: int, out: Path, seconds: float = 900, **arguments: Any) -> Path:
    """Run to the end; the folder's file of the first process."""
    ends = finish(start(engine, devices, out=str(out), **arguments), seconds)
    for status, output in ends:
        assert status == 0, output[-6000:]
    return out.with_name(f"{out.stem}-0.npz")

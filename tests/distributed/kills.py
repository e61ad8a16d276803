"""Kill a process of a training at random moments: `python tests/distributed/kills.py --kills 20`.

After each kill the job must end within a bounded time, with a message that names the process or its
signal. Then the same command goes on from the last checkpoint, until it is killed again. At last it
runs to the end, with the weights and losses of a run that nothing broke.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from distributed import engines

#: Within how many seconds after a kill all processes have ended, on a busy machine too.
BOUND = {"torch_ddp": 60.0, "jax_processes": 240.0}
EPOCHS = 6


def start(engine: str, out: Path, checkpoint: Path) -> Any:
    """The command that is given again and again."""
    for pid in out.parent.glob("*.pid"):
        pid.unlink()
    return engines.start(
        engine, 2, out=str(out), checkpoint=str(checkpoint), solutions=["reshape"], epochs=EPOCHS
    )


def kill_one(engine: str, out: Path, checkpoint: Path, draw: random.Random) -> dict[str, Any]:
    """Start, kill one process at a random moment of its training, wait for the end of all."""
    processes = start(engine, out, checkpoint)
    victim = draw.randrange(2)
    pid_file = out.with_name(f"{out.stem}-{victim}.pid")
    deadline = time.monotonic() + 300
    while not pid_file.exists() or not pid_file.read_text():
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            ends = engines.finish(processes, 1)
            raise RuntimeError(f"nothing started: {ends}")
        time.sleep(0.02)
    time.sleep(draw.uniform(0, 4))
    killed = time.monotonic()
    with contextlib.suppress(ProcessLookupError):  # it may have ended already
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    ends = engines.finish(processes, BOUND[engine])
    return {
        "victim": victim,
        "seconds": round(time.monotonic() - killed, 1),
        "statuses": [status for status, _ in ends],
        "output": "\n".join(output for _, output in ends),
    }


def unbroken(engine: str, folder: Path) -> dict[str, np.ndarray]:
    """Weights and losses of a run that nothing breaks."""
    out = folder / "unbroken.npz"
    engines.run(
        engine, 2, out, checkpoint=str(folder / "unbroken"), solutions=["reshape"], epochs=EPOCHS
    )
    with np.load(folder / "unbroken-0.npz") as file:
        return dict(file)


def resumed(engine: str, folder: Path, kills: int, seed: int) -> tuple[list[Any], dict[str, Any]]:
    """What each kill did, and weights and losses of the run that went on after the last."""
    draw = random.Random(seed)
    out, checkpoint = folder / "out.npz", folder / "checkpoint"
    found = [kill_one(engine, out, checkpoint, draw) for _ in range(kills)]
    for status, output in engines.finish(start(engine, out, checkpoint), 600):
        if status:
            raise RuntimeError(output)
    with np.load(folder / "out-0.npz") as file:
        return found, dict(file)


def main() -> None:
    """Kill, and print what each kill did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=BOUND, default="torch_ddp")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = unbroken(arguments.engine, folder)
        found, arrays = resumed(arguments.engine, folder, arguments.kills, arguments.seed)
    for kill in found:
        print({key: value for key, value in kill.items() if key != "output"})
    for key, value in expected.items():
        np.testing.assert_array_equal(arrays[key], value, err_msg=key)
    print(f"{len(found)} kills; weights and losses are those of the unbroken run")


if __name__ == "__main__":
    main()

"""Kill a process of a training at random moments: `python tests/distributed/kills.py --kills 20`.

With `--engine jax_processes --heartbeat 10` several processes of JAX, which notice after 10 s that
another one is silent; with `--write` into benchmarks/results/.

After each kill the job must end within a bounded time, with a message that names the process or its
signal. Then the same command goes on from the last checkpoint, until it is killed again. At last it
runs to the end, with the weights and losses of a run that nothing broke.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
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
#: What a message calls the first process and the second.
NAMES = {
    "torch_ddp": ("rank      : 0", "rank      : 1"),
    "jax_processes": ("leader task", "Task 1 heartbeat timeout"),
}
EPOCHS = 6


def start(engine: str, out: Path, checkpoint: Path, **arguments: Any) -> Any:
    """The command that is given again and again."""
    for pid in out.parent.glob("*.pid"):
        pid.unlink()
    given = {"solutions": ["reshape"], "epochs": EPOCHS, **arguments}
    return engines.start(engine, 2, out=str(out), checkpoint=str(checkpoint), **given)


def kill_one(
    engine: str, out: Path, checkpoint: Path, draw: random.Random, **arguments: Any
) -> dict[str, Any]:
    """Start, kill one process at a random moment of its training, wait for the end of all."""
    processes = start(engine, out, checkpoint, **arguments)
    victim = draw.randrange(2)
    pid_file = out.with_name(f"{out.stem}-{victim}.pid")
    deadline = time.monotonic() + 300
    while not pid_file.exists() or not pid_file.read_text():
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            ends = engines.finish(processes, 1)
            raise RuntimeError(f"nothing started: {ends}")
        time.sleep(0.02)
    after = draw.uniform(0, 4)
    time.sleep(after)
    killed = time.monotonic()
    with contextlib.suppress(ProcessLookupError):  # it may have ended already
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    ends = engines.finish(processes, BOUND[engine])
    output = "\n".join(output for _, output in ends)
    return {
        "victim": victim,
        "killed_after": round(after, 1),
        "seconds": round(time.monotonic() - killed, 1),
        "statuses": [status for status, _ in ends],
        "named": NAMES[engine][victim] in output,
        "output": output,
    }


def unbroken(engine: str, folder: Path) -> dict[str, np.ndarray]:
    """Weights and losses of a run that nothing breaks."""
    out = folder / "unbroken.npz"
    engines.run(
        engine, 2, out, checkpoint=str(folder / "unbroken"), solutions=["reshape"], epochs=EPOCHS
    )
    with np.load(folder / "unbroken-0.npz") as file:
        return dict(file)


def resumed(
    engine: str, folder: Path, kills: int, seed: int, **arguments: Any
) -> tuple[list[Any], dict[str, Any]]:
    """What each kill did, and weights and losses of the run that went on after the last."""
    draw = random.Random(seed)
    out, checkpoint = folder / "out.npz", folder / "checkpoint"
    found = [kill_one(engine, out, checkpoint, draw, **arguments) for _ in range(kills)]
    for status, output in engines.finish(start(engine, out, checkpoint, **arguments), 600):
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
    parser.add_argument("--heartbeat", type=int, help="seconds, of processes of JAX")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results/")
    arguments = parser.parse_args()
    more = {} if arguments.heartbeat is None else {"heartbeat": arguments.heartbeat}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = unbroken(arguments.engine, folder)
        found, arrays = resumed(arguments.engine, folder, arguments.kills, arguments.seed, **more)
    rows = [{key: value for key, value in kill.items() if key != "output"} for kill in found]
    for row in rows:
        print(row)
    for key, value in expected.items():
        np.testing.assert_array_equal(arrays[key], value, err_msg=key)
    print(f"{len(found)} kills; weights and losses are those of the unbroken run")
    if arguments.write:
        write(arguments.engine, {**more, "epochs": EPOCHS, "seed": arguments.seed}, rows)


def write(engine: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write what the kills did, once the weights and losses are found to be the same."""
    sys.path.append(str(engines.ROOT / "benchmarks"))
    import common

    seconds = [row["seconds"] for row in rows]
    results = {
        **settings,
        "kills": len(rows),
        "seconds": {
            "least": min(seconds),
            "median": statistics.median(seconds),
            "most": max(seconds),
        },
        "differences_from_the_unbroken_run": 0,
        "each": rows,
    }
    question = "How long until a job ends of which a process is killed, and does it go on?"
    print(f"written to {common.write_results(f'kills_{engine}', question, results).name}")


if __name__ == "__main__":
    main()

"""Does a training that is killed 20 times, on two backends in turn, end as an unbroken one?

    python benchmarks/killed_trainings.py
    python benchmarks/killed_trainings.py --pair torch jax --kills 2   # one pair, nothing written

For each ordered pair of backends `same_run` trains a model with dropout on BasicMotions, in epochs
of 4 steps, the last with 4 cases in place of 12, and saves each step. SIGKILL ends its process at
a random moment after 1 to 8 steps, while a step is computed or a file is written; the other
backend then goes on from the folder, and so on, until 20 processes are dead and one has come to
the end. Its weights and losses are compared with those of an unbroken run on each of the two.

The rival is that unbroken run itself with the last bit of its inputs changed at random, 4 times: a
broken run is no further from it than 3 times the farthest of these twins. (On the backend itself
a broken run would equal it to the last bit; the other backend rounds otherwise.) While one
process trains, the next ones import their backends.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import common
import numpy as np

from multibackend_lstm.environment import BACKENDS, installed_backends

STEPS_A_LIFE = 8
STEPS_AN_EPOCH = 4
TWINS = 4
BOUND = 3.0


def main() -> int:
    """Kill trainings of each pair, compare, write results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", nargs=2, choices=BACKENDS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--life", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    epochs = arguments.kills * STEPS_A_LIFE // STEPS_AN_EPOCH + 1  # never over before the kills are
    if arguments.life:
        live_once(epochs)
        return 0
    pairs = [tuple(arguments.pair)] if arguments.pair else [*permutations(installed_backends(), 2)]
    with tempfile.TemporaryDirectory() as folder:
        names = {name for pair in pairs for name in pair}
        backends = {name: Backend(name, arguments.kills, Path(folder)) for name in names}
        try:
            rows = [break_and_compare(pair, backends, arguments.kills) for pair in pairs]
        finally:
            for backend in backends.values():
                backend.stop()
    for row in rows:
        print(json.dumps(row))
    if not arguments.pair:
        settings = {"kills": arguments.kills, "epochs": epochs, "twins": TWINS, "bound": BOUND}
        path = common.write_results(
            "killed_trainings", __doc__.splitlines()[0], {**settings, "pairs": rows}
        )
        print(f"written to {path.name}", file=sys.stderr)
    return 0 if all(row["largest_ratio"] <= BOUND for row in rows) else 1


class Backend:
    """A backend, a new process for each life of a training."""

    def __init__(self, name: str, kills: int, folder: Path) -> None:
        self.name = name
        self.kills = kills
        self.folder = folder
        self.runs: list[dict[str, np.ndarray]] = []
        self.next = self.start()

    def start(self) -> subprocess.Popen[str]:
        """A process that imports the backend, and waits."""
        return subprocess.Popen(
            [sys.executable, __file__, "--life", "--kills", str(self.kills)],
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "KERAS_BACKEND": self.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def live(
        self, checkpoint: Path | None, twin: int = 0, kill: tuple[int, float] | None = None
    ) -> dict[str, np.ndarray] | None:
        """Train to the end, or until it is killed, so many seconds after so many steps.

        Returns:
            Weights and losses of a training that came to its end.
        """
        process, self.next = self.next, self.start()
        out = self.folder / f"{self.name}.npz"
        out.unlink(missing_ok=True)
        task = {"checkpoint": checkpoint and str(checkpoint), "twin": twin, "out": str(out)}
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(task), file=process.stdin, flush=True)
        for step, _ in enumerate(process.stdout, 1):
            if kill and step == kill[0]:
                time.sleep(kill[1])
                process.kill()
        process.communicate()
        expected = -signal.SIGKILL if kill else 0
        if process.returncode != expected:
            raise RuntimeError(f"{self.name}: ended with {process.returncode}, not {expected}")
        return None if kill else dict(np.load(out, allow_pickle=False))

    def unbroken(self) -> list[dict[str, np.ndarray]]:
        """The unbroken run, and those with other inputs, made once."""
        while len(self.runs) <= TWINS:
            run = self.live(None, twin=len(self.runs))
            assert run is not None
            self.runs.append(run)
        return self.runs

    def stop(self) -> None:
        """End the process that waits."""
        self.next.communicate()


def break_and_compare(
    pair: tuple[str, str], backends: dict[str, Backend], kills: int
) -> dict[str, Any]:
    """Train on a pair of backends in turn, killed so often, and compare with unbroken runs."""
    rng = np.random.default_rng([*"".join(pair).encode()])
    with tempfile.TemporaryDirectory() as folder:
        for life in range(kills):
            kill = (int(rng.integers(1, STEPS_A_LIFE + 1)), float(rng.uniform(0, 0.03)))
            backends[pair[life % 2]].live(Path(folder), kill=kill)
        broken = backends[pair[kills % 2]].live(Path(folder))
    assert broken is not None
    row: dict[str, Any] = {"pair": pair, "kills": kills}
    ratios = []
    for name in pair:
        unbroken, *twins = backends[name].unbroken()
        runs = (broken, *twins)
        found, *others = ({k: distance(run[k], unbroken[k]) for k in run} for run in runs)
        farthest = {k: max(other[k] for other in others) for k in found}
        ratios += [found[k] / farthest[k] for k in found]
        row[name] = {
            f"{k}{whose}": float(f"{d[k]:.3g}")
            for k in found
            for whose, d in (("", found), (" of the farthest twin", farthest))
        }
    return {**row, "largest_ratio": round(max(ratios), 3)}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean square of the difference."""
    return float(np.sqrt(np.mean((a.astype("float64") - b) ** 2)))


def live_once(epochs: int) -> None:
    """One life of a training: what the line of the input says, a line of output for each step."""
    import keras

    from multibackend_lstm import build_model, load_basic_motions
    from multibackend_lstm.training import same_run

    line = sys.stdin.readline()
    if not line:
        return
    task = json.loads(line)
    data = load_basic_motions()
    model = build_model((100, 2, 3), units=6, outputs=4, task="multiclass", dropout=0.3)
    model.compile("adam", "sparse_categorical_crossentropy")
    x = data.x_train
    if task["twin"]:
        u = np.random.default_rng(task["twin"]).uniform(-1, 1, x.shape)
        x = (x * (1 + 2.0**-23 * u)).astype("float32")
    progress = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: print("step", flush=True)
    )
    history = same_run(
        model,
        x,
        data.y_train,
        seed=1,
        epochs=epochs,
        batch_size=12,
        checkpoint=task["checkpoint"],
        save_freq=1,
        callbacks=[progress],
        verbose=0,
    )
    weights = np.concatenate([weight.numpy().ravel() for weight in model.weights])
    np.savez(task["out"], weights=weights, losses=np.array(history["loss"]))


if __name__ == "__main__":
    sys.exit(main())

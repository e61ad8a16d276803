"""Does Keras on JAX with a GPU return `LSTM(go_backwards=True, return_sequences=True)` in reversed
time order, and so `Bidirectional(LSTM(dropout=0.2, return_sequences=True))` wrong at inference?

    python benchmarks/gpu_go_backwards.py

Anyone with a GPU that JAX sees can run it; without one it fails. Both layers, and two beside them
that should be right, are compared on `jax@gpu` and `jax@cpu` with the float64 truth, and their
outputs on the GPU, as they are and with time reversed, with what Keras computes in NumPy. The
verdict is printed and written to results/gpu_go_backwards.json.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import write_results

from multibackend_lstm import agreement
from multibackend_lstm.agreement import Report, WorkerError, Workers
from multibackend_lstm.runtimes.targets import Target
from multibackend_lstm.runtimes.workers import Worker

# This process only builds models: it must not take the GPU's memory.
os.environ["KERAS_BACKEND"] = "numpy"
# Several processes share it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
SHAPE = (4, 9, 5)  # batch, time, features
UNITS = 6
# Far above what TF32 does to a value of an LSTM, far below what an exchange of steps does.
TOLERANCE = 1e-2


def models() -> dict[str, Any]:
    """The two layers in question, and two beside them."""
    import keras

    import multibackend_lstm

    lstm = keras.layers.LSTM
    layers = {
        "LSTM(go_backwards=True, return_sequences=True)": lstm(
            UNITS, go_backwards=True, return_sequences=True
        ),
        "Bidirectional(LSTM(dropout=0.2, return_sequences=True))": keras.layers.Bidirectional(
            lstm(UNITS, dropout=0.2, return_sequences=True)
        ),
        "LSTM(return_sequences=True)": lstm(UNITS, return_sequences=True),
        "multibackend_lstm.LSTM(go_backwards=True, return_sequences=True)": multibackend_lstm.LSTM(
            UNITS, go_backwards=True, return_sequences=True
        ),
    }
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE[1:])
    return {name: keras.Model(inputs, layer(inputs)) for name, layer in layers.items()}


def verdict(report: Report, device: str, straight: float, flipped: float) -> str:
    """What a layer does on a device, in words."""
    target = f"jax@{device}"
    if target in report.could_not_run:
        return "could not run"
    if target not in report.disagreeing and straight < TOLERANCE:
        return "right"
    if flipped < TOLERANCE < straight:
        return "in reversed time order"
    return "wrong"


def predicted(path: str, x: list[Any]) -> list[Any]:
    """What a saved model predicts, in the process of another backend."""
    import keras

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    values: list[Any] = model.predict(np.array(x, "float32"), verbose=0).tolist()
    return values


def examine(name: str, model: Any, workers: Workers, device: str, folder: Path) -> dict[str, Any]:
    """All about one layer."""
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    report = agreement.check(model, x, workers=workers, steps=1)
    path = folder / "model.keras"
    model.save(path)
    outputs = []
    for backend in ("jax", "numpy"):
        worker = Worker(Target(backend, device if backend == "jax" else "cpu"), None, "strict", 600)
        arguments = {"path": str(path), "x": x.tolist()}
        header = {"do": "call", "function": f"{Path(__file__).stem}:predicted"}
        try:
            answer, _ = worker.request({**header, "arguments": arguments}, {}, "called")
        except WorkerError as error:
            raise SystemExit(f"{name} does not run on {backend}: {error}") from error
        finally:
            worker.close()
        outputs.append(np.array(answer["called"], "float32"))
    ours, right = outputs
    straight = float(np.abs(ours - right).max())
    flipped = float(np.abs(ours[:, ::-1] - right).max())
    found = verdict(report, device, straight, flipped)
    print(f"{name}: {found} on jax@{device}")
    for finding in report.findings:
        print(f"  {finding.message}")
    return {
        "layer": name,
        "verdict": found,
        "largest_difference": straight,
        "largest_difference_with_time_reversed": flipped,
        "report": report.to_json(),
    }


def main() -> None:
    """Run it; ends with status 1 if the question is not settled."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--device", choices=["gpu", "cpu"], default="gpu", help="cpu tries the script; no results"
    )
    device = parser.parse_args().device
    targets = list(dict.fromkeys([f"jax@{device}", "jax@cpu"]))
    with Workers(targets) as workers, tempfile.TemporaryDirectory() as folder:
        try:
            ready = workers.worker(targets[0], Target("jax", device)).ready
        except WorkerError as error:
            raise SystemExit(
                f"No verdict: {targets[0]} {error}\nThis question is about a GPU. Run it where "
                "`python -c 'import jax; print(jax.devices())'` shows one."
            ) from None
        results = [
            examine(name, model, workers, device, Path(folder)) for name, model in models().items()
        ]
    unsettled = [r["layer"] for r in results if r["verdict"] == "could not run"]
    if unsettled:
        raise SystemExit(f"No verdict: could not run: {', '.join(unsettled)}")
    backwards = results[0]["verdict"]
    print(
        f"Verdict: on {ready['device']} Keras {ready['versions']['keras']} returns "
        f"{results[0]['layer']} {backwards}, and {results[1]['layer']} {results[1]['verdict']}."
    )
    if device == "gpu":
        question = " ".join(__doc__.split("\n\n")[0].split())
        document = {"gpu": ready, "layers": results}
        print(f"written to {write_results('gpu_go_backwards', question, document)}")


if __name__ == "__main__":
    main()

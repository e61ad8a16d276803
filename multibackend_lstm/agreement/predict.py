"""Predictions of saved models on another backend, in a process of its own."""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multibackend_lstm.environment import run_module


@dataclass(frozen=True)
class Prediction:
    """What one saved model predicted: either the values or the error that it met."""

    values: np.ndarray | None
    error: str | None
    seconds: float


def predict_on(
    backend: str, models: Sequence[Path], inputs: Sequence[np.ndarray]
) -> list[Prediction]:
    """Load saved models on a backend in a new process, and predict.

    Args:
        backend: name of an installed backend.
        models: `.keras` files. They are loaded in safe mode: no code in them is run.
        inputs: one batch of inputs a model.

    Returns:
        A prediction a model. A file that does not load gives an error in its own place.

    Raises:
        RuntimeError: if the process itself fails, with the last lines it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs_path, outputs_path = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(inputs_path, *inputs)
        paths = [str(path) for path in models]
        process = run_module(backend, __name__, [str(inputs_path), str(outputs_path), *paths])
        if process.returncode != 0:
            last_lines = "\n".join(process.stderr.strip().splitlines()[-5:])
            raise RuntimeError(
                f"the {backend} process ended with status {process.returncode}:\n{last_lines}"
            )
        with np.load(outputs_path, allow_pickle=False) as outputs:
            reports = json.loads(str(outputs["reports"]))
            return [
                Prediction(
                    values=None if report["error"] else outputs[f"values_{index}"],
                    error=report["error"],
                    seconds=report["seconds"],
                )
                for index, report in enumerate(reports)
            ]


def main(inputs_path: str, outputs_path: str, *models: str) -> None:
    """The process behind `predict_on`."""
    import keras  # noqa: F401  (a backend that does not start ends the process here)

    from multibackend_lstm.runtimes.loading import load_keras_model

    arrays: dict[str, np.ndarray] = {}
    reports = []
    with np.load(inputs_path, allow_pickle=False) as inputs:
        for index, path in enumerate(models):
            start, error = time.perf_counter(), None
            try:
                model = load_keras_model(path)
                arrays[f"values_{index}"] = model.predict(inputs[f"arr_{index}"], verbose=0)
            except Exception as exception:  # whatever a foreign file brings up is its report
                error = f"{path} cannot be used: {type(exception).__name__}: {exception}"
            reports.append({"error": error, "seconds": time.perf_counter() - start})
    arrays["reports"] = np.array(json.dumps(reports))
    np.savez(outputs_path, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])

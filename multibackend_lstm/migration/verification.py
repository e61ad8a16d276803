"""Compares a migrated model with its old file, which runs in a process of its own."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np

from multibackend_lstm.migration import predict
from multibackend_lstm.migration.configs import STORED_FUNCTIONS
from multibackend_lstm.migration.model_files import ModelFile, open_model_file

TOLERANCE = 1e-5


class VerificationError(Exception):
    """The old file could not be run."""


@dataclass(frozen=True)
class Comparison:
    """Old against new predictions at one batch size.

    Attributes:
        batch: number of cases.
        difference: largest absolute difference, over the largest prediction where that is above 1;
            infinite where shapes differ, or only one side is finite.
        agrees: whether that is at most the tolerance.
    """

    batch: int
    difference: float
    agrees: bool


def verify(
    model: keras.Model,
    path: Path,
    *,
    python: str | None = None,
    trust: bool = False,
    batches: Sequence[int] = (1, 3, 8),
    tolerance: float = TOLERANCE,
    seed: int = 0,
    timeout: float = 600.0,
) -> list[Comparison]:
    """Compare predictions on random input with those of the old file.

    Args:
        model: the migrated model.
        path: the old file.
        python: an interpreter that holds tf-keras (or a Keras that loads the file). Default: this
            one.
        trust: whether to run the functions that are stored in the file. Needed where there are any.
        batches: batch sizes to compare at. An unknown axis has 7 entries.
        tolerance: the largest difference that counts as agreement, relative to the largest
            prediction where that is above 1.
        seed: of the random input.
        timeout: seconds that the old model may take.

    Raises:
        VerificationError: if the file holds functions and is not trusted, or cannot be run.
    """
    file = open_model_file(path)
    if not trust and holds_functions(file.config):
        raise VerificationError(
            f"to run {path} is to run the functions stored in it: add --trust (trust=True) if you "
            "know where it comes from"
        )
    rng = np.random.default_rng(seed)
    inputs = [
        [_random(rng, batch, tensor) for tensor in keras.tree.flatten(model.inputs)]
        for batch in batches
    ]
    old = _old_predictions(file, inputs, python, trust, timeout)
    compared = []
    for position, arrays in enumerate(inputs):
        made = model(keras.tree.pack_sequence_as(model.input, arrays), training=False)
        if isinstance(made, dict):
            made = [made[key] for key in sorted(made)]
        new = [
            np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")))
            for y in keras.tree.flatten(made)
        ]
        difference = _difference(new, old[position])
        compared.append(Comparison(batches[position], difference, difference <= tolerance))
    return compared


def holds_functions(value: Any) -> bool:
    """Whether a configuration holds or names a function that loading it would run."""
    if isinstance(value, dict):
        name = value.get("class_name")
        return name in (*STORED_FUNCTIONS, "__lambda__") or any(
            map(holds_functions, value.values())
        )
    return isinstance(value, list) and any(map(holds_functions, value))


def _random(rng: np.random.Generator, batch: int, tensor: Any) -> np.ndarray:
    shape = (tensor.shape[0] or batch, *(7 if size is None else size for size in tensor.shape[1:]))
    if keras.backend.is_int_dtype(tensor.dtype) or tensor.dtype == "bool":
        return rng.integers(0, 2, size=shape).astype(tensor.dtype)
    return rng.normal(size=shape).astype("float32")


def _difference(new: list[np.ndarray], old: list[np.ndarray]) -> float:
    """The largest difference, relative to what is large."""
    if [y.shape for y in new] != [y.shape for y in old]:
        return float("inf")
    largest = 0.0
    for a, b in zip(new, old, strict=True):
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        largest = max(
            largest, float(np.max(np.abs(a - b) / max(1.0, np.abs(b).max()), initial=0.0))
        )
    return largest


def _old_predictions(
    file: ModelFile,
    inputs: list[list[np.ndarray]],
    python: str | None,
    trust: bool,
    timeout: float,
) -> list[list[np.ndarray]]:
    path = file.path
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if python is None and find_spec("tensorflow") is not None:
        variables["KERAS_BACKEND"] = "tensorflow"  # what stored functions were written for
    # A path is relative to where the user is, not to where the old model runs.
    interpreter = os.path.abspath(python) if python and os.path.dirname(python) else python
    with tempfile.TemporaryDirectory() as folder:
        sent, received = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        arrays = {
            f"{batch}_x{position}": x
            for batch, xs in enumerate(inputs)
            for position, x in enumerate(xs)
        }
        np.savez(sent, **arrays)  # type: ignore[arg-type]
        command = [
            interpreter or sys.executable, predict.__file__, str(path.resolve()), str(sent),
            str(received), "2" if file.keras_2 else "3", *(["trust"] if trust else []),
        ]  # fmt: skip
        try:
            process = subprocess.run(
                command,
                env=variables,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VerificationError(f"{command[0]} did not run {path}: {error}") from error
        if process.returncode != 0 or not received.exists():
            errors = re.findall(r"^[\w.]+(?:Error|Exception)\b.*", process.stderr, re.MULTILINE)
            reason = errors[-1][:300] if errors else f"status {process.returncode}"
            raise VerificationError(
                f"{command[0]} could not run {path}: {reason}. Name an interpreter with "
                "tf-keras by --python (python=), in an environment of its own: "
                "pip install tensorflow tf_keras"
            )
        with np.load(received, allow_pickle=False) as outputs:
            return [
                [outputs[key] for key in outputs.files if key.startswith(f"{batch}_y")]
                for batch in range(len(inputs))
            ]

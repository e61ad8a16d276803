"""Compares a migrated model with its old file, which the library that wrote it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from multibackend_lstm.agreement.checking import check_predictions
from multibackend_lstm.migration.configs import STORED_FUNCTIONS
from multibackend_lstm.migration.model_files import open_model_file
from multibackend_lstm.runtimes.loading import check_numbers
from multibackend_lstm.runtimes.targets import Target
from multibackend_lstm.runtimes.workers import WorkerError, Workers

if TYPE_CHECKING:
    from multibackend_lstm.agreement import Report


class VerificationError(Exception):
    """The old file could not be run."""


def verify(
    model: keras.Model,
    path: Path,
    *,
    python: str | None = None,
    trust: bool = False,
    batches: Sequence[int] = (1, 3, 8),
    seed: int = 0,
    timeout: float = 600.0,
) -> "dict[int, Report]":
    """Compare the old file's predictions on random input with the migrated model's.

    The old file is a target of the comparison that `agreement.check` makes too: the migrated model
    gives the truth, in float64 where TensorFlow is installed, and the noise floor.

    Args:
        model: the migrated model.
        path: the old file.
        python: an interpreter that holds tf-keras (or a Keras that loads the file). Default: this
            one.
        trust: whether to run the functions that are stored in the file. Needed where there are any.
        batches: batch sizes to compare at. An unknown axis has 7 entries.
        seed: of the random input.
        timeout: seconds that each step may take.

    Returns:
        A report for each batch size.

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
    runtime = "tf_keras" if file.keras_2 else "keras_file"
    target = Target(runtime, file=str(path.resolve()))
    interpreters = {} if python is None else {runtime: python}
    with Workers([target], interpreters=interpreters, timeout=timeout, trust=trust) as workers:
        try:
            reports = list(check_predictions(model, inputs, workers))
        except WorkerError as error:
            raise VerificationError(f"{path} could not be compared: {error}") from error
    for report in reports:
        if report.could_not_run:
            raise VerificationError(
                f"{report.summary()}. Name an interpreter with tf-keras by --python (python=), in "
                "an environment of its own: pip install tensorflow tf_keras"
            )
    return dict(zip(batches, reports, strict=True))


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
    check_numbers(f"input {tensor.name!r}", shape)
    if keras.backend.is_int_dtype(tensor.dtype) or tensor.dtype == "bool":
        return rng.integers(0, 2, size=shape).astype(tensor.dtype)
    return rng.normal(size=shape).astype("float32")

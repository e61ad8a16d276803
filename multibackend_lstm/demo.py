"""The demo: train every solution on BasicMotions, and compare the backends' predictions."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from multibackend_lstm.agreement import Report, Workers
from multibackend_lstm.agreement.checking import check_predictions
from multibackend_lstm.agreement.comparison import json_number
from multibackend_lstm.agreement.report import FAILED
from multibackend_lstm.data import flatten_features, load_basic_motions
from multibackend_lstm.data.basic_motions import BasicMotions
from multibackend_lstm.files import replacing
from multibackend_lstm.models import build_model
from multibackend_lstm.solutions import Solution


@dataclass(frozen=True)
class Settings:
    """How to train one solution; chosen by `benchmarks/demo_settings.py` on training cases."""

    epochs: int = 40
    learning_rate: float = 3e-3
    units: int = 64
    dropout: float = 0.2
    batch_size: int = 8


SETTINGS: Mapping[Solution, Settings] = MappingProxyType(
    {
        "reshape": Settings(),
        "pre_reshape": Settings(),
        "conv": Settings(dropout=0.5),
        "channelwise": Settings(learning_rate=1e-2),
        "conv_lstm": Settings(units=8),
    }
)


@dataclass
class Result:
    """What became of one solution."""

    solution: str
    parameters: int
    training_seconds: float
    history: dict[str, list[float]]
    test_accuracy: float
    confusion: list[list[int]]
    model: str
    #: What `agreement.check` finds of the predictions on each backend; None with one backend alone.
    report: Report | None = field(default=None, repr=False)

    @property
    def differences(self) -> dict[str, float]:
        """Largest difference of a predicted probability from the truth, on each backend."""
        if self.report is None:
            return {}
        return {
            result.target.partition("@")[0]: max(c.max_absolute for c in result.comparisons)
            for result in self.report.results
            if result.comparisons
        }

    @property
    def errors(self) -> dict[str, str]:
        """Why a backend could not load or run the saved model."""
        findings = [] if self.report is None else self.report.findings
        return {f.target.partition("@")[0]: f.message for f in findings if f.verdict == FAILED}

    @property
    def score(self) -> float | str | None:
        """The largest score of a prediction; None where nothing was compared."""
        if self.report is None or math.isnan(self.report.score):
            return None
        return json_number(self.report.score)

    @property
    def agrees(self) -> bool:
        """Whether every backend predicted the same, as far as rounding explains."""
        return self.report is None or self.report.agrees


def standardise(data: BasicMotions) -> BasicMotions:
    """Scale each sensor axis to mean 0 and deviation 1, by the training cases' statistics."""
    mean = data.x_train.mean(axis=(0, 1))
    deviation = data.x_train.std(axis=(0, 1))
    return data._replace(
        x_train=(data.x_train - mean) / deviation, x_test=(data.x_test - mean) / deviation
    )


def fit(
    solution: Solution,
    x: np.ndarray,
    y: np.ndarray,
    *,
    classes: int,
    settings: Settings,
    seed: int,
    on_epoch: Callable[[], None] = lambda: None,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Build and train the model of one solution.

    Args:
        solution: one of `SOLUTIONS`.
        x: float32 `(batch, time, sensors, axes)`, as the solution's model takes it.
        y: integer `(batch,)`.
        classes: number of classes.
        settings: how to train.
        seed: of the weights, the shuffling and the dropout.
        on_epoch: called after every epoch.

    Returns:
        The model, and the loss and accuracy of every epoch.
    """
    keras.utils.set_random_seed(seed)
    model = build_model(
        x.shape[1:],
        solution,
        units=settings.units,
        dropout=settings.dropout,
        outputs=classes,
        task="multiclass",
    )
    model.compile(
        optimizer=keras.optimizers.Adam(settings.learning_rate, clipnorm=1.0),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    progress = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch())
    history = model.fit(
        x,
        y,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        callbacks=[progress],
        verbose=0,
    )
    return model, {
        name: [float(value) for value in values] for name, values in history.history.items()
    }


def inputs_of(solution: str, x: np.ndarray) -> np.ndarray:
    """The data as the model of a solution takes it."""
    return flatten_features(x) if solution == "pre_reshape" else x


def train(
    solution: Solution,
    data: BasicMotions,
    out: Path,
    *,
    settings: Settings,
    seed: int,
    on_epoch: Callable[[], None] = lambda: None,
) -> Result:
    """Train one solution on standardised data, save it as `out/<solution>.keras`, and test it."""
    classes = len(data.class_names)
    start = time.perf_counter()
    model, history = fit(
        solution,
        inputs_of(solution, data.x_train),
        data.y_train,
        classes=classes,
        settings=settings,
        seed=seed,
        on_epoch=on_epoch,
    )
    seconds = time.perf_counter() - start
    path = out / f"{solution}.keras"
    with replacing(path) as temporary:
        model.save(temporary)
    predictions = model.predict(inputs_of(solution, data.x_test), verbose=0)
    predicted = predictions.argmax(axis=1)
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (data.y_test, predicted), 1)
    return Result(
        solution=solution,
        parameters=model.count_params(),
        training_seconds=seconds,
        history=history,
        test_accuracy=float((predicted == data.y_test).mean()),
        confusion=confusion.tolist(),
        model=path.name,
    )


def compare(
    results: Sequence[Result],
    data: BasicMotions,
    out: Path,
    backends: Sequence[str],
    on_model: Callable[[], None] = lambda: None,
) -> None:
    """Load the saved models on several backends, and enter reports into the results."""
    with Workers([f"{name}@cpu" for name in backends]) as workers:
        for result in results:
            batch = [inputs_of(result.solution, data.x_test)]
            (result.report,) = check_predictions(out / result.model, [batch], workers)
            on_model()


def load_data() -> BasicMotions:
    """BasicMotions, standardised."""
    return standardise(load_basic_motions())


def to_json(result: Result) -> dict[str, Any]:
    """What of a result goes into `results.json`."""
    return {
        "solution": result.solution,
        "parameters": result.parameters,
        "training_seconds": round(result.training_seconds, 3),
        "test_accuracy": result.test_accuracy,
        "largest_difference": result.differences,
        "errors": result.errors,
        "agrees": result.agrees,
        "score": result.score,
        "confusion": result.confusion,
        "history": result.history,
        "model": result.model,
    }

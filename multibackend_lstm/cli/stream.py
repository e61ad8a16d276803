"""`multibackend-lstm stream`: a prediction a line for samples that come a line at a time."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibackend_lstm import environment
from multibackend_lstm.cli.shared import AnswerIsNo, backend_option
from multibackend_lstm.files import check_writable
from multibackend_lstm.hiding import without_jax

if TYPE_CHECKING:
    from multibackend_lstm.streaming.stream import Stream


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@backend_option
@click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "litert", "openvino"]),
    help="Export the step, and run it there. Default: the Keras backend.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Go on from this file if it is there, and write the state to it after each sample.",
)
@click.option(
    "--window", type=click.IntRange(min=1), help="Begin anew after so many samples. Default: never."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of CSV.")
def stream(
    model: Path,
    backend: str | None,
    runtime: str | None,
    state: Path | None,
    window: int | None,
    as_json: bool,
) -> None:
    """Read a sample a line from standard input, and print a prediction for each at once.

    MODEL is a `.keras` file of a model of series, or of its step model; or a step model's `.onnx`,
    `.tflite` or `.xml` file.

    A sample is a line of CSV, its values in the order of (channels, features), or of JSON: a list,
    nested or not, or an object with an entry for each input. A line that is no sample is reported
    on standard error with its number, leaves the state as it is, and has no prediction.

    With --state the state is written before the prediction is printed: whoever kills the command
    loses the prediction of one sample at most, and none is counted twice. When it starts, it says
    how many samples the state has seen, so that the next one can be sent.

    Ends with status 0 if every line was a sample, 1 if one was not, 2 for wrong use, a model that
    cannot run step by step or a state of another model, and 3 if something is not installed.
    """
    from multibackend_lstm.streaming.stream import KERAS_FILES, Stream

    if model.suffix in KERAS_FILES:
        environment.set_backend(environment.choose_backend(backend))
    if sys.stdin is None:
        raise click.UsageError("standard input is closed, and the samples come from there")
    if state is not None:
        check_writable(state.parent)
    # An export looks for backends, and runs in a process of its own.
    with without_jax() if runtime is None else nullcontext():
        live = Stream(model, runtime=runtime, window=window)
    if state is not None and state.exists():
        live.load_state(state)
        seen = int(live.steps[0])
        click.echo(f"going on after {seen} samples; sample {seen + 1} is the next", err=True)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Without the mark that Windows puts first; bytes that are no text make no number either.
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
    refused = 0
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        try:
            prediction = live.step(_sample(line, live))
        except ValueError as error:
            refused += 1
            click.echo(f"line {number}: {error}", err=True)
            continue
        if state is not None:
            live.save_state(state)
        # click.echo flushes.
        click.echo(_json(prediction, number) if as_json else _csv(prediction))
    if refused:
        raise AnswerIsNo(f"{refused} line(s) held no sample, and had no prediction")


def _sample(line: str, live: Stream) -> Any:
    """The arrays of a line."""
    import numpy as np

    text = line.strip()
    given_as_json = text[0] in "[{"
    if given_as_json:
        try:
            given = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"it begins as JSON and is none: {error}") from error
    else:
        # Python reads 1_0 as 10, which no writer of CSV means.
        given = text.replace("_", "?").split(",")
    if not isinstance(given, Mapping):
        if len(live.inputs) > 1:
            raise ValueError(f"the model has the inputs {', '.join(live.inputs)}: send an object")
        given = {next(iter(live.inputs)): given}
    arrays = {}
    for name, values in given.items():
        spec = live.inputs.get(name)
        if spec is None:
            raise ValueError(f"there is no input '{name}', but {', '.join(live.inputs)}")
        if given_as_json:
            _check_numbers(name, values)
        try:
            array = np.array(values, "float64")
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"'{name}' is not made of numbers alone") from None
        if array.size != spec.size or (array.ndim != 1 and array.shape != spec.shape):
            raise ValueError(
                f"'{name}' must have {spec.size} values, {spec.shape}. Received {array.shape}"
            )
        if spec.dtype.startswith(("int", "uint")) and np.isfinite(array).all():
            if (array != np.trunc(array)).any() or (np.abs(array) > 2**53).any():
                raise ValueError(f"'{name}' must be integers")
            array = array.astype("int64")
        arrays[name] = array.reshape(spec.shape)
    return arrays


def _check_numbers(name: str, values: Any) -> None:
    """Refuse what NumPy would make a number of: text, true, null."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"'{name}' is not made of numbers alone: {json.dumps(value)[:40]}")


def _lists(prediction: Any) -> Any:
    """Nested lists, with None for NaN and infinity, which JSON does not have."""
    if isinstance(prediction, list):
        return [_lists(value) for value in prediction]
    return prediction if math.isfinite(prediction) else None


def _json(prediction: Any, number: int) -> str:
    named = prediction if isinstance(prediction, Mapping) else {"prediction": prediction}
    return json.dumps({"line": number, **{name: _lists(x.tolist()) for name, x in named.items()}})


def _csv(prediction: Any) -> str:
    named = prediction.values() if isinstance(prediction, Mapping) else [prediction]
    return ",".join(str(value) for array in named for value in array.reshape(-1).tolist())

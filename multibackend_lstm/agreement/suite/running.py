"""The cases built with Keras, compared one after another, and resumed where a run stopped."""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multibackend_lstm.agreement.bundle import check_empty
from multibackend_lstm.agreement.checking import check
from multibackend_lstm.agreement.suite.keras_layers import cases
from multibackend_lstm.agreement.suite.suite_case import SuiteCase
from multibackend_lstm.files import append, check_writable, replacing
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.workers import Workers

_BATCH = 4
# Steps of training with each optimizer.
_UPDATES = 5
# Of each line of a file of results.
_START = '{"case": '
_OLD = "what another run computed is not gone on with"


def run_suite(
    workers: Workers,
    *,
    only: str | Collection[str] = "",
    results: str | Path | None = None,
    bundle: str | Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Compare every layer of Keras on the targets.

    Args:
        workers: of the targets; they stay open.
        only: of the cases, those whose name contains this; or several whole names.
        results: a file of JSON lines, one a case, written as they come. Cases that it has are
            not run again.
        bundle: a folder for the bundles that `check` writes, in a folder of each case that has
            any. It has to be new or empty, unless `results` goes on.
        progress: is told what is being done.

    Returns:
        A line a case: `case`, `targets`, `findings` (as `Report.to_json` has them),
        `nothing_compared`, the targets that gave nothing, `bundles`, the folders in `bundle` by the
        finding's number, counted from 1, and, where Keras itself could not build it, `not_built`.

    Raises:
        ValueError: if no case has such a name, the file is of other targets, or the folder for
            bundles holds something.
    """
    import keras

    chosen = {
        case.name: case
        for case in cases()
        if (only in case.name if isinstance(only, str) else case.name in only)
    }
    if not chosen:
        raise ValueError(f"no case of the suite has {only!r} in its name, such as Conv2D.")
    targets = [str(target) for target in workers.targets]
    known = {} if results is None else _read(Path(results), targets)
    if bundle is not None and not known:
        check_empty(Path(bundle))
    lines = []
    for number, (name, case) in enumerate(chosen.items(), 1):
        if name not in known:
            progress(f"{number} of {len(chosen)}: {name}")
            keras.utils.clear_session(free_memory=False)
            known[name] = {"case": name, "targets": targets, **_compared(case, workers, bundle)}
            if results is not None:
                append(Path(results), json.dumps(known[name]) + "\n")
        lines.append(known[name])
    return lines


def _read(path: Path, targets: list[str]) -> dict[str, dict[str, Any]]:
    """The lines of a file by case; a last one that was cut off by a kill is taken off.

    A file of anything else is left as it is.
    """
    check_writable(path.parent)
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        found = {line["case"]: line for line in lines}
        others = [line["targets"] for line in lines if line["targets"] != targets]
        if not text[len(whole) :].startswith(_START[: len(text) - len(whole)]):
            raise ValueError(text[len(whole) :][:40])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} holds no results of a suite, and {_OLD}: {error!r}") from error
    if others:
        raise ValueError(f"{path} is of the targets {', '.join(others[0])}: {_OLD}.")
    if whole != text:
        with replacing(path) as temporary:
            temporary.write_text(whole, encoding="utf-8")
    return found


def folder_of(case: str) -> str:
    """The name of a folder for a case's bundles, for every file system."""
    return re.sub(r"[^\w.=-]+", "_", case).strip("_")


def _compared(case: SuiteCase, workers: Workers, bundle: str | Path | None) -> dict[str, Any]:
    folder = None if bundle is None else Path(bundle) / folder_of(case.name)
    if folder is not None and folder.exists():
        shutil.rmtree(folder)  # of a run that was killed before it wrote this case down
    try:
        model, inputs = built(case)
    except Exception as error:  # what this version of Keras has not, or builds no more
        return {"findings": [], "not_built": f"{type(error).__name__}: {error}"}
    try:
        report = check(
            model,
            inputs,
            workers=workers,
            steps=_UPDATES if case.kind == "optimizer" else 1,
            optimizer=_trainer(case) if case.kind == "optimizer" else "sgd",
            loss=_trainer(case) if case.kind == "loss" else None,
            dtype=case.dtype or None,
            bundle=folder,
        )
    except CaseError as error:
        return {"findings": [], "not_built": str(error)}
    written = report.to_json()
    line = {
        "findings": written["findings"],
        "tolerance": written["tolerance"],
        "nothing_compared": report.nothing_compared,
    }
    if folder is None:
        return line
    numbers = [str(number) for number in range(1, len(report.findings) + 1)]
    places = {number: f"{folder.name}/finding-{number}" for number in numbers}
    found = {number: place for number, place in places.items() if (folder.parent / place).is_dir()}
    if not found:
        folder.rmdir()
    return {**line, "bundles": found}


def built(case: SuiteCase) -> tuple[Any, Any]:
    """A model of the case's layer, with weights as training leaves them, and inputs."""
    import keras

    rng = np.random.default_rng(0)
    dtype = "int32" if case.integers else "float32"
    inputs = [keras.Input(shape, dtype=dtype) for shape in case.shapes]
    data = [_drawn(case, shape, rng) for shape in case.shapes]
    xs: list[Any] = inputs
    if case.masked:
        xs = [keras.layers.Masking()(x) for x in inputs]
        for x in data:
            x[0, x.shape[1] // 2 :] = 0  # padded on the right, on the left, and with a hole
            x[1, :2] = 0
            x[2, 1] = 0
    if case.kind == "op":
        function = getattr(keras.ops, case.layer)
        outputs = function(xs, **case.options) if case.as_list else function(*xs, **case.options)
        outputs = [x for x in keras.tree.flatten(outputs) if x is not None]
        model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name="case")
        return model, data if len(inputs) > 1 else data[0]
    if case.kind != "layer":
        hidden = keras.layers.Dense(5, activation="tanh")(xs[0])
        last = "linear" if case.options.get("from_logits") else "softmax"
        model = keras.Model(inputs[0], keras.layers.Dense(3, activation=last)(hidden), name="case")
        draw_weights(model, rng)
        return model, data[0]
    layer = _option({"class": case.layer, **case.options})
    if case.cell:
        layer = keras.layers.RNN(layer)
    outputs = layer(xs, **case.arguments) if case.as_list else layer(*xs, **case.arguments)
    several = len(inputs) > 1
    model = keras.Model(inputs if several else inputs[0], outputs, name="case")
    draw_weights(model, rng)
    return model, data if several else data[0]


def _drawn(case: SuiteCase, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if case.integers:
        return rng.integers(0, case.integers, (_BATCH, *shape)).astype("int32")
    if case.between:
        low, high = case.between
        return rng.uniform(low, high, (_BATCH, *shape)).astype("float32")
    return rng.normal(size=(_BATCH, *shape)).astype("float32")


def _trainer(case: SuiteCase) -> Any:
    """The loss or the optimizer of a case."""
    import keras

    module = keras.losses if case.kind == "loss" else keras.optimizers
    return getattr(module, case.layer)(**case.options)


def _option(value: Any) -> Any:
    """An option; what is written as a layer is one of `keras.layers`."""
    import keras

    if isinstance(value, Mapping):
        options = {key: _option(x) for key, x in value.items() if key != "class"}
        return getattr(keras.layers, value["class"])(**options)
    if isinstance(value, (list, tuple)):
        found = [_option(item) for item in value]
        return tuple(found) if isinstance(value, tuple) else found
    return value


def draw_weights(model: Any, rng: np.random.Generator) -> None:
    """Weights as training leaves them, drawn in NumPy: no zeros, no ones."""
    import keras

    for weight in model.weights:
        shape, name = weight.shape, weight.path.rsplit("/", 1)[-1]
        if "seed" in name or not keras.backend.is_float_dtype(weight.dtype):
            continue
        if "variance" in name or name in ("gamma", "scale"):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) < 2 or "bias" in name:
            value = rng.normal(0, 0.2, shape)
        else:
            value = rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)
        weight.assign(value.astype("float32"))


def differing(lines: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Case and finding of all that is more than a note."""
    for line in lines:
        for finding in line["findings"]:
            if finding["verdict"] in ("disagrees", "failed"):
                yield line["case"], finding

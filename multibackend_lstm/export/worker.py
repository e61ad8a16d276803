"""The process that loads a model on one backend, records what it predicts, and exports it.

    python -m multibackend_lstm.export.worker REQUEST ANSWER ARRAYS

REQUEST is a JSON file: `model`, `format`, `artefact` (None only records predictions), `batch`,
`time` (None leaves the axis free) and `predict`. ANSWER gets the `inputs` of the artefact, `cases`,
`skipped` and an `error`; ARRAYS gets `in_<case>_<input>` and `out_<case>_<output>`.
"""

import json
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops, tree

import multibackend_lstm  # noqa: F401  (registers the layers that the file names)
from multibackend_lstm.agreement.case import draw_inputs
from multibackend_lstm.agreement.execution import describe
from multibackend_lstm.export.artefact_worker import first_line
from multibackend_lstm.export.exporters import EXPORTERS, Spec, flat_call, settle, sized
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.runtimes.loading import load_keras_model

#: Batch sizes and lengths that are compared; a fixed size takes the place of those here.
CASES = ((2, 7), (1, 1), (5, 12))


def main(request_path: str, answer_path: str, arrays_path: str) -> None:
    """See the module."""
    request = json.loads(Path(request_path).read_text())
    answer: dict[str, Any] = {"error": None}
    try:
        _answer(request, answer, arrays_path)
    except Exception as error:  # a converter's exceptions are its answer
        traceback.print_exc()
        answer["error"] = f"{_whose(error)}: {first_line(error)}"
    Path(answer_path).write_text(json.dumps(answer))


class ModelError(ValueError):
    """A model that no backend can export, with the reason."""


def _answer(request: dict[str, Any], answer: dict[str, Any], arrays_path: str) -> None:
    try:
        model = _load(request["model"])
        specs = _specs(model, request["batch"], request["time"])
    except ModelError as error:
        answer["refused"] = str(error)
        return
    answer["inputs"] = specs
    if request["predict"]:
        arrays, answer["cases"], answer["skipped"] = _predictions(model, specs)
        np.savez(arrays_path, allow_pickle=False, **arrays)
    if request["artefact"] is not None:
        settle(model, specs)
        EXPORTERS[request["format"], keras.backend.backend()](model, specs, request["artefact"])


def _load(path: str) -> keras.Model:
    """The model, if it is one that can be exported."""
    try:
        model = load_keras_model(path)
    except Exception as error:  # whatever a foreign file brings up
        raise ModelError(f"the model cannot be loaded: {first_line(error)}") from error
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ModelError("the model must be functional or Sequential, with known inputs.")
    for weight in model.weights:
        values = ops.convert_to_numpy(weight)
        if "float" in str(values.dtype) and not np.isfinite(values).all():
            raise ModelError(f"the weight {weight.path} holds NaN or infinity.")
    for layer in sublayers(model):
        if getattr(layer, "stateful", False):
            raise ModelError(
                f"the layer {layer.name} is stateful, and an artefact keeps no state between "
                "calls. Build it with stateful=False."
            )
        if layer.compute_dtype not in ("float32", None) and "float" in layer.compute_dtype:
            raise ModelError(
                f"the layer {layer.name} computes in {layer.compute_dtype}, and an export is in "
                "float32. Build the model with the policy float32 and give it the weights."
            )
    return model


def _specs(model: keras.Model, batch: int | None, time: int | None) -> list[Spec]:
    """Name, shape and dtype of each input, with the sizes asked for."""
    specs = describe(model)["inputs"]
    for axis, size, option in ((0, batch, "batch"), (1, time, "time")):
        if size is None:
            continue
        sizes = [spec["shape"][axis] for spec in specs if len(spec["shape"]) > axis]
        if not {None, size} & {*sizes}:
            raise ModelError(
                f"the input {specs[0]['name']} has {option}={sizes[0] if sizes else 'no axis'}. "
                f"Received --{option} {size}. Leave it out, or build the model with {size}."
            )
        for spec in specs:
            if spec["shape"][axis : axis + 1] == [None]:
                spec["shape"][axis] = size
    for spec in specs:
        if None in spec["shape"][2:]:
            raise ModelError(
                f"the input {spec['name']} of shape {tuple(spec['shape'])} leaves an axis open "
                "that is neither batch nor time. Build the model with its size."
            )
    return specs


def _predictions(model: keras.Model, specs: list[Spec]) -> tuple[dict[str, Any], list[Any], Any]:
    """Inputs and the model's own outputs at several batch sizes and lengths."""
    arrays: dict[str, Any] = {}
    cases: list[list[int | None]] = []
    skipped = []
    masked = [
        layer.mask_value for layer in sublayers(model) if isinstance(layer, keras.layers.Masking)
    ]
    for batch, time in CASES:
        drawn = sized(specs, batch, time)
        case = [drawn[0]["shape"][0], (drawn[0]["shape"][1:] or [None])[0]]
        if case in cases:
            continue
        inputs = draw_inputs(drawn, [], case[0] or 1, seed=len(cases))
        for value in masked[:1]:
            _mask_steps(inputs, value)
        try:
            outputs = flat_call(model)(*inputs)
        except Exception as error:  # a model may need a longer sequence than this
            skipped.append(f"Keras itself fails at {case}: {first_line(error)}")
            continue
        arrays |= {f"in_{len(cases)}_{index}": x for index, x in enumerate(inputs)}
        arrays |= {
            f"out_{len(cases)}_{index}": ops.convert_to_numpy(x)
            for index, x in enumerate(tree.flatten(outputs))
        }
        cases.append(case)
    if not cases:
        raise ValueError(skipped[0])
    return arrays, cases, skipped


def _mask_steps(inputs: list[np.ndarray], value: float) -> None:
    """Mask steps of every sample but the first: at both ends, a hole, and the last one wholly."""
    for x in inputs:
        if x.ndim < 3 or x.dtype.kind != "f":
            continue
        length = x.shape[1]
        for sample, steps in enumerate(((), (0,), (1, 2), (-1, -2), range(length))):
            if sample < len(x):
                x[sample, [step % length for step in steps]] = value


def _whose(error: BaseException) -> str:
    """The package in whose code an exception was raised."""
    package = type(error).__module__.partition(".")[0]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        name = name.replace("__main__", "multibackend_lstm")
        if name and name not in sys.stdlib_module_names and find_spec(name) is not None:
            package = name
    return package


if __name__ == "__main__":
    main(*sys.argv[1:])

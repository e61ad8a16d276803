"""The runtime that loads a model on one backend, describes its inputs, and exports it."""

import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import keras
import numpy as np
from keras import ops

import multibackend_lstm  # noqa: F401  (registers the layers that the file names)
from multibackend_lstm.export.exporters import EXPORTERS, Request, Spec, settle
from multibackend_lstm.export.labels import metadata, output_names
from multibackend_lstm.hiding import hidden
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.runtimes.artefacts import portable
from multibackend_lstm.runtimes.errors import InputError
from multibackend_lstm.runtimes.execution import describe
from multibackend_lstm.runtimes.loading import load_keras_model
from multibackend_lstm.runtimes.runtime import Answer, Runtime, first_line


class Exporter(Runtime):
    """Exports from the backend that `KERAS_BACKEND` names.

    {"do": "export", "model", "format", "artefact", "batch", "time", "opset", "fused",
    "model_sha256"} ->
    {"exported"}
    """

    parts = ()

    def start(self) -> dict[str, Any]:
        """Nothing: each request brings its model."""
        return {}

    @property
    def requests(self) -> Mapping[str, Callable[..., None]]:
        """As in `Runtime`."""
        return {"export": self._export}

    def _export(self, *arguments: Any, **options: Any) -> None:
        # From torch no other backend is needed, and no code of others runs here.
        on_torch = keras.backend.backend() == "torch"
        with hidden(("jax", "tensorflow") if on_torch else ()):
            _export(*arguments, **options)


class ModelError(ValueError):
    """A model that no backend can export, with the reason."""


def _export(
    answer: Answer,
    arrays: dict[str, np.ndarray],
    *,
    model: str,
    format: str,
    artefact: str | None,
    batch: int | None,
    time: int | None,
    opset: int | None,
    fused: bool,
    model_sha256: str | None,
) -> None:
    """Export a model, or only describe its inputs where there is no artefact to write.

    The answer holds `inputs`, the values that mark `masked` steps, `notes` on what is not as
    fast as it might be, why the model is `refused`
    by every backend, or an `error` of this one.
    """
    exported: dict[str, Any] = {"error": None}
    try:
        loaded = _load(model)
        exported["inputs"] = specs = _specs(loaded, batch, time)
        exported["masked"] = [
            layer.mask_value
            for layer in sublayers(loaded)
            if isinstance(layer, keras.layers.Masking)
        ]
        if artefact is not None:
            settle(loaded, specs)
            outputs = output_names(loaded, [spec["name"] for spec in specs])
            about = metadata(loaded, specs, outputs, model_sha256)
            request = Request(specs, outputs, artefact, opset, about, fused)
            notes = EXPORTERS[format, keras.backend.backend()](loaded, request)
            exported["notes"] = list(dict.fromkeys(notes or []))
    except ModelError as error:
        exported["refused"] = str(error)
    except InputError:
        raise  # the file is at fault on every backend
    except Exception as error:  # a converter's exceptions are its answer
        traceback.print_exc()
        exported["error"] = f"{_whose(error)}: {first_line(error)}"
    answer({"exported": exported})


def _load(path: str) -> keras.Model:
    """The model, if it is one that can be exported."""
    model = load_keras_model(path)
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
    for spec in specs:
        spec["name"] = portable(spec["name"])
    if len({spec["name"] for spec in specs}) < len(specs):
        raise ModelError(
            "two inputs have names that differ only in what no format can hold: "
            + ", ".join(repr(x.name) for x in model.inputs)
        )
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


def _whose(error: BaseException) -> str:
    """The package in whose code an exception was raised."""
    package = type(error).__module__.partition(".")[0]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if name and name not in sys.stdlib_module_names and find_spec(name) is not None:
            package = name
    return package

"""Artefacts in their own engines: nothing of Keras or this package's layers runs here."""

import json
import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from multibackend_lstm.runtimes.runtime import InferenceRuntime

#: The metadata of an export: a file beside a SavedModel's own and within an archive of
#: torch.export, an entry of LiteRT's metadata.
METADATA_FILE = "multibackend_lstm.json"
#: The entry by which the state of a stream tells the weights of an export from others.
WEIGHTS = "weights_sha256"


def portable(name: str) -> str:
    """A name of an input or output as every format can have it: `"my input"` is `"my_input"`."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _in_order(names: Sequence[str], found: Sequence[str]) -> list[int]:
    """The place in `names` of each input found: by its name, or by its place if names differ."""
    for known in (list(names), [portable(name) for name in names]):
        if sorted(known) == sorted(found):
            return [known.index(name) for name in found]
    if len(names) != len(found):
        raise ValueError(f"the artefact has the inputs {list(found)}, the model {list(names)}")
    return list(range(len(names)))


def flat_order(names: Iterable[str]) -> list[str]:
    """Names of outputs in the flat order of a Keras model that was exported without this package.

    They are numbers, `output_10` behind `output_9`, or the keys of a dict.
    """
    names = list(names)
    return sorted(names, key=(lambda name: int(name[7:])) if _numbered(names) else None)


def _numbered(names: Iterable[str]) -> bool:
    return all(re.fullmatch(r"output_\d+", name) for name in names)


def _ready(*packages: str) -> dict[str, Any]:
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a module may come under another name
            continue
    return {"device": "CPU", "versions": versions}


class ONNXRuntime(InferenceRuntime):
    """ONNX Runtime on the CPU."""

    def start(self) -> dict[str, Any]:
        """Load the model."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            self.file, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        return _ready("onnxruntime")

    def infer(self, inputs: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """As in `InferenceRuntime`."""
        found = [argument.name for argument in self._session.get_inputs()]
        order = _in_order(names, found)
        given = {name: inputs[place] for name, place in zip(found, order, strict=True)}
        return list(self._session.run(None, given))


class SavedModel(InferenceRuntime):
    """A folder in TensorFlow's own format."""

    def start(self) -> dict[str, Any]:
        """Load the model."""
        import tensorflow as tf

        self._loaded = tf.saved_model.load(self.file)  # which owns the variables
        self._serve = self._loaded.signatures["serving_default"]
        self._order = flat_order(self._serve.structured_outputs)
        about = Path(self.file, "assets.extra", METADATA_FILE)
        if about.exists():
            order = json.loads(json.loads(about.read_text(encoding="utf-8"))["outputs"])
            if sorted(order) == sorted(self._order):
                self._order = order
        return _ready("tensorflow", "tensorflow-cpu")

    def infer(self, inputs: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """As in `InferenceRuntime`."""
        import tensorflow as tf

        specs = self._serve.structured_input_signature[1]
        found = list(specs)
        given = {
            name: tf.constant(inputs[place], specs[name].dtype)
            for name, place in zip(found, _in_order(names, found), strict=True)
        }
        outputs = self._serve(**given)
        return [outputs[name].numpy() for name in self._order]


class LiteRT(InferenceRuntime):
    """LiteRT (TensorFlow Lite)."""

    def start(self) -> dict[str, Any]:
        """Look for the engine."""
        import ai_edge_litert.interpreter  # noqa: F401

        return _ready("ai-edge-litert")

    def infer(self, inputs: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """As in `InferenceRuntime`."""
        from ai_edge_litert.interpreter import Interpreter

        # A new one each time: the tensors of an interpreter keep the sizes of the call before.
        interpreter = Interpreter(self.file)
        runner = interpreter.get_signature_runner()
        found = list(runner.get_input_details())
        order = _in_order(names, found)
        outputs = runner(**{name: inputs[place] for name, place in zip(found, order, strict=True)})
        ordered = flat_order(outputs)
        if _numbered(ordered):
            return [outputs[name] for name in ordered]
        # By tensor, since one may come out under several names.
        details = runner.get_output_details()
        tensors = {details[name]["index"]: x for name, x in outputs.items()}
        return [tensors[tensor["index"]] for tensor in interpreter.get_output_details()]


class OpenVINOModel(InferenceRuntime):
    """OpenVINO on the CPU."""

    def start(self) -> dict[str, Any]:
        """Load the model."""
        import openvino

        # Where the processor has bfloat16, that is OpenVINO's default.
        self._switches = {"INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.Core().compile_model(self.file, "CPU", self._switches)
        return {**_ready("openvino"), "set_switches": self._switches}

    def infer(self, inputs: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """As in `InferenceRuntime`."""
        order = _in_order(names, [argument.any_name for argument in self._compiled.inputs])
        outputs = self._compiled([inputs[place] for place in order])
        return [np.array(outputs[place]) for place in range(len(self._compiled.outputs))]


class TorchExport(InferenceRuntime):
    """A program of `torch.export`."""

    def start(self) -> dict[str, Any]:
        """Load the program."""
        import torch

        self._program = torch.export.load(self.file).module()
        return _ready("torch")

    def infer(self, inputs: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """As in `InferenceRuntime`."""
        import torch

        with torch.no_grad():
            outputs = self._program(*(torch.from_numpy(x) for x in inputs))
        if isinstance(outputs, dict):
            outputs = [*outputs.values()]
        flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return [x.numpy() for x in flat]

"""What computes the step of a stream: the Keras backend, or an artefact in its own engine."""

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multibackend_lstm.environment import NotInstalledError
from multibackend_lstm.export.formats import FORMATS, missing, missing_message
from multibackend_lstm.runtimes.artefacts import WEIGHTS, portable
from multibackend_lstm.runtimes.loading import ModelFileError, cause, check_file, check_numbers
from multibackend_lstm.streaming.names import next_of

if TYPE_CHECKING:
    import keras

#: Engines of exported step models: the format of each, and the suffix of its files.
ARTEFACTS = {
    "onnxruntime": ("onnx", ".onnx"),
    "litert": ("litert", ".tflite"),
    "openvino": ("openvino", ".xml"),
}


@dataclass(frozen=True)
class Spec:
    """An input of a step: its axes behind the batch, and its dtype."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of values of a sample."""
        return math.prod(self.shape)


class Engine:
    """Computes steps; as it stands here, on NumPy's arrays.

    Args:
        inputs: all that goes in, by name.
        outputs: names of all that comes out; `"next_lstm_h"` is what the state `"lstm_h"` becomes.

    Attributes:
        name: `"torch"`, `"onnxruntime"`, ...
        inputs: those of a sample.
        states: those that come out again.
        outputs: names of what is no state.
        weights: a hash of them, in hexadecimal; empty for a file that does not say it.
    """

    name: str
    weights = ""

    def __init__(self, inputs: Mapping[str, Spec], outputs: Sequence[str]) -> None:
        self.states = {n: spec for n, spec in inputs.items() if next_of(n) in outputs}
        self.inputs = {n: spec for n, spec in inputs.items() if n not in self.states}
        ends = [next_of(name) for name in self.states]
        # A layer's output may happen to be called "next_..." too.
        self.outputs = [name for name in outputs if name not in ends]
        # In what order `run` takes and gives.
        self._taken, self._given = [*self.inputs, *self.states], [*self.outputs, *ends]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The outputs and then the states, from what goes in and the states.

        Lists, since a step is soon over: in the orders of `inputs`, `outputs` and `states`. A
        state may go in as it came out.
        """
        raise NotImplementedError

    def to_numpy(self, x: Any) -> np.ndarray:
        """An output or a state as an array."""
        return x

    def choose(self, rows: np.ndarray, new: Any, old: Any) -> Any:
        """A state that is `new` in the rows that are True."""
        return np.where(rows.reshape(-1, *[1] * (np.ndim(new) - 1)), new, old)


class KerasEngine(Engine):
    """A step model on the Keras backend, compiled for one batch size."""

    def __init__(self, model: "keras.Model", batch_size: int, compile: bool) -> None:
        import keras

        from multibackend_lstm.runtimes import backend_runtime

        self.name = keras.backend.backend()
        inputs = {x.name: Spec(_sizes(x.name, x.shape[1:]), x.dtype) for x in model.inputs}
        super().__init__(inputs, sorted(model.output))  # as artefacts have them
        example = {
            name: keras.ops.zeros((batch_size, *spec.shape), spec.dtype)
            for name, spec in inputs.items()
        }
        runtime = backend_runtime.active()
        make = runtime.compiled_inference if compile else runtime.plain_inference
        self._run = make(model, example)
        # Keras flattens dicts by their sorted keys.
        self._leaves = [self._taken.index(name) for name in sorted(inputs)]
        self._places = [sorted(model.output).index(name) for name in self._given]
        self._ops = keras.ops

    def run(self, values: Sequence[Any]) -> list[Any]:
        """See `Engine`."""
        found = self._run(*[values[place] for place in self._leaves])
        return [found[place] for place in self._places]

    def to_numpy(self, x: Any) -> np.ndarray:
        """See `Engine`."""
        # A copy: torch's arrays share memory with a tensor that may be a state too.
        return np.array(self._ops.convert_to_numpy(x))

    def choose(self, rows: np.ndarray, new: Any, old: Any) -> Any:
        """See `Engine`."""
        rows = rows.reshape(-1, *[1] * (len(new.shape) - 1))
        return self._ops.where(self._ops.convert_to_tensor(rows), new, old)


class ONNXEngine(Engine):
    """An `.onnx` file in ONNX Runtime, on one thread: a step is too small for more."""

    name = "onnxruntime"

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        # Its fallback, to the same provider, prints a banner on standard output.
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        dtypes = {"tensor(float)": "float32", "tensor(double)": "float64"}
        inputs = {
            x.name: Spec(_sizes(x.name, x.shape[1:]), dtypes.get(x.type, x.type[7:-1]))
            for x in self._session.get_inputs()
        }
        super().__init__(inputs, [x.name for x in self._session.get_outputs()])
        about = self._session.get_modelmeta().custom_metadata_map
        self.weights = about.get(f"multibackend_lstm.{WEIGHTS}", "")
        self._turns: list[tuple[Any, list[np.ndarray], list[np.ndarray]]] = []

    def run(self, values: Sequence[Any]) -> list[Any]:
        """See `Engine`."""
        if not self._turns:
            self._bind(values)
        binding, read, written = self._turns[0]
        for place, value in zip(read, values, strict=True):
            if place is not value:  # as a state of the step before is
                place[...] = value
        self._session.run_with_iobinding(binding)
        self._turns.reverse()
        count = len(self.outputs)
        return [*map(np.array, written[:count]), *written[count:]]

    def _bind(self, values: Sequence[Any]) -> None:
        """Give all tensors their memory, states twice: in turn one is read and one written.

        A step by `session.run`, which makes new arrays, takes half as long again.
        """
        import onnxruntime

        bound = onnxruntime.OrtValue.ortvalue_from_numpy  # which shares memory
        found = self._session.run(self._given, dict(zip(self._taken, values, strict=True)))
        sample = [np.array(x) for x in values[: len(self.inputs)]]
        outputs, ends = found[: len(self.outputs)], found[len(self.outputs) :]
        states = [[np.array(x) for x in ends] for _ in range(2)]
        for old, new in (states, states[::-1]):
            read, written = [*sample, *old], [*outputs, *new]
            binding = self._session.io_binding()
            for name, x in zip(self._taken, read, strict=True):
                binding.bind_ortvalue_input(name, bound(x))
            for name, x in zip(self._given, written, strict=True):
                binding.bind_ortvalue_output(name, bound(x))
            self._turns.append((binding, read, written))


class LiteRTEngine(Engine):
    """A `.tflite` file in LiteRT."""

    name = "litert"

    def __init__(self, file: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(file), num_threads=1)
        self._run = interpreter.get_signature_runner()
        inputs = {
            name: Spec(_sizes(name, tuple(x["shape"][1:])), np.dtype(x["dtype"]).name)
            for name, x in self._run.get_input_details().items()
        }
        super().__init__(inputs, [*self._run.get_output_details()])
        # The interpreter does not give the metadata, which stands in the file as it is.
        about = re.search(rf'"{WEIGHTS}": "([0-9a-f]{{64}})"'.encode(), file.read_bytes())
        self.weights = about[1].decode() if about else ""

    def run(self, values: Sequence[Any]) -> list[Any]:
        """See `Engine`."""
        found = self._run(**dict(zip(self._taken, values, strict=True)))
        return [found[name] for name in self._given]


class OpenVINOEngine(Engine):
    """An `.xml` file in OpenVINO, on the CPU in float32."""

    name = "openvino"

    def __init__(self, file: Path) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(str(file))
        if not model.has_rt_info(["multibackend_lstm", "inputs"]):
            raise ModelFileError(
                f"{file} does not say what its inputs are: this package did not export it."
            )
        # A tensor may have names of its makers beside the one that the export gave it.
        about = {
            key: json.loads(model.get_rt_info(["multibackend_lstm", key]).value)
            for key in ("inputs", "outputs")
        }
        compiled = core.compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        )
        self._request = compiled.create_infer_request()
        inputs = {
            portable(told["name"]): Spec(
                tuple(size.get_length() for size in [*x.partial_shape][1:]),
                np.dtype(x.element_type.to_dtype()).name,
            )
            for x, told in zip(compiled.inputs, about["inputs"], strict=True)
        }
        super().__init__(inputs, about["outputs"])
        if model.has_rt_info(["multibackend_lstm", WEIGHTS]):
            self.weights = model.get_rt_info(["multibackend_lstm", WEIGHTS]).value
        self._leaves = [self._taken.index(name) for name in inputs]
        self._places = [about["outputs"].index(name) for name in self._given]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """See `Engine`."""
        found = self._request.infer([values[place] for place in self._leaves])
        # Copies: the request writes the next results into the same memory.
        return [np.array(found[place]) for place in self._places]


_ENGINES: dict[str, Any] = {
    "onnxruntime": ONNXEngine,
    "litert": LiteRTEngine,
    "openvino": OpenVINOEngine,
}


def open_artefact(path: str | os.PathLike[str]) -> Engine:
    """The engine that an exported step model's suffix says.

    Raises:
        ValueError: for another suffix.
        FileNotFoundError: if there is no such file.
    """
    file = check_file(path)
    engine = next((name for name, (_, suffix) in ARTEFACTS.items() if file.suffix == suffix), None)
    if engine is None:
        known = ", ".join(suffix for _, suffix in ARTEFACTS.values())
        raise ValueError(f"a stream runs files of {known} and `.keras`. Received {file.name}.")
    kind = FORMATS[ARTEFACTS[engine][0]]
    for module in missing((kind.runtime,)):
        raise NotInstalledError(f"a stream on {engine}: {missing_message(module, kind.extra)}")
    try:
        made: Engine = _ENGINES[engine](file)
        if not re.fullmatch("([0-9a-f]{64})?", made.weights):
            raise ModelFileError(f"{file} has no hash of its weights where it should.")
        return made
    except ModelFileError:
        raise
    except Exception as error:  # each engine has its own for a file that it cannot read
        raise ModelFileError(f"{file} cannot be loaded by {engine}: {cause(error)}") from error


def export_step(model: "keras.Model", engine: str, batch_size: int) -> Engine:
    """The step model in the engine of an artefact, which is exported and checked for it."""
    from multibackend_lstm.export.exports import export

    format, suffix = ARTEFACTS[engine]
    with tempfile.TemporaryDirectory(prefix="stream-") as folder:
        path = Path(folder, f"step{suffix}")
        export(model, path, format, batch=batch_size)
        return open_artefact(path)


def _sizes(name: str, shape: Any) -> tuple[int, ...]:
    if any(not isinstance(size, (int, np.integer)) or size < 0 for size in shape):
        raise ModelFileError(
            f"a step has inputs of known axes behind the batch. '{name}' has {tuple(shape)}."
        )
    check_numbers(f"the input '{name}' of a step", shape)
    return tuple(int(size) for size in shape)

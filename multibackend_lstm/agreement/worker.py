"""The process of one target: `python -m multibackend_lstm.agreement.worker cpu strict`.

It answers the requests of `workers.py`, one at a time, until its input ends. What libraries print
goes to the error stream. Requests, and the messages that answer them:

    (none, at the start) -> {"ready": backend, device, precision switches, versions}
    {"do": "describe", "source", "dtype"} -> {"described": inputs, layers, weights, ...} + arrays
    {"do": "run", "source", "dtype", "structure", "training", "labels", "twins", "seed"}
        + arrays -> {"tensor": ...} + array, or {"failed": part, "reason"}, ...; {"done"}
    {"do": "call", "function": "package.module:name", "arguments"} -> {"called": true}

Whatever goes wrong in a request is answered by {"error": ...}: a message, and where it arose.
"""

import collections
import gc
import itertools
import os
import queue
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from multibackend_lstm.agreement.protocol import receive, send

Send = Callable[..., None]


def main(kind: str, precision: str) -> None:
    """Serve requests; see the module."""
    requests, answer = _streams()
    try:
        answer(_ready(kind, precision))
        gc.freeze()  # so that collections need not look at what libraries brought
    except Exception as error:
        answer({"error": _described(error)})
        return
    for number in itertools.count(1):
        header, arrays = requests.get()
        try:
            _SERVED[header.pop("do")](answer, arrays, **header)
        except Exception as error:  # the answer is the report; the worker serves on
            answer({"error": _described(error)})
        if number % 10 == 0:
            gc.collect()  # a model is a knot of references that big arrays hang on


def _streams() -> tuple["queue.Queue[Any]", Send]:
    """A queue of requests, and a function that answers them.

    The process ends as soon as nobody can send requests any more, whatever it computes.
    """
    incoming: BinaryIO = os.fdopen(os.dup(0), "rb")
    outgoing: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # standard output belongs to the messages
    requests: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        try:
            while True:
                requests.put(receive(incoming))
        except EOFError:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return requests, lambda *message: send(outgoing, *message)


def _described(error: Exception) -> str:
    """Type, message and the innermost lines of an error."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    message = re.sub(r"\x1b\[\d+m", "", str(error))  # without Keras's bold type
    message = message.split("\n\nArguments received by")[0].replace("\n\n", " ")
    if len(message) > 600:
        message = f"{message[:600]} ..."
    places = "; ".join(f"{os.path.basename(f.filename)}:{f.lineno} in {f.name}" for f in frames)
    return f"{type(error).__name__}: {message} ({places})"


def _ready(kind: str, precision: str) -> dict[str, Any]:
    import keras

    import multibackend_lstm  # noqa: F401  (registers the layers that cases name)
    from multibackend_lstm import environment
    from multibackend_lstm.runtimes import backend_runtime

    backend = backend_runtime.active()
    device = backend.use_device(kind)
    switches = backend.strict_precision() if precision == "strict" else {}
    return {
        "ready": keras.backend.backend(),
        "device": device,
        "set_switches": switches,
        "precision": backend.precision(),
        "versions": environment.versions(),
        "float64": _computes_in_float64(),
    }


def _computes_in_float64() -> bool:
    """Whether a float64 layer of Keras really computes in float64 on this backend."""
    import keras

    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3)), rng.normal(size=(3, 2))
    layer = keras.layers.Dense(2, activation="tanh", dtype="float64")
    layer.build((None, 3))
    layer.set_weights([kernel, np.zeros(2)])
    difference = keras.ops.convert_to_numpy(layer(x)) - np.tanh(x @ kernel)
    return bool(np.abs(difference).max() < 1e-13)


def _describe(
    answer: Send, arrays: dict[str, np.ndarray], source: dict[str, Any], dtype: str | None
) -> None:
    """Config, weights and inputs of a model."""
    import keras
    from keras import tree

    from multibackend_lstm.agreement.execution import describe, load, numpy_weights

    model, inputs = load(source, dtype)
    described = describe(model)
    given: list[np.ndarray] = []
    if inputs is not None:
        given = [np.asarray(x) for x in tree.flatten(inputs)]
        described["structure"] = tree.pack_sequence_as(inputs, list(range(len(given))))
    if "file" in source:
        described["config"] = keras.saving.serialize_keras_object(model)
    weights = numpy_weights(model)
    answer(
        {"described": described, "given": len(given), "weights": len(weights)},
        {f"weight{i}": x for i, x in enumerate(weights)}
        | {f"input{i}": x for i, x in enumerate(given)},
    )


def _run(
    answer: Send,
    arrays: dict[str, np.ndarray],
    source: dict[str, Any],
    dtype: str | None,
    structure: Any,
    training: dict[str, Any] | None,
    twins: int,
    seed: int,
    rounding: float,
) -> None:
    """Every tensor of a case; with `twins`, in float64 with each tensor's noise floor."""
    import keras

    start = time.perf_counter()
    truth = twins > 0
    wide = truth and dtype == "float64"
    keras.config.set_floatx("float64" if wide else "float32")
    try:
        from multibackend_lstm.agreement.execution import Execution, load

        model, _ = load(source, dtype)
        execution = Execution(model, structure, training, noisy=wide)
        case = _Case(execution, arrays, training, seed, wide)
        if truth:
            _send_truth(answer, case, twins, rounding)
        else:
            for part in case.parts(predict=True):
                _send_part(answer, part)
        answer({"done": {"seconds": time.perf_counter() - start, "notes": case.notes()}})
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


class _Case:
    """An execution with its arrays."""

    def __init__(
        self,
        execution: Any,
        arrays: dict[str, np.ndarray],
        training: dict[str, Any] | None,
        seed: int,
        wide: bool,
    ) -> None:
        self.execution = execution
        self.weights = _numbered(arrays, "weight")
        self.inputs = _numbered(arrays, "input")
        self.labels = _numbered(arrays, "label")
        self.training = training
        self.seed = seed
        self.wide = wide

    def parts(
        self, predict: bool, weights: Any = None, inputs: Any = None
    ) -> Iterator[tuple[str, Iterator[Any]]]:
        """Name and tensors of what is compared, each part from the same start."""
        from multibackend_lstm.agreement.execution import draw_labels

        weights = self.weights if weights is None else weights
        inputs = self.inputs if inputs is None else inputs
        if self.wide:
            inputs = [x.astype("float64") if x.dtype.kind == "f" else x for x in inputs]
        else:
            inputs = [x.astype(y.dtype) for x, y in zip(inputs, self.inputs, strict=True)]
        if predict:
            self.execution.set_weights(weights)
            yield "prediction", self.execution.predicted(inputs)
        self.execution.set_weights(weights)
        yield "layers", self.execution.captured(inputs)
        if self.execution.output_forms is None:
            return  # the model does not run, as the error of its layers says
        if self.training and not self.execution.randomness:
            labels = self.labels
            if not labels:
                rng = np.random.default_rng(self.seed)
                labels = draw_labels(self.training["loss"], self.execution.output_forms, rng)
            self.execution.set_weights(weights)
            yield "training", self.execution.trained(inputs, labels)

    def notes(self) -> list[str]:
        return [
            f"training is not compared: {path} draws random numbers"
            for path in self.execution.randomness
        ]


def _numbered(arrays: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    numbers = sorted(int(key.removeprefix(name)) for key in arrays if key.startswith(name))
    return [arrays[f"{name}{number}"] for number in numbers]


def _send_part(answer: Send, part: tuple[str, Iterator[Any]]) -> None:
    from multibackend_lstm.backends import Refused

    name, tensors = part
    try:
        for tensor in tensors:
            answer(_header(tensor), {"values": tensor.values})
    except Refused as reason:
        answer({"refused": name, "reason": str(reason)})
    except Exception as error:
        answer({"failed": name, "reason": _described(error)})


def _header(tensor: Any, **more: Any) -> dict[str, Any]:
    return {"tensor": {"kind": tensor.kind, "path": tensor.path, "dtype": tensor.dtype, **more}}


# The float64 reference's own rounding, and the least move that is sure to change a float64.
_FLOAT64_ROUNDING, _FLOAT64_MOVE = 2.0**-53, 2.0**-52


def _send_truth(answer: Send, case: _Case, twins: int, rounding: float) -> None:
    """Every tensor of an unperturbed run, and how far it moves in the twins: its noise floor.

    Every other twin is a fine one where the reference computes in float64: it is moved within the
    rounding of float64, and how far it moves is scaled up. Every operation inside of a layer and
    in the gradients then rounds as it does in the dtype in question, only smaller. The gradient
    of a bias before a BatchNormalization, for one, is 0 but for that: no move of inputs and
    weights shows its noise. The coarse twins have what does not scale: a maximum that changes
    places, a unit that falls silent.
    """
    from multibackend_lstm.agreement.execution import perturbed

    def tensors(twin: int, size: float) -> Iterator[tuple[str, Any]]:
        """Part and tensor; a part that fails gives its error last."""
        weights, inputs = case.weights, case.inputs
        if twin:
            rng = np.random.default_rng([case.seed, twin])
            weights = [perturbed(w, rng, size) for w in weights]
            inputs = [perturbed(x, rng, size) for x in inputs]
        case.execution.round(size, case.seed + twin)
        for name, part in case.parts(not case.wide, weights, inputs):
            try:
                for tensor in part:
                    yield name, tensor
            except Exception as error:
                yield name, error

    truth = list(tensors(0, 0.0))
    # The mean squared distance of each twin, of the coarse ones and of the fine ones.
    coarse: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    fine: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    exact = {(t.kind, t.path): t.values for _, t in truth if not isinstance(t, Exception)}
    for twin in range(1, twins + 1):
        is_fine = case.wide and twin % 2 == 0
        scale = rounding / _FLOAT64_ROUNDING if is_fine else 1.0
        size = _FLOAT64_MOVE if is_fine else rounding
        squares = fine if is_fine else coarse
        for _, tensor in tensors(twin, size):
            key = None if isinstance(tensor, Exception) else (tensor.kind, tensor.path)
            if key in exact:
                distance = _mean_square(tensor.values, exact[key])
                squares[key].append(distance * scale**2)
    for name, tensor in truth:
        if isinstance(tensor, Exception):
            answer({"failed": name, "reason": _described(tensor)})
            continue
        # Over many steps small differences grow until they are as large as can be, which scaled
        # ones do not know: the twins' course over training is that of the coarse ones.
        rough, smooth = (twin[tensor.kind, tensor.path] for twin in (coarse, fine))
        kinds = (rough,) if tensor.kind == "trajectory" else (rough, smooth)
        floors = [(sum(squares) / len(squares)) ** 0.5 for squares in kinds if squares]
        most = max(rough, default=0.0) ** 0.5
        answer(
            _header(tensor, floor=max(floors, default=0.0), largest=most),
            {"values": tensor.values},
        )


def _mean_square(a: np.ndarray, b: np.ndarray) -> float:
    """Over the elements that are finite in both."""
    difference = a.astype("float64") - b.astype("float64")
    finite = difference[np.isfinite(difference)]
    return float(np.mean(np.square(finite))) if finite.size else 0.0


def _call(
    answer: Send, arrays: dict[str, np.ndarray], function: str, arguments: dict[str, Any]
) -> None:
    from multibackend_lstm.agreement.execution import imported

    imported(function)(**arguments)
    answer({"called": True})


_SERVED: dict[str, Callable[..., None]] = {"describe": _describe, "run": _run, "call": _call}

if __name__ == "__main__":
    main(*sys.argv[1:])

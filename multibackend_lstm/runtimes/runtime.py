"""What every runtime is, on its worker's side: it starts, and computes the parts of a case."""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

#: Sends a header, and arrays if there are any, to the process that asked.
Answer = Callable[..., None]


class Runtime(ABC):
    """Whatever can compute a model, in a process of its own; `serve.py` makes one a process.

    Args:
        file: what it loads; empty for a backend of Keras, which gets a model with each request.
        kind: of device, `"cpu"` or `"gpu"`.
        precision: `"strict"` turns off what computes float32 in less than float32.
        trust: whether functions stored in the file may run.
    """

    #: What of a case it computes: `"prediction"`, `"layers"`, `"training"`.
    parts: tuple[str, ...] = ("prediction",)

    def __init__(self, *, file: str, kind: str, precision: str, trust: bool) -> None:
        self.file, self.kind, self.precision, self.trust = file, kind, precision, trust

    @abstractmethod
    def start(self) -> dict[str, Any]:
        """Start computing.

        Returns:
            `{"device", "versions", "set_switches", "precision", "float64"}`, of which only
            `"device"` and `"versions"` must be there.
        """

    @property
    @abstractmethod
    def requests(self) -> Mapping[str, Callable[..., None]]:
        """The functions that answer requests, by what they `"do"`."""


class InferenceRuntime(Runtime):
    """A runtime that loads a model from its file and only predicts."""

    @abstractmethod
    def infer(self, inputs: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """The outputs, for inputs in the order of the Keras model's, which has them so named."""

    @property
    def requests(self) -> Mapping[str, Callable[..., None]]:
        """It answers what is asked of a backend of Keras too, as far as it can."""
        return {"run": self._run}

    def _run(
        self,
        answer: Answer,
        arrays: dict[str, np.ndarray],
        *,
        inputs: Sequence[Mapping[str, Any]],
        **_: Any,
    ) -> None:
        """Send the outputs by their place, as `"0"`, `"1"`, ...

        Args:
            answer: takes a header and arrays.
            arrays: `input0`, ..., as Keras takes them.
            inputs: `{"name", "dtype"}` of each.
        """
        start = time.perf_counter()
        values = [
            arrays[f"input{place}"].astype(spec["dtype"]) for place, spec in enumerate(inputs)
        ]
        try:
            outputs = self.infer(values, [spec["name"] for spec in inputs])
        except Exception as error:  # what an engine brings up is its answer
            answer({"failed": "prediction", "reason": first_line(error)})
            outputs = []
        for place, x in enumerate(outputs):
            tensor = {"kind": "output", "path": str(place), "dtype": str(x.dtype)}
            answer({"tensor": tensor}, {"values": np.asarray(x)})
        answer({"done": {"seconds": time.perf_counter() - start, "notes": []}})


def first_line(error: BaseException) -> str:
    """The type of an exception and the first line of its message that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    # TensorFlow's converter puts the place in its own code first.
    line = re.sub(r"^.*error: loc\(.*\): ", "", said[0]) if said else "no message"
    return f"{type(error).__name__}: {line}"

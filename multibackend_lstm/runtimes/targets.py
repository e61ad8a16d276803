"""Targets: the names of what can compute a model, such as `torch@cpu` or `onnxruntime:m.onnx`."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from multibackend_lstm import environment
from multibackend_lstm.runtimes.loading import check_file

#: Backends of Keras that a target may name. NumPy and OpenVINO only predict.
TARGET_BACKENDS = (*environment.BACKENDS, "numpy", "openvino")
KINDS = ("cpu", "gpu")
#: In place of one of them: whatever the backend takes by itself.
ANY_DEVICE = "any"
#: The runtimes that load a file, or call a function, in place of Keras building the model; each
#: with its module and class. What they compute is compared with the model's predictions.
FILE_RUNTIMES: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime": "multibackend_lstm.runtimes.artefacts:ONNXRuntime",
        "saved_model": "multibackend_lstm.runtimes.artefacts:SavedModel",
        "litert": "multibackend_lstm.runtimes.artefacts:LiteRT",
        "openvino_model": "multibackend_lstm.runtimes.artefacts:OpenVINOModel",
        "torch_export": "multibackend_lstm.runtimes.artefacts:TorchExport",
        "torch_module": "multibackend_lstm.runtimes.torch_modules:TorchModule",
        "tf_keras": "multibackend_lstm.runtimes.old_keras:TFKeras",
        "keras_file": "multibackend_lstm.runtimes.old_keras:KerasFile",
    }
)
_KERAS_MODELS = "multibackend_lstm.runtimes.keras_models:KerasModels"


class Target(NamedTuple):
    """What computes, as `agree --targets` writes it.

    Attributes:
        backend: a backend of Keras, or a name of `FILE_RUNTIMES`.
        kind: of device, `"cpu"` or `"gpu"`.
        file: the path, or `package.module:function`, that a runtime of `FILE_RUNTIMES` loads.
        label: tells apart two targets that are else the same: `jax@cpu` and `jax@cpu#next`.
        title: what messages call the file, if not by its path.
    """

    backend: str
    kind: str = "cpu"
    file: str = ""
    label: str = ""
    title: str = ""

    def __str__(self) -> str:
        """As it is written on the command line."""
        place = f":{self.title or self.file}" if self.file else f"@{self.kind}"
        return f"{self.backend}{place}" + (f"#{self.label}" if self.label else "")

    @property
    def is_keras(self) -> bool:
        """Whether Keras builds the model there, so that all of it can be compared."""
        return not self.file

    @property
    def runtime(self) -> str:
        """The module and class that serve it."""
        return _KERAS_MODELS if self.is_keras else FILE_RUNTIMES[self.backend]

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read `torch@cpu`, `torch` (which is on the CPU), `jax@cpu#next`, `onnxruntime:m.onnx`.

        Raises:
            ValueError: if a name is unknown, or a file is missing, empty or no regular file.
        """
        rest, _, label = text.strip().partition("#")
        runtime, _, file = rest.partition(":")
        if runtime in FILE_RUNTIMES:
            if not file:
                raise ValueError(
                    f"the target {runtime} needs what it loads, such as {runtime}:PATH. "
                    f"Received {text!r}."
                )
            if runtime != "torch_module" and not Path(file).is_dir():
                try:
                    check_file(file)
                except FileNotFoundError as error:
                    raise ValueError(f"the target {text!r}: {error}.") from error
            return cls(runtime, file=file, label=label)
        backend, _, kind = rest.partition("@")
        if backend not in TARGET_BACKENDS or (kind or "cpu") not in KINDS:
            raise ValueError(
                f"a target is backend@device, with a backend of {', '.join(TARGET_BACKENDS)} and "
                f"a device of {', '.join(KINDS)}, or runtime:file, with a runtime of "
                f"{', '.join(FILE_RUNTIMES)}. Received {text!r}. Write, for example, torch@cpu."
            )
        return cls(backend, kind or "cpu", "", label)

    def interpreter(self, interpreters: Mapping[str, str]) -> str | None:
        """The Python that `interpreters` names for this target; None for the one that runs.

        A target with a label, which is there to be another, takes only what names the label.
        """
        names = [str(self), f"{self.backend}#{self.label}"] if self.label else [self.backend]
        return next((interpreters[name] for name in names if name in interpreters), None)


def check_interpreters(interpreters: Mapping[str, str]) -> None:
    """Refuse a name that is none of a backend, a runtime, or either with a label.

    Raises:
        ValueError: with the unknown names.
    """
    known = (*TARGET_BACKENDS, *FILE_RUNTIMES)
    unknown = [
        name for name in interpreters if name.partition("#")[0].partition("@")[0] not in known
    ]
    if unknown:
        raise ValueError(
            f"`interpreters` names a Python for a backend or runtime of {', '.join(known)}, as in "
            f"torch=PYTHON or jax#next=PYTHON. Received {', '.join(sorted(unknown))}."
        )

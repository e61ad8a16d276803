"""The formats of an export: their files, which backends produce them, and what that needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType

from multibackend_lstm.environment import install_command


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        title: name for people.
        suffix: of the artefact's path; empty for a folder.
        backends: those that can produce it, the preferred one first, with the modules that each
            needs for it.
        runtime: the module that runs it.
        target: the runtime's name in `agree --targets`.
        extra: the extra of this package that brings those modules.
    """

    title: str
    suffix: str
    backends: Mapping[str, tuple[str, ...]]
    runtime: str
    target: str
    extra: str


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "onnx": Format(
            "ONNX",
            ".onnx",
            {"torch": ("onnx",), "tensorflow": ("tf2onnx",)},
            "onnxruntime",
            "onnxruntime",
            "onnx",
        ),
        "saved_model": Format(
            "SavedModel",
            "",
            {"tensorflow": ("tensorflow",), "jax": ("tensorflow",)},
            "tensorflow",
            "saved_model",
            "tensorflow",
        ),
        "litert": Format(
            "LiteRT",
            ".tflite",
            {"tensorflow": ("tensorflow",)},
            "ai_edge_litert",
            "litert",
            "litert",
        ),
        "openvino": Format(
            "OpenVINO",
            ".xml",
            {"torch": ("openvino", "onnx"), "tensorflow": ("openvino",)},
            "openvino",
            "openvino_model",
            "openvino",
        ),
        "torch": Format(
            "torch.export", ".pt2", {"torch": ("torch",)}, "torch", "torch_export", "torch"
        ),
    }
)


def missing_message(module: str, extra: str) -> str:
    """One line that says how to install a module."""
    return f"{module} is not installed: {install_command(extra)}"


def missing(modules: tuple[str, ...]) -> list[str]:
    """Those of the modules that are not installed."""
    return [module for module in modules if find_spec(module) is None]

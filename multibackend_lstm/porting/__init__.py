"""Models from elsewhere, and models for elsewhere.

    from multibackend_lstm import porting

    porting.from_torch("weights.safetensors", model)      # or a module, or a state dict
    porting.check_port(module, model).raise_if_different()
    porting.replace_lambdas("old.h5", "new.keras")
    porting.export(model, "model.onnx", "onnx", check=True)

Three parts that know nothing of each other: `torch_nn/` (weights from and to PyTorch), `legacy/`
(old Keras files) and `exporting/` (artefacts that run without Keras). The names below are loaded
on first use, so that importing this imports neither keras nor a backend.
"""

from typing import TYPE_CHECKING

from multibackend_lstm.lazy_names import lazy_names

if TYPE_CHECKING:
    from multibackend_lstm.porting.exporting.export import (
        ExportError,
        ExportReport,
        check_export,
        export,
    )
    from multibackend_lstm.porting.legacy.migration import Migration, replace_lambdas
    from multibackend_lstm.porting.legacy.model_files import ModelFileError
    from multibackend_lstm.porting.torch_nn.checking import check_port
    from multibackend_lstm.porting.torch_nn.conversion import from_torch, to_torch
    from multibackend_lstm.porting.torch_nn.errors import PortingError
    from multibackend_lstm.porting.torch_nn.port_check import PortCheck

__all__ = [
    "ExportError",
    "ExportReport",
    "Migration",
    "ModelFileError",
    "PortCheck",
    "PortingError",
    "check_export",
    "check_port",
    "export",
    "from_torch",
    "replace_lambdas",
    "to_torch",
]

_MODULE_OF = {
    "ExportError": "exporting.export",
    "ExportReport": "exporting.export",
    "Migration": "legacy.migration",
    "ModelFileError": "legacy.model_files",
    "PortCheck": "torch_nn.port_check",
    "PortingError": "torch_nn.errors",
    "check_export": "exporting.export",
    "check_port": "torch_nn.checking",
    "export": "exporting.export",
    "from_torch": "torch_nn.conversion",
    "replace_lambdas": "legacy.migration",
    "to_torch": "torch_nn.conversion",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)

"""Models from elsewhere, and models for elsewhere.

    from multibackend_lstm import porting

    porting.from_torch("weights.safetensors", model)      # or a module, or a state dict
    porting.check_port(module, model).raise_if_disagrees()
    porting.migrate("old.h5", "new.keras")
    porting.export(model, "model.onnx", "onnx", check=True)

The public names of `torch_weights/` (weights from and to PyTorch), `migration/` (old Keras files)
and `export/` (artefacts that run without Keras), loaded on first use, so that importing this
imports neither keras nor a backend.
"""

from typing import TYPE_CHECKING

from multibackend_lstm.lazy_names import lazy_names

if TYPE_CHECKING:
    from multibackend_lstm.export.exports import (
        ExportError,
        ExportReport,
        check_export,
        export,
    )
    from multibackend_lstm.migration.migration import Migration, migrate, replace_lambdas
    from multibackend_lstm.runtimes.loading import ModelFileError
    from multibackend_lstm.torch_weights.checking import check_port
    from multibackend_lstm.torch_weights.conversion import from_torch, to_torch
    from multibackend_lstm.torch_weights.errors import PortingError

__all__ = [
    "ExportError",
    "ExportReport",
    "Migration",
    "ModelFileError",
    "PortingError",
    "check_export",
    "check_port",
    "export",
    "from_torch",
    "migrate",
    "replace_lambdas",
    "to_torch",
]

_MODULE_OF = {
    "ExportError": ".export.exports",
    "ExportReport": ".export.exports",
    "Migration": ".migration.migration",
    "ModelFileError": ".runtimes.loading",
    "PortingError": ".torch_weights.errors",
    "check_export": ".export.exports",
    "check_port": ".torch_weights.checking",
    "export": ".export.exports",
    "from_torch": ".torch_weights.conversion",
    "migrate": ".migration.migration",
    "replace_lambdas": ".migration.migration",
    "to_torch": ".torch_weights.conversion",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)

"""Models in other forms: artefacts that run without Keras.

    from multibackend_lstm import porting

    report = porting.export("model.keras", "model.onnx", "onnx", check=True)

Read it in this order: `exporting.py`, `export_formats.py`, then what runs in processes of its own,
`export_worker.py`, `exporters.py` and `artefact_worker.py`.
The names below are loaded on first use, so that importing this imports neither keras nor a backend.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multibackend_lstm.porting.exporting import (
        ExportError,
        ExportReport,
        check_export,
        export,
    )

__all__ = [
    "ExportError",
    "ExportReport",
    "check_export",
    "export",
]

_MODULE_OF = {
    "ExportError": "exporting",
    "ExportReport": "exporting",
    "check_export": "exporting",
    "export": "exporting",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

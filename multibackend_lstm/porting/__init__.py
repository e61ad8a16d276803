"""Models from elsewhere: legacy Keras files.

The names below are loaded on first use, so that importing this imports neither keras nor a backend.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multibackend_lstm.porting.legacy import Migration, replace_lambdas
    from multibackend_lstm.porting.model_files import ModelFileError

__all__ = [
    "Migration",
    "ModelFileError",
    "replace_lambdas",
]

_MODULE_OF = {
    "Migration": "legacy",
    "ModelFileError": "model_files",
    "replace_lambdas": "legacy",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

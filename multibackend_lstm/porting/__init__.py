"""Models from elsewhere, and models for elsewhere.

    from multibackend_lstm import porting

    migration = porting.replace_lambdas("old.h5", "new.keras")

`legacy/` holds what opens old Keras files. The names below are loaded on first use, so that
importing this imports neither keras nor a backend.
"""

from typing import TYPE_CHECKING

from multibackend_lstm.lazy_names import lazy_names

if TYPE_CHECKING:
    from multibackend_lstm.porting.legacy.migration import Migration, replace_lambdas
    from multibackend_lstm.porting.legacy.model_files import ModelFileError

__all__ = ["Migration", "ModelFileError", "replace_lambdas"]

_MODULE_OF = {
    "Migration": "legacy.migration",
    "ModelFileError": "legacy.model_files",
    "replace_lambdas": "legacy.migration",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)

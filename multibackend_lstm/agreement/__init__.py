"""Does one model give the same numbers on every backend?

The public names are loaded on first use (PEP 562), so that importing this imports no keras.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multibackend_lstm.agreement.same_start import fit_order, initialize

__all__ = ["fit_order", "initialize"]

_MODULE_OF = {"fit_order": "same_start", "initialize": "same_start"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

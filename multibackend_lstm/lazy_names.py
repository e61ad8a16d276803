"""Public names of a package that are imported on first use (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from multibackend_lstm.keras_import import warn_of_late_choice


def lazy_names(
    package: str, module_of: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package.

    Args:
        package: the package's `__name__`.
        module_of: for each public name, the module below the package that has it; with a dot
            before its name, one beside the package.
    """

    def getattribute(name: str) -> Any:
        if name in module_of:
            warn_of_late_choice()
            return getattr(import_module(f".{module_of[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def directory() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return getattribute, directory

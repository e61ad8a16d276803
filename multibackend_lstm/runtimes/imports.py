"""Objects by the name of their place."""

from importlib import import_module
from typing import Any


def imported(name: str) -> Any:
    """The object that `package.module:name` or `module:Class.attribute` names."""
    module, _, attributes = name.partition(":")
    found = import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found

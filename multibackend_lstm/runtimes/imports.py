"""Objects by the name of their place."""

import difflib
import sys
from importlib import import_module
from typing import Any

from multibackend_lstm.runtimes.errors import CaseError


def imported(name: str) -> Any:
    """The object that `package.module:name` or `module:Class.attribute` names.

    Raises:
        CaseError: if there is no such module, or no such name in it.
    """
    module, _, attributes = name.partition(":")
    found: Any = imported_module(module)
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            similar = difflib.get_close_matches(attribute, dir(found), n=1)
            raise CaseError(
                f"{name!r} names {attribute!r}, which {module!r} has not."
                + (f" Did you mean {similar[0]!r}?" if similar else "")
            )
        found = getattr(found, attribute)
    return found


def imported_module(name: str) -> Any:
    """The module of a name.

    Raises:
        CaseError: if there is none.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise CaseError(
            f"there is no module {error.name!r} for {sys.executable}: run this where it can be "
            "imported, or set PYTHONPATH."
        ) from error

"""How mkdocstrings is to read this package's docstrings (`extensions:` in mkdocs.yml).

Griffe, which reads them, knows the section `Examples:`, and takes Keras's `Call arguments:` for a
remark. Here the first keeps the singular of the style, and the second becomes a list of arguments.
"""

from typing import Any

import griffe

_SECTIONS = {
    "Example:": "Examples: Example",
    "Call arguments:": "Other Parameters: Call arguments",
}


class Sections(griffe.Extension):
    """Give the two sections the names that Griffe knows."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Rename the sections of one docstring."""
        if obj.docstring is None:
            return
        lines = obj.docstring.value.split("\n")
        obj.docstring.value = "\n".join(_SECTIONS.get(line.strip(), line) for line in lines)

"""Leaving out of a process what Keras would import only to ask for its types."""

import importlib.abc
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import ModuleSpec
from typing import Any


@contextmanager
def hidden(names: Collection[str]) -> Iterator[None]:
    """Within it modules that nobody has imported cannot be, though they are seen to be installed.

    Keras and TensorFlow import what they find only to ask whether a value is of a type of it:
    TensorFlow takes 410 MB, JAX 107. Keras remembers the answer, so this is for a process of this
    package's own in which no code of others runs.

    Args:
        names: of modules, not of modules within packages.
    """
    finder = _Finder(frozenset(names))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def without_jax() -> AbstractContextManager[None]:
    """`hidden` for JAX where the backend is torch or TensorFlow; Keras computes with it on NumPy.

    TensorFlow, which Keras imports on any backend, imports JAX for one of its converters.
    """
    return hidden(("jax",) if os.environ.get("KERAS_BACKEND") in ("torch", "tensorflow") else ())


class _Finder:
    """Finds what the other finders do, and a loader that loads nothing.

    None in `sys.modules` would do as much, but Keras takes what has a name there for imported.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """The place of one of these modules; None for others, which other finders find."""
        if fullname not in self.names:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = _LoadsNothing()
                return spec
        return None


class _LoadsNothing(importlib.abc.Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        raise ModuleNotFoundError(f"{spec.name!r} is hidden here", name=spec.name)

    def exec_module(self, module: Any) -> None:
        raise NotImplementedError

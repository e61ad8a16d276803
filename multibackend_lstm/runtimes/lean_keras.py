"""Keras saves and copies models without importing TensorFlow, where it runs on another backend."""

import sys
from typing import Any


class _IfImported:
    """A module that counts as available only where something else has imported it."""

    def __init__(self, module: Any) -> None:
        self._module = module

    @property
    def available(self) -> bool:
        return self._module.name in sys.modules and bool(self._module.available)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def spare_tensorflow() -> None:
    """Have Keras not import TensorFlow only to see whether a value is one of its types.

    Keras does so for every value that it serializes or reads from HDF5: 410 MB and some seconds on
    torch or JAX. No value is of a type that nobody has imported. For processes of this package's
    own: it changes Keras for as long as they run.
    """
    from keras.src.legacy.saving import json_utils  # of HDF5 files
    from keras.src.saving import serialization_lib

    for module in (serialization_lib, json_utils):
        found = getattr(module, "tf", None)
        # Another Keras may ask otherwise, or not at all. (`found.available` would import it.)
        if hasattr(type(found), "available") and "name" in vars(found):
            setattr(module, "tf", _IfImported(found))  # noqa: B010  (mypy knows no such attribute)

"""All that differs among backends: one file a backend, the same function names in each."""

from importlib import import_module
from types import ModuleType

import keras

# Backends without a file of their own compute like the NumPy backend: eagerly, one call at a time.
_FILES = {"tensorflow": "tensorflow", "torch": "torch", "jax": "jax"}


def active() -> ModuleType:
    """The file of the backend that Keras runs on."""
    return import_module(f"{__name__}.{_FILES.get(keras.backend.backend(), 'numpy')}")

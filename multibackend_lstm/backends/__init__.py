"""What layers compute with that differs among backends.

`Backend` in `base.py` is the contract and the portable implementation. A backend that does
something in another way has a subclass in a file of its own.
"""

from importlib import import_module

import keras

from multibackend_lstm.backends.base import Backend, KernelCall, Refused, Weights

__all__ = ["Backend", "KernelCall", "Refused", "Weights", "active"]

_SUBCLASSES = {"tensorflow": "TensorFlowBackend", "torch": "TorchBackend", "jax": "JAXBackend"}
_instances: dict[str, Backend] = {}


def active() -> Backend:
    """That of the backend that Keras runs on."""
    name = keras.backend.backend()
    if name not in _instances:  # torch.compile can follow a look-up, and no import
        _instances[name] = _new(name)
    return _instances[name]


def _new(name: str) -> Backend:
    if name not in _SUBCLASSES:
        return Backend()
    backend: Backend = getattr(import_module(f"{__name__}.{name}"), _SUBCLASSES[name])()
    return backend

"""Which backends are installed, which one to use, and how to run Python on another."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType

#: Backends by name, in the order of preference, with the module each needs. The extra that
#: brings a backend has its name: `pip install 'multibackend-lstm[jax]'`.
BACKENDS: Mapping[str, str] = MappingProxyType(
    {"jax": "jax", "torch": "torch", "tensorflow": "tensorflow"}
)
# Wheels that provide a module under another name than its own.
_DISTRIBUTIONS = {"tensorflow": ("tensorflow", "tensorflow-cpu")}


class BackendError(Exception):
    """A backend that is unknown or not installed, with the remedy."""


def installed_backends() -> list[str]:
    """Names of the installed backends, the preferred one first."""
    return [name for name, module in BACKENDS.items() if find_spec(module) is not None]


def missing_backend_message(name: str) -> str:
    """One line that says how to install a backend."""
    return f"{name} is not installed: pip install 'multibackend-lstm[{name}]'"


def version_of(package: str) -> str | None:
    """The installed version of a package, `None` if it is not installed."""
    for distribution in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def choose_backend(option: str | None = None) -> str:
    """The backend to run on: the option, else `KERAS_BACKEND`, else the first one installed.

    Raises:
        BackendError: if that backend is unknown or not installed, or none is installed.
    """
    name = option or os.environ.get("KERAS_BACKEND")
    installed = installed_backends()
    if not name:
        if not installed:
            raise BackendError(
                "no backend is installed: pip install 'multibackend-lstm[jax]' "
                "(or [torch], [tensorflow], or [all] to compare them)"
            )
        return installed[0]
    if name not in BACKENDS:
        source = "--backend" if option else "KERAS_BACKEND"
        raise BackendError(f"{source} must be one of {', '.join(BACKENDS)}. Received {name!r}.")
    if name not in installed:
        raise BackendError(missing_backend_message(name))
    return name


def set_backend(name: str) -> None:
    """Make Keras run on a backend in this process.

    Raises:
        BackendError: if Keras is imported already, on another backend.
    """
    if "keras" in sys.modules:
        import keras

        if keras.backend.backend() != name:
            raise BackendError(
                f"Keras already runs on {keras.backend.backend()} in this process, "
                f"and cannot change to {name}: start a new process."
            )
    os.environ["KERAS_BACKEND"] = name


def run_module(
    backend: str, module: str, arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` on a backend, in a process of its own."""
    variables = {
        **os.environ,
        "KERAS_BACKEND": backend,
        # TensorFlow's start-up messages would hide an error among them.
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
    }
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )

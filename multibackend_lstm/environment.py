"""Which backends are installed, which one to use, and how to run Python on another."""

import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.resources import files
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from packaging.specifiers import SpecifierSet

from multibackend_lstm import __version__

#: Backends by name, in the order of preference, with the module each needs. The extra that
#: brings a backend has its name: `pip install 'multibackend-lstm[jax]'`.
BACKENDS: Mapping[str, str] = MappingProxyType(
    {"jax": "jax", "torch": "torch", "tensorflow": "tensorflow"}
)
# Wheels that provide a module under another name than its own.
_DISTRIBUTIONS = {
    "keras": ("keras", "keras-nightly"),
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
}

# Keras imports TensorFlow where it is installed, and its start-up messages would hide others.
QUIET_TENSORFLOW = ("TF_CPP_MIN_LOG_LEVEL", "3")


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
    os.environ.setdefault(*QUIET_TENSORFLOW)


def run_module(
    backend: str, module: str, arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` on a backend, in a process of its own."""
    variables = dict([QUIET_TENSORFLOW]) | os.environ | {"KERAS_BACKEND": backend}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def versions() -> dict[str, str]:
    """Versions of Python, this package, Keras, NumPy and the installed backends."""
    found = {package: version_of(package) for package in ("keras", "numpy", *BACKENDS)}
    return {
        "python": platform.python_version(),
        "multibackend_lstm": __version__,
        **{package: version for package, version in found.items() if version is not None},
    }


def probe(backend: str) -> dict[str, Any]:
    """Devices and precision settings of a backend, or the error it starts with.

    Returns:
        `{"devices": [...], "precision": {...}}` or `{"error": message}`.
    """
    process = run_module(backend, "multibackend_lstm.backends.probe", [])
    if process.returncode != 0:
        last_line = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"{backend} does not start: {last_line}"}
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return report


def known_problems() -> list[dict[str, Any]]:
    """Known upstream problems of the installed versions and backends.

    Returns:
        The entries of `known_problems.toml` that apply, each with its `reference`, such as
        `keras#20902`.
    """
    problems = tomllib.loads((files("multibackend_lstm") / "known_problems.toml").read_text())
    installed = set(installed_backends())
    applying = []
    for problem in problems["problem"]:
        version = version_of(problem["package"])
        if (
            version is not None
            and SpecifierSet(problem["versions"]).contains(version, prereleases=True)
            and installed & set(problem["backends"])
        ):
            *_, repository, _, number = problem["upstream"].split("/")
            applying.append({**problem, "reference": f"{repository}#{number}"})
    return applying

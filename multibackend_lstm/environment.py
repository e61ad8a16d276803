"""Which backends are installed, and which one to use."""

import difflib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from packaging.specifiers import SpecifierSet

from multibackend_lstm import __version__

#: Backends by name, in the order of preference, with the module each needs. The extra that
#: brings a backend has its name: `install_command("jax")`.
BACKENDS: Mapping[str, str] = MappingProxyType(
    {"jax": "jax", "torch": "torch", "tensorflow": "tensorflow"}
)
# What Keras takes for a backend beside these. Whether they are installed Keras says itself.
_OTHERS_OF_KERAS = ("numpy", "openvino")
_OTHERS_OF_KERAS_3_16 = ("mlx", "paddle")
# What Keras writes into its configuration file when it is first imported, whatever it runs on.
_WRITTEN_BY_KERAS = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}
_OTHER_NAMES = {"tf": "tensorflow", "pytorch": "torch"}
# Wheels that provide a module under another name than its own.
_DISTRIBUTIONS = {
    "keras": ("keras", "keras-nightly"),
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
}

# Keras imports TensorFlow where it is installed, and its start-up messages would hide others.
QUIET_TENSORFLOW = ("TF_CPP_MIN_LOG_LEVEL", "3")


class BackendError(ImportError):
    """A backend that is unknown or not installed, with the remedy.

    An `ImportError`, since it is what `import keras` then ends in.
    """


class CouldNotRunError(Exception):
    """Something needed does not start, does not run or is not there: a command's status 3."""


class NotInstalledError(CouldNotRunError):
    """Something optional that is needed is not installed; the message has the remedy."""


class MissingBackendError(BackendError, NotInstalledError):
    """A backend that Keras knows and that is not installed here, with the remedy."""


def installed_backends() -> list[str]:
    """Names of the installed backends, the preferred one first."""
    return [name for name, module in BACKENDS.items() if find_spec(module) is not None]


def install_command(extra: str) -> str:
    """How to install what an extra of this package brings."""
    return f"pip install 'multibackend-lstm[{extra}]' (in a clone: pip install '.[{extra}]')"


def missing_backend_message(name: str) -> str:
    """One line that says how to install a backend."""
    return f"{name} is not installed: {install_command(name)}"


def version_of(package: str) -> str | None:
    """The installed version of a package, `None` if it is not installed."""
    for distribution in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def keras_backends() -> tuple[str, ...]:
    """What `KERAS_BACKEND` may be with the installed Keras."""
    names = (*BACKENDS, *_OTHERS_OF_KERAS)
    version = version_of("keras")
    if version and SpecifierSet(">=3.16.0.dev0").contains(version, prereleases=True):
        names += _OTHERS_OF_KERAS_3_16
    return names


def keras_configuration() -> tuple[Path, str | None]:
    """Keras's configuration file, and the backend that a user has chosen in it.

    The file is found and read as Keras does it (`keras/src/backend/config.py`). None where it
    names no backend, cannot be parsed, or is word by word what Keras wrote by itself: that says
    "tensorflow" whatever Keras ran on, and is nobody's choice.
    """
    home = os.path.expanduser("~")
    folder = os.environ.get("KERAS_HOME")
    if folder is None:
        folder = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    path = Path(os.path.expanduser(os.path.join(folder, "keras.json")))
    text = path.read_text() if path.exists() else "{}"
    try:
        settings = json.loads(text)
    except ValueError:
        return path, None
    if not isinstance(settings, dict) or text == json.dumps(_WRITTEN_BY_KERAS, indent=4):
        return path, None
    return path, settings.get("backend")


def choose_backend(option: str | None = None, *, known: Sequence[str] = tuple(BACKENDS)) -> str:
    """The backend to run on: the one rule of the command line and of the import of keras.

    The option, else `KERAS_BACKEND`, else what Keras's configuration file names: a choice of the
    user, which is never replaced by another. Where nothing is chosen, the first one installed of
    `BACKENDS`.

    Args:
        option: the user's choice on a command line.
        known: the names to accept; those of `BACKENDS` must be installed too.

    Raises:
        BackendError: if the chosen backend is unknown or not installed, or none is installed.
    """
    installed = installed_backends()
    name, source = option, "--backend"
    if not name:
        name, source = os.environ.get("KERAS_BACKEND"), "KERAS_BACKEND"
    if not name:
        path, name = keras_configuration()
        source = f'"backend" in {path}'
        if not name:
            if not installed:
                raise MissingBackendError(
                    f"no backend is installed: {install_command('jax')}, "
                    "or [torch], [tensorflow], or [all] to compare them"
                )
            return installed[0]
    _check_known(name, source, known)
    if name in BACKENDS and name not in installed:
        raise MissingBackendError(f"{source} is {name!r}, and {missing_backend_message(name)}")
    return name


def check_variable() -> None:
    """Refuse a `KERAS_BACKEND` that Keras does not know, where other processes get their own.

    Raises:
        BackendError: if `KERAS_BACKEND` is set to no name of a backend.
    """
    name = os.environ.get("KERAS_BACKEND")
    if name:
        _check_known(name, "KERAS_BACKEND", keras_backends())


def _check_known(name: str, source: str, known: Sequence[str]) -> None:
    if name in known:
        return
    lowered = str(name).lower()
    lowered = _OTHER_NAMES.get(lowered, lowered)
    meant = difflib.get_close_matches(lowered, known, n=1)
    raise BackendError(
        f"{source} must be one of {', '.join(known)}. Received {name!r}"
        + (f": did you mean {meant[0]!r}?" if meant else ".")
    )


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


def versions() -> dict[str, str]:
    """Versions of Python, this package, Keras, NumPy and the installed backends."""
    found = {package: version_of(package) for package in ("keras", "numpy", *BACKENDS)}
    return {
        "python": platform.python_version(),
        "multibackend_lstm": __version__,
        **{package: version for package, version in found.items() if version is not None},
    }

"""The errors of everything that cannot be ported."""

from multibackend_lstm.environment import NotInstalledError
from multibackend_lstm.runtimes.loading import ModelFileError


class PortingError(ValueError):
    """Weights do not fit, or cannot be read; nothing was changed, and the message says why."""


class WeightFileError(PortingError, ModelFileError):
    """A file of weights that is not there, damaged or unsafe."""


class MappingError(PortingError):
    """A `mapping` that names what there is not."""


class MissingPackageError(PortingError, NotInstalledError):
    """A package that a kind of file needs is not installed."""

"""The error of everything that cannot be ported."""


class PortingError(ValueError):
    """Weights do not fit, or cannot be read; nothing was changed, and the message says why."""

"""What a user gave is at fault, wherever it runs."""


class InputError(ValueError):
    """A model, a file, inputs or an argument that cannot be used as they are, with the remedy."""


class CaseError(InputError):
    """A model, or inputs, that cannot be compared as they are; the message has the remedy."""

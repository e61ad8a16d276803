"""Names of a step model's states."""


def next_of(state: str) -> str:
    """The output that a state becomes: the input `lstm_h` comes out as `next_lstm_h`."""
    return f"next_{state}"

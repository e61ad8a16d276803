"""The JAX backend."""

from collections.abc import Callable
from typing import Any

from multibackend_lstm.backends import numpy


def concatenate_steps(call_steps: Callable[[int, int], Any], time: int, size: int) -> Any:
    """As in `backends/numpy.py`; JAX knows `time` except in an export with symbolic sizes."""
    if not isinstance(time, int):
        raise ValueError(
            f"`steps_per_call={size}` needs to know the number of time steps, and this export "
            f"leaves it open (time={time}). Give the time axis of the exported input a size, or "
            "set `steps_per_call` to None before exporting."
        )
    return numpy.concatenate_steps(call_steps, time, size)

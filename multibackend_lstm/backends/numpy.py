"""The NumPy and OpenVINO backends, and what is the same on every backend with eager loops."""

from collections.abc import Callable
from typing import Any

from keras import ops, tree


def concatenate_steps(call_steps: Callable[[int, int], Any], time: int, size: int) -> Any:
    """Concatenate along time what `call_steps(start, stop)` returns for `size` steps at a time.

    Args:
        call_steps: returns a nested structure of `(batch, stop - start, ...)` tensors.
        time: number of steps, an integer (known whenever the code runs, traced or not).
        size: steps a call; the last call may have fewer.
    """
    starts = range(0, max(time, 1), size)  # no steps: one empty call gives the output's form
    parts = [call_steps(start, min(start + size, time)) for start in starts]
    if len(parts) == 1:
        return parts[0]
    return tree.map_structure(lambda *xs: ops.concatenate(xs, axis=1), *parts)

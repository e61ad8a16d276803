"""The NumPy and OpenVINO backends, and what other backends do in the same way."""

from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor, ops, tree


def concatenate_steps(call_steps: Callable[[int, int], Any], time: int, size: int) -> Any:
    """Concatenate along time what `call_steps(start, stop)` returns for `size` steps at a time.

    Args:
        call_steps: returns a nested structure of `(batch, stop - start, ...)` tensors.
        time: number of steps.
        size: steps a call; the last call may have fewer.
    """
    starts = range(0, max(time, 1), size)  # no steps: one empty call gives the output's form
    parts = [call_steps(start, min(start + size, time)) for start in starts]
    if len(parts) == 1:
        return parts[0]
    return tree.map_structure(lambda *xs: ops.concatenate(xs, axis=1), *parts)


def convolve(layer: keras.layers.Layer, x: KerasTensor) -> KerasTensor:
    """Apply a built channels-last `Conv1D`, `Conv2D` or `Conv3D` that has no activation.

    A backend may compute the same by a faster formulation. `benchmarks/convolution.py` compares
    them.

    Args:
        layer: the convolution.
        x: `(batch, *axes, features)`.

    Returns:
        `(batch, *new_axes, filters)`.
    """
    return layer(x)


def devices() -> list[str]:
    """Names of the devices the backend sees."""
    return ["CPU"]


def precision() -> dict[str, str]:
    """Settings that decide how exactly float32 is computed."""
    return {}

"""The NumPy and OpenVINO backends, and what other backends do in the same way."""

from collections.abc import Callable
from typing import Any, NoReturn

import keras
import numpy as np
from keras import KerasTensor, ops, tree

from multibackend_lstm.backends import Refused


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


def nonempty(x: Any) -> Any:
    """`x`, with a sample of zeros if it has none and the backend cannot convolve none."""
    return x


def matmul(x: Any, kernel: Any) -> Any:
    """Matrix product in the dtype of both, float64 where `float64_refusal()` is None."""
    return ops.matmul(x, kernel)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent in the dtype of `x`, float64 where `float64_refusal()` is None."""
    return ops.tanh(x)


def float64_refusal(statistics: bool = False) -> str | None:
    """Why layers cannot compute in float64, None if they can.

    Args:
        statistics: whether they normalise by means and variances.
    """
    return "Keras computes float64 in float32 there"


def concrete(x: Any) -> np.ndarray | None:
    """The values of a tensor, or None where they are not known yet (inside a trace)."""
    return ops.convert_to_numpy(x)


def scan(
    step: Callable[[list[Any], list[Any]], tuple[list[Any], list[Any]]],
    states: list[Any],
    xs: list[Any],
    reverse: bool = False,
) -> tuple[list[Any], list[Any]]:
    """A loop over the first axis of the tensors `xs`.

    Args:
        step: `step(states, x) -> (states, y)`, where `x` and `y` are lists of tensors.
        states: list of tensors, of the same shapes and dtypes after each step.
        xs: list of tensors of shape `(time, ...)`, one step at least.
        reverse: whether to start from the end.

    Returns:
        `(states, ys)`: the states after the last step, and each `y` stacked, `(time, ...)`.
    """
    # One unstack for all steps: the gradient of indexing is a tensor as long as the sequence.
    steps = list(zip(*(ops.unstack(x, axis=0) for x in xs), strict=True))
    ys = []
    for x in reversed(steps) if reverse else steps:
        states, y = step(states, list(x))
        ys.append(y)
    if reverse:
        ys.reverse()
    return states, [ops.stack(y, axis=0) for y in zip(*ys, strict=True)]


def valid_steps_first() -> bool:
    """Whether `lstm` and `gru` need each sample's valid steps first: there are no kernels."""
    return False


def supports_jit(time: int | None) -> bool:
    """Whether `compile(jit_compile="auto")` may compile a recurrent layer."""
    return True


def lstm(inputs: Any, states: Any, valid: Any, weights: Any, *, options: Any) -> NoReturn:
    """Refused: there is no LSTM in NumPy."""
    raise Refused("this backend has no LSTM kernel")


def gru(inputs: Any, states: Any, valid: Any, weights: Any, *, options: Any) -> NoReturn:
    """Refused: there is no GRU in NumPy."""
    raise Refused("this backend has no GRU kernel")

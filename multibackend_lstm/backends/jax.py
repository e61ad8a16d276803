"""The JAX backend."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from multibackend_lstm.backends import Options, Weights, numpy, recurrence


def concatenate_steps(call_steps: Callable[[int, int], Any], time: int, size: int) -> Any:
    """As in `backends/numpy.py`; JAX knows `time` except in an export with symbolic sizes."""
    if not isinstance(time, int):
        raise ValueError(
            f"`steps_per_call={size}` needs to know the number of time steps, and this export "
            f"leaves it open (time={time}). Give the time axis of the exported input a size, or "
            "set `steps_per_call` to None before exporting."
        )
    return numpy.concatenate_steps(call_steps, time, size)


def concrete(x: Any) -> np.ndarray | None:
    """As in `backends/numpy.py`."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


def scan(step: Any, states: Any, xs: Any, reverse: bool = False) -> Any:
    """As in `backends/numpy.py`."""
    return lax.scan(step, states, xs, reverse=reverse)


@jax.custom_vjp
def _lstm(z: Any, h: Any, c: Any, kernel: Any, valid: Any) -> Any:
    return recurrence.lstm_forward(scan, z, h, c, kernel, valid)[0]


def _lstm_forward(z: Any, h: Any, c: Any, kernel: Any, valid: Any) -> Any:
    results, saved = recurrence.lstm_forward(scan, z, h, c, kernel, valid)
    return results, (h, c, kernel, valid, results[0], *saved)


def _lstm_backward(saved: Any, gradients: Any) -> Any:
    return (*recurrence.lstm_backward(scan, saved, gradients), None)


_lstm.defvjp(_lstm_forward, _lstm_backward)


@jax.custom_vjp
def _gru(z: Any, h: Any, kernel: Any, bias: Any, valid: Any) -> Any:
    return recurrence.gru_forward(scan, z, h, kernel, bias, valid)[0]


def _gru_forward(z: Any, h: Any, kernel: Any, bias: Any, valid: Any) -> Any:
    results, saved = recurrence.gru_forward(scan, z, h, kernel, bias, valid)
    return results, (h, kernel, valid, results[0], *saved)


def _gru_backward(saved: Any, gradients: Any) -> Any:
    return (*recurrence.gru_backward(scan, saved, gradients), None)


_gru.defvjp(_gru_forward, _gru_backward)


def _valid_steps(lengths: Any, time: int) -> Any:
    """Boolean `(time, batch, 1)`, or None without lengths."""
    return None if lengths is None else (jnp.arange(time)[:, None] < lengths)[..., None]


def lstm(
    inputs: Any, states: list[Any], lengths: Any, weights: Weights, *, options: Options
) -> tuple[Any, Any, list[Any], str]:
    """See `backends/__init__.py`: `lax.scan` with a backward pass of its own."""
    kernel, recurrent_kernel, bias = weights
    z = jnp.matmul(jnp.swapaxes(inputs, 0, 1), kernel)
    if bias is not None:
        z = z + bias
    hs, h, c = _lstm(z, *states, recurrent_kernel, _valid_steps(lengths, inputs.shape[1]))
    return jnp.swapaxes(hs, 0, 1), h, [h, c], "lax.scan"


def gru(
    inputs: Any, states: list[Any], lengths: Any, weights: Weights, *, options: Options
) -> tuple[Any, Any, list[Any], str]:
    """See `backends/__init__.py`: `lax.scan` with a backward pass of its own."""
    kernel, recurrent_kernel, bias = weights
    input_bias, recurrent_bias = jnp.zeros((2, kernel.shape[1]), kernel.dtype)
    if bias is not None:
        input_bias, recurrent_bias = bias
    z = jnp.matmul(jnp.swapaxes(inputs, 0, 1), kernel) + input_bias
    valid = _valid_steps(lengths, inputs.shape[1])
    hs, h = _gru(z, *states, recurrent_kernel, recurrent_bias, valid)
    return jnp.swapaxes(hs, 0, 1), h, [h], "lax.scan"

"""The JAX backend."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from jax.experimental import rnn
from keras import KerasTensor, ops

from multibackend_lstm.backends import Options, Weights, numpy, recurrence
from multibackend_lstm.backends.numpy import matmul as matmul
from multibackend_lstm.backends.numpy import nonempty as nonempty


def concatenate_steps(call_steps: Callable[[int, int], Any], time: int, size: int) -> Any:
    """As in `backends/numpy.py`; JAX knows `time` except in an export with symbolic sizes."""
    if not isinstance(time, int):
        raise ValueError(
            f"`steps_per_call={size}` needs to know the number of time steps, and this export "
            f"leaves it open (time={time}). Give the time axis of the exported input a size, or "
            "set `steps_per_call` to None before exporting."
        )
    return numpy.concatenate_steps(call_steps, time, size)


def convolve(layer: keras.layers.Layer, x: KerasTensor) -> KerasTensor:
    """As in `backends/numpy.py`; three axes as one 2D convolution.

    XLA's 3D convolution is slow on CPUs. The kernel's slices along the first axis go to the
    features: the inputs of all slices side by side, convolved over the other two axes.
    """
    if not isinstance(layer, keras.layers.Conv3D) or layer.groups > 1:
        return numpy.convolve(layer, x)
    size, stride, rate = (
        setting[0] for setting in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    x = ops.cast(x, layer.compute_dtype)
    batch, depth, height, width, features = ops.shape(x)
    span = (size - 1) * rate + 1
    if layer.padding == "same":
        missing = max((-(-depth // stride) - 1) * stride + span - depth, 0)
        x = ops.pad(x, ((0, 0), (missing // 2, missing - missing // 2), *[(0, 0)] * 3))
        depth += missing
    positions = (depth - span) // stride + 1
    slices = [
        x[:, start : start + (positions - 1) * stride + 1 : stride]
        for start in range(0, span, rate)
    ]
    x = ops.reshape(
        ops.concatenate(slices, axis=-1), (batch * positions, height, width, size * features)
    )
    kernel = ops.transpose(ops.convert_to_tensor(layer.kernel), (1, 2, 0, 3, 4))
    x = ops.conv(
        x,
        ops.reshape(kernel, (*layer.kernel_size[1:], size * features, layer.filters)),
        strides=layer.strides[1:],
        padding=layer.padding,
        data_format="channels_last",
        dilation_rate=layer.dilation_rate[1:],
    )
    x = ops.reshape(x, (batch, positions, *ops.shape(x)[1:]))
    return ops.add(x, layer.bias) if layer.use_bias else x


def tanh(x: Any) -> Any:
    """As in `backends/numpy.py`; that of Keras computes float64 in float32 (Keras 3.15)."""
    return jnp.tanh(x)


def float64_refusal(statistics: bool = False) -> str | None:
    """As in `backends/numpy.py`."""
    if jax.config.jax_enable_x64:
        return "Keras normalises in float32 there" if statistics else None
    return (
        "JAX's 64-bit types are turned off, `jax.config.update('jax_enable_x64', True)` at the "
        "start turns them on"
    )


def concrete(x: Any) -> np.ndarray | None:
    """As in `backends/numpy.py`."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


def scan(step: Any, states: Any, xs: Any, reverse: bool = False) -> Any:
    """As in `backends/numpy.py`."""
    return lax.scan(step, states, xs, reverse=reverse)


@jax.custom_vjp
def _lstm(*arguments: Any) -> Any:
    return recurrence.lstm(scan, *arguments)[:3]


def _lstm_forward(*arguments: Any) -> Any:
    hs, h, c, cs = recurrence.lstm(scan, *arguments)
    return (hs, h, c), (arguments, hs, cs)


def _lstm_backward(saved: Any, gradients: Any) -> Any:
    arguments, hs, cs = saved
    return (*recurrence.lstm_gradient(scan, arguments, hs, cs, gradients), None)  # for `valid`


_lstm.defvjp(_lstm_forward, _lstm_backward)


@jax.custom_vjp
def _gru(*arguments: Any) -> Any:
    return recurrence.gru(scan, *arguments)


def _gru_forward(*arguments: Any) -> Any:
    hs, h = recurrence.gru(scan, *arguments)
    return (hs, h), (arguments, hs)


def _gru_backward(saved: Any, gradients: Any) -> Any:
    arguments, hs = saved
    return (*recurrence.gru_gradient(scan, arguments, hs, gradients), None)  # for `valid`


_gru.defvjp(_gru_forward, _gru_backward)

# Outside of a jitted function JAX would compile the loop anew at every call.
_jitted_lstm, _jitted_gru = jax.jit(_lstm), jax.jit(_gru)


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def valid_steps_first() -> bool:
    """Whether `lstm` and `gru` need each sample's valid steps first: cuDNN does."""
    return _on_gpu()


def supports_jit(time: int | None) -> bool:
    """Whether `compile(jit_compile="auto")` may compile a recurrent layer: JAX always does."""
    return True


def _time_first(x: Any) -> Any:
    return jnp.swapaxes(x, 0, 1)


def _mask_steps(valid: Any) -> Any:
    """Boolean `(time, batch, 1)`, or None."""
    return None if valid is None else valid.T[..., None]


def _cudnn_lstm(
    inputs: Any, states: list[Any], valid: Any, weights: Weights
) -> tuple[Any, Any, list[Any], str]:
    """As `lstm`, by cuDNN."""
    kernel, recurrent_kernel, bias = weights
    (batch, time, features), units = inputs.shape, recurrent_kernel.shape[0]
    bias = jnp.zeros(kernel.shape[1], kernel.dtype) if bias is None else bias
    parts = (kernel.T, recurrent_kernel.T, bias, jnp.zeros_like(bias))
    lengths = jnp.full(batch, time) if valid is None else jnp.sum(valid, axis=1)
    # cuDNN refuses a sample without a step: that one takes a step, and its states are put back.
    sequence, *results = rnn.lstm(
        inputs,
        *(state.astype(inputs.dtype)[None] for state in states),
        weights=jnp.concatenate([part.ravel() for part in parts]),
        seq_lengths=jnp.maximum(lengths, 1).astype("int32"),
        input_size=features,
        hidden_size=units,
        num_layers=1,
        dropout=0.0,
        bidirectional=False,
    )
    has_step = lengths[:, None] > 0
    h, c = (
        jnp.where(has_step, new[0].astype(old.dtype), old)
        for new, old in zip(results, states, strict=True)
    )
    return sequence, h, [h, c], "cuDNN"


def lstm(
    inputs: Any, states: list[Any], valid: Any, weights: Weights, *, options: Options
) -> tuple[Any, Any, list[Any], str]:
    """See `backends/__init__.py`: cuDNN on a GPU, else `lax.scan` with its own backward pass."""
    if _on_gpu() and options.cudnn and inputs.dtype == "float32" and inputs.shape[0]:
        return _cudnn_lstm(inputs, states, valid, weights)
    kernel, recurrent_kernel, bias = weights
    bias = jnp.zeros(kernel.shape[1], kernel.dtype) if bias is None else bias
    hs, h, c = _jitted_lstm(
        _time_first(inputs), *states, kernel, recurrent_kernel, bias, _mask_steps(valid)
    )
    return _time_first(hs), h, [h, c], "lax.scan"


def gru(
    inputs: Any, states: list[Any], valid: Any, weights: Weights, *, options: Options
) -> tuple[Any, Any, list[Any], str]:
    """See `backends/__init__.py`: `lax.scan` with a backward pass of its own."""
    kernel, recurrent_kernel, bias = weights
    biases = jnp.zeros((2, kernel.shape[1]), kernel.dtype) if bias is None else bias
    hs, h = _jitted_gru(
        _time_first(inputs), *states, kernel, recurrent_kernel, *biases, _mask_steps(valid)
    )
    return _time_first(hs), h, [h], "lax.scan"

"""The JAX backend."""

from collections.abc import Callable
from typing import Any

import jax
import keras
from keras import KerasTensor, ops

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


def devices() -> list[str]:
    """Names of the devices the backend sees."""
    return [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]


def precision() -> dict[str, str]:
    """Settings that decide how exactly float32 is computed."""
    return {
        "float32 matmul": str(jax.config.jax_default_matmul_precision or "default"),
        "64-bit types": str(jax.config.jax_enable_x64),
    }

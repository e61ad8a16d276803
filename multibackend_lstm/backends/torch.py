"""The PyTorch backend."""

import keras
import torch
from keras import KerasTensor, ops

from multibackend_lstm.backends import numpy
from multibackend_lstm.backends.numpy import concatenate_steps

__all__ = ["concatenate_steps", "convolve", "devices", "precision"]


def convolve(layer: keras.layers.Layer, x: KerasTensor) -> KerasTensor:
    """As in `backends/numpy.py`; one axis as a 2D convolution of height 1.

    PyTorch has a channels-last memory format for 2D convolutions and none for 1D, where the data
    is copied to channels-first and back.
    """
    if not isinstance(layer, keras.layers.Conv1D) or layer.padding == "causal":
        return numpy.convolve(layer, x)
    x = ops.cast(x, layer.compute_dtype)
    x = ops.conv(
        # The transposed view of channels-last data is what PyTorch calls channels-last.
        ops.transpose(ops.expand_dims(x, 1), (0, 3, 1, 2)),
        ops.expand_dims(layer.kernel, 0),
        strides=(1, *layer.strides),
        padding=layer.padding,
        data_format="channels_first",
        dilation_rate=(1, *layer.dilation_rate),
    )
    x = ops.squeeze(ops.transpose(x, (0, 2, 3, 1)), 1)
    return ops.add(x, layer.bias) if layer.use_bias else x


def devices() -> list[str]:
    """Names of the devices the backend sees."""
    names = ["CPU"]
    names += [
        f"cuda:{index} {torch.cuda.get_device_name(index)}"
        for index in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def precision() -> dict[str, str]:
    """Settings that decide how exactly float32 is computed."""
    return {
        "float32 matmul": torch.get_float32_matmul_precision(),
        "TF32 in CUDA matmul": str(torch.backends.cuda.matmul.allow_tf32),
        "TF32 in cuDNN": str(torch.backends.cudnn.allow_tf32),
    }

"""The TensorFlow backend."""

import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor, ops, tree

from multibackend_lstm.backends import numpy


def concatenate_steps(call_steps: Callable[[Any, Any], Any], time: Any, size: int) -> Any:
    """As in `backends/numpy.py`; where a graph does not know `time`, in a `tf.while_loop`."""
    if isinstance(time, int):
        return numpy.concatenate_steps(call_steps, time, size)

    def swap_batch_and_time(x: tf.Tensor) -> tf.Tensor:
        return tf.transpose(x, (1, 0, *range(2, x.shape.rank)))

    # The first call gives the structure and dtypes that the loop has to know beforehand.
    # A TensorArray concatenates along its first axis, so its parts have time first.
    first = call_steps(0, tf.minimum(size, time))
    parts = [swap_batch_and_time(x) for x in tree.flatten(first)]
    calls = tf.maximum((time + size - 1) // size, 1)
    arrays = [
        tf.TensorArray(
            part.dtype, calls, infer_shape=False, element_shape=(None, *part.shape[1:])
        ).write(0, part)
        for part in parts
    ]

    def body(call: tf.Tensor, arrays: list[tf.TensorArray]) -> Any:
        start = call * size
        outputs = tree.flatten(call_steps(start, tf.minimum(start + size, time)))
        return call + 1, [
            array.write(call, swap_batch_and_time(x))
            for array, x in zip(arrays, outputs, strict=True)
        ]

    _, arrays = tf.while_loop(lambda call, _: call < calls, body, (1, arrays))
    return tree.pack_sequence_as(first, [swap_batch_and_time(array.concat()) for array in arrays])


def convolve(layer: keras.layers.Layer, x: KerasTensor) -> KerasTensor:
    """As in `backends/numpy.py`; of nothing, nothing.

    TensorFlow's own convolution of an empty batch keeps the number of features it came with
    (TensorFlow 2.21, outside XLA).
    """
    if x.shape[0] == 0:
        return ops.zeros((0, *layer.compute_output_shape(x.shape)[1:]), layer.compute_dtype)
    return numpy.convolve(layer, x)


def devices() -> list[str]:
    """Names of the devices the backend sees."""
    return [
        device.name.removeprefix("/physical_device:")
        for device in tf.config.list_physical_devices()
    ]


def precision() -> dict[str, str]:
    """Settings that decide how exactly float32 is computed."""
    return {
        "TF32 on GPU": str(tf.config.experimental.tensor_float_32_execution_enabled()),
        "oneDNN": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
    }

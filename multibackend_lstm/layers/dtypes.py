"""What layers that compute do about the dtype of their input and of their policy."""

from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor, ops

from multibackend_lstm import backends


def to_compute_dtype(layer: keras.layers.Layer, x: KerasTensor) -> KerasTensor:
    """The tensor in the layer's compute dtype: integers and booleans too, which Keras leaves.

    Args:
        layer: the layer whose input it is.
        x: tensor of any shape; floating, integer or boolean.

    Raises:
        ValueError: for complex numbers and strings.
    """
    dtype = keras.backend.standardize_dtype(x.dtype)
    if dtype == "string" or dtype.startswith("complex"):
        raise ValueError(
            f"{layer.name}: the input must hold real numbers. Received dtype {dtype}. "
            "Put real and imaginary parts into features of their own, or encode text as numbers."
        )
    return ops.cast(x, layer.compute_dtype)


def check_float64(
    layer: keras.layers.Layer, *activations: Callable[[Any], Any], statistics: bool = False
) -> None:
    """Raise a ValueError if the layer is to compute in float64 and the backend would not.

    Args:
        layer: the layer.
        *activations: functions of it that must return float64 for float64.
        statistics: whether it normalises by means and variances.
    """
    if layer.compute_dtype != "float64":
        return
    refused = backends.active().float64_refusal(statistics)
    for activation in activations if refused is None else ():
        dtype = keras.backend.standardize_dtype(activation(ops.zeros((1, 1), "float64")).dtype)
        if dtype != "float64":
            name = getattr(activation, "__name__", type(activation).__name__)
            refused = f"the activation {name} of a float64 tensor is {dtype} on this backend"
    if refused is not None:
        raise ValueError(
            f"{layer.name}: the dtype policy float64 cannot be kept on the "
            f"{keras.backend.backend()} backend: {refused}. Use the float32 policy, or the "
            "TensorFlow backend, where float64 is float64 everywhere."
        )

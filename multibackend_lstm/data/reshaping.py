"""Flattening and unflattening arrays and tensors outside a model."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from multibackend_lstm.data.padding import pad_sequences


def flatten_features(x: Any) -> Any:
    """Merge all axes after time: `(batch, time, *axes)` to `(batch, time, prod(axes))`.

    The same as the layer `FlattenFeatures`, bit for bit, for data that is flattened before the
    model.

    Example:
        >>> flatten_features(np.zeros((20, 10, 3, 5))).shape    # (batch, time, channels, features)
        (20, 10, 15)

    Args:
        x: a NumPy array or a TensorFlow, PyTorch or JAX tensor of shape `(batch, time, *axes)`,
            or a list of arrays `(time, *axes)` that may differ in time.

    Returns:
        For an array or tensor, one of the same kind and dtype: a view where the memory layout
        allows (and `x` itself if its rank is 3). For a list, `(padded, mask)`: an array of shape
        `(batch, longest time, prod(axes))`, zero after the end of each sequence, and a boolean
        array `(batch, longest time)`, True on the steps there are. Pass it as `mask=` to a
        layer.

    Raises:
        ValueError: for fewer than 3 axes, an empty list, or sequences that differ in their axes
            after time.
        TypeError: for anything else, such as a symbolic `keras.Input`.
    """
    if isinstance(x, (list, tuple)):
        return _pad(x)
    shape = _shape(x, "flatten_features")
    if len(shape) < 3:
        raise ValueError(
            "flatten_features: `x` must have at least 3 axes, (batch, time, ..., features). "
            f"Received shape {shape}. Add the missing axis, for instance with `x[None]` for one "
            "series."
        )
    return x if len(shape) == 3 else _reshape(x, (*shape[:2], math.prod(shape[2:])))


def unflatten_features(x: Any, axes: Sequence[int], mask: Any = None) -> Any:
    """Split the last axis: `(batch, time, prod(axes))` to `(batch, time, *axes)`.

    The exact inverse of `flatten_features`.

    Example:
        >>> unflatten_features(np.zeros((20, 10, 15)), (3, 5)).shape
        (20, 10, 3, 5)

    Args:
        x: a NumPy array or a TensorFlow, PyTorch or JAX tensor of shape
            `(batch, time, features)`.
        axes: the sizes of the axes, such as `(channels, features)`.
        mask: the mask that `flatten_features` returned for a list; then the list is returned.

    Returns:
        An array or tensor of the kind and dtype of `x`, a view where the memory layout allows;
        with `mask`, a list of arrays `(time, *axes)`.

    Raises:
        ValueError: if `x` has not 3 axes, `axes` do not multiply to its last one, or `mask` is
            not a right-padded `(batch, time)` mask.
        TypeError: if `x` is neither an array nor a tensor.
    """
    shape = _shape(x, "unflatten_features")
    axes = tuple(axes)
    if len(shape) != 3:
        raise ValueError(
            "unflatten_features: `x` must have 3 axes, (batch, time, features). "
            f"Received shape {shape}."
        )
    if math.prod(axes) != shape[2] or any(axis < 0 for axis in axes):
        raise ValueError(
            f"unflatten_features: the product of `axes` must be the size of the last axis of `x`, "
            f"{shape[2]}. Received axes={axes}, whose product is {math.prod(axes)}."
        )
    split = x if axes == shape[2:] else _reshape(x, (*shape[:2], *axes))
    if mask is None:
        return split
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != shape[:2] or (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError(
            "unflatten_features: `mask` must be the (batch, time) mask that flatten_features "
            "returned, True up to the end of each sequence and False after it. Received shape "
            f"{mask.shape} for `x` of shape {shape}."
        )
    return [series[:length] for series, length in zip(split, mask.sum(axis=1), strict=True)]


def _pad(sequences: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    if any(np.ndim(sequence) < 2 for sequence in sequences):
        raise ValueError(
            "flatten_features: the sequences of a list must have the form (time, ..., features). "
            f"Received shapes {', '.join(str(np.shape(sequence)) for sequence in sequences)}."
        )
    padded, lengths = pad_sequences(sequences, dtype=None)
    mask = np.arange(padded.shape[1]) < lengths[:, None]
    return padded.reshape(*mask.shape, math.prod(padded.shape[2:])), mask


def _shape(x: Any, function: str) -> tuple[int, ...]:
    # By name, as an import of the three would load those that are not in use.
    packages = {base.__module__.partition(".")[0] for base in type(x).__mro__}
    if not packages & {"numpy", "torch", "jax", "jaxlib", "tensorflow"}:
        raise TypeError(
            f"{function}: `x` must be a NumPy array or a TensorFlow, PyTorch or JAX tensor. "
            f"Received {type(x).__module__}.{type(x).__qualname__}. Inside a model use the layer "
            "multibackend_lstm.FlattenFeatures."
        )
    return tuple(x.shape)


def _reshape(x: Any, shape: tuple[int, ...]) -> Any:
    if type(x).__module__.startswith("tensorflow"):
        import tensorflow as tf  # its tensors have no method for it

        return tf.reshape(x, shape)
    return x.reshape(shape)

"""Lengths of padded sequences, as the steps that are valid."""

import math
from typing import Any

import keras
from keras import KerasTensor, ops

from multibackend_lstm import backends


def positions(x: Any) -> Any:
    """The number of each step, int32 `(batch, time)`, for a tensor of that shape."""
    return ops.cumsum(ops.ones_like(x, dtype="int32"), axis=1) - 1


def not_a_number(x: Any) -> Any:
    """NaN in the shape and dtype of a floating tensor; on torch `ops.full_like` reads it back."""
    return ops.zeros_like(x) + math.nan


def steps_within(owner: str, sequences: KerasTensor, lengths: Any) -> tuple[Any, Any]:
    """The steps before each sample's end.

    Args:
        owner: name of the layer for messages.
        sequences: `(batch, time, *axes)`, padded behind.
        lengths: integers `(batch,)`.

    Returns:
        Booleans: the valid steps `(batch, time)`, and the samples `(batch, 1)` whose length is
        outside of `[0, time]`, of which each step counts as valid; None where there are none. Where
        the values are not known (in a traced function, on a GPU with torch) such a sample is NaN.

    Raises:
        ValueError: for lengths of another shape or dtype, and where the values are known, for
            those outside of `[0, time]`.
    """
    lengths = ops.convert_to_tensor(lengths)
    check_whole(owner, "lengths", lengths, "integers", booleans=False)
    checked = _check(owner, lengths, sequences)
    lengths = ops.cast(lengths, "int32")[:, None]
    each_step = sequences[(slice(None), slice(None), *[0] * (len(sequences.shape) - 2))]
    valid = positions(each_step) < lengths
    if checked:
        return valid, None
    time = ops.sum(ops.ones_like(each_step, dtype="int32"), axis=1, keepdims=True)
    unfit = ops.logical_or(lengths < 0, lengths > time)
    return ops.logical_or(valid, unfit), unfit


def check_whole(owner: str, argument: str, x: Any, rule: str, booleans: bool = True) -> None:
    """Raise a ValueError unless the dtype is one of integers (or of booleans)."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    if "int" in dtype or (booleans and dtype == "bool"):
        return
    raise ValueError(
        f"{owner}: `{argument}` must hold {rule}. Received dtype {dtype}. "
        "Compare or cast it first, for instance `mask > 0` or `lengths.astype('int32')`."
    )


def _check(owner: str, lengths: Any, sequences: KerasTensor) -> bool:
    """Whether the values are known, and then in the range: else an error."""
    batch, time = sequences.shape[:2]
    rule = f"{owner}: `lengths` must hold one integer a sample, of shape (batch,)"
    if len(lengths.shape) != 1 or (
        None not in (batch, lengths.shape[0]) and lengths.shape[0] != batch
    ):
        raise ValueError(
            f"{rule}. Received shape {tuple(lengths.shape)} for an input of shape "
            f"{tuple(sequences.shape)}. For lengths of shape (batch, 1), pass `lengths[:, 0]`."
        )
    values = None if isinstance(lengths, KerasTensor) else backends.active().concrete(lengths)
    if values is None or time is None:
        return False  # while a function is traced, or where the values are on a GPU
    if values.size and (values.min() < 0 or values.max() > time):
        raise ValueError(
            f"{rule}, and each in [0, time], here [0, {time}]. Received lengths from "
            f"{values.min()} to {values.max()}. Count the valid steps of the padded or cut "
            "series, not of the original one."
        )
    return True

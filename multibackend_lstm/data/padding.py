"""Series of unequal length as one array, padded behind."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def pad_sequences(
    sequences: Sequence[Any],
    *,
    length: int | None = None,
    value: float = 0.0,
    dtype: Any = "float32",
) -> tuple[np.ndarray, np.ndarray]:
    """Put series of unequal length into one array, with their lengths.

    Both go to a model of `build_model(..., lengths=True)`, to `LengthMasking`, or as `lengths=` to
    `LSTM` and `GRU`. (`keras.utils.pad_sequences` pads integers in front; this pads real numbers
    of any rank behind.)

    Example:
        >>> x, lengths = pad_sequences([np.ones((4, 3, 5)), np.ones((7, 3, 5))])
        >>> x.shape, lengths
        ((2, 7, 3, 5), array([4, 7], dtype=int32))

    Args:
        sequences: arrays `(time, *axes)` that share all axes but time.
        length: the time steps of the result; by default those of the longest series.
        value: what stands behind the end of a series.
        dtype: of the result; None keeps that of the series.

    Returns:
        `(padded, lengths)`: an array `(batch, time, *axes)`, and int32 `(batch,)`.

    Raises:
        ValueError: for no series, series without a time axis or that differ in the axes after it,
            what is not numbers, and a series longer than `length`.
    """
    owner = "pad_sequences"
    if not isinstance(sequences, (list, tuple)) and not hasattr(sequences, "__getitem__"):
        sequences = list(sequences)
    arrays = [np.asarray(sequence) for sequence in sequences]
    shapes = ", ".join(str(array.shape) for array in arrays[:8])
    shapes += ", ..." if len(arrays) > 8 else ""
    if not arrays:
        raise ValueError(f"{owner}: the list of sequences is empty.")
    if any(array.ndim == 0 for array in arrays) or len({a.shape[1:] for a in arrays}) > 1:
        raise ValueError(
            f"{owner}: the sequences must have the form (time, ..., features) and share all axes "
            f"but time. Received shapes {shapes}."
        )
    kinds = {str(array.dtype) for array in arrays if array.dtype.kind not in "biuf"}
    if kinds:
        raise ValueError(
            f"{owner}: the sequences must hold numbers. Received dtype {', '.join(sorted(kinds))}."
        )
    lengths = np.array([len(array) for array in arrays], dtype="int32")
    longest = int(lengths.max())
    if length is not None and length < longest:
        raise ValueError(
            f"{owner}: `length` must be at least that of the longest series, {longest}. Received "
            f"{length}. Cut the series first, for instance to `series[-{length}:]`."
        )
    time = longest if length is None else length
    dtype = np.result_type(*arrays) if dtype is None else dtype
    padded = np.full((len(arrays), time, *arrays[0].shape[1:]), value, dtype=dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded, lengths

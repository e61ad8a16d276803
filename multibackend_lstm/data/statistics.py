"""Means and variances of what is valid in padded sequences, in float64."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

# Numbers that are converted to float64 at a time.
CHUNK = 4_000_000


def to_numpy(x: Any) -> np.ndarray:
    """An array of a tensor, on whatever device, or of anything else that NumPy takes."""
    if hasattr(x, "detach"):  # PyTorch's
        x = x.detach().cpu()
    return np.asarray(x)


def valid_statistics(
    owner: str,
    data: Any,
    axis: Sequence[int],
    *,
    mask: Any = None,
    mask_value: float | None = None,
    sizes: tuple[int, ...] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the variance of all valid entries, for each entry of some axes.

    Parts are joined by the formula of Chan, Golub and LeVeque (1983), which loses no digits where
    the mean is large.

    Args:
        owner: name of the layer for messages.
        data: `(batch, time, *axes)` array or tensor; or an iterable of such batches (or of tuples
            that begin with one), or of series `(time, *axes)`.
        axis: negative, ascending: the axes with statistics of their own.
        mask: for an array, booleans `(batch, time)` or with more axes.
        mask_value: entries of all features that equal it are left out.
        sizes: what the sizes of `axis` must be.

    Returns:
        `(mean, variance)`, float64 arrays of the sizes of `axis`; 0 for what never varies.

    Raises:
        ValueError: see `Normalization.adapt`.
    """
    count, mean, squares = np.float64(0), np.float64(0), np.float64(0)
    for x, valid in _parts(owner, data, axis, mask, mask_value):
        found = tuple(x.shape[a] for a in axis)
        if sizes is not None and found != sizes:
            raise ValueError(
                f"{owner}: `data` must have the sizes {sizes} along axis={tuple(axis)}, as what "
                f"came before. Received shape {x.shape}."
            )
        sizes = found
        others = tuple(a for a in range(x.ndim) if a - x.ndim not in axis)
        n = valid.sum(axis=others, dtype="float64")
        total = count + n
        part_mean = x.sum(axis=others) / np.maximum(n, 1)
        deviations = np.where(valid, x - np.expand_dims(part_mean, others), 0)
        delta, share = part_mean - mean, n / np.maximum(total, 1)
        squares = squares + np.square(deviations).sum(axis=others) + delta**2 * count * share
        mean, count = mean + delta * share, total
    if not np.all(count):
        raise ValueError(
            f"{owner}: `data` has no valid entry"
            + (" for some of the features." if np.any(count) else ".")
            + " Give recordings with values that neither `mask` nor `mask_value` leaves out."
        )
    variance = squares / count
    # Of what never varies rounding leaves a little.
    still = np.sqrt(variance) <= 100 * np.finfo("float64").eps * np.abs(mean)
    return np.asarray(mean), np.where(still, 0, variance)


def _parts(
    owner: str, data: Any, axis: Sequence[int], mask: Any, mask_value: float | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of the data in float64, with zeros where nothing is valid, and what is valid."""
    if mask is not None and not hasattr(data, "shape"):
        raise ValueError(f"{owner}: `mask` belongs to one array `data`, not to several.")
    for batch in _batches(data):
        whole = to_numpy(batch[0] if isinstance(batch, tuple) else batch)
        if whole.dtype.kind not in "biuf" or whole.ndim < 1 - min(axis):
            raise ValueError(
                f"{owner}: `data` must hold real numbers of shape (batch, time, ..., features), or "
                "several such arrays or series (time, ..., features). Received "
                f"{type(batch).__name__} of dtype {whole.dtype} and shape {whole.shape}."
            )
        valid: Any = np.broadcast_to(np.True_, whole.shape)
        if mask is not None:
            mask = to_numpy(mask)
            if not 2 <= mask.ndim <= whole.ndim or mask.shape != whole.shape[: mask.ndim]:
                raise ValueError(
                    f"{owner}: the mask must have the first axes of the data, (batch, time) at "
                    f"least. Received shape {mask.shape} for data of shape {whole.shape}."
                )
            mask = mask.astype(bool).reshape(*mask.shape, *[1] * (whole.ndim - mask.ndim))
            valid = np.broadcast_to(mask, whole.shape)
        rows = max(1, CHUNK // max(1, math.prod(whole.shape[1:])))
        for start in range(0, len(whole), rows):
            x, chosen = whole[start : start + rows], valid[start : start + rows]
            if mask_value is not None:
                chosen = chosen & (x != mask_value).any(axis=-1, keepdims=True)
            x = np.where(chosen, x, 0).astype("float64")
            bad = np.argwhere(~np.isfinite(x))
            if len(bad):
                position = (int(bad[0][0]) + start, *map(int, bad[0][1:]))
                raise ValueError(
                    f"{owner}: `data` holds {x[tuple(bad[0])]} at {position} of shape "
                    f"{whole.shape}, and {len(bad)} such values. Mark missing ones by a number, "
                    "for instance `numpy.nan_to_num(x, nan=-1e9)`, and give it as `mask_value` "
                    "(in build_model `masking`)."
                )
            yield x, chosen


def _batches(data: Any) -> Iterable[Any]:
    if hasattr(data, "shape"):
        return [data]
    if hasattr(data, "on_epoch_end"):  # a keras.utils.PyDataset, which iterates without end
        return (data[index] for index in range(len(data)))
    return data

"""A recording: what one device measured in one go, `(time, *axes)`, with its names and times."""

import math
import mmap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from numbers import Real
from os import PathLike, fspath
from typing import Any

import numpy as np

from multibackend_lstm.data.statistics import to_numpy

# Bytes of a recording that are looked at in one go.
CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Recording:
    """The samples of one recording, as `Layout.recording` makes it of a table.

    Args:
        values: `(time, *axes)`, of integers, booleans or real numbers; may be memory-mapped.
        timestamps: `(time,)`, ascending numbers or datetime64, or None.
        channels: names of the channels, the axis before the last; empty where there are none.
        features: names of the last axis, likewise.
        name: for messages and as the default group.
        path: of the `.npy` file that `values` maps; a copy in another process opens it again.
    """

    values: np.ndarray
    timestamps: np.ndarray | None = None
    channels: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    name: str | None = None
    path: str | None = None

    def __len__(self) -> int:
        return len(self.values)

    def column(self, position: tuple[int, ...]) -> str:
        """What an entry of a step is called in messages: `ankle:x`, or its indices."""
        names = (self.channels, self.features)[2 - len(position) :] if len(position) <= 2 else ()
        if names and all(len(part) > at for part, at in zip(names, position, strict=True)):
            return ":".join(part[at] for part, at in zip(names, position, strict=True))
        return str([int(at) for at in position])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "values": self.values.shape} if self.path else vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["path"]:
            state = {**state, "values": open_npy(state["path"]).reshape(state["values"])}
        vars(self).update(state)


def open_npy(path: str | PathLike[str]) -> np.ndarray:
    """Map a `.npy` file into memory, for reading; never unpickles.

    Raises:
        ValueError: for a file that is not one, or that holds objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{fspath(path)} cannot be mapped as a .npy file of numbers: {error}"
        ) from error


def as_recording(owner: str, given: Any, name: str) -> Recording:
    """A recording of what a user gives: one already, an array, or the path of a `.npy` file.

    Raises:
        ValueError: for tables, fewer than 2 axes, and what is not numbers.
    """
    if isinstance(given, Recording):
        recording = given
        if type(given.values) not in (np.ndarray, np.memmap):
            recording = replace(given, values=with_nan(given.values))
    elif isinstance(given, (str, PathLike)):
        if not fspath(given).endswith(".npy"):
            raise ValueError(
                f"{owner}: recording {name} must be an array, a Recording or the path of a .npy "
                f"file. Received {fspath(given)!r}. A Parquet file takes a layout: "
                'layout("time, ankle:x|y|z").recording(path).'
            )
        recording = Recording(open_npy(given), path=fspath(given))
    elif hasattr(given, "columns"):
        raise ValueError(
            f"{owner}: recording {name} is a table, {type(given).__name__}. Say what its columns "
            'are: layout("time, ankle:x|y|z, leg:x|y|z").recording(table).'
        )
    else:
        recording = Recording(with_nan(given))
    values = recording.values
    if values.dtype.kind not in "biuf" or values.ndim < 2:
        raise ValueError(
            f"{owner}: recording {name} must hold real numbers of shape (time, ..., features), "
            f"such as (time, channels, features). Received dtype {values.dtype}, shape "
            f"{values.shape}." + (" Pass `x[:, None]`." if values.ndim == 1 else "")
        )
    return recording


def with_nan(given: Any) -> np.ndarray:
    """An array, NaN (of dates NaT, of objects None) where a masked one of NumPy is masked."""
    if isinstance(given, np.ma.MaskedArray):
        masked: Any = given
        if masked.dtype.kind in "biuf":
            given = masked.astype(np.result_type(masked, "float32")).filled(np.nan)
        elif masked.dtype.kind in "mM":
            given = masked.filled(np.array("NaT", masked.dtype))
        else:
            given = masked.astype(object).filled(None)
    return to_numpy(given)


def as_timestamps(owner: str, given: Any, steps: int, name: str) -> np.ndarray:
    """Times of the steps as ascending numbers or datetime64, `(time,)`.

    Raises:
        ValueError: for what is neither, another length, and times that are missing or do not
            ascend, with the row.
    """
    times = np.asarray(given)
    if times.dtype.kind in "OUST":
        times = _parsed(owner, times, name)
    if times.shape != (steps,) or times.dtype.kind not in "iufMm":
        raise ValueError(
            f"{owner}: the timestamps of recording {name} must be {steps} numbers, dates or ISO "
            f"8601 strings, one a step. Received dtype {times.dtype}, shape {times.shape}."
        )
    missing = np.isnat(times) if times.dtype.kind in "mM" else ~np.isfinite(times)
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(
            f"{owner}: recording {name}, row {row}: the timestamp is {times[row]}. Leave out rows "
            "without one."
        )
    wrong = times[1:] <= times[:-1]
    if wrong.any():
        row = int(wrong.argmax()) + 1
        same = times[row] == times[row - 1]
        raise ValueError(
            f"{owner}: recording {name}, row {row}: the timestamp {times[row]} "
            + (
                "is that of the row before, and two samples of one moment are no two steps. Keep "
                "one of them, or average."
                if same
                else f"comes after {times[row - 1]}, of the row before. Sort the rows by time, or "
                "make a recording of each part."
            )
        )
    return times


def _parsed(owner: str, times: np.ndarray, name: str) -> np.ndarray:
    """Strings and dates of Python or pandas as datetime64, those with a time zone in UTC."""
    if times.dtype.kind == "O":
        times = np.array([_without_zone(value) for value in times.ravel().tolist()], object)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's answer to a time zone, which it would drop
        try:
            found = times.astype("datetime64")
        except (ValueError, TypeError, Warning):
            for row, value in enumerate(times.ravel().tolist()):
                try:
                    np.datetime64(value)
                except (ValueError, TypeError, Warning) as error:
                    raise ValueError(
                        f"{owner}: recording {name}, row {row}: the timestamp {value!r} is no date "
                        "in the form of ISO 8601 without a time zone, 2026-01-31T12:00:00.25."
                    ) from error
            raise
    if np.datetime_data(found.dtype)[0] == "Y":  # what NumPy makes of "1"
        raise ValueError(
            f"{owner}: the timestamps of recording {name} are years, if they are dates. Received "
            f"{times.ravel().tolist()[0]!r} first. Pass numbers as numbers, not as text."
        )
    return found


def _without_zone(value: Any) -> Any:
    if getattr(value, "tzinfo", None) is None or not hasattr(value, "astimezone"):
        return value
    if hasattr(value, "to_datetime64"):  # of pandas, with its nanoseconds
        return value.to_datetime64()
    return value.astimezone(UTC).replace(tzinfo=None)


def gap_starts(owner: str, times: np.ndarray, max_gap: Any, name: str) -> np.ndarray:
    """Rows that come later than `max_gap` after the row before.

    Raises:
        ValueError: for a `max_gap` that is not a positive number, or duration beside dates.
    """
    if times.dtype.kind in "mM":
        duration = np.timedelta64("NaT", "s")
        if isinstance(max_gap, (timedelta, np.timedelta64)):
            duration = getattr(max_gap, "to_timedelta64", lambda: np.timedelta64(max_gap))()
        # Months and years have no fixed length, and a number without a unit has none at all.
        is_fixed = np.datetime_data(duration.dtype)[0] not in ("generic", "M", "Y")
        if not is_fixed or not duration > np.timedelta64(0, "s"):
            raise ValueError(
                f"{owner}: `max_gap` must be a positive duration, such as numpy.timedelta64(50, "
                f"'ms') or datetime.timedelta, as the timestamps of recording {name} are dates. "
                f"Received {max_gap!r}."
            )
        return np.flatnonzero(np.diff(times) > duration) + 1
    # A duration of NumPy counts as an integer too.
    is_number = isinstance(max_gap, Real) and not isinstance(max_gap, (bool, np.timedelta64))
    limit = float(max_gap) if is_number else math.nan
    if not limit > 0:
        raise ValueError(
            f"{owner}: `max_gap` must be a positive number, in the unit of the timestamps, as "
            f"those of recording {name} are numbers. Received {max_gap!r}."
        )
    if times.dtype.kind == "f":
        # 0.1 + 0.2 is not 0.3: a gap as long as the limit, but for the rounding of both times.
        rounding = 2 * np.spacing(np.maximum(np.abs(times[1:]), np.abs(times[:-1])))
        wide = times.astype("float64")
        return np.flatnonzero(np.diff(wide) > limit + rounding.astype("float64")) + 1
    # Ascending integers: their difference in unsigned arithmetic is right, whatever the type.
    unsigned = times.astype("int64" if times.dtype.kind == "i" else "uint64").astype("uint64")
    return np.flatnonzero(np.diff(unsigned) > limit) + 1


def chunks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of parts of an array, of which no more than a few are in memory."""
    rows = max(1, CHUNK // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        yield start, values[start : start + rows]
        release(values)


def mapping_of(values: np.ndarray) -> mmap.mmap | None:
    """The memory map that an array is a view of, if it can only be read."""
    base: Any = values
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return None
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def release(values: np.ndarray) -> None:
    """Give back the memory of a mapped file's pages; they are read again when needed."""
    mapping = mapping_of(values)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)

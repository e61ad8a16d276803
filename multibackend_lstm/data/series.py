"""Recordings as windows are cut from them: with targets, groups, times and without gaps."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np

from multibackend_lstm.data.recordings import (
    Recording,
    as_recording,
    as_timestamps,
    chunks,
    gap_starts,
    with_nan,
)
from multibackend_lstm.data.runs import Run, Span

Missing = Literal["error", "drop", "mask"] | float | None


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number, and not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a real number, and not a boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass
class Series:
    """A recording as windows are cut from it: its inputs, targets and gaps.

    `inputs` has one entry, "inputs", but for recordings of several.
    """

    name: str
    inputs: dict[str, Recording]
    target: Any
    group: Hashable
    timestamps: np.ndarray | None
    intervals: list[tuple[int, int]] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        # A target that is an input's values is one with it in a copy too, mapped files above all.
        own = [key for key, part in self.inputs.items() if part.values is self.target]
        return {**vars(self), "target": own[0] if own else self.target}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(self.target, str):
            self.target = self.inputs[self.target].values

    @property
    def steps(self) -> int:
        """Steps of the recording."""
        return len(next(iter(self.inputs.values())))


def as_series(
    owner: str, recordings: Any, targets: Any, own_values: bool, groups: Any, timestamps: Any
) -> list[Series]:
    single = isinstance(recordings, (Recording, str, PathLike)) or hasattr(recordings, "shape")
    if isinstance(recordings, Mapping):
        names = list(map(str, recordings))
        given = list(recordings.values())
    else:
        given = [recordings] if single else list(recordings)
        names = [
            fspath(one)
            if isinstance(one, (str, PathLike))
            else str(getattr(one, "name", None) or at)
            for at, one in enumerate(given)
        ]
    if not given:
        raise ValueError(f"{owner}: `recordings` is empty.")
    if len({*names}) < len(names):
        names = [f"{name} ({at})" for at, name in enumerate(names)]
    keys = list(recordings) if isinstance(recordings, Mapping) else None

    def each(argument: str, value: Any) -> list[Any]:
        if value is None:
            return [None] * len(given)
        if single:
            return [value]
        if isinstance(value, Mapping):
            if keys is None or {*value} != {*keys}:
                raise ValueError(
                    f"{owner}: the dictionary `{argument}` must have the names of the recordings, "
                    f"{', '.join(names[:8])}. Received {', '.join(map(str, [*value][:8]))}."
                )
            return [value[key] for key in keys]
        if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != len(given):
            raise ValueError(
                f"{owner}: `{argument}` must have one entry for each of the {len(given)} "
                f"recordings. Received {len(value) if hasattr(value, '__len__') else repr(value)}"
                + (" of them." if hasattr(value, "__len__") else ".")
            )
        return list(value)

    found = []
    per_recording = zip(
        names,
        given,
        each("targets", targets),
        each("groups", groups),
        each("timestamps", timestamps),
        strict=True,
    )
    for name, one, target, group, times in per_recording:
        parts = one if isinstance(one, Mapping) else {"inputs": one}
        inputs = {
            str(key): as_recording(owner, part, name if len(parts) < 2 else f"{name}, input {key}")
            for key, part in parts.items()
        }
        if not inputs or {len(part) for part in inputs.values()} != {
            len(next(iter(inputs.values())))
        }:
            raise ValueError(
                f"{owner}: the inputs of recording {name} must share their time steps. Received "
                f"{', '.join(f'{key}: {len(part)}' for key, part in inputs.items()) or 'none'}."
            )
        reserved = {"lengths", "mask", *(f"{key}_mask" for key in inputs)} & {*inputs}
        if reserved:
            raise ValueError(
                f"{owner}: an input must not be called {reserved.pop()!r}, which `windows` adds."
            )
        if own_values:
            if len(inputs) > 1:
                raise ValueError(
                    f"{owner}: with several inputs, say what is to be forecast: `targets`, one "
                    "array (time, ...) a recording."
                )
            target = inputs["inputs"].values if "inputs" in inputs else None
            if target is None:
                target = next(iter(inputs.values())).values
        steps = len(next(iter(inputs.values())))
        stored = [part.timestamps for part in inputs.values() if part.timestamps is not None]
        if times is None and not all(np.array_equal(stored[0], other) for other in stored):
            raise ValueError(
                f"{owner}: the inputs of recording {name} must share their time steps, and their "
                "timestamps differ. Bring them to the same times, or say by `timestamps` which "
                "hold."
            )
        times = times if times is not None else (stored[0] if stored else None)
        if times is not None:
            times = as_timestamps(owner, times, steps, name)
        if group is None:
            group = getattr(one, "name", None) or name
        if not isinstance(group, Hashable):
            raise ValueError(
                f"{owner}: the group of recording {name} must be a string or a number, one for the "
                f"whole recording. Received {type(group).__name__}."
            )
        found.append(
            Series(
                name,
                inputs,
                None if target is None else _target_array(owner, target, steps, name),
                group.item() if hasattr(group, "item") else group,
                times,
            )
        )
    return found


def _target_array(owner: str, target: Any, steps: int, name: str) -> np.ndarray:
    # As it is, where it is an input's values, of a mapped file too.
    array = target if isinstance(target, np.memmap) else with_nan(target)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{owner}: the targets of recording {name} must be numbers. Received dtype "
            f"{array.dtype}. Number the classes: `names, y = numpy.unique(y, return_inverse=True)`."
        )
    if array.ndim and len(array) != steps:
        raise ValueError(
            f"{owner}: the targets of recording {name} must be one for each of its {steps} steps, "
            f"(time, ...), or a single number. Received shape {array.shape}."
        )
    return array


def check_alike(owner: str, series: Sequence[Series]) -> None:
    first = series[0]
    for one in series[1:]:
        if [*one.inputs] != [*first.inputs]:
            raise ValueError(
                f"{owner}: all recordings must have the same inputs in the same order. Recording "
                f"{first.name} has {', '.join(first.inputs)}, {one.name} has "
                f"{', '.join(one.inputs)}."
            )
        for key, part in one.inputs.items():
            other = first.inputs[key]
            named = part.features and other.features
            names_differ = named and (part.channels, part.features) != (
                other.channels,
                other.features,
            )
            if part.values.shape[1:] != other.values.shape[1:] or names_differ:
                raise ValueError(
                    f"{owner}: all recordings must have the same channels and features. Recording "
                    f"{first.name} has {_described(other)}, {one.name} has {_described(part)}."
                )
        shapes = [None if s.target is None else s.target.shape[1:] for s in (first, one)]
        ranks = [None if s.target is None else s.target.ndim for s in (first, one)]
        if shapes[0] != shapes[1] or ranks[0] != ranks[1]:
            raise ValueError(
                f"{owner}: the targets of all recordings must have the same form. Those of "
                f"{first.name} have shape {getattr(first.target, 'shape', None)}, of {one.name} "
                f"{getattr(one.target, 'shape', None)}."
            )


def _described(recording: Recording) -> str:
    shape = f"(time, {', '.join(map(str, recording.values.shape[1:]))})"
    if not recording.features:
        return shape
    return f"{shape} of {'|'.join(recording.channels)} with {'|'.join(recording.features)}"


def find_intervals(
    owner: str, series: Series, max_gap: Any, missing: Missing, dtype: np.dtype
) -> None:
    """Look at the values, and set the parts of a recording that windows may be cut from."""
    steps = series.steps
    breaks: list[np.ndarray] = []  # rows before which a new part begins
    if max_gap is not None:
        if series.timestamps is None:
            raise ValueError(
                f"{owner}: `max_gap` needs the times of the steps, and recording {series.name} has "
                "none. Pass `timestamps`, or a layout with a column of time."
            )
        breaks.append(gap_starts(owner, series.timestamps, max_gap, series.name))
    dropped = []
    if missing is not None:
        for key, part in series.inputs.items():
            title = series.name if len(series.inputs) < 2 else f"{series.name}, input {key}"
            for first, rows in chunks(part.values):
                bad = _look_at(owner, part, title, first, rows, missing, dtype)
                if missing == "drop":
                    dropped.append(bad)
        if series.target is not None and series.target.dtype.kind == "f":
            _look_at_targets(owner, series, missing)
    lost = np.unique(np.concatenate(dropped)) if dropped else np.zeros(0, "int64")
    # A lost row is a part of its own, left out below.
    edges = np.unique(np.concatenate([[0, steps], *breaks, lost, lost + 1])).tolist()
    gone = set(lost.tolist())
    series.intervals = [(low, high) for low, high in pairwise(edges) if low not in gone]


def _look_at(
    owner: str,
    part: Recording,
    title: str,
    first: int,
    rows: np.ndarray,
    missing: Any,
    dtype: np.dtype,
) -> np.ndarray:
    """Rows with a NaN; an error for one that is not wanted, an infinite value, a marker."""
    # As the model will see it: a cast can make a reading infinite, or equal to the marker.
    with np.errstate(over="ignore", invalid="ignore"):
        seen = rows.astype(dtype, copy=False)
    if isinstance(missing, Real):
        marked = (seen == np.asarray(missing, seen.dtype)).all(axis=-1)
        if marked.any():
            at = np.argwhere(marked)[0]
            raise ValueError(
                f"{owner}: missing={missing!r} occurs as a reading: recording {title}, row "
                f"{first + int(at[0])}"
                + (f", column {part.column((*map(int, at[1:]), 0))}" if len(at) > 1 else "")
                + ". Choose a number that no sensor gives, such as -1e9; if it marks missing steps "
                "already, pass missing=None."
            )
    seen = seen if dtype.kind == "f" else rows  # no integer shows what it was cast from
    if seen.dtype.kind != "f" or np.isfinite(seen).all():
        return np.zeros(0, "int64")
    # An integer can hold no NaN until it is replaced.
    refused = missing == "error" or (missing != "drop" and dtype.kind != "f")
    wrong = ~np.isfinite(seen) if refused else np.isinf(seen)
    if wrong.any():
        at = np.argwhere(wrong)[0]
        value = rows[tuple(at)]
        count = int(wrong.sum())
        raise ValueError(
            f"{owner}: recording {title}, row {first + int(at[0])}, column "
            f"{part.column(tuple(map(int, at[1:])))} is {value}"
            + (f", too large for {dtype}" if np.isfinite(value) else "")
            + (f", and {count - 1} more in the rows around." if count > 1 else ".")
            + (
                " Choose what becomes of it: missing='drop', or with a real `dtype` missing='mask' "
                "or a number for build_model(masking=)."
                if np.isnan(value)
                else " Pass dtype='float64' to `windows`, or scale it."
                if np.isfinite(value)
                else " Set it to NaN if it is a missing reading."
            )
        )
    return first + np.flatnonzero(np.isnan(rows).any(axis=tuple(range(1, rows.ndim))))


def _look_at_targets(owner: str, series: Series, missing: Any) -> None:
    target = series.target
    shared = any(target is part.values for part in series.inputs.values())
    for first, rows in chunks(np.atleast_1d(target)):
        wrong = np.isinf(rows) if missing == "drop" else ~np.isfinite(rows)
        if wrong.any():
            at = np.argwhere(wrong)[0]
            column = "".join(f", column [{', '.join(map(str, at[1:]))}]" for _ in at[1:2])
            where = f", row {first + int(at[0])}{column}" if target.ndim else ""
            raise ValueError(
                f"{owner}: the target of recording {series.name}{where} is {rows[tuple(at)]}. "
                + (
                    "A forecast of missing readings cannot be judged: "
                    if shared
                    else "Its windows can be left out: "
                )
                + ("set it to NaN." if missing == "drop" else "missing='drop'.")
            )


def with_targets(
    span: Span, runs: Sequence[Run], series: Series, missing: Missing
) -> Iterator[Run]:
    """The runs without windows whose target is NaN."""
    target = series.target
    if target is None or missing != "drop" or target.dtype.kind != "f":
        yield from runs
        return
    if target.ndim == 0:
        yield from [] if np.isnan(target) else runs
        return
    bad = [
        first + np.flatnonzero(np.isnan(rows.reshape(len(rows), -1)).any(axis=1))
        for first, rows in chunks(target)
    ]
    rows = np.concatenate([np.zeros(0, "int64"), *bad])
    for run in runs:
        last = run.first + run.steps - 1 + span.horizon
        keep = np.ones(run.count, bool)
        # Window k reads the rows behind last + k * stride - target_length, up to and with that
        # of last + k * stride.
        low = np.maximum(-((last - rows) // span.stride), 0)
        high = np.minimum((rows + span.target_length - 1 - last) // span.stride, run.count - 1)
        for k, end in zip(low.tolist(), high.tolist(), strict=True):
            keep[k : max(end + 1, 0)] = False
        edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype("int8")))
        for begin, end in edges.reshape(-1, 2).tolist():
            yield replace(run, first=run.first + begin * span.stride, count=end - begin)


def none_left(
    owner: str, series: Sequence[Series], span: Span, max_gap: Any, missing: Missing
) -> str:
    low, high = span.reads(0, span.length)
    longest = max(one.steps for one in series)
    parts = max((b - a for one in series for a, b in one.intervals), default=0)
    message = (
        f"{owner}: no window is left. One reads {high - low} steps (length={span.length}, "
        f"horizon={span.horizon}); the longest of {len(series)} recordings has {longest}"
    )
    if parts < longest:
        reasons = ["gaps"] * (max_gap is not None) + ["rows with NaN"] * (missing == "drop")
        message += f", and without {' and '.join(reasons)} its parts have {parts} at most"
    elif parts >= high - low:
        message += ", but every target is NaN"
    return (
        message
        + ". Use a smaller `length`, a smaller `horizon`, a larger `max_gap`, or ragged=True."
    )

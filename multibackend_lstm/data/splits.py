"""Parts to train on and to test on, that share no step: `split_windows`."""

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from multibackend_lstm.data.recordings import as_timestamps
from multibackend_lstm.data.runs import Run, Runs
from multibackend_lstm.data.series import is_integer, is_real


def split_windows(
    dataset: Any,
    *,
    test_groups: float | Sequence[Any] | None = None,
    test_last: float | None = None,
    test_since: Any = None,
    embargo: int | None = None,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Split windows into those to train on and those to test on, without leakage.

    Overlapping windows that are dealt out at random put the same steps on both sides. Here
    groups stay whole, time is cut once, or both: then the test part is the later time of the
    groups held out, and training sees neither of them.

    Example:
        >>> train, test = split_windows(dataset, test_groups=["anna", "bert"])
        >>> train, test = split_windows(dataset, test_last=0.2)
        >>> train, validation = split_windows(train, test_last=0.2)

    Args:
        dataset: what `windows` returns, or a part of it.
        test_groups: the groups to test on, or their share, from 0 to 1, drawn by `seed`.
        test_last: the share to test on of the steps of each recording that its windows read, the
            last ones.
        test_since: the moment from which on steps are for the test, in place of `test_last`: a
            number or date as the timestamps are.
        embargo: steps before the cut that neither part reads; by default as long as a window.
        seed: of the draw of groups.

    Returns:
        `(train, test)`, two datasets. All that a window of `train` reads, targets too, lies more
        than `embargo` steps before the cut, or in a group that is not tested. Take
        statistics from `train` alone: `train.statistics()`, `model.adapt(train)`. Only `train` has
        the weights of `class_balance`, counted anew, and only `train` is shuffled.

    Raises:
        ValueError: if nothing says how to split, a group is unknown, timestamps are missing, or a
            part has no window left.
    """
    owner = "split_windows"
    if test_groups is None and test_last is None and test_since is None:
        raise ValueError(
            f"{owner}: say what the test part is: `test_groups`, `test_last` or `test_since`. "
            "Windows overlap, so a random draw of them would leak."
        )
    if test_last is not None and test_since is not None:
        raise ValueError(f"{owner}: `test_last` and `test_since` both cut time. Give one of them.")
    span = dataset.settings.span
    embargo = span.length if embargo is None else embargo
    if not is_integer(embargo) or embargo < 0:
        raise ValueError(
            f"{owner}: `embargo` must be a whole number of steps. Received {embargo!r}."
        )
    cuts_time = test_last is not None or test_since is not None
    tested = None if test_groups is None else _tested_groups(owner, dataset, test_groups, seed)
    train: list[Run] = []
    test: list[Run] = []
    extents: dict[int, tuple[int, int]] = {}
    for run in dataset.runs:
        begin, _ = span.reads(run.first, run.steps)
        _, end = span.reads(run.first + (run.count - 1) * span.stride, run.steps)
        low, high = extents.get(run.recording, (begin, end))
        extents[run.recording] = (min(low, begin), max(high, end))
    for run in dataset.runs:
        series = dataset.series[run.recording]
        is_tested = tested is None or series.group in tested
        is_trained = tested is None or not is_tested
        if not cuts_time:
            (test if is_tested else train).append(run)
            continue
        low, high = extents[run.recording]
        cut = (
            high - round(_share(owner, "test_last", test_last) * (high - low))
            if test_last is not None
            else _cut_at(owner, series, test_since)
        )
        if is_trained:
            train.append(span.within(run, low, cut - embargo))
        if is_tested:
            test.append(span.within(run, cut, high))
    for part, runs in (("train", train), ("test", test)):
        if not any(run.count for run in runs):
            raise ValueError(
                f"{owner}: no window is left to {part}"
                + (
                    f": one reads {span.length + span.horizon} steps, and {embargo} before the cut "
                    "are left out. Use longer recordings, shorter windows, a smaller `embargo`, or "
                    "another cut."
                    if cuts_time
                    else ". Choose other groups."
                )
            )
    return (
        dataset.subset(Runs.of(train)),
        dataset.subset(Runs.of(test), class_balance=False, shuffle=False),
    )


def _tested_groups(owner: str, dataset: Any, test_groups: Any, seed: int) -> set[Any]:
    present = {dataset.series[run.recording].group for run in dataset.runs}
    # Strings and numbers may be mixed; the order must not depend on hashes.
    try:
        groups = sorted(present, key=lambda group: (str(type(group)), group))
    except TypeError:  # tuples of unlike parts
        groups = sorted(present, key=repr)
    if is_real(test_groups):
        count = round(_share(owner, "test_groups", test_groups) * len(groups))
        if not 0 < count < len(groups):
            raise ValueError(
                f"{owner}: test_groups={test_groups} of {len(groups)} groups is {count} of them, "
                "which leaves a part without any. Give the recordings `groups`, or another share."
            )
        random.Random(seed).shuffle(groups)
        return {*groups[:count]}
    if isinstance(test_groups, (str, bytes)):
        test_groups = [test_groups]
    wanted = [g.item() if hasattr(g, "item") else g for g in test_groups]
    unknown = [group for group in wanted if group not in present]
    if unknown or not wanted:
        raise ValueError(
            f"{owner}: `test_groups` must be some of {', '.join(map(repr, groups[:20]))}, or their "
            f"share. Received {', '.join(map(repr, unknown)) or 'none'}."
        )
    return {*wanted}


def _share(owner: str, argument: str, value: Any) -> float:
    if not is_real(value) or not 0 < value < 1:
        raise ValueError(f"{owner}: `{argument}` must lie between 0 and 1. Received {value!r}.")
    return float(value)


def _cut_at(owner: str, series: Any, since: Any) -> int:
    """The first step of a recording that is not before a moment."""
    if series.timestamps is None:
        raise ValueError(
            f"{owner}: `test_since` needs timestamps, and recording {series.name} has none. Pass "
            "them to `windows`, or use `test_last`."
        )
    is_date = series.timestamps.dtype.kind == "M"
    is_duration = series.timestamps.dtype.kind == "m" and isinstance(since, timedelta)
    given = np.asarray(np.timedelta64(since) if is_duration else since)
    moment = as_timestamps(owner, [since], 1, "`test_since`") if is_date else given.reshape(-1)
    if moment.shape != (1,) or (moment.dtype.kind == "M") != is_date or moment.dtype.kind in "OUSb":
        raise ValueError(
            f"{owner}: `test_since` must be a {'date' if is_date else 'number'}, as the timestamps "
            f"of recording {series.name} are. Received {since!r}."
        )
    return int(np.searchsorted(series.timestamps, moment[0], side="left"))

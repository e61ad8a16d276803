"""Windows of recordings as a dataset of Keras: `windows`."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from multibackend_lstm.data.orders import ShuffledOrder
from multibackend_lstm.data.recordings import (
    chunks,
    mapping_of,
    release,
)
from multibackend_lstm.data.runs import Runs, Span
from multibackend_lstm.data.series import (
    Missing,
    Series,
    as_series,
    check_alike,
    find_intervals,
    is_integer,
    is_real,
    none_left,
    with_targets,
)
from multibackend_lstm.data.statistics import valid_statistics

# Windows that are placed in one go.
BLOCK = 1 << 16
# Bytes read from mapped files before their pages are given back, and what a window may bring into
# memory beside its own: Linux maps up to 2 MiB around what is asked for.
RELEASE_AFTER = 1 << 26
_AROUND = 1 << 21


def windows(
    recordings: Any,
    length: int,
    stride: int = 1,
    horizon: int = 0,
    targets: Any = None,
    groups: Any = None,
    timestamps: Any = None,
    max_gap: Any = None,
    *,
    target_length: int | None = None,
    missing: Missing = "error",
    ragged: bool = False,
    class_balance: bool = False,
    batch_size: int = 32,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 1,
    dtype: Any = "float32",
) -> "WindowDataset":
    """Cut windows of a fixed length from recordings, in batches for `fit` and `predict`.

    A window that starts at step `s` holds the steps `s` to `s + length - 1` of one recording, and
    its target is that of the step `s + length - 1 + horizon`. The first window starts at the first
    step of a recording, or behind a gap, the next `stride` steps later, as long as all that a
    window and its target read is there and without a gap. The windows are not copied: each batch
    is, when it is asked for.

    Example:
        >>> train = windows(recordings, length=100, stride=50, targets=labels, shuffle=True)
        >>> model = build_model((100, 3, 5), outputs=4, task="multiclass", normalization=True)
        >>> model.adapt(train)
        >>> model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
        >>> history = model.fit(train, epochs=2, verbose=0)

    Args:
        recordings: one recording, a list of them, or a dictionary by name. A recording is
            an array `(time, *axes)`, such as `(time, channels, features)`; the path of a `.npy`
            file of one, which is mapped into memory; what `Layout.recording` makes of a table; or
            a dictionary of several such, by the names of a model's inputs, that share their steps.
            (So recordings of several inputs come in a list.)
        length: steps of a window.
        stride: steps from one window's start to the next's.
        horizon: steps from a window's last one to that of its target; 0 is the last step itself.
        targets: one entry for each recording, as they are given (a list, or a dictionary by name):
            an array `(time, ...)`, one target a step, or a single number, the label of the
            recording. None with a `horizon` of 1 or more stands for the recording's own values;
            with 0 there are no targets.
        groups: for each recording what it belongs to, a person for instance, as a string or
            number; by default its name. `split_windows` keeps them apart.
        timestamps: for each recording the times of its steps: ascending numbers, datetime64, or
            strings of ISO 8601; by default those of the `Recording`.
        max_gap: no window goes over a longer step from one timestamp to the next; one of exactly
            `max_gap` is no gap. A number, or a timedelta beside dates.
        target_length: None gives one target a window, `(batch, ...)`; a number so many,
            `(batch, target_length, ...)`, the last of them at `horizon`: `target_length=length`
            with `horizon=0` labels every step, `target_length=horizon` forecasts all the steps
            up to it.
        missing: what becomes of NaN.
            `"error"`: it is an error that names recording, row and column.
            `"drop"`: no window goes over a step that holds one, or has a target that does.
            A number: what takes its place, as `masking=` of `build_model`. Models mask the
            channels of a step, so one NaN marks all features of its channel.
            `"mask"`: the inputs are `{"inputs": x, "mask": mask}`, with 0 in place of NaN and a
            boolean mask of all axes of `x` but the last, False where a feature is NaN.
            None: values go as they are and are not looked at.
            All but None read the recordings once, here.
        ragged: whether steps behind the last full window, that no window covers, make a shorter
            one. The inputs are then `{"inputs": x, "lengths": lengths}`, as models of
            `build_model(lengths=True)` take them, with 0 (or the number `missing`) behind the end.
        class_balance: whether each window has a weight, such that all classes weigh the same
            in sum and the mean weight is 1; `targets` must be one integer a window.
        batch_size: windows of a batch; the last may have fewer.
        shuffle: whether each epoch has an order of its own, which depends on `seed` and
            the epoch alone: not on workers, adapters or backends.
        seed: of the orders, a whole number.
        workers: threads that prepare batches ahead; the batches stay the same.
        dtype: of the inputs; None keeps that of the recordings. Targets keep theirs.

    Returns:
        A `WindowDataset`, a `keras.utils.PyDataset` of tuples: `(x,)`, `(x, y)` or
        `(x, y, weights)`.

    Raises:
        ValueError: for recordings that differ in channels or features, arguments that do not fit
            them, NaN and infinite values (see `missing`), timestamps that do not ascend, a
            number `missing` that occurs as a reading, and if no window is left: the message says
            why.
    """
    owner = "windows"
    for argument, value, least in (
        ("length", length, 1),
        ("stride", stride, 1),
        ("horizon", horizon, 0),
        ("target_length", 1 if target_length is None else target_length, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("workers", workers, 0),
    ):
        if not is_integer(value) or value < least:
            raise ValueError(
                f"{owner}: `{argument}` must be a whole number of {least} or more. Received "
                f"{value!r}."
            )
    if ragged and target_length is not None:
        raise ValueError(
            f"{owner}: ragged=True gives one target a window, and none with `target_length`. Leave "
            "one of them out."
        )
    own_values = targets is None and horizon > 0
    series = as_series(owner, recordings, targets, own_values, groups, timestamps)
    check_alike(owner, series)
    kept = _common_dtype(series) if dtype is None else _real_dtype(owner, dtype)
    _check_missing(owner, missing, kept)
    for one in series:
        find_intervals(owner, one, max_gap, missing, kept)
    span = Span(int(length), int(stride), int(horizon), int(target_length or 1))
    runs = [
        run
        for at, one in enumerate(series)
        for low, high in one.intervals
        for run in with_targets(span, span.runs_of(at, low, high, ragged), one, missing)
    ]
    if not any(run.count for run in runs):
        raise ValueError(none_left(owner, series, span, max_gap, missing))
    settings = Settings(
        span=span,
        sequence=target_length is not None,
        missing=missing,
        ragged=bool(ragged),
        class_balance=bool(class_balance),
        batch_size=int(batch_size),
        shuffle=bool(shuffle),
        seed=int(seed),
        workers=int(workers),
        dtype=kept,
    )
    return WindowDataset(series, Runs.of(runs), settings)


#: Recordings, first steps and numbers of valid steps of some windows.
Places = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """The arguments of `windows` that its batches depend on."""

    span: Span
    sequence: bool
    missing: Missing
    ragged: bool
    class_balance: bool
    batch_size: int
    shuffle: bool
    seed: int
    workers: int
    dtype: np.dtype


class WindowDataset(keras.utils.PyDataset):
    """What `windows` returns: batches of windows, the same for each seed, on every backend.

    `model.fit(dataset)` of a model of this package takes the order of each epoch from here; with
    other models pass `fit(dataset, shuffle=False)`, or Keras shuffles the batches once more, by
    Python's own random numbers. To predict, leave `shuffle=False`: predictions come in the order
    of the batches.

    Attributes:
        series: the recordings, see `Series`.
        runs: which windows there are, see `Runs`.
        settings: the arguments.
        epoch: number of the epoch whose order `dataset[index]` gives. Iterating to the end moves
            it on, as does training.
    """

    def __init__(self, series: Sequence[Series], runs: Runs, settings: Settings) -> None:
        # One worker for Keras: its queue mixes batches of two epochs. Ours is below.
        super().__init__(workers=1, use_multiprocessing=False)
        self.series, self.runs, self.settings = list(series), runs, settings
        self.epoch = 0
        self.windows = runs.total
        self._order = ShuffledOrder(self.windows, settings.seed) if settings.shuffle else None
        self._plain = {
            name: [one.inputs[name].values for one in self.series] for name in self.input_names
        }
        self._views = {
            name: [_view(values, settings.span.length) for values in arrays]
            for name, arrays in self._plain.items()
        }
        self._targets = [one.target for one in self.series]
        if self._targets[0] is not None:
            self._target_dtype = np.result_type(*(target.dtype for target in self._targets))
        arrays = [a for own in self._plain.values() for a in own]
        arrays += [target for target in self._targets if target is not None]
        self._mapped = [a for a in arrays if mapping_of(a)]
        if sum(a.nbytes for a in self._mapped) < RELEASE_AFTER:
            self._mapped = []  # small enough to stay
        self._read = 0
        self._last_was_asked_for = False
        self._is_fitted = False
        self._lock = threading.Lock()
        self._blocks: dict[tuple[int, int], Places] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[tuple[int, int], Future[tuple[Any, ...]]] = {}
        if settings.class_balance:
            self._classes, self._class_weights = self._balance()

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs; `["inputs"]` for one."""
        return list(self.series[0].inputs)

    @property
    def class_weight(self) -> dict[int, float]:
        """With `class_balance` the weight of each class."""
        if not self.settings.class_balance:
            raise ValueError("windows: there are class weights with class_balance=True only.")
        return dict(zip(self._classes.tolist(), self._class_weights.tolist(), strict=True))

    def __len__(self) -> int:
        return math.ceil(self.windows / self.settings.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        index = range(len(self))[index]
        if index == len(self) - 1:
            self._last_was_asked_for = True
        epoch = self.epoch
        if self.settings.workers < 2:
            return self.batch(index, epoch)
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.settings.workers, "windows")
            for ahead in range(index, min(index + 2 * self.settings.workers, len(self))):
                if (epoch, ahead) not in self._ahead:
                    self._ahead[epoch, ahead] = self._pool.submit(self.batch, ahead, epoch)
            future = self._ahead.pop((epoch, index))
            for key in [k for k in self._ahead if k[0] != epoch or k[1] < index]:
                self._ahead.pop(key).cancel()
        return future.result()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for index in range(len(self)):
            yield self[index]
        self.epoch += 1
        self._last_was_asked_for = False

    def on_epoch_end(self) -> None:
        """Go on to the order of the next epoch; called by Keras."""
        # Keras also ends an epoch that it has only looked into, to build the model.
        if self._last_was_asked_for and not self._is_fitted:
            self.epoch += 1
            self._last_was_asked_for = False

    @contextmanager
    def fitting(self, initial_epoch: int) -> Iterator[keras.callbacks.Callback]:
        """A callback for `fit` that counts the epochs exactly, whatever Keras looks into before.

        Several calls of `fit` go on with new orders, as does one with an `initial_epoch`.
        """
        start = max(self.epoch, initial_epoch)
        last = start - 1

        def begin(epoch: int, logs: Any = None) -> None:
            nonlocal last
            self.epoch = last = start + epoch - initial_epoch

        self.epoch, self._is_fitted = start, True
        try:
            yield keras.callbacks.LambdaCallback(on_epoch_begin=begin)
        finally:
            self.epoch, self._is_fitted, self._last_was_asked_for = last + 1, False, False

    def __getstate__(self) -> dict[str, Any]:
        return {
            "series": self.series,
            "runs": self.runs,
            "settings": self.settings,
            "epoch": self.epoch,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        epoch = state.pop("epoch")
        self.__init__(**state)  # type: ignore[misc]
        self.epoch = epoch

    def places(self, index: int, epoch: int) -> Places:
        """Where the windows of a batch are: recording, first step and number of valid steps."""
        size = self.settings.batch_size
        batches = max(1, BLOCK // size)
        block, first = index // batches, index % batches * size
        with self._lock:
            found = self._blocks.get((epoch, block))
            if found is None:
                found = self._block(block * batches * size, batches * size, epoch)
                while len(self._blocks) > 3:
                    del self._blocks[next(iter(self._blocks))]
                self._blocks[epoch, block] = found
        recording, start, steps = found
        part = slice(first, first + size)
        return recording[part], start[part], steps[part]

    def _block(self, first: int, count: int, epoch: int) -> Places:
        last = min(first + count, self.windows)
        if self._order is None:
            numbers = np.arange(first, last)
        else:
            numbers = self._order.places(first, last, epoch)
        return self.runs.locate(numbers, self.settings.span.stride)

    def batch(self, index: int, epoch: int) -> tuple[Any, ...]:
        """The batch at a place of an epoch, whatever the current one is."""
        recording, start, steps = self.places(index, epoch)
        settings = self.settings
        single = recording[0] == recording[-1] and (recording == recording[0]).all()
        full = not settings.ragged or (steps == settings.span.length).all()
        x: dict[str, np.ndarray] = {}
        for name, views in self._views.items():
            # The fastest of what NumPy has for it: np.stack takes two to ten times as long.
            if full and single:
                values = views[recording[0]][start].astype(settings.dtype, copy=False)
            elif full:
                pairs = zip(recording.tolist(), start.tolist(), strict=True)
                whole = [views[r][s] for r, s in pairs]
                values = np.concatenate(whole, dtype=settings.dtype, casting="unsafe")
                values = values.reshape(len(whole), *whole[0].shape)
            else:
                values = self._padded(name, recording, start, steps)
            x |= self._without_nan(name, values, steps)
        if settings.ragged:
            x["lengths"] = steps.astype("int32")
        self._count_reading(x, len(start))
        inputs = x["inputs"] if [*x] == ["inputs"] else x
        if self._targets[0] is None:
            return (inputs,)
        y = self._target(recording, start + steps - 1 + settings.span.horizon)
        y = y.astype(self._target_dtype, copy=False)
        if settings.class_balance:
            weights = self._class_weights[np.searchsorted(self._classes, y)]
            return inputs, y, weights.astype("float32")
        return inputs, y

    def views(self, name: str = "inputs") -> list[np.ndarray]:
        """The windows without a copy: for each run of full windows a view that can only be read.

        Args:
            name: of the input.

        Returns:
            Arrays `(windows, length, *axes)` in the recordings' own memory and dtype. Steps that
            several windows share are there once.
        """
        stride, length = self.settings.span.stride, self.settings.span.length
        return [
            self._views[name][run.recording][run.first :: stride][: run.count]
            for run in self.runs
            if run.steps == length
        ]

    def statistics(self, axis: Sequence[int] = (-2, -1), name: str = "inputs") -> Any:
        """Mean and variance of all steps that windows hold, each step once, in float64.

        For `build_model(normalization=train.statistics())`. `model.adapt(train)` counts a step as
        often as windows hold it.

        Args:
            axis: the axes that have statistics of their own, counted from the end; `(-1,)` for
                recordings `(time, features)`.
            name: of the input.

        Returns:
            `(mean, variance)`, arrays of the sizes of `axis`.
        """
        parts = self._steps(name)
        return valid_statistics("windows", parts, axis, mask_value=_MARK)

    def _steps(self, name: str) -> Iterator[np.ndarray]:
        for at, one in enumerate(self.series):
            values = one.inputs[name].values
            for low, high in covered_steps(self.runs, self.settings.span, at):
                for _, rows in chunks(values[low:high]):
                    rows = np.asarray(rows, "float64")
                    missing = np.isnan(rows).any(axis=-1, keepdims=True)
                    yield np.where(missing, _MARK, rows)

    def subset(self, runs: Runs, **changes: Any) -> "WindowDataset":
        """Some of the windows, with all else the same but what `changes` says of the settings."""
        settings = Settings(**{**vars(self.settings), **changes})
        return WindowDataset(self.series, runs, settings)

    def _padded(self, name: str, recording: Any, start: Any, steps: Any) -> np.ndarray:
        arrays = self._plain[name]
        length, missing = self.settings.span.length, self.settings.missing
        padding = missing if is_real(missing) else 0
        x = np.empty((len(start), length, *arrays[0].shape[1:]), self.settings.dtype)
        for at, (r, s, n) in enumerate(
            zip(recording.tolist(), start.tolist(), steps.tolist(), strict=True)
        ):
            x[at, :n] = arrays[r][s : s + n]
            if n < length:
                x[at, n:] = padding
        return x

    def _without_nan(self, name: str, x: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
        missing = self.settings.missing
        if missing in ("error", "drop") or missing is None:
            return {name: x}
        lacking = np.isnan(x).any(axis=-1) if x.dtype.kind == "f" else np.zeros(x.shape[:-1], bool)
        if missing != "mask":
            if lacking.any():
                x[lacking] = missing
            return {name: x}
        x[lacking] = 0
        mask = ~lacking
        for row in np.flatnonzero(steps < self.settings.span.length):
            mask[row, steps[row] :] = False
        return {name: x, "mask" if name == "inputs" else f"{name}_mask": mask}

    def _target(self, recording: np.ndarray, last: np.ndarray) -> np.ndarray:
        targets, k = self._targets, self.settings.span.target_length
        if targets[0].ndim == 0:
            y = np.array([targets[r] for r in recording.tolist()])
            return np.repeat(y[:, None], k, axis=1) if self.settings.sequence else y
        if not self.settings.sequence:
            if (recording == recording[0]).all():
                return targets[recording[0]][last]
            pairs = zip(recording.tolist(), last.tolist(), strict=True)
            return np.stack([targets[r][at] for r, at in pairs])
        pairs = zip(recording.tolist(), last.tolist(), strict=True)
        return np.stack([targets[r][at - k + 1 : at + 1] for r, at in pairs])

    def _balance(self) -> tuple[np.ndarray, np.ndarray]:
        target = self._targets[0]
        if (
            target is None
            or self._target_dtype.kind not in "biu"
            or target.ndim > 1
            or self.settings.sequence
        ):
            raise ValueError(
                "windows: class_balance=True needs `targets` of one integer a window, the number "
                "of its class. Received "
                + (
                    "none."
                    if target is None
                    else f"{'sequences' if self.settings.sequence else 'targets'} of dtype "
                    f"{self._target_dtype}, shape {target.shape}."
                )
            )
        counts: dict[int, int] = {}
        for first in range(0, self.windows, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, self.windows))
            recording, start, steps = self.runs.locate(numbers, self.settings.span.stride)
            y = self._target(recording, start + steps - 1 + self.settings.span.horizon)
            for label, count in zip(*np.unique(y, return_counts=True), strict=True):
                counts[int(label)] = counts.get(int(label), 0) + int(count)
        classes = np.array(sorted(counts))
        found = np.array([counts[label] for label in classes.tolist()])
        return classes, self.windows / (len(classes) * found)

    def _count_reading(self, x: Mapping[str, np.ndarray], count: int) -> None:
        if not self._mapped:
            return
        self._read += sum(a.nbytes for a in x.values()) + _AROUND * count
        if self._read > RELEASE_AFTER:
            self._read = 0
            for array in self._mapped:
                release(array)


# Stands for NaN on the way to the statistics; no reading of a sensor, and exact in float64.
_MARK = -(2.0**1000)


def covered_steps(runs: Runs, span: Span, recording: int) -> list[tuple[int, int]]:
    """The steps of a recording that windows hold, as intervals that do not touch."""
    pieces = []
    for run in runs:
        if run.recording == recording:
            apart = span.stride > run.steps
            each = range(run.count) if apart else (0,)
            extent = run.steps if apart else (run.count - 1) * span.stride + run.steps
            pieces += [
                (run.first + k * span.stride, run.first + k * span.stride + extent) for k in each
            ]
    joined: list[tuple[int, int]] = []
    for low, high in sorted(pieces):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _view(values: np.ndarray, length: int) -> np.ndarray:
    """All windows of an array as one strided view, `(starts, length, *axes)`."""
    values = np.asarray(values)
    starts = max(0, len(values) - length + 1)
    return np.lib.stride_tricks.as_strided(
        values,
        (starts, length, *values.shape[1:]),
        (values.strides[0], *values.strides),
        writeable=False,
    )


def _check_missing(owner: str, missing: Any, dtype: np.dtype) -> None:
    if missing is None or (isinstance(missing, str) and missing in ("error", "drop", "mask")):
        return
    if not is_real(missing):
        raise ValueError(
            f"{owner}: `missing` must be 'error', 'drop', 'mask', None or a number, such as "
            f"masking=-1e9 of build_model. Received {missing!r}."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        held = np.asarray(float(missing)).astype(dtype)
    if not np.isfinite(held) or (dtype.kind != "f" and held != missing):
        raise ValueError(
            f"{owner}: the number `missing` must be finite in dtype {dtype}. Received {missing!r}."
        )


def _real_dtype(owner: str, dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "biuf":
        raise ValueError(
            f"{owner}: `dtype` must be one of real numbers that NumPy has, such as 'float32'. "
            f"Received {dtype!r}."
        )
    return found


def _common_dtype(series: Sequence[Series]) -> np.dtype:
    return np.result_type(*(p.values.dtype for one in series for p in one.inputs.values()))

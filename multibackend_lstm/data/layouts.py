"""Tables to `(time, channels, features)`: which column is what."""

import collections
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from multibackend_lstm.data.recordings import (
    Recording,
    as_timestamps,
    mapping_of,
    open_npy,
    with_nan,
)
from multibackend_lstm.environment import install_command

# What may stand between channel and feature in the name of a column.
SEPARATORS = ("_", ".", ":", "/", "-", " ", "")


@dataclass(frozen=True)
class Layout:
    """Which columns of a table are which channels and features; made by `layout`.

    Args:
        channels: names of the channels, in the order of the axis.
        features: names of the features that each channel has.
        names: by channel and feature the name of the column, where it is not to be derived.
        time: the name of the column of timestamps, or None.
        positions: `(channel, feature)` of each column of an array; None for the time.
    """

    channels: tuple[str, ...]
    features: tuple[str, ...]
    names: Mapping[tuple[str, str], Any]
    time: Any
    positions: tuple[tuple[str, str] | None, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """`(channels, features)`; a model takes `(length, *layout.shape)`."""
        return len(self.channels), len(self.features)

    def recording(self, table: Any, name: str | None = None) -> Recording:
        """The recording that a table holds.

        Args:
            table: a DataFrame of pandas or Polars, a table of pyarrow, whatever else Narwhals
                reads, the path of a `.parquet` file, a dictionary or structured array of columns,
                or `(time, columns)` in the order of the layout: an array, or the path of a
                `.npy` file, which is mapped into memory and not copied where the layout has no
                time and its channels and features are in order.
            name: of the recording, for messages and as its group.

        Returns:
            A `Recording` of values `(time, channels, features)`, NaN where the table has none, and
            the timestamps.

        Raises:
            ValueError: for columns that are missing or can be taken for two, a column that holds
                no numbers, and timestamps that do not ascend.
            ImportError: for a table, if Narwhals is not installed (extra `data`).
        """
        title = name or "of the table"
        if isinstance(table, (str, PathLike)) and fspath(table).endswith(".npy"):
            return self._of_array(open_npy(table), name, path=fspath(table))
        # Of the class: a lazy table would have to be computed.
        is_tabular = isinstance(table, Mapping) or hasattr(type(table), "columns")
        if hasattr(table, "shape") and not is_tabular and _fields(table) is None:
            return self._of_array(with_nan(table), name, path=None)
        columns = self._columns(table)
        wanted = {
            (channel, feature): self._name_in(columns, channel, feature)
            for channel in self.channels
            for feature in self.features
        }
        if self.time is not None and self.time not in columns:
            raise ValueError(f"layout: there is no column {self.time!r}. {_listed(columns)}")
        # A column may be given to several by name, as one thermometer for all channels.
        derived = collections.Counter(
            column for key, column in wanted.items() if self.names.get(key) is None
        )
        for column in (column for column, count in derived.items() if count > 1):
            titles = [":".join(key) for key, found in wanted.items() if found == column]
            raise ValueError(
                f"layout: the column {column!r} would be {' and '.join(titles)}. Say which "
                "columns they are by a dictionary."
            )
        arrays = {key: _numbers(columns[column], column, title) for key, column in wanted.items()}
        times = None
        if self.time is not None:
            times = _times(columns[self.time])
        steps = {len(array) for array in arrays.values()}
        if len(steps) != 1:
            raise ValueError(
                f"layout: the columns of recording {title} must be of one length. Received "
                f"{', '.join(f'{wanted[key]!r}: {len(a)}' for key, a in arrays.items())}."
            )
        values = np.empty((steps.pop(), *self.shape), np.result_type(*arrays.values()))
        for at, array in enumerate(arrays.values()):
            values[:, at // self.shape[1], at % self.shape[1]] = array
        return self._named(values, times, name, None)

    def _named(self, values: Any, times: Any, name: str | None, path: str | None) -> Recording:
        if times is not None:
            times = as_timestamps("layout", times, len(values), name or "of the table")
        return Recording(values, times, self.channels, self.features, name, path)

    def _of_array(self, array: np.ndarray, name: str | None, path: str | None) -> Recording:
        if array.ndim != 2 or array.shape[1] != len(self.positions):
            raise ValueError(
                f"layout: an array must be (time, columns) with the {len(self.positions)} columns "
                f"of the layout, {', '.join(self._titles())}. Received shape {array.shape}."
            )
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"layout: an array must hold numbers. Received dtype {array.dtype}. Columns of "
                "unlike types go into a dictionary of arrays, or a DataFrame."
            )
        wanted = [self.positions.index((c, f)) for c in self.channels for f in self.features]
        times = None if self.time is None else array[:, self.positions.index(None)]
        if wanted == list(range(wanted[0], wanted[0] + len(wanted))):
            columns = array[:, wanted[0] : wanted[0] + len(wanted)]  # a view, of the file too
        else:
            columns = array[:, wanted]
        values = columns.reshape(len(array), *self.shape)
        whole = path is not None and len(wanted) == array.shape[1] and mapping_of(values)
        if not whole:
            return self._named(values, times, name, None)
        return self._named(values, times, name, path)

    def _titles(self) -> list[str]:
        return [str(self.time) if key is None else f"{key[0]}:{key[1]}" for key in self.positions]

    def _columns(self, table: Any) -> Mapping[Any, Any]:
        """The columns of a table by name: arrays, or series of Narwhals."""
        if isinstance(table, np.ndarray):
            return {column: with_nan(table[column]) for column in table.dtype.names or ()}
        if isinstance(table, Mapping):
            return {column: _array_of(column, values) for column, values in table.items()}
        try:
            import narwhals as nw
        except ModuleNotFoundError as error:
            raise _not_installed("a table", error) from error
        if isinstance(table, (str, PathLike)):
            frame: Any = _read_parquet(nw, fspath(table))
        else:
            names = None if hasattr(table, "collect") else getattr(table, "columns", None)
            if getattr(names, "nlevels", 1) > 1:
                # Of pandas: names of two levels, (channel, feature), are tuples in one.
                table = table.set_axis(table.columns.to_flat_index(), axis=1)
            try:
                frame = nw.from_native(table, eager_only=True)
                _check_names(frame.columns)
            except nw.exceptions.DuplicateError:
                _check_names(getattr(table, "column_names", table.columns))  # pyarrow's, others'
                raise
            except TypeError as error:
                raise ValueError(
                    "layout: a table must be a DataFrame of pandas or Polars, a table of pyarrow, "
                    "the path of a .parquet or .npy file, a dictionary of columns or an array "
                    f"(time, columns). Received {type(table).__name__}. A lazy one is collected "
                    "first."
                ) from error
        return dict(zip(frame.columns, frame.iter_columns(), strict=True))

    def _name_in(self, columns: Mapping[Any, Any], channel: str, feature: str) -> Any:
        given = self.names.get((channel, feature))
        if given is not None:
            candidates: list[Any] = [given]
        else:
            joined = [f"{channel}{separator}{feature}" for separator in SEPARATORS]
            candidates = [*joined, (channel, feature)]
        found = [name for name in candidates if name in columns]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"layout: {channel}:{feature} can be the column {' or '.join(map(repr, found))}. "
                f"Say which: layout({{{channel!r}: {{{feature!r}: {found[0]!r}, ...}}, ...}})."
            )
        near = difflib.get_close_matches(str(candidates[0]), list(map(str, columns)), n=1)
        raise ValueError(
            f"layout: there is no column for {channel}:{feature}, such as {candidates[0]!r}"
            + (f"; did you mean {near[0]!r}? " if near else ". ")
            + _listed(columns)
        )


def layout(spec: Any) -> Layout:
    """Say which columns of tables are the time, the channels and their features.

    Example:
        >>> sensors = layout("time, ankle:x|y|z, leg:x|y|z")
        >>> recording = sensors.recording(table)        # a DataFrame with ankle_x, ankle_y, ...
        >>> recording.values.shape                      # (time, channels, features)
        (1000, 2, 3)

    Args:
        spec: a string: at most one entry without a colon, the column of timestamps, and
            `channel:feature|feature|...` for each channel, in the order of the columns of an array.
            In a table the column of `ankle:x` is called `ankle_x`, `ankle.x`, `ankle:x`,
            `ankle/x`, `ankle-x`, `ankle x` or `anklex`, or is `("ankle", "x")` of two levels.
            Or a dictionary, for columns of other names: `{"time": "t", "ankle": {"x": "acc_1",
            "y": "acc_2"}, "leg": ["x", "y"]}`, where the value of a channel is never a string.
            Or the same as YAML: a string of several lines, or the path of a `.yaml` file.
            Or the names of columns, such as `table.columns`: each is split at its last separator,
            and one that has none is the time; of two levels, the first is the channel.

    Returns:
        A `Layout`; its method `recording` reads tables.

    Raises:
        ValueError: for names that occur twice, channels that differ in their features, and what
            cannot be read.
    """
    if isinstance(spec, Layout):
        return spec
    if isinstance(spec, PathLike) or (isinstance(spec, str) and spec.endswith((".yaml", ".yml"))):
        spec = _yaml(Path(spec).read_text(encoding="utf-8"))
    elif isinstance(spec, str):
        is_yaml = "\n" in spec.strip() or {*"[{"} & {*spec}
        spec = _yaml(spec) if is_yaml else _of_string(spec)
    elif not isinstance(spec, Mapping):
        if not isinstance(spec, Iterable):
            raise ValueError(
                "layout: `spec` must be a string such as 'time, ankle:x|y|z, leg:x|y|z', a "
                f"dictionary, YAML or names of columns. Received {spec!r}."
            )
        spec = _of_columns(list(spec))
    return _of_mapping(spec)


def _of_string(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    without_colon = None
    for entry in (part.strip() for part in text.split(",")):
        channel, colon, features = (part.strip() for part in entry.partition(":"))
        if not channel or (colon and not features):
            raise ValueError(
                f"layout: each entry must be a channel with its features, such as ankle:x|y|z, or "
                f"the column of timestamps. Received {entry!r} in {text!r}."
            )
        if not colon and without_colon is not None:
            raise ValueError(
                f"layout: one entry at most has no colon, the column of timestamps. Received "
                f"{without_colon!r} and {channel!r}. A channel of one feature is written "
                f"{channel}:value."
            )
        if channel in found:
            raise ValueError(f"layout: {channel!r} occurs twice in {text!r}.")
        if not colon:
            without_colon = channel
        found[channel] = [part.strip() for part in features.split("|")] if colon else channel
    return found


def _of_columns(columns: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in columns:
        if isinstance(column, tuple) and len(column) != 2:
            raise ValueError(
                f"layout: names of columns have two levels at most, (channel, feature). Received "
                f"{column!r}."
            )
        if isinstance(column, tuple):
            channel, feature = map(str, column)
            time = column if not feature else None
        else:
            at = max(str(column).rfind(separator) for separator in SEPARATORS if separator)
            channel, feature = str(column)[: max(at, 0)], str(column)[at + 1 :]
            time = column if at <= 0 else None
        if time is not None:
            others = [value for value in found.values() if not isinstance(value, dict)]
            if others:
                raise ValueError(
                    f"layout: {others[0]!r} and {time!r} are both no channel with a feature, and "
                    "one column at most is that of timestamps. Leave out what is no measurement, "
                    "for instance layout(table.columns[1:])."
                )
            found[f"time of {time}"] = time
        elif feature in found.setdefault(channel, {}):
            raise ValueError(f"layout: the column {column!r} occurs twice.")
        else:
            found[channel][feature] = column
    return found


def _array_of(column: Any, values: Any) -> np.ndarray:
    try:
        return with_nan(values)
    except ValueError as error:
        raise ValueError(
            f"layout: the column {column!r} must have one number a row: {error}"
        ) from error


def _fields(array: Any) -> Any:
    """Names of a structured array's fields; None for any other."""
    return getattr(getattr(array, "dtype", None), "names", None)


def _check_names(columns: Iterable[Any]) -> None:
    names = collections.Counter(columns)
    twice = [repr(name) for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(
            f"layout: each column of a table must have a name of its own. {', '.join(twice)} "
            "occurs more than once. Rename or drop one."
        )


def _not_installed(what: str, error: ModuleNotFoundError) -> ImportError:
    """One line that names the extra."""
    return ImportError(
        f"{what} needs {error.name}, which is not installed: {install_command('data')}",
        name=error.name,
    )


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise _not_installed("a layout in YAML", error) from error
    try:
        entries = _entries(yaml.compose(text, yaml.SafeLoader))
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"layout: this is not YAML: {error}") from error
    # PyYAML would keep the last of a name alone.
    for each in [entries, *(_entries(node) for _, node in entries)]:
        for name, count in collections.Counter(str(key.value) for key, _ in each).items():
            if count > 1:
                raise ValueError(f"layout: {name!r} occurs {count} times in the YAML.")
    if not isinstance(found, Mapping):
        raise ValueError(
            "layout: YAML must hold the column of time and the channels, such as `time: t` and "
            f"`ankle: [x, y, z]`, a line each. Received {found!r}."
        )
    return found


def _entries(node: Any) -> list[tuple[Any, Any]]:
    """The entries of a mapping in YAML."""
    return node.value if getattr(node, "id", None) == "mapping" else []


def _of_mapping(spec: Mapping[Any, Any]) -> Layout:
    time: Any = None
    channels: list[str] = []
    features: list[str] = []
    positions: list[tuple[str, str] | None] = []
    names: dict[tuple[str, str], Any] = {}
    for channel, given in spec.items():
        if not isinstance(given, (Mapping, list)) or not given:
            is_time = isinstance(given, (str, tuple)) and given and time is None
            if not is_time:
                raise ValueError(
                    f"layout: {channel!r} must have a list of features, or a dictionary from "
                    f"features to columns{'' if time is None else '; the time is ' + repr(time)}. "
                    f"Received {given!r}."
                )
            time = given
            positions.append(None)
            continue
        own = [str(feature) for feature in given]
        if "" in own:
            raise ValueError(f"layout: a feature of {channel!r} has no name. Received {own}.")
        features = features or own
        if len({*own}) < len(own) or {*own} != {*features}:
            raise ValueError(
                f"layout: every channel must have the same features, each once, or there is no "
                f"axis of features. {channels[0] if channels else channel} has "
                f"{', '.join(features)}, {channel} has {', '.join(own)}."
            )
        channels.append(str(channel))
        positions.extend((str(channel), feature) for feature in own)
        if isinstance(given, Mapping):
            names.update({(str(channel), str(f)): column for f, column in given.items()})
    if not channels:
        raise ValueError(f"layout: there is no channel in {dict(spec)!r}.")
    return Layout(tuple(channels), tuple(features), names, time, tuple(positions))


def _read_parquet(nw: Any, path: str) -> Any:
    if not path.endswith(".parquet"):
        raise ValueError(
            f"layout: a file must end with .parquet or .npy. Received {path!r}. Read it first, "
            "for instance by `pandas.read_csv`."
        )
    try:
        frame = nw.read_parquet(path, backend="pyarrow")
    except ModuleNotFoundError as error:
        raise _not_installed("a .parquet file", error) from error
    except ValueError as error:  # as pyarrow's own errors are
        raise ValueError(f"layout: {path} cannot be read as Parquet: {error}") from error
    _check_names(frame.columns)
    return frame


def _numbers(column: Any, name: Any, title: str) -> np.ndarray:
    """The numbers of a column, NaN for what is null."""
    if not isinstance(column, np.ndarray):
        import narwhals as nw

        if column.dtype.is_numeric() or column.dtype == nw.Boolean:
            nulls = column.null_count() or column.dtype.is_decimal()
            try:
                return np.asarray((column.cast(nw.Float64) if nulls else column).to_numpy())
            except ValueError as error:  # pyarrow's, of integers that float64 does not hold
                raise ValueError(
                    f"layout: recording {title}, column {name!r} does not fit into float64: {error}"
                ) from error
        if len(column) and column.null_count() == len(column):
            return np.full(len(column), np.nan)
        column = np.asarray(column.to_numpy())
    if column.ndim != 1:
        raise ValueError(
            f"layout: recording {title}, column {name!r} must have one number a row. Received "
            f"shape {column.shape}."
        )
    if column.dtype.kind in "biuf":
        return column
    # `tolist` would make integers of dates in nanoseconds.
    values = column if column.dtype.kind in "mM" else column.tolist()
    return np.array([_number(value, row, name, title) for row, value in enumerate(values)], float)


def _number(value: Any, row: int, name: Any, title: str) -> float:
    if value is None or type(value).__name__ == "NAType":  # of pandas
        return np.nan
    # A duration of NumPy counts as an integer too.
    is_number = isinstance(value, (Real, Decimal))
    if not is_number or getattr(getattr(value, "dtype", None), "kind", "") == "m":
        raise ValueError(
            f"layout: recording {title}, row {row}, column {name!r} must be a number. "
            f"Received {value!r}."
        )
    return float(value)


def _times(column: Any) -> np.ndarray:
    """The times of a column; those with a time zone in UTC."""
    if isinstance(column, np.ndarray):
        return column
    import narwhals as nw

    if getattr(column.dtype, "time_zone", None) is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if column.dtype.is_decimal() or (column.null_count() and column.dtype.is_numeric()):
        column = column.cast(nw.Float64)
    return np.asarray(column.to_numpy())


def _listed(columns: Iterable[Any]) -> str:
    names = list(map(str, columns))
    return f"The table has {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."

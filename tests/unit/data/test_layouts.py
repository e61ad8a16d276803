"""layout: the same recording from every kind of table."""

import datetime
import decimal
import importlib
import importlib.util
import pickle
import sys

import numpy as np
import pytest

from multibackend_lstm import layout, windows
from unit.tools import run_python

SPEC = "time, ankle:x|y|z, leg:x|y|z"
VALUES = np.arange(30.0).reshape(5, 2, 3)
TIMES = np.arange(5) * 0.5
NAMES = [f"{channel}_{feature}" for channel in ("ankle", "leg") for feature in "xyz"]


def columns(separator="_"):
    flat = VALUES.reshape(5, 6)
    return {
        "time": TIMES,
        **{name.replace("_", separator): flat[:, at] for at, name in enumerate(NAMES)},
    }


def needs(module):
    found = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not found, reason=f"{module} is not installed")


def check(recording, times=TIMES):
    np.testing.assert_array_equal(recording.values, VALUES)
    np.testing.assert_array_equal(recording.timestamps, times)
    assert recording.channels == ("ankle", "leg")
    assert recording.features == ("x", "y", "z")


@pytest.mark.parametrize("separator", ["_", ".", ":", "/", "-", " ", ""])
def test_names_of_columns(separator):
    table = {"other": TIMES, **dict(reversed(columns(separator).items()))}
    check(layout(SPEC).recording(table))


def test_arrays_by_position():
    array = np.column_stack([TIMES, VALUES.reshape(5, 6)])
    recording = layout(SPEC).recording(array)
    check(recording)
    assert np.shares_memory(recording.values, array)
    turned = layout("leg:z|y|x, ankle:x|y|z, time").recording(array[:, [6, 5, 4, 1, 2, 3, 0]])
    np.testing.assert_array_equal(turned.values, VALUES[:, ::-1, ::-1])
    mixed = layout({"ankle": ["x", "y", "z"], "leg": ["z", "x", "y"]})
    np.testing.assert_array_equal(
        mixed.recording(VALUES.reshape(5, 6)[:, [0, 1, 2, 5, 3, 4]]).values, VALUES
    )


def test_structured_arrays():
    table = np.zeros(5, [(name, "f8") for name in columns()])
    for name, column in columns().items():
        table[name] = column
    check(layout(SPEC).recording(table))


def test_dictionaries_name_columns():
    spec = {"time": "t", "ankle": {"x": "a", "y": "b", "z": "c"}, "leg": ["x", "y", "z"]}
    table = {**columns(), "t": TIMES, "a": VALUES[:, 0, 0], "b": VALUES[:, 0, 1]}
    table["c"] = VALUES[:, 0, 2]
    check(layout(spec).recording(table))
    assert layout(spec).shape == (2, 3)


@needs("yaml")
def test_yaml(tmp_path):
    text = "time: time\nankle: [x, y, z]\nleg:\n  x: leg_x\n  y: leg_y\n  z: leg_z\n"
    (tmp_path / "sensors.yaml").write_text(text)
    for spec in (text, str(tmp_path / "sensors.yaml"), tmp_path / "sensors.yaml"):
        check(layout(spec).recording(columns()))
    with pytest.raises(ValueError, match="this is not YAML"):
        layout("a: [\nb")
    assert layout("{time: t, a: [x, y], b: {x: c, y: d}}").shape == (2, 2)
    with pytest.raises(ValueError, match="YAML must hold"):
        layout("- a\n- b")


def test_names_of_a_tables_columns():
    check(layout(list(columns())).recording(columns()))
    pairs = {tuple(name.split("_")) if "_" in name else name: c for name, c in columns().items()}
    check(layout(list(pairs)).recording(pairs))
    check(layout(SPEC).recording(pairs))
    with pytest.raises(ValueError, match="'time' and 'label' are both no channel"):
        layout(["time", *NAMES, "label"])


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow", "parquet"])
def test_tables(kind, tmp_path):
    module = "pyarrow" if kind == "parquet" else kind
    # One that is too new for the NumPy here raises an ImportError too.
    pytest.importorskip(module, exc_type=ImportError)
    table = {**columns(), "label": ["walk"] * 5}
    if kind == "pandas":
        import pandas

        made = pandas.DataFrame(table)
        check(layout(made.columns[:-1]).recording(made))
        levels = pandas.DataFrame(
            VALUES.reshape(5, 6),
            columns=pandas.MultiIndex.from_tuples([tuple(n.split("_")) for n in NAMES]),
        )
        np.testing.assert_array_equal(layout(levels.columns).recording(levels).values, VALUES)
        ints = made.assign(ankle_x=pandas.array([0, 6, None, 18, 24], dtype="Int64"))
    elif kind == "polars":
        import polars

        made = polars.DataFrame(table)
        ints = made.with_columns(ankle_x=polars.Series([0, 6, None, 18, 24]))
        with pytest.raises(ValueError, match="A lazy one is collected"):
            layout(SPEC).recording(made.lazy())
    else:
        import pyarrow
        import pyarrow.parquet

        made = pyarrow.table(table)
        changed = {**table, "ankle_x": pyarrow.array([0, 6, None, 18, 24])}
        ints = pyarrow.table(changed)
        if kind == "parquet":
            for name, one in (("made", made), ("ints", ints)):
                pyarrow.parquet.write_table(one, tmp_path / f"{name}.parquet")
            made, ints = (str(tmp_path / f"{name}.parquet") for name in ("made", "ints"))
    check(layout(SPEC).recording(made, name="walk"))
    values = layout(SPEC).recording(ints).values
    np.testing.assert_array_equal(np.argwhere(np.isnan(values)), [[2, 0, 0]])
    wrong = layout({"time": "time", "ankle": {"x": "label"}})
    with pytest.raises(ValueError, match="recording walk, row 0, column 'label' must be a number"):
        wrong.recording(made, name="walk")


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_dates_with_a_time_zone_are_in_utc(kind):
    module = pytest.importorskip(kind, exc_type=ImportError)
    zone = datetime.timezone(datetime.timedelta(hours=2)) if kind != "polars" else datetime.UTC
    hour = 12 if kind != "polars" else 10
    dates = [datetime.datetime(2026, 1, 1, hour, 0, s, tzinfo=zone) for s in range(5)]
    table = {**columns(), "time": dates}
    if kind == "pandas" or kind == "polars":
        made = module.DataFrame(table)
    else:
        made = module.table({**table, "time": module.array(dates, module.timestamp("us", "UTC"))})
    check(layout(SPEC).recording(made), np.datetime64("2026-01-01T10:00:00") + np.arange(5))


def test_without_narwhals_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "narwhals", None)

    class Table:
        columns = NAMES

    with pytest.raises(ImportError, match=r"a table needs narwhals.*\[data\]"):
        layout(SPEC).recording(Table())


def test_what_needs_no_model_is_there_without_keras():
    code = (
        "import sys\nfrom multibackend_lstm.data import layout, split_windows, Recording\n"
        "print(sorted({'keras', 'tensorflow', 'torch', 'jax', 'narwhals'} & set(sys.modules)))"
    )
    assert run_python(code).strip() == "[]"


def test_files_are_mapped(tmp_path):
    np.save(tmp_path / "walk.npy", VALUES.reshape(5, 6))
    recording = layout("ankle:x|y|z, leg:x|y|z").recording(tmp_path / "walk.npy", name="walk")
    np.testing.assert_array_equal(recording.values, VALUES)
    assert isinstance(recording.values.base, np.memmap)
    dataset = pickle.loads(pickle.dumps(windows([recording], 3)))
    np.testing.assert_array_equal(dataset[0][0][0], VALUES[:3])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("time, t, ankle:x", "one entry at most has no colon.*'time' and 't'.*t:value"),
        ("ankle:x|y, leg:x", "every channel must have the same features.*leg has x"),
        ("ankle:x|x", "each once"),
        ("ankle:x, ankle:x", "'ankle' occurs twice"),
        ("ankle:x,", "each entry must be a channel"),
        ("ankle:", "each entry must be a channel"),
        ("time", "there is no channel"),
        ({"ankle": []}, "'ankle' must have a list of features"),
        ({"t": "a", "u": "b", "ankle": ["x"]}, "'u' must have a list.*the time is 'a'"),
        (["ankle_x", "ankle_x"], "'ankle_x' occurs twice"),
        ([("a", "x", "u")], r"two levels at most.*\('a', 'x', 'u'\)"),
        ("ankle:x||y", "a feature of 'ankle' has no name"),
        ("ankle: [x]\nankle: [y]\n", "'ankle' occurs 2 times in the YAML"),
        ("time: t\nankle: {x: a, x: b}\n", "'x' occurs 2 times in the YAML"),
        (3, "`spec` must be a string"),
    ],
)
def test_specifications_that_are_wrong(spec, message):
    with pytest.raises(ValueError, match=message):
        layout(spec)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros((5, 6)), r"with the 7 columns of the layout, time, ankle:x.*shape \(5, 6\)"),
        (np.zeros((5, 7), "U1"), "must hold numbers"),
        ({"time": TIMES}, "no column for ankle:x, such as 'ankle_x'.*The table has time"),
        ({**columns(), "ankle.x": TIMES}, "ankle:x can be the column 'ankle_x' or 'ankle.x'"),
        ({**columns(), "leg_z": TIMES[:4]}, "must be of one length.*'leg_z': 4"),
        ({**columns(), "leg_z": list("abcde")}, "row 0, column 'leg_z' must be a number. .*'a'"),
        ({**columns(), "time": TIMES[::-1]}, "recording of the table, row 1: the timestamp 1.5"),
        ({k: v for k, v in columns().items() if k != "time"}, "there is no column 'time'"),
        (
            {**columns(), "leg_z": np.arange(5).astype("M8[ns]")},
            "row 0, column 'leg_z' must be a n",
        ),
        (
            {**columns(), "leg_z": np.arange(5).astype("m8[ns]")},
            "row 0, column 'leg_z' must be a n",
        ),
        ({**columns(), "leg_z": np.float32(3)}, r"column 'leg_z' must have one number a row.*\(\)"),
        ({**columns(), "leg_z": [[1.0], [2.0, 3.0]]}, "'leg_z' must have one number a row"),
        ("walk.csv", "a file must end with .parquet or .npy"),
    ],
)
def test_tables_that_do_not_fit(table, message):
    if isinstance(table, str) and importlib.util.find_spec("narwhals") is None:
        pytest.skip("narwhals is not installed")
    with pytest.raises(ValueError, match=message):
        layout(SPEC).recording(table)


def test_one_column_is_not_taken_for_two_without_a_word():
    table = dict.fromkeys(("a_b_c", "a_c", "a_b_b_c"), TIMES)
    with pytest.raises(ValueError, match="'a_b_c' would be a:b_c and a_b:c"):
        layout("a:b_c|c, a_b:b_c|c").recording(table)
    shared = layout({"a": {"x": "x", "warmth": "t"}, "b": {"x": "y", "warmth": "t"}})
    assert shared.recording({"x": TIMES, "y": TIMES, "t": TIMES}).values.shape == (5, 2, 2)


@pytest.mark.parametrize("kind", ["pandas", "pyarrow"])
def test_two_columns_of_one_name_are_refused(kind):
    module = pytest.importorskip(kind, exc_type=ImportError)
    names = ["ankle_x", "leg_x", "leg_x"]
    rows = np.arange(15.0).reshape(5, 3)
    table = (
        module.DataFrame(rows, columns=names)
        if kind == "pandas"
        else module.table([*rows.T], names=names)
    )
    with pytest.raises(ValueError, match=r"layout: .*name of its own\. 'leg_x' occurs more than"):
        layout("ankle:x, leg:x").recording(table)


def test_what_is_masked_or_missing_is_nan():
    spec = layout("a:x|y")
    x = np.ma.masked_array([1, 2, 3], [False, True, False])
    y = np.array([decimal.Decimal("0.5"), None, True], object)
    expected = [[1, 0.5], [np.nan, np.nan], [3, 1]]
    both = np.ma.masked_invalid(np.array(expected))
    fields = np.ma.zeros(3, [("a_x", "f8"), ("a_y", "f8")])
    fields["a_x"], fields["a_y"] = both.T
    for table in ({"a_x": x, "a_y": y}, both, fields):
        recording = spec.recording(table)
        assert type(recording.values) is np.ndarray
        np.testing.assert_array_equal(recording.values[:, 0], expected)


@pytest.mark.parametrize("kind", ["pandas", "polars", "pyarrow"])
def test_a_column_of_nulls_is_nan(kind):
    module = pytest.importorskip(kind, exc_type=ImportError)
    table = {"a_x": [1.0, 2.0], "a_y": [None, None]}
    made = module.table(table) if kind == "pyarrow" else module.DataFrame(table)
    values = layout("a:x|y").recording(made).values
    np.testing.assert_array_equal(values, [[[1, np.nan]], [[2, np.nan]]])


def test_a_parquet_file_that_is_none(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "walk.parquet").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"layout: .*walk\.parquet cannot be read as Parquet"):
        layout(SPEC).recording(tmp_path / "walk.parquet")

"""windows: against a loop in NumPy, with gaps, NaN, ragged ends, workers and files."""

import datetime
import itertools
import os
import pickle
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibackend_lstm import build_model, layout, windows
from multibackend_lstm.data import Recording, WindowDataset
from multibackend_lstm.data.orders import ShuffledOrder


def numbered(*lengths, axes=(2, 3), dtype="float32"):
    """Recordings in which every number occurs once, so that a value says where it comes from."""
    sizes = [n * int(np.prod(axes)) for n in lengths]
    starts = np.cumsum([0, *sizes])
    return [
        np.arange(start, start + size).reshape(n, *axes).astype(dtype)
        for n, start, size in zip(lengths, starts, sizes, strict=False)
    ]


def batches(dataset):
    return [dataset[index] for index in range(len(dataset))]


def joined(dataset, part=0):
    return np.concatenate([np.asarray(batch[part]) for batch in batches(dataset)])


def brute_force(recordings, targets, length, stride, horizon, k, parts):
    """All windows and their targets, by the definition alone."""
    x, y = [], []
    for recording, target, own_parts in zip(recordings, targets, parts, strict=True):
        for low, high in own_parts:
            shift = max(0, k - length - horizon)
            for start in range(low + shift, high, stride):
                last = start + length - 1 + horizon
                if last >= high or start + length > high:
                    break
                x.append(recording[start : start + length])
                y.append(target[last - k + 1 : last + 1])
    return x, y


@st.composite
def problems(draw):
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    gaps = [sorted(draw(st.sets(st.integers(1, max(1, n - 1)), max_size=3))) for n in lengths]
    return {
        "lengths": lengths,
        "gaps": [[g for g in own if g < n] for own, n in zip(gaps, lengths, strict=True)],
        "length": draw(st.integers(1, 6)),
        "stride": draw(st.integers(1, 7)),
        "horizon": draw(st.integers(0, 4)),
        "target_length": draw(st.sampled_from([None, 1, 2, 3, 9])),
        "batch_size": draw(st.integers(1, 5)),
        "shuffle": draw(st.booleans()),
    }


@given(problems())
def test_windows_equal_a_loop(problem):
    recordings = numbered(*problem["lengths"])
    targets = [r[:, 0, 0] + 0.5 for r in recordings]
    times, parts = [], []
    for n, gaps in zip(problem["lengths"], problem["gaps"], strict=True):
        edges = [0, *gaps, n]
        parts.append(list(itertools.pairwise(edges)))
        # Steps of exactly max_gap, and gaps of a little more.
        times.append(np.arange(n) * 2 + np.isin(np.arange(n), gaps).cumsum())
    names = ("length", "stride", "horizon", "target_length", "batch_size", "shuffle")
    k = problem["target_length"] or 1
    x, y = brute_force(
        recordings, targets, *(problem[n] for n in ("length", "stride", "horizon")), k, parts
    )
    arguments = {name: problem[name] for name in names}
    arguments |= {"targets": targets, "timestamps": times, "max_gap": 2}
    if not x:
        with pytest.raises(ValueError, match="no window is left"):
            windows(recordings, **arguments)
        return
    dataset = windows(recordings, **arguments)
    assert dataset.windows == len(x)
    assert [len(b[0]) for b in batches(dataset)][:-1] == [problem["batch_size"]] * (
        len(dataset) - 1
    )
    found_x, found_y = joined(dataset), joined(dataset, 1)
    if problem["target_length"] is None:
        y = [own[-1] for own in y]
    order = np.argsort(found_x[:, 0, 0, 0]) if problem["shuffle"] else slice(None)
    np.testing.assert_array_equal(found_x[order], np.array(x))
    np.testing.assert_array_equal(found_y[order], np.array(y))


@given(
    st.lists(st.integers(0, 11), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(0, 3),
)
def test_a_ragged_window_holds_what_no_full_one_covers(lengths, length, stride, horizon):
    recordings = numbered(*lengths, axes=(2,))
    targets = [r[:, 0] for r in recordings]
    expected = []
    for recording in recordings:
        n = len(recording)
        starts = [s for s in range(0, n, stride) if s + length + horizon <= n]
        expected += [(recording, s, length) for s in starts]
        covered = starts[-1] + length if starts else 0
        following = starts[-1] + stride if starts else 0
        if covered < n - horizon and following < n - horizon:
            expected.append((recording, following, n - horizon - following))
    arguments = {"targets": targets, "horizon": horizon, "ragged": True, "batch_size": 3}
    if not expected:
        with pytest.raises(ValueError, match="no window is left"):
            windows(recordings, length, stride, **arguments)
        return
    dataset = windows(recordings, length, stride, **arguments)
    x = np.concatenate([b[0]["inputs"] for b in batches(dataset)])
    steps = np.concatenate([b[0]["lengths"] for b in batches(dataset)])
    assert steps.dtype == "int32"
    assert [n for _, _, n in expected] == steps.tolist()
    y = joined(dataset, 1)
    for own, target, (recording, start, n) in zip(x, y, expected, strict=True):
        np.testing.assert_array_equal(own[:n], recording[start : start + n])
        assert (own[n:] == 0).all()
        assert target == recording[start + n - 1 + horizon, 0]


def test_horizon_without_targets_forecasts_the_recording():
    (recording,) = numbered(10)
    dataset = windows(recording, 4, horizon=2)
    np.testing.assert_array_equal(joined(dataset, 1), recording[5:])
    steps = windows(recording, 4, horizon=3, target_length=3)
    np.testing.assert_array_equal(steps[0][1][0], recording[4:7])


def test_without_targets_batches_are_inputs_alone():
    assert [len(batch) for batch in batches(windows(numbered(9), 4))] == [1]


@pytest.mark.parametrize("dtype", ["float16", "float64", "int16", "uint8", "bool"])
def test_dtypes(dtype):
    recordings = numbered(9, dtype=dtype)
    assert windows(recordings, 4)[0][0].dtype == "float32"
    kept = windows(recordings, 4, dtype=None)[0][0]
    assert kept.dtype == dtype
    np.testing.assert_array_equal(kept[1], recordings[0][1:5])
    assert windows([*recordings, *numbered(9)], 4, dtype=None)[0][0].dtype == np.result_type(
        dtype, "float32"
    )


def test_targets_of_unlike_dtypes_come_in_one():
    targets = [np.arange(9), np.arange(9) + 0.5]
    y = [batch[1] for batch in batches(windows(numbered(9, 9), 4, targets=targets, batch_size=6))]
    assert {part.dtype.name for part in y} == {"float64"}


def test_batches_are_copies_and_views_are_not():
    (recording,) = numbered(20)
    dataset = windows(recording, 6, stride=5, dtype=None)
    batch = dataset[0][0]
    assert not np.shares_memory(batch, recording)
    assert batch.flags.writeable
    (view,) = dataset.views()
    assert np.shares_memory(view, recording)
    assert not view.flags.writeable
    np.testing.assert_array_equal(view, batch)


def test_recordings_in_other_memory_orders():
    recording = np.asfortranarray(np.random.default_rng(0).normal(size=(12, 2, 3)))
    for turned in (recording, recording[::-1], recording[::2], recording.transpose(0, 2, 1)):
        expected = np.stack([turned[s : s + 4] for s in range(len(turned) - 3)])
        np.testing.assert_array_equal(joined(windows(turned, 4, dtype=None)), expected)


def test_several_inputs():
    fast, slow = numbered(12), numbered(12, axes=(1,))
    recordings = [{"motion": fast[0], "heart": slow[0]}]
    labels = [1]
    dataset = windows(recordings, 5, targets=labels, batch_size=4)
    x, y = dataset[0]
    assert {name: value.shape for name, value in x.items()} == {
        "motion": (4, 5, 2, 3),
        "heart": (4, 5, 1),
    }
    assert y.tolist() == [1] * 4
    inputs = {
        "motion": keras.Input((5, 2, 3), name="motion"),
        "heart": keras.Input((5, 1), name="heart"),
    }
    flat = [keras.layers.Flatten()(value) for value in inputs.values()]
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(flat)))
    model.compile(optimizer="sgd", loss="mse")
    model.fit(dataset, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match=r"must share their time steps.*motion: 12, heart: 11"):
        windows([{"motion": fast[0], "heart": slow[0][:11]}], 5)


# Missing values.


def with_nan(*places, n=20):
    (recording,) = numbered(n)
    for place in places:
        recording[place] = np.nan
    return recording


def test_nan_is_an_error_with_its_place():
    sensors = layout("ankle:x|y|z, leg:x|y|z")
    named = sensors.recording(with_nan((7, 1, 2)).reshape(20, 6), name="walk")
    with pytest.raises(ValueError, match="recording walk, row 7, column leg:z is nan"):
        windows([named], 4)
    with pytest.raises(ValueError, match=r"recording 1, row 7, column \[1, 2\] is nan"):
        windows([numbered(5)[0], with_nan((7, 1, 2))], 4)
    infinite = numbered(20)[0]
    infinite[3, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"recording b, row 3, column \[0, 0\] is inf"):
        windows({"b": infinite}, 4, missing="drop")
    assert np.isnan(joined(windows(with_nan((7, 1, 2)), 4, missing=None))).any()


def test_dropping_leaves_no_window_over_a_nan():
    recording = with_nan((7, 1, 2), (15, 0, 0))
    dataset = windows(recording, 4, missing="drop")
    starts = [s for s in range(17) if not np.isnan(recording[s : s + 4]).any()]
    np.testing.assert_array_equal(joined(dataset), np.stack([recording[s : s + 4] for s in starts]))


@given(
    st.sets(st.integers(0, 19), max_size=6), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3)
)
def test_dropping_leaves_no_window_whose_target_is_nan(rows, stride, horizon, k):
    (recording,) = numbered(20)
    target = np.arange(20.0)
    target[list(rows)] = np.nan
    starts = [
        s
        for s in range(0, 20, stride)
        if s + 4 + horizon <= 20
        and not np.isnan(target[s + 4 + horizon - k : s + 4 + horizon]).any()
    ]
    arguments = {"targets": target, "horizon": horizon, "target_length": k}
    if not starts:
        with pytest.raises(ValueError, match="every target is NaN"):
            windows(recording, 4, stride, missing="drop", **arguments)
        return
    dataset = windows(recording, 4, stride, missing="drop", **arguments)
    np.testing.assert_array_equal(joined(dataset)[:, 0], recording[starts])
    last = np.array(starts) + 3 + horizon
    np.testing.assert_array_equal(joined(dataset, 1)[:, -1], target[last])
    if rows:
        with pytest.raises(ValueError, match=f"recording 0, row {min(rows)} is nan"):
            windows(recording, 4, stride, **arguments)


def test_the_marker_fills_the_channel_of_a_missing_reading():
    recording = with_nan((7, 1, 2))
    x = windows(recording, 20, missing=-1e9)[0][0][0]
    expected = recording.copy()
    expected[7, 1] = -1e9
    np.testing.assert_array_equal(x, expected)
    assert np.isnan(recording[7, 1, 2])  # the recording itself is left alone
    with pytest.raises(ValueError, match=r"missing=6.0 occurs as a reading: recording 0, row 6"):
        windows(np.arange(20.0)[:, None], 4, missing=6.0)
    with pytest.raises(ValueError, match="finite in dtype float16"):
        windows(recording, 4, missing=-1e9, dtype="float16")


def test_masks_beside_the_inputs():
    recording = with_nan((7, 1, 2), (8, slice(None), 0))
    x, mask = (windows(recording, 20, missing="mask")[0][0][name][0] for name in ("inputs", "mask"))
    expected = np.ones((20, 2), bool)
    expected[7, 1] = expected[8] = False
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(x, np.where(expected[..., None], recording, 0))
    ragged = windows(recording, 12, 12, missing="mask", ragged=True)[0][0]
    assert ragged["lengths"].tolist() == [12, 8]
    assert not ragged["mask"][1, 8:].any()


def test_masked_arrays_of_numpy():
    masked = np.ma.masked_equal(np.arange(20).reshape(20, 1), 7)
    assert 7 not in joined(windows(masked, 4, missing="drop"))
    assert 7 not in joined(windows(Recording(masked), 4, missing="drop"))


# Timestamps.


@pytest.mark.parametrize(
    ("times", "max_gap"),
    [
        ([0, 1, 2, 4, 5, 6], 1),
        (np.array([0, 1, 2, 4, 5, 6], "uint8"), 1),
        (np.array([0, 1, 2, 4, 5, 6], "float16"), 1),
        (np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7]), 0.1),
        (np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7], "float32"), 0.1),
        (np.datetime64("2026-01-01T00:00") + np.array([0, 1, 2, 4, 5, 6]), np.timedelta64(1, "m")),
        (
            [f"2026-01-01T00:00:0{s}" for s in (0, 1, 2, 4, 5, 6)],
            datetime.timedelta(seconds=1),
        ),
    ],
    ids=["list", "uint8", "float16", "float64", "float32", "datetime64", "strings"],
)
def test_a_gap_of_exactly_max_gap_is_none(times, max_gap):
    (recording,) = numbered(6)
    dataset = windows(recording, 3, timestamps=times, max_gap=max_gap)
    np.testing.assert_array_equal(joined(dataset), [recording[:3], recording[3:]])
    assert windows(recording, 3, timestamps=times).windows == 4


def test_integer_timestamps_do_not_overflow():
    times = np.array([-128, 127], "int8")
    assert windows(numbered(2), 2, timestamps=[times], max_gap=255).windows == 1
    with pytest.raises(ValueError, match=r"no window is left.*without gaps its parts have 1"):
        windows(numbered(2), 2, timestamps=[times], max_gap=254)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0, 2, 1, 3], "row 2: the timestamp 1 comes after 2.*Sort"),
        ([0, 1, 1, 3], "row 2: the timestamp 1 is that of the row before"),
        (np.array([0, 3, 2, 4], "uint8"), "row 2"),
        ([0, 1, np.nan, 3], "row 2: the timestamp is nan"),
        ([True, False, True, False], "must be 4 numbers, dates"),
        ([0, 1, 2], r"must be 4 numbers, dates.*shape \(3,\)"),
        (["2026-01-01", "soon", "2026-01-03", "2026-01-04"], "row 1: the timestamp 'soon'"),
        (["2026-01-01T00:00Z"] * 4, "row 0.*without a time zone"),
        (["1", "2", "3", "4"], "are years.*Received '1'"),
        (
            np.array(["2026-01-01", "NaT", "2026-01-03", "2026-01-04"], "datetime64[D]"),
            "row 1.*NaT",
        ),
    ],
)
def test_timestamps_that_are_wrong(times, message):
    with pytest.raises(ValueError, match=message):
        windows({"walk": numbered(4)[0]}, 2, timestamps={"walk": times})


@pytest.mark.parametrize("max_gap", [0, -1, np.nan, True, "1s", np.timedelta64(1, "s")])
def test_a_max_gap_that_is_wrong(max_gap):
    with pytest.raises(ValueError, match="`max_gap` must be a positive number"):
        windows(numbered(4), 2, timestamps=[[0, 1, 2, 3]], max_gap=max_gap)
    if not isinstance(max_gap, np.timedelta64):
        days = np.arange("2026-01-01", "2026-01-05", dtype="datetime64[D]")
        with pytest.raises(ValueError, match="`max_gap` must be a positive duration"):
            windows(numbered(4), 2, timestamps=[days], max_gap=max_gap)


@pytest.mark.parametrize("unit", ["M", "Y", None])
def test_a_max_gap_of_no_fixed_length_is_refused(unit):
    days = np.arange("2026-01-01", "2026-01-05", dtype="datetime64[D]")
    max_gap = np.timedelta64(1, unit) if unit else np.timedelta64(1)
    with pytest.raises(ValueError, match="`max_gap` must be a positive duration"):
        windows(numbered(4), 2, timestamps=[days], max_gap=max_gap)


def test_dates_with_a_time_zone_are_in_utc():
    zone = datetime.timezone(datetime.timedelta(hours=2))
    times = [datetime.datetime(2026, 1, 1, 2, 0, s, tzinfo=zone) for s in range(4)]
    dataset = windows(numbered(4), 2, timestamps=[times], max_gap=datetime.timedelta(seconds=1))
    expected = np.datetime64("2026-01-01T00:00:00") + np.arange(4)
    np.testing.assert_array_equal(dataset.series[0].timestamps, expected)
    assert dataset.windows == 3


def test_inputs_of_other_times_are_not_put_side_by_side():
    one, other = (Recording(numbered(4)[0], np.arange(4) + later) for later in (0, 1))
    with pytest.raises(ValueError, match=r"recording 0 must share.* their timestamps differ"):
        windows([{"a": one, "b": other}], 2)
    assert windows([{"a": one, "b": other}], 2, timestamps=[np.arange(4)]).windows == 3


# Orders.


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000, 70_000])
def test_each_epoch_is_a_permutation(count):
    order = ShuffledOrder(count, 1)
    first = order.places(0, count, 0)
    np.testing.assert_array_equal(np.sort(first), np.arange(count))
    pieces = [
        ShuffledOrder(count, 1).places(a, min(a + 7, count), 0) for a in range(0, min(count, 70), 7)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), first[: sum(map(len, pieces))])
    if count > 7:
        for other in (order.places(0, count, 1), ShuffledOrder(count, 2).places(0, count, 0)):
            assert (np.sort(other) == np.arange(count)).all()
            assert (other != first).mean() > 0.5


def test_every_sample_comes_to_every_place():
    order, count, epochs = ShuffledOrder(10, 0), 10, 3000
    table = np.zeros((count, count))
    pairs = Counter()
    for epoch in range(epochs):
        places = order.places(0, count, epoch)
        table[np.arange(count), places] += 1
        pairs[tuple(places[:2].tolist())] += 1
    # Chi squared of 81 degrees of freedom: above 140 once in 50,000 times.
    assert ((table - epochs / count) ** 2 / (epochs / count)).sum() < 140
    assert len(pairs) == 90


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_the_same_batches_for_any_number_of_workers(workers):
    arguments = {"targets": [0, 1, 2], "shuffle": True, "seed": 3, "batch_size": 4}
    plain = windows(numbered(30, 20, 25), 5, **arguments)
    other = windows(numbered(30, 20, 25), 5, workers=workers, **arguments)
    epochs = []
    for _ in range(3):
        mine, theirs = list(plain), list(other)
        epochs.append(np.concatenate([b[0] for b in mine]))
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[1], b[1])
    assert not (epochs[0] == epochs[1]).all()
    np.testing.assert_array_equal(np.sort(epochs[0], 0), np.sort(epochs[2], 0))


@pytest.fixture(scope="module")
def small_model():
    """Compiled once for all tests that only count what `fit` reads."""
    model = build_model((5, 2, 3), units=2, normalization=True)
    model.compile(optimizer="sgd", loss="mse")
    return model


@pytest.mark.parametrize("workers", [1, 3])
def test_fit_takes_each_epochs_order(workers, monkeypatch, small_model):
    dataset = windows(
        numbered(30, 20), 5, targets=[0.0, 1.0], shuffle=True, seed=7, batch_size=8, workers=workers
    )
    seen = []
    original = WindowDataset.batch
    monkeypatch.setattr(
        WindowDataset, "batch", lambda s, i, e: (seen.append((e, i)), original(s, i, e))[1]
    )
    model = small_model
    model.adapt(dataset)
    model.fit(dataset, epochs=2, verbose=0)
    assert dataset.epoch == 2
    model.fit(dataset, epochs=4, initial_epoch=3, verbose=0)
    assert dataset.epoch == 4
    for epoch in (0, 1, 3):
        assert {i for e, i in seen if e == epoch} == set(range(len(dataset)))
    if workers == 1:
        # Before it begins, `fit` looks at the first batch of the order that is current.
        assert [i for e, i in seen if e not in (0, 1, 3)] == [0]


def test_plain_keras_models_get_a_new_order_each_epoch():
    dataset = windows(numbered(30, 20), 5, targets=[0.0, 1.0], shuffle=True, batch_size=8)
    model = keras.Sequential(
        [keras.Input((5, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    model.compile(optimizer="sgd", loss="mse")
    model.fit(dataset, epochs=3, shuffle=False, verbose=0)
    assert dataset.epoch == 3


# With models.


def test_training_on_windows_equals_training_on_arrays():
    recordings = numbered(30, 20)
    dataset = windows(recordings, 6, 2, targets=[0.0, 1.0], batch_size=5)
    x, y = joined(dataset), joined(dataset, 1)
    # One model, compiled once, from the same start.
    model = build_model((6, 2, 3), units=3, normalization=True)
    model.compile(optimizer="sgd", loss="mse")
    start, ends = model.get_weights(), []
    for data in ((dataset,), (x, y)):
        model.set_weights(start)
        model.adapt(data[0])
        model.fit(*data, batch_size=None if len(data) == 1 else 5, shuffle=False, verbose=0)
        ends.append(model.get_weights())
    assert any((a != b).any() for a, b in zip(start, ends[0], strict=True))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(
        model.predict(windows(recordings, 6, 2), verbose=0),
        model.predict(x, verbose=0),
        atol=1e-6,
    )


def test_ragged_windows_go_into_a_model_with_lengths():
    dataset = windows(numbered(17, 9), 6, 6, targets=[0, 1], ragged=True, class_balance=True)
    model = build_model((None, 2, 3), units=2, lengths=True, normalization=True, task="binary")
    model.adapt(dataset)
    model.compile(optimizer="sgd", loss="binary_crossentropy")
    model.fit(dataset, verbose=0)
    alone = windows(numbered(17), 6, 6, ragged=True)
    found = model.predict(alone, verbose=0)
    np.testing.assert_allclose(
        found[-1:], model.predict((numbered(17)[0][None, 12:], np.array([5])), verbose=0), atol=1e-6
    )


def test_the_marker_goes_into_a_model_with_masking():
    recording = with_nan((7,), (8,))
    dataset = windows(recording, 10, targets=np.zeros(20), missing=-1e9)
    model = build_model((10, 2, 3), units=2, masking=-1e9, normalization=True)
    model.adapt(dataset)
    # The marked steps are skipped: without them the outputs are the same.
    window = dataset[0][0][:1]
    assert (window == -1e9).any()
    kept = window[:, ~(window[0] == -1e9).all(axis=(1, 2))]
    np.testing.assert_allclose(
        *(
            np.asarray(keras.ops.convert_to_numpy(model(x)))
            for x in (
                window,
                np.concatenate([kept, np.full_like(window, -1e9)[:, : 10 - kept.shape[1]]], axis=1),
            )
        ),
        atol=1e-6,
    )
    mean, variance = windows(recording, 10, missing=-1e9).statistics()
    np.testing.assert_allclose(mean, np.nanmean(recording, axis=0, dtype="float64"))
    np.testing.assert_allclose(variance, np.nanvar(recording, axis=0, dtype="float64"))


def test_the_model_must_mask_the_marker():
    dataset = windows(with_nan((15,)), 5, targets=np.zeros(20), missing=-1e9, batch_size=4)
    for masking in (None, -5.0):
        model = build_model((5, 2, 3), units=2, masking=masking)
        model.compile(optimizer="sgd", loss="mse")
        with pytest.raises(ValueError, match=r"must mask what .*missing=-1000000000.0.*masking=-1"):
            model.fit(dataset, verbose=0)
    # The first batch has nothing missing, of which `fit` would warn if it came in an array.
    model = build_model((5, 2, 3), units=2, masking=-1e9)
    model.compile(optimizer="sgd", loss="mse")
    model.fit(dataset, verbose=0)


def test_an_integer_dtype_cannot_hold_nan():
    for missing in (-1, "mask"):
        with pytest.raises(ValueError, match=r"row 7.* is nan.*with a real `dtype`"):
            windows(with_nan((7, 1, 2)), 4, missing=missing, dtype="int32")


def test_statistics_count_each_step_once():
    (recording,) = numbered(23)
    mean, variance = windows(recording, 5, 3).statistics()  # the last window ends at step 23
    np.testing.assert_allclose(mean, recording.mean(axis=0))
    apart = windows(recording, 2, 5)
    held = np.concatenate([recording[s : s + 2] for s in range(0, 22, 5)])
    np.testing.assert_allclose(apart.statistics()[0], held.mean(axis=0))
    np.testing.assert_allclose(apart.statistics(axis=(-1,))[0], held.mean(axis=(0, 1)))
    assert variance.shape == (2, 3)


def test_class_balance():
    target = np.array([0] * 15 + [1] * 5)
    dataset = windows(numbered(20), 4, targets=[target], class_balance=True, batch_size=3)
    labels, weights = joined(dataset, 1), joined(dataset, 2)
    sums = [weights[labels == label].sum() for label in (0, 1)]
    assert sums[0] == pytest.approx(sums[1])
    assert weights.mean() == pytest.approx(1)
    assert dataset.class_weight == pytest.approx({0: 17 / 24, 1: 17 / 10})
    for wrong in (target.astype(float), None, np.stack([target, target], 1)):
        with pytest.raises(ValueError, match="class_balance=True needs"):
            windows(numbered(20), 4, targets=None if wrong is None else [wrong], class_balance=True)


# Files.


def test_a_file_is_mapped_and_read_again_in_a_copy(tmp_path):
    path = tmp_path / "walk.npy"
    (recording,) = numbered(40)
    np.save(path, recording)
    for recordings in (path, str(path), [path], {"walk": path}):
        dataset = windows(recordings, 6, horizon=1, shuffle=True)
        assert len(pickle.dumps(dataset)) < 4000
        copy = pickle.loads(pickle.dumps(dataset))
        for mine, theirs in zip(batches(dataset)[0], batches(copy)[0], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(joined(windows(path, 6)), joined(windows(recording, 6)))


def test_a_copy_of_a_forecast_holds_no_file(tmp_path):
    np.save(tmp_path / "walk.npy", np.zeros((2000, 3)))
    assert len(pickle.dumps(windows(tmp_path / "walk.npy", 6, horizon=1))) < 4000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_large_file_does_not_stay_in_memory(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    path, size = tmp_path / "large.npy", 1 << 28
    np.lib.format.open_memmap(path, "w+", "float32", shape=(size // 64, 2, 8))  # sparse
    before, most = resident(), 0
    for missing, shuffle in (("error", False), (None, True)):
        dataset = windows(path, 512, 512, missing=missing, shuffle=shuffle)
        for index in range(len(dataset)):
            dataset[index]
            most = max(most, resident())
    assert most - before < size // 2


def test_objects_are_never_unpickled(tmp_path):
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{}, None], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be mapped"):
        windows(path, 1)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match="cannot be mapped"):
        windows(tmp_path / "text.npy", 1)


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "`length` must be a whole number of 1 or more. Received 0"),
        ({"stride": 1.5}, "`stride` must be a whole number"),
        ({"horizon": -1}, "`horizon` must be a whole number of 0 or more"),
        ({"batch_size": True}, "`batch_size`"),
        ({"recordings": []}, "`recordings` is empty"),
        ({"recordings": [np.zeros(9)]}, r"recording 0 must hold real numbers.*Pass `x\[:, None\]`"),
        ({"recordings": [np.array([["a"]])]}, "recording 0 must hold real numbers"),
        ({"recordings": ["walk.csv"]}, "recording walk.csv must be an array"),
        (
            {"recordings": [np.zeros((9, 2, 3)), np.zeros((9, 3, 3))]},
            r"same channels and features. Recording 0 has \(time, 2, 3\), 1 has \(time, 3, 3\)",
        ),
        (
            {"targets": [0]},
            "`targets` must have one entry for each of the 2 recordings. Received 1",
        ),
        (
            {"targets": [np.zeros(8), np.zeros(9)]},
            "targets of recording 0 must be one for each of its 9",
        ),
        ({"targets": ["walk", "run"]}, "must be numbers.*numpy.unique"),
        ({"targets": [0, np.zeros(9)]}, "must have the same form"),
        ({"targets": {"a": 0, "b": 1}}, "must have the names of the recordings"),
        ({"groups": [[1], [2]]}, "the group of recording 0 must be a string or a number"),
        ({"max_gap": 1}, "`max_gap` needs the times of the steps, and recording 0 has none"),
        ({"missing": "ignore"}, "`missing` must be 'error'"),
        ({"missing": np.inf}, "must be finite"),
        ({"dtype": "float33"}, "`dtype` must be one of real numbers.*'float33'"),
        ({"dtype": "complex64"}, "`dtype` must be one of real numbers"),
        ({"missing": -1e9, "dtype": "int8"}, "must be finite in dtype int8"),
        ({"recordings": [np.full((9, 1), 1e39)]}, "is 1e\\+39, too large for float32"),
        ({"ragged": True, "target_length": 2}, "ragged=True gives one target a window"),
        (
            {"length": 10},
            r"One reads 10 steps \(length=10, horizon=0\); the longest of 2 recordings has 9",
        ),
        ({"length": 9, "horizon": 1}, "One reads 10 steps"),
    ],
)
def test_mistakes_are_named(arguments, message):
    arguments = {"recordings": [np.zeros((9, 2, 3))] * 2, "length": 4, **arguments}
    with pytest.raises(ValueError, match=message):
        windows(**arguments)


def test_tables_need_a_layout():
    class Table:
        columns = ("a", "b")

    with pytest.raises(ValueError, match=r"recording 0 is a table, Table.*layout"):
        windows([Table()], 4)


def test_recordings_with_other_names_are_not_mixed():
    array = np.zeros((9, 6))
    recordings = [
        layout(f"{name}:x|y|z, leg:x|y|z").recording(array) for name in ("ankle", "wrist")
    ]
    with pytest.raises(ValueError, match=r"ankle\|leg with x\|y\|z, 1 has .* of wrist\|leg"):
        windows(recordings, 4)

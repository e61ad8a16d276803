"""split_windows: that no step is on both sides is checked on data whose values say who they are."""

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibackend_lstm import build_model, split_windows, windows


def steps_read(dataset):
    """All that the windows of a dataset read, inputs and targets, as the numbers of steps."""
    found = set()
    for index in range(len(dataset)):
        x, y = dataset[index][:2]
        if isinstance(x, dict):  # what stands behind the end of a ragged window is not read
            x = np.concatenate([one[:n] for one, n in zip(x["inputs"], x["lengths"], strict=True)])
        found |= {*map(int, x.ravel()), *map(int, np.ravel(y))}
    return found


def identified(*lengths):
    """Recordings whose value at a step is the step's number: 1,000,000 for each recording."""
    return [1_000_000 * at + np.arange(n, dtype="float64")[:, None] for at, n in enumerate(lengths)]


def dataset_of(lengths, length, stride=1, **arguments):
    recordings = identified(*lengths)
    arguments = {
        "targets": [r[:, 0] for r in recordings],
        "groups": [f"person {at % 3}" for at in range(len(lengths))],
        "dtype": "float64",
        **arguments,
    }
    return windows(recordings, length, stride, **arguments)


@given(
    st.lists(st.integers(30, 60), min_size=4, max_size=6),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(0, 3),
    st.sampled_from([None, 2]),
    st.sampled_from([None, 0, 1, 9]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_no_step_is_on_both_sides(
    lengths, length, stride, horizon, target_length, embargo, ragged, by_time, by_group
):
    whole = dataset_of(
        lengths,
        length,
        stride,
        horizon=horizon,
        target_length=target_length,
        ragged=ragged and target_length is None,
    )
    cuts = {"test_last": 0.4} if by_time else {}
    if by_group or not by_time:
        cuts["test_groups"] = ["person 1"]
    train, test = split_windows(whole, embargo=embargo, **cuts)
    read, tested = steps_read(train), steps_read(test)
    assert read
    assert tested
    assert not read & tested
    if "test_groups" in cuts:
        assert {step // 1_000_000 % 3 for step in tested} == {1}
        assert 1 not in {step // 1_000_000 % 3 for step in read}
    if by_time:
        gap = length if embargo is None else embargo
        for at in range(len(lengths)):
            before = [step for step in read if step // 1_000_000 == at]
            behind = [step for step in tested if step // 1_000_000 == at]
            if before and behind:
                assert min(behind) - max(before) > gap
    else:
        # Nothing is lost where time is not cut.
        assert train.windows + test.windows == whole.windows


def test_a_random_draw_of_windows_would_be_caught():
    whole = dataset_of([40], 5, shuffle=True)
    places = np.random.default_rng(0).permutation(whole.windows)
    x = np.concatenate([batch[0] for batch in whole])
    sides = [{*x[part].ravel().tolist()} for part in (places[:20], places[20:])]
    assert sides[0] & sides[1]


def test_both_cuts_test_the_later_time_of_other_groups():
    whole = dataset_of([40] * 6, 4)
    train, test = split_windows(whole, test_groups=["person 2"], test_last=0.25)
    assert min(step % 1_000_000 for step in steps_read(test)) == 30
    assert max(step % 1_000_000 for step in steps_read(train)) == 25
    assert {step // 1_000_000 for step in steps_read(test)} == {2, 5}


@pytest.mark.parametrize("kind", ["numbers", "dates"])
def test_since_cuts_all_recordings_at_one_moment(kind):
    times = [np.arange(40), np.arange(20, 60)]
    since = 30
    if kind == "dates":
        times = [np.datetime64("2026-01-01", "s") + t for t in times]
        since = "2026-01-01T00:00:30"
    whole = dataset_of([40, 40], 4, timestamps=times)
    train, test = split_windows(whole, test_since=since)
    assert steps_read(test) == {*range(30, 40), *range(1_000_010, 1_000_040)}
    assert steps_read(train) == {*range(26), *range(1_000_000, 1_000_006)}
    with pytest.raises(ValueError, match=r"`test_since` must be a|`test_since`, row 0"):
        split_windows(whole, test_since="noon" if kind == "dates" else "2026-01-01")


def test_a_share_of_groups_is_drawn_by_seed():
    groups = ["anna", "bert", 3, np.int64(4)]
    whole = dataset_of([20] * 4, 4, groups=groups)
    parts = [split_windows(whole, test_groups=0.5, seed=seed) for seed in range(12)]
    tested = [frozenset(s // 1_000_000 for s in steps_read(test)) for _, test in parts]
    assert {len(recordings) for recordings in tested} == {2}
    assert len({*tested}) > 2
    again = split_windows(whole, test_groups=0.5, seed=3)[1]
    assert steps_read(again) == steps_read(parts[3][1])
    assert steps_read(split_windows(whole, test_groups=[3, 4])[1]) >= {2_000_000, 3_000_000}


def test_statistics_know_nothing_of_the_test_part():
    recordings = [np.random.default_rng(0).normal(size=(60, 2, 3)).astype("float32")]
    recordings[0][45:] += 1000
    whole = windows(recordings, 5, targets=[np.zeros(60)])
    train, _ = split_windows(whole, test_last=0.25)
    mean, variance = train.statistics()
    np.testing.assert_allclose(mean, recordings[0][:40].mean(axis=0, dtype="float64"))
    model = build_model((5, 2, 3), units=2, normalization=(mean, variance))
    other = build_model((5, 2, 3), units=2, normalization=True)
    other.adapt(train)
    for one in (model, other):
        assert abs(np.asarray(one.get_layer("normalization").get_weights()[0])).max() < 1


def test_groups_may_be_tuples_of_anything():
    groups = [("a", None), ("a", 1), ("b", 2)]
    dataset = windows([np.zeros((9, 1))] * 3, 3, groups=groups)
    train, test = split_windows(dataset, test_groups=0.4)
    assert (train.windows, test.windows) == (14, 7)


def test_since_a_duration():
    times = np.arange(20).astype("timedelta64[s]")
    dataset = windows([np.zeros((20, 1))], 3, timestamps=[times])
    train, test = split_windows(dataset, test_since=datetime.timedelta(seconds=10), embargo=0)
    assert (train.windows, test.windows) == (8, 8)


def test_weights_and_order_are_for_training_alone():
    target = np.array([0] * 30 + [1] * 10)
    whole = windows(
        identified(40), 3, targets=[target], class_balance=True, shuffle=True, batch_size=40
    )
    train, test = split_windows(whole, test_last=0.2)
    assert len(train[0]) == 3
    assert len(test[0]) == 2
    assert set(train.class_weight) == {0}  # the steps before 29
    assert (np.diff(test[0][0][:, 0, 0]) == 1).all()
    assert not (np.diff(train[0][0][:, 0, 0]) == 1).all()
    # What was split is split again.
    inner, validation = split_windows(train, test_last=0.3)
    assert not {*inner[0][0].ravel().tolist()} & {*validation[0][0].ravel().tolist()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "say what the test part is"),
        ({"test_last": 0.2, "test_since": 3}, "both cut time"),
        ({"test_last": 1.5}, "`test_last` must lie between 0 and 1. Received 1.5"),
        ({"test_groups": ["carl"]}, "must be some of 'person 0', 'person 1'.*Received 'carl'"),
        ({"test_groups": []}, "Received none"),
        ({"test_groups": 0.01}, "leaves a part without any"),
        ({"test_groups": ["person 0", "person 1"]}, "no window is left to train. Choose other"),
        ({"test_since": 3}, "needs timestamps, and recording 0 has none"),
        ({"test_last": 0.1}, "no window is left to test: one reads 4 steps"),
        ({"test_last": 0.5, "embargo": 100}, "no window is left to train.*and 100 before the cut"),
        ({"test_last": 0.5, "embargo": -1}, "`embargo` must be a whole number"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_windows(dataset_of([20, 20], 4), **arguments)

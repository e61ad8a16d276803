"""The example on recordings made up here, in seconds and without a network.

pytest examples/live_exercises
"""

import io
import json
import time

import click
import exercises
import live
import numpy as np
import pictures
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

NAMES = ("ONE", "TWO", "SIX")


@pytest.fixture
def data():
    """Three subjects; each exercise holds the watch along another axis, and turns about another."""
    rng = np.random.default_rng(0)
    recordings, labels, subjects = [], [], []
    for subject in (1, 2, 3):
        for label in rng.permutation(len(NAMES)):
            seconds = np.arange(1000 + subject) / exercises.RATE
            x = rng.normal(scale=0.1, size=(len(seconds), 2, 3))
            x[:, 0, label] += 1
            x[:, 1, label] += np.sin(seconds * (3 + label + subject / 10))
            recordings.append(x)
            labels.append(label)
            subjects.append(subject)
    return exercises.Exercises(
        recordings, np.array(labels), np.array(subjects), np.ones(len(labels), int), NAMES
    )


def test_it_recognises_what_a_subject_it_has_not_seen_does(data, tmp_path):
    console = Console(file=io.StringIO(), width=100)
    result = live.run(data, 2, tmp_path / "live", console, epochs=12, copies=2, animation=True)
    assert (result["exercises"], result["exercises_right"]) == (3, 3)
    assert result["accuracy_by_step"] > 0.9
    assert result["seconds_until_right"]["never"] == 0
    assert result["largest_difference_from_model"] < 1e-5
    said = console.file.getvalue()
    assert all(name in said for name in NAMES)
    assert "3 of 3 exercises right" in live.summary(result)
    written = sorted(path.name for path in (tmp_path / "live").iterdir())
    assert written == ["live.gif", "live.png", "model.keras"]
    with Image.open(tmp_path / "live" / "live.gif") as movie:
        assert movie.n_frames == pictures.FRAMES


def test_a_subject_that_there_is_not_is_an_error(data, tmp_path):
    with pytest.raises(click.UsageError, match=r"subjects are 1, 2, 3\. Received 4"):
        live.run(data, 4, tmp_path, Console(file=io.StringIO()))


def test_json_is_all_that_is_printed(data, tmp_path, monkeypatch):
    def run(data, subject, folder, console, **options):
        console.print("a story")
        return {"subject": subject, **options}

    monkeypatch.setattr(exercises, "load", lambda: data)
    monkeypatch.setattr(live, "run", run)
    result = CliRunner().invoke(live.main, ["--json", "--subject", "3", "--speed", "2"])
    assert json.loads(result.stdout) == {
        "subject": 3,
        "epochs": live.EPOCHS,
        "speed": 2.0,
        "animation": False,
    }
    assert "a story" in result.stderr


def test_nothing_of_the_held_out_subject_is_in_training(data):
    (own,) = np.nonzero(data.subjects == 2)
    for i in own:
        data.recordings[i][:] = 1e6
    train = live.training_windows(live.mirrored(data), data, held_out=2, copies=2)
    assert train.windows > 0
    mean, variance = train.statistics()
    assert np.abs(mean).max() < 10
    assert np.abs(variance).max() < 10
    assert all(np.abs(x).max() < 100 for x, _ in (train[i] for i in range(len(train))))


def test_a_left_arm_mirrored_is_a_right_arm(data):
    right = live.mirrored(data)
    left = live.mirrored(data._replace(sides=0 * data.sides))
    # Mirrored in x, acceleration is a vector, and a rate of turn the product of two.
    mirror = np.diag([-1, 1, 1])
    first, second = np.eye(3)[0], np.array([0.5, -2, 3])
    turned = np.cross(mirror @ first, mirror @ second)
    np.testing.assert_allclose(np.linalg.det(mirror) * mirror @ np.cross(first, second), turned)
    np.testing.assert_allclose(left[0][:, 0], right[0][:, 0] @ mirror)
    np.testing.assert_allclose(left[0][:, 1], right[0][:, 1] @ (np.linalg.det(mirror) * mirror))
    assert all(len(x) % live.MEAN_OF == 0 for x in right)


def test_a_variation_is_turned_and_goes_through_the_same_angle():
    rng = np.random.default_rng(1)
    steps = np.ones((1000, 2, 3))
    for _ in range(5):
        varied = live.varied(steps, rng)
        lengths = np.linalg.norm(varied, axis=-1)
        np.testing.assert_allclose(lengths[:, 0], np.sqrt(3))  # gravity is what it was
        np.testing.assert_allclose(lengths[:, 1].sum(), 1000 * np.sqrt(3), rtol=0.01)


class FirstAxis:
    """In place of a stream: probabilities are what the accelerometer has."""

    def step(self, sample):
        return sample[0]


def test_an_exercise_is_named_when_it_has_led_for_a_second():
    hold, mean_of = live.HOLD, live.MEAN_OF
    leads = np.repeat([2, 0, 1, 0], [hold, hold - 1, 1, 2 * hold])
    samples = np.zeros((len(leads) * mean_of, 2, 3))
    # One sample of four is enough to lead a step's mean.
    samples[np.arange(len(leads)) * mean_of, 0, leads] = 4
    said = []
    played = live.play(FirstAxis(), samples, lambda *what: said.append(what[:3]))
    assert said == [(hold - 1, 2, 1.0), (3 * hold - 1, 0, 1.0)]
    assert played.named.tolist() == [-1] * (hold - 1) + [2] * 2 * hold + [0] * (hold + 1)
    np.testing.assert_array_equal(played.probabilities, np.eye(3)[leads])


def test_samples_come_at_the_speed_asked_for():
    start = time.perf_counter()
    live.play(FirstAxis(), np.ones((25, 2, 3)), lambda *what: None, speed=5)
    assert time.perf_counter() - start >= 0.1  # half a second of the watch


def test_the_verdict_counts_steps_exercises_and_delays():
    truth = np.repeat([0, 1, 1, 2], 10)
    named = np.repeat([-1, 0, 1, 0], [5, 10, 20, 5])
    played = live.Played(np.eye(3)[np.maximum(named, 0)], named, np.full(40, 0.001))
    found = live.judge(played, truth, [10, 10, 10, 10])
    # 10, 5 and 10 right of 40; the last is never right, and the first half of it still "1".
    assert found["accuracy_by_step"] == 0.625
    assert found["accuracy_of_named"] == 0.5
    assert (found["exercises"], found["exercises_right"]) == (4, 1)
    step = 1 / live.STEPS_A_SECOND
    # The third exercise is that before it, so there is no delay to count.
    assert found["seconds_until_right"] == {
        "median": round(6 * step, 2),
        "largest": round(6 * step, 2),
        "never": 1,
    }
    assert found["milliseconds_a_step"]["median"] == 1.0


def test_a_stream_that_differs_from_the_model_is_an_error():
    class Model:
        def predict(self, x, verbose):
            return x[..., 0, :]

    samples = np.random.default_rng(0).normal(size=(40, 2, 3))
    right = live.to_steps(samples)[:, 0]
    named, seconds = np.zeros(10, int), np.ones(10)
    assert live.check_stream(Model(), samples, live.Played(right, named, seconds)) == 0
    wrong = right.copy()
    wrong[7, 1] += 1e-3
    with pytest.raises(ValueError, match=r"differ by 1\.0e-03"):
        live.check_stream(Model(), samples, live.Played(wrong, named, seconds))

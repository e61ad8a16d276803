"""Recognise exercises while somebody does them: from raw recordings to a model to a stream.

    KERAS_BACKEND=jax python examples/live_exercises/live.py --animation

Read it from top to bottom: recordings, windows, model, stream, verdict. README.md says what comes
out, and why it is done this way.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import exercises
import keras
import numpy as np
import pictures
from rich.console import Console
from rich.progress import Progress

from multibackend_lstm import LSTM, Dropout, FlattenFeatures, Normalization, Stream, windows
from multibackend_lstm.agreement import initialize
from multibackend_lstm.data import split_windows
from multibackend_lstm.environment import versions
from multibackend_lstm.files import check_writable, replacing

MEAN_OF = 4  # samples of the watch make a step of the model: 50 Hz, 12.5 steps a second
STEPS_A_SECOND = exercises.RATE / MEAN_OF
LENGTH, STRIDE = 200, 100  # steps of a window: 16 s, one each 8 s
COPIES, EPOCHS = 4, 6
HOLD = 12  # steps in a row that an exercise must lead before it is named: 1 s


# 1. Recordings: what the watch gave, and a few more that it might have given.


def mirrored(data: exercises.Exercises) -> list[np.ndarray]:
    """Recordings of whole steps `(time, sensors=2, axes=3)`, all as if of a right arm.

    A watch knows on which wrist it is worn. On the other one its x axis points the other way along
    the arm: a reflection in x, under which a rate of turn keeps x and changes the signs of y and z.
    """
    signs = np.array([[-1, 1, 1], [1, -1, -1]])
    return [
        recording[: len(recording) // MEAN_OF * MEAN_OF] * (signs if side == 0 else 1)
        for recording, side in zip(data.recordings, data.sides, strict=True)
    ]


def to_steps(samples: np.ndarray) -> np.ndarray:
    """Means of `MEAN_OF` samples each."""
    return samples.reshape(-1, MEAN_OF, *samples.shape[1:]).mean(axis=1)


def varied(steps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same exercise done by somebody else: the watch sits askew, and the pace differs."""
    pace = np.exp(rng.normal(scale=0.2))
    at = np.arange(0, len(steps) - 1, pace)
    before = at.astype(int)
    part = (at - before)[:, None, None]
    varied = (1 - part) * steps[before] + part * steps[before + 1]
    varied[:, exercises.SENSORS.index("gyroscope")] *= pace
    axis = rng.normal(size=3)
    cross = np.cross(axis / np.linalg.norm(axis), np.eye(3))  # rows are axis x unit vectors
    angle = rng.normal(scale=0.5)
    return varied @ (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


# 2. Windows: sessions of one exercise after another, as the stream will see them.


def training_windows(
    recordings: Sequence[np.ndarray], data: exercises.Exercises, held_out: int, copies: int
) -> Any:
    """Windows of every subject but one, with the exercise of each of their steps.

    Windows lie across changes of exercise too, so that the model learns to notice them.
    """
    rng = np.random.default_rng(0)
    sessions, labels, subjects = [], [], []
    for copy in range(copies):
        for subject in np.unique(data.subjects):
            own = rng.permutation(np.flatnonzero(data.subjects == subject))
            steps = [to_steps(recordings[i]) for i in own]
            if copy > 0:
                steps = [varied(x, rng) for x in steps]
            sessions.append(np.concatenate(steps))
            labels.append(np.repeat(data.labels[own], [len(x) for x in steps]))
            subjects.append(subject)
    dataset = windows(
        sessions,
        LENGTH,
        STRIDE,
        targets=labels,
        target_length=LENGTH,
        groups=subjects,
        shuffle=True,
    )
    train, _ = split_windows(dataset, test_groups=[held_out])
    return train


# 3. Model: what it says at a step depends on that step and earlier ones alone, so it streams.


def build(classes: int, statistics: tuple[np.ndarray, np.ndarray]) -> keras.Model:
    """From `(batch, time, sensors=2, axes=3)` to probabilities `(batch, time, classes)`."""
    mean, variance = statistics
    inputs = keras.Input((None, len(exercises.SENSORS), 3), name="inputs")
    x = Normalization(axis=(-2, -1), mean=mean, variance=variance)(inputs)
    x = FlattenFeatures()(x)
    for _ in range(2):
        x = keras.layers.Conv1D(32, 5, padding="causal", activation="relu")(x)
    x = Dropout(0.3)(x)
    x = LSTM(64, return_sequences=True)(x)
    x = Dropout(0.5)(x)
    outputs = keras.layers.Dense(classes, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="live_exercises")


def train_model(train: Any, classes: int, epochs: int, advance: Callable[[], Any]) -> keras.Model:
    """A trained model; `advance` is called after each batch."""
    model = build(classes, train.statistics())
    initialize(model, seed=0)  # the same first weights and dropout masks on every backend
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(train))
    model.compile(
        optimizer=keras.optimizers.Adam(rate, clipnorm=1.0),
        loss="sparse_categorical_crossentropy",
    )
    after_batch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: advance())
    # The order of `windows`, which is the same on every backend, stays as it is.
    model.fit(train, epochs=epochs, shuffle=False, verbose=0, callbacks=[after_batch])
    return model


# 4. Stream: a sample comes in, probabilities go out.


class Played(NamedTuple):
    """What the stream said at each step."""

    probabilities: np.ndarray  # (steps, classes)
    named: np.ndarray  # (steps,), the exercise that was named last, -1 before the first
    seconds: np.ndarray  # (steps,), from a step's last sample to its probabilities


def play(
    stream: Stream,
    samples: Iterable[np.ndarray],
    say: Callable[[int, int, float, float], Any],
    speed: float | None = None,
) -> Played:
    """Feed samples `(sensors, axes)` to the stream, and say each exercise that is new.

    Args:
        stream: of a trained model.
        samples: in the order in which the watch gives them.
        say: called with step, exercise, its probability and the step's seconds.
        speed: 1 for the pace of the watch, 2 for twice that; None for no waiting.
    """
    probabilities, named, seconds = [], [], []
    current, leader, since = -1, -1, 0
    waiting: list[np.ndarray] = []
    begin = time.perf_counter()
    for number, sample in enumerate(samples, start=1):
        if speed is not None:
            time.sleep(max(0.0, begin + number / exercises.RATE / speed - time.perf_counter()))
        waiting.append(sample)
        if len(waiting) < MEAN_OF:
            continue
        start = time.perf_counter()
        found = stream.step(np.mean(waiting, axis=0))
        seconds.append(time.perf_counter() - start)
        waiting.clear()
        step = len(probabilities)
        if found.argmax() != leader:
            leader, since = int(found.argmax()), step
        if leader != current and step - since + 1 >= HOLD:
            current = leader
            say(step, current, float(found[current]), seconds[-1])
        probabilities.append(found)
        named.append(current)
    return Played(np.array(probabilities), np.array(named), np.array(seconds))


# 5. Verdict: how often it was right, how soon, and whether a stream is what the model is.


def judge(played: Played, truth: np.ndarray, lengths: Sequence[int]) -> dict[str, Any]:
    """Accuracy by step and by exercise, and how long it took.

    Args:
        played: what the stream said.
        truth: the exercise of each step, `(steps,)`.
        lengths: the number of steps of each recording.
    """
    ends = np.cumsum(lengths)
    right, delays, never = 0, [], 0
    for begin, end in zip(ends - lengths, ends, strict=True):
        named, true = played.named[begin:end], truth[begin]
        right += bool(np.mean(named == true) > 0.5)
        if begin > 0 and truth[begin - 1] == true:
            continue  # the exercise before was the same: nothing to notice
        if (named == true).any():
            # A step is over when its last sample has come.
            delays.append((np.argmax(named == true) + 1) / STEPS_A_SECOND)
        else:
            never += 1
    milliseconds = played.seconds * 1e3
    return {
        "steps": len(truth),
        "accuracy_by_step": round(float(np.mean(played.probabilities.argmax(-1) == truth)), 4),
        "accuracy_of_named": round(float(np.mean(played.named == truth)), 4),
        "exercises": len(lengths),
        "exercises_right": right,
        "seconds_until_right": {
            "median": round(float(np.median(delays)), 2) if delays else None,
            "largest": round(float(np.max(delays)), 2) if delays else None,
            "never": never,
        },
        "milliseconds_a_step": {
            "median": round(float(np.median(milliseconds)), 3),
            "p99": round(float(np.percentile(milliseconds, 99)), 3),
        },
    }


def check_stream(model: keras.Model, samples: np.ndarray, played: Played) -> float:
    """The largest difference from the model called once on the whole session.

    Raises:
        ValueError: where that is more than rounding.
    """
    whole = np.asarray(model.predict(to_steps(samples)[None], verbose=0))[0]
    difference = float(np.abs(whole - played.probabilities).max())
    if not difference < 1e-4:
        raise ValueError(f"stream and model differ by {difference:.1e}: the stream is wrong.")
    return difference


# 6. All of it.


def run(
    data: exercises.Exercises,
    subject: int,
    folder: Path,
    console: Console,
    *,
    epochs: int = EPOCHS,
    copies: int = COPIES,
    speed: float | None = None,
    animation: bool = False,
) -> dict[str, Any]:
    """Train without a subject, play that subject's recordings, and draw them."""
    beginning = time.perf_counter()
    subjects = np.unique(data.subjects).tolist()
    if subject not in subjects:
        known = ", ".join(map(str, subjects))
        raise click.UsageError(f"subjects are {known}. Received {subject}.")
    check_writable(folder)
    recordings = mirrored(data)
    train = training_windows(recordings, data, subject, copies)
    own = np.flatnonzero(data.subjects == subject)
    samples = np.concatenate([recordings[i] for i in own])
    lengths = [len(recordings[i]) // MEAN_OF for i in own]
    truth = np.repeat(data.labels[own], lengths)

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(
            f"training on {train.windows} windows of the other subjects",
            total=epochs * len(train),
        )
        model = train_model(train, len(data.class_names), epochs, lambda: progress.advance(task))
    trained = time.perf_counter()
    with replacing(folder / "model.keras") as temporary:
        model.save(temporary)

    # On what is in the file, as if this were another process, or another backend.
    stream = Stream(folder / "model.keras")
    stream.step(samples[0])  # compiles
    stream.reset()
    console.print(
        f"subject {subject}, {len(truth) / STEPS_A_SECOND / 60:.1f} minutes, on {stream}\n"
        " time   exercise  probability   ms"
    )

    def say(step: int, exercise: int, probability: float, seconds: float) -> None:
        at = (step + 1) / STEPS_A_SECOND
        mark = "" if exercise == truth[step] else f"  [dim]in truth {names[truth[step]]}[/]"
        console.print(
            f"{int(at // 60):2}:{at % 60:04.1f}  {names[exercise]:8}  {probability:11.2f}"
            f"  {seconds * 1e3:5.2f}{mark}",
            highlight=False,
        )

    names = data.class_names
    start = time.perf_counter()
    played = play(stream, samples, say, speed)
    end = time.perf_counter()
    result = {
        "subject": subject,
        "backend": keras.backend.backend(),
        **judge(played, truth, lengths),
        "largest_difference_from_model": check_stream(model, samples, played),
    }
    session = pictures.Session(samples, exercises.RATE, MEAN_OF, truth, *played[:2], names)
    pictures.draw(session, folder / "live.png")
    if animation:
        pictures.animate(session, folder / "live.gif")
    result["seconds"] = {
        "training": round(trained - beginning, 1),
        "stream": round(end - start, 1),
        "all": round(time.perf_counter() - beginning, 1),
        "processor": round(time.process_time(), 1),
    }
    return {**result, "versions": versions()}


def summary(result: dict[str, Any]) -> str:
    """The verdict in words."""
    until, cost = result["seconds_until_right"], result["milliseconds_a_step"]
    return (
        f"{result['exercises_right']} of {result['exercises']} exercises right, "
        f"{result['accuracy_by_step']:.1%} of steps; right after {until['median']} s (median; "
        f"largest {until['largest']}, never {until['never']})\n"
        f"a step takes {cost['median']} ms (p99 {cost['p99']}), and one comes each "
        f"{1e3 / STEPS_A_SECOND:.0f} ms; stream and model differ by "
        f"{result['largest_difference_from_model']:.1e}\n"
        f"{result['seconds']['all']} s in all, of which training {result['seconds']['training']}"
    )


@click.command()
@click.option("--subject", default=10, show_default=True, help="Whom the model has not seen.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("live"),
    show_default=True,
    help="Where model.keras, live.png and live.gif go.",
)
@click.option("--animation", is_flag=True, help="Make live.gif too.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="1: as it happened.")
@click.option("--epochs", type=click.IntRange(min=1), default=EPOCHS, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def main(
    subject: int, folder: Path, animation: bool, speed: float | None, epochs: int, as_json: bool
) -> None:
    """Recognise the exercises of somebody whom the model has not seen, while they are done."""
    console = Console(file=sys.stderr if as_json else None)
    result = run(
        exercises.load(),
        subject,
        folder,
        console,
        epochs=epochs,
        speed=speed,
        animation=animation,
    )
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        console.print(summary(result), highlight=False, soft_wrap=True)
        console.print(f"written: {folder}/model.keras, live.png{', live.gif' * animation}")


if __name__ == "__main__":
    main()

"""How well does each solution recognise exercises of people it has not seen?

    python benchmarks/accuracy.py --backend jax --solutions mlstm_fcn conv   # runs, or goes on
    python benchmarks/accuracy.py --backend torch --trained-on jax           # predicts alone
    python benchmarks/accuracy.py --baseline /path/to/python                 # MiniRocket by aeon
    python benchmarks/accuracy.py --page                                     # the page alone

Data: seglearn's smart-watch exercises, see examples/live_exercises/exercises.py. Windows of 4 s,
one each second, at 12.5 Hz (means of four samples): `(time=50, sensors=2, axes=3)`, standardised
for each sensor's axis.

Protocol, fixed before any test subject was looked at:

1. Five folds of two subjects, in the order of their numbers. The figure is the accuracy on windows
   of the held-out subjects: its mean over the ten subjects, and the 95 % interval of that mean.
2. Networks, epochs, optimizer and batch are those of the constants below: the builders' defaults,
   in a size that two busy cores train in a minute. They were not tuned.
3. What is done to the data, a recipe of `RECIPES`, is chosen for each test fold by cross-validation
   within the other four: a model is trained without folds i and i + 1, for each i. On fold i + 1 it
   judges for test fold i, on fold i for test fold i + 1; the best mean of the two wins. So no
   choice depends on a subject that it is tested on. This is done with MLSTM-FCN, named
   beforehand, and the other solutions and backends take its choices. The recipe `more` was added
   when the first four had been tested, so it is beforehand for no test subject; what they reached
   is on the page.
4. Every run starts from the same weights on every backend (`agreement.initialize`), and sees the
   same windows, augmented alike, in the same order, with the same dropout masks.
5. Trained models are loaded on the other backends, and predict the same windows there.

Each run is appended to results/accuracy.json as it ends; what is there is not run again.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from multibackend_lstm.environment import choose_backend, set_backend

sys.path.append(str(Path(__file__).parents[1] / "examples" / "live_exercises"))
import exercises

NAME = "accuracy"
PAGE = Path(__file__).parents[1] / "docs" / f"{NAME}.md"
MEAN_OF = 4  # samples of the watch
LENGTH, STRIDE = 4 * exercises.RATE // MEAN_OF, exercises.RATE // MEAN_OF  # 4 s and nearly 1 s
FOLDS = 5
EPOCHS, BATCH, LEARNING_RATE = 12, 64, 2e-3
PUBLISHED = 0.873
FIRST = "mlstm_fcn"
# What multibackend_lstm.models builds, and with which arguments.
SOLUTIONS: dict[str, dict[str, Any]] = {
    "deep_conv_lstm": {"filters": 16, "units": (32, 32)},
    "mlstm_fcn": {"filters": (64, 128, 64)},
    "conv": {"units": 64, "dropout": 0.5},
    "reshape": {"units": 64, "dropout": 0.5},
    "channelwise": {"units": 64, "dropout": 0.5},
    "conv_lstm": {"units": 16, "dropout": 0.5},
}


class Recipe(NamedTuple):
    """What is done to the data before a network sees it."""

    description: str
    sides: bool = False
    rotation: float = 0.0  # standard deviation, radians
    jitter: float = 0.0  # standard deviation, of one that is 1
    by_subject: bool = False
    speed: float = 0.0  # standard deviation, of the logarithm of a factor


RECIPES = {
    "plain": Recipe("as recorded"),
    "sides": Recipe("left arms mirrored onto right ones", sides=True),
    "rotation": Recipe(
        "sides, and each window turned at random by about 20 degrees, with noise",
        sides=True,
        rotation=0.35,
        jitter=0.05,
    ),
    "subject": Recipe(
        "rotation, and each subject standardised by all recordings of their own, without labels",
        sides=True,
        rotation=0.35,
        jitter=0.05,
        by_subject=True,
    ),
    "more": Recipe(
        "rotation by about 35 degrees in place of 20, and slower or faster by about a fifth",
        sides=True,
        rotation=0.6,
        jitter=0.05,
        speed=0.2,
    ),
}


class Windows(NamedTuple):
    """Windows `(n, time, sensors, axes)`, with class and subject of each."""

    x: np.ndarray
    y: np.ndarray
    subjects: np.ndarray

    def of_folds(self, folds: Sequence[int], inside: bool) -> "Windows":
        """Those of the subjects of some folds, or all others."""
        chosen = np.isin(fold_of(self.subjects), folds) == inside
        return Windows(self.x[chosen], self.y[chosen], self.subjects[chosen])


def fold_of(subject: Any) -> Any:
    """The fold of a subject, 1 to 10."""
    return (subject - 1) // 2


def cut(recordings: Sequence[np.ndarray], labels: np.ndarray, subjects: np.ndarray) -> Windows:
    """Windows of recordings, which no window crosses."""
    from multibackend_lstm import windows

    # The place of each recording as the target tells whose a window is.
    places = np.arange(len(recordings))
    dataset = windows(
        recordings, LENGTH, STRIDE, targets=places, batch_size=sys.maxsize, dtype=None
    )
    x, place = dataset[0]
    return Windows(x, labels[place], subjects[place])


def prepare(data: exercises.Exercises, recipe: Recipe) -> Windows:
    """Windows of all subjects, with nothing in them that was learnt from other subjects."""
    recordings = []
    for recording, side in zip(data.recordings, data.sides, strict=True):
        whole = len(recording) // MEAN_OF * MEAN_OF
        x = recording[:whole].reshape(-1, MEAN_OF, *recording.shape[1:]).mean(axis=1)
        if recipe.sides and side == 0:
            # On the other wrist the display's x axis points the other way along the arm: a
            # reflection in x, under which a rate of turn keeps x and changes the signs of y and z.
            x = x * np.array([[-1, 1, 1], [1, -1, -1]])
        recordings.append(x)
    if recipe.by_subject:
        for subject in np.unique(data.subjects):
            (own,) = np.nonzero(data.subjects == subject)
            steps = np.concatenate([recordings[i] for i in own])
            mean, deviation = steps.mean(axis=0), steps.std(axis=0)
            for i in own:
                recordings[i] = (recordings[i] - mean) / deviation
    return cut(recordings, data.labels, data.subjects)


def augment(x: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Each window at another speed, turned about an axis of its own, and noise added."""
    if recipe.speed:
        factor = np.exp(rng.normal(scale=recipe.speed, size=(len(x), 1)))
        middle = (LENGTH - 1) / 2
        at = np.clip(middle + factor * (np.arange(LENGTH) - middle), 0, LENGTH - 1)
        before = np.minimum(at.astype(int), LENGTH - 2)
        part = (at - before)[..., None, None]
        rows = np.arange(len(x))[:, None]
        x = (1 - part) * x[rows, before] + part * x[rows, before + 1]
        x[:, :, exercises.SENSORS.index("gyroscope")] *= factor[..., None]
    if recipe.rotation:
        axis = rng.normal(size=(len(x), 3))
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        angle = rng.normal(scale=recipe.rotation, size=(len(x), 1, 1))
        cross = np.cross(axis[:, None], np.eye(3))  # rows are axis x unit vectors
        turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        x = np.einsum("ntsa,nab->ntsb", x, turn)
    if recipe.jitter:
        scale = recipe.jitter * x.std(axis=(0, 1))
        x = x + rng.normal(size=x.shape) * scale
    return x


def build(solution: str) -> Any:
    """An uncompiled model."""
    from multibackend_lstm import models

    shape, classes = (LENGTH, 2, 3), 7
    builder = getattr(models, f"build_{solution}", None)
    if builder is not None:
        return builder(shape, outputs=classes, **SOLUTIONS[solution])
    return models.build_model(
        shape, solution, outputs=classes, task="multiclass", **SOLUTIONS[solution]
    )


def scaling(training: Windows) -> Callable[[np.ndarray], np.ndarray]:
    """What standardises windows by the mean and deviation of those trained on."""
    mean, deviation = training.x.mean(axis=(0, 1)), training.x.std(axis=(0, 1))
    return lambda x: ((x - mean) / deviation).astype("float32")


def train(
    solution: str, recipe: Recipe, training: Windows, seed: int, progress: Callable[[], None]
) -> Any:
    """The trained model; `progress` is called after each epoch."""
    import keras

    from multibackend_lstm.agreement import fit_order, initialize

    keras.utils.set_random_seed(seed)
    model = build(solution)
    scaled = scaling(training)
    steps = len(training.x) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, EPOCHS * steps)
    optimizer = keras.optimizers.Adam(rate, clipnorm=1.0)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
    initialize(model, seed)
    rng = np.random.default_rng(seed)
    for epoch in range(EPOCHS):
        # Whole batches: a last one of another size would be compiled once more.
        order = fit_order(len(training.x), seed, epoch)[: steps * BATCH]
        x = scaled(augment(training.x[order], recipe, rng))
        model.fit(x, training.y[order], batch_size=BATCH, shuffle=False, verbose=0)
        progress()
    return model


def by_subject(windows: Windows, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy on the windows of each subject."""
    right = predicted == windows.y
    return {
        str(subject): round(float(right[windows.subjects == subject].mean()), 4)
        for subject in np.unique(windows.subjects)
    }


class Runs:
    """The runs that were made, in results/accuracy.json, and those that are made now."""

    def __init__(self, backend: str, progress: Progress):
        path = common.RESULTS / f"{NAME}.json"
        self.rows: list[dict[str, Any]] = (
            json.loads(path.read_text())["results"] if path.exists() else []
        )
        self.backend = backend
        self._progress = progress
        self._data = exercises.load()
        self.kept = exercises.cached_file().parent / NAME
        self.kept.mkdir(exist_ok=True)

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The row with these values."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, **row: Any) -> dict[str, Any]:
        """Write one more row down."""
        self.rows.append(row)
        common.write_results(NAME, str(__doc__).splitlines()[0], self.rows)
        return row

    def windows(self, recipe: str) -> Windows:
        """All windows by a recipe."""
        return prepare(self._data, RECIPES[recipe])

    def run(self, stage: str, solution: str, recipe: str, held_out: list[int]) -> dict[str, Any]:
        """Train without some folds and judge on these, unless that has been done."""
        key = {
            "stage": stage,
            "solution": solution,
            "recipe": recipe,
            "backend": self.backend,
            "held_out": held_out,
        }
        row = self.find(**key)
        if row is not None:
            return row
        windows = self.windows(recipe)
        test = windows.of_folds(held_out, inside=True)
        training = windows.of_folds(held_out, inside=False)
        start = time.perf_counter()
        text = f"{stage}: {solution}, {recipe}, without {held_out}"
        task = self._progress.add_task(text, total=EPOCHS)
        model = train(solution, RECIPES[recipe], training, 0, lambda: self._progress.advance(task))
        probabilities = model.predict(scaling(training)(test.x), verbose=0)
        self._progress.remove_task(task)
        if stage == "test":
            name = f"{solution}-{recipe}-{self.backend}-{held_out[0]}"
            model.save(self.kept / f"{name}.keras")
            np.save(self.kept / f"{name}.npy", probabilities, allow_pickle=False)
        accuracy = by_subject(test, probabilities.argmax(axis=1))
        self._progress.console.print(f"{text}: {statistics.fmean(accuracy.values()):.3f}")
        seconds = round(time.perf_counter() - start, 1)
        return self.add(**key, accuracy=accuracy, seconds=seconds)

    def scores(self, fold: int) -> dict[str, float]:
        """Each recipe's accuracy on two other folds, of models that have not seen this one."""
        found = {}
        for recipe in RECIPES:
            rates = []
            for pair in pairs_with(fold):
                # Backends differ by rounding: what one has chosen, all take.
                made = self.find(stage="choice", solution=FIRST, recipe=recipe, held_out=pair)
                row = made or self.run("choice", FIRST, recipe, pair)
                rates += [
                    rate
                    for subject, rate in row["accuracy"].items()
                    if fold_of(int(subject)) != fold
                ]
            found[recipe] = statistics.fmean(rates)
        return found

    def chosen(self, fold: int) -> str:
        """The recipe that does best for a test fold, by the other folds."""
        scores = self.scores(fold)
        return max(scores, key=lambda recipe: scores[recipe])

    def load_elsewhere(self, solution: str, trained_on: str) -> None:
        """Predict on this backend with the models that another one trained."""
        import keras

        for row in [
            row
            for row in self.rows
            if (row["stage"], row["solution"], row["backend"]) == ("test", solution, trained_on)
        ]:
            key = {
                "stage": "elsewhere",
                "solution": solution,
                "recipe": row["recipe"],
                "backend": self.backend,
                "trained_on": trained_on,
                "held_out": row["held_out"],
            }
            path = self.kept / f"{solution}-{row['recipe']}-{trained_on}-{row['held_out'][0]}.keras"
            if self.find(**key) or not path.exists():
                continue
            windows = self.windows(row["recipe"])
            test = windows.of_folds(row["held_out"], inside=True)
            training = windows.of_folds(row["held_out"], inside=False)
            model = keras.saving.load_model(path, safe_mode=True)
            here = model.predict(scaling(training)(test.x), verbose=0)
            there = np.load(path.with_suffix(".npy"), allow_pickle=False)
            self.add(
                **key,
                accuracy=by_subject(test, here.argmax(axis=1)),
                largest_difference=float(np.abs(here - there).max()),
                other_classes=int((here.argmax(axis=1) != there.argmax(axis=1)).sum()),
            )


def pairs_with(fold: int) -> list[list[int]]:
    """The two pairs of neighbouring folds that a fold is in."""
    return [sorted(((fold - 1) % FOLDS, fold)), sorted((fold, (fold + 1) % FOLDS))]


def minirocket(runs: Runs, python: str, fold: int) -> None:
    """MiniRocket of aeon on the windows as recorded, in that interpreter, unless it was run."""
    key = {
        "stage": "test",
        "solution": "minirocket",
        "recipe": "plain",
        "backend": "aeon",
        "held_out": [fold],
    }
    if runs.find(**key):
        return
    windows = runs.windows("plain")
    test, training = (windows.of_folds([fold], inside) for inside in (True, False))
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "windows.npz"), Path(folder, "predicted.npy")
        scaled = scaling(training)
        np.savez(
            source,
            x=_variables_first(scaled(training.x)),
            y=training.y,
            test=_variables_first(scaled(test.x)),
        )
        script = Path(__file__).with_name("minirocket.py")
        start = time.perf_counter()
        subprocess.run([python, script, source, target], check=True)
        seconds = round(time.perf_counter() - start, 1)
        predicted = np.load(target, allow_pickle=False)
    runs.add(**key, accuracy=by_subject(test, predicted), seconds=seconds)


def _variables_first(x: np.ndarray) -> np.ndarray:
    """`(n, time, sensors, axes)` as aeon takes it, `(n, variables, time)`."""
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


class Summary(NamedTuple):
    """Accuracy of one solution on one backend, over all folds that were run."""

    solution: str
    backend: str
    by_subject: dict[int, float]
    recipes: dict[int, str]

    @property
    def mean(self) -> float:
        """The mean over subjects."""
        return statistics.fmean(self.by_subject.values())

    @property
    def interval(self) -> str:
        """The 95 % interval of the mean, where all subjects were tested."""
        if len(self.by_subject) < 2 * FOLDS:
            return f"{len(self.by_subject)} of {2 * FOLDS} subjects only"
        student = 2.262  # 97.5 % of Student's t with 9 degrees of freedom
        half = student * statistics.stdev(self.by_subject.values()) / math.sqrt(2 * FOLDS)
        return f"{self.mean - half:.3f} to {self.mean + half:.3f}"


def summaries(rows: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """One for each solution and backend that was tested, best first."""
    found: dict[tuple[str, str], Summary] = {}
    for row in rows:
        if row["stage"] == "test":
            key = row["solution"], row["backend"]
            # A later row of a fold, by a recipe added since, takes the place of an earlier one.
            summary = found.setdefault(key, Summary(*key, {}, {}))
            for subject, rate in row["accuracy"].items():
                summary.by_subject[int(subject)] = rate
            summary.recipes[row["held_out"][0]] = row["recipe"]
    return sorted(found.values(), key=lambda summary: -summary.mean)


def choices(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each recipe's accuracy in the cross-validation that chooses among them."""
    rates: dict[str, list[float]] = {}
    for row in rows:
        if row["stage"] == "choice":
            rates.setdefault(row["recipe"], []).extend(row["accuracy"].values())
    return {recipe: statistics.fmean(values) for recipe, values in rates.items()}


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """For the terminal."""
    made = Table(*header, title=title)
    for row in rows:
        made.add_row(*row)
    return made


RESULT_HEADER = ("solution", "trained on", "accuracy", "95 % interval", "worst subject", "recipes")
RECIPE_HEADER = ("recipe", "what it does", "accuracy", "test folds that chose it")


def result_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What each solution reached."""
    return [
        [
            found.solution,
            found.backend,
            f"{found.mean:.3f}",
            found.interval,
            f"{min(found.by_subject.values()):.3f}",
            ", ".join(sorted(set(found.recipes.values()))),
        ]
        for found in summaries(rows)
    ]


def recipe_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The ablation."""
    first = [found for found in summaries(rows) if found.solution == FIRST]
    chosen = [recipe for found in first[:1] for recipe in found.recipes.values()]
    return [
        [name, RECIPES[name].description, f"{rate:.3f}", str(chosen.count(name))]
        for name, rate in choices(rows).items()
    ]


def replaced(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the test subjects gave before a recipe was added."""
    recipes = {
        (found.solution, found.backend, fold): recipe
        for found in summaries(rows)
        for fold, recipe in found.recipes.items()
    }
    first = [row for row in rows if (row["stage"], row["solution"]) == ("test", FIRST)]
    old = [
        row for row in first if recipes[FIRST, row["backend"], row["held_out"][0]] != row["recipe"]
    ]
    if not old:
        return []
    before: dict[str, float] = {}
    first = [row for row in first if row["backend"] == old[0]["backend"]]
    for row in sorted(first, key=lambda row: row["recipe"] == "more"):
        for subject, rate in row["accuracy"].items():
            before.setdefault(subject, rate)
    return [
        "`more` was added when the test subjects had been looked at with the recipes chosen among "
        f"the first four, which gave {statistics.fmean(before.values()):.3f}: that is the figure "
        "to which no look at a test subject has led.",
        "",
    ]


def plot(rows: Sequence[Mapping[str, Any]]) -> Path:
    """Each subject's accuracy, by solution."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = NAME
    from matplotlib import pyplot

    found = summaries(rows)[::-1]
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.45 * len(found)), layout="constrained")
    for position, summary in enumerate(found):
        rates = list(summary.by_subject.values())
        axes.scatter(rates, [position] * len(rates), s=18, alpha=0.6, color="tab:blue")
        axes.scatter([summary.mean], [position], marker="|", s=300, color="black")
    axes.axvline(PUBLISHED, color="tab:red", linewidth=1, label="published, random forest")
    axes.set_yticks(range(len(found)), [f"{s.solution} ({s.backend})" for s in found])
    axes.set_xlabel("accuracy on windows of a subject not seen (line: mean)")
    axes.legend(loc="lower left")
    path = common.IMAGES / f"{NAME}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def page(document: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    rows, versions = document["results"], document["versions"]
    names = ("keras", "tensorflow", "torch", "jax")
    of = ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))
    elsewhere = [row for row in rows if row["stage"] == "elsewhere"]
    tested = {found.solution for found in summaries(rows)}
    missing = [solution for solution in SOLUTIONS if solution not in tested]
    return "\n".join(
        [
            "# Exercises of people the model has not seen",
            "",
            f"Made by `python benchmarks/{NAME}.py` ({of}, {document['device']}). Seven shoulder "
            "exercises by ten subjects wearing a smart watch "
            "([seglearn](https://pypi.org/project/seglearn/), BSD), windows of 4 s "
            f"`(time={LENGTH}, sensors=2, axes=3)`, five folds of two subjects each.",
            "",
            *common.markdown(RESULT_HEADER, result_rows(rows)),
            "",
            f"Published for ten subjects and five folds of them: {PUBLISHED:.1%}, a random forest "
            "([arXiv:1802.01489](https://arxiv.org/abs/1802.01489), first version; windows and "
            "folds are its own; its later version has twenty subjects, and 88.9 % by a "
            "convolutional recurrent network). `minirocket` is aeon's, with its own settings, "
            "on the windows as recorded.",
            "",
            f"![Accuracy of each subject by solution](images/{NAME}.svg)",
            "",
            "## What was chosen, and how",
            "",
            f"`{FIRST}`, its size, optimizer and {EPOCHS} epochs were set beforehand and not "
            "tuned. What happens to the data was chosen for each test fold by cross-validation "
            f"of `{FIRST}` among the other four folds, whose accuracies, together, are the "
            "ablation:",
            "",
            *common.markdown(RECIPE_HEADER, recipe_rows(rows)),
            "",
            *replaced(rows),
            "All other solutions take these choices. The protocol in full is in the script's "
            "docstring. Intervals are of the mean over subjects (Student's t); ten subjects are "
            "few.",
            "",
            "## Backends",
            "",
            *(
                common.markdown(
                    ("trained on", "predicts on", "models", "largest difference", "other classes"),
                    [
                        [
                            trained_on,
                            backend,
                            str(len(same)),
                            f"{max(row['largest_difference'] for row in same):.1e}",
                            str(sum(row["other_classes"] for row in same)),
                        ]
                        for trained_on, backend in sorted(
                            {(row["trained_on"], row["backend"]) for row in elsewhere}
                        )
                        for same in [
                            [
                                row
                                for row in elsewhere
                                if (row["trained_on"], row["backend"]) == (trained_on, backend)
                            ]
                        ]
                    ],
                )
                if elsewhere
                else ["Trained models were not loaded on other backends in these results."]
            ),
            "",
            "## What was not run",
            "",
            *([f"- Not at all: {', '.join(missing)}."] if missing else []),
            *[
                f"- {found.solution} on {found.backend}: {found.interval}."
                for found in summaries(rows)
                if len(found.by_subject) < 2 * FOLDS
            ],
            "- The choice of recipes with this package's dropout: it was made when that was "
            "Keras's.",
            "- More than one seed, and MiniRocket on mirrored left arms.",
            "- `pre_reshape` is the same network as `reshape`, on the same numbers.",
            "- MLSTM-FCN on the data of its paper, so its published figures have none beside them.",
            "",
        ]
    )


def main() -> None:
    """Run what has not been run, write, and make the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend")
    parser.add_argument("--solutions", nargs="+", choices=SOLUTIONS, default=[FIRST])
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)))
    parser.add_argument(
        "--trained-on",
        metavar="BACKEND",
        help="train nothing: predict with the models that were trained on that backend",
    )
    parser.add_argument(
        "--baseline", metavar="PYTHON", help="run MiniRocket in this interpreter, which has aeon"
    )
    parser.add_argument("--page", action="store_true", help="make the page from committed results")
    options = parser.parse_args()
    console = Console(stderr=True)
    if not options.page:
        backend = choose_backend(options.backend)
        set_backend(backend)
        with Progress(console=console) as progress:
            runs = Runs(backend, progress)
            if options.baseline:
                for fold in options.folds:
                    minirocket(runs, options.baseline, fold)
            elif options.trained_on:
                for solution in options.solutions:
                    runs.load_elsewhere(solution, options.trained_on)
            else:
                for solution in options.solutions:
                    for fold in options.folds:
                        runs.run("test", solution, runs.chosen(fold), [fold])
    document = json.loads((common.RESULTS / f"{NAME}.json").read_text())
    rows = document["results"]
    console.print(table("Unseen subjects", RESULT_HEADER, result_rows(rows)))
    console.print(table("Recipes", RECIPE_HEADER, recipe_rows(rows)))
    plot(rows)
    PAGE.write_text(page(document), encoding="utf-8")


if __name__ == "__main__":
    main()

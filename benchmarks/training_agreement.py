"""Do whole training runs agree on all backends, as far as rounding lets them?

    python benchmarks/training_agreement.py

Every solution of the demo is trained on BasicMotions for 200 steps, with the demo's optimizer, as
`same_run` does: with a dropout of 0.3, in a new order in each epoch of 4 steps, the last of them
with 4 cases in place of 12. After every epoch its weights are compared with those of a reference:
the same run in float64, on TensorFlow, where alone Keras computes in float64. The constants of the
program, such as the 0.999 of Adam, are float32 numbers there too: they are what is to be computed.

Training multiplies the smallest difference, so that a fixed tolerance says nothing. The rival is
therefore the reference itself, disturbed as an ideal float32 machine would disturb it: 4 twins
whose inputs and initial weights are multiplied by 1 + u * 2^-24, u uniform in [-1, 1], and which
round the result of every operation to float32. (Without that, the twins would know no rounding
but that of the start.) A backend agrees where it is no further from the reference than the twins
are. That the reference is in float64 is checked by one more twin, which rounds nothing and is
disturbed a million times less.

Keras writes Adam on torch otherwise than elsewhere, so that torch is trained with the Adam of the
other backends too. With `--folder` the runs are kept there, and those that are there are not made
again. `--solution conv_lstm --dropout 0 --batch-size 8` is a run in which all that differs lies in
one direction: the largest share of the squared differences that does is in the results.

A distance is the root of the mean square over all weights. Writes
results/training_agreement.json and docs/images/training_agreement.svg, and prints a table.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import keras
import numpy as np

from multibackend_lstm import SOLUTIONS, build_model
from multibackend_lstm.agreement import fit_order, initialize
from multibackend_lstm.demo import SETTINGS, inputs_of, load_data
from multibackend_lstm.environment import installed_backends

STEPS = 200
SEED = 0
DROPOUT = 0.3
BATCH_SIZE = 12
#: Of these two, one model with the same numbers, the reference and the twins are trained once.
SAME_MODEL = {"pre_reshape": "reshape"}
TWINS = 4
ROUNDING = 2.0**-24
COMMON_ADAM = "torch_with_common_adam"
#: By how much less the twin that checks float64 is disturbed.
TINY = 2.0**-20

# TensorFlow's operations that compute; the others of a training step move numbers about.
ARITHMETIC = {
    *("MatMul", "BatchMatMulV2", "BatchMatMulV3", "Conv2D"),
    *("Conv2DBackpropInput", "Conv2DBackpropFilter", "BiasAdd", "BiasAddGrad"),
    *("AddV2", "AddN", "Sub", "Mul", "RealDiv", "Sum", "Mean", "Square", "Pow", "Sqrt", "Rsqrt"),
    *("Exp", "Log", "Sigmoid", "SigmoidGrad", "Tanh", "TanhGrad", "Softmax"),
}


def main() -> None:
    """Train everywhere, compare, write results and plot, print a table for the docs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--solution", nargs="+", default=list(SOLUTIONS), choices=SOLUTIONS)
    parser.add_argument("--dropout", type=float, default=DROPOUT)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep the runs there, and take what is there")
    arguments = parser.parse_args()
    globals().update(DROPOUT=arguments.dropout, BATCH_SIZE=arguments.batch_size)
    if arguments.worker:
        run = run_reference if arguments.reference else run_backend
        run(arguments.solution, arguments.folder)
        print("null")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        passed = ["--folder", str(folder), "--solution", *arguments.solution]
        passed += ["--dropout", str(DROPOUT), "--batch-size", str(BATCH_SIZE)]
        common.on_each_backend(__file__, passed, [])
        common.on_each_backend(__file__, ["--reference", *passed], ["tensorflow"])
        rows = [compare(folder, solution) for solution in arguments.solution]
    print("| solution | " + " | ".join(rows[0]["backends"]) + " | farthest twin |")
    print("|---|" + "---|" * (len(rows[0]["backends"]) + 1))
    for row in rows:
        ratios = [backend["largest_ratio"] for backend in row["backends"].values()]
        cells = " | ".join(f"{ratio:.2f}" for ratio in [*ratios, row["twins"]["largest_ratio"]])
        print(f"| `{row['solution']}` | {cells} |")
    print("share in one direction: ", {row["solution"]: row["in_one_direction"] for row in rows})
    defaults = parser.parse_args([])
    if any(getattr(arguments, k) != getattr(defaults, k) for k in ("solution", "dropout")):
        return  # the committed results are of all of them
    settings = {
        **{"steps": STEPS, "seed": SEED, "dropout": DROPOUT, "batch_size": BATCH_SIZE},
        **{"twins": TWINS, "rounding": ROUNDING},
    }
    path = common.write_results(
        "training_agreement", __doc__.splitlines()[0], {**settings, "rows": rows}
    )
    plot(rows)
    print(f"written to {path.name}", file=sys.stderr)


def prepare(
    solution: str, optimizer: type[keras.optimizers.Adam] = keras.optimizers.Adam
) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """The compiled model at its start, and the training cases."""
    data, settings = load_data(), SETTINGS[solution]
    x = inputs_of(solution, data.x_train)
    model = build_model(
        x.shape[1:],
        solution,
        units=settings.units,
        dropout=DROPOUT,
        outputs=len(data.class_names),
        task="multiclass",
    )
    model.compile(
        optimizer=optimizer(settings.learning_rate, clipnorm=1.0),
        loss="sparse_categorical_crossentropy",
    )
    initialize(model, SEED)
    return model, x, data.y_train


def train(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Train for `STEPS` steps; the weights after each epoch, float64 `(epochs, weights)`."""
    vectors = []
    for epoch in range(STEPS // -(-len(x) // BATCH_SIZE)):
        order = fit_order(len(x), SEED, epoch)
        model.fit(x[order], y[order], batch_size=BATCH_SIZE, shuffle=False, verbose=0)
        vectors.append(np.concatenate([weight.numpy().ravel() for weight in model.weights]))
    return np.stack(vectors).astype("float64")


class CommonAdam(keras.optimizers.Adam):
    """Adam as Keras has it on all backends: on torch only the class itself is written otherwise."""


def run_backend(solutions: list[str], folder: Path) -> None:
    """Train in float32 on this process's backend."""
    backend = keras.backend.backend()
    optimizers = {backend: keras.optimizers.Adam}
    if backend == "torch":
        optimizers[COMMON_ADAM] = CommonAdam
    for solution in solutions:
        for name, optimizer in optimizers.items():
            path = folder / f"{solution}-{name}.npy"
            if not path.exists():
                np.save(path, train(*prepare(solution, optimizer)))


def run_reference(solutions: list[str], folder: Path) -> None:
    """Train in float64 on TensorFlow: undisturbed, the twin that checks float64, the twins."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    for solution in dict.fromkeys(SAME_MODEL.get(name, name) for name in solutions):
        runs = {"reference": (0, 0.0), "tiny": (1, ROUNDING * TINY)}
        with rounding_to_float32({"Const"}):
            run_disturbed(solution, runs, folder)
        runs = {f"twin{twin}": (twin, ROUNDING) for twin in range(1, TWINS + 1)}
        with rounding_to_float32({"Const", *ARITHMETIC}) as round_model:
            run_disturbed(solution, runs, folder, round_model)


def run_disturbed(
    solution: str,
    runs: dict[str, tuple[int, float]],
    folder: Path,
    change: Callable[[keras.Model], None] = lambda model: None,
) -> None:
    """Train once for each run, a name with the seed and the size of its disturbance.

    One model, changed by `change`, serves all runs, so that it is compiled once.
    """
    runs = {k: run for k, run in runs.items() if not (folder / f"{solution}-{k}.npy").exists()}
    if not runs:
        return
    model, x, y = prepare(solution)
    change(model)
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]  # seeds of dropout among them
    start = [variable.numpy() for variable in variables]
    for name, (seed, size) in runs.items():
        rng = np.random.default_rng(seed)
        for variable, value in zip(variables, start, strict=True):
            # The learning rate is a number of the program too.
            variable.assign(value.astype("float32") if value.dtype == "float64" else value)
        for weight in model.weights:
            weight.assign(weight.numpy() * (1 + size * rng.uniform(-1, 1, weight.shape)))
        inputs = x.astype("float64") * (1 + size * rng.uniform(-1, 1, x.shape))
        np.save(folder / f"{solution}-{name}.npy", train(model, inputs, y))


@contextlib.contextmanager
def rounding_to_float32(kinds: set[str]) -> Iterator[Callable[[keras.Model], None]]:
    """While this is open, TensorFlow rounds what it computes in float64 to float32.

    Args:
        kinds: of operations whose results are rounded.

    Yields:
        A function that makes a model do the same where an operation's result is not what counts.
    """
    import tensorflow as tf
    from tensorflow.python.framework import op_callbacks  # as TensorFlow's debugger does it

    def rounded(x: Any) -> Any:
        return tf.cast(tf.cast(x, "float32"), "float64")

    def round_results(
        kind: str, inputs: Any, attributes: Any, outputs: Any, *_: Any, **__: Any
    ) -> Any:
        if kind not in kinds:
            return None
        return [rounded(output) if output.dtype == tf.float64 else output for output in outputs]

    @tf.custom_gradient
    def softmax(x: Any) -> Any:
        p = tf.nn.softmax(x)
        return p, lambda g: p * (g - tf.reduce_sum(g * p, axis=-1, keepdims=True))

    def round_model(model: keras.Model) -> None:
        # TensorFlow's own gradient takes p before it is rounded. Once a model is sure of a class,
        # 1 - p with p rounded is the largest error of a training step.
        model.layers[-1].activation = softmax
        for weight in model.trainable_weights:
            weight.constraint = rounded  # after each update

    op_callbacks.add_op_callback(round_results)
    try:
        yield round_model
    finally:
        op_callbacks.remove_op_callback(round_results)


def compare(folder: Path, solution: str) -> dict[str, Any]:
    """Distances from the reference after each epoch, of the twins and of each backend."""
    same = SAME_MODEL.get(solution, solution)
    reference = np.load(folder / f"{same}-reference.npy")

    def difference(name: str) -> np.ndarray:
        of = same if name == "tiny" or name.startswith("twin") else solution
        found: np.ndarray = np.load(folder / f"{of}-{name}.npy") - reference
        return found

    def distance(name: str) -> np.ndarray:
        return np.sqrt(np.mean(difference(name) ** 2, axis=1))

    names = [f"twin{twin}" for twin in range(1, TWINS + 1)]
    twins = np.stack([distance(name) for name in names])
    # By epoch, how much of all differences is along their first singular vector.
    differences = np.stack([difference(name) for name in (*names, *installed_backends())], axis=1)
    squared = np.linalg.svd(differences, compute_uv=False) ** 2
    shares = squared[:, 0] / squared.sum(axis=1)
    rms = np.sqrt(np.mean(twins**2, axis=0))
    # At first, before it has grown; were anything computed in float32, it would be as large.
    if not distance("tiny")[0] < 1e-3 * rms[0]:
        raise RuntimeError(f"{solution}: the reference is not computed in float64")

    def listed(values: np.ndarray) -> list[float]:
        return [float(f"{value:.3g}") for value in values]

    def judged(distances: np.ndarray) -> dict[str, Any]:
        ratio = float((distances / rms).max())
        return {"distance": listed(distances), "largest_ratio": round(ratio, 3)}

    return {
        "solution": solution,
        "in_one_direction": round(float(shares.max()), 3),
        "steps": [STEPS * (epoch + 1) // len(rms) for epoch in range(len(rms))],
        "twins": {
            "rms": listed(rms),
            "nearest": listed(twins.min(axis=0)),
            "farthest": listed(twins.max(axis=0)),
            "largest_ratio": round(float((twins.max(axis=0) / rms).max()), 3),
        },
        "backends": {name: judged(distance(name)) for name in installed_backends()},
        COMMON_ADAM: judged(distance(COMMON_ADAM)),
    }


def plot(rows: list[dict[str, Any]]) -> None:
    """A panel a solution: the twins as a band, a line a backend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, squeeze=False).ravel()
    for axes, row in zip(panels, rows, strict=False):
        twins, steps = row["twins"], row["steps"]
        axes.fill_between(
            steps, twins["nearest"], twins["farthest"], color="0.8", label="perturbed twins"
        )
        axes.plot(steps, twins["rms"], color="0.5", label="their root mean square")
        for name, backend in row["backends"].items():
            axes.plot(steps, backend["distance"], linewidth=1.2, label=f"{name}, float32")
        axes.set_yscale("log")
        axes.set_title(row["solution"], fontsize=10)
        axes.set_xlabel("training steps")
        axes.tick_params(labelbottom=True)
    for axes in (panels[0], panels[3]):
        axes.set_ylabel("distance from the float64 run")
    panels[-1].axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center")
    common.IMAGES.mkdir(exist_ok=True)
    figure.savefig(common.IMAGES / "training_agreement.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

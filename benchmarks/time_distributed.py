"""How much faster is the folded `conv` model than the same with keras.layers.TimeDistributed?

    python benchmarks/time_distributed.py [--backend jax ...] [--repeats 15]

Both models are convolution in every time step, flatten, LSTM(64), Dense(1) on batches of 32 cases
of (time=100, channels=8, features=16), with the same weights; one process a backend, the two models
in turn. The first training step (tracing and compiling) is timed apart from the steady state.
Writes results/time_distributed.json and docs/images/time_distributed.svg.
"""

import argparse
import json

import common

TIME, CHANNELS, FEATURES, BATCH = 100, 8, 16, 32


def measure(repeats: int) -> dict:
    """Measure both models on the active backend."""
    import keras
    import numpy as np
    from keras import layers

    from multibackend_lstm import build_model

    shape = (TIME, CHANNELS, FEATURES)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, *shape)).astype("float32")
    y = rng.normal(size=(BATCH, 1)).astype("float32")

    def rival() -> keras.Model:
        inputs = keras.Input(shape)
        convolution = layers.Conv1D(16, 3, activation="relu", padding="same")
        steps = layers.TimeDistributed(convolution)(inputs)
        steps = layers.TimeDistributed(layers.Flatten())(steps)
        return keras.Model(inputs, layers.Dense(1)(layers.LSTM(64)(steps)))

    models = {"ours": build_model(shape, "conv", units=64), "keras": rival()}
    models["keras"].set_weights(models["ours"].get_weights())
    predictions = [model.predict_on_batch(x) for model in models.values()]
    difference = float(np.abs(np.subtract(*map(keras.ops.convert_to_numpy, predictions))).max())
    first = {}
    for name, model in models.items():
        model.compile(optimizer="adam", loss="mse")
        first[name] = round(common.timed(lambda m=model: m.train_on_batch(x, y)) * 1e3, 1)
    steps = common.alternate(
        {name: lambda m=model: float(m.train_on_batch(x, y)) for name, model in models.items()},
        repeats,
    )
    calls = common.alternate(
        {
            name: lambda m=model: np.asarray(keras.ops.convert_to_numpy(m.predict_on_batch(x)))
            for name, model in models.items()
        },
        repeats,
    )
    return {
        "backend": keras.backend.backend(),
        "largest_difference_of_predictions": difference,
        "first_training_step_ms": {**first, "ratio": round(first["ours"] / first["keras"], 3)},
        "training_step": {
            **{name: common.summary(seconds) for name, seconds in steps.items()},
            "ratio": common.ratio(steps["ours"], steps["keras"]),
        },
        "inference": {
            **{name: common.summary(seconds) for name, seconds in calls.items()},
            "ratio": common.ratio(calls["ours"], calls["keras"]),
        },
    }


def plot(reports: list[dict]) -> None:
    """Bars of both models by backend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    first, step = figure.subplots(1, 2)
    for axes, title, value in (
        (first, "first training step", lambda r, n: r["first_training_step_ms"][n]),
        (step, "training step", lambda r, n: r["training_step"][n]["median_ms"]),
    ):
        for offset, name in ((-0.2, "keras"), (0.2, "ours")):
            label = {"keras": "keras.layers.TimeDistributed", "ours": "build_model(..., 'conv')"}
            positions = [index + offset for index in range(len(reports))]
            bars = axes.bar(positions, [value(r, name) for r in reports], 0.4, label=label[name])
            axes.bar_label(bars, fmt="%.0f", fontsize=8)
        axes.set_yscale("log")
        axes.set_xticks(range(len(reports)), [report["backend"] for report in reports])
        axes.set_ylabel("ms (log scale)")
        axes.set_title(title)
    figure.legend(*step.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    common.IMAGES.mkdir(exist_ok=True)
    figure.savefig(common.IMAGES / "time_distributed.svg", metadata={"Date": None})


def main() -> None:
    """Run on each backend, write the results, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.repeats)))
        return
    reports = common.on_each_backend(
        __file__, ["--repeats", str(arguments.repeats)], arguments.backend
    )
    common.write_results("time_distributed", __doc__.splitlines()[0], reports)
    plot(reports)
    print(f"{'backend':12}{'first step':>22}{'training step':>24}{'inference':>22}")
    for report in reports:
        first, step, call = (
            report[key] for key in ("first_training_step_ms", "training_step", "inference")
        )
        print(
            f"{report['backend']:12}"
            f"{first['ours']:9.0f} / {first['keras']:.0f} = {first['ratio']:.2f}"
            f"{step['ours']['median_ms']:11.1f} / {step['keras']['median_ms']:.1f} = "
            f"{step['ratio']:.2f}"
            f"{call['ours']['median_ms']:10.1f} / {call['keras']['median_ms']:.1f} = "
            f"{call['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()

"""Is TimeDistributedConv's formulation of the convolution the fastest of the equal ones?

    python benchmarks/convolution.py [--backend torch ...] [--repeats 15]

On each backend that has a formulation of its own (`convolve` in `backends/<name>.py`), a model of
TimeDistributedConv and Dense(1) is trained and called with it and with the plain Keras layer, in
turn. Writes results/convolution.json.
"""

import argparse
import json

import common

# (batch, time, *axes, features), filters, kernel size
CASES = [
    ((32, 100, 8, 16), 16, 3),
    ((32, 100, 8, 16), 64, 5),
    ((32, 10, 3, 5), 16, 3),
    ((32, 100, 2, 3), 16, 3),
    ((32, 50, 8, 8, 4), 16, 3),
    ((8, 20, 6, 6, 6, 2), 8, 3),
    ((4, 10, 8, 8, 8, 16), 32, 3),
]


def measure(repeats: int) -> list[dict]:
    """Measure every case on the active backend."""
    import keras
    import numpy as np

    from multibackend_lstm import TimeDistributedConv, backends

    active = backends.active()
    formulations = {"ours": active.convolve, "keras": backends.Backend().convolve}
    rows = []
    for shape, filters, kernel_size in CASES:
        rng = np.random.default_rng(0)
        x = rng.normal(size=shape).astype("float32")
        y = rng.normal(size=(shape[0], 1)).astype("float32")
        models = {}
        for name in formulations:
            inputs = keras.Input(shape[1:])
            layer = TimeDistributedConv(filters, kernel_size, padding="same", activation="relu")
            outputs = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(layer(inputs)))
            models[name] = keras.Model(inputs, outputs)
            models[name].compile(optimizer="sgd", loss="mse")
        models["keras"].set_weights(models["ours"].get_weights())

        def step(name, models=models, x=x, y=y):
            active.convolve = formulations[name]  # read when the model is traced or run eagerly
            return float(models[name].train_on_batch(x, y))

        def call(name, models=models, x=x):
            active.convolve = formulations[name]
            return keras.ops.convert_to_numpy(models[name].predict_on_batch(x))

        difference = float(np.abs(call("ours") - call("keras")).max())
        row = {
            "backend": keras.backend.backend(),
            "input_shape": shape,
            "filters": filters,
            "kernel_size": kernel_size,
            "largest_difference": difference,
        }
        for key, function in (("training_step", step), ("inference", call)):
            seconds = common.alternate(
                {name: lambda n=name, f=function: f(n) for name in formulations}, repeats
            )
            row[key] = {
                **{name: common.summary(values) for name, values in seconds.items()},
                "ratio": common.ratio(seconds["ours"], seconds["keras"]),
            }
        rows.append(row)
    return rows


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
        __file__,
        ["--repeats", str(arguments.repeats)],
        arguments.backend or ["torch", "jax"],  # TensorFlow runs the plain layer
    )
    rows = [row for report in reports for row in report]
    common.write_results("convolution", __doc__.splitlines()[0], rows)
    print(f"{'backend':8}{'input shape':28}{'filters':>8}{'kernel':>8}{'train':>8}{'call':>8}")
    for row in rows:
        print(
            f"{row['backend']:8}{row['input_shape']!s:28}{row['filters']:8}{row['kernel_size']:8}"
            f"{row['training_step']['ratio']:8.2f}{row['inference']['ratio']:8.2f}"
        )


if __name__ == "__main__":
    main()

"""How much longer does `predict` take for one sample than `predict_on_batch`?

    python benchmarks/predict.py [--backend jax ...] [--repeats 30]

The `conv` model of README.md with LSTM(64), on one case of (time=10, channels=3, features=5), the
two calls in turn, on each backend in a process of its own. Writes results/predict.json.
"""

import argparse
import json

import common

SHAPE = (10, 3, 5)


def measure(repeats: int) -> dict:
    """Measure both calls on the active backend."""
    import keras
    import numpy as np

    from multibackend_lstm import build_model

    model = build_model(SHAPE, "conv", units=64)
    x = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype("float32")
    calls = {
        "predict": lambda: model.predict(x, verbose=0),
        "predict_on_batch": lambda: model.predict_on_batch(x),
    }
    np.testing.assert_allclose(*(call() for call in calls.values()), rtol=0, atol=1e-6)
    seconds = common.alternate(calls, repeats)
    return {
        "backend": keras.backend.backend(),
        **{name: common.summary(values) for name, values in seconds.items()},
        "ratio": common.ratio(seconds["predict"], seconds["predict_on_batch"]),
    }


def main() -> None:
    """Run on each backend, write the results, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.repeats)))
        return
    reports = common.on_each_backend(
        __file__, ["--repeats", str(arguments.repeats)], arguments.backend
    )
    common.write_results("predict", __doc__.splitlines()[0], reports)
    print(f"{'backend':12}{'predict, ms':>16}{'predict_on_batch, ms':>24}{'ratio':>8}")
    for report in reports:
        whole, batch = (report[name]["median_ms"] for name in ("predict", "predict_on_batch"))
        print(f"{report['backend']:12}{whole:16.2f}{batch:24.2f}{report['ratio']:8.0f}")


if __name__ == "__main__":
    main()

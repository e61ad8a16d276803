"""What do random numbers that are the same everywhere cost, beside those of `keras.random`?

    python benchmarks/random_numbers.py

A dropout mask of 410,000 elements, drawn and applied, as each backend runs it in `fit` (JAX jitted,
TensorFlow as a graph with and without XLA, torch eagerly), beside `keras.random.dropout`; and a
training step of the `conv` model, (100, 8, 16), batch 32, with this package's dropout and with that
of Keras.
"""

import argparse
import json
import sys

import keras
import numpy as np
from common import (
    alternate,
    markdown,
    on_each_backend,
    ratio,
    summary,
    write_results,
    write_table,
)
from keras import ops

import multibackend_lstm as ml
from multibackend_lstm import random

SHAPE = (32, 100, 128)
RATE = 0.3


def mask_functions():
    """By mode and owner, functions that draw a mask and apply it."""
    backend = keras.backend.backend()
    x = ops.ones(SHAPE)
    ours = keras.random.SeedGenerator(1)
    theirs = keras.random.SeedGenerator(1)

    def draw(owner):
        if owner == "ours":
            return lambda x, seed: random.dropout(x, RATE, seed=seed)
        if backend == "jax":  # as keras.random does it, from a state that is an argument
            import jax

            return lambda x, seed: jax.numpy.where(
                jax.random.bernoulli(jax.random.wrap_key_data(seed), 1 - RATE, x.shape),
                x / (1 - RATE),
                0,
            )
        if backend == "tensorflow":
            import tensorflow as tf

            return lambda x, seed: tf.nn.experimental.stateless_dropout(x, RATE, seed)
        return lambda x, _: keras.random.dropout(x, RATE, seed=theirs)

    functions = {}
    for owner in ("ours", "keras"):
        function = draw(owner)
        if backend == "jax":
            import jax

            jitted = jax.jit(function)
            functions["jitted", owner] = lambda f=jitted: f(x, ours.next()).block_until_ready()
        elif backend == "tensorflow":
            import tensorflow as tf

            for mode, jit in (("graph", False), ("graph, XLA", True)):
                graph = tf.function(function, jit_compile=jit, autograph=False)
                functions[mode, owner] = lambda f=graph: f(x, ours.next()).numpy()
        else:
            functions["eager", owner] = lambda f=function: f(x, ours)
    return functions


def models():
    """By owner of the dropout, a function that makes a training step."""
    model = ml.build_model(
        (100, 8, 16), solution="conv", units=64, outputs=4, task="multiclass", dropout=RATE
    )

    def of_keras(layer):
        if type(layer) is ml.Dropout:
            return keras.layers.Dropout(layer.rate)
        return type(layer).from_config(layer.get_config())

    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 100, 8, 16)).astype("float32")
    y = rng.integers(0, 4, 32)
    steps = {}
    for owner in ("ours", "keras"):
        one = keras.models.clone_model(model, clone_function=None if owner == "ours" else of_keras)
        one.compile("adam", "sparse_categorical_crossentropy")
        steps["step", owner] = lambda one=one: one.train_on_batch(x, y)
    return steps


def measure(repeats):
    """Medians and ratios of this process's backend."""
    rows = {}
    for functions in (mask_functions(), models()):
        seconds = alternate(functions, repeats)
        for mode in dict.fromkeys(mode for mode, _ in functions):
            ours, theirs = seconds[mode, "ours"], seconds[mode, "keras"]
            rows[mode] = {
                "ours": summary(ours),
                "keras": summary(theirs),
                "ratio": ratio(ours, theirs),
            }
    return {"backend": keras.backend.backend(), "rows": rows}


def main():
    """Measure on each installed backend."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--backends", nargs="*", default=[])
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.repeats)))
        return
    reports = on_each_backend(__file__, ["--repeats", str(options.repeats)], options.backends)
    for report in reports:
        for mode, row in report["rows"].items():
            print(
                f"{report['backend']:<11} {mode:<11} ours {row['ours']['median_ms']:8.2f} ms   "
                f"keras {row['keras']['median_ms']:8.2f} ms   ratio {row['ratio']:.2f}"
            )
    lines = markdown(
        ["backend", "what", "ours", "Keras", "ratio"],
        [
            [
                report["backend"],
                "training step" if mode == "step" else f"mask, {mode}",
                *(f"{row[owner]['median_ms']:.2f} ms" for owner in ("ours", "keras")),
                f"{row['ratio']:.2f}",
            ]
            for report in reports
            for mode, row in report["rows"].items()
        ],
    )
    write_table("random.md", "random numbers", "\n".join(lines) + "\n")
    write_results(
        "random_numbers",
        __doc__.splitlines()[0],
        {"shape": SHAPE, "rate": RATE, "backends": reports},
    )


if __name__ == "__main__":
    sys.exit(main())

"""`initialize` gives the same bits on every backend, and training from there agrees.

This file is also the program that each backend runs: weights and training runs to an .npz file.
"""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from multibackend_lstm import SOLUTIONS, build_model
from multibackend_lstm.agreement import fit_order, initialize
from multibackend_lstm.environment import installed_backends

# A part of CI, beside `nox -s tests`, which is to take minutes.
pytestmark = pytest.mark.slow

TRAINING = installed_backends()
# NumPy, which is always there, cannot train.
BACKENDS = [*TRAINING, "numpy"]
TOLERANCE = 1e-5


def every_initializer():
    """Weights by each of Keras's initializers, in layers of many kinds."""
    layers = keras.layers
    inputs = keras.Input((8, 6))
    x = layers.Conv1D(5, 3, kernel_initializer="he_normal")(inputs)
    x = layers.SeparableConv1D(4, 2, depthwise_initializer="lecun_uniform")(x)
    x = layers.MultiHeadAttention(2, 3, kernel_initializer="truncated_normal")(x, x)
    x = layers.BatchNormalization(gamma_initializer="random_uniform")(x)
    x = layers.Bidirectional(
        layers.GRU(3, return_sequences=True, bias_initializer="random_normal")
    )(x)
    x = layers.LSTM(4, kernel_initializer="glorot_normal", bias_initializer="random_normal")(x)
    x = layers.Dense(4, kernel_initializer="identity", bias_initializer="ones")(x)
    x = layers.Dense(64, kernel_initializer="orthogonal")(x)
    x = layers.Dense(300, kernel_initializer="he_uniform", dtype="bfloat16")(x)
    constant = keras.initializers.Constant(0.1)
    return keras.Model(inputs, layers.Dense(2, kernel_initializer=constant, dtype="float16")(x))


def train(seed):
    """Weights of a small model after 20 steps."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6, 3, 2)).astype("float32"), rng.integers(3, size=40)
    model = build_model((6, 3, 2), "reshape", units=4, outputs=3, task="multiclass")
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    initialize(model, seed=0)
    for epoch in range(4):
        order = fit_order(len(x), seed, epoch)
        model.fit(x[order], y[order], batch_size=8, shuffle=False, verbose=0)
    return model.get_weights()


def main(path):
    """Write the weights that this process's backend starts and ends with."""
    models = {s: build_model((6, 3, 2), s, units=4, bidirectional=True) for s in SOLUTIONS}
    models["every_initializer"] = every_initializer()
    found = {}
    for name, model in models.items():
        initialize(model, seed=0)
        # float32 holds the values of float16 and bfloat16 too, and NumPy's files do.
        weights = [keras.ops.convert_to_numpy(keras.ops.cast(w, "float32")) for w in model.weights]
        found |= {f"start/{name}/{i}": weight for i, weight in enumerate(weights)}
    if keras.backend.backend() != "numpy":
        for seed in (0, 1):
            found |= {f"order{seed}/{i}": weight for i, weight in enumerate(train(seed))}
    np.savez(path, **found)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each backend wrote."""
    folder = tmp_path_factory.mktemp("same_start")
    results = {}
    for backend in BACKENDS:
        path = folder / f"{backend}.npz"
        subprocess.run(
            [sys.executable, "-W", "ignore", __file__, path],
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            check=True,
            timeout=300,
        )
        with np.load(path, allow_pickle=False) as arrays:
            results[backend] = dict(arrays)
    return results


def part(arrays, prefix):
    return {name: array for name, array in arrays.items() if name.startswith(prefix)}


def test_there_is_another_backend_to_compare_with():
    assert len(TRAINING) > 1, "these tests compare backends: install a second one"


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_start_is_bit_for_bit_the_same(found, backend):
    expected, actual = part(found[BACKENDS[0]], "start/"), part(found[backend], "start/")
    assert expected.keys() == actual.keys()
    assert len(expected) > 60
    different = [name for name in expected if not np.array_equal(expected[name], actual[name])]
    assert different == []


@pytest.mark.parametrize("backend", TRAINING[1:])
def test_training_agrees(found, backend):
    for name, expected in part(found[TRAINING[0]], "order0/").items():
        np.testing.assert_allclose(found[backend][name], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("backend", TRAINING)
def test_another_order_would_be_seen(found, backend):
    other = found[backend]
    differences = [
        np.abs(weight - other[name.replace("order0", "order1")]).max()
        for name, weight in part(other, "order0/").items()
    ]
    assert max(differences) > 100 * TOLERANCE


if __name__ == "__main__":
    main(sys.argv[1])

"""What the unit tests need beside Keras: gradients on each backend, subprocesses, data."""

import os
import pathlib
import resource
import subprocess
import sys
from contextlib import contextmanager

import keras
import numpy as np
import pytest
from keras import ops, tree

import multibackend_lstm

BACKEND = keras.backend.backend()

needs_gradients = pytest.mark.skipif(
    BACKEND not in ("tensorflow", "torch", "jax"), reason=f"{BACKEND} has no gradients"
)
needs_jit = pytest.mark.skipif(
    BACKEND not in ("tensorflow", "jax"), reason=f"{BACKEND} has no quick jit_compile"
)
only_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="about tf.function")


def normal(*shape, seed=0, dtype="float32"):
    """Normally distributed numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def random_mask(*shape, seed=0):
    """A mask with holes: no row is empty along the second axis, and none is full."""
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[:, 0] = True
    mask[:, -1] = False
    return mask


def to_numpy(x):
    """Nested tensors as NumPy arrays."""
    return tree.map_structure(ops.convert_to_numpy, x)


def assert_close(actual, expected, atol=1e-6, rtol=1e-5):
    """Nested values agree, and so do their structures and shapes."""
    tree.assert_same_structure(actual, expected)
    for a, e in zip(tree.flatten(to_numpy(actual)), tree.flatten(to_numpy(expected)), strict=True):
        assert a.shape == e.shape
        np.testing.assert_allclose(a.astype("float64"), e.astype("float64"), atol=atol, rtol=rtol)


def assert_equal(actual, expected):
    """Arrays are bit for bit the same, dtype and shape too."""
    np.testing.assert_array_equal(to_numpy(actual), to_numpy(expected), strict=True)


def loss(outputs):
    """A scalar in which every output element has its own weight."""
    total = 0.0
    for seed, x in enumerate(tree.flatten(outputs)):
        weights = ops.convert_to_tensor(normal(*x.shape, seed=100 + seed))
        total += ops.sum(ops.multiply(ops.cast(x, "float32"), weights))
    return total


def gradients(layer, inputs, **arguments):
    """Gradients of `loss` for inputs and trainable weights, as two lists of arrays.

    Every gradient must exist: one that is cut off on the way makes this fail.
    """
    xs = [ops.convert_to_tensor(x) for x in tree.flatten(inputs)]
    if not layer.built:
        layer(inputs, **arguments)

    def call(xs):
        return loss(layer(tree.pack_sequence_as(inputs, xs), **arguments))

    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(xs)
            value = call(xs)
        found = tape.gradient(value, [xs, [w.value for w in layer.trainable_weights]])
    elif BACKEND == "torch":
        import torch

        xs = [x.clone().requires_grad_() for x in xs]
        weights = [w.value for w in layer.trainable_weights]
        flat = torch.autograd.grad(call(xs), [*xs, *weights])
        found = [flat[: len(xs)], flat[len(xs) :]]
    else:
        import jax

        def stateless(xs, trainable):
            outputs, _ = layer.stateless_call(
                trainable,
                [w.value for w in layer.non_trainable_variables],
                tree.pack_sequence_as(inputs, xs),
                **arguments,
            )
            return loss(outputs)

        # Compiled, since an operation at a time compiles every step of a loop anew.
        found = jax.jit(jax.grad(stateless, argnums=(0, 1)))(
            xs, [w.value for w in layer.trainable_weights]
        )
    assert all(g is not None for g in tree.flatten(found))
    return [to_numpy(g) for g in found[0]], [to_numpy(g) for g in found[1]]


def assert_gradients_close(layer, expected_layer, inputs, atol=1e-5, **arguments):
    """Gradients of inputs and weights agree, and none is zero everywhere."""
    actual, expected = (gradients(x, inputs, **arguments) for x in (layer, expected_layer))
    for a, e in zip(tree.flatten(actual), tree.flatten(expected), strict=True):
        assert np.any(e)
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, atol=atol, rtol=1e-4)


def randomise_weights(layer, seed=0):
    """Give every trainable weight (biases too) values that are neither zero nor one."""
    for position, weight in enumerate(layer.trainable_weights):
        weight.assign(0.5 * normal(*weight.shape, seed=1000 * seed + position))


def plain(config):
    """A configuration as it stands in a file, without the shapes a built layer adds."""
    if isinstance(config, dict):
        return {k: plain(v) for k, v in config.items() if k != "build_config"}
    return [plain(v) for v in config] if isinstance(config, (list, tuple)) else config


def save_and_load(model, folder):
    """The model, saved as `.keras` and loaded in safe mode."""
    path = folder / "model.keras"
    model.save(path)
    return keras.saving.load_model(path, safe_mode=True)


def run_python(code, **environment):
    """Standard output of `code` in a fresh interpreter that finds this package."""
    root = str(pathlib.Path(multibackend_lstm.__file__).parents[1])
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@contextmanager
def no_file_beyond(size):
    """Within it the disk is full once a file has so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

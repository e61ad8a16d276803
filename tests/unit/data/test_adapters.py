"""The same batches for the same seed from Keras, torch, tf.data and Grain."""

import importlib.util
import itertools

import numpy as np
import pytest

from multibackend_lstm import windows
from multibackend_lstm.data import to_grain, to_tensorflow, to_torch

EPOCHS = 2


def dataset():
    rng = np.random.default_rng(0)
    recordings = [rng.normal(size=(n, 2, 3)) for n in (30, 20)]
    return windows(
        recordings, 6, targets=[0, 1], shuffle=True, seed=5, batch_size=8, ragged=True,
        class_balance=True,
    )  # fmt: skip


def check(epochs):
    """Compare the batches of some epochs with those of iterating over the dataset itself."""
    plain = dataset()
    expected = [list(plain) for _ in range(EPOCHS)]
    assert not (expected[0][0][0]["inputs"] == expected[1][0][0]["inputs"]).all()
    for mine, theirs in zip(expected, epochs, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert len(a) == len(b) == 3
            assert [*a[0]] == [*b[0]]
            pairs = [(a[0][key], b[0][key]) for key in a[0]] + list(zip(a[1:], b[1:], strict=True))
            for x, y in pairs:
                assert x.dtype == np.asarray(y).dtype
                np.testing.assert_array_equal(x, np.asarray(y))


def needs(module):
    found = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not found, reason=f"{module} is not installed")


@needs("torch")
# JAX and Python 3.12 warn of processes that are forked beside threads, as torch does it.
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_torch(workers):
    loader = to_torch(dataset(), workers)
    assert len(loader) == len(dataset())
    check([list(loader) for _ in range(EPOCHS)])


@needs("tensorflow")
@pytest.mark.parametrize("workers", [1, 3])
def test_tensorflow(workers):
    found = to_tensorflow(dataset(), workers)
    assert len(found) == len(dataset())
    assert found.element_spec[0]["inputs"].shape.as_list() == [None, 6, 2, 3]
    check([list(found) for _ in range(EPOCHS)])


@needs("grain")
def test_grain():
    found = list(to_grain(dataset(), EPOCHS).to_iter_dataset())
    check(itertools.batched(found, len(dataset())) if hasattr(itertools, "batched") else
          [found[: len(dataset())], found[len(dataset()) :]])  # fmt: skip

"""Distributions: exact where they promise it, and distributed as they say."""

import math
from statistics import NormalDist

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from multibackend_lstm import random
from unit.random.reference import reference_bits
from unit.tools import BACKEND, assert_equal, to_numpy

COUNT = 20000


def compiled(function):
    """The function as a user's jitted code runs it."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    return function


def distance(values, distribution):
    """Kolmogorov and Smirnov's, times the root of the number of values."""
    expected = np.array([distribution(value) for value in np.sort(values)])
    steps = np.arange(len(values) + 1) / len(values)
    found = max(np.abs(steps[1:] - expected).max(), np.abs(steps[:-1] - expected).max())
    return found * math.sqrt(len(values))


@pytest.mark.parametrize(("dtype", "digits"), [("float32", 24), ("float16", 11), ("bfloat16", 8)])
def test_uniform_numbers_are_exact(dtype, digits):
    found = random.uniform((1000,), dtype=dtype, seed=1)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    expected = (reference_bits((1000,), 1) >> (32 - digits)) * 2.0**-digits
    assert_equal(ops.cast(found, "float32"), expected.astype("float32"))


@pytest.mark.parametrize("wrap", [lambda f: f, compiled])
@given(minval=st.floats(-10, 10, width=32), width=st.floats(0.125, 10, width=32))
def test_scaled_uniform_numbers_are_rounded_twice_everywhere(wrap, minval, width):
    # XLA would round product and sum once, were they not kept apart.
    found = wrap(lambda: random.uniform((4000,), minval, minval + width, seed=1))()
    u = (reference_bits((4000,), 1) >> 8).astype("float32") * np.float32(2**-24)
    width = minval + width - minval
    assert_equal(found, u * np.float32(width) + np.float32(minval))


def test_uniform_numbers_are_distributed_uniformly():
    found = to_numpy(random.uniform((COUNT,), 2.0, 5.0, seed=11))
    assert distance(found, lambda x: (x - 2) / 3) < 1.95  # one seed in a thousand is beyond
    counts = np.bincount(((found - 2) / 3 * 100).astype(int), minlength=100)
    chi_squared = ((counts - COUNT / 100) ** 2 / (COUNT / 100)).sum()
    assert 50 < chi_squared < 150  # 99 degrees of freedom: 3.6 deviations


@pytest.mark.parametrize("wrap", [lambda f: f, compiled])
def test_normal_numbers_are_the_inverse_of_the_distribution_function(wrap):
    found = to_numpy(wrap(lambda: random.normal((COUNT,), seed=5))())
    places = (reference_bits((COUNT,), 5) >> 8).astype("int64")
    expected = np.array([NormalDist().inv_cdf((2 * k + 1) / 2**25) for k in places])
    np.testing.assert_allclose(found, expected, rtol=5e-7)
    assert distance(found, NormalDist().cdf) < 1.95


def test_normal_numbers_have_the_mean_and_the_deviation_asked_for():
    standard = to_numpy(random.normal((COUNT,), seed=5)).astype("float64")
    found = to_numpy(random.normal((COUNT,), mean=3.0, stddev=0.5, seed=5))
    np.testing.assert_allclose(found, 3 + standard / 2, atol=1e-6)


def test_extremes_of_the_normal_distribution_are_finite():
    # The words 0 and 2**32 - 1 are too rare to be drawn here.
    from multibackend_lstm.random.distributions import _erfinv

    ends = np.array([1 - 2**24, 2**24 - 1, -1, 1], "float32") * np.float32(2**-24)
    found = to_numpy(_erfinv(ops.convert_to_tensor(ends))) * math.sqrt(2)
    expected = [NormalDist().inv_cdf((1 + float(x)) / 2) for x in ends]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_truncated_normal_numbers():
    found = to_numpy(random.truncated_normal((COUNT,), 1.0, 2.0, seed=8))
    assert (np.abs(found - 1) <= 4).all()
    low, high = NormalDist(1, 2).cdf(-3), NormalDist(1, 2).cdf(5)
    assert distance(found, lambda x: (NormalDist(1, 2).cdf(x) - low) / (high - low)) < 1.95


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 by default")
def test_float64_numbers_are_those_of_float32():
    for draw in (random.uniform, random.normal):
        narrow, wide = (to_numpy(draw((50,), dtype=d, seed=1)) for d in ("float32", "float64"))
        np.testing.assert_array_equal(narrow, wide)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 by default")
@pytest.mark.parametrize("draw", [random.uniform, random.normal, random.truncated_normal])
def test_with_float64_as_the_dtype_by_default(draw):
    expected = draw((50,), -1.0, 2.0, dtype="float32", seed=1)
    keras.config.set_floatx("float64")
    try:
        found = draw((50,), -1.0, 2.0, seed=1)
    finally:
        keras.config.set_floatx("float32")
    assert_equal(found, to_numpy(expected).astype("float64"))


@pytest.mark.parametrize("draw", [random.uniform, random.normal, random.truncated_normal])
def test_integers_are_refused(draw):
    with pytest.raises(ValueError, match=r"`dtype` must be one of .* Received int32"):
        draw((2,), dtype="int32", seed=0)


@pytest.mark.parametrize("p", [0.0, 2.0**-24, 0.3, 0.5, 0.7, 1 - 2.0**-24, 1.0, 0, 1])
def test_bernoulli(p):
    found = random.bernoulli((1000,), p, seed=2)
    assert_equal(found, reference_bits((1000,), 2) / 2**32 < p)
    of_a_tensor = random.bernoulli((1000,), ops.convert_to_tensor(p, "float32"), seed=2)
    assert_equal(found, to_numpy(of_a_tensor))


def test_bernoulli_with_a_probability_an_entry():
    p = np.linspace(0, 1, 7, dtype="float32")
    found = random.bernoulli((1000, 7), ops.convert_to_tensor(p), seed=2)
    u = (reference_bits((1000, 7), 2) >> 8).astype("float32") * np.float32(2**-24)
    assert_equal(found, u < p)


def test_randint():
    found = to_numpy(random.randint((COUNT,), -3, 7, seed=6))
    assert_equal(found, ((reference_bits((COUNT,), 6) >> 1) % 10).astype("int32") - 3)
    counts = np.bincount(found + 3)
    assert ((counts - COUNT / 10) ** 2 / (COUNT / 10)).sum() < 27.9  # 1 in 1000, 9 degrees


@pytest.mark.parametrize(
    "bounds",
    [(3, 3), (5, 2), (-(2**31), 2**31 - 1), (0, 2**31), (0, 10.5), (0.0, 10.0), (False, 3)],
)
def test_randint_refuses(bounds):
    with pytest.raises(ValueError, match="`minval` must be below `maxval`"):
        random.randint((2,), *bounds, seed=0)


@pytest.mark.parametrize("n", [0, 1, 2, 100, 70000])
def test_permutation(n):
    expected = np.argsort(reference_bits((n,), 3).view("int32"), kind="stable")
    assert_equal(random.permutation(n, seed=3), expected.astype("int32"))


def test_equal_keys_keep_their_order(monkeypatch):
    module = __import__("multibackend_lstm.random.distributions", fromlist=["bits"])
    keys = np.random.default_rng(0).integers(0, 50, 3000).astype("int32")
    monkeypatch.setattr(module, "bits", lambda shape, seed: ops.convert_to_tensor(keys))
    expected = np.argsort(keys, kind="stable").astype("int32")
    assert_equal(random.permutation(3000, seed=0), expected)


def test_permutation_of_a_tensor_along_an_axis():
    x = np.arange(24.0, dtype="float32").reshape(2, 4, 3)
    order = to_numpy(random.permutation(4, seed=7))
    assert order.tolist() != [0, 1, 2, 3]
    assert_equal(random.permutation(x, axis=1, seed=7), x[:, order])
    assert_equal(random.permutation(x, axis=-2, seed=7), x[:, order])


def test_choice():
    assert_equal(random.choice(5, (3, 4), seed=1), random.randint((3, 4), 0, 5, seed=1))
    x = np.arange(10.0, dtype="float32").reshape(5, 2)
    index = to_numpy(random.randint((3,), 0, 5, seed=1))
    assert_equal(random.choice(x, (3,), seed=1), x[index])
    drawn = to_numpy(random.choice(20, (4, 5), replace=False, seed=1))
    assert sorted(drawn.ravel()) == list(range(20))


def test_choice_with_probabilities():
    p = [0.1, 0.0, 0.6, 0.3]
    found = to_numpy(random.choice(4, (COUNT,), p=p, seed=1))
    np.testing.assert_allclose(np.bincount(found, minlength=4) / COUNT, p, atol=0.015)
    assert (found != 1).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"p": [0.5, 0.5]},
        {"p": [0.5, 0.6, -0.1]},
        {"p": [0.5, 0.6, 0.1]},
        {"replace": False, "p": [0.2, 0.3, 0.5]},
        {"replace": False, "shape": (4,)},
        {"p": [np.nan, 0.5, 0.5]},
    ],
)
def test_choice_refuses(arguments):
    with pytest.raises(ValueError, match=r"^choice: "):
        random.choice(3, **{"shape": (2,), **arguments}, seed=0)


@pytest.mark.parametrize("a", [0, -1, 2.0, True, np.float32(3), np.empty((0, 2), "float32")])
def test_choice_needs_something_to_choose(a):
    with pytest.raises(ValueError, match=r"^choice: `a` must"):
        random.choice(a, (2,), seed=0)


@pytest.mark.parametrize("x", [-1, 2.0, True, np.float32(3)])
def test_permutation_refuses(x):
    with pytest.raises(ValueError, match=r"^permutation: `x` must be a whole number"):
        random.permutation(x, seed=0)


def test_counts_of_numpy():
    assert_equal(random.permutation(np.int64(9), seed=3), random.permutation(9, seed=3))
    assert_equal(random.choice(np.int32(9), (4,), seed=3), random.choice(9, (4,), seed=3))
    assert_equal(
        random.randint((4,), np.int8(1), np.int64(9), seed=3), random.randint((4,), 1, 9, seed=3)
    )


def test_a_probability_of_0_is_never_chosen(monkeypatch):
    module = __import__("multibackend_lstm.random.distributions", fromlist=["uniform"])
    largest = ops.convert_to_tensor([[1 - 2.0**-24], [0.0]])
    monkeypatch.setattr(module, "uniform", lambda *shape, **options: largest)
    p = [0.0, 0.3333333, 0.3333333, 0.3333333, 0.0]
    assert to_numpy(random.choice(5, (2,), p=p, seed=0)).tolist() == [3, 1]


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rates_and_probabilities_outside_of_0_to_1_are_refused(rate):
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\]"):
        random.dropout(ops.ones((2,)), rate, seed=0)
    with pytest.raises(ValueError, match="`p` must be a probability"):
        random.bernoulli((2,), rate, seed=0)


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(ValueError, match="`minval` must not be above `maxval`"):
        random.uniform((2,), 1.0, 0.0, seed=0)


def test_dropout_of_integers_is_refused():
    with pytest.raises(ValueError, match="Received int32"):
        random.dropout(ops.ones((2,), "int32"), 0.5, seed=0)


def test_dropout():
    x = np.random.default_rng(0).normal(size=(50, 20)).astype("float32")
    kept = reference_bits((50, 20), 4) >> 8 < np.ceil(np.float32(0.7) * 2**24)
    expected = np.where(kept, x * np.float32(1 / 0.7), np.float32(0))
    assert_equal(random.dropout(ops.convert_to_tensor(x), 0.3, seed=4), expected)


def test_dropout_with_a_mask_of_another_shape():
    x = np.ones((6, 5, 8), "float32")
    found = to_numpy(random.dropout(ops.convert_to_tensor(x), 0.5, (None, 1, None), seed=4))
    assert_equal(found, np.repeat(found[:, :1], 5, axis=1))
    assert {0.0, 2.0} == set(found.ravel())


@pytest.mark.parametrize(("rate", "expected"), [(0, 1.0), (0.0, 1.0), (1, 0.0), (1.0, 0.0)])
def test_dropout_of_nothing_and_of_all(rate, expected):
    x = ops.ones((3, 4))
    assert_equal(random.dropout(x, rate, seed=0), np.full((3, 4), expected, "float32"))


def test_an_axis_that_is_none_is_refused():
    with pytest.raises(ValueError, match="`axis` must be one of the 2 axes"):
        random.permutation(np.ones((2, 3)), axis=2, seed=0)


def test_dropout_of_a_list():
    found = random.dropout([1.0, 2.0, 3.0, 4.0], 0.5, seed=0)
    assert_equal(found, random.dropout(ops.convert_to_tensor([1.0, 2.0, 3.0, 4.0]), 0.5, seed=0))

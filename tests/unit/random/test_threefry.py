"""Threefry's bits: the published vectors, a reference in NumPy, JAX's own generator, counters."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from multibackend_lstm import random
from unit.random.reference import reference_bits, threefry2x32, words
from unit.tools import BACKEND, assert_equal, only_tensorflow, run_python

# Of the generator's authors: Random123's kat_vectors, threefry2x32 with 20 rounds.
PUBLISHED = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


def signed(values):
    return ops.convert_to_tensor(np.array(values, "uint32").view("int32"))


@pytest.mark.parametrize(("key", "counter", "expected"), PUBLISHED)
def test_published_vectors(key, counter, expected):
    key, counter = signed(key), signed(counter)
    first, second = random.threefry2x32((key[0], key[1]), (counter[:1], counter[1:]))
    assert [words(first)[0], words(second)[0]] == list(expected)
    first, second = threefry2x32(*map(int, words(key)), *words(counter))
    assert [first[0], second[0]] == list(expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    counter=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 5), max_size=3),
)
def test_bits_are_those_of_the_reference(seed, counter, shape):
    found = random.bits(tuple(shape), seed=(seed, counter))
    assert found.dtype in ("int32", ops.zeros((), "int32").dtype)
    assert found.shape == tuple(shape)
    np.testing.assert_array_equal(words(found), reference_bits(shape, seed, counter))


@pytest.mark.skipif(BACKEND != "jax", reason="compares with jax.random")
def test_jax_draws_the_same():
    import jax

    key = jax.random.wrap_key_data(np.array([3, 7], "uint32"), impl="threefry2x32")
    theirs = jax.random.bits(key, (1000,), "uint32")
    places = ops.arange(1000, dtype="int32")
    first, second = random.threefry2x32(tuple(signed([3, 7])), (ops.zeros_like(places), places))
    # JAX joins the two words of each place, we use both.
    assert_equal(words(first) ^ words(second), np.asarray(theirs))


@pytest.mark.skipif(BACKEND != "jax", reason="about jax.jit")
def test_jitted_by_jax():
    import jax

    found = jax.jit(lambda seed: random.bits((7, 3), seed))(np.array([5, 6], "uint32"))
    np.testing.assert_array_equal(words(found), reference_bits((7, 3), 5, 6))


@only_tensorflow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_a_graph_of_tensorflow_that_does_not_know_the_shape(jit_compile):
    import tensorflow as tf

    @tf.function(
        jit_compile=jit_compile, input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([2])]
    )
    def draw(x, seed):
        return random.bits(ops.shape(x) if not jit_compile else (5, 3), tf.cast(seed, "int64"))

    for rows in (5, 2) if not jit_compile else (5,):
        found = draw(np.zeros((rows, 3), "float32"), np.array([1, 2], "float32"))
        np.testing.assert_array_equal(words(found), reference_bits((rows, 3), 1, 2))


def test_a_word_depends_on_its_place_alone():
    few, many = random.bits((10,), seed=4), random.bits((100, 3), seed=4)
    assert_equal(few, ops.reshape(many, (-1,))[:10])


def test_a_generator_advances_its_counter():
    generator = random.SeedGenerator(9)
    for counter in range(3):
        found = random.bits((5,), seed=generator)
        np.testing.assert_array_equal(words(found), reference_bits((5,), 9, counter))
    assert ops.convert_to_numpy(generator.state.value).tolist() == [9, 3]


@pytest.mark.parametrize(
    "seed",
    [
        None,
        -1,
        2**32,
        1.5,
        True,
        "a",
        (1, -2),
        (1, 2, 3),
        np.zeros(3, "int32"),
        np.array([1.5, 2]),
        np.array([1, 2**40]),
        np.array([-1, 2]),
    ],
)
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer from 0 to 2\*\*32 - 1"):
        random.bits((2,), seed=seed)


def test_tensors_of_real_numbers_are_no_seed():
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        random.bits((2,), seed=ops.convert_to_tensor([1.5, 2.5]))


@pytest.mark.parametrize("shape", [3, None, (2, -1), (2, None), (1.5,), "ab", (True,)])
def test_what_is_no_shape_is_refused(shape):
    with pytest.raises(ValueError, match="`shape` must hold the sizes of the axes"):
        random.bits(shape, seed=0)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), [2, np.int64(3)]])
def test_shapes_of_nothing_and_of_numpy_integers(shape):
    assert tuple(random.bits(shape, seed=0).shape) == tuple(shape)


def test_seeds_and_counters_give_streams_that_do_not_correlate():
    streams = np.stack(
        [words(random.bits((4000,), seed=(s, c))) for s in (0, 1, 2**31) for c in range(3)]
    )
    correlations = np.corrcoef(streams.astype("float64"))
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_every_bit_is_set_half_the_time():
    found = words(random.bits((20000,), seed=3))
    counts = np.array([(found >> bit & 1).sum() for bit in range(32)], "int64")
    # Of 32 normal numbers none is beyond 5 deviations.
    assert np.abs(counts - 10000).max() < 5 * np.sqrt(20000 / 4)


def test_keras_seeds_of_its_own_dtype():
    dtype = keras.random.SeedGenerator(1).state.dtype
    state = ops.convert_to_tensor(np.array([2**31 - 1, 5]), dtype)
    np.testing.assert_array_equal(
        words(random.bits((3,), seed=state)), reference_bits((3,), 2**31 - 1, 5)
    )


def test_it_may_be_what_imports_keras():
    run_python("from multibackend_lstm import random; random.bits((2,), seed=0)")


@pytest.mark.parametrize("start", [-1, 2**32, np.int64(2**40)])
def test_a_start_beyond_the_counter_is_refused(start):
    with pytest.raises(ValueError, match=r"`start` must be from 0 to 2\*\*32 - 1"):
        random.bits((2,), 0, start=start)


def test_the_last_words_before_the_counter_ends():
    found = random.bits((4,), 0, start=2**32 - 4)
    whole = random.bits((20,), 0, start=2**32 - 20)
    assert_equal(found, whole[16:])

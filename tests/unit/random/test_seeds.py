"""SeedGenerator, whose state is saved, and set_random_seed."""

import keras
import numpy as np
import pytest
from keras import ops

import multibackend_lstm as ml
from multibackend_lstm import random
from multibackend_lstm.layers.dropout import drawing_otherwise
from unit.tools import BACKEND, assert_equal, save_and_load, to_numpy


@keras.saving.register_keras_serializable(package="tests")
class Noisy(keras.layers.Layer):
    """A layer of a user's with a generator of ours."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = random.SeedGenerator(5)

    def call(self, inputs):
        return inputs + random.uniform(ops.shape(inputs), seed=self.seeds)


ZEROS = np.zeros((2, 3), "float32")


def test_it_counts_as_that_of_keras_does():
    ours, theirs = random.SeedGenerator(5), keras.random.SeedGenerator(5)
    for _ in range(3):
        assert_equal(ours.next(), theirs.next())
    assert ours.get_config()["seed"] == 5
    again = random.SeedGenerator.from_config(ours.get_config())
    assert_equal(again.next(), keras.random.SeedGenerator(5).next())
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        random.SeedGenerator("a")


def test_its_state_is_a_variable_that_is_saved(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Noisy()])
    model(ZEROS)
    loaded = save_and_load(model, tmp_path)
    (state,) = loaded.variables
    assert state.name == "seed_generator_state"
    assert to_numpy(state).tolist() == to_numpy(model.variables[0]).tolist()
    assert_equal(loaded(ZEROS), model(ZEROS))
    assert not [*drawing_otherwise(model)]


@pytest.mark.skipif(BACKEND != "jax", reason="JAX takes the state as an argument")
@pytest.mark.parametrize("layer", [Noisy, lambda: ml.Dropout(0.5, seed=5)])
def test_stateless_calls(layer):
    import jax

    model = keras.Sequential([keras.Input((3,)), layer()])
    state = [variable.value for variable in model.non_trainable_variables]
    before = to_numpy(state[0]).tolist()

    @jax.jit
    def step(state, x):
        return model.stateless_call([], state, x, training=True)

    ones = ZEROS + 1
    first, state = step(state, ones)
    second, state = step(state, ones)
    assert to_numpy(model.non_trainable_variables[0]).tolist() == before
    assert to_numpy(state[0]).tolist() == [5, before[1] + 2]
    assert_equal([first, second], [model(ones, training=True) for _ in range(2)])


def test_one_seed_for_all_that_get_none():
    def draws():
        random.set_random_seed(3)
        ones = ZEROS + 1
        return [
            random.uniform((4,), seed=random.SeedGenerator()),
            ml.Dropout(0.5)(ones, training=True),
            ml.GaussianNoise(0.5)(ones, training=True),
            ml.LSTM(2, dropout=0.5, kernel_initializer="ones", recurrent_initializer="ones")(
                ones[None], training=True
            ),
        ]

    first = draws()
    for found, expected in zip(draws(), first, strict=True):
        assert_equal(found, expected)
    state = np.random.get_state()[1].copy()
    random.set_random_seed(3)
    assert (np.random.get_state()[1] == state).all()
    with pytest.raises(ValueError, match=r"`seed` must be an integer.*Received -1"):
        random.set_random_seed(-1)


@pytest.mark.parametrize("seed", [-1, 2**31, 2**40, True, 1.5, "a"])
@pytest.mark.parametrize(
    "make",
    [
        lambda seed: random.SeedGenerator(seed),
        lambda seed: ml.Dropout(0.5, seed=seed),
        lambda seed: ml.GaussianNoise(0.5, seed),
        lambda seed: ml.SpatialDropout1D(0.5, seed=seed),
        lambda seed: ml.LSTM(3, dropout=0.5, seed=seed),
    ],
)
def test_seeds_that_not_every_backend_holds_are_refused(make, seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer from 0 to 2\*\*31 - 1"):
        make(seed)


def test_whole_numbers_of_numpy_are_seeds():
    assert ml.GaussianDropout(0.5, np.int64(3)).seed == 3
    assert ml.Dropout(0.5, None, np.uint8(3)).get_config()["seed"] == 3
    assert ml.LSTM(3, dropout=0.5, seed=2**31 - 1).get_config()["seed"] == 2**31 - 1

"""Random numbers that are the same on every backend, for layers, data and whole trainings.

Like `keras.random`, but for one thing: a seed is always given. Nothing here has a hidden state.
"""

from multibackend_lstm.random.distributions import (
    bernoulli,
    choice,
    dropout,
    normal,
    permutation,
    randint,
    truncated_normal,
    uniform,
)
from multibackend_lstm.random.seeds import SeedGenerator, set_random_seed
from multibackend_lstm.random.threefry import bits, threefry2x32

__all__ = [
    "SeedGenerator",
    "bernoulli",
    "bits",
    "choice",
    "dropout",
    "normal",
    "permutation",
    "randint",
    "set_random_seed",
    "threefry2x32",
    "truncated_normal",
    "uniform",
]

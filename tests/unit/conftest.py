"""Settings of the unit tests, which run once a backend: `KERAS_BACKEND=jax pytest tests/unit`."""

import os
import random

# Before JAX starts: the tests compile thousands of tiny programs, each of which runs once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import pytest
from hypothesis import HealthCheck, settings


def _pass_masks(cls):
    """Have layers of a class of Keras's own pass masks as they do up to 3.15 (keras#23235).

    The tests compare ours with them, and put them behind ours. Ours must do so by themselves.
    """
    inherited = cls.supports_masking
    cls.supports_masking = property(
        lambda self: type(self).__module__.startswith("keras.") or inherited.fget(self),
        inherited.fset,
    )


if not keras.layers.SimpleRNN(1).supports_masking:
    _pass_masks(keras.layers.RNN)
    _pass_masks(keras.layers.TimeDistributed)

# Every new shape is compiled anew on JAX, so examples are few there and time is not judged.
EXAMPLES = 5 if keras.backend.backend() == "jax" else 15
settings.register_profile(
    "local", max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def backend():
    """Name of the backend that Keras runs on."""
    return keras.backend.backend()


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Every test starts from the same seed and ends with the float32 policy."""
    # Keras draws its default seeds from `random`; its set_random_seed imports TensorFlow.
    random.seed(0)
    yield
    keras.config.set_dtype_policy("float32")

"""Seeds: a generator that counts what was drawn, and one seed for all that get none."""

import random
from typing import Any

import keras
from keras import ops

from multibackend_lstm.random.threefry import integer


class SavedState(keras.Operation):
    """Has Keras save the state of a seed generator, which it leaves out of its files.

    Keras saves what it finds as an attribute of a layer and is an operation, in a place of its
    own, which a layer that has no such attribute does not look at.
    """

    state: keras.Variable

    def call(self, *args: Any) -> Any:
        """Never called."""
        raise NotImplementedError

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Write seed and counter."""
        state = self.state.value
        if keras.backend.backend() == "tensorflow":
            state = state * 1  # a variable on several devices turns into no array itself
        store["0"] = ops.convert_to_numpy(state)

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Read seed and counter; a file of another layer has none."""
        if "0" in store.keys():  # noqa: SIM118 - a store of Keras is no dictionary
            self.state.assign(store["0"])


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class SeedGenerator(keras.random.SeedGenerator, SavedState):
    """`keras.random.SeedGenerator`, whose state is saved with the layer or model that holds it.

    The state, `(seed, counter)`, is a variable of that layer, so that `stateless_call` on JAX
    takes and returns it.

    Example:
        >>> generator = random.SeedGenerator(0)
        >>> first, second = (random.uniform((2,), seed=generator) for _ in range(2))

    Args:
        seed: an integer from 0 to 2**31 - 1. By default one that `set_random_seed` determines.
        name: of its variable's scope.

    Raises:
        ValueError: for another seed.
    """

    def __init__(self, seed: int | None = None, name: str | None = None, **kwargs: Any) -> None:
        seed = checked_seed(type(self).__name__, seed)
        keras.Operation.__init__(self, name=name)
        keras.random.SeedGenerator.__init__(self, seed, name=self.name, **kwargs)


def checked_seed(owner: str, seed: Any) -> int | None:
    """A seed that every backend's state can hold: torch's and JAX's differ beyond it.

    Raises:
        ValueError: for another one.
    """
    if seed is None:
        return None
    found = integer(seed)
    if found is None or not 0 <= found < 2**31:
        raise ValueError(
            f"{owner}: `seed` must be an integer from 0 to 2**31 - 1, or None. Received {seed!r}."
        )
    return found


def set_random_seed(seed: int) -> None:
    """Have all that is random in this package, and gets no seed, follow from this one.

    Layers and generators without a seed of their own draw one from Python's `random`, as those of
    Keras do: this seeds that. The generators of backends and of NumPy, which initial weights and
    the order of `fit` come from, stay as they are: `keras.utils.set_random_seed` seeds them too,
    and `multibackend_lstm.training.same_run` makes the whole training the same on every backend.

    Example:
        >>> random.set_random_seed(0)

    Args:
        seed: an integer from 0 to 2**32 - 1.

    Raises:
        ValueError: for something else.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(
            f"set_random_seed: `seed` must be an integer from 0 to 2**32 - 1. Received {seed!r}."
        )
    random.seed(seed)

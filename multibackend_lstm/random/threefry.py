"""Threefry-2x32, the generator of random bits: a function of a key and a counter, with no state."""

import operator
from numbers import Integral, Real
from typing import Any

import keras
from keras import ops

from multibackend_lstm import backends

#: An integer, a (seed, counter) pair, or a `keras.random.SeedGenerator`.
Seed = Any

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
# Of a block's two words the second comes so many places after the first. Side by side, XLA could
# not vectorize what is made of them: a mask took 2.6 ms in place of 0.6.
_ROW = 16


def threefry2x32(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Threefry-2x32 with 20 rounds: two words of random bits for each two words of the counter.

    Words are int32 tensors that hold the bits of unsigned ones, since JAX has no 64-bit integers
    by default, and torch has few operations for uint32. Integers wrap on every backend, so that
    the words are the same on each.

    Args:
        key: two words, without axes.
        counter: two tensors of words of one shape, with an axis at least.

    Returns:
        Two tensors of words of that shape.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    It is JAX's default generator too.
    """
    return backends.active().compiled(_rounds)(*key, *counter)


def _rounds(key0: Any, key1: Any, x0: Any, x1: Any) -> tuple[Any, Any]:
    rotate_left = backends.active().rotate_left
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    x0 = x0 + keys[0]
    x1 = x1 + keys[1]
    # From here on in place, where a backend's tensors can be overwritten: half the time on torch.
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 += x1
            x1 = rotate_left(x1, rotation)
            x1 ^= x0
        x0 += keys[(group + 1) % 3]
        x1 += keys[(group + 2) % 3]
        x1 += group + 1
    return x0, x1


def bits(shape: Any, seed: Seed, *, start: Any = 0) -> Any:
    """Random 32-bit words, the same on every backend.

    Word `i` of the flattened result is a function of the seed, its counter and `i` alone: with
    `threefry2x32((seed, counter), (0, block))` the first words of the blocks 0 to 15, then their
    second words, then those of the next 16 blocks, and so on.

    Example:
        >>> tuple(bits((2,), seed=0).shape)
        (2,)

    Args:
        shape: sizes of the axes; on TensorFlow and JAX they may be unknown while tracing.
        seed: an integer from 0 to 2**32 - 1; a pair `(seed, counter)` of such integers, or as
            an integer tensor `(2,)`; or a `keras.random.SeedGenerator`, whose counter it advances.
        start: the first word, from 0 to 2**32 - 1: those of a part, such as some rows of a batch
            that several devices share, without those before it.

    Returns:
        int32, of that shape: the bits of unsigned words.

    Raises:
        ValueError: for something else as a seed or start.
    """
    if isinstance(start, Integral):
        start = operator.index(start)
        if not 0 <= start < 2**32:
            raise ValueError(f"`start` must be from 0 to 2**32 - 1. Received {start}.")
    key = _key(seed)
    shape = sizes(shape)
    size = 1
    for axis in shape:
        size *= axis
    before = start // (2 * _ROW)
    skipped = start - before * (2 * _ROW)
    count = (skipped + size + 2 * _ROW - 1) // (2 * _ROW)
    block = ops.arange(count * _ROW, dtype="int32")
    if not isinstance(start, int) or before:
        block = block + before * _ROW
    words = threefry2x32(key, (ops.zeros_like(block), block))
    rows = ops.stack([ops.reshape(word, (-1, _ROW)) for word in words], axis=1)
    return ops.reshape(ops.reshape(rows, (-1,))[skipped : skipped + size], shape)


def sizes(shape: Any) -> tuple[Any, ...]:
    """The sizes of axes as a tuple, tensors where they are unknown while tracing.

    Raises:
        ValueError: for a negative size, and for what is none.
    """
    try:
        found = tuple(shape)
    except TypeError:
        found = (None,)
    for size in found:
        refused = size is None or isinstance(size, (bool, str))
        if not refused and isinstance(size, Real):  # not a tensor
            refused = not isinstance(size, Integral) or size < 0
        if refused:
            raise ValueError(
                f"`shape` must hold the sizes of the axes, such as (2, 3). Received {shape!r}."
            )
    return found


def integer(value: Any) -> int | None:
    """A whole number as Python's, whatever kind it is of; None for anything else."""
    is_whole = not isinstance(value, bool) and isinstance(value, Integral)
    return int(value) if is_whole else None


def _key(seed: Seed) -> tuple[Any, Any]:
    """The two words of a seed's key."""
    if isinstance(seed, keras.random.SeedGenerator):
        seed = seed.next()
    elif not ops.is_tensor(seed) and hasattr(seed, "__len__") and len(seed) == 2:
        seed = [_word(value) for value in seed]
    elif getattr(seed, "shape", ()) != (2,) or "int" not in str(seed.dtype):
        seed = [_word(seed), 0]
    words = ops.cast(ops.convert_to_tensor(seed), "int32")
    return words[0], words[1]


def _word(value: Any) -> int:
    try:
        word = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        word = -1
    if not 0 <= word < 2**32:
        raise ValueError(
            "`seed` must be an integer from 0 to 2**32 - 1, a pair (seed, counter) of them, or a "
            f"keras.random.SeedGenerator. Received {value!r}."
        )
    return word - 2**32 if word >= 2**31 else word

"""Random numbers of the usual distributions, made of the same bits on every backend."""

import itertools
import math
import struct
from numbers import Real
from typing import Any

import keras
from keras import ops

from multibackend_lstm import backends
from multibackend_lstm.random.threefry import Seed, bits, integer, sizes

# How many bits a number in [0, 1) has, so that it is exact in its dtype. float64 has those of
# float32: layers then draw the same in a float64 run that others are compared with.
_DIGITS = {"float64": 24, "float32": 24, "float16": 11, "bfloat16": 8}


def uniform(
    shape: Any,
    minval: float = 0.0,
    maxval: float = 1.0,
    dtype: Any = None,
    *,
    seed: Seed,
    start: Any = 0,
) -> Any:
    """Uniform random numbers, bit-identical on every backend, jitted or not.

    Example:
        >>> tuple(uniform((2, 3), seed=0).shape)
        (2, 3)

    Args:
        shape: sizes of the axes.
        minval: the least number.
        maxval: above all numbers, but for rounding: a range that does not begin at 0 may round up
            to it.
        dtype: a floating dtype; `keras.config.floatx()` by default. Numbers in [0, 1) are
            multiples of 2**-24 in float32 and float64, of 2**-11 in float16, 2**-8 in bfloat16.
            Computed in float32.
        seed: see `bits`.
        start: see `bits`.

    Raises:
        ValueError: for an integer dtype, `minval` above `maxval`, or a seed that is none.
    """
    dtype = _floating(dtype)
    if minval > maxval:
        raise ValueError(
            f"uniform: `minval` must not be above `maxval`. Received {minval} and {maxval}."
        )
    digits = _DIGITS[dtype]
    x = ops.cast(_top_bits(shape, digits, seed, start), "float32") * 2.0**-digits
    if (minval, maxval) != (0.0, 1.0):
        width = maxval - minval
        # A compiler may join a product and a sum to one operation with one rounding, which XLA
        # does and others do not. It cannot join them past this minimum (which is the product).
        x = ops.minimum(x * width, width) + minval
    return ops.cast(x, dtype)


def normal(
    shape: Any,
    mean: float = 0.0,
    stddev: float = 1.0,
    dtype: Any = None,
    *,
    seed: Seed,
    start: Any = 0,
) -> Any:
    """Normal random numbers, on every backend the same to a few units of float32's last place.

    Example:
        >>> tuple(random.normal((2, 3), seed=0).shape)
        (2, 3)

    The inverse of the distribution function at uniform numbers, by the rational approximation of
    Giles ("Approximating the erfinv function", GPU Computing Gems, 2011). Backends differ in the
    last places of their logarithm, and in whether a product and a sum are rounded once: by at
    most 1e-6 times `stddev` (measured: 5e-7). No number is further than 5.42 deviations from the
    mean.

    Args:
        shape: sizes of the axes.
        mean: of the distribution.
        stddev: its standard deviation.
        dtype: a floating dtype; `keras.config.floatx()` by default. Computed in float32.
        seed: see `bits`.
        start: see `bits`.

    Raises:
        ValueError: for an integer dtype, or a seed that is none.
    """
    return _scaled(_erfinv(_symmetric(shape, seed, start)), mean, stddev, dtype)


def truncated_normal(
    shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = None, *, seed: Seed
) -> Any:
    """Normal random numbers within two standard deviations of the mean; see `normal`.

    Example:
        >>> tuple(random.truncated_normal((2, 3), seed=0).shape)
        (2, 3)
    """
    x = _erfinv(_symmetric(shape, seed) * math.erf(math.sqrt(2.0)))
    return _scaled(ops.clip(x, -math.sqrt(2.0), math.sqrt(2.0)), mean, stddev, dtype)


def bernoulli(shape: Any, p: Any = 0.5, *, seed: Seed, start: Any = 0) -> Any:
    """Booleans that are True with probability `p`, the same on every backend.

    Example:
        >>> tuple(random.bernoulli((2, 3), 0.1, seed=0).shape)
        (2, 3)

    Args:
        shape: sizes of the axes.
        p: a number, or a tensor that broadcasts to the shape.
        seed: see `bits`.
        start: see `bits`.

    Raises:
        ValueError: for a number that is no probability, or a seed that is none.
    """
    if not isinstance(p, Real):
        return ops.less(uniform(shape, dtype="float32", seed=seed, start=start), p)
    if not 0 <= float(p) <= 1:
        raise ValueError(f"bernoulli: `p` must be a probability, in [0, 1]. Received {p}.")
    # The same in integers, in fewer passes: which words, taken without their sign, are below p.
    (rounded,) = struct.unpack("f", struct.pack("f", p))  # to float32
    bound = 2**8 * math.ceil(rounded * 2**24)
    words = bits(shape, seed, start=start)
    if bound in (0, 2**32):
        return ops.full_like(words, bound > 0, dtype="bool")
    return ops.less(ops.bitwise_xor(words, -(2**31)), bound - 2**31)


def randint(shape: Any, minval: int, maxval: int, *, seed: Seed) -> Any:
    """Random integers from `minval` to `maxval - 1`, int32, the same on every backend.

    Example:
        >>> tuple(random.randint((2, 3), 0, 10, seed=0).shape)
        (2, 3)

    Args:
        shape: sizes of the axes.
        minval: the least integer.
        maxval: one above the largest. Each integer's probability is off by at most
            `(maxval - minval) / 2**31` of itself.
        seed: see `bits`.

    Raises:
        ValueError: for an empty range, or one beyond int32.
    """
    low, high = integer(minval), integer(maxval)
    if (
        low is None
        or high is None
        or not -(2**31) <= low < high <= 2**31 - 1
        or high - low >= 2**31
    ):
        raise ValueError(
            "randint: `minval` must be below `maxval`, both integers of int32, and fewer than "
            f"2**31 integers between them. Received minval={minval!r}, maxval={maxval!r}."
        )
    return _top_bits(shape, 31, seed) % (high - low) + low


def permutation(x: Any, axis: int = 0, *, seed: Seed) -> Any:
    """A tensor in random order, the same on every backend.

    Example:
        >>> tuple(random.permutation(keras.ops.ones((2, 3)), seed=0).shape)
        (2, 3)

    Args:
        x: an integer for the numbers from 0 to `x - 1`, or a tensor.
        axis: of the tensor, whose slices change places.
        seed: see `bits`.

    Raises:
        ValueError: for a number that is no count, an axis that the tensor has not, or a seed that
            is none.
    """
    x = _entries("permutation", "x", x)
    if not -len(x.shape) <= axis < len(x.shape):
        raise ValueError(
            f"permutation: `axis` must be one of the {len(x.shape)} axes of `x`, which has the "
            f"shape {tuple(x.shape)}. Received {axis}."
        )
    order = backends.active().stable_argsort(bits((ops.shape(x)[axis],), seed))
    return ops.take(x, order, axis=axis)


def choice(a: Any, shape: Any = (), replace: bool = True, p: Any = None, *, seed: Seed) -> Any:
    """Entries of `a` chosen at random, the same on every backend.

    Example:
        >>> tuple(random.choice(10, (2, 3), seed=0).shape)
        (2, 3)

    Args:
        a: an integer for the numbers from 0 to `a - 1`, or a tensor, of whose first axis slices
            are chosen.
        shape: how many, as sizes of axes.
        replace: whether one may be chosen more than once.
        p: probabilities, `(len(a),)`, known in advance; uniform by default. Only with `replace`.
        seed: see `bits`.

    Returns:
        `(*shape, *axes of a after the first)`.

    Raises:
        ValueError: for probabilities that do not fit, or more entries than there are.
    """
    shape = sizes(shape)
    values = _entries("choice", "a", a)
    count = values.shape[0]
    if count == 0 and math.prod(shape):
        raise ValueError("choice: `a` must have an entry to choose. Received none.")
    if not replace:
        size = math.prod(shape)
        if p is not None or size > count:
            raise ValueError(
                "choice: without replacement `p` must be None and no more can be chosen than "
                f"there are. Received p={p}, shape={tuple(shape)}, {count} entries."
            )
        index = ops.reshape(permutation(count, seed=seed)[:size], shape)
    elif p is None:
        index = randint(shape, 0, count, seed=seed)
    else:
        p = [float(value) for value in p]
        if len(p) != count or min(p) < 0 or not math.isclose(sum(p), 1.0, rel_tol=1e-6):
            raise ValueError(
                f"choice: `p` must be {count} probabilities, one an entry, that sum to 1. "
                f"Received {p}."
            )
        *below, total = itertools.accumulate(p)
        # By their sum, so that 1 is reached where the last probability above 0 is, in float32 too.
        bounds = ops.convert_to_tensor([x / total for x in below], dtype="float32")
        above = ops.greater_equal(uniform((*shape, 1), dtype="float32", seed=seed), bounds)
        index = ops.sum(ops.cast(above, "int32"), axis=-1)
    return ops.take(values, index, axis=0)


def dropout(
    inputs: Any, rate: float, noise_shape: Any = None, *, seed: Seed, start: Any = 0
) -> Any:
    """Zeros with probability `rate`, other entries times `1 / (1 - rate)`.

    Example:
        >>> tuple(random.dropout(keras.ops.ones((2, 3)), 0.5, seed=0).shape)
        (2, 3)

    Args:
        inputs: floating tensor.
        rate: in [0, 1].
        noise_shape: of the mask, which broadcasts to the inputs; None, whole or for an axis, for
            that of the inputs.
        seed: see `bits`.
        start: see `bits`; of the mask.

    Raises:
        ValueError: for a rate outside of [0, 1], inputs of integers, or a seed that is none.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"dropout: `rate` must be in [0, 1]. Received {rate}.")
    inputs = ops.convert_to_tensor(inputs)
    _floating(inputs.dtype)
    if rate == 0:
        return inputs
    if rate == 1:
        return ops.zeros_like(inputs)
    shape = ops.shape(inputs)
    if noise_shape is not None:
        shape = tuple(
            given if size is None else size for size, given in zip(noise_shape, shape, strict=True)
        )
    kept = bernoulli(shape, 1.0 - rate, seed=seed, start=start)
    # Times the reciprocal, which is what XLA would make of a division.
    scaled = inputs * ops.cast(1.0 / (1.0 - rate), inputs.dtype)
    return ops.where(kept, scaled, 0.0)


def _floating(dtype: Any) -> str:
    dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
    if dtype not in _DIGITS:
        raise ValueError(f"`dtype` must be one of {', '.join(_DIGITS)}. Received {dtype}.")
    return str(dtype)


def _entries(owner: str, argument: str, given: Any) -> Any:
    """A tensor with at least an axis, of a tensor or of how many numbers from 0."""
    count = integer(given)
    if count is not None and count >= 0:
        return ops.arange(count, dtype="int32")
    if count is not None or not getattr(given, "shape", isinstance(given, (list, tuple))):
        raise ValueError(
            f"{owner}: `{argument}` must be a whole number of 0 or more, or a tensor with an axis. "
            f"Received {given!r}."
        )
    return ops.convert_to_tensor(given)


def _top_bits(shape: Any, count: int, seed: Seed, start: Any = 0) -> Any:
    """Random integers of `count` bits, 31 at most, int32."""
    words = bits(shape, seed, start=start)
    return ops.bitwise_and(ops.right_shift(words, 32 - count), 2**count - 1)


def _symmetric(shape: Any, seed: Seed, start: Any = 0) -> Any:
    """float32 in (-1, 1): the odd multiples of 2**-24, without 0 and the ends."""
    odd = 2 * _top_bits(shape, 24, seed, start) + (1 - 2**24)
    return ops.cast(odd, "float32") * 2.0**-24


def _scaled(x: Any, mean: float, stddev: float, dtype: Any) -> Any:
    x = x * (math.sqrt(2.0) * stddev) + mean
    return ops.cast(x, _floating(dtype))


# Giles's polynomials in w = -log(1 - x**2): in w - 2.5 for w < 5, in sqrt(w) - 3 above.
_CENTRAL = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
    -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
    -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


def _erfinv(x: Any) -> Any:
    w = -ops.log((1.0 - x) * (1.0 + x))
    central, tail = w - 2.5, ops.sqrt(w) - 3.0
    # One polynomial with the coefficients of the one or the other.
    is_central = w < 5.0
    t = ops.where(is_central, central, tail)
    result = ops.zeros_like(x)
    for one, other in zip(_CENTRAL, _TAIL, strict=True):
        coefficients = [ops.convert_to_tensor(value, dtype="float32") for value in (one, other)]
        result = result * t + ops.where(is_central, *coefficients)
    return result * x

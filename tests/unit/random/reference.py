"""Threefry-2x32 in NumPy, written from the paper on 64-bit integers."""

import math

import numpy as np
from keras import ops

MASK = 0xFFFFFFFF
ROTATIONS = [13, 15, 26, 6, 17, 29, 16, 24]


def threefry2x32(key0, key1, first, second):
    """The two words for each two of the counter, as uint32 arrays."""
    schedule = [key0, key1, key0 ^ key1 ^ 0x1BD11BDA]
    # With an axis: NumPy before 2 makes floats of a single uint64 and an int.
    x = np.atleast_1d(first).astype("uint64") + key0 & MASK
    y = np.atleast_1d(second).astype("uint64") + key1 & MASK
    for number in range(20):
        x = x + y & MASK
        rotation = ROTATIONS[number % 8]
        y = (y << rotation | y >> 32 - rotation) & MASK
        y ^= x
        if number % 4 == 3:
            injection = number // 4 + 1
            x = x + schedule[injection % 3] & MASK
            y = y + schedule[(injection + 1) % 3] + injection & MASK
    return x.astype("uint32"), y.astype("uint32")


def reference_bits(shape, seed, counter=0):
    """What `random.bits` is documented to give, as unsigned words."""
    place = np.arange(math.prod(shape))
    block = place // 32 * 16 + place % 16
    first, second = threefry2x32(seed, counter, np.zeros(block.shape), block)
    return np.where(place % 32 < 16, first, second).reshape(shape)


def words(x):
    """A tensor of int32 words as unsigned ones."""
    return np.atleast_1d(ops.convert_to_numpy(x)).view("uint32").reshape(x.shape)

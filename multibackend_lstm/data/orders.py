"""The order of samples in each epoch, computed where it is needed, in memory that does not grow."""

import numpy as np

_ROUNDS = 8


class ShuffledOrder:
    """A permutation of `range(count)` for each epoch, that depends on nothing but seed and epoch.

    A hundred million windows have a permutation of a gigabyte. This is a Feistel cipher on the
    numbers of so many bits (Luby and Rackoff 1988), applied again where it leaves the range (Black
    and Rogaway 2002): each position's place is computed alone, by whatever worker needs it.

    Args:
        count: how many samples there are.
        seed: a whole number, 0 or larger.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def places(self, first: int, last: int, epoch: int) -> np.ndarray:
        """What stands at the positions from `first` to before `last`."""
        bits = max(2, (self.count - 1).bit_length())
        keys = np.random.SeedSequence([self.seed, epoch]).generate_state(_ROUNDS, "uint64")
        numbers = _feistel(np.arange(first, last, dtype="uint64"), bits, keys)
        outside = np.flatnonzero(numbers >= self.count)
        while len(outside):
            numbers[outside] = _feistel(numbers[outside], bits, keys)
            outside = outside[numbers[outside] >= self.count]
        return numbers.astype("int64")


def _feistel(numbers: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers below `2**bits`: halves, each in turn changed by the other."""
    low_bits = np.uint64(bits - bits // 2)
    low_mask = np.uint64((1 << int(low_bits)) - 1)
    high_mask = np.uint64((1 << bits // 2) - 1)
    high, low = numbers >> low_bits, numbers & low_mask
    for at, key in enumerate(keys):
        if at % 2:
            low = low ^ (_mixed(high + key) & low_mask)
        else:
            high = high ^ (_mixed(low + key) & high_mask)
    return (high << low_bits) | low


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))

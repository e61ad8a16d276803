"""The order of samples in each epoch, computed where it is needed, in memory that does not grow."""

import threading

import numpy as np

# Positions whose place is computed in one go.
BLOCK = 1 << 16
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
        self._blocks: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, int]:
        return {"count": self.count, "seed": self.seed}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def places(self, first: int, last: int, epoch: int) -> np.ndarray:
        """What stands at the positions from `first` to before `last`."""
        start, end = first // BLOCK, (last - 1) // BLOCK
        parts = [self._block(epoch, block) for block in range(start, end + 1)]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole[first - start * BLOCK : last - start * BLOCK]

    def _block(self, epoch: int, block: int) -> np.ndarray:
        with self._lock:
            found = self._blocks.get((epoch, block))
            if found is None:
                positions = np.arange(block * BLOCK, min((block + 1) * BLOCK, self.count))
                found = self._permuted(positions.astype("uint64"), epoch).astype("int64")
                while len(self._blocks) > 3:
                    del self._blocks[next(iter(self._blocks))]
                self._blocks[epoch, block] = found
            return found

    def _permuted(self, numbers: np.ndarray, epoch: int) -> np.ndarray:
        bits = max(2, (self.count - 1).bit_length())
        keys = np.random.SeedSequence([self.seed, epoch]).generate_state(_ROUNDS, "uint64")
        numbers = _feistel(numbers, bits, keys)
        outside = np.flatnonzero(numbers >= self.count)
        while len(outside):
            numbers[outside] = _feistel(numbers[outside], bits, keys)
            outside = outside[numbers[outside] >= self.count]
        return numbers


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

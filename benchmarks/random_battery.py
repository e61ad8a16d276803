"""Do the bits of `multibackend_lstm.random` look random, at length?

    python benchmarks/random_battery.py

On NumPy, for many seeds and counters: frequencies of bits, bytes and pairs of bits (chi-squared),
runs, uniform numbers (Kolmogorov and Smirnov), the rank of binary matrices, and correlations of
neighbouring streams. Each test gives a p-value a stream; these must be uniform themselves. NumPy's
own PCG64 goes through the same tests beside it.
"""

import os

os.environ["KERAS_BACKEND"] = "numpy"

import itertools
import math
import statistics
import sys
from collections import Counter

import numpy as np
from common import write_results

from multibackend_lstm import random

STREAMS = 200
WORDS = 1 << 16


def chi_squared_p(counts, expected):
    """Pearson's test of counts."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    return _chi_squared_tail(((counts - expected) ** 2 / expected).sum(), counts.size - 1)


def _chi_squared_tail(value, degrees):
    """Wilson and Hilferty's approximation of the upper tail; exact for two degrees."""
    if degrees == 2:
        return math.exp(-value / 2)
    z = (value / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))
    return 1 - statistics.NormalDist().cdf(z / math.sqrt(2 / (9 * degrees)))


def uniformity_p(values):
    """Kolmogorov and Smirnov's test of numbers in [0, 1]."""
    x = np.sort(np.asarray(values, float))
    steps = np.arange(x.size + 1) / x.size
    distance = max(np.abs(steps[1:] - x).max(), np.abs(steps[:-1] - x).max())
    t = (math.sqrt(x.size) + 0.12 + 0.11 / math.sqrt(x.size)) * distance
    tail = 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * t) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, tail)) if t > 0.2 else 1.0


def bytes_test(words):
    """Each byte as often as any other."""
    counts = np.bincount(words.view("uint8"), minlength=256)
    return chi_squared_p(counts, np.full(256, counts.sum() / 256))


def pairs_test(words):
    """The upper bytes of neighbouring words, in pairs that share none."""
    upper = (words >> 28).astype(int)
    counts = np.bincount(upper[::2] * 16 + upper[1::2], minlength=256)
    return chi_squared_p(counts, np.full(256, counts.sum() / 256))


def bits_test(words):
    """Each of the 32 bits set as often as not."""
    ones = np.array([(words >> np.uint32(bit) & 1).sum() for bit in range(32)])
    z = (ones - words.size / 2) / math.sqrt(words.size / 4)
    return _chi_squared_tail(float((z**2).sum()), 32)


def runs_test(words):
    """Wald and Wolfowitz's: runs of numbers above and below one half."""
    above = words >= 1 << 31
    n1 = int(above.sum())
    n2 = words.size - n1
    runs = 1 + int((above[1:] != above[:-1]).sum())
    mean = 1 + 2 * n1 * n2 / words.size
    variance = (mean - 1) * (mean - 2) / (words.size - 1)
    return 2 * (1 - statistics.NormalDist().cdf(abs(runs - mean) / math.sqrt(variance)))


def uniform_test(words):
    """The words as numbers in [0, 1)."""
    return uniformity_p(words[:4096] / 2.0**32)


def rank_test(words):
    """Ranks of 32 by 32 matrices of bits."""
    ranks = Counter(_rank(words[start : start + 32]) for start in range(0, 32 * 1000, 32))
    found = [ranks[32], ranks[31], sum(n for rank, n in ranks.items() if rank < 31)]
    return chi_squared_p(found, np.array([0.288788, 0.577576, 0.133636]) * 1000)


def _rank(rows):
    rows, rank = [int(row) for row in rows], 0
    for bit in range(32):
        pivot = next((row for row in rows if row >> bit & 1), None)
        if pivot is None:
            continue
        rank += 1
        rows.remove(pivot)
        rows = [row ^ pivot if row >> bit & 1 else row for row in rows]
    return rank


TESTS = {
    "bytes": bytes_test,
    "pairs of words": pairs_test,
    "bits": bits_test,
    "runs": runs_test,
    "uniform": uniform_test,
    "rank of matrices": rank_test,
}


def threefry(stream):
    """Neighbouring seeds and counters, where a weak generator would show itself."""
    seed, counter = divmod(stream, 2)
    return np.asarray(random.bits((WORDS,), seed=(seed, counter))).view("uint32")


def pcg(stream):
    """NumPy's generator."""
    return np.random.default_rng(stream).integers(0, 2**32, WORDS, "uint32")


def main():
    """Run every test on every stream of both."""
    results = {}
    for name, generator in (("threefry2x32", threefry), ("NumPy's PCG64", pcg)):
        streams = [generator(stream) for stream in range(STREAMS)]
        found = {test: [run(words) for words in streams] for test, run in TESTS.items()}
        # Words at one place of neighbouring streams.
        found["between streams"] = [
            2 * (1 - statistics.NormalDist().cdf(abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(WORDS)))
            for a, b in itertools.pairwise(streams)
        ]
        results[name] = {
            test: {"p_of_p_values": uniformity_p(p), "least_p": min(p), "streams": len(p)}
            for test, p in found.items()
        }
        for test, row in results[name].items():
            print(f"{name:<14} {test:<17} p {row['p_of_p_values']:.3f}  least {row['least_p']:.1e}")
    write_results("random_battery", __doc__.splitlines()[0], results)
    worst = min(row["p_of_p_values"] for row in results["threefry2x32"].values())
    sys.exit(1 if worst < 1e-4 else 0)


if __name__ == "__main__":
    main()

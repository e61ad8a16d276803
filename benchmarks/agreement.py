"""How long does it take to compare 50 small models on three backends?

    python benchmarks/agreement.py

Workers are started once, and their start counts. Each case is a model of one to four layers whose
outputs, gradients and weights after five Adam steps are compared on every installed backend with
its float64 run and eight perturbed twins of it. Nothing else should run on the machine.

Written down are the whole time, that of the start, the median of a case, and the largest resident
memory of this process and of its workers.
"""

import argparse
import resource
import statistics
import time

import common
import keras
from keras import layers

import multibackend_lstm
from multibackend_lstm import agreement

TARGET_SECONDS, TARGET_MEDIAN = 150.0, 1.0


def models() -> list[keras.Model]:
    """Fifty models, ten of each kind, of different sizes."""

    def stack(shape: tuple[int, ...], *stacked: keras.layers.Layer) -> keras.Model:
        return keras.Sequential([keras.Input(shape), *stacked])

    made = []
    for size in range(3, 13):
        made += [
            stack((size,), layers.Dense(size, activation="gelu"), layers.Dense(2)),
            stack((10, size), layers.Conv1D(4, 3, padding="same"), layers.BatchNormalization()),
            stack((10, size), layers.LSTM(4)),
            stack((10, 2, size), multibackend_lstm.LSTM(4, return_sequences=True), layers.Dense(1)),
            stack((10, 6, 2), multibackend_lstm.TimeDistributedConv(size, 3), layers.GRU(3)),
        ]
    return made


def main() -> None:
    """Measure, print, and write `results/agreement.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=50, help="how many models")
    parser.add_argument("--dry-run", action="store_true", help="write no file")
    options = parser.parse_args()
    chosen = models()[: options.cases]
    start = time.perf_counter()
    seconds = []
    with agreement.Workers() as workers:
        workers.start()
        started = time.perf_counter() - start
        for number, model in enumerate(chosen, 1):
            begin = time.perf_counter()
            agreement.check(model, workers=workers).raise_if_disagrees()
            seconds.append(time.perf_counter() - begin)
            print(f"{number}/{len(chosen)} {seconds[-1]:.2f} s", flush=True)
        targets = [str(target) for target in workers.targets]
    total = time.perf_counter() - start
    # Workers have been waited for by now, so that they count as children.
    own, largest = (
        round(resource.getrusage(who).ru_maxrss / 1024)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    results = {
        "targets": targets,
        "cases": len(chosen),
        "seconds": {
            "all": round(total, 1),
            "start": round(started, 1),
            "median_case": round(statistics.median(seconds), 3),
            "quartiles": [round(x, 3) for x in statistics.quantiles(seconds, n=4)],
        },
        "targets_to_reach": {"all": TARGET_SECONDS, "median_case": TARGET_MEDIAN},
        "peak_mb": {"parent": own, "largest_worker": largest},
    }
    print(results)
    if not options.dry_run:
        common.write_results("agreement", __doc__.splitlines()[0], results)


if __name__ == "__main__":
    main()

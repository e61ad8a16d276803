"""Classes of test windows by MiniRocket with aeon's settings, for accuracy.py.

    /path/to/python benchmarks/minirocket.py windows.npz predicted.npy

Needs NumPy and aeon alone, so that it runs in an environment of its own.
"""

import sys

import numpy as np


def main() -> None:
    """Fit on `x`, `y` of the file, each `(n, variables, time)`, and predict `test`."""
    from aeon.classification.convolution_based import MiniRocketClassifier

    source, target = sys.argv[1:]
    with np.load(source, allow_pickle=False) as file:
        classifier = MiniRocketClassifier(random_state=0)
        classifier.fit(file["x"], file["y"])
        np.save(target, classifier.predict(file["test"]), allow_pickle=False)


if __name__ == "__main__":
    main()

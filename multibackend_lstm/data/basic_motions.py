"""BasicMotions: the wearable-sensor data set that comes with the package."""

from importlib.resources import files
from typing import NamedTuple

import numpy as np


class BasicMotions(NamedTuple):
    """The data set as arrays, see `load_basic_motions`."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]


def load_basic_motions() -> BasicMotions:
    """Load BasicMotions: four activities, measured by a smart watch.

    Four students wore a smart watch while standing, running, walking and playing badminton. A
    case is ten seconds at 10 Hz of a 3-axis accelerometer and a 3-axis gyroscope. The values are
    as recorded, not standardised.

    Example:
        >>> data = load_basic_motions()
        >>> data.x_train.shape, data.class_names[data.y_train[0]]
        ((40, 100, 2, 3), 'Standing')

    Returns:
        A named tuple of
        `x_train`, `x_test`: float32 `(40, 100, 2, 3)`, `(batch, time, sensors, axes)`, sensor 0
        the accelerometer and 1 the gyroscope;
        `y_train`, `y_test`: int32 `(40,)`, indices into `class_names`;
        `class_names`: `("Standing", "Running", "Walking", "Badminton")`.

    Source:
        The UEA multivariate time series classification archive (Bagnall et al. 2018,
        arXiv:1811.00075), in the form in which the `aeon` package (BSD-3-Clause) ships it;
        converted by `tools/convert_basic_motions.py`.
    """
    path = files("multibackend_lstm.data") / "basic_motions.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return BasicMotions(
            x_train=arrays["x_train"],
            y_train=arrays["y_train"],
            x_test=arrays["x_test"],
            y_test=arrays["y_test"],
            class_names=tuple(str(name) for name in arrays["class_names"]),
        )

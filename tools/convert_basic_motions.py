"""Convert the BasicMotions data set from its .ts files to the .npz that the package ships.

    python tools/convert_basic_motions.py FOLDER [TARGET]

FOLDER holds BasicMotions_TRAIN.ts and BasicMotions_TEST.ts of the UEA multivariate time series
archive (Bagnall et al. 2018, arXiv:1811.00075), as the aeon package (BSD-3-Clause) ships them.
A line after `@data` is one case: the dimensions separated by `:`, the values of each by `,`, the
label last. Dimensions 1 to 3 are the accelerometer's x, y, z, dimensions 4 to 6 the gyroscope's.
"""

import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parents[1] / "multibackend_lstm" / "data" / "basic_motions.npz"


def read_ts(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Cases `(batch, time, sensors, axes)`, labels `(batch,)`, and the names of the classes."""
    header, _, body = path.read_text().partition("@data\n")
    (class_line,) = [line for line in header.splitlines() if line.startswith("@classLabel true ")]
    class_names = class_line.split()[2:]
    cases, labels = [], []
    for line in body.splitlines():
        *dimensions, label = line.split(":")
        cases.append([[float(value) for value in series.split(",")] for series in dimensions])
        labels.append(class_names.index(label))
    x = np.array(cases, dtype=np.float32)  # (batch, sensors * axes, time)
    x = x.reshape(len(x), 2, 3, x.shape[-1]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x), np.array(labels, dtype=np.int32), class_names


def main(folder: Path, target: Path = TARGET) -> None:
    """Write the .npz."""
    x_train, y_train, class_names = read_ts(folder / "BasicMotions_TRAIN.ts")
    x_test, y_test, test_class_names = read_ts(folder / "BasicMotions_TEST.ts")
    if class_names != test_class_names:
        raise ValueError(f"the files differ in their classes: {class_names}, {test_class_names}")
    np.savez_compressed(
        target,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=np.array(class_names),
        source=np.array(
            "BasicMotions, UEA multivariate time series archive (Bagnall et al. 2018, "
            "arXiv:1811.00075), as shipped by aeon (BSD-3-Clause)"
        ),
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

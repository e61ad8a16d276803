"""The truth of a case: every tensor of the reference run with its noise floor, on disk."""

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from multibackend_lstm.agreement.case import Case
from multibackend_lstm.files import replacing
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.loading import read_arrays
from multibackend_lstm.runtimes.messages import READING
from multibackend_lstm.runtimes.workers import Worker, WorkerError

#: The parts of a worker's run, and the kinds of tensors that each gives.
PARTS: Mapping[str, tuple[str, ...]] = {
    "prediction": ("output", "output of a second batch"),
    "layers": ("layer", "captured output"),
    "training": ("input gradient", "weight gradient", "loss", "weight", "trajectory"),
}
# Of the files that `save` writes.
_VERSION = 1


class Truth:
    """The reference's tensors.

    Args:
        folder: where they are kept, so that they need not be in memory.
        reference: what computed them, in words.
        float64: whether it did so in float64.

    Attributes:
        headers: kind, path, dtype, noise floor and file of each tensor, by kind and path.
        failed: the error of each part that the reference could not run.
    """

    def __init__(self, folder: Path, reference: str, float64: bool) -> None:
        self._folder = folder
        self.reference, self.float64 = reference, float64
        self.headers: dict[tuple[str, str], dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    @property
    def twins(self) -> dict[int, tuple[float, float]]:
        """By training step, root mean square and largest distance of the perturbed twins."""
        return {
            int(path): (tensor["floor"], tensor["largest"])
            for (kind, path), tensor in self.headers.items()
            if kind == "trajectory"
        }

    def read(self, reference: Worker) -> None:
        """Take a worker's answers; what fails is in `failed` then."""
        try:
            for header, arrays in reference.answers("done"):
                if "failed" in header:
                    self.failed[header["failed"]] = header["reason"]
                elif "tensor" in header:
                    tensor = {**header["tensor"], "file": f"tensor{len(self.headers)}.npy"}
                    np.save(self._folder / tensor["file"], arrays["values"], allow_pickle=False)
                    self.headers[tensor["kind"], tensor["path"]] = tensor
        except WorkerError as error:
            self.failed = dict.fromkeys(PARTS, str(error))

    def values(self, key: tuple[str, str]) -> np.ndarray:
        """A tensor, from disk."""
        with READING:
            values: np.ndarray = np.load(
                self._folder / self.headers[key]["file"], allow_pickle=False
            )
        return values

    def save(self, path: Path, case: Case, settings: Mapping[str, Any]) -> None:
        """Write it to an `.npz` file, with the numbers of the case, for another machine or version.

        The model itself is not written.
        """
        header = {
            "version": _VERSION,
            "reference": self.reference,
            "float64": self.float64,
            "tensors": list(self.headers.values()),
            "failed": self.failed,
            "settings": dict(settings),
            "described": case.described,
            "structure": case.structure,
            "weight_paths": case.weight_paths,
        }
        for name, array in case.arrays.items():
            np.save(self._folder / f"{name}.npy", array, allow_pickle=False)
        text = np.frombuffer(json.dumps(header).encode(), "uint8")  # an archive of numbers alone
        np.save(self._folder / "header.npy", text, allow_pickle=False)
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for file in sorted(self._folder.glob("*.npy")):
                archive.write(file, file.name)

    @classmethod
    def load(cls, path: Path, folder: Path, case: Case) -> tuple["Truth", dict[str, Any]]:
        """Read a file that `save` wrote; the case gets its numbers.

        Returns:
            The truth, and the settings of the check that computed it.

        Raises:
            CaseError: if the file is none of these, or its weights do not fit the model.
        """
        arrays = read_arrays(path)
        try:
            header = json.loads(arrays["header"].tobytes())
            version = header["version"]
        except (KeyError, ValueError, TypeError) as error:
            raise CaseError(f"{path} holds no truth, as `save_truth` writes it.") from error
        if version != _VERSION:
            raise CaseError(
                f"{path} is of version {version}, and this package reads {_VERSION}: compute the "
                "truth anew."
            )
        truth = cls(folder, f"{header['reference']}, of {path.name}", header["float64"])
        truth.failed = header["failed"]
        for index, tensor in enumerate(header["tensors"]):
            np.save(folder / f"tensor{index}.npy", arrays[f"tensor{index}"], allow_pickle=False)
            key = (tensor["kind"], tensor["path"])
            truth.headers[key] = {**tensor, "file": f"tensor{index}.npy"}
        weights, inputs, labels = (
            [arrays[f"{name}{i}"] for i in range(_count(arrays, name))]
            for name in ("weight", "input", "label")
        )
        if case.weights is not None:
            shapes, given = ([w.shape for w in ws] for ws in (case.weights, weights))
            if shapes != given:
                raise CaseError(
                    f"{path} holds the truth of another model: its weights have the shapes "
                    f"{given}, those of {case.name} {shapes}."
                )
        case.weights, case.inputs, case.labels = weights, inputs, labels
        case.structure, case.described = header["structure"], header["described"]
        case.weight_paths = header["weight_paths"]
        return truth, header["settings"]


def _count(names: Iterable[str], start: str) -> int:
    return sum(name.removeprefix(start).isdigit() for name in names if name.startswith(start))

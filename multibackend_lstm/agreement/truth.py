"""The truth of a case: every tensor of the reference run with its noise floor, on disk."""

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from multibackend_lstm.agreement.case import Case
from multibackend_lstm.agreement.comparison import ALONE, GROUPS
from multibackend_lstm.files import replacing
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.loading import read_arrays
from multibackend_lstm.runtimes.messages import READING
from multibackend_lstm.runtimes.workers import Worker, WorkerError

#: The parts of a worker's run, and the kinds of tensors that each gives.
PARTS: Mapping[str, tuple[str, ...]] = {
    ALONE: GROUPS[ALONE],
    "prediction": ("output", "output of a second batch"),
    "layers": ("layer", "captured output"),
    "training": ("input gradient", "weight gradient", "loss", "weight", "trajectory"),
}
#: Kind and path of a tensor.
Key = tuple[str, str]
# Of the files that `save` writes.
_VERSION = 2


class Truth:
    """The reference's tensors.

    Args:
        folder: where they are kept, so that they need not be in memory.
        reference: what computed them, in words.
        float64: whether it did so in float64.
        backend: of Keras, on which.

    Attributes:
        headers: kind, path, dtype, noise floor and file of each tensor, by kind and path.
        failed: the error of each part that the reference could not run.
        calls: what goes into each layer, to be called alone, in the order of computation.
        alone: what each of the calls is to give, once it is known: header by kind and path.
        not_alone: why a layer, or "training", cannot be called alone.
    """

    def __init__(self, folder: Path, reference: str, float64: bool, backend: str) -> None:
        self._folder = folder
        self.reference, self.float64, self.backend = reference, float64, backend
        self.headers: dict[Key, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.calls: list[dict[str, Any]] = []
        self.alone: list[dict[Key, dict[str, Any]]] = []
        self._names: list[list[str]] = []  # of the arrays that go into each call
        self.not_alone: dict[str, str] = {}

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
                elif "cannot" in header:
                    self.not_alone[header["cannot"]] = header["reason"]
                elif "call" in header:
                    self.add_call(header["call"], arrays)
                elif "tensor" in header:
                    tensor = {**header["tensor"], "file": f"tensor{len(self.headers)}.npy"}
                    _save(self._folder / tensor["file"], arrays["values"])
                    self.headers[tensor["kind"], tensor["path"]] = tensor
        except WorkerError as error:
            self.failed = dict.fromkeys(PARTS, str(error))

    def values(self, key: Key) -> np.ndarray:
        """A tensor, from disk."""
        return self._read(self.headers[key]["file"])

    def add_call(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Note what goes into a call."""
        self._keep(f"call{len(self.calls)}", arrays)
        self.calls.append(header)
        self._names.append([*arrays])
        self.alone.append({})

    def inside(self, number: int) -> "Truth":
        """An empty one for the operations inside of a layer that is called."""
        folder = self._folder / f"inside{number}"
        folder.mkdir()
        return Truth(folder, self.reference, self.float64, self.backend)

    def call_arrays(self, number: int) -> dict[str, np.ndarray]:
        """What goes into a call, from disk."""
        return {name: self._read(f"call{number}_{name}.npy") for name in self._names[number]}

    def fill(
        self, number: int, found: Iterable[tuple[Key, tuple[dict[str, Any], dict[str, np.ndarray]]]]
    ) -> None:
        """Note what a call is to give."""
        for place, (key, (header, arrays)) in enumerate(found):
            self._keep(f"alone{number}_{place}", arrays)
            self.alone[number][key] = {**header, "file": f"alone{number}_{place}"}

    def alone_arrays(self, number: int, key: Key) -> dict[str, np.ndarray]:
        """`"values"` that a call is to give, and the floor of their `"elements"`, from disk."""
        file = self.alone[number][key]["file"]
        return {name: self._read(f"{file}_{name}.npy") for name in ("values", "elements")}

    def _keep(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        for key, array in arrays.items():
            _save(self._folder / f"{name}_{key}.npy", array)

    def _read(self, file: str) -> np.ndarray:
        with READING:
            values: np.ndarray = np.load(self._folder / file, allow_pickle=False)
        return values

    def save(self, path: Path, case: Case, settings: Mapping[str, Any]) -> None:
        """Write it to an `.npz` file, with the numbers of the case, for another machine or version.

        The model itself is not written.
        """
        header = {
            "version": _VERSION,
            "reference": self.reference,
            "float64": self.float64,
            "backend": self.backend,
            "tensors": list(self.headers.values()),
            "failed": self.failed,
            "calls": self.calls,
            "names": self._names,
            "alone": [list(tensors.values()) for tensors in self.alone],
            "not_alone": self.not_alone,
            "settings": dict(settings),
            "described": case.described,
            "structure": case.structure,
            "weight_paths": case.weight_paths,
        }
        for name, array in case.arrays.items():
            _save(self._folder / f"{name}.npy", array)
        text = np.frombuffer(json.dumps(header).encode(), "uint8")  # an archive of numbers alone
        _save(self._folder / "header.npy", text)
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
        reference = f"{header['reference']}, of {path.name}"
        truth = cls(folder, reference, header["float64"], header["backend"])
        truth.failed = header["failed"]
        for index, tensor in enumerate(header["tensors"]):
            _save(folder / f"tensor{index}.npy", arrays[f"tensor{index}"])
            key = (tensor["kind"], tensor["path"])
            truth.headers[key] = {**tensor, "file": f"tensor{index}.npy"}
        truth.calls, truth._names = header["calls"], header["names"]
        truth.not_alone = header["not_alone"]
        truth.alone = [{(t["kind"], t["path"]): t for t in found} for found in header["alone"]]
        for name, array in arrays.items():
            if name.startswith(("call", "alone")):
                _save(folder / f"{name}.npy", array)
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


def _save(path: Path, array: np.ndarray) -> None:
    """As `numpy.save`, whose own error does not say that the disk is full, but "0 written"."""
    with path.open("wb") as file:
        # Past Python NumPy writes to a file alone.
        through: Any = SimpleNamespace(write=file.write)
        np.lib.format.write_array(through, array, allow_pickle=False)


def _count(names: Iterable[str], start: str) -> int:
    return sum(name.removeprefix(start).isdigit() for name in names if name.startswith(start))

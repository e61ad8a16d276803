"""Export a model, and check that the artefact gives in its own runtime what Keras gives."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multibackend_lstm.environment import (
    BACKENDS,
    QUIET_TENSORFLOW,
    choose_backend,
    installed_backends,
    missing_backend_message,
)
from multibackend_lstm.export.formats import FORMATS, Format, missing, missing_message
from multibackend_lstm.files import check_writable

if TYPE_CHECKING:
    import keras

#: Largest difference that counts as agreement; see `Case.difference`.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A comparison on inputs of one size.

    Attributes:
        batch: number of samples.
        time: number of steps; None for an input without a time axis.
        difference: the largest absolute difference of an output from Keras's, over the largest
            output of Keras if that is above 1; infinite where one is NaN or infinite.
        error: what the runtime said if it refused the input.
    """

    batch: int
    time: int | None
    difference: float
    error: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether the difference is at most `TOLERANCE`."""
        return self.error is None and self.difference <= TOLERANCE


@dataclass(frozen=True)
class Attempt:
    """What one backend made of the model.

    Attributes:
        backend: on which the model was loaded.
        error: why there is no artefact, the package that raised it first; or None.
        inputs: `{"name", "shape", "dtype"}` of each input; None in a shape for a free axis.
        cases: the comparisons with Keras on that backend; empty without a check.
        skipped: sizes that Keras itself refused.
    """

    backend: str
    error: str | None
    inputs: tuple[dict[str, Any], ...] = ()
    cases: tuple[Case, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether there is an artefact, and no comparison found a difference."""
        return self.error is None and all(case.agrees for case in self.cases)

    @property
    def difference(self) -> float:
        """The largest difference of the cases; NaN without a check."""
        return max((case.difference for case in self.cases), default=math.nan)


@dataclass(frozen=True)
class ExportReport:
    """Result of an export or of the check of an artefact.

    Attributes:
        path: of the artefact.
        format: a name of `FORMATS`.
        attempts: one a backend, in the order tried; only the last can have succeeded.
    """

    path: str
    format: str
    attempts: tuple[Attempt, ...]

    @property
    def succeeded(self) -> bool:
        """Whether the artefact exists and, if it was checked, agrees."""
        return self.attempts[-1].succeeded

    def dumps(self) -> str:
        """As JSON; a difference that is infinite or not known is null."""
        attempts = []
        for attempt in self.attempts:
            row = asdict(attempt) | {"succeeded": attempt.succeeded}
            for case in row["cases"]:
                if not math.isfinite(case["difference"]):
                    case["difference"] = None
            attempts.append(row)
        document = {
            "path": self.path,
            "format": self.format,
            "succeeded": self.succeeded,
            "tolerance": TOLERANCE,
            "attempts": attempts,
        }
        return json.dumps(document, indent=1, allow_nan=False)

    def __str__(self) -> str:
        """One line an attempt."""
        return "\n".join(self._line(attempt) for attempt in self.attempts)

    def _line(self, attempt: Attempt) -> str:
        start = f"{self.format} from {attempt.backend}: "
        if attempt.error:
            return start + attempt.error
        if not attempt.cases:
            return start + "exported, not checked"
        errors = [case.error for case in attempt.cases if case.error]
        if errors:
            return start + errors[0]
        verdict = "agrees" if attempt.succeeded else "differs"
        return f"{start}{verdict}, largest difference {attempt.difference:.1e}"


class ExportError(Exception):
    """No backend gave an artefact, or none that agrees with Keras. `report` says more."""

    def __init__(self, report: ExportReport) -> None:
        super().__init__(f"{report.path} was not written.\n{report}")
        self.report = report


def export(
    model: "keras.Model | str | os.PathLike[str]",
    path: str | os.PathLike[str],
    format: str,
    *,
    backend: str | None = None,
    batch: int | None = None,
    time: int | None = None,
    check: bool = True,
    overwrite: bool = False,
    timeout: float = 600.0,
    progress: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Export a model for inference without Keras.

    The model is loaded in safe mode in a process of its own on each backend that can produce the
    format, the preferred one first, until one succeeds. Axes whose size the model leaves open stay
    free where the backend's exporter can do that.

    Example:
        >>> report = porting.export("model.keras", "model.onnx", "onnx")
        >>> print(report)
        onnx from torch: agrees, largest difference 6.0e-08

    Args:
        model: a functional or Sequential model in float32, or the path of its `.keras` file.
        path: of the artefact. Its suffix must be that of the format: `.onnx`, `.tflite` (litert),
            `.xml` (openvino, which writes a `.bin` beside it), `.pt2` (torch), or none for the
            folder of a saved_model.
        format: `"onnx"`, `"saved_model"`, `"litert"`, `"openvino"` or `"torch"`.
        backend: the only one to try.
        batch: fixes the batch size. By default it is free.
        time: fixes the number of time steps, where the model leaves it open.
        check: whether to run the artefact in its own runtime on random inputs of several batch
            sizes and lengths, masked steps among them where the model has a `Masking`, and to
            compare with Keras's predictions. What differs is not written. Without it a wrong
            artefact may be: an exporter can fix a size that the model leaves open, and say nothing.
        overwrite: whether an artefact at `path` may be replaced.
        timeout: seconds that each process may take.
        progress: called with a line before each step.

    Returns:
        The report, which says what each backend tried did.

    Raises:
        ValueError: for an unknown format or backend, a wrong suffix, an existing `path`, a model
            that cannot be loaded or exported, and packages that are not installed, the
            runtime for the check among them.
        FileNotFoundError: if there is no such model.
        OSError: if the artefact cannot be written.
        ExportError: if no backend succeeds. Nothing is written then.
    """
    kind = _format(format)
    target = Path(path)
    _check_target(target, format, overwrite)
    candidates = _candidates(format, kind, backend)
    if check:
        _check_runtime(kind)
    attempts = []
    with _as_file(model, target) as file:
        check_writable(target.parent)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            for name in candidates:
                artefact = Path(folder, name, target.name)
                artefact.parent.mkdir()
                progress(f"exporting on {name}")
                attempt, names, arrays = _keras_side(
                    file, format, artefact, name, batch, time, check, timeout
                )
                if check and attempt.error is None:
                    progress(f"running it with {kind.runtime}")
                    attempt = _compare(attempt, format, artefact, names, arrays, timeout)
                attempts.append(attempt)
                if attempt.succeeded:
                    _move(artefact.parent, target.parent)
                    break
    report = ExportReport(str(target), format, tuple(attempts))
    if not report.succeeded:
        raise ExportError(report)
    return report


def check_export(
    model: "keras.Model | str | os.PathLike[str]",
    path: str | os.PathLike[str],
    format: str,
    *,
    backend: str | None = None,
    batch: int | None = None,
    time: int | None = None,
    timeout: float = 600.0,
    progress: Callable[[str], None] = lambda text: None,
) -> ExportReport:
    """Compare an artefact that exists, whoever made it, with a model.

    Args:
        model: as in `export`.
        path: of the artefact.
        format: as in `export`.
        backend: that Keras predicts on. Default: the first one installed.
        batch: the batch size, if the artefact fixes it.
        time: the number of steps, if the artefact fixes it.
        timeout: as in `export`.
        progress: as in `export`.

    Returns:
        The report, with one attempt. `report.succeeded` is whether they agree.

    Raises:
        ValueError: as in `export`.
        FileNotFoundError: if there is no such model or artefact.
    """
    kind = _format(format)
    target = Path(path)
    if not target.exists():
        raise FileNotFoundError(f"there is no artefact {target}")
    _check_suffix(target, format)
    _check_runtime(kind)
    name = _known_backend(backend) if backend else choose_backend()
    with (
        tempfile.TemporaryDirectory() as folder,
        _as_file(model, Path(folder, "artefact")) as file,
    ):
        progress(f"predicting on {name}")
        attempt, names, arrays = _keras_side(file, format, None, name, batch, time, True, timeout)
        if attempt.error is None:
            progress(f"running {target} with {kind.runtime}")
            attempt = _compare(attempt, format, target, names, arrays, timeout)
    return ExportReport(str(target), format, (attempt,))


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received {name!r}.")
    return FORMATS[name]


def _known_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}. Received {name!r}.")
    if name not in installed_backends():
        raise ValueError(missing_backend_message(name))
    return name


def _candidates(format: str, kind: Format, backend: str | None) -> list[str]:
    """The backends to try."""
    able = ", ".join(kind.backends)
    if backend is not None:
        if _known_backend(backend) not in kind.backends:
            raise ValueError(
                f"{format} cannot be exported from {backend}, only from {able}. Leave out "
                "`backend`, or choose one of those: the file loads on each."
            )
        chosen = [backend]
    else:
        chosen = [name for name in kind.backends if name in installed_backends()]
    if not chosen:
        messages = "; or ".join(missing_backend_message(name) for name in kind.backends)
        raise ValueError(f"{format} is exported from {able}: {messages}")
    lacking = {name: missing(kind.backends[name]) for name in chosen}
    if all(lacking.values()):
        raise ValueError(
            f"{format} from {chosen[0]}: {missing_message(lacking[chosen[0]][0], kind.extra)}"
        )
    return [name for name in chosen if not lacking[name]]


def _check_runtime(kind: Format) -> None:
    for module in missing((kind.runtime,)):
        raise ValueError(f"the check of {kind.title}: {missing_message(module, kind.extra)}")


def _check_suffix(path: Path, format: str) -> None:
    suffix = FORMATS[format].suffix
    if path.suffix == suffix:
        return
    rule = f"end with {suffix}" if suffix else "be that of a folder, without a suffix"
    raise ValueError(
        f"`path` must {rule} for {format}. Received {path}. Write {path.with_suffix(suffix)}."
    )


def _files(path: Path) -> list[Path]:
    """What an artefact consists of."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def _check_target(path: Path, format: str, overwrite: bool) -> None:
    _check_suffix(path, format)
    for file in _files(path):
        if not file.exists():
            continue
        if not overwrite:
            raise ValueError(f"{file} exists. Choose another path, or set overwrite=True.")
        # A folder is only replaced by a folder that is a SavedModel too.
        if file.is_dir() and not (format == "saved_model" and (file / "saved_model.pb").exists()):
            raise ValueError(f"{file} is a folder and no {format}. Choose another path.")
        if file.is_file() and format == "saved_model":
            raise ValueError(f"{file} is a file, and a saved_model a folder. Choose another path.")


@contextmanager
def _as_file(model: Any, target: Path) -> Iterator[Path]:
    """The `.keras` file of a model, which is never the target."""
    if isinstance(model, (str, os.PathLike)):
        file = Path(model)
        if not file.is_file():
            raise FileNotFoundError(f"there is no model file {file}")
        if file.suffix != ".keras":
            raise ValueError(
                f"`model` must be a .keras file. Received {file}. Load it with Keras and save it "
                "as .keras."
            )
        if target.exists() and target.samefile(file):
            raise ValueError(f"`path` must not be the model itself. Received {target} for both.")
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.keras")
        model.save(file)
        yield file


def _keras_side(
    file: Path,
    format: str,
    artefact: Path | None,
    backend: str,
    batch: int | None,
    time: int | None,
    predict: bool,
    timeout: float,
) -> tuple[Attempt, list[str], dict[str, Any]]:
    """Predict, and export if there is an artefact to write, in a process on a backend.

    Returns:
        The attempt without its comparisons, the names of the inputs, and all arrays, with the
        cases' sizes under `"cases"`.
    """
    request = {
        "model": str(file),
        "format": format,
        "artefact": None if artefact is None else str(artefact),
        "batch": batch,
        "time": time,
        "predict": predict,
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("request.json", "answer.json", "arrays.npz")]
        paths[0].write_text(json.dumps(request))
        failure = _run("worker", [str(path) for path in paths], backend, timeout)
        if failure:
            return Attempt(backend, f"{backend}: {failure}"), [], {}
        answer = json.loads(paths[1].read_text())
        if "refused" in answer:
            raise ValueError(f"{file}: {answer['refused']}")
        arrays: dict[str, Any] = {}
        if paths[2].exists():
            with np.load(paths[2], allow_pickle=False) as packed:
                arrays = {name: packed[name] for name in packed.files}
    inputs = tuple(
        {key: spec[key] for key in ("name", "shape", "dtype")} for spec in answer.get("inputs", [])
    )
    attempt = Attempt(backend, answer["error"], inputs, skipped=tuple(answer.get("skipped", [])))
    names = [spec["name"] for spec in inputs]
    return attempt, names, {**arrays, "cases": answer.get("cases", [])}


def _compare(
    attempt: Attempt,
    format: str,
    artefact: Path,
    names: list[str],
    arrays: dict[str, Any],
    timeout: float,
) -> Attempt:
    """The attempt with what the artefact gives in its own runtime."""
    sizes = arrays.pop("cases")
    with tempfile.TemporaryDirectory() as folder:
        names_path, inputs, outputs = (Path(folder, n) for n in ("names", "in.npz", "out.npz"))
        names_path.write_text(json.dumps(names))
        np.savez(
            inputs,
            allow_pickle=False,
            **{name: x for name, x in arrays.items() if name.startswith("in_")},
        )
        arguments = [format, *map(str, (artefact, names_path, inputs, outputs))]
        failure = _run("artefact_worker", arguments, None, timeout)
        if failure:
            error = f"{FORMATS[format].runtime}: {failure}"
            return Attempt(attempt.backend, error, attempt.inputs, (), attempt.skipped)
        with np.load(outputs, allow_pickle=False) as packed:
            got = {name: packed[name] for name in packed.files}
    cases = tuple(
        _case(index, batch, time, arrays, got, FORMATS[format].runtime)
        for index, (batch, time) in enumerate(sizes)
    )
    return Attempt(attempt.backend, None, attempt.inputs, cases, attempt.skipped)


def _case(
    index: int,
    batch: int,
    time: int | None,
    expected: dict[str, Any],
    got: dict[str, Any],
    runtime: str,
) -> Case:
    if f"error_{index}" in got:
        return Case(batch, time, math.inf, f"{runtime}: {got[f'error_{index}']}")
    prefix = f"out_{index}_"
    count = sum(name.startswith(prefix) for name in expected)
    if count != sum(name.startswith(prefix) for name in got):
        return Case(batch, time, math.inf, f"the model has {count} outputs, the artefact not")
    largest = 0.0
    for place in range(count):
        name = f"{prefix}{place}"
        if expected[name].shape != got[name].shape:
            shapes = f"{expected[name].shape}, the artefact's {got[name].shape}"
            return Case(batch, time, math.inf, f"the output's shape is {shapes}")
        largest = max(largest, difference(expected[name], got[name]))
    return Case(batch, time, largest)


def difference(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest absolute difference, over the largest expected entry if that is above 1.

    Infinite if anything in either array is NaN or infinite.
    """
    expected, got = expected.astype("float64"), got.astype("float64")
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return math.inf
    if not expected.size:
        return 0.0
    return float(np.abs(expected - got).max() / max(1.0, np.abs(expected).max()))


def _run(module: str, arguments: list[str], backend: str | None, timeout: float) -> str | None:
    """Run a module of this folder in a process; how it failed, or None."""
    variables = dict([QUIET_TENSORFLOW]) | os.environ
    if backend is not None:
        variables["KERAS_BACKEND"] = backend
    try:
        process = subprocess.run(
            [sys.executable, "-m", f"multibackend_lstm.export.{module}", *arguments],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout:g} seconds"
    if process.returncode == 0:
        return None
    last_line = (process.stderr.strip().splitlines() or ["no message"])[-1]
    return f"the process ended with status {process.returncode}: {last_line}"


def _move(source: Path, folder: Path) -> None:
    """Move everything in a folder to another, in place of what is there under the same names."""
    for file in sorted(source.iterdir()):  # an OpenVINO .bin before its .xml
        final = folder / file.name
        if not final.is_dir():
            os.replace(file, final)
            continue
        old = folder / f".{final.name}-{uuid.uuid4().hex[:8]}"
        os.replace(final, old)
        os.replace(file, final)
        shutil.rmtree(old)

"""Export a model, and check that the artefact gives in its own runtime what Keras gives."""

import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multibackend_lstm.agreement.case import draw_inputs
from multibackend_lstm.agreement.checking import check_predictions
from multibackend_lstm.environment import (
    BACKENDS,
    NotInstalledError,
    choose_backend,
    installed_backends,
    missing_backend_message,
)
from multibackend_lstm.export.formats import FORMATS, Format, missing, missing_message
from multibackend_lstm.files import WriteError, check_writable, why_full
from multibackend_lstm.runtimes.loading import ModelFileError, check_file
from multibackend_lstm.runtimes.targets import Target
from multibackend_lstm.runtimes.workers import REFERENCE, Worker, WorkerError, Workers

if TYPE_CHECKING:
    import keras

    from multibackend_lstm.agreement import Report

#: Batch sizes and lengths that are compared; a fixed size takes the place of those here.
SIZES = ((2, 7), (1, 1), (5, 12))
_EXPORTER = "multibackend_lstm.export.export_runtime:Exporter"


@dataclass(frozen=True)
class Check:
    """A comparison on inputs of one size.

    Attributes:
        batch: number of samples.
        time: number of steps; None for an input without a time axis.
        report: what `agreement.check` finds of the artefact as a target.
    """

    batch: int
    time: int | None
    report: "Report"


@dataclass(frozen=True)
class Attempt:
    """What one backend made of the model.

    Attributes:
        backend: on which the model was loaded.
        error: why there is no artefact, the package that raised it first; or None.
        inputs: `{"name", "shape", "dtype"}` of each input; None in a shape for a free axis.
        checks: the comparisons with the Keras model; empty without a check.
        skipped: sizes that Keras itself refused.
        notes: layers that are a loop where the format has an operator, and why; and that another
            backend than the one in use wrote the file, which has no exporter to the format.
    """

    backend: str
    error: str | None
    inputs: tuple[dict[str, Any], ...] = ()
    checks: tuple[Check, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether there is an artefact, and no comparison found a difference."""
        return self.error is None and all(check.report.agrees for check in self.checks)

    @property
    def line(self) -> str:
        """What became of it, in one line."""
        if self.error:
            return " ".join(self.error.split())
        if not self.checks:
            return "exported, not checked"
        reports = [check.report for check in self.checks]
        return max(reports, key=lambda report: (not report.agrees, report.score)).summary()

    @property
    def difference(self) -> float:
        """The largest absolute difference of an output from the truth; NaN without a check."""
        return max((check.report.difference for check in self.checks), default=math.nan)


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

    def to_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {
            "path": self.path,
            "format": self.format,
            "succeeded": self.succeeded,
            "attempts": [
                {
                    "backend": attempt.backend,
                    "succeeded": attempt.succeeded,
                    "error": attempt.error,
                    "inputs": list(attempt.inputs),
                    "skipped": list(attempt.skipped),
                    "notes": list(attempt.notes),
                    "checks": [
                        {"batch": c.batch, "time": c.time, "report": c.report.to_json()}
                        for c in attempt.checks
                    ],
                }
                for attempt in self.attempts
            ],
        }

    def dumps(self) -> str:
        """`to_json` as text."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        """One line an attempt."""
        return "\n".join(f"{self.format} from {a.backend}: {a.line}" for a in self.attempts)


class MissingPackageError(ValueError, NotInstalledError):
    """What produces a format, or runs it, is not installed; the message names the extra."""


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
    opset: int | None = None,
    fused: bool = False,
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
        onnx from torch: agrees, 0.9 times the noise floor, largest difference 6.0e-08

    Args:
        model: a functional or Sequential model in float32, or the path of its `.keras` file.
        path: of the artefact. Its suffix must be that of the format: `.onnx`, `.tflite` (litert),
            `.xml` (openvino, which writes a `.bin` beside it), `.pt2` (torch), or none for the
            folder of a saved_model.
        format: `"onnx"`, `"saved_model"`, `"litert"`, `"openvino"` or `"torch"`.
        backend: the only one to try.
        batch: fixes the batch size. By default it is free.
        time: fixes the number of time steps, where the model leaves it open.
        opset: version of ONNX's operators, for the format onnx. By default the exporter's own.
        fused: for the format litert, with `batch`: each LSTM becomes one operator, where there is
            no mask, for microcontrollers that cannot run a loop. **That operator goes on from the
            state that the call before left**: call `interpreter.reset_all_variables()`, after
            `allocate_tensors()`, before each sequence. `report.attempts[-1].notes` says what
            became a loop all the same.
        check: whether to run the artefact in its own runtime on random inputs of several batch
            sizes and lengths, masked steps among them where the model has a `Masking`, and to
            compare it with the Keras model as `agreement.check` compares backends. What differs
            is not written. Without it a wrong artefact may be: an exporter can fix a size that
            the model leaves open, and say nothing.
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
    if opset is not None and format != "onnx":
        raise ValueError(f"`opset` is of the format onnx. Received opset={opset} for {format}.")
    if fused and (format != "litert" or batch is None):
        raise ValueError(
            "`fused` is of the format litert, and its operator wants to know the batch size: set "
            f"`batch` too. Received fused=True and batch={batch} for {format}."
        )
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
                request = _request(file, format, batch, time)
                request |= {"artefact": str(artefact.absolute()), "opset": opset, "fused": fused}
                if isinstance(model, (str, os.PathLike)):
                    request["model_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
                attempt, batches = _attempt(request, name, timeout)
                if attempt.error is not None:
                    # While what is written of it takes its room.
                    full = why_full(artefact.parent, file.stat().st_size + (1 << 16))
                    if full is not None:
                        raise WriteError(f"cannot write {target}: {full}")
                if backend is None and attempt.error is None:
                    notes = (*_written_elsewhere(format, kind, name), *attempt.notes)
                    attempt = replace(attempt, notes=notes)
                if check and attempt.error is None:
                    progress(f"running it with {kind.runtime}")
                    attempt = _checked(attempt, file, kind, artefact, batches, timeout)
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

    Example:
        >>> porting.check_export("model.keras", "model.onnx", "onnx").succeeded
        True

    Args:
        model: as in `export`.
        path: of the artefact.
        format: as in `export`.
        backend: that loads the model to describe it. Default: the first one installed.
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
    if not target.is_dir():
        check_file(target)
    _check_suffix(target, format)
    _check_runtime(kind)
    name = _known_backend(backend) if backend else choose_backend()
    with (
        tempfile.TemporaryDirectory() as folder,
        _as_file(model, Path(folder, "artefact")) as file,
    ):
        progress(f"loading {file.name} on {name}")
        attempt, batches = _attempt(_request(file, format, batch, time), name, timeout)
        if attempt.error is None:
            progress(f"running {target} with {kind.runtime}")
            attempt = _checked(attempt, file, kind, target, batches, timeout)
    return ExportReport(str(target), format, (attempt,))


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received {name!r}.")
    return FORMATS[name]


def _known_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}. Received {name!r}.")
    if name not in installed_backends():
        raise MissingPackageError(missing_backend_message(name))
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
        raise MissingPackageError(f"{format} is exported from {able}: {messages}")
    lacking = {name: missing(kind.backends[name]) for name in chosen}
    if all(lacking.values()):
        raise MissingPackageError(
            f"{format} from {chosen[0]}: {missing_message(lacking[chosen[0]][0], kind.extra)}"
        )
    return [name for name in chosen if not lacking[name]]


def _written_elsewhere(format: str, kind: Format, name: str) -> tuple[str, ...]:
    """A note where the backend in use cannot write a format, so that another did."""
    in_use = os.environ.get("KERAS_BACKEND", name)
    if in_use in kind.backends:
        return ()
    return (f"{name} wrote it, from the .keras file: there is no exporter of {in_use} to {format}",)


def _check_runtime(kind: Format) -> None:
    for module in missing((kind.runtime,)):
        raise MissingPackageError(
            f"the check of {kind.title}: {missing_message(module, kind.extra)}"
        )


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


def _request(file: Path, format: str, batch: int | None, time: int | None) -> dict[str, Any]:
    """What the worker is asked for: only to describe the model, without an artefact to write."""
    return {
        "do": "export",
        "model": str(file.absolute()),
        "format": format,
        "artefact": None,
        "batch": batch,
        "time": time,
        "opset": None,
        "fused": False,
        "model_sha256": None,
    }


def _attempt(
    request: dict[str, Any], backend: str, timeout: float
) -> tuple[Attempt, list[list[np.ndarray]]]:
    """Describe a model on a backend, and export it if there is an artefact to write.

    Returns:
        The attempt without its comparisons, and inputs of several sizes to compare it on.
    """
    try:
        worker = Worker(Target(backend), None, "default", timeout, runtime=_EXPORTER)
        try:
            answer = worker.request(request, {}, "exported")[0]["exported"]
        finally:
            worker.close()
    except WorkerError as error:
        if error.refusal is not None:
            raise ModelFileError(error.refusal) from error
        return Attempt(backend, f"{backend}: {error}"), []
    if "refused" in answer:
        return Attempt(backend, f"{request['model']}: {answer['refused']}"), []
    specs = answer.get("inputs", [])
    inputs = tuple({key: spec[key] for key in ("name", "shape", "dtype")} for spec in specs)
    notes = tuple(answer.get("notes", ()))
    attempt = Attempt(backend, answer["error"], inputs, notes=notes)
    return attempt, [] if attempt.error else _batches(specs, answer["masked"])


def _batches(specs: list[dict[str, Any]], masked: list[float]) -> list[list[np.ndarray]]:
    """Inputs of several sizes, where the model leaves them open, with masked steps among them."""
    batches: list[list[np.ndarray]] = []
    for sizes in SIZES:
        drawn = [
            {
                **spec,
                "shape": [
                    sizes[axis] if size is None else size for axis, size in enumerate(spec["shape"])
                ],
            }
            for spec in specs
        ]
        inputs = draw_inputs(drawn, [], drawn[0]["shape"][0], seed=len(batches))
        for value in masked[:1]:
            _mask_steps(inputs, value)
        if all([x.shape for x in inputs] != [x.shape for x in other] for other in batches):
            batches.append(inputs)
    return batches


def _mask_steps(inputs: list[np.ndarray], value: float) -> None:
    """Mask steps of every sample but the first: at both ends, a hole, and the last one wholly."""
    for x in inputs:
        if x.ndim < 3 or x.dtype.kind != "f":
            continue
        length = x.shape[1]
        for sample, steps in enumerate(((), (0,), (1, 2), (-1, -2), range(length))):
            if sample < len(x):
                x[sample, [step % length for step in steps]] = value


def _checked(
    attempt: Attempt,
    file: Path,
    kind: Format,
    artefact: Path,
    batches: list[list[np.ndarray]],
    timeout: float,
) -> Attempt:
    """The attempt with what the artefact gives in its own runtime, beside the Keras model."""
    target = Target(kind.target, file=str(artefact), title=artefact.name)
    checks, skipped = [], []
    try:
        with Workers([target], timeout=timeout) as workers:
            reports = check_predictions(file, batches, workers)
            for inputs, report in zip(batches, reports, strict=True):
                shape = inputs[0].shape
                failed = [f.message for f in report.findings if f.target == REFERENCE]
                if failed:  # a model may need a longer sequence than this
                    skipped.append(f"Keras itself fails at {shape}: {failed[0]}")
                    continue
                steps = shape[1] if len(shape) > 1 else None
                checks.append(Check(shape[0], steps, report))
    except WorkerError as error:
        return replace(attempt, error=f"{attempt.backend}: {error}")
    if not checks:
        return replace(attempt, error=skipped[0])
    return replace(attempt, checks=tuple(checks), skipped=tuple(skipped))


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

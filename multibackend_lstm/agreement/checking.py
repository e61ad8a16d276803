"""`check`: run one case on every target, compare with the truth, and report."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from multibackend_lstm.agreement.case import Case, CaseError, case_of, draw_inputs
from multibackend_lstm.agreement.comparison import ROUNDING, compare, missing
from multibackend_lstm.agreement.protocol import READING
from multibackend_lstm.agreement.report import (
    FAILED,
    Finding,
    Report,
    TargetResult,
    findings_of,
)
from multibackend_lstm.agreement.workers import REFERENCE, Target, Worker, WorkerError, Workers


def check(
    model: Any,
    inputs: Any = None,
    labels: Any = None,
    *,
    targets: Sequence[str] | None = None,
    workers: Workers | None = None,
    interpreters: Mapping[str, str] | None = None,
    steps: int = 5,
    optimizer: Any = "adam",
    loss: Any = "mean_squared_error",
    dtype: str | None = None,
    precision: str = "strict",
    twins: int = 8,
    seed: int = 0,
    batch: int = 4,
    input_shapes: Sequence[Sequence[int]] = (),
    modules: Sequence[str] = (),
    timeout: float = 300.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Compare a model's numbers on every target, and say which target is wrong and where.

    Every layer's output, the predictions, the gradients of inputs and weights, and the weights
    after some training steps are compared with a float64 run. How far a tensor may be from it
    is not a fixed tolerance: it is how far the float64 run itself moves when inputs, weights and
    layers' outputs are moved at random within the rounding of the dtype (perturbation growth,
    Rosinski and Williamson 1997, doi:10.1137/S1064827594275534).

    Args:
        model: a built Keras model, a layer, the path of a `.keras` file, or
            `"package.module:function"`, a function that returns a model or `(model, inputs)`.
        inputs: arrays with the batch first, nested as the model takes them; by default drawn
            from the shapes of the model's inputs.
        labels: arrays for the loss, one an output; by default drawn to suit the loss.
        targets: such as `["torch@cpu", "jax@gpu"]`; every installed backend by default.
        workers: `Workers` to use, which stay open; `targets`, `interpreters`, `precision` and
            `timeout` are then theirs.
        interpreters: another Python for a backend, `{"torch": "/path/python"}`.
        steps: training steps, on one batch; 0 for the gradients alone, None for no training.
        optimizer: name or config of a Keras optimizer.
        loss: name or config of a Keras loss; the losses of several outputs are added.
        dtype: policy to give every layer, such as `"mixed_bfloat16"`; as it is by default.
        precision: `"strict"` turns TF32 and reduced-precision reductions off.
        twins: how many perturbed runs the noise floor is taken from.
        seed: of all random numbers.
        batch: samples to draw.
        input_shapes: shapes without batch to draw, one an input.
        modules: to import in each worker, where custom layers are registered.
        timeout: seconds that an answer of a worker may take.
        progress: is told what is being done.

    Returns:
        The report. A target that fails, or a part that a backend cannot do, is a finding in it.

    Raises:
        CaseError: if the model or its inputs cannot be compared as they are.
        ValueError: if another argument is wrong.
        WorkerError: if no worker could tell what the model is.
    """
    if steps is not None and steps < 0:
        raise ValueError(f"`steps` must be 0 or more. Received {steps}.")
    if twins < 2:
        raise ValueError(f"`twins` must be at least 2, for a noise floor. Received {twins}.")
    if batch < 1:
        raise ValueError(f"`batch` must be at least 1. Received {batch}.")
    case = case_of(model, inputs, labels, modules)
    with ExitStack() as stack:
        if workers is None:
            workers = stack.enter_context(
                Workers(targets, interpreters=interpreters, precision=precision, timeout=timeout)
            )
        progress("starting workers")
        workers.start()
        training = None
        if steps is not None:
            training = {"steps": steps, "optimizer": _plain(optimizer), "loss": _plain(loss)}
        settings = {
            "dtype": dtype,
            "precision": workers.precision,
            "training": training,
            "twins": twins,
            "seed": seed,
        }
        described = _describe(workers, case)
        if training is not None:
            _check_training(workers, case, training)
        if case.inputs is None:
            case.inputs = draw_inputs(described["inputs"], input_shapes, batch, seed)
            case.structure = 0 if case.structure is None else case.structure
        try:
            return _check(workers, case, settings, described["layers"], progress)
        except BaseException:
            workers.close()  # answers under way belong to no request any more
            raise


def _plain(identifier: Any) -> Any:
    """An optimizer or loss as its name or config."""
    if isinstance(identifier, (str, dict)):
        return identifier
    import keras

    return keras.saving.serialize_keras_object(identifier)


def _check(
    workers: Workers,
    case: Case,
    settings: dict[str, Any],
    layers: dict[str, Any],
    progress: Callable[[str], None],
) -> Report:
    report = Report(case=case.name, reference="", float64=False, settings=settings, layers=layers)
    request = {
        "do": "run",
        "source": case.source,
        "dtype": settings["dtype"],
        "structure": case.structure,
        "training": settings["training"],
        "seed": settings["seed"],
        "twins": 0,
        "rounding": 0.0,
    }
    progress(f"{case.name}: computing")
    started: list[tuple[Target, Worker | str]] = []
    for target in workers.targets:
        try:
            worker = workers.worker(str(target), target)
            worker.ask(request, case.arrays)
            started.append((target, worker))
        except WorkerError as error:
            started.append((target, str(error)))
    with tempfile.TemporaryDirectory() as folder:
        truth = _read_truth(workers, case, request, report, Path(folder))
        for target, started_worker in started:
            progress(f"{case.name}: comparing {target}")
            report.results.append(_compare(target, started_worker, truth))
    report.findings += findings_of(report)
    return report


def _read_truth(
    workers: Workers, case: Case, request: dict[str, Any], report: Report, folder: Path
) -> "_Truth":
    """The tensors of the reference: in float64 where that can be had, else as the targets run."""
    dtype = report.settings["dtype"]
    tries = [(REFERENCE, workers.reference, "float64"), (REFERENCE, workers.reference, dtype)]
    first = workers.targets[0]
    if first != workers.reference:
        tries.append((f"{REFERENCE} on {first}", first, dtype))
    reasons: list[str] = []
    truth = _Truth(folder)
    for name, target, wanted in tries:
        float64 = wanted == "float64"
        report.reference = f"{wanted or 'float32'} on {target}"
        report.float64 = float64
        try:
            worker = workers.worker(name, target)
        except WorkerError as error:
            reasons.append(f"{target} {error}")
            continue
        if float64 and not worker.ready["float64"]:
            reasons.append(f"Keras does not compute in float64 on {target.backend}")
            continue
        rounding = _rounding(dtype, report.layers, float64)
        twins = report.settings["twins"]
        worker.ask(request | {"dtype": wanted, "twins": twins, "rounding": rounding}, case.arrays)
        truth = _Truth(folder)
        truth.float64 = float64
        truth.read(worker, report)
        if not truth.failed:
            break
        reasons += [f"{report.reference} failed in {p}: {r}" for p, r in truth.failed.items()]
    if truth.failed or not truth.headers:
        message = "there is nothing to compare with: " + "; ".join(dict.fromkeys(reasons))
        report.findings.append(Finding(REFERENCE, FAILED, "target", message))
        truth.failed = truth.failed or dict.fromkeys(_PARTS, message)
    elif reasons:
        report.settings["resolution"] = (
            f"the targets are compared with {report.reference}, so that who is wrong cannot be "
            "told: " + "; ".join(dict.fromkeys(reasons))
        )
    return truth


def _describe(workers: Workers, case: Case) -> dict[str, Any]:
    """What the model is; the case gets what a worker says of it, where only a worker can."""
    if case.described is not None:
        return case.described
    errors, refusals = [], []
    for name, target in _workers_in_turn(workers):
        try:
            worker = workers.worker(name, target)
            header, arrays = worker.request(
                {"do": "describe", "source": case.source, "dtype": None}, {}, "described"
            )
        except WorkerError as error:
            errors.append(f"{target}: {error}")
            refusals += _refusals(error)
            continue
        described: dict[str, Any] = header["described"]
        case.weights = [arrays[f"weight{i}"] for i in range(header["weights"])]
        if case.inputs is None:
            case.structure = described["structure"]
            if header["given"]:
                case.inputs = [arrays[f"input{i}"] for i in range(header["given"])]
        if "config" in described:
            case.source["config"] = described["config"]
            del case.source["file"]
        return described
    if refusals:
        raise CaseError(refusals[0])
    raise WorkerError("no worker could build the model:\n" + "\n".join(dict.fromkeys(errors)))


def _workers_in_turn(workers: Workers) -> list[tuple[str, Target]]:
    """Name and target of the reference, then of the targets."""
    return [(REFERENCE, workers.reference), *((str(t), t) for t in workers.targets)]


def _check_training(workers: Workers, case: Case, training: dict[str, Any]) -> None:
    """Ask the first worker that there is whether Keras knows the optimizer and the loss."""
    imports = {k: v for k, v in case.source.items() if k in ("modules", "objects", "function")}
    arguments = {"source": imports, **{key: training[key] for key in ("optimizer", "loss")}}
    function = "multibackend_lstm.agreement.execution:check_training"
    request = {"do": "call", "function": function, "arguments": arguments}
    for name, target in _workers_in_turn(workers):
        try:
            workers.worker(name, target).request(request, {}, "called")
            return
        except WorkerError as error:
            for refusal in _refusals(error):
                raise CaseError(refusal) from error
            # It does not run, as its own finding will say.


def _refusals(error: WorkerError) -> list[str]:
    """What a worker says of a model or argument that is at fault wherever it runs; or nothing."""
    refusal = r"(?:CaseError|ModelFileError): (.*?)(?: \([^()]*:\d+ in .*)?$"
    match = re.match(refusal, str(error), re.DOTALL)
    return [match[1]] if match else []


def _rounding(dtype: str | None, layers: Mapping[str, Any], float64: bool) -> float:
    """The coarsest rounding of the dtypes that the layers compute in."""
    named = [dtype] if dtype else [_policy(layer) for layer in layers.values()]
    narrow = [size for name in named for key, size in ROUNDING.items() if name and key in name]
    rounding = max(narrow, default=ROUNDING["float32"])
    # In the dtype itself only a move of a whole unit in the last place is sure to be one.
    return rounding if float64 else 2 * rounding


def _policy(layer: Mapping[str, Any]) -> str:
    named = layer["config"].get("dtype") if isinstance(layer.get("config"), dict) else None
    if isinstance(named, dict):
        named = named.get("config", {}).get("name")
    return named if isinstance(named, str) else ""


class _Truth:
    """The reference's tensors, on disk, with their noise floors."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.headers: dict[tuple[str, str], dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.float64 = False

    def read(self, reference: Worker, report: Report) -> None:
        """Take a worker's answers; what fails is in `failed` then."""
        try:
            for header, arrays in reference.answers("done"):
                if "failed" in header:
                    self.failed[header["failed"]] = header["reason"]
                elif "tensor" in header:
                    self._keep(header["tensor"], arrays["values"], report)
        except WorkerError as error:
            self.failed = {part: str(error) for part in _PARTS}

    def _keep(self, tensor: dict[str, Any], values: np.ndarray, report: Report) -> None:
        tensor["file"] = self._folder / f"{len(self.headers)}.npy"
        np.save(tensor["file"], values, allow_pickle=False)
        self.headers[tensor["kind"], tensor["path"]] = tensor
        if tensor["kind"] == "trajectory":
            report.twins[int(tensor["path"])] = (tensor["floor"], tensor["largest"])

    def values(self, key: tuple[str, str]) -> np.ndarray:
        """A tensor, from disk."""
        with READING:
            values: np.ndarray = np.load(self.headers[key]["file"], allow_pickle=False)
        return values


# The parts of a worker's run, and the kinds of tensors that each gives.
_PARTS = {
    "prediction": ("output", "output of a second batch"),
    "layers": ("layer", "captured output"),
    "training": ("input gradient", "weight gradient", "loss", "weight", "trajectory"),
}


def _compare(target: Target, worker: Worker | str, truth: _Truth) -> TargetResult:
    result = TargetResult(str(target))
    if isinstance(worker, str):
        result.failed["target"] = worker
        return result
    result.ready = worker.ready
    seen = set()
    try:
        for header, arrays in worker.answers("done"):
            if "failed" in header:
                result.failed[header["failed"]] = header["reason"]
            elif "refused" in header:
                result.not_compared[header["refused"]] = header["reason"]
            elif "done" in header:
                result.seconds = header["done"]["seconds"]
                for note in header["done"]["notes"]:
                    result.not_compared["training"] = note
            else:
                tensor = header["tensor"]
                key = (tensor["kind"], tensor["path"])
                seen.add(key)
                _compare_tensor(result, key, tensor, arrays["values"], truth)
    except WorkerError as error:
        result.failed["target"] = str(error)
        return result
    for part, kinds in _PARTS.items():
        if part in truth.failed and part not in result.failed:
            result.not_compared[part] = "the reference failed there"
        if part == "training" and "layers" in result.failed:
            result.not_compared[part] = "the model does not run"
        if part in {*result.failed, *result.not_compared}:
            continue
        for key in truth.headers:
            if key[0] in kinds and key not in seen:
                result.comparisons.append(missing(*key))
    return result


def _compare_tensor(
    result: TargetResult,
    key: tuple[str, str],
    tensor: dict[str, Any],
    values: np.ndarray,
    truth: _Truth,
) -> None:
    expected = truth.headers.get(key)
    if expected is None:
        if not truth.failed:
            result.not_compared[f"{key[0]} {key[1]}"] = "the reference has no such tensor"
        return
    expected_values = truth.values(key)
    comparison = compare(
        *key,
        values,
        expected_values,
        floor=expected["floor"],
        dtype=tensor["dtype"],
        exact=truth.float64,
    )
    if key[0] == "trajectory":
        result.distances[int(key[1])] = comparison.rms
    else:
        result.comparisons.append(comparison)

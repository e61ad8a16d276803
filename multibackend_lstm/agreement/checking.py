"""`check`: run one case on every target, compare with the truth, and report."""

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

import numpy as np

from multibackend_lstm.agreement.bundle import check_empty, write_bundles
from multibackend_lstm.agreement.case import Case, case_of, draw_inputs
from multibackend_lstm.agreement.comparison import ALONE, DISAGREES, GROUPS, compare, missing
from multibackend_lstm.agreement.fewer_units import with_fewer_units
from multibackend_lstm.agreement.isolation import WITNESS, compare_alone
from multibackend_lstm.agreement.least_models import LeastModel, least_model
from multibackend_lstm.agreement.more_inputs import check_names, inputs_named
from multibackend_lstm.agreement.report import (
    FAILED,
    Finding,
    Report,
    TargetResult,
    findings_of,
)
from multibackend_lstm.agreement.shrinking import Leasts
from multibackend_lstm.agreement.truth import PARTS, Truth
from multibackend_lstm.agreement.whole import confirm_whole
from multibackend_lstm.files import check_writable
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.noise_floor import compute_dtypes, rounding_of
from multibackend_lstm.runtimes.targets import Target
from multibackend_lstm.runtimes.workers import REFERENCE, Worker, WorkerError, Workers


def check(
    model: Any,
    inputs: Any = None,
    labels: Any = None,
    *,
    targets: Sequence[str] | None = None,
    workers: Workers | None = None,
    interpreters: Mapping[str, str] | None = None,
    steps: int = 5,
    optimizer: Any = None,
    loss: Any = None,
    dtype: str | None = None,
    precision: str = "strict",
    twins: int = 8,
    seed: int = 0,
    batch: int = 4,
    input_shapes: Sequence[Sequence[int]] = (),
    more_inputs: Sequence[str] = (),
    modules: Sequence[str] = (),
    timeout: float = 300.0,
    truth: str | Path | None = None,
    save_truth: str | Path | None = None,
    bundle: str | Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Compare a model's numbers on every target, and say which target is wrong and where.

    Every layer's output, the predictions, the gradients of inputs and weights, and the weights
    after some training steps are compared with a float64 run. How far a tensor may be from it
    is not a fixed tolerance: it is how far the float64 run itself moves when inputs, weights and
    layers' outputs are moved at random within the rounding of the dtype (perturbation growth,
    Rosinski and Williamson 1997, doi:10.1137/S1064827594275534).

    Example:
        >>> model = build_model((10, 3, 5), units=4)            # (time, channels, features)
        >>> report = agreement.check(model, targets=["torch@cpu"], steps=1)
        >>> report.agrees
        True

    Args:
        model: a built Keras model, a layer, the path of a `.keras` file, or
            `"package.module:function"`, a function that returns a model or `(model, inputs)`.
        inputs: arrays with the batch first, nested as the model takes them; by default drawn
            from the shapes of the model's inputs.
        labels: arrays for the loss, one an output; by default drawn to suit the loss.
        targets: such as `["torch@cpu", "jax@gpu"]`; every installed backend by default. What runs
            without Keras is one too, `"onnxruntime:model.onnx"`, `"tf_keras:old.h5"` or
            `"torch_module:package.module:function"`: its predictions are compared. A label makes
            two versions of one backend two targets, `"jax@cpu"` and `"jax@cpu#next"`.
        workers: `Workers` to use, which stay open; `targets`, `interpreters`, `precision` and
            `timeout` are then theirs.
        interpreters: another Python for a backend, a runtime or a label,
            `{"torch": "/path/python", "jax#next": "/other/python"}`.
        steps: training steps, on one batch; 0 for the gradients alone, None for no training.
        optimizer: name or config of a Keras optimizer; by default the one that the model is
            compiled with, else `"adam"`.
        loss: name or config of a Keras loss, of each output, or a list of one an output of a
            floating dtype; they are added. By default what the model is compiled with, else
            `"mean_squared_error"`.
        dtype: policy to give every layer, such as `"mixed_bfloat16"`; as it is by default.
        precision: `"strict"` turns TF32 and reduced-precision reductions off.
        twins: how many perturbed runs the noise floor is taken from.
        seed: of all random numbers.
        batch: samples to draw.
        input_shapes: shapes without batch to draw, one an input.
        more_inputs: names of `MORE_INPUTS`, such as `["single", "zeros"]`: the layers and the
            predictions are compared on these too. The report's findings, of which each says on
            what inputs, are then of all; its tensors are those of the inputs themselves.
        modules: to import in each worker, where custom layers are registered.
        timeout: seconds that an answer of a worker may take.
        truth: a file of `save_truth`, written on another machine or by other versions, to compare
            with. Weights, inputs, labels, `steps`, `optimizer`, `loss`, `dtype`, `twins` and `seed`
            are then those of the file; only the form of the model is taken from `model`.
        save_truth: an `.npz` file to write the truth to, with the numbers of the case.
        bundle: a new or empty folder, to write a folder to for each layer that is off alone: with
            its config, the least inputs that show it, a script and an issue for upstream. What is
            off in the whole model alone has one with the least part of the model that shows it.
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
    if truth is not None and (inputs is not None or labels is not None):
        raise ValueError("`truth` holds inputs and labels. Received others too: leave them out.")
    check_names(more_inputs)
    if truth is not None and more_inputs:
        raise ValueError("`truth` holds its inputs. Received `more_inputs` too: leave them out.")
    if bundle is not None:
        if truth is not None:
            raise ValueError("`bundle` needs the reference to shrink inputs. Received `truth` too.")
        check_empty(Path(bundle))
    if save_truth is not None:
        check_writable(Path(save_truth).parent)
    case = case_of(model, inputs, labels, modules)
    training = None
    if steps is not None:
        training = {"steps": steps, "optimizer": _plain(optimizer), "loss": _plain(loss)}
    settings = {"dtype": dtype, "training": training, "twins": twins, "seed": seed}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loaded = None
        if truth is not None:
            loaded, settings = Truth.load(Path(truth), folder, case)
        if workers is None:
            workers = stack.enter_context(
                Workers(targets, interpreters=interpreters, precision=precision, timeout=timeout)
            )
        progress("starting workers")
        workers.start(reference=loaded is None)
        if loaded is None:
            described = describe(workers, case)
            if case.inputs is None:
                case.inputs = draw_inputs(described["inputs"], input_shapes, batch, seed)
                case.structure = 0 if case.structure is None else case.structure
            if training is not None:
                for name, default in (("optimizer", "adam"), ("loss", "mean_squared_error")):
                    training[name] = training[name] or described["compiled"][name] or default
        if training is not None and loaded is None:
            _check_training(workers, case, training)
        saved_as = None if save_truth is None else Path(save_truth)
        leasts = None if bundle is None else Leasts()
        report = check_case(
            workers, case, settings, progress, truth=loaded, save_truth=saved_as, leasts=leasts
        )
        if bundle is not None and leasts is not None:
            if dtype is None:
                leasts.found = [
                    with_fewer_units(least, leasts, workers, modules, exact=report.float64)
                    for least in leasts.found
                ]
            models = _least_models(report, case, workers, modules, progress)
            report.bundles = write_bundles(Path(bundle), report, leasts, models, modules)
        for name in more_inputs:
            _check_on(name, report, workers, case, settings, progress)
        return report


def _least_models(
    report: Report,
    case: Case,
    workers: Workers,
    modules: Sequence[str],
    progress: Callable[[str], None],
) -> dict[int, LeastModel | str]:
    """The least part of the model for each finding of the whole, by its number, or why not."""
    models: dict[int, LeastModel | str] = {}
    for number, finding in enumerate(report.findings, 1):
        if finding.verdict == DISAGREES and finding.group in GROUPS and finding.group != ALONE:
            try:
                models[number] = least_model(
                    finding, case, report, workers, modules, check_case, progress
                )
            except (CaseError, WorkerError) as reason:
                models[number] = str(reason)
    return models


def _check_on(
    name: str,
    report: Report,
    workers: Workers,
    case: Case,
    settings: Mapping[str, Any],
    progress: Callable[[str], None],
) -> None:
    """Compare layers and predictions on other inputs; the report gets what is new there."""
    told = report.settings.setdefault("more_inputs", {})
    try:
        other = replace(case, inputs=inputs_named(case, name), labels=[])
    except CaseError as reason:
        told[name] = f"left out: {reason}"
        return
    told[name] = "compared"
    found = check_case(workers, other, {**settings, "training": None}, progress)
    known = {(f.target, f.group, f.layer, f.path) for f in report.findings}
    report.findings += [
        replace(finding, message=f"on {name}: {finding.message}")
        for finding in found.findings
        if (finding.target, finding.group, finding.layer, finding.path) not in known
    ]


def _plain(identifier: Any) -> Any:
    """An optimizer or a loss, or several, as names or configs."""
    if isinstance(identifier, list):
        return [_plain(x) for x in identifier]
    if identifier is None or isinstance(identifier, (str, dict)):
        return identifier
    import keras

    return keras.saving.serialize_keras_object(identifier)


#: Of a check that is about predictions alone.
PREDICTION_ONLY = MappingProxyType({"dtype": None, "training": None, "twins": 8, "seed": 0})


def check_case(
    workers: Workers,
    case: Case,
    settings: Mapping[str, Any] = PREDICTION_ONLY,
    progress: Callable[[str], None] = lambda _: None,
    *,
    truth: Truth | None = None,
    save_truth: Path | None = None,
    leasts: Leasts | None = None,
) -> Report:
    """Compare a case that `describe` has described, and whose inputs are there.

    Args:
        workers: of the targets, and of the reference.
        case: what to compare.
        settings: dtype, training, twins and seed.
        progress: is told what is being done.
        truth: to compare with; computed by the reference where it is None.
        save_truth: a file to write it to.
        leasts: gets the least call that shows each layer that is off; None for none.
    """
    settings = {**settings, "precision": workers.precision}
    try:
        return _check(workers, case, settings, progress, truth, save_truth, leasts)
    except BaseException:
        workers.close()  # answers under way belong to no request any more
        raise


def check_predictions(
    model: Any,
    batches: Sequence[Sequence[np.ndarray]],
    workers: Workers,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Report]:
    """Compare predictions alone, for batches of several sizes: a report each.

    Args:
        model: as in `check`.
        batches: each with an array an input, in the order of the model's inputs.
        workers: of the targets.
        progress: is told what is being done.

    Raises:
        CaseError, WorkerError: as in `check`.
    """
    case = case_of(model, None, None, ())
    progress("starting workers")
    workers.start()
    structure = describe(workers, case)["structure"]
    case.structure = 0 if structure is None else structure
    for arrays in batches:
        yield check_case(workers, replace(case, inputs=list(arrays)), progress=progress)


def _check(
    workers: Workers,
    case: Case,
    settings: dict[str, Any],
    progress: Callable[[str], None],
    truth: Truth | None,
    save_truth: Path | None,
    leasts: Leasts | None,
) -> Report:
    assert case.described is not None
    layers = {**_trainers(settings["training"]), **case.described["layers"]}
    report = Report(case=case.name, reference="", float64=False, settings=settings, layers=layers)
    request = case.request(settings)
    progress(f"{case.name}: computing")
    started: list[tuple[Target, Worker | str]] = []
    for target in workers.targets:
        try:
            worker = workers.worker(str(target), target)
            worker.ask(request, case.arrays)
            started.append((target, worker))
        except WorkerError as error:
            started.append((target, str(error)))
    alone = [worker for _, worker in started if _calls_layers(worker)]
    with tempfile.TemporaryDirectory() as folder:
        reference = None
        if truth is None:
            if alone or save_truth is not None:
                request["dtypes"] = compute_dtypes(settings["dtype"], case.described["layers"])
            truth, reference = _computed_truth(workers, case, request, report, Path(folder))
        report.reference, report.float64 = truth.reference, truth.float64
        report.reference_backend = truth.backend
        report.twins |= truth.twins
        for target, started_worker in started:
            progress(f"{case.name}: comparing {target}")
            report.results.append(_compare(target, started_worker, truth))
        pairs = [
            (result, worker)
            for result, (_, worker) in zip(report.results, started, strict=True)
            if _calls_layers(worker)
            and worker.alive
            and not {"target", "layers"} & {*result.failed}
        ]
        if leasts is not None:
            leasts.layers = layers
            pairs_of = list(zip(case.weight_paths, case.weights or [], strict=False))
            leasts.weights = {
                path: dict(pairs_of[place] for place in places)
                for path, places in case.described["weights"].items()
            }
            leasts.trainable = dict(pairs_of[place] for place in case.described["trainable"])
        witness = _witness(workers, truth, request, case) if reference is not None else lambda: None
        compare_alone(truth, reference, pairs, settings["twins"], progress, witness, leasts)
        rounding = rounding_of(settings["dtype"], case.described["layers"], True)
        request |= {"dtype": "float64", "twins": 2, "rounding": rounding, "dtypes": None}
        judged = [result for result, _ in pairs]
        confirm_whole(judged, truth, reference, request, case.arrays)
        if save_truth is not None:
            truth.save(save_truth, case, settings)
    report.findings += findings_of(report)
    return report


def _witness(
    workers: Workers, truth: Truth, request: Mapping[str, Any], case: Case
) -> Callable[[], Worker | None]:
    """Starts, when it is first needed, what computes as the truth does, but as targets run."""

    @functools.cache
    def witness() -> Worker | None:
        try:
            worker = workers.worker(WITNESS, Target(truth.backend))
            worker.ask({**request, "dtypes": None, "only_load": True}, case.arrays)
            list(worker.answers("done"))
        except WorkerError:
            return None
        return worker

    return witness


def _trainers(training: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Loss and optimizer, which are called alone too, as a report holds layers."""
    found = {}
    for kind in ("loss", "optimizer"):
        named = (training or {}).get(kind)
        if named is not None:
            name = "several losses" if isinstance(named, list) else named
            config = named if isinstance(named, dict) else {"class_name": name, "config": {}}
            found[kind] = {"module": f"keras.{kind}s", **config}
    return found


def _calls_layers(worker: Worker | str) -> TypeGuard[Worker]:
    return isinstance(worker, Worker) and ALONE in worker.ready["parts"]


def _computed_truth(
    workers: Workers, case: Case, request: dict[str, Any], report: Report, folder: Path
) -> tuple[Truth, Worker | None]:
    """The tensors of the reference, and its worker.

    They are in float64 where that can be had, else as the targets run.
    """
    assert case.described is not None
    dtype, layers = report.settings["dtype"], case.described["layers"]
    tries = [(REFERENCE, workers.reference, "float64"), (REFERENCE, workers.reference, dtype)]
    for other in workers.other_references:
        tries.append((f"{REFERENCE} on {other}", other, dtype))
    reasons: list[str] = []
    worker: Worker | None = None
    for name, target, wanted in tries:
        float64 = wanted == "float64"
        truth = Truth(folder, f"{wanted or 'float32'} on {target}", float64, target.backend)
        try:
            worker = workers.worker(name, target)
        except WorkerError as error:
            reasons.append(f"{target} {error}")
            continue
        if float64 and not worker.ready["float64"]:
            reasons.append(f"Keras does not compute in float64 on {target.backend}")
            continue
        rounding = rounding_of(dtype, layers, float64)
        twins = report.settings["twins"]
        worker.ask(request | {"dtype": wanted, "twins": twins, "rounding": rounding}, case.arrays)
        truth.read(worker)
        if not truth.failed:
            break
        worker = None
        reasons += [f"{truth.reference} failed in {p}: {r}" for p, r in truth.failed.items()]
    if truth.failed or not truth.headers:
        message = "there is nothing to compare with: " + "; ".join(dict.fromkeys(reasons))
        report.findings.append(Finding(REFERENCE, FAILED, "target", message))
        truth.failed = truth.failed or dict.fromkeys(PARTS, message)
    elif reasons:
        report.settings["resolution"] = (
            f"the targets are compared with {truth.reference}, so that who is wrong cannot be "
            "told: " + "; ".join(dict.fromkeys(reasons))
        )
    return truth, worker


def describe(workers: Workers, case: Case) -> dict[str, Any]:
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
            refusals += [] if error.refusal is None else [error.refusal]
            continue
        described: dict[str, Any] = header["described"]
        case.weights = [arrays[f"weight{i}"] for i in range(header["weights"])]
        case.weight_paths = header["weight_paths"]
        if case.inputs is None:
            case.structure = described["structure"]
            if header["given"]:
                case.inputs = [arrays[f"input{i}"] for i in range(header["given"])]
        if "config" in described:
            case.source["config"] = described["config"]
            del case.source["file"]
        case.described = described
        return described
    if refusals:
        raise CaseError(refusals[0])
    raise WorkerError("no worker could build the model:\n" + "\n".join(dict.fromkeys(errors)))


def _workers_in_turn(workers: Workers) -> list[tuple[str, Target]]:
    """Name and target of the reference, then of the targets that Keras runs."""
    targets = [(str(target), target) for target in workers.targets if target.is_keras]
    return [(REFERENCE, workers.reference), *targets]


def _check_training(workers: Workers, case: Case, training: dict[str, Any]) -> None:
    """Ask the first worker that there is whether Keras knows the optimizer and the loss."""
    assert case.described is not None
    count, losses = case.described["floating_outputs"], training["loss"]
    if isinstance(losses, list) and count not in (None, len(losses)):
        raise CaseError(
            f"`loss` must have an entry for each output of a floating dtype, of which there are "
            f"{count}. Received {len(losses)}."
        )
    imports = {k: v for k, v in case.source.items() if k in ("modules", "objects", "function")}
    arguments = {"source": imports, **{key: training[key] for key in ("optimizer", "loss")}}
    function = "multibackend_lstm.runtimes.execution:check_training"
    request = {"do": "call", "function": function, "arguments": arguments}
    for name, target in _workers_in_turn(workers):
        try:
            workers.worker(name, target).request(request, {}, "called")
            return
        except WorkerError as error:
            if error.refusal is not None:
                raise CaseError(error.refusal) from error
            # It does not run, as its own finding will say.


def _compare(target: Target, worker: Worker | str, truth: Truth) -> TargetResult:
    result = TargetResult(str(target))
    if isinstance(worker, str):
        result.failed["target"] = worker
        return result
    result.ready = worker.ready
    seen = set()
    outputs = [key for key in truth.headers if key[0] == "output"]
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
                if not target.is_keras:  # it knows outputs by their place alone
                    if int(key[1]) >= len(outputs) and not truth.failed:
                        result.comparisons.append(missing(*key, "the model has no such output"))
                        continue
                    key = outputs[int(key[1])] if outputs else key
                seen.add(key)
                _compare_tensor(result, key, tensor, arrays["values"], truth)
    except WorkerError as error:
        result.failed["target"] = str(error)
        return result
    for part, kinds in PARTS.items():
        if part not in worker.ready["parts"]:
            continue
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
    truth: Truth,
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

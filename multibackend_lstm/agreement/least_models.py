"""A finding that no layer alone shows, with the least part of the model that shows it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multibackend_lstm.agreement.case import Case, case_of
from multibackend_lstm.agreement.comparison import DISAGREES, GROUPS, Comparison
from multibackend_lstm.agreement.report import Finding, Report
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.loading import cause
from multibackend_lstm.runtimes.noise_floor import rounding_of
from multibackend_lstm.runtimes.workers import REFERENCE, Worker, WorkerError, Workers

# Kinds that a script of Keras alone can compute, those that are wrong first in front.
_KINDS = (
    *("captured output", "output", "output of a second batch"),
    *("weight gradient", "loss", "weight"),
)
_TRAINED = ("gradients", "training")


@dataclass(frozen=True)
class LeastModel:
    """A part of a model, with the inputs on which it is wrong.

    Attributes:
        target: that is wrong.
        case: of the part, with its config, weights and inputs.
        calls: names of what the part calls, in order; none of a model that is no graph.
        training: steps, optimizer and loss; None where no training shows it.
        labels: of the loss.
        comparison: of the tensor that is off.
        place: of that tensor among those of its kind.
        expected: that tensor in the truth.
        received: the same of the target.
    """

    target: str
    case: Case
    calls: Sequence[str]
    training: Mapping[str, Any] | None
    labels: Sequence[np.ndarray]
    comparison: Comparison
    place: int
    expected: np.ndarray
    received: np.ndarray

    @property
    def tensors(self) -> Sequence[np.ndarray]:
        """What goes in."""
        return self.case.inputs or []


def least_model(
    finding: Finding,
    case: Case,
    report: Report,
    workers: Workers,
    modules: Sequence[str],
    again: Callable[[Workers, Case, Mapping[str, Any]], Report],
    progress: Callable[[str], None],
) -> LeastModel:
    """Reduce a model to what shows a finding.

    Args:
        finding: of the whole model.
        case: of the model.
        report: with the finding.
        workers: of targets and reference; the model that they ran last is another one then.
        modules: where classes are that are not Keras's.
        again: compares a case with settings, as `check_case`.
        progress: is told what is being done.

    Raises:
        CaseError: if no model shows it that can be built from a config.
    """
    from multibackend_lstm.agreement.reducing import Part, calls, reduced

    settings = {key: report.settings[key] for key in ("dtype", "training", "twins", "seed")}
    if finding.group not in _TRAINED:
        settings["training"] = None
    elif isinstance(settings["training"]["loss"], list):
        raise CaseError("a part of the model has other outputs than the several losses are of")
    one = workers.without(
        {r.target for r in report.results} - {finding.target} if report.float64 else ()
    )
    tried = 0

    def case_of_part(part: Part) -> Case:
        found = case_of(part.model, None, None, modules)
        found.inputs = list(part.inputs)
        found.structure = case.structure if found.structure is None else found.structure
        return found

    def shows(part: Part) -> bool:
        nonlocal tried
        tried += 1
        progress(f"finding the least model that shows what is off in {finding.path}: {tried}")
        try:
            found = again(one, case_of_part(part), settings)
        except (CaseError, WorkerError):
            return False
        return any(
            (f.target, f.group, f.verdict) == (finding.target, finding.group, DISAGREES)
            for f in found.findings
        )

    assert case.inputs is not None
    part = reduced(Part(_rebuilt(case), case.inputs), shows)
    if part is None:
        raise CaseError("it does not show again in a model that its config builds")
    least = case_of_part(part)
    if "config" not in least.source:
        raise CaseError("the least model that shows it has no config")
    found = again(one, least, settings)
    return _with_values(finding, least, [*calls(part.model)], found, settings, one)


def _rebuilt(case: Case) -> Any:
    """The model of a case in this process, apart from any that a user holds."""
    import keras

    from multibackend_lstm.runtimes.execution import in_order
    from multibackend_lstm.runtimes.imports import imported, imported_module

    source = case.source
    for module in source.get("modules", []):
        imported_module(module)
    try:
        if "function" in source:
            model = imported(source["function"])()
            model, inputs = model if isinstance(model, tuple) else (model, None)
            if not model.built:
                model(inputs)
        else:
            objects = {name: imported(place) for name, place in source.get("objects", {}).items()}
            model = keras.saving.deserialize_keras_object(
                source["config"], custom_objects=objects, safe_mode=True
            )
    except Exception as error:  # whatever a model of somebody brings up here
        raise CaseError(f"the model cannot be built in this process: {cause(error)}") from error
    weights = case.weights or []
    variables = in_order(model.weights, case.weight_paths, [x.shape for x in weights])
    for variable, value in zip(variables, weights, strict=True):
        variable.assign(value)
    return model


def _with_values(
    finding: Finding,
    case: Case,
    calls: Sequence[str],
    report: Report,
    settings: Mapping[str, Any],
    workers: Workers,
) -> LeastModel:
    """What the target and the truth give for the tensor that is off."""
    from multibackend_lstm.runtimes.execution import draw_labels

    off = [
        c
        for kind in _KINDS
        for result in report.results
        for c in result.comparisons
        if result.target == finding.target
        and c.kind == kind
        and kind in GROUPS[finding.group]
        and c.verdict == DISAGREES
    ]
    if not off:
        raise CaseError("no tensor of the least model is off that a script could compute")
    request = case.request(settings)
    target = next(t for t in workers.targets if str(t) == finding.target)
    received = _answers(workers.worker(finding.target, target), request, case)
    if report.float64:
        assert case.described is not None
        rounding = rounding_of(settings["dtype"], case.described["layers"], True)
        request |= {"dtype": "float64", "twins": 2, "rounding": rounding}
    expected = _answers(workers.worker(REFERENCE, workers.reference), request, case)
    first = off[0]
    key = (first.kind, first.path)
    of_kind = [path for kind, path in received if kind == first.kind]
    labels: list[np.ndarray] = []
    training = settings["training"]
    if training is not None:
        outputs = [x for (kind, _), x in received.items() if kind == "captured output"]
        labels = draw_labels(training["loss"], outputs, settings["seed"])
    return LeastModel(
        finding.target, case, calls, training, labels, first, of_kind.index(first.path),
        expected[key], received[key],
    )  # fmt: skip


def _answers(
    worker: Worker, request: Mapping[str, Any], case: Case
) -> dict[tuple[str, str], np.ndarray]:
    """Every tensor that a worker gives."""
    worker.ask(request, case.arrays)
    return {
        (header["tensor"]["kind"], header["tensor"]["path"]): arrays["values"]
        for header, arrays in worker.answers("done")
        if "tensor" in header
    }

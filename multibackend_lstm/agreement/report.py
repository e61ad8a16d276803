"""What a check found: every tensor of every target, and in words who is wrong and where."""

import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from multibackend_lstm import environment
from multibackend_lstm.agreement.comparison import (
    AGREES,
    AGREES_UP_TO,
    ALONE,
    DISAGREES,
    DISAGREES_ABOVE,
    GROUPS,
    HEALTHY_ALONE,
    SUSPICIOUS,
    Comparison,
    json_number,
)
from multibackend_lstm.agreement.known import explanation
from multibackend_lstm.runtimes.noise_floor import ROUNDING

#: Version of `Report.to_json`.
SCHEMA = 2
# Groups that cannot agree where another one disagrees; only the table tells of them then.
_FOLLOWING = {
    ALONE: ("prediction", "gradients", "training"),
    "layers": ("prediction", "gradients", "training"),
    "gradients": ("training",),
}
# Where an error arose, as a worker ends its answer (`runtimes.serve.described`).
_PLACES = re.compile(r" \([^()]*:\d+ in [^()]*\)$")
FAILED, NOT_COMPARED, NONDETERMINISTIC = "failed", "not compared", "nondeterministic"


class DisagreementError(AssertionError):
    """Raised by `Report.raise_if_disagrees`, with the findings."""


@dataclass(frozen=True)
class Finding:
    """One thing that a reader should know, named and placed.

    Attributes:
        target: such as `"torch@cpu"`.
        verdict: `"disagrees"`, `"suspicious"`, `"failed"`, `"not compared"` or
            `"nondeterministic"`.
        group: one of `GROUPS`, or `"target"` for a target that could not run at all.
        path: the first tensor of the group, or of a layer alone, that is off, in the order of
            computation.
        layer: the class of the layer that it belongs to, if there is one.
        message: all of it in a sentence.
        known: the entry of runtimes/upstream.toml that explains it, if there is one.
        operations: of a layer that is off alone, those inside of it that are so too, or, where
            none is and it is off by little, the one that loses most digits.
    """

    target: str
    verdict: str
    group: str
    message: str
    path: str | None = None
    layer: str | None = None
    known: Mapping[str, Any] | None = None
    operations: tuple[str, ...] = ()


@dataclass
class TargetResult:
    """All of one target.

    Attributes:
        target: such as `"torch@cpu"`.
        ready: device, versions and precision switches of its worker; empty if it never started.
        comparisons: every tensor, in the order of computation.
        failed: error by part (`"layers"`, ... or `"target"`).
        not_compared: reason by part.
        opened: of a layer that is off alone, its operations, each alone too; by the layer's path.
        not_opened: why that could not be done.
        distances: root mean square distance of all weights from the truth, by training step.
        seconds: that the worker took.
    """

    target: str
    ready: dict[str, Any] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_compared: dict[str, str] = field(default_factory=dict)
    opened: dict[str, list[Comparison]] = field(default_factory=dict)
    not_opened: dict[str, str] = field(default_factory=dict)
    distances: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0

    def group(self, name: str) -> list[Comparison]:
        """The comparisons of a group."""
        return [c for c in self.comparisons if c.kind in GROUPS[name]]

    @property
    def versions(self) -> dict[str, str]:
        """The versions that matter: not those of the backends beside the target's own."""
        others = {*environment.BACKENDS} - {self.target.partition("@")[0]}
        found = self.ready.get("versions", {})
        return {name: version for name, version in found.items() if name not in others}


@dataclass
class Report:
    """The result of a check.

    Attributes:
        case: name of the model.
        reference: what the targets were compared with, in words.
        float64: whether that was a float64 run, so that it tells who is wrong.
        settings: of the check.
        results: one a target.
        findings: what is off, or could not be told.
        twins: by training step, root mean square and largest distance of the perturbed twins.
        layers: module, class and config by the layer's path.
        reference_backend: that of Keras which computed what the targets were compared with.
        bundles: a line of each finding, with the folder of its bundle; not in JSON.
    """

    case: str
    reference: str
    float64: bool
    settings: dict[str, Any]
    results: list[TargetResult] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    twins: dict[int, tuple[float, float]] = field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    reference_backend: str = ""
    bundles: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether every target ran and none disagrees."""
        return not any(f.verdict in (DISAGREES, FAILED) for f in self.findings)

    @property
    def score(self) -> float:
        """The largest score of a tensor; NaN where nothing was compared."""
        return max((c.score for r in self.results for c in r.comparisons), default=math.nan)

    @property
    def difference(self) -> float:
        """The largest absolute difference from the truth; NaN where nothing was compared."""
        return max((c.max_absolute for r in self.results for c in r.comparisons), default=math.nan)

    def summary(self) -> str:
        """The verdict in a line: the first finding that counts, or the largest score."""
        for verdicts in ((DISAGREES, FAILED), (SUSPICIOUS,)):
            for finding in self.findings:
                if finding.verdict in verdicts:
                    return finding.message
        if math.isnan(self.score):
            return "nothing was compared"
        return (
            f"agrees, {self.score:.2g} times the noise floor, "
            f"largest difference {self.difference:.1e}"
        )

    @property
    def could_not_run(self) -> list[str]:
        """The targets of which a part, or all, could not run."""
        return sorted({f.target for f in self.findings if f.verdict == FAILED})

    @property
    def nothing_compared(self) -> list[str]:
        """The targets of which no tensor was compared."""
        return [result.target for result in self.results if not result.comparisons]

    @property
    def disagreeing(self) -> list[str]:
        """The targets that disagree with the truth."""
        return sorted({f.target for f in self.findings if f.verdict == DISAGREES})

    def raise_if_disagrees(self) -> None:
        """Raise if a target disagrees or could not run.

        Raises:
            DisagreementError: with all findings in its message.
        """
        if not self.agrees:
            raise DisagreementError(
                f"{self.case}: backends do not agree (compared with {self.reference})\n"
                + "\n".join(f"- {finding.message}" for finding in self.findings)
            )

    def table(self, width: int = 100) -> str:
        """Scores by kind of tensor and target, and the findings, as text."""
        from rich.console import Console

        console = Console(file=io.StringIO(), width=width)
        for part in self.renderables():
            console.print(part)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text

    def renderables(self) -> Iterator[Any]:
        """What `table` prints, for a console of rich."""
        from rich.markup import escape
        from rich.table import Table

        # Not as the table's title, which would be broken to the table's width.
        yield f"[bold]{escape(f'{self.case}, compared with {self.reference}')}[/bold]"
        table = Table()
        table.add_column("largest score (tensors)")
        for result in self.results:
            table.add_column(result.target, justify="right")
        kinds = [kind for group in GROUPS.values() for kind in group]
        for kind in kinds:
            cells = [_cell(result, kind) for result in self.results]
            if any(cells):
                table.add_row(kind, *cells)
        yield table
        for verdict, message in told_once(self.findings):
            colour = "red" if verdict in (DISAGREES, FAILED) else "yellow"
            yield f"[{colour}]{verdict}[/{colour}] {escape(message)}"
        if "resolution" in self.settings:
            yield f"[yellow]note[/yellow] {escape(self.settings['resolution'])}"
        if not self.findings:
            yield "[green]All targets agree.[/green]"
        for line in self.noticed():
            yield f"[dim]{escape(line)}[/dim]"
        if (tolerance := self.tolerance()) is not None:
            values = ", ".join(f"{name}={value:.0e}" for name, value in tolerance.items())
            yield f"[dim]For assert_allclose on predictions such as these: {values}.[/dim]"

    def noticed(self) -> list[str]:
        """Which errors of the layers alone, relative to the tensor, would have been found."""
        lines = []
        for what, kinds in (
            ("outputs of the layers", ("layer alone", "layer alone in training")),
            ("their gradients", ("input gradient alone", "weight gradient alone")),
        ):
            found = sorted(
                (c.noticed, c.path)
                for result in self.results
                for c in result.comparisons
                if c.kind in kinds and 0 < c.noticed < math.inf
            )
            if not found:
                continue
            usual = found[len(found) // 2][0]
            most = max(x for x, _ in found if x <= 10 * usual)
            others = {path: x for x, path in found if x > 10 * usual}
            but = ", ".join(
                f"{path!r} ({'which cancels to 0' if x > 1 else f'{x:.0e}'})"
                for path, x in [*others.items()][-3:]
            )
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            line = f"Would have noticed an error of {most:.0e} in all {what}"
            lines.append(f"{line} but {but}{more}." if others else f"{line}.")
        return lines

    def tolerance(self) -> dict[str, float] | None:
        """`rtol` and `atol` for `numpy.testing.assert_allclose` on predictions such as these.

        For those who must write one. They allow what this check does of a whole tensor, and
        twice the farthest element that was seen; None where no prediction agrees.
        """
        found = [
            c
            for result in self.results
            for c in result.comparisons
            if c.kind in GROUPS["prediction"] and c.verdict == AGREES and c.floor > 0
        ]
        if not found:
            return None
        named = self.settings.get("dtype") or "float32"
        relative = 2 * ROUNDING.get(named.removeprefix("mixed_"), ROUNDING["float32"])
        most = max(max(AGREES_UP_TO * c.floor, 2 * c.max_absolute) for c in found)
        return {"rtol": _rounded_up(relative), "atol": _rounded_up(most)}

    def to_json(self) -> dict[str, Any]:
        """All of it in plain values, as docs/report_schema.json describes them."""
        return {
            "schema": SCHEMA,
            "case": self.case,
            "reference": self.reference,
            "float64": self.float64,
            "reference_backend": self.reference_backend,
            "noticed": self.noticed(),
            "tolerance": self.tolerance(),
            "agrees": self.agrees,
            "settings": self.settings,
            "findings": [
                {
                    **vars(finding),
                    "known": finding.known and dict(finding.known),
                    "operations": list(finding.operations),
                }
                for finding in self.findings
            ],
            "targets": [
                {
                    "target": result.target,
                    "worker": result.ready,
                    "seconds": round(result.seconds, 3),
                    "failed": result.failed,
                    "not_compared": result.not_compared,
                    "distances": {s: json_number(d) for s, d in result.distances.items()},
                    "comparisons": [c.to_json() for c in result.comparisons],
                    "opened": {
                        path: [c.to_json() for c in found] for path, found in result.opened.items()
                    },
                    "not_opened": result.not_opened,
                }
                for result in self.results
            ],
            "twins": {
                step: {"rms": json_number(rms), "largest": json_number(most)}
                for step, (rms, most) in self.twins.items()
            },
        }

    def dumps(self) -> str:
        """`to_json` as text."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """A page that needs no network: findings, scores, plots, and every tensor.

        Raises:
            ImportError: if the extra `plot` is not installed.
        """
        try:
            from multibackend_lstm.agreement.page import render
        except ModuleNotFoundError as error:
            raise ImportError(
                f"the page of a report needs {error.name}, which is not installed: "
                f"{environment.install_command('plot')}",
                name=error.name,
            ) from error
        return render(self)


def told_once(findings: Iterable[Finding]) -> Iterator[tuple[str, str]]:
    """Verdict and message; what several targets meet alike is one message, with all their names."""
    targets: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        rest = finding.message
        if finding.verdict in (FAILED, NOT_COMPARED) and rest.startswith(finding.target):
            rest = rest.removeprefix(finding.target)
            named = targets.setdefault((finding.verdict, rest), [])
            if finding.target not in named:
                named.append(finding.target)
        else:
            targets.setdefault((finding.verdict, rest), [])
    for (verdict, rest), named in targets.items():
        yield verdict, ", ".join(named) + rest


def _rounded_up(x: float) -> float:
    """To one digit."""
    unit = 10.0 ** math.floor(math.log10(x))
    return float(f"{math.ceil(x / unit) * unit:.0e}")


def _cell(result: TargetResult, kind: str) -> str:
    found = [c for c in result.comparisons if c.kind == kind]
    if not found:
        return ""
    worst = max(found, key=lambda c: c.score)
    colour = {AGREES: "green", SUSPICIOUS: "yellow", DISAGREES: "red"}[worst.verdict]
    return f"[{colour}]{worst.score:.3g}[/{colour}] ({len(found)})"


def findings_of(report: Report) -> list[Finding]:
    """What is off in a report: every layer that is off alone, then the first tensor of a group.

    A finding that a known disagreement explains is named after it.
    """
    findings, doubted = [], set()
    for result in report.results:
        for comparison in result.group(ALONE):
            if comparison.layer not in doubted and _truth_stands_alone(report, result, comparison):
                doubted.add(comparison.layer)
                findings.append(_doubt(report, result, comparison))
    for result in report.results:
        found = [*_alone_findings(report, result, doubted), *_target_findings(report, result)]
        findings += [_explained(report, result, finding) for finding in found]
    return findings


def _truth_stands_alone(report: Report, result: TargetResult, c: Comparison) -> bool:
    """Whether two other backends differ from the truth in the same way, and none is with it."""
    against, beside = _sides(report, result, c)
    return len(against) > 1 and not beside


def _sides(report: Report, result: TargetResult, c: Comparison) -> tuple[set[str], set[str]]:
    """Backends that are off as this target is; those but the truth's own that agree with it."""
    against = {_backend(target) for target in (result.target, *c.peers)}
    return against, _with_verdict(report, c, AGREES) - {report.reference_backend}


def _with_verdict(report: Report, c: Comparison, verdict: str) -> set[str]:
    """Backends whose tensor of the same layer has a verdict."""
    return {
        _backend(other.target)
        for other in report.results
        for found in other.group(ALONE)
        if (found.kind, found.path, found.verdict) == (c.kind, c.path, verdict)
    }


def _backend(target: str) -> str:
    return target.partition("@")[0]


def _doubt(report: Report, result: TargetResult, c: Comparison) -> Finding:
    """The finding that the backend of the truth is wrong, or float64 no measure."""
    backend = report.reference_backend
    kind = report.layers.get(c.layer or "", {}).get("class_name")
    where = f"{c.kind} {c.path!r} ({kind})"
    others = " and ".join((result.target, *c.peers))
    worst = f"Worst at {list(c.worst)}: {c.values[0]:.8g}, {c.values[1]:.8g} in the truth"
    if backend in _sides(report, result, c)[0]:
        message = (
            f"all of {others} agree with each other within noise in {where}, and differ from the "
            f"truth: the dtype does more than the twins show, such as to a constant. {worst}"
        )
        return Finding(result.target, SUSPICIOUS, ALONE, message, c.path, kind)
    named = [r.target for r in report.results if _backend(r.target) == backend]
    target = named[0] if named else f"{backend} (the reference)"
    message = (
        f"{target} stands alone in {where}, and the truth, which {backend} computes too, is in "
        f"doubt: {others} agree with each other within noise, and differ from it. {worst}"
    )
    finding = Finding(target, DISAGREES, ALONE, message, c.path, kind)
    own = [r for r in report.results if r.target == target]
    return _explained(report, own[0] if own else TargetResult(target), finding)


def _alone_findings(
    report: Report, result: TargetResult, doubted: set[str | None]
) -> Iterator[Finding]:
    """One for every layer that is off alone, but where the truth is in doubt."""
    by_layer: dict[str | None, list[Comparison]] = {}
    for comparison in result.group(ALONE):
        by_layer.setdefault(comparison.layer, []).append(comparison)
    for layer, comparisons in by_layer.items():
        off = [c for c in comparisons if c.verdict == SUSPICIOUS]
        if off and layer not in doubted:
            finding = _finding(report, result.target, SUSPICIOUS, ALONE, off[0], len(off))
            message = (
                f"{finding.message}. Every other backend is off there by as much, "
                f"{report.reference_backend} in the same dtype too: the dtype does more than the "
                "twins show, such as to a constant"
            )
            yield replace(finding, message=message)
        off = [c for c in comparisons if c.verdict == DISAGREES]
        if off and layer not in doubted:
            finding = _finding(report, result.target, DISAGREES, ALONE, off[0], len(off))
            inner = _guilty_operations(result, layer)
            if inner:
                message = f"{finding.message}. Inside of it: {', '.join(inner)}"
                finding = replace(finding, message=message, operations=inner)
            elif farthest := _farthest_operation(result, layer, off):
                message = (
                    f"{finding.message}. Inside of it no operation is off alone; {farthest} is the "
                    "farthest"
                )
                finding = replace(finding, message=message, operations=(farthest,))
            against, beside = _sides(report, result, off[0])
            others = _with_verdict(report, off[0], DISAGREES) - against
            if all(c.assigned for c in off):
                message = (
                    f"{finding.message}. The layer assigns this weight while it is called: the "
                    "gradient is by the weight as it was before on jax, and as it is afterwards "
                    "on tensorflow and torch. Who is wrong cannot be told"
                )
                finding = replace(finding, message=message)
            elif len(against) > 1:
                message = (
                    f"{finding.message}. {', '.join(off[0].peers)} differ in the same way, and "
                    f"{', '.join(sorted(beside))} do not: who is wrong cannot be told"
                )
                finding = replace(finding, message=message)
            elif others and not beside:
                message = (
                    f"{finding.message}. {', '.join(sorted(others))} differ from the truth too, "
                    "and not in the same way: who is wrong cannot be told"
                )
                finding = replace(finding, message=message)
            yield finding
        changing = [c for c in comparisons if c.nondeterministic]
        if changing:
            yield Finding(
                result.target,
                NONDETERMINISTIC,
                ALONE,
                f"{result.target} gave two results for {changing[0].kind} {changing[0].path!r}: "
                "how far they are apart is a part of the floor",
                changing[0].path,
            )


def _explained(report: Report, result: TargetResult, finding: Finding) -> Finding:
    if finding.verdict not in (DISAGREES, FAILED):
        return finding
    known = explanation(
        target=finding.target,
        group=finding.group,
        failed=finding.verdict == FAILED,
        message=finding.message,
        layer=layer_path(report.layers, finding.path or ""),
        layers=report.layers,
        versions=result.ready.get("versions", {}),
        operations=finding.operations,
    )
    if known is None:
        return finding
    message = f"{finding.message}. Known: {known['title']} ({known['upstream']})"
    # Digits that are lost, and no more, do not fail a test.
    lost = finding.verdict == DISAGREES and known.get("precision_only", False)
    return replace(
        finding, known=known, message=message, verdict=SUSPICIOUS if lost else finding.verdict
    )


def _guilty_operations(result: TargetResult, layer: str | None) -> tuple[str, ...]:
    """Those inside of a layer that are off alone, in the order of computation."""
    off = [c.layer for c in result.opened.get(layer or "", []) if c.verdict == DISAGREES]
    return tuple(dict.fromkeys(f"operation {name}" for name in off))


def _farthest_operation(
    result: TargetResult, layer: str | None, off: Sequence[Comparison]
) -> str | None:
    """The operation that loses most digits, of a layer that is off by little: it adds to it.

    None where all are as near as healthy ones, or the layer is off by more than lost digits.
    """
    inside = result.opened.get(layer or "", [])
    most = max(inside, key=lambda c: c.worst_score, default=None)
    if most is None or most.worst_score <= HEALTHY_ALONE:
        return None
    by_much = any(c.score > DISAGREES_ABOVE or c.problem for c in off)
    return None if by_much else f"operation {most.layer}"


def _target_findings(report: Report, result: TargetResult) -> Iterator[Finding]:
    target = result.target
    by_error: dict[str, tuple[str, list[str]]] = {}
    for part, error in result.failed.items():  # once, though each part meets it somewhere else
        by_error.setdefault(_PLACES.sub("", error), (error, []))[1].append(part)
    for error, parts in by_error.values():
        what = "could not run" if "target" in parts else f"failed in {' and '.join(parts)}"
        yield Finding(target, FAILED, parts[0], f"{target} {what}: {error}")
    for part, reason in result.not_compared.items():
        message = f"{target}: {part} not compared: {reason}"
        yield Finding(target, NOT_COMPARED, part, message)
    guilty = {c.layer for c in result.group(ALONE) if c.verdict != AGREES}
    consequences = {ALONE, *(_FOLLOWING[ALONE] if guilty else ())}
    for group in GROUPS:
        if group in consequences:
            continue
        comparisons = result.group(group)
        if group == "gradients":
            comparisons = comparisons[::-1]  # as they are computed, from the last layer back
        for verdict in (DISAGREES, SUSPICIOUS):
            off = [c for c in comparisons if c.verdict == verdict]
            if off:
                before = comparisons[: 1 + comparisons.index(off[0])]
                # What a layer that is off alone does to the model from there on is nothing new.
                if not any(layer_path(report.layers, c.path) in guilty for c in before):
                    yield _finding(report, target, verdict, group, off[0], len(off))
                if verdict == DISAGREES:
                    consequences.update(_FOLLOWING.get(group, ()))
                break


def _finding(
    report: Report, target: str, verdict: str, group: str, first: Comparison, count: int
) -> Finding:
    path = first.layer or layer_path(report.layers, first.path)
    if path is None and first.kind == "output of a second batch":
        path = _only_stateful(report.layers)
    layer = report.layers.get(path or "", {}).get("class_name")
    where = f"{first.kind} {first.path!r}" + (f" ({layer})" if layer else "")
    from_what = "the float64 truth" if report.float64 else report.reference
    if first.problem:
        what = first.problem
        if first.worst:
            what += f", first at {list(first.worst)}: {first.values[0]:.6g}, where {from_what} "
            what += f"has {first.values[1]:.6g}"
    else:
        own = f" ({first.worst_score:.3g} times its own floor)" if first.worst_score else ""
        what = (
            f"{first.score:.3g} times the noise floor from {from_what}; worst at "
            f"{list(first.worst)}{own}: {first.values[0]:.8g} in place of {first.values[1]:.8g}"
        )
    alone = group == ALONE
    verb = "disagrees" if verdict == DISAGREES else "is suspicious"
    message = f"{target} {verb} {'in' if alone else 'from'} {where}{'' if alone else ' on'}: {what}"
    if count > 1:
        message += f" ({count} tensors of the {'layer' if alone else group} in all)"
    return Finding(target, verdict, group, message, first.path, layer)


def _only_stateful(layers: Mapping[str, Any]) -> str | None:
    """The one stateful layer: whose state it is if the first batch is right and the second not."""
    found = [name for name, layer in layers.items() if (layer["config"] or {}).get("stateful")]
    return found[0] if len(found) == 1 else None


def layer_path(layers: Mapping[str, Any], path: str) -> str | None:
    """The layer that a tensor's or a variable's path belongs to."""
    plain = path.split("[")[0].split(" (")[0]
    if plain in layers:
        return plain
    # A variable's path starts with the model's name and ends with its own.
    found = [name for name in layers if f"/{name}/" in f"/{plain}/"]
    return max(found, key=len, default=None)

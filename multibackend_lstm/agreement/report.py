"""What a check found: every tensor of every target, and in words who is wrong and where."""

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from multibackend_lstm import environment
from multibackend_lstm.agreement.comparison import (
    AGREES,
    DISAGREES,
    GROUPS,
    SUSPICIOUS,
    Comparison,
    json_number,
)
from multibackend_lstm.agreement.known import explanation

#: Version of `Report.to_json`.
SCHEMA = 1
# Groups that cannot agree where another one disagrees; only the table tells of them then.
_FOLLOWING = {"layers": ("prediction", "gradients", "training"), "gradients": ("training",)}
FAILED, NOT_COMPARED = "failed", "not compared"


class DisagreementError(AssertionError):
    """Raised by `Report.raise_if_disagrees`, with the findings."""


@dataclass(frozen=True)
class Finding:
    """One thing that a reader should know, named and placed.

    Attributes:
        target: such as `"torch@cpu"`.
        verdict: `"disagrees"`, `"suspicious"`, `"failed"` or `"not compared"`.
        group: one of `GROUPS`, or `"target"` for a target that could not run at all.
        path: the first tensor of the group that is off, in the order of computation.
        layer: the class of the layer that it belongs to, if there is one.
        message: all of it in a sentence.
        known: the entry of runtimes/upstream.toml that explains it, if there is one.
    """

    target: str
    verdict: str
    group: str
    message: str
    path: str | None = None
    layer: str | None = None
    known: Mapping[str, Any] | None = None


@dataclass
class TargetResult:
    """All of one target.

    Attributes:
        target: such as `"torch@cpu"`.
        ready: device, versions and precision switches of its worker; empty if it never started.
        comparisons: every tensor, in the order of computation.
        failed: error by part (`"layers"`, ... or `"target"`).
        not_compared: reason by part.
        distances: root mean square distance of all weights from the truth, by training step.
        seconds: that the worker took.
    """

    target: str
    ready: dict[str, Any] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_compared: dict[str, str] = field(default_factory=dict)
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
    """

    case: str
    reference: str
    float64: bool
    settings: dict[str, Any]
    results: list[TargetResult] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    twins: dict[int, tuple[float, float]] = field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)

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
        for finding in self.findings:
            colour = "red" if finding.verdict in (DISAGREES, FAILED) else "yellow"
            yield f"[{colour}]{finding.verdict}[/{colour}] {escape(finding.message)}"
        if "resolution" in self.settings:
            yield f"[yellow]note[/yellow] {escape(self.settings['resolution'])}"
        if not self.findings:
            yield "[green]All targets agree.[/green]"

    def to_json(self) -> dict[str, Any]:
        """All of it in plain values, as docs/report_schema.json describes them."""
        return {
            "schema": SCHEMA,
            "case": self.case,
            "reference": self.reference,
            "float64": self.float64,
            "agrees": self.agrees,
            "settings": self.settings,
            "findings": [
                {**vars(finding), "known": finding.known and dict(finding.known)}
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


def _cell(result: TargetResult, kind: str) -> str:
    found = [c for c in result.comparisons if c.kind == kind]
    if not found:
        return ""
    worst = max(found, key=lambda c: c.score)
    colour = {AGREES: "green", SUSPICIOUS: "yellow", DISAGREES: "red"}[worst.verdict]
    return f"[{colour}]{worst.score:.3g}[/{colour}] ({len(found)})"


def findings_of(report: Report) -> list[Finding]:
    """What is off in a report, target by target, the first tensor of each group that is off.

    A finding that a known disagreement explains is named after it.
    """
    return [
        _explained(report, result, finding)
        for result in report.results
        for finding in _target_findings(report, result)
    ]


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
    )
    if known is None:
        return finding
    message = f"{finding.message}. Known: {known['title']} ({known['upstream']})"
    return replace(finding, known=known, message=message)


def _target_findings(report: Report, result: TargetResult) -> Iterator[Finding]:
    target = result.target
    for part, error in result.failed.items():
        what = "could not run" if part == "target" else f"failed in {part}"
        yield Finding(target, FAILED, part, f"{target} {what}: {error}")
    for part, reason in result.not_compared.items():
        message = f"{target}: {part} not compared: {reason}"
        yield Finding(target, NOT_COMPARED, part, message)
    consequences: set[str] = set()
    for group in GROUPS:
        if group in consequences:
            continue
        comparisons = result.group(group)
        if group == "gradients":
            comparisons = comparisons[::-1]  # as they are computed, from the last layer back
        for verdict in (DISAGREES, SUSPICIOUS):
            off = [c for c in comparisons if c.verdict == verdict]
            if off:
                yield _finding(report, target, verdict, group, off[0], len(off))
                if verdict == DISAGREES:
                    consequences.update(_FOLLOWING.get(group, ()))
                break


def _finding(
    report: Report, target: str, verdict: str, group: str, first: Comparison, count: int
) -> Finding:
    path = layer_path(report.layers, first.path)
    if path is None and first.kind == "output of a second batch":
        path = _only_stateful(report.layers)
    layer = report.layers[path]["class_name"] if path is not None else None
    where = f"{first.kind} {first.path!r}" + (f" ({layer})" if layer else "")
    from_what = "the float64 truth" if report.float64 else report.reference
    if first.problem:
        what = first.problem
        if first.worst:
            what += f", first at {list(first.worst)}: {first.values[0]:.6g}, where {from_what} "
            what += f"has {first.values[1]:.6g}"
    else:
        what = (
            f"{first.score:.3g} times the noise floor from {from_what}; worst at "
            f"{list(first.worst)}: {first.values[0]:.8g} in place of {first.values[1]:.8g}"
        )
    verb = "disagrees from" if verdict == DISAGREES else "is suspicious from"
    message = f"{target} {verb} {where} on: {what}"
    if count > 1:
        message += f" ({count} tensors of the {group} in all)"
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

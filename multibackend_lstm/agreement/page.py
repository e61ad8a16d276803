"""The page of an agreement report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from multibackend_lstm.agreement.comparison import (
    AGREES_UP_TO,
    ALONE_UP_TO,
    DISAGREES_ABOVE,
    GROUPS,
)
from multibackend_lstm.pages import figure, template

if TYPE_CHECKING:
    from multibackend_lstm.agreement import Comparison, Finding, Report


def render(report: Report) -> str:
    """The page of an agreement report.

    Args:
        report: what `agreement.check` returned.

    Returns:
        A page with findings, scores, plots, every tensor, and what each target ran on.
    """
    kinds = [kind for group in GROUPS.values() for kind in group]
    found = {c.kind for result in report.results for c in result.comparisons}
    return template("agreement/page.html.jinja").render(
        report=report,
        kinds=[kind for kind in kinds if kind in found],
        worst=_worst_by_kind(report),
        scores=_scores(report, kinds),
        trajectories=_trajectories(report),
        opened=[_opened(report, finding) for finding in report.findings],
        agrees_up_to=AGREES_UP_TO,
        disagrees_above=DISAGREES_ABOVE,
        alone_up_to=ALONE_UP_TO,
    )


def _opened(report: Report, finding: Finding) -> list[Comparison]:
    """The operations inside of the layer that a finding names, if it was opened."""
    for result in report.results:
        if result.target == finding.target:
            paths = {c.layer for c in result.comparisons if c.path == finding.path}
            return [c for path, found in result.opened.items() if path in paths for c in found]
    return []


def _worst_by_kind(report: Report) -> dict[tuple[str, str], tuple[Comparison, int]]:
    """By target and kind, the tensor with the largest score, and how many tensors there are."""
    worst: dict[tuple[str, str], tuple[Comparison, int]] = {}
    for result in report.results:
        for comparison in result.comparisons:
            key = (result.target, comparison.kind)
            so_far, count = worst.get(key, (comparison, 0))
            worst[key] = (max(so_far, comparison, key=lambda c: c.score), count + 1)
    return worst


# Scores below are drawn there: 0, for one, which a logarithmic axis has no place for.
_LOWEST_SCORE = 1e-2
_MARKERS = "os^Dv<>P"


def _scores(report: Report, kinds: list[str]) -> str | None:
    """Every tensor's score in the order of computation, as an SVG element."""
    order = _in_order(report, kinds)
    if not order:
        return None
    group_of = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
    position = {key: index for index, key in enumerate(order)}
    finite = [c.score for r in report.results for c in r.comparisons if c.score < math.inf]
    top = 10 * max(DISAGREES_ABOVE, *finite) if finite else 10 * DISAGREES_ABOVE
    with figure(11, 4.4) as (drawing, drawn):
        axes = drawing.subplots()
        for index, result in enumerate(report.results):
            points = sorted((position[c.kind, c.path], c.score) for c in result.comparisons)
            if not points:
                continue
            heights = [min(max(score, _LOWEST_SCORE), top) for _, score in points]
            (line,) = axes.plot(
                [x for x, _ in points],
                heights,
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4,
                linewidth=0.8,
                alpha=0.8,
                label=result.target,
            )
            axes.plot(
                [x for x, score in points if score == math.inf],
                [top] * sum(score == math.inf for _, score in points),
                linestyle="",
                marker="x",
                markersize=9,
                markeredgewidth=2,
                color=line.get_color(),
                clip_on=False,
            )
        axes.axhline(AGREES_UP_TO, color="#c77700", linestyle="--", linewidth=1)
        axes.axhline(DISAGREES_ABOVE, color="#b00020", linestyle="--", linewidth=1)
        axes.set_yscale("log")
        axes.set_ylim(_LOWEST_SCORE / 2, top * 2)
        axes.set_xlim(-0.7, len(order) - 0.3)
        for limit, text in (
            (AGREES_UP_TO, "suspicious above"),
            (DISAGREES_ABOVE, "disagrees above"),
        ):
            axes.annotate(
                text,
                (1, limit),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 2),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color="#555",
            )
        groups = [group_of[kind] for kind, _ in order]
        starts = [groups.index(group) for group in dict.fromkeys(groups)]
        for start in starts[1:]:
            axes.axvline(start - 0.5, color="#ccc", linewidth=0.8)
        # On two lines in turn, since a group may be one tensor wide.
        labels = ["\n" * (index % 2) + f"{groups[x]} →" for index, x in enumerate(starts)]
        axes.set_xticks(starts, labels, ha="left")
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("score (distance from the truth / noise floor)")
        axes.grid(axis="y", alpha=0.3)
        drawing.legend(loc="outside upper center", ncols=min(len(report.results), 6), frameon=False)
    return drawn[0]


def _in_order(report: Report, kinds: list[str]) -> list[tuple[str, str]]:
    """Kind and path of every tensor of any target, kind by kind, each as it was computed."""
    keys = dict.fromkeys((c.kind, c.path) for r in report.results for c in r.comparisons)
    return sorted(keys, key=lambda key: kinds.index(key[0]))


def _trajectories(report: Report) -> str | None:
    """How far the weights are from the truth by training step, as an SVG element."""
    results = [result for result in report.results if result.distances]
    if not results or not report.twins:
        return None
    steps = sorted(report.twins)
    columns = min(len(results), 3)
    rows = math.ceil(len(results) / columns)
    with figure(max(3.7 * columns, 5), 3.1 * rows) as (drawing, drawn):
        panels = drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, result in zip(panels, results, strict=False):
            rms, largest = zip(*(report.twins[step] for step in steps), strict=True)
            axes.fill_between(
                steps, rms, largest, color="#9db8d9", alpha=0.6, label="twins, rms to largest"
            )
            axes.plot(steps, rms, color="#5f86b3", linewidth=1)
            own = sorted(result.distances)
            axes.plot(
                own,
                [result.distances[step] for step in own],
                "o-",
                color="#b0413e",
                markersize=4,
                label="target",
            )
            axes.set_title(result.target, fontsize=10)
            axes.set_yscale("log")
            if steps[-1] > 20:
                axes.set_xscale("log")
            else:
                axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        for axes in list(panels)[len(results) :]:
            axes.set_visible(False)
        drawing.supxlabel("training step", fontsize=10)
        drawing.supylabel("distance of the weights, rms", fontsize=10)
        drawing.legend(
            *axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
        )
    return drawn[0]

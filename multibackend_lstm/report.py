"""HTML reports that need no network: plots are SVG inside the page. Needs the extra `plot`."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from multibackend_lstm.solutions import SOLUTIONS

if TYPE_CHECKING:
    from multibackend_lstm.agreement import Comparison, Report


def render_demo(document: dict[str, Any]) -> str:
    """The demo's report.

    Args:
        document: the content of `results.json`.

    Returns:
        A page with the table of differences, confusion matrices and training curves.
    """
    from multibackend_lstm.agreement.comparison import AGREES_UP_TO
    from multibackend_lstm.data import load_basic_motions

    others = sorted({name for s in document["solutions"] for name in s["largest_difference"]})
    return _template("report_demo.html.jinja").render(
        document=document,
        others=others,
        advice=SOLUTIONS,
        class_names=load_basic_motions().class_names,
        curves=_training_curves(document["solutions"]),
        agrees_up_to=AGREES_UP_TO,
    )


def _template(name: str) -> jinja2.Template:
    """A template of the package, whose values are escaped and must all be given."""
    environment = jinja2.Environment(
        loader=jinja2.BaseLoader(), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["short"] = _short
    return environment.from_string((files("multibackend_lstm") / name).read_text(encoding="utf-8"))


def _short(number: float) -> str:
    """A number for a table."""
    return "∞" if number == math.inf else f"{number:.3g}"


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure, and a list that gets its SVG element at the end."""
    # Text stays text, and names of elements do not change from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "multibackend_lstm"}):
        figure, drawn = Figure(figsize=(width, height), layout="constrained"), list[str]()
        yield figure, drawn
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    text = svg.getvalue()
    drawn.append(text[text.index("<svg") :])


def _training_curves(solutions: list[dict[str, Any]]) -> str:
    """Loss and accuracy of every solution by epoch, as an SVG element."""
    with _figure(10, 3.6) as (figure, drawn):
        for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for solution in solutions:
                values = solution["history"][key]
                axes.plot(range(1, len(values) + 1), values, label=solution["solution"])
            axes.set_xlabel("epoch")
            axes.set_ylabel(f"training {key}")
            axes.grid(alpha=0.3)
        axes.legend()
    return drawn[0]


def render_agreement(report: Report) -> str:
    """The page of an agreement report.

    Args:
        report: what `agreement.check` returned.

    Returns:
        A page with findings, scores, plots, every tensor, and what each target ran on.
    """
    from multibackend_lstm.agreement.comparison import AGREES_UP_TO, DISAGREES_ABOVE
    from multibackend_lstm.agreement.report import GROUPS

    kinds = [kind for group in GROUPS.values() for kind in group]
    found = {c.kind for result in report.results for c in result.comparisons}
    return _template("report_agreement.html.jinja").render(
        report=report,
        kinds=[kind for kind in kinds if kind in found],
        worst=_worst_by_kind(report),
        scores=_scores(report, kinds),
        trajectories=_trajectories(report),
        agrees_up_to=AGREES_UP_TO,
        disagrees_above=DISAGREES_ABOVE,
    )


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
    from multibackend_lstm.agreement.comparison import AGREES_UP_TO, DISAGREES_ABOVE
    from multibackend_lstm.agreement.report import GROUPS

    order = _in_order(report, kinds)
    if not order:
        return None
    group_of = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
    position = {key: index for index, key in enumerate(order)}
    finite = [c.score for r in report.results for c in r.comparisons if c.score < math.inf]
    top = 10 * max(DISAGREES_ABOVE, *finite) if finite else 10 * DISAGREES_ABOVE
    with _figure(11, 4.4) as (figure, drawn):
        axes = figure.subplots()
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
        figure.legend(loc="outside upper center", ncols=min(len(report.results), 6), frameon=False)
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
    with _figure(max(3.7 * columns, 5), 3.1 * rows) as (figure, drawn):
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
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
        figure.supxlabel("training step", fontsize=10)
        figure.supylabel("distance of the weights, rms", fontsize=10)
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
        )
    return drawn[0]

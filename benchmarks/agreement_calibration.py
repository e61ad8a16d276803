"""What do healthy models score, what do faulty ones, and where do thresholds part them?

    python benchmarks/agreement_calibration.py               # all, 20 to 60 minutes on 2 cores
    python benchmarks/agreement_calibration.py --tables      # Markdown, from the committed JSON
    python benchmarks/agreement_calibration.py --plot        # docs/images/agreement_calibration.svg

The healthy models are those of tests/zoo/random_models.py, the faults those of
tests/zoo/faults.py. Each model's scores are noted in `--work` as soon as they are
there, and a run that was broken off goes on from them; delete the file after a change of the
method.
"""

import argparse
import collections
import json
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np

from multibackend_lstm.agreement.comparison import AGREES_UP_TO, DISAGREES_ABOVE, GROUPS
from multibackend_lstm.runtimes.workers import Workers

ROOT = Path(__file__).parents[1]
NAME = "agreement_calibration"
QUESTION = "What do healthy models score, and what do injected faults?"
TARGETS = ("jax@cpu", "torch@cpu", "tensorflow@cpu")
KINDS = [kind for group in GROUPS.values() for kind in group]
QUANTILES = (0.5, 0.9, 0.99, 0.999)
# Bounds of the histogram's bins: five a decade.
BOUNDS = [10 ** (k / 5) for k in range(-15, 41)]
# Models after which the workers start anew, so that compiled functions do not pile up.
FRESH_WORKERS = 50


def main() -> None:
    """Measure, or print or draw what was measured."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", type=int, default=101, help="a seed")
    parser.add_argument("--first", type=int, default=0, help="number of the first model")
    parser.add_argument("--only", choices=("healthy", "faults"), help="one half")
    default = Path(tempfile.gettempdir(), f"{NAME}.jsonl")
    parser.add_argument("--work", type=Path, default=default, help="notes of a run under way")
    parser.add_argument("--tables", action="store_true", help="print Markdown tables and end")
    parser.add_argument("--plot", action="store_true", help="draw the plot and end")
    arguments = parser.parse_args()
    if arguments.tables:
        print(tables(_results()))
        return
    if not arguments.plot:
        measure(arguments)
    plot(_results())


def _results() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((common.RESULTS / f"{NAME}.json").read_text())
    return document


def measure(arguments: argparse.Namespace) -> None:
    """Run what `--work` does not hold yet, and write the results."""
    warnings.filterwarnings("ignore", message=".*destroy the mask.*")
    # Here models are only built; NumPy does so without a compiler.
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    # Most of the time goes into JAX's compiler, which takes a third less so. At level 0 XLA
    # computes a value twice, rounded differently, and the gradient of a maximum becomes NaN.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
    # Where workers find the zoo, too: they import from what this process imports from.
    sys.path.insert(0, str(ROOT / "tests"))
    notes = _notes(arguments.work)
    if arguments.only != "faults":
        wanted = [
            (index, seed)
            for index in range(arguments.first, arguments.first + arguments.models)
            for seed in range(arguments.seeds)
        ]
        healthy(arguments.work, [pair for pair in wanted if pair not in _keys(notes)])
    if arguments.only != "healthy":
        faulty(arguments.work, {note["fault"] for note in notes if "fault" in note})
    notes = _notes(arguments.work)
    path = common.write_results(NAME, QUESTION, summarised(notes))
    print(f"wrote {path}", file=sys.stderr)


def _notes(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in work.read_text().splitlines()] if work.exists() else []


def _keys(notes: list[dict[str, Any]]) -> set[tuple[int, int]]:
    return {(note["index"], note["seed"]) for note in notes if "seed" in note}


def _note(work: Path, note: dict[str, Any]) -> None:
    with work.open("a") as file:
        file.write(json.dumps(note) + "\n")


def healthy(work: Path, wanted: list[tuple[int, int]]) -> None:
    """Compare healthy models, and note every tensor's score."""
    from zoo import random_models

    start, workers = time.perf_counter(), None
    for done, (index, seed) in enumerate(wanted):
        if done % FRESH_WORKERS == 0:
            if workers is not None:
                workers.close()
            workers = Workers(TARGETS)
        drawn = random_models.draw(seed, index)
        report = drawn.checked(workers, seed)
        scores: dict[str, dict[str, list[Any]]] = {}
        for result in report.results:
            kinds = scores.setdefault(result.target, collections.defaultdict(list))
            for found in result.comparisons:
                kinds[found.kind].append([_short(found.score), found.path])
        layers = [layer["class_name"] for layer in report.layers.values()]
        findings = [finding.message for finding in report.findings]
        _note(
            work,
            {
                "seed": seed,
                "index": index,
                "layers": layers,
                "training": [drawn.loss, drawn.optimizer],
                "xla_flags": os.environ["XLA_FLAGS"],
                "findings": findings,
                "scores": scores,
            },
        )
        most = max(_all_scores(scores))
        seconds = (time.perf_counter() - start) / (done + 1)
        print(
            f"{done + 1}/{len(wanted)} model {seed}/{index}: up to {most[0]:.3g} ({most[1]}), "
            f"{seconds:.1f} s a model",
            *(f"\n    {message}" for message in findings),
            file=sys.stderr,
            flush=True,
        )
    if workers is not None:
        workers.close()


def _short(score: float) -> float | str:
    return float(f"{score:.4g}") if math.isfinite(score) else str(score)


def _all_scores(scores: dict[str, Any]) -> Iterator[tuple[float, str]]:
    for target, kinds in scores.items():
        for kind, found in kinds.items():
            for score, path in found:
                yield float(score), f"{kind} {path} on {target}"


def faulty(work: Path, done: set[str]) -> None:
    """Inject each fault into its target, and note the score of the tensor that it is blamed on."""
    from zoo import faults

    with Workers(TARGETS) as workers:
        for fault in faults.FAULTS.values():
            if fault.name in done:
                continue
            report = faults.checked(fault, workers)
            found = [f for f in report.findings if f.target == fault.target]
            (finding,) = [f for f in found if f.group == fault.group]
            scores = [
                comparison.score
                for result in report.results
                if result.target == fault.target
                for comparison in result.group(fault.group)
                if comparison.path == finding.path
            ]
            note = {
                "fault": fault.name,
                "target": fault.target,
                "group": fault.group,
                "layer": finding.layer,
                "path": finding.path,
                "score": _short(max(scores)),
            }
            _note(work, note)
            print(f"{fault.name}: {note['score']} ({note['path']})", file=sys.stderr, flush=True)


def summarised(notes: list[dict[str, Any]]) -> dict[str, Any]:
    """Distributions of the healthy scores by kind and by target, and the faults' scores."""
    models = [note for note in notes if "seed" in note]
    by_kind: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
    by_target: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
    for note in models:
        for target, kinds in note["scores"].items():
            for kind, found in kinds.items():
                for score, path in found:
                    where = f"model {note['seed']}/{note['index']}: {path} on {target}"
                    by_kind[kind].append((float(score), where))
                    by_target[target].append((float(score), where))
    return {
        "models": len(models),
        "seeds": sorted({note["seed"] for note in models}),
        "xla_flags": dict(collections.Counter(note["xla_flags"] for note in models)),
        "findings": [message for note in models for message in note["findings"]],
        "layers": dict(
            sorted(collections.Counter(name for n in models for name in n["layers"]).items())
        ),
        "bounds": [float(f"{bound:.4g}") for bound in BOUNDS],
        "by_kind": {kind: _distribution(by_kind[kind]) for kind in KINDS if kind in by_kind},
        "by_target": {target: _distribution(found) for target, found in by_target.items()},
        "faults": [note for note in notes if "fault" in note],
    }


def _distribution(found: list[tuple[float, str]]) -> dict[str, Any]:
    scores = np.array([score for score, _ in found])
    largest, where = max(found)
    # A score of 0, no distance at all, counts in the first bin.
    counts, _ = np.histogram(np.clip(scores, BOUNDS[0], BOUNDS[-1]), BOUNDS)
    return {
        "tensors": len(found),
        "quantiles": {str(q): _short(float(np.quantile(scores, q))) for q in QUANTILES},
        "largest": _short(largest),
        "where": where,
        "histogram": counts.tolist(),
    }


def tables(document: dict[str, Any]) -> str:
    """The tables of docs/agreement_calibration.md."""
    results = document["results"]
    lines = []
    for title, key in (("tensor", "by_kind"), ("target", "by_target")):
        lines += [
            f"| {title} | number | median | 90 % | 99 % | 99.9 % | largest |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for name, found in results[key].items():
            numbers = [*found["quantiles"].values(), found["largest"]]
            cells = " | ".join(f"{float(number):.2f}" for number in numbers)
            lines.append(f"| {name} | {found['tensors']} | {cells} |")
        lines.append("")
    lines += ["| fault | target | first in | layer | score |", "|---|---|---|---|---:|"]
    for fault in sorted(results["faults"], key=lambda fault: float(fault["score"])):
        score = f"{float(fault['score']):,.0f}".replace("inf", "∞")
        lines.append(
            f"| {fault['fault']} | {fault['target']} | {fault['group']} | "
            f"{fault['layer'] or 'no layer: the optimizer'} | {score} |"
        )
    return "\n".join(lines)


def plot(document: dict[str, Any]) -> None:
    """Healthy scores by kind beside those of the faults, with the thresholds."""
    import matplotlib
    from matplotlib.figure import Figure

    results = document["results"]
    bounds = np.array(results["bounds"])
    kinds = list(results["by_kind"])
    figure = Figure(figsize=(9, 0.45 * len(kinds) + 2.2), layout="constrained")
    axes = figure.subplots()
    rows = [*kinds, "injected faults"]
    for row, kind in enumerate(kinds):
        counts = np.array(results["by_kind"][kind]["histogram"], float)
        heights = 0.85 * counts / counts.max()
        axes.bar(bounds[:-1], heights, np.diff(bounds), row, align="edge", color="tab:blue")
        largest = float(results["by_kind"][kind]["largest"])
        axes.plot([largest], [row + 0.1], "o", color="tab:blue", markersize=4)  # too few for a bar
    # An infinite score stands at the right edge.
    faults = [min(float(fault["score"]), bounds[-1]) for fault in results["faults"]]
    axes.plot(faults, [len(kinds) + 0.3] * len(faults), "|", color="tab:red", markersize=14)
    for threshold, words in ((AGREES_UP_TO, "agrees up to"), (DISAGREES_ABOVE, "disagrees above")):
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            f" {words} {threshold:g} ",
            (threshold, len(rows)),
            ha="right" if threshold == AGREES_UP_TO else "left",
            fontsize=8,
        )
    axes.set(xscale="log", xlabel="score", xlim=(bounds[0], bounds[-1] * 1.5))
    axes.set_ylim(0, len(rows) + 0.5)
    axes.set_yticks([row + 0.3 for row in range(len(rows))], rows)
    axes.set_title(
        f"{results['models']} healthy random models on {len(results['by_target'])} backends, and "
        f"{len(faults)} injected faults",
        fontsize=10,
    )
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "multibackend_lstm"}):
        figure.savefig(common.IMAGES / f"{NAME}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

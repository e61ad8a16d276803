"""`multibackend-lstm demo`: train every solution on real sensor data, compare the backends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibackend_lstm import environment
from multibackend_lstm.cli.shared import DEFAULT_BACKEND, CouldNotRun
from multibackend_lstm.environment import BACKENDS
from multibackend_lstm.files import check_writable, replacing
from multibackend_lstm.solutions import SOLUTIONS, Solution

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from multibackend_lstm.demo import Result


@click.command()
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    help=f"Backend to train on. {DEFAULT_BACKEND}",
)
@click.option(
    "--all-backends",
    is_flag=True,
    help="Train on each installed backend in turn, in a folder of its own below --out.",
)
@click.option(
    "--solution",
    "solutions",
    type=click.Choice(list(SOLUTIONS)),
    multiple=True,
    help="Solution to train; may be given several times. Default: all.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs. Default: each solution's own.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for the models, results.json and report.html.",
)
@click.option("--json", "as_json", is_flag=True, help="Print results.json instead of a table.")
def demo(
    backend: str | None,
    all_backends: bool,
    solutions: tuple[Solution, ...],
    epochs: int | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Classify real wearable-sensor data by every solution, and compare the backends.

    Trains on BasicMotions (40 cases of 100 steps, 2 sensors, 3 axes), saves each model, loads it
    on every installed backend in a process of its own, and compares the predictions for the 40 test
    cases with a float64 run, as agree does.

    Ends with status 0 if all backends agree, 1 if one differs by more than rounding explains, 2 for
    wrong use, and 3 if none differs but one is missing or could not run.
    """
    from rich.console import Console

    console = Console(stderr=as_json)
    if all_backends:
        if backend is not None:
            raise click.UsageError("give either --backend or --all-backends")
        options = [f"--seed={seed}", *(f"--solution={name}" for name in solutions)]
        if epochs is not None:
            options.append(f"--epochs={epochs}")
        raise SystemExit(_demo_on_each(console, options, out, as_json))
    chosen = environment.choose_backend(backend)
    environment.set_backend(chosen)
    check_writable(out)
    others = [name for name in environment.installed_backends() if name != chosen]
    for name in BACKENDS:
        if name != chosen and name not in others:
            console.print(
                environment.missing_backend_message(name),
                style="yellow",
                markup=False,
                soft_wrap=True,
            )

    names = solutions or tuple(SOLUTIONS)
    results = _run(console, chosen, others, names, epochs, seed, out)

    from multibackend_lstm import demo as runs

    document = {
        "backend": chosen,
        "seed": seed,
        "versions": environment.versions(),
        "solutions": [runs.to_json(result) for result in results],
    }
    with replacing(out / "results.json") as temporary:
        temporary.write_text(json.dumps(document, indent=1))
    written = [*(result.model for result in results), "results.json"]
    if message := _write_report(document, results, out / "report.html"):
        console.print(message, style="yellow", markup=False, soft_wrap=True)
    else:
        written.append("report.html")

    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        console.print(_table([document]))
        console.print(
            f"Written to {out}/: {', '.join(written)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    unsettled = [result for result in results if not result.agrees]
    for result in unsettled:
        assert result.report is not None
        message = f"{result.solution}: {result.report.summary()}"
        console.print(message, style="red", markup=False, soft_wrap=True)
    if any(result.report and result.report.disagreeing for result in results):
        raise SystemExit(1)
    if unsettled:
        raise SystemExit(3)


def _run(
    console: Console,
    backend: str,
    others: list[str],
    solutions: tuple[Solution, ...],
    epochs: int | None,
    seed: int,
    out: Path,
) -> list[Result]:
    """Train and compare, with a progress bar."""
    from dataclasses import replace
    from functools import partial

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    results: list[Result] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        starting = progress.add_task(f"starting keras on {backend}", total=None)
        from multibackend_lstm import demo as runs

        data = runs.load_data()
        progress.remove_task(starting)
        for solution in solutions:
            settings = runs.SETTINGS[solution]
            if epochs is not None:
                settings = replace(settings, epochs=epochs)
            task = progress.add_task(f"training {solution}", total=settings.epochs)
            results.append(
                runs.train(
                    solution,
                    data,
                    out,
                    settings=settings,
                    seed=seed,
                    on_epoch=partial(progress.advance, task),
                )
            )
        if others:
            task = progress.add_task("comparing the backends", total=len(results))
            on_model = partial(progress.advance, task)
            runs.compare(results, data, out, [backend, *others], on_model)
    return results


def _demo_on_each(console: Console, options: Sequence[str], out: Path, as_json: bool) -> int:
    """Run the demo on each installed backend, and print all rows; the exit status of all.

    Keras keeps one backend for the life of a process, so each gets a process of its own.
    """
    backends = environment.installed_backends()
    if not backends:
        environment.choose_backend()  # raises
    check_writable(out)
    documents, statuses = [], []
    for name in backends:
        command = ["demo", f"--backend={name}", f"--out={out / name}", "--json", *options]
        # Its progress and messages go to the standard error that it shares with this process.
        process = subprocess.run(
            [sys.executable, "-m", "multibackend_lstm", *command],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not process.stdout:
            raise CouldNotRun(f"the demo on {name} ended with status {process.returncode}")
        documents.append(json.loads(process.stdout))
        statuses.append(process.returncode)
    with replacing(out / "results.json") as temporary:
        temporary.write_text(json.dumps(documents, indent=1))
    if as_json:
        click.echo(json.dumps(documents, indent=1))
    else:
        console.print(_table(documents))
        folders = ", ".join(f"{name}/" for name in backends)
        console.print(f"Written to {out}/: {folders}, results.json", markup=False, highlight=False)
    return 1 if 1 in statuses else max(statuses)  # that one differs is certain whatever else failed


def _table(documents: Sequence[dict[str, Any]]) -> Table:
    """A row for each solution and backend that it was trained on, from contents of results.json."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    compared = {
        name
        for document in documents
        for solution in document["solutions"]
        for name in (*solution["largest_difference"], *solution["errors"])
    }
    others = [name for name in BACKENDS if name in compared]
    single = len(documents) == 1
    table = Table(
        box=SIMPLE_HEAD,  # with little around the cells, to fit a terminal of 80 columns
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title=f"BasicMotions, trained on {documents[0]['backend']}" if single else "BasicMotions",
        caption="by backend: largest difference of a predicted probability from float64; "
        "score: over its noise floor"
        if others
        else None,
    )
    table.add_column("solution")
    if not single:
        table.add_column("trained on")
    for heading in ("weights", "train s", "accuracy"):
        table.add_column(heading, justify="right")
    for other in others:
        table.add_column(other, justify="right")
    if others:
        table.add_column("score", justify="right")
    for rows in zip(*(document["solutions"] for document in documents), strict=True):
        for document, row in zip(documents, rows, strict=True):
            differences = {
                name: f"{difference:.1e}" for name, difference in row["largest_difference"].items()
            }
            table.add_row(
                row["solution"],
                *([] if single else [document["backend"]]),
                f"{row['parameters']:,}",
                f"{row['training_seconds']:.1f}",
                f"{row['test_accuracy']:.3f}",
                *(differences.get(other, "failed") for other in others),
                *([_score(row)] if others else []),
            )
    return table


def _score(row: dict[str, Any]) -> str:
    """The largest score of a row's predictions."""
    score = "" if row["score"] is None else f"{float(row['score']):.2g}"
    return score if row["agrees"] else f"[red]{score} DISAGREES[/red]"


def _write_report(document: dict[str, Any], results: list[Result], path: Path) -> str | None:
    """Write the report, or return the message that says what is missing for it."""
    try:
        from multibackend_lstm.demo_page import render_demo
    except ImportError as error:
        return (
            f"report.html is not written, as {error.name} is not installed: "
            f"{environment.install_command('plot')}"
        )
    with replacing(path) as temporary:
        temporary.write_text(render_demo(document), encoding="utf-8")
    return None

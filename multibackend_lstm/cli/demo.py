"""`multibackend-lstm demo`: train every solution on real sensor data, compare the backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibackend_lstm import environment
from multibackend_lstm.environment import BACKENDS, BackendError
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
    help="Backend to train on. Default: KERAS_BACKEND, else JAX, else the first one installed.",
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
    solutions: tuple[Solution, ...],
    epochs: int | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Classify real wearable-sensor data by every solution, and compare the backends.

    Trains on BasicMotions (40 cases of 100 steps, 2 sensors, 3 axes), saves each model, loads it
    on every other installed backend in a process of its own, and compares the predictions for
    the 40 test cases. Ends with status 1 if a backend differs by more than 1e-5.
    """
    from rich.console import Console

    console = Console(stderr=as_json)
    try:
        chosen = environment.choose_backend(backend)
        environment.set_backend(chosen)
        check_writable(out)
    except (BackendError, OSError) as error:
        raise click.ClickException(str(error)) from error
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
    results, failures = _run(console, chosen, others, names, epochs, seed, out)

    from multibackend_lstm import demo as runs

    document = {
        "backend": chosen,
        "seed": seed,
        "tolerance": runs.TOLERANCE,
        "versions": environment.versions(),
        "failed_backends": failures,
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
        console.print(_table(results, chosen, others))
        console.print(
            f"Written to {out}/: {', '.join(written)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    messages = [*failures.values(), *(m for r in results for m in r.errors.values())]
    for message in messages:
        console.print(message, style="red", markup=False, soft_wrap=True)
    if messages or not all(runs.agrees(result) for result in results):
        console.print(f"The backends do not agree within {runs.TOLERANCE:g}.", style="bold red")
        raise SystemExit(1)


def _run(
    console: Console,
    backend: str,
    others: list[str],
    solutions: tuple[Solution, ...],
    epochs: int | None,
    seed: int,
    out: Path,
) -> tuple[list[Result], dict[str, str]]:
    """Train and compare, with a progress bar; the results and the backends that failed."""
    from dataclasses import replace
    from functools import partial

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    results, failures = [], {}
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
        for other in others:
            task = progress.add_task(f"predicting on {other}", total=len(results))
            try:
                runs.compare(results, data, out, other)
            except RuntimeError as error:
                failures[other] = str(error)
            progress.update(task, completed=len(results))
    return results, failures


def _table(results: list[Result], backend: str, others: list[str]) -> Table:
    from rich.table import Table

    table = Table(
        title=f"BasicMotions, trained on {backend}",
        caption="on ...: largest difference of a predicted probability" if others else None,
    )
    table.add_column("solution")
    for heading in ("parameters", "training s", "test accuracy"):
        table.add_column(heading, justify="right")
    for other in others:
        table.add_column(f"on {other}", justify="right")
    for result in results:
        table.add_row(
            result.solution,
            f"{result.parameters:,}",
            f"{result.training_seconds:.1f}",
            f"{result.test_accuracy:.3f}",
            *(
                f"{result.differences[other]:.1e}" if other in result.differences else "failed"
                for other in others
            ),
        )
    return table


def _write_report(document: dict[str, Any], results: list[Result], path: Path) -> str | None:
    """Write the report, or return the message that says what is missing for it."""
    try:
        from multibackend_lstm.report import render_demo
    except ImportError as error:
        return (
            f"report.html is not written, as {error.name} is not installed: "
            "pip install 'multibackend-lstm[plot]'"
        )
    with replacing(path) as temporary:
        temporary.write_text(render_demo(document), encoding="utf-8")
    return None

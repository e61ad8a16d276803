"""`multibackend-lstm doctor`: what is installed, and what is known to go wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@click.argument(
    "model", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def doctor(model: Path | None, as_json: bool) -> None:
    """Print versions, backends, devices, precision and known problems.

    Of a `.keras` file MODEL also which layers draw random numbers in training that are others on
    each backend, as `explain` does.

    Also the backend that Keras takes here. Each installed backend is started in a process of its
    own.

    Ends with status 0 if all of them start, 2 if KERAS_BACKEND or MODEL is wrong, and 3 if one of
    them does not start, KERAS_BACKEND names one that is not installed, or none is.
    """
    from rich.console import Console

    from multibackend_lstm import environment
    from multibackend_lstm.runtimes import probe
    from multibackend_lstm.runtimes.upstream import known_problems

    console = Console(stderr=as_json)
    wrong: environment.BackendError | None = None
    try:  # the backend that the next `import keras` runs on, or why it fails
        chosen = {"backend": environment.choose_backend(known=environment.keras_backends())}
    except environment.BackendError as error:
        wrong, chosen = error, {"error": str(error)}
    of_model = _of_model(model, chosen)  # first, since the file may be at fault
    backends: dict[str, Any] = {}
    with console.status("starting the backends"):
        for name in environment.BACKENDS:
            if name in environment.installed_backends():
                backends[name] = probe.probe(name)
            else:
                backends[name] = {"error": environment.missing_backend_message(name)}
    document = {
        "versions": environment.versions(),
        "chosen_backend": chosen,
        "backends": backends,
        "known_problems": known_problems(),
        **of_model,
    }
    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        _print(console, document)
    installed = environment.installed_backends()
    if isinstance(wrong, environment.BackendError) and not isinstance(
        wrong, environment.NotInstalledError
    ):
        raise SystemExit(2)
    if wrong or not installed or any("error" in backends[name] for name in installed):
        raise SystemExit(3)


def _of_model(model: Path | None, chosen: dict[str, str]) -> dict[str, Any]:
    """What there is to say of a model; nothing where Keras runs on no backend."""
    if model is None or "error" in chosen:
        return {}
    from multibackend_lstm import environment

    environment.set_backend(chosen["backend"])
    from multibackend_lstm.cli.explain import random_rows
    from multibackend_lstm.runtimes.loading import load_keras_model

    return {"model": str(model), "random": random_rows(load_keras_model(model))}


def _print(console: Console, document: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Versions", show_header=False)
    for name, version in document["versions"].items():
        table.add_row(name, version)
    console.print(table)

    chosen = document["chosen_backend"]
    if "error" in chosen:
        console.print(chosen["error"], style="red", markup=False, soft_wrap=True)
    else:
        console.print(f"Keras runs on {chosen['backend']} here; KERAS_BACKEND chooses another.")

    table = Table(title="Backends", show_lines=True)
    for heading in ("backend", "devices", "precision"):
        table.add_column(heading)
    for name, report in document["backends"].items():
        if "error" in report:
            table.add_row(name, escape(report["error"]), "")
        else:
            settings = "\n".join(f"{key}: {value}" for key, value in report["precision"].items())
            table.add_row(name, escape("\n".join(report["devices"])), escape(settings))
    console.print(table)

    problems = document["known_problems"]
    table = Table(
        title=f"Known problems of the installed versions ({len(problems)})", show_lines=True
    )
    table.add_column("problem and remedy", ratio=1)
    table.add_column("upstream")
    for problem in problems:
        table.add_row(
            f"{escape(problem['title'])} [dim]({', '.join(problem['backends'])})[/dim]\n"
            f"[green]{escape(problem['remedy'])}[/green]",
            f"[link={problem['upstream']}]{problem['reference']}[/link]",
        )
    console.print(table)

    if "random" in document:
        from multibackend_lstm.cli.explain import random_lines

        nothing = ["No layer draws random numbers that are others on each backend."]
        for line in [f"{document['model']}:", *(random_lines(document["random"]) or nothing)]:
            console.print(line, markup=False, soft_wrap=True)

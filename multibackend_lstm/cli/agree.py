"""`multibackend-lstm agree`: does one model give the same numbers on every backend and device?"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from multibackend_lstm.cli.shared import CouldNotRun
from multibackend_lstm.environment import (
    NotInstalledError,
    check_variable,
    choose_backend,
    install_command,
    set_backend,
)
from multibackend_lstm.files import check_writable, replacing

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from multibackend_lstm.agreement import Report

DTYPES = ("float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16", "float64")
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_OF_SUITE = (
    *("suite", "only", "results", "bundle", "targets"),
    *("interpreters", "precision", "timeout", "as_json"),
)


def _shapes(context: Any, option: Any, values: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Sizes such as `10,3,5`."""
    for value in values:
        if not re.fullmatch(r"([1-9]\d*(,[1-9]\d*)*)?", value):
            raise click.BadParameter(
                "a shape is its sizes without the batch, each 1 or more, such as 10,3,5. "
                f"Received {value!r}."
            )
    return [tuple(map(int, value.split(","))) if value else () for value in values]


def _names(context: Any, option: Any, value: str | None) -> list[str]:
    """Names with commas between."""
    return value.split(",") if value else []


def _interpreters(context: Any, option: Any, values: tuple[str, ...]) -> dict[str, str]:
    """Backends and their Pythons, `torch=/path/python`."""
    pythons: dict[str, str] = {}
    for value in values:
        backend, _, python = value.partition("=")
        if not backend or not python:
            raise click.BadParameter(
                "a backend, a runtime or a label and its Python are needed, such as "
                f"torch=/path/python or jax#next=/path/python. Received {value!r}."
            )
        if backend in pythons:
            raise click.BadParameter(f"one Python a backend. Received two for {backend}.")
        pythons[backend] = python
    return pythons


@click.command()
@click.argument("model", required=False)
@click.option(
    "--replay",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Check the layer, or part of a model, of a folder that --bundle wrote, in place of MODEL.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Write a folder for each finding to this new folder: the config of the layer that is off "
    "alone, or else of the least part of the model that shows it, the least inputs, a script and "
    "an issue for upstream. With --suite, in a folder of each case.",
)
@click.option(
    "--inputs",
    type=_FILE,
    help="An .npz file: one array, or one an input, by name or as arr_0, arr_1, ... in order. "
    "Default: drawn from the shapes of the model's inputs.",
)
@click.option(
    "--inputs-from",
    metavar="PACKAGE.MODULE:FUNCTION",
    help="A function that returns the inputs, nested as the model takes them.",
)
@click.option(
    "--labels",
    type=_FILE,
    help="An .npz file for the loss: one array an output, by name or as arr_0, ... "
    "Default: drawn to suit the loss.",
)
@click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    callback=_shapes,
    metavar="SIZES",
    help="Shape to draw, without the batch: 10,3,5. Once an input.",
)
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True)
@click.option(
    "--more-inputs",
    callback=_names,
    metavar="NAMES",
    help="Compare layers and predictions on more inputs, made from those: "
    "single,double,tails,zeros,repeated,holes,nan.",
)
@click.option(
    "--targets",
    help="What to compare: torch@cpu,jax@gpu,jax@cpu#next,onnxruntime:model.onnx,tf_keras:old.h5,"
    "torch_module:package.module:function. Default: every installed backend on every device.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Training steps; 0 compares the loss and the gradients alone.",
)
@click.option(
    "--optimizer",
    help="Name of a Keras optimizer, or its config as JSON. Default: the model's own, else adam.",
)
@click.option(
    "--loss",
    help="Name of a Keras loss, or its config as JSON, or a list of these, one an output. Default: "
    "the model's own, else mean_squared_error.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Policy to give every layer. Default: as the model has it.",
)
@click.option(
    "--precision",
    type=click.Choice(["strict", "default"]),
    default="strict",
    show_default=True,
    help="strict turns TF32 and reduced-precision reductions off, and says what it set.",
)
@click.option(
    "--interpreter",
    "interpreters",
    multiple=True,
    callback=_interpreters,
    metavar="BACKEND=PYTHON",
    help="The Python of a backend, or of a target with a label: torch=/path/python, "
    "jax#next=/path/python. May be given several times.",
)
@click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    help="Module that registers custom layers. May be given several times.",
)
@click.option(
    "--twins",
    type=click.IntRange(min=2),
    default=8,
    show_default=True,
    help="Perturbed runs that the noise floor is taken from.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--truth",
    type=_FILE,
    help="Compare with a truth that --save-truth wrote, on its numbers and with its settings.",
)
@click.option(
    "--save-truth",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the truth to this .npz file, for other versions and machines to compare with.",
)
@click.option(
    "--suite",
    type=click.Choice(["keras"]),
    help="In place of MODEL: every layer of Keras with the options that matter.",
)
@click.option(
    "--only", default="", metavar="TEXT", help="Of the suite, cases with this in the name."
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Of the suite: a file of JSON lines, one a case. What it has is not computed again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report as a page to this file.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds that an answer of a target may take.",
)
def agree(
    model: str | None,
    replay: Path | None,
    inputs: Path | None,
    inputs_from: str | None,
    labels: Path | None,
    targets: str | None,
    optimizer: str | None,
    loss: str | None,
    suite: str | None,
    only: str,
    results: Path | None,
    as_json: bool,
    html: Path | None,
    **options: Any,
) -> None:
    """Compare MODEL's numbers on every backend and device with a float64 run.

    MODEL is a .keras file, or package.module:function, a function that returns a model or
    (model, inputs). Outputs of every layer, gradients, and weights after some training steps are
    compared; a target that is further from the truth than rounding explains is named, with the
    first layer that is off.

    Ends with status 0 if all targets agree, 1 if one disagrees, 2 for wrong use, and 3 if none
    disagrees but one could not run, or not all of it.
    """
    from rich.console import Console

    check_variable()
    if sum(x is not None for x in (model, suite, replay)) != 1:
        raise click.UsageError("one of MODEL, --suite and --replay is needed, and one alone.")
    if suite is not None:
        _refuse_options_of_a_model()
        _agree_on_suite(targets, only, results, as_json, options)
    if only or results is not None:
        raise click.UsageError("--only and --results are of --suite.")
    if html is not None:
        _check_html(html)
    if inputs is not None and inputs_from is not None:
        raise click.UsageError("--inputs and --inputs-from are two ways of one thing: give one.")
    if replay is not None and (inputs or inputs_from or options["input_shapes"]):
        raise click.UsageError(
            "--replay holds inputs: leave --inputs, --inputs-from and --input-shape out."
        )
    from multibackend_lstm.agreement import WorkerError, check

    if options["bundle"] is not None:
        set_backend(choose_backend())  # parts of the model are built here
    checked: Any = model
    given: Any = _inputs(inputs) if inputs else inputs_from and _inputs_from(inputs_from)
    if replay is not None:
        set_backend(choose_backend())  # the layer is built here
        from multibackend_lstm.agreement.bundle import replayed

        checked, given = replayed(replay, options["modules"])
    console = Console(stderr=True)
    try:
        with console.status("starting") as status:
            report = check(
                checked,
                given,
                labels and _labels(labels),
                targets=targets.split(",") if targets is not None else None,
                optimizer=_identifier(optimizer, "--optimizer"),
                loss=_identifier(loss, "--loss"),
                progress=status.update,
                **options,
            )
    except WorkerError as error:
        raise CouldNotRun(str(error)) from error
    if as_json:
        click.echo(report.dumps())
    else:
        _print(report)
    for line in report.bundles:
        click.echo(line, err=as_json)
    if html is not None:
        with replacing(html) as temporary:
            temporary.write_text(report.to_html(), encoding="utf-8")
    raise SystemExit(exit_status(report))


def _refuse_options_of_a_model() -> None:
    """Refuse what was given with --suite, and would have no effect: its cases have their own."""
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in _OF_SUITE
        and context.get_parameter_source(str(parameter.name)) != ParameterSource.DEFAULT
    ]
    if given:
        raise click.UsageError(
            f"--suite has models, inputs and settings of its own: leave out {', '.join(given)}."
        )


def _agree_on_suite(
    targets: str | None, only: str, results: Path | None, as_json: bool, options: dict[str, Any]
) -> NoReturn:
    """Compare every layer of Keras; the status is that of `agree` for all cases."""
    from rich.console import Console

    set_backend(choose_backend())  # the models are built here
    from multibackend_lstm.agreement import Workers
    from multibackend_lstm.agreement.suite import run_suite

    console = Console(stderr=True)
    of_workers = {name: options[name] for name in ("interpreters", "precision", "timeout")}
    named = targets.split(",") if targets is not None else None
    with Workers(named, **of_workers) as workers, console.status("starting") as status:
        lines = run_suite(
            workers,
            only=only,
            results=results,
            bundle=options["bundle"],
            progress=status.update,
        )
    if as_json:
        click.echo(json.dumps(lines, indent=1))
    else:
        _print_suite(lines)
    raise SystemExit(suite_status(lines))


def suite_status(lines: list[dict[str, Any]]) -> int:
    """That of `exit_status`, of all cases together; one that is not built could not run."""
    verdicts = {finding["verdict"] for line in lines for finding in line["findings"]}
    if "disagrees" in verdicts:
        return 1
    not_run = any("not_built" in line or line.get("nothing_compared") for line in lines)
    return 3 if "failed" in verdicts or not_run else 0


def _print_suite(lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape

    from multibackend_lstm.agreement.report import Finding, told_once

    console = Console()
    notes: dict[tuple[str, str], list[str]] = {}  # what cases meet alike is told once
    for line in lines:
        if "not_built" in line:
            text = f"[yellow]not built[/yellow] {escape(line['case'])}: {escape(line['not_built'])}"
            console.print(text, soft_wrap=True)
        for verdict, message in told_once(Finding(**finding) for finding in line["findings"]):
            if verdict == "not compared":
                notes.setdefault((verdict, message), []).append(line["case"])
                continue
            colour = "red" if verdict in ("disagrees", "failed") else "yellow"
            text = f"[{colour}]{verdict}[/{colour}] {escape(line['case'])}: "
            console.print(text + escape(message), soft_wrap=True)
    for (verdict, message), names in notes.items():
        where = names[0] if len(names) == 1 else f"{len(names)} cases"
        console.print(f"[yellow]{verdict}[/yellow] {escape(f'{where}: {message}')}", soft_wrap=True)
    for target in lines[0]["targets"]:
        agreeing = sum(_agrees(line, target) for line in lines)
        console.print(f"{agreeing} of {len(lines)} cases agree on {target}.")


def _agrees(line: dict[str, Any], target: str) -> bool:
    """Whether what was compared of a case agrees on a target, and something was."""
    verdicts = {f["verdict"] for f in line["findings"] if f["target"] == target}
    nothing = "not_built" in line or target in line.get("nothing_compared", ())
    return not nothing and not verdicts & {"disagrees", "suspicious", "failed"}


def exit_status(report: Report) -> int:
    """0 agree, 1 a target disagrees, 3 none does but one could not run, or not all of it.

    A disagreement is certain whatever else could not run, so that 1 goes before 3.
    """
    if report.disagreeing:
        return 1
    return 3 if report.could_not_run or report.nothing_compared else 0


def _check_html(path: Path) -> None:
    """Refuse a page that could not be written, before anything is computed."""
    try:
        import multibackend_lstm.agreement.page  # noqa: F401  (it needs what the extra `plot` brings)

        check_writable(path.parent)
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            f"--html needs {error.name}, which is not installed: {install_command('plot')}"
        ) from error


def _arrays(path: Path, option: str) -> dict[str, np.ndarray]:
    """The arrays of a file, in the order of their names' numbers if they are `arr_0`, ..."""
    from multibackend_lstm.runtimes.loading import ModelFileError, read_arrays

    try:
        arrays = read_arrays(path)
    except ModelFileError as error:
        raise click.UsageError(f"{option} must be an .npz file of numbers. {error}") from error
    if not arrays:
        raise click.UsageError(f"{option} must hold at least one array. {path} holds none.")
    if _numbered(arrays):
        return dict(sorted(arrays.items(), key=lambda pair: int(pair[0][4:])))
    return arrays


def _numbered(names: Any) -> bool:
    """Whether the names are those that numpy.savez gives to arrays without a name."""
    return all(re.fullmatch(r"arr_\d+", name) for name in names)


def _inputs(path: Path) -> Any:
    arrays = _arrays(path, "--inputs")
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    return list(arrays.values()) if _numbered(arrays) else arrays


def _labels(path: Path) -> list[np.ndarray]:
    arrays = _arrays(path, "--labels")
    if _numbered(arrays):
        return list(arrays.values())
    return [arrays[name] for name in sorted(arrays)]  # as Keras orders outputs with names


def _inputs_from(place: str) -> Any:
    """What a function gives that stands where the workers find theirs."""
    from multibackend_lstm.runtimes.imports import imported

    if ":" not in place:
        raise click.UsageError(
            f"--inputs-from names a function, as package.module:function. Received {place!r}."
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return imported(place)()


def _identifier(text: str | None, option: str) -> Any:
    """A name, or a config in JSON, or a list of both."""
    if text is None or not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option} is no JSON: {error}. Received {text!r}.") from error


def _print(report: Report) -> None:
    from rich.console import Console

    console = Console()
    for part in report.renderables():
        # Findings keep their line, so that a log can be searched for them.
        console.print(part, soft_wrap=isinstance(part, str))
    console.print(_targets(report))


def _targets(report: Report) -> Table:
    """What each target ran on."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=True)
    precision = report.settings["precision"]
    for heading in ("target", "device", "versions", f"set by {precision} precision"):
        table.add_column(heading, overflow="fold")
    for result in report.results:
        ready = result.ready
        cells = (
            result.target,
            ready.get("device") or "did not start",
            "\n".join(f"{name} {version}" for name, version in result.versions.items()),
            "\n".join(f"{key} = {value}" for key, value in ready.get("set_switches", {}).items())
            or "nothing",
        )
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table

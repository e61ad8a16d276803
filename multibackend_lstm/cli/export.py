"""`multibackend-lstm export`: a saved model as an artefact that runs without Keras, checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibackend_lstm.environment import BACKENDS, CouldNotRunError, check_variable, choose_backend
from multibackend_lstm.export.formats import FORMATS

if TYPE_CHECKING:
    from multibackend_lstm.porting import ExportReport


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Path of the artefact: .onnx, .tflite, .xml (openvino), .pt2 (torch), or a folder "
    "(saved_model).",
)
@click.option("--format", "format", required=True, type=click.Choice(list(FORMATS)))
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Run the artefact, and compare it with Keras.",
)
@click.option(
    "--check-only", is_flag=True, help="Export nothing: compare the artefact that is at --out."
)
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    help="The only backend to try. Default: each that can produce the format, in turn.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Fix the batch size. Default: free.")
@click.option(
    "--time",
    type=click.IntRange(min=1),
    help="Fix the number of time steps. Default: as the model has it, or free.",
)
@click.option(
    "--opset",
    type=click.IntRange(min=1),
    help="Version of ONNX's operators, for --format onnx. Default: the exporter's own choice.",
)
@click.option(
    "--fused",
    is_flag=True,
    help="For --format litert with --batch: each LSTM is one operator where there is no mask. It "
    "keeps its state between calls: reset_all_variables() before each sequence.",
)
@click.option("--overwrite", is_flag=True, help="Replace an artefact at --out.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds that each process may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def export(
    model: Path,
    out: Path,
    format: str,
    check: bool,
    check_only: bool,
    backend: str | None,
    batch: int | None,
    time: int | None,
    opset: int | None,
    fused: bool,
    overwrite: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Export MODEL, a .keras file, for inference without Keras.

    The model is loaded in safe mode on each backend that can produce the format, until one does.
    The artefact runs in its own runtime on random inputs of several batch sizes and lengths, and
    must agree with Keras as closely as its rounding explains (as for agree); otherwise it is not
    written. --no-check leaves that out.

    Ends with status 0 if the artefact was written (and agrees), 1 if it cannot be exported or
    differs, 2 for wrong use or a file that is damaged or unsafe, and 3 if the backend is not
    installed.
    """
    check_variable()
    if backend is not None:
        choose_backend(backend)
    from rich.console import Console

    from multibackend_lstm.porting import ExportError
    from multibackend_lstm.porting import check_export as check_artefact
    from multibackend_lstm.porting import export as export_model
    from multibackend_lstm.runtimes.loading import check_model_file

    console = Console(stderr=True)
    options: dict[str, Any] = {"backend": backend, "batch": batch, "time": time}
    options["timeout"] = timeout
    try:
        check_model_file(model)
        with console.status("starting") as status:
            options["progress"] = status.update
            if check_only:
                report = check_artefact(model, out, format, **options)
            else:
                report = export_model(
                    model,
                    out,
                    format,
                    opset=opset,
                    fused=fused,
                    check=check,
                    overwrite=overwrite,
                    **options,
                )
    except ExportError as error:
        report = error.report
    except CouldNotRunError:
        raise
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error).replace("overwrite=True", "--overwrite")) from error
    if as_json:
        click.echo(report.dumps())
    else:
        _print(report, check_only, time)
    raise SystemExit(0 if report.succeeded else 1)


def _print(report: ExportReport, check_only: bool, time: int | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for attempt, line in zip(report.attempts, str(report).splitlines(), strict=True):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        for note in (*attempt.skipped, *attempt.notes):
            console.print(f"  {note}", soft_wrap=True, markup=False, highlight=False)
        if attempt.checks:
            table = Table("batch", "time", "score", "largest difference", "")
            for check in attempt.checks:
                found = check.report
                verdict = "agrees" if found.agrees else escape(found.summary())
                table.add_row(
                    str(check.batch),
                    "" if check.time is None else str(check.time),
                    f"{found.score:.2g}",
                    f"{found.difference:.1e}",
                    verdict,
                )
            console.print(table)
    last = report.attempts[-1]
    if report.succeeded:
        for spec in last.inputs:
            shape = ", ".join(_axis(axis, size, time) for axis, size in enumerate(spec["shape"]))
            text = f"input {spec['name']}: {spec['dtype']} ({shape})"
            console.print(text, soft_wrap=True, markup=False, highlight=False)
    if not check_only:
        done = "written" if report.succeeded else "not written"
        console.print(f"{report.path}: {done}", soft_wrap=True, markup=False, highlight=False)


def _axis(axis: int, size: int | None, time: int | None) -> str:
    """Size of an axis, and its name where that is known.

    The second is time if it is free or `--time` has fixed it. A step model's is a channel or unit.
    """
    if axis == 0 or (axis == 1 and (size is None or size == time)):
        return f"{('batch', 'time')[axis]} {'free' if size is None else size}"
    return str(size)

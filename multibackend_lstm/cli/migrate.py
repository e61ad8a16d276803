"""`multibackend-lstm migrate`: an old Keras file becomes one that loads in safe mode everywhere."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibackend_lstm import environment
from multibackend_lstm.cli.shared import backend_option
from multibackend_lstm.files import check_writable
from multibackend_lstm.hiding import hidden

if TYPE_CHECKING:
    from multibackend_lstm.agreement import Report
    from multibackend_lstm.migration.migration import Migration

_SUFFIXES = (".h5", ".hdf5", ".keras")
_MOST_LINES = 8  # of candidates for one function


def _reshapes(context: Any, option: Any, values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Lambdas and the shapes that they give, `merge=10,15`."""
    found = {}
    for value in values:
        match = re.fullmatch(r"(.+)=((?:-1|[1-9]\d*)(?:,(?:-1|[1-9]\d*))*)", value)
        if match is None or match[2].split(",").count("-1") > 1:
            raise click.BadParameter(
                "a Lambda's name and its output's sizes without the batch are needed, at most one "
                f"of them -1, such as merge=10,15. Received {value!r}."
            )
        found[match[1]] = tuple(map(int, match[2].split(",")))
    return found


def _replacements(context: Any, option: Any, values: tuple[str, ...]) -> dict[str, str]:
    """Lambdas and what they compute, `last=last_step`."""
    found = {}
    for value in values:
        name, _, computed = value.rpartition("=")
        if not name or not computed:
            raise click.BadParameter(
                "a Lambda's name and what it computes are needed, such as last=last_step. Received "
                f"{value!r}."
            )
        found[name] = computed
    return found


@click.command()
@click.argument("old", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The .keras file to write. Default: none, only report.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="OLD is a folder: tell, for every model file in it, what would become of it.",
)
@click.option(
    "--upgrade",
    is_flag=True,
    help="Put this package's recurrent layers and TimeDistributed in the place of Keras's.",
)
@click.option(
    "--reshape",
    "reshapes",
    multiple=True,
    callback=_reshapes,
    metavar="NAME=SIZES",
    help="A Lambda that you know to be a reshape to these sizes, without the batch: merge=10,15. "
    "May be given several times.",
)
@click.option(
    "--replace",
    "replacements",
    multiple=True,
    callback=_replacements,
    metavar="NAME=OPERATION",
    help="A Lambda of which you know what it computes: last_step, scale:FACTOR,OFFSET, sum:AXIS, "
    "mean:AXIS, max:AXIS, expand_dims:AXIS, squeeze:AXIS or transpose:AXES, where axis 0 is the "
    "batch. May be given several times.",
)
@click.option("--verify", is_flag=True, help="Compare predictions with those of the old file.")
@click.option(
    "--python",
    metavar="PATH",
    help="An interpreter with tf-keras, to run the old file for --verify. Default: this one.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Let --verify run the functions stored in the old file. Without it they never run.",
)
@backend_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def migrate(
    old: Path,
    out: Path | None,
    dry_run: bool,
    upgrade: bool,
    reshapes: dict[str, tuple[int, ...]],
    replacements: dict[str, str],
    verify: bool,
    python: str | None,
    trust: bool,
    backend: str | None,
    as_json: bool,
) -> None:
    """Turn OLD, a model file of Keras 2, tf.keras or Keras 3, into a new .keras file.

    With --dry-run, OLD is a folder, of which every .h5, .hdf5 and .keras file is opened, in folders
    within it too. One line for each tells what would become of it, and nothing is written.

    Lambda layers whose stored bytecode spells out a common operation are replaced, and those that,
    by the shapes around them, only merge or split axes; nothing stored in OLD is run. Another is
    left, with the --reshape options that would replace it, and then nothing is written.

    Ends with status 0 if the whole model is migrated (and agrees, with --verify; with --dry-run, if
    every file would be), 1 if a function
    is left, a weight is NaN or infinite, or predictions differ, 2 for wrong use or a file that is
    damaged or unsafe, and 3 if --verify could not run the old file, or the backend is not
    installed. With --verify nothing
    is written that was not compared, or that predicts otherwise.
    """
    if (python or trust) and not verify:
        raise click.UsageError("--python and --trust are about --verify, which is not given.")
    twice = sorted(set(reshapes) & set(replacements))
    if twice:
        raise click.UsageError(f"--reshape and --replace both name {twice[0]!r}.")
    if dry_run and (out or verify or reshapes or replacements):
        raise click.UsageError("--dry-run goes with --upgrade, --backend and --json alone.")
    if old.is_dir() != dry_run:
        raise click.UsageError(
            f"{old} is {'a folder: add --dry-run' if old.is_dir() else 'a file, not a folder'}."
        )
    chosen = environment.choose_backend(backend)
    environment.set_backend(chosen)
    click.get_current_context().with_resource(hidden(_unneeded(chosen)))
    if dry_run:
        raise SystemExit(_survey(old, upgrade, as_json))
    if out is not None:
        check_writable(out.parent)
    import keras

    from multibackend_lstm.migration.migration import check_out
    from multibackend_lstm.migration.migration import migrate as migrate_file
    from multibackend_lstm.migration.verification import VerificationError
    from multibackend_lstm.migration.verification import verify as compare

    if out is not None:
        check_out(old, out)
    migration = migrate_file(
        old,
        # A model that turns out to predict otherwise is not written.
        None if verify else out,
        upgrade=upgrade,
        replacements={
            **{name: keras.layers.Reshape(sizes) for name, sizes in reshapes.items()},
            **replacements,
        },
    )
    reports: dict[int, Report] = {}
    failure = None
    if verify and migration.model is not None:
        try:
            reports = compare(migration.model, old, python=python, trust=trust)
        except VerificationError as error:
            failure = str(error)
        if (
            out is not None
            and failure is None
            and all(report.agrees for report in reports.values())
        ):
            migration.save(out)
    if as_json:
        click.echo(json.dumps(_document(migration, reports, failure), indent=1))
    else:
        _print(migration, reports)
        if failure is not None:
            written = "" if out is None else " Nothing is written."
            click.echo(f"Not verified: {failure}.{written}", err=True)
    if not migration.complete or not all(r.agrees for r in reports.values()):
        raise SystemExit(1)
    raise SystemExit(0 if failure is None else 3)


def _unneeded(chosen: str) -> set[str]:
    """Backends that Keras is to leave alone, where it was not imported before this command.

    No layer that computes with TensorFlow whatever the backend is migrated, and no code of others
    runs here: what --verify runs, it runs in other processes.
    """
    return set() if "keras" in sys.modules else {"jax", "tensorflow"} - {chosen}


def _survey(folder: Path, upgrade: bool, as_json: bool) -> int:
    """Print what would become of every model file in a folder; the exit status."""
    import keras

    from multibackend_lstm.migration.migration import migrate as migrate_file
    from multibackend_lstm.runtimes.loading import ModelFileError

    outcomes: list[dict[str, str]] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in _SUFFIXES and p.is_file()):
        try:
            migration = migrate_file(path, upgrade=upgrade)
        except ModelFileError as error:
            outcome, detail = "refused", str(error).removeprefix(f"{path}: ")
        else:
            left = [f"{step.place}: {step.detail}" for step in migration.left]
            outcome = "left" if left else "migrated"
            detail = "; ".join(left) or _where_it_loads(migration)
            if migration.of("not finite"):
                detail += "; a weight is NaN or infinite"
        keras.utils.clear_session()  # one model at a time
        name = str(path.relative_to(folder))
        outcomes.append({"path": name, "outcome": outcome, "detail": " ".join(detail.split())})
        if not as_json:
            click.echo(f"{outcome:8} {name}: {outcomes[-1]['detail']}")
    counts = {
        outcome: sum(item["outcome"] == outcome for item in outcomes)
        for outcome in ("migrated", "left", "refused")
    }
    if as_json:
        click.echo(json.dumps({"files": outcomes, **counts}, indent=1))
    else:
        click.echo(
            f"{len(outcomes)} files: {counts['migrated']} would be migrated, {counts['left']} hold "
            f"functions that are left, {counts['refused']} are refused."
        )
    return 0 if counts["migrated"] == len(outcomes) else 1


def _where_it_loads(migration: Migration) -> str:
    if not migration.needed:
        return "It loads with Keras alone."
    names = ", ".join(migration.needed)
    return f"Before it is loaded, multibackend_lstm has to be imported, for {names}."


def _document(
    migration: Migration, reports: dict[int, Report], failure: str | None
) -> dict[str, Any]:
    return {
        **migration.to_dict(),
        "comparisons": [{"batch": batch, **report.to_json()} for batch, report in reports.items()],
        "not_verified": failure,
    }


def _print(migration: Migration, reports: dict[int, Report]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(title=f"{migration.path}, written by Keras {migration.keras_version}")
    for heading in ("layer", "", "what and why"):
        table.add_column(heading, overflow="fold")
    for step in migration.steps:
        table.add_row(*map(escape, (step.place, step.action, step.detail)))
    console.print(table)
    for batch, report in reports.items():
        click.echo(f"batch {batch}: {report.summary()}")
    for step in migration.left:
        click.echo(f"left: {step.place}: {step.detail}")
        if step.reshapes:
            click.echo("  If it is a reshape, add" + (" one of" if step.reshapes[1:] else ""))
        for reshape in step.reshapes[:_MOST_LINES]:
            click.echo(f"    --reshape {shlex.quote(reshape)}")
        if step.reshapes[_MOST_LINES:]:
            click.echo(f"    and {len(step.reshapes) - _MOST_LINES} more sizes: see --json")
    if migration.left:
        click.echo(
            "Nothing is written. Where you know what a function computes, say so by --reshape or "
            "--replace (see --help), or in Python by migrate(..., replacements={name: layer})."
        )
    elif migration.out is not None:
        click.echo(f"Written: {migration.out}")
    if migration.model is not None:
        click.echo(_where_it_loads(migration))
    if migration.of("replaced") and not reports:
        click.echo(
            "Neither shapes nor names in bytecode prove what a function computed: --verify "
            "compares predictions with the old file's."
        )

"""`multibackend-lstm port`: weights of `torch.nn` modules into `.keras` files, and back."""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibackend_lstm import environment
from multibackend_lstm.cli.shared import AnswerIsNo, backend_option
from multibackend_lstm.files import check_writable, replacing
from multibackend_lstm.hiding import without_jax

if TYPE_CHECKING:
    import keras

    from multibackend_lstm.agreement import Report

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.argument("source", type=_FILE)
@click.argument("model", type=_FILE, required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write: .keras, or (.safetensors, .npz, .pt) for weights.",
)
@click.option(
    "--like",
    type=_FILE,
    help="To PyTorch: weights whose names, dtypes and extra entries to take.",
)
@click.option(
    "--mapping",
    type=_FILE,
    help='What settles an ambiguity, in JSON: {"conv_a": "conv2d_1", "lstm": ["lstm", "lstm_1"]}, '
    "names in PyTorch with the Keras layers they belong to.",
)
@click.option(
    "--flatten-order",
    type=click.Choice(["channels_first", "channels_last"]),
    default="channels_first",
    show_default=True,
    help="How the PyTorch code flattens the output of convolutions: as it comes, or with the "
    "filters moved last before.",
)
@click.option(
    "--key",
    help="Where the weights are in a checkpoint that holds several: the name of an entry, a prefix "
    'of the tensors\' names, or both: "ema", "state_dict.model".',
)
@click.option(
    "--module",
    metavar="PACKAGE.MODULE:FUNCTION",
    help="A function that builds the torch module. It is imported and called, and the whole model "
    "is compared with the module, whose settings and ties are known then.",
)
@click.option(
    "--forward",
    metavar="PACKAGE.MODULE:FUNCTION",
    help="With --module: a function of the module and tensors as Keras takes them, that returns "
    "what Keras does. Default: the module is called, with its axes moved where that follows.",
)
@backend_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def port(
    source: Path,
    model: Path | None,
    out: Path,
    like: Path | None,
    mapping: Path | None,
    flatten_order: str,
    key: str | None,
    module: str | None,
    forward: str | None,
    backend: str | None,
    as_json: bool,
) -> None:
    r"""Port weights from PyTorch to a Keras model, or back.

    \b
    port weights.safetensors model.keras --out ported.keras
    port model.keras --out weights.safetensors

    SOURCE is a .safetensors, .npz, .pt or .ckpt file and MODEL the Keras model of the same form; or
    SOURCE is a .keras file alone. Neither is changed, and none of their code is run (of --module
    and --forward it is). Where PyTorch
    is installed, every layer is compared with a torch.nn module on random input, forward and in
    its gradients, before anything is written.

    Ends with status 0 if all is ported, 1 if weights do not fit or that comparison fails (nothing
    is written then), 2 for wrong use or a file that is damaged or unsafe, and 3 if the backend, or
    what reads the file, is not installed.
    """
    to_keras = model is not None
    _check_paths(source, model, out, like, mapping, module)
    _check_module(module, forward, like, key, model)
    chosen = environment.choose_backend(backend)
    if find_spec("torch") is not None:
        import torch  # noqa: F401  (before TensorFlow, which some builds of both need)
    environment.set_backend(chosen)
    if module is None:  # no code of others runs here, which may want it
        click.get_current_context().with_resource(without_jax())
    check_writable(out.parent)

    from multibackend_lstm.torch_weights.errors import (
        MappingError,
        MissingPackageError,
        PortingError,
        WeightFileError,
    )

    options = {"mapping": _mapping(mapping), "flatten_order": flatten_order}
    if module is not None:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            if model is not None:
                rows, check = _to_keras(source, model, out, options, key, module, forward)
            else:
                rows, check = _to_torch(source, like, out, options, key, module, forward)
    except (MappingError, MissingPackageError, WeightFileError):
        raise
    except PortingError as error:
        raise AnswerIsNo(str(error)) from error
    notes = [str(w.message) for w in caught if str(w.message).startswith("porting: ")]
    if check is None:
        notes.append(
            "Not compared with PyTorch, which is not installed: "
            f"{environment.install_command('torch')}"
        )
    ok = check is None or check.agrees
    if as_json:
        document = {
            "source": str(source),
            "out": str(out) if ok else None,
            "direction": "to_keras" if to_keras else "to_torch",
            "backend": chosen,
            "layers": rows,
            "notes": notes,
            "check": check and check.to_json(),
        }
        click.echo(json.dumps(document, indent=1))
    else:
        _print(rows, check, notes, f"{out} written." if ok else "Nothing was written.")
    raise SystemExit(0 if ok else 1)


def _check_paths(
    source: Path,
    model: Path | None,
    out: Path,
    like: Path | None,
    mapping: Path | None,
    module: str | None,
) -> None:
    weights = (".safetensors", ".npz", ".pt", ".pth")
    read = (*weights, ".ckpt")
    if model is None and source.suffix != ".keras":
        raise click.UsageError(
            f"a .keras file is needed: `port {source} MODEL.keras --out {out}` to Keras, or "
            "`port MODEL.keras --out weights.safetensors` to PyTorch."
        )
    wanted = (".keras",) if model is not None else weights
    if out.suffix not in wanted:
        raise click.UsageError(f"--out must end in {' or '.join(wanted)}. Received {out}.")
    if model is not None and (model.suffix != ".keras" or source.suffix not in read):
        raise click.UsageError(
            f"SOURCE must end in {' or '.join(read)}, and MODEL in .keras. Received {source} "
            f"and {model}."
        )
    if like is not None and model is not None:
        raise click.UsageError("--like is for the way to PyTorch: `port MODEL.keras --like FILE`.")
    if mapping is not None and model is None and like is None and module is None:
        raise click.UsageError(
            "--mapping says which names in PyTorch to take, so that it needs them: add --like FILE "
            "or --module."
        )
    for given in (source, model, like):
        if given is not None and out.exists() and out.samefile(given):
            raise click.UsageError(f"--out must not be an input file. Received {out} for both.")


def _check_module(
    module: str | None, forward: str | None, like: Path | None, key: str | None, model: Path | None
) -> None:
    for option, name in (("--module", module), ("--forward", forward)):
        if name is not None and not all(name.partition(":")):
            raise click.UsageError(f"{option} must be PACKAGE.MODULE:FUNCTION. Received {name}.")
    if forward is not None and module is None:
        raise click.UsageError("--forward calls the module, so that it needs --module.")
    if like is not None and module is not None:
        raise click.UsageError("--like and --module both say which names to take: give one.")
    if key is not None and model is None and like is None:
        raise click.UsageError("--key chooses in the weights that are read: give --like FILE.")


def _mapping(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    from multibackend_lstm.runtimes.loading import ModelFileError, check_file, parse_json

    try:
        mapping = parse_json(check_file(path).read_bytes(), str(path))
    except ModelFileError as error:
        raise click.UsageError(f"--mapping must be an object in JSON: {error}") from error
    if not all(
        isinstance(value, str)
        or (isinstance(value, list) and all(isinstance(v, str) for v in value))
        for value in mapping.values()
    ):
        raise click.UsageError(
            "--mapping must be an object of names in PyTorch with one Keras layer each, or a list "
            f'of them: {{"conv_a": "conv2d_1"}}. Received {path}.'
        )
    return mapping


def _to_keras(
    source: Path,
    model: Path,
    out: Path,
    options: dict[str, Any],
    key: str | None,
    module: str | None,
    forward: str | None,
) -> tuple[list[dict[str, Any]], Report | None]:
    from multibackend_lstm.runtimes.loading import load_keras_model
    from multibackend_lstm.torch_weights.conversion import from_torch, plan

    loaded = load_keras_model(model)
    given: Any = source
    if module is not None:
        from multibackend_lstm.torch_weights.modules import built_module, load

        given, key = load(built_module(module), source, key), None
    from_torch(given, loaded, key=key, **options)
    graph, state, pairs = plan(given, loaded, key=key, **options)
    check = _check(graph, state, pairs, loaded, forward)
    if check is None or check.agrees:
        with replacing(out) as temporary:
            loaded.save(temporary)
    return _rows(pairs), check


def _to_torch(
    source: Path,
    like: Path | None,
    out: Path,
    options: dict[str, Any],
    key: str | None,
    module: str | None,
    forward: str | None,
) -> tuple[list[dict[str, Any]], Report | None]:
    from multibackend_lstm.runtimes.loading import load_keras_model
    from multibackend_lstm.torch_weights.conversion import plan, to_torch
    from multibackend_lstm.torch_weights.state_dict import write_state_dict

    loaded = load_keras_model(source)
    target: Any = like
    if module is not None:
        from multibackend_lstm.torch_weights.modules import built_module

        target = built_module(module)
    new = to_torch(loaded, target, key=key, **options)
    graph, state, pairs = plan(new, loaded, **options)
    check = _check(graph, state, pairs, loaded, forward)
    if check is None or check.agrees:
        with replacing(out) as temporary:
            write_state_dict(new if module is None else new.state_dict(), temporary)
    return _rows(pairs), check


def _check(
    graph: Any, state: Any, pairs: Any, model: keras.Model, forward: str | None
) -> Report | None:
    """The comparison with PyTorch; None where it is not installed."""
    if find_spec("torch") is None:
        return None
    import logging

    from multibackend_lstm.torch_weights.checking import check_pairs

    # Each layer is a function of its own, which TensorFlow would warn of.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from multibackend_lstm.runtimes.imports import imported

    call = None if forward is None else imported(forward)
    return check_pairs(graph, state, pairs, model, forward=call)


def _rows(pairs: Any) -> list[dict[str, Any]]:
    return [
        {
            "keras": pair.layer.path,
            "type": type(pair.layer.layer).__name__,
            "torch": [pair.part.names[name] for name in pair.layer.shapes],
            "permuted": any(getattr(w, "columns", None) for w in pair.layer.weights),
        }
        for pair in pairs
    ]


def _print(rows: list[dict[str, Any]], check: Report | None, notes: list[str], last: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table()
    for heading in ("Keras layer", "PyTorch", "features permuted"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = (f"{row['keras']} ({row['type']})", ", ".join(row["torch"]))
        table.add_row(*map(escape, cells), "yes" if row["permuted"] else "")
    console.print(table)
    if check is not None:
        for part in check.renderables():
            console.print(part, soft_wrap=isinstance(part, str))
    for note in notes:
        click.echo(note)
    click.echo(last)

"""`multibackend-lstm explain`: which path serves the recurrent layers of a saved model, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multibackend_lstm import environment
from multibackend_lstm.cli.shared import CouldNotRun, backend_option

if TYPE_CHECKING:
    import keras


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@backend_option
@click.option("--training", is_flag=True, help="Explain a call in training, with its dropout.")
@click.option("--batch", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--time",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Number of steps, and size of any other axis that the model leaves open.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def explain(
    model: Path, backend: str | None, training: bool, batch: int, time: int, as_json: bool
) -> None:
    """Say which path serves each recurrent layer of MODEL, and why no faster one does.

    Also which layers draw random numbers in training that are others on each backend.

    Loads the `.keras` file in safe mode, goes through it with shapes alone, and reports what would
    run in predict (fit with --training). Nothing is computed.

    Ends with status 0 if that is done, 2 for wrong use or a file that is damaged or unsafe, and 3
    if the backend is not installed or the model does not run on it.
    """
    chosen = environment.choose_backend(backend)
    environment.set_backend(chosen)
    from multibackend_lstm.runtimes.loading import cause, load_keras_model

    loaded = load_keras_model(model)
    try:
        _trace(loaded, training, batch, time)
    except Exception as error:  # whatever a foreign model brings up
        raise CouldNotRun(f"{model} does not run on {chosen}: {cause(error)}") from error
    rows, random = _rows(loaded), random_rows(loaded)
    if as_json:
        document = {"model": str(model), "backend": chosen, "layers": rows, "random": random}
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(f"Recurrent layers on {chosen}:" if rows else "There is no recurrent layer.")
        for row in rows:
            click.echo(f"  {_line(row)}")
        for line in random_lines(random):
            click.echo(line)


def _trace(model: keras.Model, training: bool, batch: int, time: int) -> None:
    """Call a model with shapes alone, so that each layer decides as in a call of that size.

    Keras traces it: abstractly on JAX, as a graph on TensorFlow, on the device "meta" on torch.
    There alone a layer that cannot run on that device is computed, by Keras's own choice.
    """
    import keras

    from multibackend_lstm.layers.folding import TracedFunction

    def sized(tensor: keras.KerasTensor) -> keras.KerasTensor:
        shape = (tensor.shape[0] or batch, *(size or time for size in tensor.shape[1:]))
        return keras.KerasTensor(shape, dtype=tensor.dtype)

    # A Sequential model that was loaded has no `input`.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    traced = TracedFunction(lambda given: model(given, training=training))
    traced.compute_output_spec(keras.tree.map_structure(sized, inputs))


def _rows(model: keras.Model) -> list[dict[str, Any]]:
    """What each recurrent layer decided when it was traced."""
    import keras

    from multibackend_lstm.layers.wrapping import sublayers

    rows: dict[str, dict[str, Any]] = {}
    for layer in sublayers(model):
        package = type(layer).__module__.partition(".")[0]
        row: dict[str, Any] = {"layer": layer.name, "type": f"{package}.{type(layer).__name__}"}
        if hasattr(layer, "implementation_report"):
            report = layer.implementation_report()
            row |= {
                "implementation": report.implementation,
                "path": report.path,
                "refused": report.refused,
                "notes": list(report.notes),
            }
        elif isinstance(layer, keras.layers.RNN):
            remedy = []
            if isinstance(layer, (keras.layers.LSTM, keras.layers.GRU)):
                remedy = [f"multibackend_lstm.{type(layer).__name__} takes its place"]
            row |= {"implementation": "keras", "path": "keras", "refused": None, "notes": remedy}
        else:
            continue
        rows[layer.path or layer.name] = row
    return list(rows.values())


def random_rows(model: keras.Model) -> list[dict[str, Any]]:
    """Layers that draw from the backend's own generator, and what takes their place."""
    from multibackend_lstm import layers
    from multibackend_lstm.layers.dropout import drawing_otherwise

    rows = []
    for layer in drawing_otherwise(model):
        package, name = type(layer).__module__.partition(".")[0], type(layer).__name__
        remedy = None
        if package == "keras" and name.removesuffix("Cell") in layers.__all__:
            remedy = f"multibackend_lstm.{name.removesuffix('Cell')} draws the same on each"
        rows.append(
            {"layer": layer.path or layer.name, "type": f"{package}.{name}", "remedy": remedy}
        )
    return rows


def random_lines(rows: list[dict[str, Any]]) -> list[str]:
    """What `random_rows` found, for a reader; nothing where it found nothing."""
    lines = ["In training these draw random numbers that are others on each backend:"]
    for row in rows:
        remedy = f"; {row['remedy']}" if row["remedy"] else ""
        lines.append(f"  {row['layer']} ({row['type']}){remedy}")
    return lines if rows else []


def _line(row: dict[str, Any]) -> str:
    parts = [f"{row['layer']} ({row['type']}): {row['path']} ({row['implementation']})"]
    if row["refused"]:
        parts.append(f"native refused: {row['refused']}")
    return "; ".join([*parts, *row["notes"]])

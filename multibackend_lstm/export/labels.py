"""What an artefact says of itself: names of inputs and outputs, and where it comes from."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
from keras import ops

from multibackend_lstm import __version__
from multibackend_lstm.layers import Normalization
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.runtimes.artefacts import METADATA_FILE, WEIGHTS, flat_order, portable
from multibackend_lstm.runtimes.execution import weights_sha256

#: What the keys of the metadata begin with, where others may write into the same place.
PREFIX = "multibackend_lstm."


def output_names(model: keras.Model, taken: Iterable[str]) -> list[str]:
    """A name for each output in flat order: the keys of a dict, or the names of their layers.

    Args:
        model: functional or Sequential.
        taken: names that are not free; one that is gets a number: `"dense_1"`.
    """
    if isinstance(model, keras.Sequential):  # which has no `output` before it is called
        names = [model.layers[-1].name]
    elif isinstance(model.output, dict) and len(model.output) == len(model.outputs):
        names = sorted(map(str, model.output))  # the order in which Keras flattens them
    else:
        names = model.output_names
    found: list[str] = []
    for name in map(portable, names):
        number, free = 1, name
        while free in {*taken, *found}:
            free = f"{name}_{number}"
            number += 1
        found.append(free)
    return found


def metadata(
    model: keras.Model,
    specs: Sequence[Mapping[str, Any]],
    outputs: Sequence[str],
    model_sha256: str | None,
) -> dict[str, str]:
    """Where an artefact comes from, what its inputs are, and by what it normalises them.

    Args:
        model: with its weights.
        specs: name, shape and dtype of each input.
        outputs: their names.
        model_sha256: of the `.keras` file; None for a model that was given as an object.
    """
    layout = [
        {
            "name": spec["name"],
            "dtype": spec["dtype"],
            "axes": [_axis(position, size) for position, size in enumerate(spec["shape"])],
        }
        for spec in specs
    ]
    found = {
        "version": __version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "inputs": json.dumps(layout),
        "outputs": json.dumps(list(outputs)),
        "normalization": json.dumps(_normalization(model)),
        WEIGHTS: weights_sha256(model),
    }
    return found if model_sha256 is None else {**found, "model_sha256": model_sha256}


def _normalization(model: keras.Model) -> list[dict[str, Any]]:
    """The statistics that are part of the graph; none for a model that takes data as it is."""
    return [
        {
            "layer": layer.name,
            **{
                name: ops.convert_to_numpy(getattr(layer, name)).tolist()
                for name in ("mean", "variance")
            },
        }
        for layer in sublayers(model)
        if isinstance(layer, (Normalization, keras.layers.Normalization))
    ]


def _axis(position: int, size: int | None) -> str | int:
    return ("batch", "time")[position] if size is None else size


def label_onnx(path: str, outputs: Sequence[str], about: Mapping[str, str]) -> None:
    """Name the outputs of an ONNX file, and add the metadata."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    wanted = {value.name: name for value, name in zip(graph.output, outputs, strict=True)}
    mapping = {old: new for old, new in wanted.items() if old != new}
    # Another tensor may have the name already.
    inner = {name for each in _graphs(graph) for name in _names(each)} - wanted.keys()
    mapping |= {name: f"{name}__inner" for name in inner & set(wanted.values())}
    for each in _graphs(graph):
        _rename(each, mapping)
    onnx.helper.set_model_props(model, {f"{PREFIX}{key}": value for key, value in about.items()})
    onnx.save(model, path)


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph, and those inside of its loops and branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                if inner.node:
                    yield from _graphs(inner)


def _names(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield from node.output
    yield from (value.name for value in [*graph.input, *graph.initializer])


def _rename(graph: Any, mapping: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [mapping.get(name, name) for name in node.input]
        node.output[:] = [mapping.get(name, name) for name in node.output]
    for value in [*graph.input, *graph.output, *graph.initializer, *graph.value_info]:
        value.name = mapping.get(value.name, value.name)


def label_openvino(model: Any, names: Sequence[str], outputs: Sequence[str], about: Any) -> None:
    """Name the inputs and outputs of an OpenVINO model, and add the metadata."""
    for places, wanted in ((model.inputs, names), (model.outputs, outputs)):
        for place, name in zip(places, wanted, strict=True):
            place.tensor.set_names({name})
    for key, value in about.items():
        model.set_rt_info(value, ["multibackend_lstm", key])


def label_saved_model(folder: str, about: Mapping[str, str]) -> None:
    """Add the metadata to a SavedModel, in the folder that the format has for it."""
    extra = Path(folder, "assets.extra")
    extra.mkdir(exist_ok=True)
    (extra / METADATA_FILE).write_text(json.dumps(dict(about), indent=1), encoding="utf-8")


def label_litert(path: str, outputs: Sequence[str], about: Mapping[str, str]) -> None:
    """Name the outputs of a LiteRT file, put them in Keras's order, and add the metadata."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(path)
    (signature,) = model.signatureDefs
    found = {output.name.decode(): output for output in signature.outputs}
    for old, new in zip(flat_order(found), outputs, strict=True):
        found[old].name = new
    graph = model.subgraphs[signature.subgraphIndex]
    graph.outputs = [found[old].tensorIndex for old in flat_order(found)]
    entry, buffer = schema.MetadataT(), schema.BufferT()
    entry.name, entry.buffer = METADATA_FILE, len(model.buffers)
    buffer.data = list(json.dumps(dict(about)).encode())
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    flatbuffer_utils.write_model(model, path)

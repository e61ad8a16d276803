"""Carries the arrays of a model file over to a Keras 3 model, once every shape is known to fit."""

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from multibackend_lstm.migration.model_files import ModelFile
from multibackend_lstm.runtimes.loading import ModelFileError

_TOP_LEVEL = "top_level_model_weights"
# Seeds of dropout and the like, which have no meaning on another backend.
_SEEDS = "seed_generator"


def prefixes(layers: list[dict[str, Any]], outer: Sequence[str]) -> dict[int, str]:
    """The path of each layer's arrays in a `.keras` archive, by the id of its configuration.

    Keras names them by class and count: `layers/lstm`, `layers/lstm_1`.
    """
    counts: Counter[str] = Counter()
    found = {}
    for layer in layers:
        name = re.sub(r"\W+", "", layer["class_name"])
        name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
        name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
        suffix = f"_{counts[name]}" if counts[name] else ""
        counts[name] += 1
        found[id(layer)] = "/".join([*outer[-1:], "layers", name + suffix])
    return found


def _stored(file: ModelFile, prefix: str, names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """The arrays of a layer, given by its path in a `.keras` archive and its name (and models')."""
    if file.by_path is not None:
        return [
            (path.removeprefix(f"{prefix}/"), array)
            for path, array in sorted(file.by_path.items())
            if path.startswith(f"{prefix}/") and _SEEDS not in path
        ]
    arrays = list((file.by_layer or {}).get(names[0], {}).items())
    if len(names) > 1:
        arrays = [pair for pair in arrays if pair[0].split("/")[0] == names[-1]]
    return arrays


def first_shape(file: ModelFile, prefix: str, names: Sequence[str]) -> tuple[int, ...] | None:
    """Shape of the first array of a layer: the kernel, where it has one."""
    for _, array in _stored(file, prefix, names):
        return array.shape
    return None


def check_layers(file: ModelFile, names: set[str]) -> None:
    """Refuse arrays that belong to no layer of the model."""
    for layer, arrays in (file.by_layer or {}).items():
        if arrays and layer not in names:
            raise ModelFileError(
                f"the file holds weights {list(arrays)} of {layer!r}, which the model has not"
            )


def check(layer: Any, file: ModelFile, prefix: str, name: str) -> None:
    """Refuse arrays that are not those of a layer: too few, too many, of other shapes."""
    stored = _stored(file, prefix, [name])
    if file.by_path is None:
        wanted = [tuple(v.shape) for v in _in_order(layer)]
        found = [array.shape for _, array in stored]
        _check_names(layer, stored, name)
    else:
        wanted = sorted(tuple(v.shape) for v in _in_order(layer))
        found = sorted(array.shape for _, array in stored)
    if wanted != found:
        raise ModelFileError(
            f"{name}: the layer has weights of shapes {wanted}, and the file holds {found}"
        )


def _in_order(layer: Any) -> list[Any]:
    """The variables of a layer as Keras orders them in HDF5 files, since version 2."""
    if not isinstance(layer, keras.Layer):  # an operation outside of layers
        return []
    return [*layer.trainable_weights, *layer.non_trainable_weights]


def _check_names(layer: Any, stored: list[tuple[str, np.ndarray]], name: str) -> None:
    """Refuse another order: `kernel` and `recurrent_kernel` may well have one shape."""
    wanted = [v.name for v in _in_order(layer)]
    found = [path.split("/")[-1].partition(":")[0] for path, _ in stored]
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        # As Keras 2 calls it.
        found = ["kernel" if name == "depthwise_kernel" else name for name in found]
    if wanted != found:
        raise ModelFileError(
            f"{name}: the layer has weights named {wanted}, and the file holds {found}"
        )


def load(model: keras.Model, file: ModelFile, moved: Mapping[str, str]) -> None:
    """Give a model the file's weights.

    Args:
        model: the migrated model.
        file: the old file.
        moved: where a layer's arrays stand in a `.keras` file of `model`, by their path in `file`.
    """
    if file.by_layer is not None:
        _check_top_level(file)
        for layer in model.layers:
            arrays = file.by_layer.get(layer.name, {}).values()
            for variable, array in zip(_in_order(layer), arrays, strict=True):
                variable.assign(array)
        return
    with tempfile.TemporaryDirectory() as folder:
        # Keras's own file of this model says which array stands where.
        path = Path(folder, "model.weights.h5")
        model.save_weights(path)
        _fill(path, {_moved(place, moved): a for place, a in (file.by_path or {}).items()})
        model.load_weights(path)


def _moved(place: str, moved: Mapping[str, str]) -> str:
    """The path of an array, of which the path of the innermost layer that moved is exchanged."""
    parts = place.split("/")
    for count in range(len(parts) - 1, 0, -1):
        prefix = "/".join(parts[:count])
        if prefix in moved:
            return "/".join([moved[prefix], *parts[count:]])
    return place


def _check_top_level(file: ModelFile) -> None:
    if (file.by_layer or {}).get(_TOP_LEVEL):
        raise ModelFileError("the model has weights outside of its layers, which are not migrated")


def _fill(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Put arrays into a file of weights that has a place for each of them, and no other."""
    arrays = {place: array for place, array in arrays.items() if _SEEDS not in place}
    with h5py.File(path, "r+") as file:
        wanted: dict[str, Any] = {}

        def collect(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and _SEEDS not in name:
                wanted[name] = item

        file.visititems(collect)
        # Keras 2 wrote private attributes, `_query_dense`, which Keras 3 has public names for.
        arrays = {
            place if place in wanted else place.replace("/_", "/"): array
            for place, array in arrays.items()
        }
        if set(wanted) != set(arrays):
            raise ModelFileError(
                "the weights stand elsewhere than Keras 3 looks for them: the file lacks "
                f"{sorted(set(wanted) - set(arrays))} and holds {sorted(set(arrays) - set(wanted))}"
            )
        for place, dataset in wanted.items():
            if dataset.shape != arrays[place].shape:
                raise ModelFileError(
                    f"{place} has shape {arrays[place].shape}, and the layer {dataset.shape}"
                )
            dataset[...] = arrays[place]

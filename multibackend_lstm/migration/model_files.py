"""A model file's configuration and weights as plain data, of which nothing is run or imported.

What is read is checked first, by `runtimes/loading.py`.
"""

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from multibackend_lstm.runtimes.loading import (
    MAX_DEPTH,
    MAX_JSON,
    Budget,
    ModelFileError,
    check_dataset,
    check_file,
    child,
    datasets,
    model_config,
    open_archive,
    parse_json,
    read_member,
    refusing,
    text_attribute,
)

# Arguments of layers that only Keras 1 had.
_KERAS_1 = {
    "border_mode", "consume_less", "inner_activation", "inner_init", "nb_col", "nb_filter",
    "nb_row", "subsample",
}  # fmt: skip
_MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
# What `compile` adds to a model, or to a nested one. Keras 2.15 stores the metrics' variables too.
_OF_COMPILE = re.compile(r"(layers/[^/]+/)*(optimizer|metrics)/")


@dataclass
class ModelFile:
    """What a model file holds.

    Attributes:
        path: the file.
        config: configuration of the model, as it stands in the file.
        keras_version: version of the Keras that wrote it, "1" where it does not say.
        by_layer: in an HDF5 file, arrays by weight name, in order, by layer.
        by_path: in a `.keras` archive, arrays by their path in it, without those of the optimizer
            and of metrics.
        compiled: whether it holds the arguments of `compile`.
    """

    path: Path
    config: dict[str, Any]
    keras_version: str
    by_layer: dict[str, dict[str, np.ndarray]] | None = None
    by_path: dict[str, np.ndarray] | None = None
    compiled: bool = False

    @property
    def keras_2(self) -> bool:
        """Whether Keras 2 or tf.keras wrote it."""
        return int(self.keras_version.partition(".")[0] or 1) < 3

    @property
    def lists_single_tensors(self) -> bool:
        """Whether Keras 3.0 to 3.10 wrote it, which stores one input as a list of one too."""
        version = re.match(r"3\.(\d+)", self.keras_version)
        return version is not None and int(version[1]) < 11

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every array with its place."""
        if self.by_path is not None:
            yield from self.by_path.items()
        for layer, arrays in (self.by_layer or {}).items():
            for name, array in arrays.items():
                yield f"{layer}/{name}", array


def open_model_file(path: str | Path) -> ModelFile:
    """Read a whole model from `.h5`, `.hdf5` or `.keras`, whichever its content is.

    Args:
        path: a file that `Model.save` of Keras 2, tf.keras or Keras 3 wrote.

    Raises:
        ModelFileError: if the file is no such file, truncated, holds weights alone, links to
            other files, names paths outside of itself, or unpacks to far more than it stores.
    """
    path = check_file(path)
    with path.open("rb") as file:
        start = file.read(8)
    with refusing(path, "cannot be read"):
        if start[:4] == b"PK\x03\x04":
            return _open_archive(path)
        if start == b"\x89HDF\r\n\x1a\n":
            with h5py.File(path, "r") as file:
                opened = _open_hdf5(path, file)
                _refuse_keras_1(opened)
                return opened
    raise ModelFileError(
        f"{path} is neither an HDF5 file nor a .keras archive. A whole model is needed, as "
        "`model.save` writes it to .h5, .hdf5 or .keras."
    )


def _open_archive(path: Path) -> ModelFile:
    size = path.stat().st_size
    with open_archive(path) as archive:
        missing = sorted(set(_MEMBERS) - set(archive.namelist()))
        if missing:
            raise ModelFileError(f"the archive lacks {', '.join(missing)}")
        for info in archive.infolist():
            is_assets = info.is_dir() and info.filename.split("/")[0] == "assets"
            if info.filename not in _MEMBERS and not is_assets:
                raise ModelFileError(
                    f"the archive holds {info.filename!r}, beside {', '.join(_MEMBERS)}. Models "
                    "with assets, such as vocabularies, are not migrated."
                )
        config = parse_json(read_member(archive, "config.json", MAX_JSON), "config.json")
        metadata = parse_json(read_member(archive, "metadata.json", MAX_JSON), "metadata.json")
        weights = read_member(archive, "model.weights.h5")
    budget = Budget(size)
    with h5py.File(io.BytesIO(weights), "r") as file:
        by_path = {
            place: _array(dataset, budget)
            for place, dataset in datasets(file, budget)
            if not _OF_COMPILE.match(place)
        }
    return ModelFile(
        path,
        config,
        str(metadata.get("keras_version", "3")),
        by_path=by_path,
        compiled=bool(config.get("compile_config")),
    )


def _open_hdf5(path: Path, file: h5py.File) -> ModelFile:
    config = model_config(file)
    group = child(file, "model_weights")
    if not isinstance(group, h5py.Group):
        raise ModelFileError("`model_weights` is no group")
    version = "1"
    for owner in (file, group):
        if "keras_version" in owner.attrs:
            version = text_attribute(owner, "keras_version").decode()
    budget = Budget(path.stat().st_size)
    by_layer = {}
    for layer in [*_names(group, "layer_names"), "top_level_model_weights"]:
        if layer == "top_level_model_weights" and layer not in group:
            continue
        layer_group = _descend(group, layer)
        by_layer[layer] = {
            name: _array(_descend(layer_group, name), budget)
            for name in _names(layer_group, "weight_names")
        }
    return ModelFile(
        path, config, version, by_layer=by_layer, compiled="training_config" in file.attrs
    )


def _refuse_keras_1(file: ModelFile) -> None:
    """Refuse what Keras 1 wrote, whose layers have other arguments and weights.

    Its first files do not say their version.
    """
    found = set(_keys(file.config)) & _KERAS_1
    if file.keras_version.startswith(("0.", "1.")) or found:
        version = f"Keras {file.keras_version}" if "." in file.keras_version else "Keras 1"
        raise ModelFileError(
            f"{version} wrote it, whose layers have other arguments than those of Keras 2. Let "
            "Keras 2.2 turn it into a file of its own, which is migrated then: in an environment "
            'of Python 3.6, pip install "keras==2.2.4" "tensorflow==1.10.*" "h5py<3" "numpy<1.17", '
            'and keras.models.load_model("old.h5", compile=False).save("keras2.h5")'
        )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _keys(item)


def _names(group: h5py.Group, name: str) -> list[str]:
    """A list of names, which Keras splits into `name0`, `name1`, ... where it is long."""
    keys = [name] if name in group.attrs else []
    while not keys or keys[0] != name:
        key = f"{name}{len(keys)}"
        if key not in group.attrs:
            break
        keys.append(key)
    found: list[str] = []
    for key in keys:
        attribute = group.attrs.get_id(key)
        if math.prod(attribute.shape) * attribute.dtype.itemsize > MAX_JSON:
            raise ModelFileError(f"the attribute `{key}` is not a short list of names")
        found += [n.decode() if isinstance(n, bytes) else str(n) for n in group.attrs[key]]
    if not keys:
        raise ModelFileError(f"the group {group.name!r} has no attribute `{name}`")
    return found


def _descend(group: Any, path: str) -> Any:
    parts = [part for part in path.split("/") if part]
    if not parts or len(parts) > MAX_DEPTH:
        raise ModelFileError(f"{path!r} is no path in the file")
    for part in parts:
        group = child(group, part)
    return group


def _array(dataset: Any, budget: Budget) -> np.ndarray:
    """An array, once it is known to be small enough and to lie in the file itself."""
    check_dataset(dataset, budget)
    if dataset.dtype.kind not in "fiub":
        raise ModelFileError(f"{dataset.name!r} holds {dataset.dtype}, not numbers")
    array: np.ndarray = np.asarray(dataset[()])
    return array

"""Opens a model file that may be old, damaged or hostile: configuration and weights as plain data.

Nothing stored in the file is run, imported or unpickled. What is read is checked first: members and
sizes of the archive, links and sizes in HDF5, size and depth of the JSON.
"""

import io
import json
import math
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

#: Bytes of JSON and of weights that are read at most.
MAX_JSON = 16 << 20
MAX_WEIGHTS = 4 << 30
#: How many times its stored size a member or an array may unpack to, once it is not tiny.
MAX_EXPANSION = 100
HARMLESS = 1 << 20
#: Nesting of JSON and of HDF5 groups, and the number of arrays.
MAX_DEPTH = 64
MAX_ARRAYS = 100_000

_MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
_BROKEN = (OSError, KeyError, ValueError, TypeError, RuntimeError, UnicodeError, AttributeError)


class ModelFileError(ValueError):
    """A file that is no complete Keras model, that is damaged or unsafe."""


@dataclass
class ModelFile:
    """What a model file holds.

    Attributes:
        path: the file.
        config: configuration of the model, as it stands in the file.
        keras_version: version of the Keras that wrote it, "1" where it does not say.
        by_layer: in an HDF5 file, arrays by weight name, in order, by layer.
        by_path: in a `.keras` archive, arrays by their path in it.
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
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start[:4] == b"PK\x03\x04":
            return _open_archive(path)
        if start == b"\x89HDF\r\n\x1a\n":
            with h5py.File(path, "r") as file:
                return _open_hdf5(path, file)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, EOFError, NotImplementedError, *_BROKEN) as error:
        raise ModelFileError(
            f"{path} is truncated or damaged: {str(error).partition(chr(10))[0][:200]}"
        ) from error
    raise ModelFileError(
        f"{path} is neither an HDF5 file nor a .keras archive. A whole model is needed, as "
        "`model.save` writes it to .h5, .hdf5 or .keras."
    )


# ---- .keras archives


def _open_archive(path: Path) -> ModelFile:
    with zipfile.ZipFile(path) as archive:
        _check_members(archive, path.stat().st_size)
        missing = sorted(set(_MEMBERS) - set(archive.namelist()))
        if missing:
            raise ModelFileError(f"the archive lacks {', '.join(missing)}")
        config = _parse(_member(archive, "config.json", MAX_JSON), "config.json")
        metadata = _parse(_member(archive, "metadata.json", MAX_JSON), "metadata.json")
        weights = _member(archive, "model.weights.h5", MAX_WEIGHTS)
    with h5py.File(io.BytesIO(weights), "r") as file:
        by_path = dict(_walk(file, _Budget()))
    return ModelFile(
        path,
        config,
        str(metadata.get("keras_version", "3")),
        by_path=by_path,
        compiled=bool(config.get("compile_config")),
    )


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse what Keras never writes, by the archive's directory."""
    seen: set[str] = set()
    for info in archive.infolist():
        name = info.filename
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise ModelFileError(f"the archive names a path outside of itself, {name!r}")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ModelFileError(f"the archive holds a symbolic link, {name!r}")
        if info.flag_bits & 1:
            raise ModelFileError(f"the member {name!r} is encrypted")
        if name in seen:
            raise ModelFileError(f"the archive holds two members named {name!r}")
        seen.add(name)
        if name not in _MEMBERS and not (info.is_dir() and parts[0] == "assets"):
            raise ModelFileError(
                f"the archive holds {name!r}, beside {', '.join(_MEMBERS)}. Models with assets, "
                "such as vocabularies, are not migrated."
            )
        if _explodes(info.file_size, info.compress_size):
            raise ModelFileError(
                f"the member {name!r} unpacks from {info.compress_size:,} to {info.file_size:,} "
                "bytes, a decompression bomb"
            )
    total = sum(info.file_size for info in archive.infolist())
    if _explodes(total, size):
        raise ModelFileError(f"{size:,} bytes unpack to {total:,}, a decompression bomb")


def _explodes(size: int, stored: int) -> bool:
    return size > HARMLESS and size > MAX_EXPANSION * stored


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member's content, of which no more is unpacked than the directory announces."""
    announced = archive.getinfo(name).file_size
    if announced > limit:
        raise ModelFileError(f"{name} has {announced:,} bytes, more than {limit:,}")
    with archive.open(name) as member:
        content = member.read(announced + 1)
        if len(content) != announced:
            raise ModelFileError(f"{name} has not the {announced:,} bytes that it announces")
    return content


# ---- HDF5


class _Budget:
    """How many arrays and bytes may still be read."""

    def __init__(self) -> None:
        self.bytes = MAX_WEIGHTS
        self.arrays = MAX_ARRAYS

    def spend(self, size: int) -> None:
        self.bytes -= size
        self.arrays -= 1
        if self.bytes < 0 or self.arrays < 0:
            raise ModelFileError(
                f"the file declares more than {MAX_WEIGHTS:,} bytes or {MAX_ARRAYS:,} arrays"
            )


def _open_hdf5(path: Path, file: h5py.File) -> ModelFile:
    if "model_config" not in file.attrs:
        kind = "weights alone" if "layer_names" in file.attrs or "layers" in file else "no model"
        raise ModelFileError(
            f"the file holds {kind}: it has no `model_config`. A whole model is needed, as "
            "`model.save` writes it. To use weights alone, build the model and call "
            "`model.load_weights`."
        )
    config = _parse(_text(file, "model_config"), "model_config")
    group = _child(file, "model_weights")
    if not isinstance(group, h5py.Group):
        raise ModelFileError("`model_weights` is no group")
    version = "1"
    for owner in (file, group):
        if "keras_version" in owner.attrs:
            version = _text(owner, "keras_version").decode()
    budget = _Budget()
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


def _text(owner: Any, name: str) -> bytes:
    """An attribute that holds text, with its size checked before it is read."""
    attribute = owner.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.itemsize > MAX_JSON:
        raise ModelFileError(
            f"the attribute `{name}` is not one text of at most {MAX_JSON:,} bytes"
        )
    value = owner.attrs[name]
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        raise ModelFileError(f"the attribute `{name}` is no text")
    return value


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
        group = _child(group, part)
    return group


def _child(group: Any, name: str) -> Any:
    """A member of a group, unless it is a link: one could lead to any file of this machine."""
    if not isinstance(group, h5py.Group) or name in (".", ".."):
        raise ModelFileError(f"{name!r} is not in the file")
    link = group.get(name, getlink=True)
    if link is None:
        raise ModelFileError(f"the file has no {group.name.rstrip('/')}/{name}")
    if not isinstance(link, h5py.HardLink):
        raise ModelFileError(f"{group.name.rstrip('/')}/{name} is a link, which Keras never writes")
    return group[name]


def _array(dataset: Any, budget: _Budget) -> np.ndarray:
    """An array, once it is known to be small enough and to lie in the file itself."""
    if not isinstance(dataset, h5py.Dataset):
        raise ModelFileError(f"{dataset.name!r} is no array")
    if dataset.is_virtual or dataset.external:
        raise ModelFileError(f"{dataset.name!r} takes its numbers from other files")
    if dataset.dtype.kind not in "fiub" or dataset.shape is None:
        raise ModelFileError(f"{dataset.name!r} holds {dataset.dtype}, not numbers")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if _explodes(size, dataset.id.get_storage_size()):
        raise ModelFileError(
            f"{dataset.name!r} declares {size:,} bytes and stores "
            f"{dataset.id.get_storage_size():,}: it is empty, or a decompression bomb"
        )
    budget.spend(size)
    array: np.ndarray = np.asarray(dataset[()])
    return array


def _walk(group: h5py.Group, budget: _Budget, depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Every array below a group, by its path; the optimizer's are left out."""
    if depth > MAX_DEPTH:
        raise ModelFileError(f"groups are nested more than {MAX_DEPTH} deep")
    for name in group:
        if depth == 0 and name == "optimizer":
            continue
        member = _child(group, name)
        budget.spend(0)
        if isinstance(member, h5py.Group):
            yield from _walk(member, budget, depth + 1)
        else:
            yield member.name.strip("/"), _array(member, budget)


# ---- JSON


def _parse(text: bytes, name: str) -> dict[str, Any]:
    if len(text) > MAX_JSON:
        raise ModelFileError(f"{name} has {len(text):,} bytes, more than {MAX_JSON:,}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ModelFileError(f"{name} is nested too deep") from None
    except ValueError as error:
        raise ModelFileError(f"{name} is no JSON: {error}") from error
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ModelFileError(f"{name} is nested more than {MAX_DEPTH} deep")
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    if not isinstance(value, dict):
        raise ModelFileError(f"{name} is a {type(value).__name__}, where an object is needed")
    return value

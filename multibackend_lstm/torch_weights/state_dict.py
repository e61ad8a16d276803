"""Reading and writing state dicts: torch modules, mappings of arrays, and files.

Nothing here unpickles: `.pt` files are read by `torch.load(weights_only=True)`.
"""

import io
import json
import math
import sys
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from multibackend_lstm.environment import install_command
from multibackend_lstm.runtimes.loading import (
    ModelFileError,
    cause,
    check_expansion,
    check_file,
    check_safetensors_header,
    check_torch_file,
    read_arrays,
    refusing,
)
from multibackend_lstm.torch_weights.errors import (
    MissingPackageError,
    PortingError,
    WeightFileError,
)
from multibackend_lstm.torch_weights.stored_forms import Sources, used_form

#: Of files that are written, and, with `.ckpt`, read.
SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
READ_SUFFIXES = (*SUFFIXES, ".ckpt")


@dataclass(frozen=True)
class StateDict:
    """The tensors of a torch module, as NumPy arrays.

    Attributes:
        tensors: by name, in the form in which modules use them (see `stored_forms`). bfloat16,
            which NumPy lacks, is float32 here, which holds every value.
        ordered: whether the order is that in which the module defines them.
        module: the module, where it is there.
        originals: the tensors as they were given.
        stored: the same, as arrays.
        sources: of each of `tensors`, what it is made of.
    """

    originals: Mapping[str, Any]
    stored: dict[str, np.ndarray]
    ordered: bool = True
    module: Any = None
    tensors: dict[str, np.ndarray] = field(init=False)
    sources: Sources = field(init=False)

    def __post_init__(self) -> None:
        """Bring the tensors into the form in which modules use them."""
        tensors, sources = used_form(self.stored)
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "sources", sources)

    @property
    def modules(self) -> dict[str, Any]:
        """The module's parts by their names, shared ones by each of theirs."""
        if self.module is None:
            return {}
        return dict(self.module.named_modules(remove_duplicate=False))

    @property
    def ties(self) -> dict[str, str]:
        """Names of tensors that are another one too (tied weights), with the first such name."""
        first: dict[Any, str] = {}
        roots = {}
        for name, (sources, part) in self.sources.items():
            place = (*(_memory(self.originals[source]) for source in sources), part)
            roots[name] = first.setdefault(place, name)
        return {name: root for name, root in roots.items() if root != name}


def read_state_dict(source: Any, key: str | None = None) -> StateDict:
    """The tensors of a `torch.nn.Module`, a state dict or a file.

    Args:
        source: one of these. A training checkpoint, a dict or file that holds one state dict
            besides other things, stands for that.
        key: where in a dict or file the state dict is: the name of an entry, a prefix of the
            tensors' names, or both (`"state_dict.model"`).

    Raises:
        PortingError: if it is none of these.
        WeightFileError: (a `PortingError` and a `ModelFileError`) for a file that is not there, is
            damaged or unsafe.
    """
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), key)
    if isinstance(source, keras.layers.Layer):
        raise PortingError(
            f"porting: expected a torch module or its state dict. Received the Keras layer "
            f"'{source.name}': which is which? from_torch(torch module, Keras layer), "
            "to_torch(Keras layer, torch module)."
        )
    torch = sys.modules.get("torch")
    module = None
    if torch is not None and isinstance(source, torch.nn.Module):
        if key is not None:
            raise PortingError(
                "porting: `key` chooses from a checkpoint. Of a module give the part itself, such "
                f"as module.{key}. Received key={key!r} and a {type(source).__name__}."
            )
        module, source = source, source.state_dict()
    if not isinstance(source, Mapping):
        raise PortingError(
            "porting: expected a torch module, a state dict (a mapping of names to arrays), or the "
            f"path of a {', '.join(READ_SUFFIXES)} file. Received an object of type "
            f"{type(source).__module__}.{type(source).__name__}."
        )
    source = _at(source, key) if key else _only_state_dict(source)
    tensors = {str(name): _array(name, value) for name, value in source.items()}
    return StateDict(dict(source), tensors, module=module)


def _only_state_dict(source: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A state dict itself, or the only one that a checkpoint holds."""
    nested = [name for name, value in source.items() if isinstance(value, Mapping)]
    if not nested:
        return source
    weights = [name for name, x in source.items() if _is_tensor(x) and len(x.shape)]
    states = [
        name for name in nested if source[name] and all(map(_is_tensor, source[name].values()))
    ]
    if len(states) == 1 and not weights:
        return dict(source[states[0]])
    raise PortingError(
        "porting: a state dict holds arrays. This one holds further dicts, "
        f"{', '.join(map(repr, nested))}, as training checkpoints do: choose the one that holds "
        f"the weights by `key` (--key), such as key={str((states or nested)[0])!r}."
    )


def _at(source: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
    """What a key chooses: an entry, the tensors of a prefix, or those of a prefix in an entry."""
    rest, found = key, source
    while rest:
        entries = [name for name, value in found.items() if isinstance(value, Mapping)]
        inner = [name for name in entries if f"{rest}.".startswith(f"{name}.")]
        if inner:
            name = max(inner, key=lambda each: len(str(each)))
            found, rest = found[name], rest[len(str(name)) + 1 :]
            continue
        prefix = f"{rest}."
        chosen = {
            str(name).removeprefix(prefix): value
            for name, value in found.items()
            if str(name).startswith(prefix)
        }
        if not chosen:
            there = entries or list(dict.fromkeys(str(name).split(".")[0] for name in found))
            raise PortingError(
                f"porting: `key` must name a dict in the checkpoint, or a prefix of the names of "
                f"its tensors. Received {key!r}, and there are: {', '.join(map(repr, there))}."
            )
        return chosen
    return _only_state_dict(found)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _memory(value: Any) -> Any:
    """What two tensors have in common that are one: where and how their elements lie."""
    if isinstance(value, np.ndarray):
        place, strides = value.__array_interface__["data"][0], value.strides
    else:
        place, strides = value.data_ptr(), value.stride()
    empty = not math.prod(value.shape) or not place  # lies nowhere, as others do
    return id(value) if empty else (place, tuple(value.shape), strides, str(value.dtype))


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        array = value.numpy()
    else:
        raise PortingError(
            f"porting: {name} must be a torch tensor or a NumPy array. Received an object of type "
            f"{type(value).__name__}."
        )
    # NumPy knows no bfloat16, but through ml_dtypes, whose arrays have this name.
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def _read_file(path: Path, key: str | None) -> StateDict:
    if path.suffix not in READ_SUFFIXES:
        raise PortingError(
            f"porting: weights are read from {', '.join(READ_SUFFIXES)} files. Received {path}."
        )
    try:
        check_file(path)
        # The format sorts by dtype and name.
        ordered = path.suffix != ".safetensors"
        if path.suffix == ".npz":
            loaded: Mapping[Any, Any] = read_arrays(path)
        else:
            loaded = _read_pt(path) if ordered else _read_safetensors(path)
    except (FileNotFoundError, ModelFileError) as error:
        raise WeightFileError(f"porting: {error}") from error
    return replace(read_state_dict(loaded, key), ordered=ordered)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    safetensors = _safetensors()
    with refusing(path, "is no whole safetensors file"):
        check_safetensors_header(path)
        try:
            entries = safetensors.deserialize(path.read_bytes())
        except safetensors.SafetensorError as error:
            raise ModelFileError(f"{error}. Copy or download it again.") from error
    dtypes = {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
        "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
        "C64": "<c8",
    }  # fmt: skip
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in dtypes:
            raise PortingError(
                f"porting: {name} in {path} has the dtype {entry['dtype']}. Weights are float16, "
                "bfloat16, float32 or float64; convert it in PyTorch with `.float()`."
            )
        values = np.frombuffer(entry["data"], dtypes[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            values = (values.astype("<u4") << 16).view("<f4")
        tensors[name] = values
    _add_tied(tensors, path)
    return tensors


def _add_tied(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Add the tied tensors that `safetensors.torch.save_model` leaves out, and names."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    left_out = {
        name: kept
        for name, kept in header.get("__metadata__", {}).items()
        if kept in tensors and name not in tensors
    }
    tensors |= {name: tensors[kept] for name, kept in left_out.items()}
    if left_out:
        said = ", ".join(f"{name} is {kept}" for name, kept in left_out.items())
        warnings.warn(
            f"porting: tied weights are left out of {path.name}, which says that {said}: taken so.",
            stacklevel=2,
        )


def _read_pt(path: Path) -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"porting: reading {path} needs torch: {install_command('torch')}. Or save "
            "the weights as safetensors where torch is installed: "
            "safetensors.torch.save_file(module.state_dict(), 'weights.safetensors')."
        ) from error
    with refusing(path, "cannot be loaded"):
        check_torch_file(path)
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch.load and the unpickler in it may raise
            raise ModelFileError(
                "it is no file of tensors alone (torch.load with weights_only=True: "
                f"{cause(error)}). In the program that made it, save `module.state_dict()`, not "
                "the module."
            ) from error
        check_expansion(_size(loaded, torch, set()), path.stat().st_size, "what it holds")
    return loaded


def _size(loaded: Any, torch: Any, seen: set[int]) -> int:
    """Bytes of all tensors by their shapes, of which strides may repeat few that are stored.

    Args:
        loaded: a tensor or a dict; anything else counts nothing.
        torch: the module.
        seen: dicts that were counted, by identity: one that holds another twice, and so on, has
            more paths than can be followed.
    """
    if isinstance(loaded, torch.Tensor):
        return int(loaded.numel() * loaded.element_size())
    if not isinstance(loaded, Mapping) or id(loaded) in seen:
        return 0
    seen.add(id(loaded))
    return sum(_size(value, torch, seen) for value in loaded.values())


def write_state_dict(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors or arrays to a `.safetensors`, `.npz`, `.pt` or `.pth` file.

    Raises:
        PortingError: for another suffix, or if what writes the format is not installed.
        OSError: if the file cannot be written.
    """
    if path.suffix in (".pt", ".pth"):
        try:
            import torch
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"porting: writing {path} needs torch: {install_command('torch')}. "
                "A .safetensors file needs none."
            ) from error
        # Through memory, since of a full disk torch and safetensors have errors of their own kind.
        buffer = io.BytesIO()
        torch.save({name: torch.as_tensor(value) for name, value in state.items()}, buffer)
        path.write_bytes(buffer.getbuffer())
        return
    arrays = {name: _array(name, value) for name, value in state.items()}
    if path.suffix == ".npz":
        _write_npz(path, arrays)
    elif path.suffix == ".safetensors":
        _safetensors()
        from safetensors.numpy import save

        path.write_bytes(save({name: np.ascontiguousarray(x) for name, x in arrays.items()}))
    else:
        raise PortingError(
            f"porting: weights are written to {', '.join(SUFFIXES)} files. Received {path}."
        )


def _safetensors() -> Any:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"porting: .safetensors files need safetensors: {install_command('safetensors')}"
        ) from error
    return safetensors


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As `numpy.savez`, which pickles before NumPy 2 and cannot write every name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

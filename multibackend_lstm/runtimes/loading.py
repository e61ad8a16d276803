"""The one place that opens files of models and arrays: they may be old, damaged or hostile.

Nothing stored in a file is run, imported or unpickled, and no size that a file states is believed:
before anything is unpacked or allocated, members and sizes of archives, links and sizes in HDF5,
headers of arrays, size and depth of JSON are checked against what the file holds.
"""

import functools
import inspect
import io
import json
import math
import os
import stat
import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import h5py
import numpy as np

from multibackend_lstm.runtimes.errors import InputError

if TYPE_CHECKING:
    import keras

#: How many times its stored size something may unpack to, once it is not tiny; and once it is so
#: large that it would fill the memory.
MAX_EXPANSION, TINY = 100, 16 << 20
MAX_LARGE_EXPANSION, LARGE = 4, 256 << 20
#: Numbers that the layers of a model may hold beyond those stored, for what is not saved with it.
SPARE_NUMBERS = 16 << 20
#: Numbers of an input that is drawn, or set up, for a model that has this shape.
MAX_NUMBERS = 32 << 20
#: Bytes of JSON that are read at most.
MAX_JSON = 16 << 20
#: Bytes of a pickle in a `.pt` file, which names the tensors and does not hold them.
MAX_PICKLE = 64 << 20
#: Nesting of JSON and of HDF5 groups, and the number of arrays.
MAX_DEPTH = 64
MAX_ARRAYS = 100_000
#: Bytes in which the header of an array must end; NumPy writes about 100.
MAX_ARRAY_HEADER = 1 << 16

_GIT_LFS = b"version https://git-lfs.github.com/spec/"
_BYTEARRAY = b"bytearray"
_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK"
_BROKEN = (
    OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, EOFError, MemoryError,
    NotImplementedError, OverflowError, SyntaxError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


class ModelFileError(InputError):
    """A file of a model or of arrays that is incomplete, damaged or unsafe, with the remedy."""


@contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Give what goes wrong with a file as a `ModelFileError` of one line that begins with its name.

    Args:
        path: the file.
        what: that it cannot be, such as `"cannot be loaded"`.
    """
    try:
        yield
    except ModelFileError as error:
        message = str(error)
        raise ModelFileError(
            message if message.startswith(str(path)) else f"{path} {what}: {message}"
        ) from error
    except _BROKEN as error:
        raise ModelFileError(
            f"{path} {what}, it is truncated or damaged: {cause(error)}"
        ) from error


def cause(error: BaseException) -> str:
    """What an error says, on one line and without the configuration that Keras quotes in it."""
    message = str(error)
    # Keras names the innermost reason last, below the whole configuration of each layer around it.
    for start in ("Exception encountered:", "Example error message for object"):
        message = message.rpartition(start)[2]
    # What Keras appends: the config, the values of a variable, what Python code can do about it.
    for end in ("Full object config:", "Target variable:", "If you trust the source"):
        message = message.partition(end)[0]
    message = message.strip() or type(error).__name__
    message = message.replace(">:\n\n", ">: ")  # the object, then what is wrong with it
    line = " ".join(message.splitlines()[0].split()) if message.splitlines() else message
    return f"{line[:400]} ..." if len(line) > 400 else line


def check_file(path: str | os.PathLike[str]) -> Path:
    """Refuse what is no regular file with something in it, before it is opened for reading.

    Raises:
        FileNotFoundError: if there is no such file.
        ModelFileError: for a folder, FIFO or device, a file that may not be read, that is empty, or
            that Git LFS has left a pointer of.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):  # before it is opened: to open a FIFO is to wait for its other end
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise ModelFileError(f"{path} must be a regular file, and is a {kind}. Copy it to a file.")
    try:
        with path.open("rb") as file:
            start = file.read(len(_GIT_LFS))
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {error.strerror}. Change its permissions (chmod u+r {path})."
        ) from error
    if not start:
        raise ModelFileError(f"{path} is empty (0 bytes). Copy or download it again.")
    if start == _GIT_LFS:
        raise ModelFileError(f"{path} is a Git LFS pointer: run `git lfs pull`")
    return path


def check_model_file(path: str | os.PathLike[str]) -> Path:
    """Refuse a model file that is damaged, or whose loading could do harm.

    Args:
        path: a `.keras` archive or an HDF5 file, whole as `Model.save` writes it.

    Raises:
        FileNotFoundError: if there is no such file.
        ModelFileError: if it is no regular file, a Git LFS pointer, no such file, truncated, names
            paths outside of itself, links to other files, or declares far more than it holds.
    """
    path = check_file(path)
    _check_model(path)
    return path


def _check_model(path: Path) -> int:
    """Check a model file, and give how many bytes its weights declare, once unpacked."""
    budget = Budget(path.stat().st_size)
    with refusing(path, "cannot be loaded"):
        # What Keras takes for an archive has its directory at the end: one file can be both.
        is_archive, is_hdf5 = zipfile.is_zipfile(path), h5py.is_hdf5(path)
        with path.open("rb") as file:
            start = file.read(len(_HDF5))
        if is_archive:
            _check_keras_archive(path, budget)
        if is_hdf5:
            with h5py.File(path, "r") as file:
                _check_model_hdf5(file, budget)
        if not (is_archive or is_hdf5):
            if start == _HDF5 or start.startswith(_ZIP):
                raise ModelFileError("it is truncated or damaged. Copy or download it again.")
            raise ModelFileError(
                "it is neither an HDF5 file nor a .keras archive. A whole model is needed, as "
                "`model.save` writes it to .keras, .h5 or .hdf5."
            )
    return budget.bytes


def load_keras_model(path: str | os.PathLike[str], *, compile: bool = False) -> "keras.Model":
    """The model of a file, on the backend that Keras runs on, once the file is known to be safe.

    Args:
        path: as in `check_model_file`. It is loaded in safe mode: no code in it is run.
        compile: whether to compile the model as the file says.

    Raises:
        FileNotFoundError: if there is no such file.
        ModelFileError: as `check_model_file`, and whatever Keras refuses: a stored function, a
            class that is not known, weights that do not fit.
    """
    import keras

    import multibackend_lstm  # noqa: F401  (registers the layers that the file names)

    path = check_file(path)
    try:
        return load_with(keras, path, compile=compile)
    except Exception as error:  # whatever a foreign file brings up
        if isinstance(error, ModelFileError) and str(error).startswith(str(path)):
            raise
        reason = cause(error)
        remedy = ""
        if "`Lambda`" in reason:
            remedy = " `multibackend-lstm migrate` replaces those that it can read without running."
        raise ModelFileError(f"{path} cannot be loaded: {reason}{remedy}") from error


def load_with(
    library: Any,
    path: str | os.PathLike[str],
    *,
    compile: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Any:
    """The model of a file by a library that has Keras's interface, once the file is known safe.

    Args:
        library: the module `keras` or `tf_keras`, of any version.
        path: as in `check_model_file`.
        compile: whether to compile the model as the file says.
        custom_objects: classes and functions of the caller's that the file names.
        trust: whether functions stored in the file may be run. Sizes are checked all the same.

    Raises:
        FileNotFoundError: if there is no such file.
        ModelFileError: as `check_model_file`.
    """
    path = check_file(path)
    stored = _check_model(path)
    with limited_weights(library, stored):
        # As text, since Keras 2 takes no path for an HDF5 file.
        return library.models.load_model(
            str(path),
            custom_objects=None if custom_objects is None else dict(custom_objects),
            compile=compile,
            safe_mode=not trust,
        )


_limiting = threading.RLock()


@contextmanager
def limited_weights(library: Any, stored: int) -> Iterator[None]:
    """Refuse layers that hold more than the file stores, before memory is taken for them.

    A layer's shapes follow from its configuration and its input, so that only Keras can tell them:
    it is asked where every layer asks for its weights.

    Args:
        library: as in `load_with`.
        stored: bytes that the weights in the file declare. A number takes at least one.
    """
    thread, numbers = threading.get_ident(), 0
    layer = library.layers.Layer
    with _limiting:
        add_weight = layer.add_weight
        signature = inspect.signature(add_weight)  # Keras 2 takes the name before the shape

        @functools.wraps(add_weight)
        def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal numbers
            if threading.get_ident() == thread:  # other threads build models of their own
                shape = signature.bind(self, *args, **kwargs).arguments.get("shape")
                sizes = (shape,) if isinstance(shape, int) else tuple(shape or ())
                numbers += math.prod(sizes)
                if numbers > stored + SPARE_NUMBERS:
                    raise ModelFileError(
                        f"with the weights of {self.name!r}, of shape {sizes}, its layers hold "
                        f"{numbers:,} numbers, and {stored:,} bytes are stored for all. It is "
                        "damaged or made to fill the memory: get it from its source again."
                    )
            return add_weight(self, *args, **kwargs)

        layer.add_weight = limited
        try:
            yield
        finally:
            layer.add_weight = add_weight


def check_numbers(what: str, shape: Sequence[int]) -> None:
    """Refuse an input that would fill the memory: a file of a few bytes can ask for it.

    Args:
        what: that the message calls it.
        shape: with the batch.
    """
    numbers = math.prod(shape)
    if numbers > MAX_NUMBERS:
        raise InputError(
            f"{what} of shape {tuple(shape)} has {numbers:,} numbers, more than {MAX_NUMBERS:,}: "
            "no memory is taken for it because a model says so"
        )


def check_copy(copy: "keras.layers.Layer", layer: "keras.layers.Layer") -> None:
    """Refuse a layer of a file whose weights are not as wide as its input.

    Keras builds it by a shape that the file states beside, and calls it without comparing them.

    Args:
        copy: of the layer, built by its input.
        layer: as the file has it.
    """
    built, stored = ([tuple(w.shape) for w in x.weights] for x in (copy, layer))
    if built != stored:
        raise ModelFileError(
            f"the layer {layer.name!r} has weights of the shapes {stored}, and its input needs "
            f"{built}: the file contradicts itself"
        )


# ---- archives


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A ZIP archive whose directory says nothing that would do harm to who unpacks it."""
    with zipfile.ZipFile(path) as archive:
        check_members(archive, path.stat().st_size)
        yield archive


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse what no program writes that stores models or arrays, by the archive's directory.

    Args:
        archive: a ZIP archive.
        size: of its file in bytes.
    """
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
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of bzip2 and LZMA a few bytes may unpack to gigabytes in one piece.
            raise ModelFileError(
                f"the member {name!r} is compressed by method {info.compress_type} of ZIP, and "
                "neither stored nor deflated"
            )
        if name in seen:
            raise ModelFileError(f"the archive holds two members named {name!r}")
        seen.add(name)
        check_expansion(info.file_size, info.compress_size, f"the member {name!r}")
    check_expansion(sum(info.file_size for info in archive.infolist()), size, "the archive")


def check_expansion(size: int, stored: int, what: str) -> None:
    """Refuse a decompression bomb.

    Args:
        size: bytes that something unpacks to, as its header declares.
        stored: bytes that are in the file for it.
        what: that it is.
    """
    if (size > TINY and size > MAX_EXPANSION * stored) or (
        size > LARGE and size > MAX_LARGE_EXPANSION * stored
    ):
        raise ModelFileError(
            f"{what} declares {size:,} bytes, and {stored:,} are stored: it is empty, or a "
            "decompression bomb"
        )


def read_member(archive: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    """A member's content, of which no more is unpacked than the directory announces."""
    announced = archive.getinfo(name).file_size
    if limit is not None and announced > limit:
        raise ModelFileError(f"{name} has {announced:,} bytes, more than {limit:,}")
    with archive.open(name) as member:
        content = member.read(announced + 1)
    if len(content) != announced:
        raise ModelFileError(f"{name} has not the {announced:,} bytes that it announces")
    return content


def _check_keras_archive(path: Path, budget: "Budget") -> None:
    size = path.stat().st_size
    with open_archive(path) as archive:
        names = archive.namelist()
        missing = sorted({"config.json", "metadata.json"} - set(names))
        if not any(name.startswith("model.weights.") for name in names):
            missing.append("model.weights.h5")
        if missing:
            raise ModelFileError(f"the archive lacks {', '.join(missing)}")
        for name in ("config.json", "metadata.json"):
            parse_json(read_member(archive, name, MAX_JSON), name)
        for name in names:
            if name.endswith(".h5"):
                with h5py.File(io.BytesIO(read_member(archive, name)), "r") as file:
                    for _, dataset in datasets(file, budget):
                        check_dataset(dataset, budget)
            elif name.endswith(".npz"):
                content = io.BytesIO(read_member(archive, name))
                with zipfile.ZipFile(content) as arrays:
                    check_members(arrays, size)
                    for array in arrays.namelist():
                        _check_array(arrays, array)
                        budget.spend(arrays.getinfo(array).file_size)


# ---- arrays


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name, in the order of the file.

    Args:
        path: a file as `numpy.savez` or `savez_compressed` writes it.

    Raises:
        FileNotFoundError: if there is no such file.
        ModelFileError: if it is no such file, holds anything but numbers, or an array declares more
            than the file holds for it.
    """
    path = check_file(path)
    arrays = {}
    with refusing(path, "is no .npz file of numbers, as numpy.savez writes it"):
        if not zipfile.is_zipfile(path):
            raise ModelFileError("it is no archive, or truncated")
        with open_archive(path) as archive:
            for name in archive.namelist():
                _check_array(archive, name)
            for name in archive.namelist():
                with archive.open(name) as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                arrays[name.removesuffix(".npy")] = array
    return arrays


def _check_array(archive: zipfile.ZipFile, name: str) -> None:
    """Refuse an array of an archive by its header, before memory is taken for it."""
    announced = archive.getinfo(name).file_size
    with archive.open(name) as member:
        header: IO[bytes] = io.BytesIO(member.read(MAX_ARRAY_HEADER))
    if not header.read(6) == np.lib.format.MAGIC_PREFIX:
        raise ModelFileError(f"{name!r} in it is no array")
    header.seek(0)
    version = np.lib.format.read_magic(header)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:  # (3, 0) is for names of fields, which numbers have not
        raise ModelFileError(f"{name!r} has a header of version {version}, which no numbers need")
    shape, _, dtype = read(header)
    if dtype.hasobject:
        raise ModelFileError(
            f"Object arrays cannot be loaded, and {name!r} is one: to unpickle it could run code. "
            "Convert it to numbers before numpy.savez."
        )
    if dtype.names is not None or dtype.kind not in "fiubcV":
        raise ModelFileError(f"{name!r} holds {dtype}, not numbers")
    declared = math.prod(shape) * dtype.itemsize
    if any(size < 0 for size in shape) or declared != announced - header.tell():
        raise ModelFileError(
            f"{name!r} declares {declared:,} bytes (shape {shape}, {dtype}), and "
            f"{announced - header.tell():,} are there"
        )


def check_torch_file(path: Path) -> None:
    """Refuse a `.pt` file that `torch.load(weights_only=True)` would fill the memory with.

    It runs no code, but lets a file ask for a `bytearray` of any size, which no tensor needs.
    """
    if zipfile.is_zipfile(path):
        with open_archive(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl") and _BYTEARRAY in read_member(archive, name, MAX_PICKLE):
                    raise ModelFileError(f"{name!r} asks for a bytearray, which no tensor needs")
        return
    with path.open("rb") as file:  # as torch wrote files before 1.6, pickles and tensors in turn
        before = b""
        while block := file.read(1 << 20):
            if _BYTEARRAY in before + block:
                raise ModelFileError("it asks for a bytearray, which no tensor needs")
            before = block[-len(_BYTEARRAY) :]


def check_safetensors_header(path: Path) -> None:
    """Refuse a `.safetensors` file whose list of tensors alone would fill the memory."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_JSON, path.stat().st_size - 8):
        raise ModelFileError(
            f"its header declares {length:,} bytes, of {path.stat().st_size:,} in all and of "
            f"{MAX_JSON:,} at most"
        )


# ---- HDF5


class Budget:
    """How many arrays and bytes may still be read of a file.

    Args:
        stored: size of the file in bytes.
    """

    def __init__(self, stored: int) -> None:
        """Nothing is read yet."""
        self.stored = stored
        self.bytes = 0
        self.arrays = 0

    def spend(self, size: int) -> None:
        """Count one array, or group, of `size` bytes."""
        self.bytes += size
        self.arrays += 1
        check_expansion(self.bytes, self.stored, "the file")
        if self.arrays > MAX_ARRAYS:
            raise ModelFileError(f"the file declares more than {MAX_ARRAYS:,} arrays")


def datasets(group: h5py.Group, budget: Budget, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Path and member of every HDF5 group below one that is no group; nothing is read of it."""
    if depth > MAX_DEPTH:
        raise ModelFileError(f"groups are nested more than {MAX_DEPTH} deep")
    for name in group:
        member = child(group, name)
        budget.spend(0)
        if isinstance(member, h5py.Group):
            yield from datasets(member, budget, depth + 1)
        else:
            yield member.name.strip("/"), member


def child(group: Any, name: str) -> Any:
    """A member of a group, unless it is a link: one could lead to any file of this machine."""
    if not isinstance(group, h5py.Group) or name in (".", ".."):
        raise ModelFileError(f"{name!r} is not in the file")
    link = group.get(name, getlink=True)
    if link is None:
        raise ModelFileError(f"the file has no {group.name.rstrip('/')}/{name}")
    if not isinstance(link, h5py.HardLink):
        raise ModelFileError(f"{group.name.rstrip('/')}/{name} is a link, which Keras never writes")
    return group[name]


def check_dataset(dataset: Any, budget: Budget) -> None:
    """Refuse an array that is larger than what is stored of it, or lies outside of the file."""
    if not isinstance(dataset, h5py.Dataset):
        raise ModelFileError(f"{dataset.name!r} is no array")
    if dataset.is_virtual or dataset.external:
        raise ModelFileError(f"{dataset.name!r} takes its numbers from other files")
    if dataset.dtype.kind not in "fiubV" or dataset.shape is None:
        raise ModelFileError(f"{dataset.name!r} holds {dataset.dtype}, not numbers")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    check_expansion(size, dataset.id.get_storage_size(), repr(dataset.name))
    budget.spend(size)


def text_attribute(owner: Any, name: str) -> bytes:
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


def model_config(file: h5py.File) -> dict[str, Any]:
    """The configuration that an HDF5 file of a whole model has."""
    if "model_config" not in file.attrs:
        kind = "weights alone" if "layer_names" in file.attrs or "layers" in file else "no model"
        raise ModelFileError(
            f"the file holds {kind}: it has no `model_config`. A whole model is needed, as "
            "`model.save` writes it. To use weights alone, build the model and call "
            "`model.load_weights`."
        )
    return parse_json(text_attribute(file, "model_config"), "model_config")


def _check_model_hdf5(file: h5py.File, budget: Budget) -> None:
    model_config(file)
    for _, dataset in datasets(file, budget):
        check_dataset(dataset, budget)

    def check_attributes(_: str, item: Any) -> None:
        for name in item.attrs:
            attribute = item.attrs.get_id(name)
            size = math.prod(attribute.shape or ()) * attribute.dtype.itemsize
            if size > MAX_JSON:
                raise ModelFileError(
                    f"the attribute `{name}` declares {size:,} bytes, more than {MAX_JSON:,}"
                )

    check_attributes("", file)
    file.visititems(check_attributes)


# ---- JSON


def parse_json(text: bytes, name: str) -> dict[str, Any]:
    """An object in JSON of a size and depth that are no danger.

    Args:
        text: what is to be parsed.
        name: what a message calls it.
    """
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

"""Bad files, drawn at random: cut off, with bits flipped, overwritten, or with a crafted header."""

import io
import json
import pickle
import random
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from unit import bad_files

#: What a hostile file would write if anything in it were run.
MARK = "written-by-the-file"
_VALUES: list[Any] = [
    None, -1, 0, 1.5, "x", [], {}, [None], True, 10**9, 10**18, 1e308, "Lambda", "../x",
    {"class_name": "Dense"}, {"module": "os", "class_name": "system", "config": f"touch {MARK}"},
    {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "exec"},
]  # fmt: skip
_SIZES = (0, 1, -1, 7, 10**6, 2**31, 2**32, 10**12, 2**63 - 1)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content, cut off, with bits flipped, a stretch of it overwritten, moved or repeated."""
    data = bytearray(content)
    kind = draw.choice(("cut", "flip", "overwrite", "number", "repeat", "remove"))
    start = draw.randrange(len(data))
    if kind == "cut":
        del data[start:]
    elif kind == "flip":
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "overwrite":
        stretch = draw.choice((bytes(8), b"\xff" * 8, b"99999999", draw.randbytes(16)))
        data[start : start + len(stretch)] = stretch
    elif kind == "number":
        size = draw.choice((2, 4, 8))
        data[start : start + size] = (draw.choice(_SIZES) % 256**size).to_bytes(size, "little")
    elif kind == "repeat":
        data[start:start] = data[start : start + draw.randint(1, 64)]
    else:
        del data[start : start + draw.randint(1, 64)]
    return bytes(data)


def at_the_start(content: bytes, draw: random.Random) -> bytes:
    """As `damaged`, in the first 128 bytes: superblocks, magic numbers, lengths."""
    return damaged(content[:128], draw) + content[128:]


def any_value(text: bytes, draw: random.Random) -> bytes:
    """JSON with one value in it replaced."""
    config = json.loads(text)
    *outer, last = draw.choice(list(_paths(config)))
    place = config
    for key in outer:
        place = place[key]
    place[last] = draw.choice(_VALUES)
    return json.dumps(config).encode()


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Any:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from _paths(item, (*path, key))


# ---- archives


def _rezipped(
    content: bytes, draw: random.Random, change: Callable[[dict[str, bytes]], None]
) -> bytes:
    """An archive with its members changed, deflated or stored."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
        for name, data in members.items():
            new.writestr(name, data)
    return file.getvalue()


def odd_members(content: bytes, draw: random.Random) -> bytes:
    """An archive with a member damaged, taken out, added, renamed, or another's in its place."""

    def change(members: dict[str, bytes]) -> None:
        name = draw.choice(list(members))
        kind = draw.choice(("damage", "remove", "empty", "rename", "add", "swap"))
        if kind == "damage" and members[name]:
            members[name] = damaged(members[name], draw)
        elif kind == "remove":
            del members[name]
        elif kind == "empty":
            members[name] = b""
        elif kind == "rename":
            members[draw.choice((f"../{name}", f"/{name}", "x", name.upper()))] = members.pop(name)
        elif kind == "swap":
            members[name] = members[draw.choice(list(members))]
        else:
            odd = ("assets/x", "x.py", "archive/constants.pkl", "model.weights.json", "x.npy")
            members[draw.choice(odd)] = draw.randbytes(100)

    return _rezipped(content, draw, change)


def directory(content: bytes, draw: random.Random) -> bytes:
    """An archive whose directory lies: sizes, offsets, methods, flags, number of members."""
    data = bytearray(content)
    entries = [match.start() for match in re.finditer(b"PK\x01\x02|PK\x05\x06", content)]
    start = draw.choice(entries)
    size = draw.choice((2, 4))
    field = start + draw.randrange(4, 44 if content[start + 2] == 1 else 20, 2)
    data[field : field + size] = (draw.choice(_SIZES) % 256**size).to_bytes(size, "little")
    return bytes(data)


def configuration(content: bytes, draw: random.Random) -> bytes:
    """A `.keras` archive with one value of its configuration replaced."""

    def change(members: dict[str, bytes]) -> None:
        members["config.json"] = any_value(members["config.json"], draw)

    return _rezipped(content, draw, change)


def header(content: bytes, draw: random.Random) -> bytes:
    """An `.npz` archive in which the header of an array says anything."""

    def change(members: dict[str, bytes]) -> None:
        name = draw.choice(list(members))
        shape = tuple(draw.choice(_SIZES) for _ in range(draw.randint(0, 4)))
        dtype = draw.choice(("<f4", "<f8", "|O", "<U4", "|V8", "<M8[s]", "|S0", "<c16", "|b1"))
        members[name] = bad_files.npy_header(shape, dtype) + bytes(draw.choice((0, 4, 96)))

    return _rezipped(content, draw, change)


def truth_header(content: bytes, draw: random.Random) -> bytes:
    """A file of `agree --save-truth` with one value of its header replaced."""

    def change(members: dict[str, bytes]) -> None:
        text = np.load(io.BytesIO(members["header.npy"]), allow_pickle=False).tobytes()
        file = io.BytesIO()
        np.save(file, np.frombuffer(any_value(text, draw), "uint8"), allow_pickle=False)
        members["header.npy"] = file.getvalue()

    return _rezipped(content, draw, change)


# ---- pickles of torch


class _Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {MARK}",)


class _Evaluated:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({MARK!r}, 'w')",)


def _laughs(depth: int) -> dict[str, Any]:
    """A dict that holds itself twice, `depth` deep: few bytes, 2 ** depth paths."""
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"a": inner, "b": inner}
    return inner


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR."


_INT = b"J\xff\xff\xff\x7f"
_PICKLES: tuple[Callable[[], bytes], ...] = (
    lambda: pickle.dumps(_Touch()),
    lambda: pickle.dumps({"weight": _Touch()}, 2),
    lambda: pickle.dumps(_Evaluated(), 2),
    lambda: pickle.dumps(_laughs(60), 2),
    lambda: pickle.dumps({"state_dict": _laughs(60)}, 2),
    lambda: b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",
    lambda: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    lambda: _call("builtins", "bytearray", _INT),
    lambda: _call("collections", "OrderedDict", _INT),
    lambda: _call("torch", "Size", b"(" + _INT * 3 + b"t"),
    lambda: _call("torch._utils", "_rebuild_tensor_v2", b"NK\x00(" + _INT + b"t(K\x01t\x89}"),
    lambda: _call("torch", "device", b"U\x04cuda"),
    lambda: b"\x80\x02}(U\x01aK\x01u.",
    lambda: b"\x80\x02K\x01.",
    lambda: b"\x80\x02N.",
    lambda: b"\x80\x02}(K\x01K\x02u.",
    lambda: b"",
    lambda: b".",
)


def torch_pickle(content: bytes, draw: random.Random) -> bytes:
    """A `.pt` file whose pickle would run something, fill the memory, or makes no sense."""
    crafted = draw.choice(_PICKLES)()
    if not content.startswith(b"PK"):
        return crafted
    return _rezipped(content, draw, lambda members: members.update({"archive/data.pkl": crafted}))


# ---- headers


def safetensors_header(content: bytes, draw: random.Random) -> bytes:
    """A `.safetensors` file with another length of the header, or a value in it replaced."""
    (length,) = struct.unpack("<Q", content[:8])
    text, data = content[8 : 8 + length], content[8 + length :]
    if draw.random() < 0.3:
        size = draw.choice((*_SIZES, length + 1, length - 1, len(content), len(content) - 8))
        return struct.pack("<Q", size % 2**64) + text + data
    text = b"[" * 100_000 if draw.random() < 0.1 else any_value(text, draw)
    return struct.pack("<Q", len(text)) + text + data


def hdf5_members(content: bytes, draw: random.Random) -> bytes:
    """An HDF5 file with a dataset, group or attribute of another kind or size."""
    file = io.BytesIO(content)
    with h5py.File(file, "r+") as opened:
        groups: list[h5py.Group] = [opened]
        opened.visititems(lambda _, x: groups.append(x) if isinstance(x, h5py.Group) else None)
        group = draw.choice(groups)
        kind = draw.choice(("attribute", "config", "dataset", "link", "remove", "huge"))
        if kind == "attribute" and len(group.attrs):
            name = draw.choice(list(group.attrs))
            odd = (b"x", "x" * 1000, 7, [b"../x"], np.zeros((10, 100)), h5py.Empty("f"))
            group.attrs[name] = draw.choice(odd)
        elif kind == "config" and "model_config" in opened.attrs:
            text = opened.attrs["model_config"]
            text = text.encode() if isinstance(text, str) else text
            opened.attrs["model_config"] = any_value(text, draw).decode()
        elif kind == "remove" and len(group):
            del group[draw.choice(list(group))]
        elif len(group):
            name = draw.choice(list(group))
            del group[name]
            if kind == "dataset":
                odd = (1.0, b"x", np.zeros(3), np.full(2, np.nan), np.zeros((0, 3)), True)
                group[name] = draw.choice(odd)
            elif kind == "huge":
                group.create_dataset(name, (10**6, 10**6), "f4", chunks=(1000, 1000))
            else:
                odd_links = (h5py.ExternalLink("/etc/passwd", "x"), h5py.SoftLink("/"))
                group[name] = draw.choice(odd_links)
    return file.getvalue()


def json_text(content: bytes, draw: random.Random) -> bytes:
    """JSON that is nested too deep, no object, or has another value somewhere."""
    odd = (b"[" * 200_000, b'{"a":' * 200_000, b"[]", b"3", b"null", b"\xff\xfe", b'"x', b"{")
    return draw.choice(odd) if draw.random() < 0.4 else any_value(content, draw)


def onnx_fields(content: bytes, draw: random.Random) -> bytes:
    """An `.onnx` file with a size, name, type or operator of its graph replaced."""
    import onnx

    model = onnx.load_from_string(content)
    graph = model.graph
    kind = draw.choice(("dims", "external", "op", "input", "cycle", "opset", "axis", "deep"))
    tensor = draw.choice(graph.initializer)
    node = draw.choice([node for node in graph.node if node.input])
    if kind == "dims":
        tensor.dims[:] = [draw.choice(_SIZES) for _ in range(draw.randint(0, 3))]
    elif kind == "external":
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=draw.choice(("/etc/passwd", "../x", "x")))
        tensor.external_data.add(key="length", value=str(draw.choice(_SIZES)))
    elif kind == "op":
        node.op_type = draw.choice(("Loop", "If", "Nothing", "Add", "LSTM", ""))
    elif kind == "input":
        node.input[draw.randrange(len(node.input))] = draw.choice(("", "nowhere", tensor.name))
    elif kind == "cycle":
        node.input[0] = node.output[0]
    elif kind == "opset":
        model.opset_import[0].version = draw.choice((0, 1, 7, 1000))
    elif kind == "axis":
        shape = draw.choice(graph.input).type.tensor_type.shape
        draw.choice(shape.dim).dim_value = draw.choice(_SIZES)
    else:
        graph.doc_string = "x" * 10**6
    return model.SerializeToString()


def compressed_noise(content: bytes, draw: random.Random) -> bytes:
    """The right magic number, and then anything."""
    return content[: draw.choice((4, 8, 16))] + zlib.compress(draw.randbytes(200)) * 3


def known(suffix: str) -> list[Callable[[bytes, random.Random], bytes]]:
    """The kinds of `unit/bad_files.py` that are content; the others are not files at all."""
    found: list[Callable[[bytes, random.Random], bytes]] = []
    for kind, each in bad_files.cases(suffix):
        if kind in ("fifo", "device", "unreadable"):
            continue

        def made(content: bytes, draw: random.Random, kind: str = kind, each: str = each) -> bytes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"x{each}")
                bad_files.make(kind, path)
                return path.read_bytes()

        made.__name__ = kind
        found.append(made)
    return found


_ANY = (damaged, damaged, at_the_start, compressed_noise)
_ZIP = (odd_members, odd_members, directory)
#: What may be done to the content of a file, by its suffix.
DAMAGES: Mapping[str, tuple[Callable[[bytes, random.Random], bytes], ...]] = {
    ".keras": (*_ANY, *_ZIP, configuration, configuration, *known(".keras")),
    ".h5": (*_ANY, hdf5_members, hdf5_members, *known(".h5")),
    ".npz": (*_ANY, *_ZIP, header, *known(".npz")),
    ".truth.npz": (*_ANY, *_ZIP, header, truth_header, truth_header),
    ".safetensors": (*_ANY, safetensors_header, safetensors_header, *known(".safetensors")),
    ".pt": (*_ANY, *_ZIP, torch_pickle, torch_pickle, *known(".pt")),
    ".old.pt": (*_ANY, torch_pickle),
    ".onnx": (*_ANY, onnx_fields, onnx_fields),
    ".tflite": _ANY,
    ".json": (*_ANY, json_text, json_text),
}

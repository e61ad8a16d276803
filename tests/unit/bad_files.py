"""Files that no command may trust, each with words of the line that refuses it."""

import io
import os
import struct
import zipfile
from contextlib import contextmanager

import h5py
import numpy as np

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def npy_header(shape, dtype="<f4"):
    """The header of an .npy file that says anything."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _pointer(path):
    path.write_bytes(LFS)


def _fifo(path):
    os.mkfifo(path)


def _device(path):
    path.symlink_to("/dev/zero")


def _bomb(path):
    """64 MB of zeros in 64 KB, as a member of the archive that the suffix makes of it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        names = {".keras": ["metadata.json", "config.json"], ".pt": ["archive/data.pkl"]}
        for name in names.get(path.suffix, []):
            archive.writestr(name, "{}")
        name = {".keras": "model.weights.h5", ".pt": "archive/data/0"}.get(path.suffix, "x.npy")
        with archive.open(name, "w") as member:
            if path.suffix == ".npz":
                member.write(npy_header((1 << 24,)))
            for _ in range(64):
                member.write(bytes(1 << 20))


def _bzip2(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", npy_header((10,)) + bytes(40))


def _outside(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../x.npy", npy_header((10,)) + bytes(40))


def _long_header(path):
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", npy_header((10**12,)))
    elif path.suffix == ".safetensors":
        path.write_bytes(struct.pack("<Q", 10**12) + b"{}")
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = "{}"
            layer = file.create_group("model_weights/dense")
            layer.create_dataset("kernel", (10**6, 10**6), "f4", chunks=(1000, 1000))
            layer.parent.attrs["layer_names"] = [b"dense"]
            layer.attrs["weight_names"] = [b"kernel"]
    else:  # .keras
        weights = io.BytesIO()
        with h5py.File(weights, "w") as file:
            file.create_dataset("layers/x/vars/0", (10**6, 10**6), "f4", chunks=(1000, 1000))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", weights.getvalue())


def _unreadable(path):
    path.write_bytes(b"x")
    path.chmod(0)


MODELS, ARCHIVES = (".keras", ".h5"), (".keras", ".npz", ".pt")
EVERY = (".keras", ".h5", ".npz", ".pt", ".safetensors", ".onnx", ".json")
#: Kind of file: how it is made, for which suffixes, and words of its refusal.
KINDS = {
    "empty": (lambda path: path.touch(), EVERY, "is empty"),
    "pointer": (_pointer, EVERY, "is a Git LFS pointer: run `git lfs pull`"),
    "fifo": (_fifo, EVERY, "must be a regular file, and is a FIFO"),
    "device": (_device, EVERY, "must be a regular file, and is a device"),
    "unreadable": (_unreadable, EVERY, "cannot be read: Permission denied|is not readable"),
    "bomb": (_bomb, ARCHIVES, "decompression bomb"),
    "bzip2": (_bzip2, ARCHIVES, "neither stored nor deflated"),
    "outside": (_outside, ARCHIVES, "names a path outside of itself"),
    "header": (
        _long_header,
        (".keras", ".h5", ".npz", ".safetensors"),
        r"declares [\d,]{17,} bytes|declares 1,000,000,000,000",
    ),
}


@contextmanager
def ordinary_user():
    """Within it a superuser is none, whom no permission would hold."""
    if os.geteuid() != 0:
        yield
        return
    group, nobody = os.getegid(), 65534
    os.setegid(nobody)
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def make(kind, path):
    """Make a bad file, and give the pattern of what refuses it."""
    write, _, words = KINDS[kind]
    write(path)
    return words


def cases(*suffixes):
    """Every kind with every suffix of these that it comes with."""
    return [(kind, s) for kind, (_, able, _) in KINDS.items() for s in suffixes if s in able]

"""What opens files: refusals, and how much memory they take."""

import io
import os
import pickle
import re
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

from multibackend_lstm.porting import ModelFileError, PortingError
from multibackend_lstm.runtimes.loading import (
    cause,
    check_file,
    check_model_file,
    load_keras_model,
    read_arrays,
)
from multibackend_lstm.runtimes.old_keras import KerasFile
from multibackend_lstm.torch_weights.state_dict import read_state_dict
from unit.bad_files import cases, make, npy_header
from unit.tools import normal


def load_as_old(path, trust=True):
    """As `migrate --verify --trust` does, in the library that wrote the file."""
    KerasFile(file=str(path), kind="cpu", precision="default", trust=trust).start()


AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
READERS = {
    ".keras": [check_model_file, load_keras_model, load_as_old],
    ".h5": [check_model_file, load_keras_model, load_as_old],
    ".npz": [read_arrays, read_state_dict],
    ".pt": [read_state_dict],
    ".safetensors": [read_state_dict],
}


def skip_as_root(kind):
    if kind == "unreadable" and AS_ROOT:
        pytest.skip("the superuser reads every file")


@pytest.mark.parametrize(("kind", "suffix"), cases(*READERS))
def test_bad_files_are_refused_in_one_line_with_their_name(tmp_path, kind, suffix):
    skip_as_root(kind)
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / f"bad{suffix}"
    words = make(kind, path)
    for read in READERS[suffix]:
        with pytest.raises(ModelFileError, match=words) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.npz"):
        check_file(tmp_path / "none.npz")
    with pytest.raises(ModelFileError, match="is a folder"):
        read_arrays(tmp_path)
    with pytest.raises(PortingError, match="there is no file"):
        read_state_dict(tmp_path / "none.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_what_numpy_wrote(tmp_path, save):
    arrays = {
        "b": normal(2, 3),
        "a": np.asfortranarray(normal(3, 4, dtype="float64")),
        "flags": np.array([True, False]),
        "scalar": np.array(3),
        "none": np.zeros((0, 5), "int8"),
        "zeros": np.zeros((300, 1000), "float32"),  # which compresses well, and is no bomb
    }
    save(tmp_path / "x.npz", **arrays)
    read = read_arrays(tmp_path / "x.npz")
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy_header((10,)) + bytes(39), "declares 40 bytes .* and 39 are there"),
        (npy_header((10,)) + bytes(41), "declares 40 bytes .* and 41 are there"),
        (npy_header((-1,)) + b"", "declares -4 bytes"),
        (npy_header((1,), "|O") + b"12345678", "Object arrays cannot be loaded"),
        (npy_header((1,), "<U4") + bytes(16), "holds <U4, not numbers"),
        (npy_header((1,), [("a", "<f4")]) + bytes(4), "not numbers"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70_000, "damaged"),
        (b"\x93NUMPY\x09\x00", "has a header of version"),
        (b"text", "is no array"),
    ],
    ids=range(9),
)
def test_headers_of_arrays(tmp_path, content, words):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(ModelFileError, match=words):
        read_arrays(path)


def small_model(path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.fit(normal(4, 3), normal(4, 2), verbose=0)
    model.save(path)
    return model


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_is_loaded(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    model = small_model(path)
    loaded = load_keras_model(path)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not loaded.compiled
    if suffix == ".keras":
        assert load_keras_model(path, compile=True).compiled


def test_a_file_that_is_an_archive_and_hdf5_is_checked_as_both(tmp_path):
    """Keras takes it for an archive, and its first bytes say HDF5."""
    path = tmp_path / "both.keras"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside", "x")
    with pytest.raises(ModelFileError, match="outside of itself"):
        check_model_file(path)


@pytest.mark.parametrize(
    "link", [h5py.ExternalLink("/etc/passwd", "/x"), h5py.SoftLink("/optimizer")], ids=str
)
def test_links_in_the_weights_of_an_archive(tmp_path, link):
    path = tmp_path / "model.keras"
    small_model(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = link
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"model.weights.h5": weights.getvalue()}).items():
            archive.writestr(name, content)
    with pytest.raises(ModelFileError, match="is a link"):
        load_keras_model(path)


def test_the_cause_of_a_failed_load_is_one_line(tmp_path):
    inputs = keras.Input((4, 3))
    x = inputs
    for _ in range(5):
        x = keras.layers.Dense(3)(x)
    keras.Model(inputs, keras.layers.Lambda(lambda t: t * 2)(x)).save(tmp_path / "m.keras")
    with pytest.raises(ModelFileError, match=r"m\.keras cannot be loaded: .*by default") as caught:
        load_keras_model(tmp_path / "m.keras")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


def test_what_keras_quotes_of_a_config_is_left_out(tmp_path):
    class Odd(keras.layers.Layer):
        pass

    path = tmp_path / "odd.keras"
    keras.Sequential([keras.Input((3,)), Odd()]).save(path)
    with pytest.raises(ModelFileError) as caught:
        load_keras_model(path)
    assert re.search(r"Could not locate class 'Odd'\. .* load them\.$", str(caught.value))

    keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: 2 * x)]).save(path)
    with pytest.raises(
        ModelFileError, match=r"disallowed by default\. `multibackend-lstm migrate`"
    ):
        load_keras_model(path)

    text = "shape (2, 3) must match (2, 4). Target variable: <Variable value=[[0.1 0.2]]>"
    assert cause(ValueError(text)) == "shape (2, 3) must match (2, 4)."


def test_the_cause_of_an_error():
    assert cause(KeyError()) == "KeyError"
    nested = (
        "could not be deserialized. config={...}.\n\nException encountered: Unknown layer: X\nY"
    )
    assert cause(ValueError(nested)) == "Unknown layer: X"
    assert len(cause(ValueError("x" * 10_000))) < 500


def test_tensors_that_repeat_what_little_is_stored(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1, dtype=torch.bfloat16).expand(10**6, 10**6)}, path)
    with pytest.raises(ModelFileError, match=r"declares 2,000,000,000,000 bytes"):
        read_state_dict(path)


def test_dicts_that_hold_each_other_have_too_many_paths_to_follow(tmp_path):
    torch = pytest.importorskip("torch")
    inner = {"weight": torch.zeros(3)}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    path = tmp_path / "weights.pt"
    torch.save(inner, path)
    with pytest.raises(PortingError, match="further dicts, 'a', 'b'"):
        read_state_dict(path)


MEMORY = """
import re, sys
from multibackend_lstm.porting import ModelFileError
{imports}
def kilobytes(name):  # ru_maxrss has that of the parent too
    with open("/proc/self/status") as file:
        return int(re.search(name + r":\\s+(\\d+) kB", file.read())[1])
before = kilobytes("VmRSS")
try:
    {call}(sys.argv[1])
except ModelFileError as error:
    print(error)
else:
    sys.exit("it was not refused")
print(kilobytes("VmHWM") - before)
"""


def deep_bomb(path):
    """An archive in which each of many members unpacks to what alone would be harmless."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        noise = np.random.default_rng(0).bytes(1 << 14)
        for number in range(40):
            with archive.open(f"x{number}.npy", "w") as member:
                member.write(npy_header((1 << 25,), "|u1"))
                for _ in range(32):
                    member.write(noise + bytes((1 << 20) - len(noise)))


def wide_json(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        noise = np.random.default_rng(0).integers(0, 10, 300_000).astype("S1").tobytes().decode()
        archive.writestr("config.json", f'{{"x": "{noise}", "y": [{"[]," * 4_500_000}[]]}}')
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", "")


def pickled_bytearray(path):
    """A pickle that asks for 4 GB; weights_only allows it."""
    content = pickle.PROTO + b"\x02c" + b"builtins\nbytearray\n(J\xff\xff\xff\x7ftR."
    path.write_bytes(content)


def many_entries(path):
    entry = '"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    header = ("{" + ",".join(entry.format(i) for i in range(400_000)) + "}").encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("write", "suffix"),
    [
        (deep_bomb, ".npz"),
        (wide_json, ".keras"),
        (pickled_bytearray, ".pt"),
        (many_entries, ".safetensors"),
        *((kind, suffix) for kind, suffix in cases(*READERS) if kind in ("bomb", "header")),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_no_file_takes_a_gigabyte(tmp_path, write, suffix):
    path = tmp_path / f"bad{suffix}"
    if isinstance(write, str):
        make(write, path)
    else:
        write(path)
    if suffix == ".pt":
        pytest.importorskip("torch")
    module, name = {
        ".pt": ("torch_weights.state_dict", "read_state_dict"),
        ".safetensors": ("torch_weights.state_dict", "read_state_dict"),
        ".npz": ("runtimes.loading", "read_arrays"),
    }.get(suffix, ("runtimes.loading", "check_model_file"))
    # A backend and torch take as much themselves: they are there before the file is opened.
    imports = f"from multibackend_lstm.{module} import {name}"
    if suffix == ".pt":
        imports = f"import torch, keras\n{imports}"
    code = MEMORY.format(imports=imports, call=name)
    process = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout.splitlines()[-1]) * 1024 < 1e9


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_larger_than_the_stored_weights_are_refused_before_they_are_built(tmp_path, suffix):
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(3, name="huge")])
    good, bad = tmp_path / f"good{suffix}", tmp_path / f"bad{suffix}"
    model.save(good)
    units = 5_000_000  # 140 MB of kernel: enough to tell, and no danger if it is built

    def enlarge(config):
        return re.sub(rb'"units": 3\b', b'"units": %d' % units, config)

    if suffix == ".keras":
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
            for name in old.namelist():
                new.writestr(name, enlarge(old.read(name)))
    else:
        bad.write_bytes(good.read_bytes())
        with h5py.File(bad, "r+") as file:
            file.attrs["model_config"] = enlarge(file.attrs["model_config"].encode()).decode()
    before = keras.layers.Layer.add_weight
    with pytest.raises(ModelFileError, match=r"weights of 'huge'.*shape \(7, 5000000\)"):
        load_keras_model(bad)
    assert keras.layers.Layer.add_weight is before
    assert load_keras_model(good).count_params() == 24

"""Model files that are damaged, or made to do harm when they are loaded."""

import base64
import collections
import contextlib
import functools
import io
import json
import marshal
import operator
import pathlib
import random
import shutil
import stat
import sys
import tracemalloc
import zipfile

import h5py
import keras
import numpy as np
import pytest

from multibackend_lstm.migration.model_files import open_model_file
from multibackend_lstm.porting import ModelFileError, migrate

FOLDER = pathlib.Path(__file__).parent / "files"
MARK = "written-by-the-model"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder that must stay empty but for what the test itself writes."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield tmp_path
    assert not list(tmp_path.rglob(f"{MARK}*"))
    assert list(work.iterdir()) == []


def writing():
    """The stored code of a function that would write a file."""

    def function(x):
        open(MARK, "w").close()
        return x

    return base64.encodebytes(marshal.dumps(function.__code__)).decode()


def h5_file(path, config):
    """An .h5 file of a configuration, with the weights of tf_shape.h5."""
    shutil.copy(FOLDER / "tf_shape.h5", path)
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
        file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
    return path


def config_of(name):
    return json.loads(json.dumps(open_model_file(FOLDER / name).config))


def archive(path, config=None, members=(), name="keras3.keras"):
    """A .keras archive, with another configuration or more members (names or ZipInfo)."""
    with zipfile.ZipFile(FOLDER / name) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == "config.json" and config is not None:
                content = config if isinstance(config, (str, bytes)) else json.dumps(config)
            new.writestr(info.filename, content)
        for member, content in members:
            new.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


def test_a_lambda_that_would_write_a_file_does_not(place):
    config = config_of("tf_shape.h5")
    merge = config["config"]["layers"][1]
    assert merge["class_name"] == "Lambda"
    merge["config"]["function"] = [writing(), None, None]
    path = h5_file(place / "old.h5", config)
    migration = migrate(path, place / "new.keras")
    # Its name says what it does; were it not for that, a Reshape would stand in its place.
    assert "open" in migration.left[0].detail

    config = config_of("keras3.keras")
    function = config["config"]["layers"][1]["config"]["function"]["config"]
    function |= {"code": writing(), "closure": None}
    assert migrate(archive(place / "old.keras", config)).left


IMPORTS = [
    {"module": "os", "class_name": "system", "config": f"touch {MARK}", "registered_name": None},
    {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
    {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "exec"},
    {"module": "keras.utils", "class_name": "function", "config": "get_file"},
    {"module": "keras.activations", "class_name": "function", "config": "deserialize"},
    {"module": "keras.saving", "class_name": "load_model", "config": {"filepath": "x"}},
    {"module": "builtins", "class_name": "__lambda__", "config": {"value": "x"}},
    {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "x"}},
    {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": "x"}},
    {"module": "keras.src.ops.numpy", "class_name": "np", "config": {}},
    {"module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", MARK]}},
    {
        "module": None,
        "class_name": "__typespec__",
        "spec_name": "Popen",
        "config": [],
        "registered_name": None,
    },
]


@pytest.mark.parametrize("thing", IMPORTS, ids=lambda t: f"{t['module']}.{t['class_name']}")
@pytest.mark.parametrize("where", ["layer", "argument", "call"])
@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_nothing_in_a_configuration_is_imported_or_called(place, thing, where, kind):
    name = "tf_shape.h5" if kind == "h5" else "keras3.keras"
    config = config_of(name)
    layers = config["config"]["layers"]
    if where == "layer":
        layers[-1] |= thing
    elif where == "argument":
        layers[-1]["config"]["activation"] = thing
    elif kind == "h5":
        layers[-1]["inbound_nodes"][0][0][3] = {"training": thing}
    else:
        layers[-1]["inbound_nodes"][0]["kwargs"]["training"] = thing
    write = h5_file if kind == "h5" else archive
    path = write(place / f"old.{kind}", config)
    with pytest.raises(ModelFileError):
        migrate(path, place / "new.keras")
    assert not (place / "new.keras").exists()


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it is migrated there")
def test_a_layer_that_computes_with_tensorflow_is_migrated_there(place):
    layers = [
        {"class_name": "InputLayer", "config": {"batch_shape": [None, 3], "dtype": "int32"}},
        {"class_name": "Hashing", "config": {"name": "hash", "num_bins": 4, "dtype": "int32"}},
    ]
    config = {"class_name": "Sequential", "config": {"name": "model", "layers": layers}}
    with pytest.raises(ModelFileError, match=r"hash: a Hashing .*--backend tensorflow"):
        migrate(h5_file(place / "old.h5", config))


def test_a_class_of_keras_is_taken_from_keras_whatever_the_module(place):
    config = config_of("tf_shape.h5")
    config["config"]["layers"][-1]["module"] = "antigravity"
    assert migrate(h5_file(place / "old.h5", config)).complete
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "member", ["../outside.txt", "/absolute.txt", "..\\outside.txt", "C:/x.txt", "more.txt"]
)
def test_members_outside_of_the_archive_are_refused(place, member):
    path = archive(place / "old.keras", members=[(member, "x")])
    with pytest.raises(ModelFileError, match=r"outside of itself|the archive holds"):
        migrate(path)


def test_links_and_duplicates_in_an_archive_are_refused(place):
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ModelFileError, match="symbolic link"):
        migrate(archive(place / "link.keras", members=[(link, "/etc/passwd")]))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive(place / "two.keras", members=[("config.json", "{}")])
    with pytest.raises(ModelFileError, match="two members"):
        migrate(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(place):
    path = place / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("metadata.json", "{}")
        new.writestr("config.json", "{}")
        with new.open("model.weights.h5", "w") as member:
            for _ in range(64):
                member.write(bytes(1 << 20))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="decompression bomb"):
        migrate(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_member_larger_than_it_announces_is_refused(place):
    path = archive(place / "old.keras")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"model.weights.h5"))
    content[at + 24 : at + 28] = (1000).to_bytes(4, "little")  # the uncompressed size
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        migrate(path)


@pytest.mark.parametrize("name", ["bidirectional_23.h5", "keras3.keras", "sequential_v2.keras"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_truncated_files_are_refused(place, name, share):
    content = (FOLDER / name).read_bytes()
    path = place / name
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelFileError):
        migrate(path, place / "new.keras")


def test_other_files_are_named_as_such(place):
    text = place / "text.h5"
    text.write_text("weights")
    with pytest.raises(ModelFileError, match=r"neither an HDF5 file nor a \.keras archive"):
        migrate(text)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.save_weights(place / "model.weights.h5")
    with pytest.raises(ModelFileError, match=r"weights alone.*load_weights"):
        migrate(place / "model.weights.h5")
    with zipfile.ZipFile(place / "no.keras", "w") as new:
        new.writestr("metadata.json", "{}")
    with pytest.raises(ModelFileError, match=r"lacks config\.json"):
        migrate(place / "no.keras")
    with pytest.raises(FileNotFoundError):
        migrate(place / "none.h5")


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "too deep|no JSON"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested more than"),
        ("[]", "where an object is needed"),
        ("{", "no JSON"),
        ('{"class_name": "Mine", "config": {}}', "no class of Keras 3|subclassed"),
        ('{"class_name": "Functional", "config": {"name": "m"}}', "without a list of layers"),
        ('{"class_name": "Sequential", "config": {"layers": [3]}}', "is no layer"),
        ('{"class_name": "Dense", "config": {"units": 1}}', "Sequential or functional"),
        ("{}", "Sequential or functional"),
    ],
)
def test_malformed_configurations(place, text, reason):
    with pytest.raises(ModelFileError, match=reason):
        migrate(archive(place / "old.keras", text))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["config"].update(input_layers=[["none", 0, 0]]),
        lambda c: c["config"].update(output_layers=[["dense", 7, 0]]),
        lambda c: c["config"].update(layers=c["config"]["layers"][:-1]),
        lambda c: c["config"]["layers"][0]["config"].update(batch_input_shape=[None, "x"]),
        lambda c: c["config"]["layers"][0]["config"].update(batch_input_shape=7),
        lambda c: c["config"]["layers"][2].update(inbound_nodes=[[["lstm", 0, 0, {}]]]),
        lambda c: c["config"]["layers"][2].update(inbound_nodes=[[["gone", 0, 0, {}]]]),
        lambda c: c["config"]["layers"][2].update(inbound_nodes=7),
        lambda c: c["config"]["layers"][2].update(config=[]),
        lambda c: c["config"]["layers"][2].update(name="dense"),
        lambda c: c["config"]["layers"][2]["config"].update(units="many"),
        lambda c: c["config"]["layers"][2]["config"].update(units=10**9),
        lambda c: c["config"]["layers"][0]["config"].update(batch_input_shape=[None, 10, 3, 10**9]),
    ],
)
def test_graphs_that_make_no_sense(place, change):
    config = config_of("tf_shape.h5")
    change(config)
    path = h5_file(place / "old.h5", config)
    # Either is an answer; another exception, or a model, is not.
    with contextlib.suppress(ModelFileError):
        assert migrate(path, place / "new.keras").left
    assert not (place / "new.keras").exists()
    # Variables that were never given values must not be later, when any other model is called.
    keras.layers.LSTM(1)(np.ones((1, 2, 3), "float32"))


def paths(value, path=()):
    """The path of every value in a configuration."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from paths(item, (*path, key))


VALUES = [None, -1, "x", [], {}, [None], True, 10**18, "Lambda", {"class_name": "Dense"}]


@pytest.mark.parametrize("name", ["shared.h5", "states.h5", "nested_v2.keras", "keras3.keras"])
def test_any_one_value_may_be_wrong(place, name):
    draw = random.Random(name)
    write = h5_file if name.endswith(".h5") else archive
    answers = collections.Counter()
    for _ in range(25):
        config = config_of(name)
        *outer, last = draw.choice(list(paths(config)))
        functools.reduce(operator.getitem, outer, config)[last] = draw.choice(VALUES)
        path = place / f"old{pathlib.Path(name).suffix}"
        if write is h5_file:
            write(path, config)
            with h5py.File(path, "r+") as file, h5py.File(FOLDER / name) as weights:
                del file["model_weights"]
                weights.copy("model_weights", file)
        else:
            write(path, config, name=name)
        try:
            answers[bool(migrate(path).left)] += 1
        except ModelFileError:
            answers["refused"] += 1
    assert answers["refused"] > 3


def broken_weights(place, change):
    path = shutil.copy(FOLDER / "tf_shape.h5", place / "old.h5")
    with h5py.File(path, "r+") as file:
        group = file["model_weights/dense/dense"]
        del group["kernel:0"]
        change(group)
    return path


def huge(group):
    group.create_dataset("kernel:0", (10**6, 10**6), "float32", chunks=(1000, 1000))


def virtual(group):
    layout = h5py.VirtualLayout((64, 1), "float32")
    layout[:] = h5py.VirtualSource("other.h5", "x", (64, 1))
    group.create_virtual_dataset("kernel:0", layout)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda g: g.update({"kernel:0": h5py.ExternalLink("/etc/passwd", "/x")}), "is a link"),
        (lambda g: g.update({"kernel:0": h5py.SoftLink("/model_weights")}), "is a link"),
        (virtual, "other files"),
        (
            lambda g: g.create_dataset(
                "kernel:0", (64, 1), "float32", external=[("/etc/passwd", 0, 256)]
            ),
            "other files",
        ),
        (huge, "decompression bomb"),
        (lambda g: g.create_dataset("kernel:0", data=[b"text"]), "not numbers"),
        (lambda g: g.create_group("kernel:0"), "no array"),
        (lambda g: g.create_dataset("kernel:0", data=np.ones((64, 2), "f4")), "shapes"),
        (lambda g: None, "has no"),
    ],
    ids=["external", "soft", "virtual", "storage", "huge", "text", "group", "shape", "missing"],
)
def test_arrays_that_are_not_in_the_file_are_refused(place, change, reason):
    with pytest.raises(ModelFileError, match=reason):
        migrate(broken_weights(place, change))


def test_groups_that_hold_themselves_are_refused(place):
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        group = file.create_group("layers")
        group["layers"] = group
    path = place / "loop.keras"
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("metadata.json", "{}")
        new.writestr("config.json", "{}")
        new.writestr("model.weights.h5", weights.getvalue())
    with pytest.raises(ModelFileError, match="nested more than"):
        migrate(path)

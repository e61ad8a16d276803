"""One rule from faults to exit statuses, whatever the command: docs/command_line.md."""

import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from multibackend_lstm import environment
from multibackend_lstm.cli import main
from multibackend_lstm.environment import BACKENDS
from multibackend_lstm.runtimes import probe
from multibackend_lstm.torch_weights.state_dict import write_state_dict
from unit.bad_files import cases, make, ordinary_user
from unit.tools import BACKEND, no_file_beyond, normal

if BACKEND not in BACKENDS:
    pytest.skip("the command line runs on the training backends", allow_module_level=True)
OTHER = next(name for name in BACKENDS if name != BACKEND)
HERE = ["--targets", f"{BACKEND}@cpu", "--steps", 0, "--twins", 2]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a model, weights that fit it, and arrays."""
    folder = tmp_path_factory.mktemp("good")
    keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(2)]).save(folder / "model.keras")
    weights = {"fc.weight": normal(2, 3), "fc.bias": normal(2)}
    write_state_dict(weights, folder / "weights.npz")
    write_state_dict({"fc.weight": normal(5, 3), "fc.bias": normal(5)}, folder / "other.npz")
    np.savez(folder / "x.npz", normal(2, 4, 3))
    scaled = keras.Sequential([keras.Input((4, 3)), keras.layers.Lambda(lambda x: abs(x))])
    scaled.save(folder / "lambda.keras")
    (folder / "functions.py").write_text(
        "import keras\n"
        "def build():\n"
        "    return keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(2)])\n"
        "def number():\n"
        "    return 3\n"
        "def needs():\n"
        "    import surely_absent\n"
    )
    return folder


def run(*arguments, lines=None, **variables):
    """The status and the output of a command, which must end without a traceback."""
    variables = {"KERAS_BACKEND": BACKEND, **variables}
    result = CliRunner().invoke(main, list(map(str, arguments)), input=lines, env=variables)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def run_as_ordinary_user(*arguments, like=None):
    """As `run`. A superuser runs it first, who may be the only one to read Python's own files.

    Args:
        arguments: of the command.
        like: arguments by which the superuser may run it; None for the same.
    """
    if os.geteuid() == 0:
        run(*(arguments if like is None else like))
    with ordinary_user():
        return run(*arguments)


def uses(good, out):
    """For each way to give a command a file: the suffixes it may have, and the command."""
    model, weights = good / "model.keras", good / "weights.npz"
    state_dicts = (".npz", ".pt", ".safetensors")
    return {
        "agree": ((".keras", ".h5"), lambda f: ["agree", f, *HERE]),
        "agree --inputs": ((".npz",), lambda f: ["agree", model, "--inputs", f, *HERE]),
        "agree --labels": ((".npz",), lambda f: ["agree", model, "--labels", f, *HERE]),
        "explain": ((".keras", ".h5"), lambda f: ["explain", f]),
        "export": (
            (".keras",),
            lambda f: ["export", f, "--format", "torch", "--out", out / "model.pt2"],
        ),
        "migrate": (
            (".keras", ".h5"),
            lambda f: ["migrate", f, "--out", out / "new.keras"],
        ),
        "port weights": (
            state_dicts,
            lambda f: ["port", f, model, "--out", out / "new.keras"],
        ),
        "port model": ((".keras",), lambda f: ["port", weights, f, "--out", out / "new.keras"]),
        "port back": ((".keras",), lambda f: ["port", f, "--out", out / "new.npz"]),
        "port --like": (
            state_dicts,
            lambda f: ["port", model, "--like", f, "--out", out / "new.npz"],
        ),
        "port --mapping": (
            (".json",),
            lambda f: ["port", weights, model, "--mapping", f, "--out", out / "new.keras"],
        ),
        "agree, a target": (
            (".onnx",),
            lambda f: ["agree", model, "--targets", f"{BACKEND}@cpu,onnxruntime:{f}"],
        ),
        "export --check-only": (
            (".onnx",),
            lambda f: ["export", model, "--format", "onnx", "--check-only", "--out", f],
        ),
        "stream": ((".keras", ".h5", ".onnx"), lambda f: ["stream", f]),
        "stream --state": ((".npz",), lambda f: ["stream", model, "--state", f]),
    }


@pytest.fixture
def place(good):
    """A folder that is anybody's, with the good files, unlike those that pytest makes."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shutil.copytree(good, folder / "good")
        (folder / "out").mkdir()
        for path in (folder, folder / "good", folder / "out"):
            path.chmod(0o777)
        yield folder


USES = uses(*map(pathlib.Path, ("good", "out")))


@pytest.mark.parametrize(
    ("use", "kind", "suffix"),
    [(use, *case) for use, (suffixes, _) in USES.items() for case in cases(*suffixes)],
)
def test_a_bad_file_is_wrong_use_in_every_command(place, use, kind, suffix):
    if suffix == ".pt":
        pytest.importorskip("torch")
    bad, out = place / f"bad{suffix}", place / "out"
    words = make(kind, bad)
    _, command = uses(place / "good", out)[use]
    if kind == "unreadable":
        other = place / f"empty{suffix}"
        other.touch()
        status, output = run_as_ordinary_user(*command(bad), like=command(other))
    else:
        status, output = run(*command(bad))
    assert status == 2, output
    squeezed = "".join(output.split())  # paths are wrapped anywhere
    assert "".join(str(bad).split()) in squeezed
    assert any(
        re.search(word, output) or word.replace(" ", "") in squeezed for word in words.split("|")
    ), output
    assert not out.exists() or not list(out.iterdir())


# A state that is not there is one that begins.
@pytest.mark.parametrize("use", [use for use in USES if use != "stream --state"])
def test_a_missing_file_is_wrong_use_in_every_command(good, tmp_path, use):
    suffixes, _ = USES[use]
    _, command = uses(good, tmp_path / "out")[use]
    status, output = run(*command(tmp_path / f"none{suffixes[0]}"))
    assert status == 2, output


ON_A_BACKEND = {
    "demo": lambda good, out: ["demo", "--out", out],
    "explain": lambda good, out: ["explain", good / "model.keras"],
    "export": lambda good, out: [
        "export", good / "model.keras", "--format", "torch", "--out", out / "m.pt2"
    ],
    "migrate": lambda good, out: ["migrate", good / "model.keras"],
    "port": lambda good, out: ["port", good / "model.keras", "--out", out / "w.npz"],
    "stream": lambda good, out: ["stream", good / "model.keras"],
}  # fmt: skip
ALL_COMMANDS = {
    **ON_A_BACKEND,
    "agree": lambda good, out: ["agree", good / "model.keras"],
    "doctor": lambda good, out: ["doctor"],
}


def test_every_command_is_here():
    assert set(ALL_COMMANDS) == set(main.commands)


@pytest.mark.parametrize("name", ON_A_BACKEND)
def test_a_backend_that_is_not_installed_could_not_run(good, tmp_path, name, monkeypatch):
    monkeypatch.setattr(environment, "installed_backends", lambda: [BACKEND])
    command = ON_A_BACKEND[name](good, tmp_path)
    status, output = run(*command, "--backend", OTHER)
    assert status == 3, output
    assert f"multibackend-lstm[{OTHER}]" in output


@pytest.mark.parametrize("name", [*ALL_COMMANDS, "demo on all"])
def test_no_backend_at_all_could_not_run(good, tmp_path, name, monkeypatch):
    monkeypatch.setattr(environment, "installed_backends", list)
    monkeypatch.setattr(probe, "probe", lambda name: {"devices": [], "precision": {}})
    on_all = {"demo on all": lambda good, out: ["demo", "--all-backends", "--out", out]}
    status, output = run(*(ALL_COMMANDS | on_all)[name](good, tmp_path))
    assert status == 3, output
    assert "multibackend-lstm[" in output


def test_doctor_of_a_backend_that_is_not_installed(good, monkeypatch):
    monkeypatch.setattr(environment, "installed_backends", lambda: [BACKEND])
    monkeypatch.setattr(probe, "probe", lambda name: {"devices": [], "precision": {}})
    assert run("doctor")[0] == 0
    assert run("doctor", KERAS_BACKEND=OTHER)[0] == 3


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_a_wrong_name_of_a_backend_is_wrong_use(good, tmp_path, name, monkeypatch):
    monkeypatch.setattr(probe, "probe", lambda name: {"devices": [], "precision": {}})
    command = ALL_COMMANDS[name](good, tmp_path)
    status, output = run(*command, KERAS_BACKEND="theano")
    assert status == 2, output
    assert "KERAS_BACKEND must be one of" in output


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_an_unknown_option_is_wrong_use_and_help_states_the_statuses(name):
    assert run(name, "--nothing")[0] == 2
    status, output = run(name, "--help")
    assert status == 0
    assert "Ends with status 0" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["surely_absent:build"], "there is no module 'surely_absent'"),
        (["functions:bild"], "names 'bild', which 'functions' has not. Did you mean 'build'?"),
        (["functions:number"], "a keras.Model is needed. Received int"),
        (["functions:build", "--optimizer", "adamant"], "`optimizer` must be the name"),
        (["functions:build", "--loss", "mse2"], "`loss` must be the name"),
        (["functions:build", "--import", "surely_absent"], "there is no module 'surely_absent'"),
        (["lambda.keras"], "cannot be loaded: .*by default. .multibackend-lstm migrate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_of_agree(good, monkeypatch, arguments, words):
    monkeypatch.chdir(good)
    status, output = run("agree", *arguments, *HERE)
    assert status == 2, output
    assert re.search(words, output), output


def test_what_does_not_run_in_agree(good, monkeypatch):
    monkeypatch.chdir(good)
    status, output = run("agree", "functions:needs", *HERE)
    assert status == 3, output
    assert "surely_absent" in output
    status, output = run("agree", "model.keras", *HERE, "--interpreter", f"{BACKEND}=/nowhere")
    assert status == 3, output


def test_inputs_that_would_fill_the_memory(tmp_path):
    """A file of a few bytes asks for petabytes."""
    path, weights = tmp_path / "wide.keras", tmp_path / "weights.npz"
    inputs = keras.Input((10**6, 10**6, 2))
    keras.Model(inputs, keras.layers.Dense(3)(inputs)).save(path)
    write_state_dict({"fc.weight": normal(3, 2), "fc.bias": normal(3)}, weights)
    out = tmp_path / "new.keras"
    for command in (
        ["agree", path, *HERE],
        ["migrate", path, "--verify", "--out", out],
        ["port", weights, path, "--out", out],
    ):
        status, output = run(*command)
        assert status == 2, output
        assert re.search(r"has [\d,]{13,} numbers, more than 33,554,432", output), output
    assert not out.exists()


def test_a_file_whose_weights_contradict_its_input(tmp_path):
    good, bad, out = (tmp_path / name for name in ("good.keras", "bad.keras", "w.npz"))
    keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(2)]).save(good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            shape = b'"batch_shape": [null, null, 3]', b'"batch_shape": [null, null, 5]'
            content = old.read(name)
            new.writestr(name, content.replace(*shape) if name == "config.json" else content)
    for command in (["stream", bad], ["port", bad, "--out", out]):
        status, output = run(*command)
        assert status == 2, output
        assert "(3, 8)" in output
        assert "(5, 8)" in output
    assert not out.exists()


def test_answers(good, tmp_path):
    model = good / "model.keras"
    status, output = run("explain", model)
    assert status == 0, output
    assert run("migrate", model)[0] == 0
    assert run("port", good / "weights.npz", model, "--out", tmp_path / "new.keras")[0] == 0
    assert run("migrate", good / "lambda.keras")[0] == 1
    assert run("port", good / "other.npz", model, "--out", tmp_path / "no.keras")[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["new.keras"]


def test_an_old_file_that_does_not_run(good, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nraise RuntimeError('no keras')\n")
    python.chmod(0o755)
    status, output = run("migrate", good / "model.keras", "--verify", "--python", python)
    assert status == 3, output


WRITING = {
    "demo": lambda good, out: ["demo", "--out", out],
    "migrate": lambda good, out: ["migrate", good / "model.keras", "--out", out / "new.keras"],
    "port": lambda good, out: [
        "port", good / "weights.npz", good / "model.keras", "--out", out / "new.keras"
    ],
    "port back": lambda good, out: ["port", good / "model.keras", "--out", out / "new.npz"],
    "agree": lambda good, out: ["agree", good / "model.keras", "--html", out / "page.html"],
    "agree --save-truth": lambda good, out: [
        "agree", good / "model.keras", "--save-truth", out / "truth.npz", *HERE
    ],
    "agree --bundle": lambda good, out: [
        "agree", good / "model.keras", "--bundle", out / "bundle", *HERE
    ],
    "export": lambda good, out: [
        "export", good / "model.keras", "--format", "torch", "--out", out / "model.pt2"
    ],
    "stream": lambda good, out: ["stream", good / "model.keras", "--state", out / "state.npz"],
}  # fmt: skip


@pytest.mark.parametrize("name", WRITING)
def test_a_place_that_cannot_be_written_is_wrong_use(good, tmp_path, name):
    needed = {"agree": "jinja2", "export": "torch"}
    if name in needed:
        pytest.importorskip(needed[name])
    (tmp_path / "file").write_text("mine")
    status, output = run(*WRITING[name](good, tmp_path / "file" / "folder"))
    assert status == 2, output
    assert "cannot write to the folder" in output


@pytest.mark.parametrize("name", WRITING)
def test_a_folder_that_may_not_be_written_is_wrong_use(place, name):
    needed = {"agree": "jinja2", "export": "torch"}
    if name in needed:
        pytest.importorskip(needed[name])
    (place / "mine").mkdir(mode=0o555)
    (place / "file").touch()
    status, output = run_as_ordinary_user(
        *WRITING[name](place / "good", place / "mine"),
        like=WRITING[name](place / "good", place / "file" / "folder"),
    )
    assert status == 2, output
    assert "cannot write to the folder" in output
    assert list((place / "mine").iterdir()) == []


def test_models_in_a_folder_that_may_only_be_read(place):
    (place / "good").chmod(0o555)
    model, weights = place / "good" / "model.keras", place / "good" / "weights.npz"
    for command in (
        ["explain", model],
        ["migrate", model, "--out", place / "out" / "new.keras"],
        ["migrate", "--dry-run", place / "good"],
        ["port", weights, model, "--out", place / "out" / "ported.keras"],
        ["port", model, "--out", place / "out" / "weights.npz"],
    ):
        for path in (place / "out").iterdir():
            path.unlink()
        status, output = run_as_ordinary_user(*command)
        assert status == (1 if "--dry-run" in command else 0), output  # one holds a Lambda
    assert [path.name for path in (place / "out").iterdir()] == ["weights.npz"]


@pytest.mark.parametrize(
    ("name", "size"),
    [("migrate", 0), ("port", 0), ("port", 300), ("port back", 0), ("port back", 300)],
)
def test_a_disk_that_fills_while_it_is_written(good, tmp_path, name, size):
    with no_file_beyond(size):
        status, output = run(*WRITING[name](good, tmp_path))
    assert status == 2, output
    assert "cannot write" in output
    assert "File too large" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["migrate", "port", "port back"])
def test_a_disk_that_is_full(good, tmp_path, name, monkeypatch):
    replace = os.replace

    def full(source, target):
        if str(tmp_path) in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    status, output = run(*WRITING[name](good, tmp_path))
    assert status == 2, output
    assert "No space left on device" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 300])
def test_a_disk_that_fills_leaves_the_old_state(good, tmp_path, size):
    command = WRITING["stream"](good, tmp_path)
    line = ",".join("1" * 3)
    assert run(*command, lines=line)[0] == 0
    before = (tmp_path / "state.npz").read_bytes()
    with no_file_beyond(size):
        status, output = run(*command, lines=line)
    assert status == 2, output
    assert re.search(r"cannot write \S+state\.npz: File too large", output), output
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]
    assert (tmp_path / "state.npz").read_bytes() == before


@pytest.mark.parametrize("name", [name for name in WRITING if name not in ("demo", "export")])
def test_a_folder_in_the_place_of_a_file_is_wrong_use(good, tmp_path, name):
    command = WRITING[name](good, tmp_path)
    out = next(
        path for path in command if isinstance(path, pathlib.Path) and path.parent == tmp_path
    )
    (out / "mine").mkdir(parents=True)
    status, output = run(*command)
    assert status == 2, output
    assert re.search("is a directory|is not empty|must be", output), output
    assert [path.name for path in tmp_path.rglob("*")] == [out.name, "mine"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no place that is always full")
def test_a_full_disk_behind_the_standard_output():
    code = (
        "import click\n"
        "from multibackend_lstm.cli.shared import Commands\n"
        "main = Commands()\n"
        "main.command('say')(lambda: click.echo('words'))\n"
        "main()\n"
    )
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code, "say"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 2, ended.stderr
    *_, line = ended.stderr.splitlines()
    assert line == "Error: cannot write to the standard output: No space left on device."


def test_a_value_error_from_elsewhere_is_no_wrong_use(good, monkeypatch):
    """A defect must not look like the user's mistake."""
    monkeypatch.setattr(environment, "choose_backend", lambda *_: json.loads("["))
    with pytest.raises(ValueError, match="Expecting value"):
        run("explain", good / "model.keras")

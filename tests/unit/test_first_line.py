"""`from multibackend_lstm import ...` as the first line of a program: which backend it runs on."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import pytest
from click.testing import CliRunner

import multibackend_lstm
from multibackend_lstm import environment, keras_import, porting
from multibackend_lstm.cli import main
from multibackend_lstm.environment import BACKENDS, BackendError, choose_backend, keras_backends
from multibackend_lstm.runtimes import probe

BACKEND = keras.backend.backend()
ROOT = Path(multibackend_lstm.__file__).parents[1]
TESTS = Path(__file__).parents[1]
WRITTEN_BY_KERAS = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """An empty KERAS_HOME; KERAS_BACKEND is not set."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    return tmp_path


@pytest.fixture
def install(monkeypatch):
    """A function that makes the named backends the installed ones."""
    return lambda *names: monkeypatch.setattr(
        environment, "installed_backends", lambda: [name for name in BACKENDS if name in names]
    )


def write(folder, **settings):
    (folder / "keras.json").write_text(json.dumps(settings, indent=4))


def run(code, visible=(), **variables):
    """What a program prints in which only some backends can be found, and what it logs."""
    hide = {"tensorflow", "torch", "jax", "jaxlib"} - {*visible, *(f"{v}lib" for v in visible)}
    start = (
        "import sys, os, logging; from importlib.machinery import PathFinder\n"
        "from one_backend import Without\n"
        f"sys.meta_path[sys.meta_path.index(PathFinder)] = Without({hide!r})\n"
        "logging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s %(message)s')\n"
    )
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", start + code],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS / "across_backends")]),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    logged = [line for line in process.stderr.splitlines() if "multibackend_lstm" in line]
    return process.stdout.strip(), logged


@pytest.mark.skipif(BACKEND not in BACKENDS, reason="not chosen by itself")
def test_with_one_backend_installed_it_is_taken(keras_home):
    # At the second line Keras's file is there, which says "tensorflow" whatever it ran on.
    for line, file_is_there in (
        ("from multibackend_lstm import build_model", False),
        ("from multibackend_lstm.layers import LSTM", True),
    ):
        assert (keras_home / "keras.json").exists() == file_is_there
        printed, logged = run(
            f"{line}\nimport keras\nprint(keras.backend.backend(), os.getenv('KERAS_BACKEND'))",
            [BACKEND],
        )
        assert json.loads((keras_home / "keras.json").read_text()) == WRITTEN_BY_KERAS
        assert printed == f"{BACKEND} {BACKEND}"
        (message,) = logged
        assert message.startswith(f"INFO multibackend_lstm Keras runs on {BACKEND}, since ")


def test_wrong_and_missing_backends_are_one_error_until_they_are_right(keras_home):
    code = (
        "import importlib.util, multibackend_lstm\n"
        "def attempt(name, line):\n"
        "    os.environ['KERAS_BACKEND'] = name\n"
        "    assert importlib.util.find_spec('keras')  # to look for it is no import\n"
        "    try:\n"
        "        exec(line)\n"
        "    except ImportError as error:\n"
        "        print(type(error).__name__, error)\n"
        "attempt('tf', 'from multibackend_lstm import build_model')\n"
        "attempt('jax', 'import keras')\n"
        "attempt('', 'import multibackend_lstm.layers')\n"
    )
    printed, logged = run(code)
    wrong, missing, none = printed.splitlines()
    assert wrong.startswith("BackendError KERAS_BACKEND must be one of jax, torch, tensorflow, ")
    assert wrong.endswith("Received 'tf': did you mean 'tensorflow'?")
    assert "KERAS_BACKEND is 'jax', and jax is not installed: pip install " in missing
    assert "'multibackend-lstm[jax]' (in a clone: pip install '.[jax]')" in missing
    assert none.startswith("MissingBackendError no backend is installed: pip install")
    assert logged == []


@pytest.mark.skipif(BACKEND not in ("jax", "numpy"), reason="Keras's NumPy backend needs JAX")
def test_numpy_is_a_choice_too(keras_home):
    code = "from multibackend_lstm import build_model\nimport keras\nprint(keras.backend.backend())"
    assert run(code, ["jax"], KERAS_BACKEND="numpy") == ("numpy", [])


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        (("jax", "torch"), "jax"),
        (("torch",), "torch"),
        (("tensorflow",), "tensorflow"),
        (("tensorflow", "torch", "jax"), "jax"),
        (("tensorflow", "torch"), "torch"),
    ],
)
def test_where_nothing_is_chosen_files_of_keras_make_no_difference(
    keras_home, install, installed, chosen
):
    install(*installed)
    assert choose_backend() == chosen
    for settings in (WRITTEN_BY_KERAS, {"floatx": "float32"}, {}):
        write(keras_home, **settings)
        assert choose_backend() == chosen
    (keras_home / "keras.json").write_text("{not JSON")
    assert choose_backend() == chosen


def test_a_choice_is_never_replaced(keras_home, install, monkeypatch):
    install("jax", "torch", "tensorflow")
    write(keras_home, **WRITTEN_BY_KERAS | {"floatx": "float64"})  # somebody has been there
    assert choose_backend() == "tensorflow"
    write(keras_home, backend="tensorflow")
    assert choose_backend() == "tensorflow"
    write(keras_home, backend="torch")
    assert choose_backend() == "torch"
    monkeypatch.setenv("KERAS_BACKEND", "")  # as Keras has it: not set
    assert choose_backend() == "torch"
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert choose_backend() == "tensorflow"
    assert choose_backend("jax") == "jax"
    install("jax")
    with pytest.raises(BackendError, match=r"KERAS_BACKEND is 'tensorflow'.*\[tensorflow\]"):
        choose_backend()
    monkeypatch.delenv("KERAS_BACKEND")
    with pytest.raises(BackendError, match=r"keras\.json is 'torch', and torch is not installed"):
        choose_backend()
    write(keras_home, backend="pytorch")
    with pytest.raises(BackendError, match=r"keras\.json must be .*did you mean 'torch'"):
        choose_backend()


def test_the_choice_among_several_is_a_warning(keras_home, install, monkeypatch, caplog):
    monkeypatch.setenv("KERAS_BACKEND", "")  # so that what is set is taken back
    install("jax", "torch")
    keras_import.settle_backend()
    assert os.environ["KERAS_BACKEND"] == "jax"
    keras_import.settle_backend()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith("not set. torch could be chosen too.")


@pytest.mark.parametrize("name", ["numpy", "openvino"])
def test_keras_knows_more_backends_than_the_command_line(name, install, monkeypatch):
    install()
    monkeypatch.setenv("KERAS_BACKEND", name)
    assert choose_backend(known=keras_backends()) == name
    with pytest.raises(BackendError, match=r"must be one of jax, torch, tensorflow\. Received"):
        choose_backend()


def test_backends_of_keras_3_16(monkeypatch):
    monkeypatch.setattr(environment, "version_of", lambda package: "3.15.1")
    assert "mlx" not in keras_backends()
    monkeypatch.setattr(environment, "version_of", lambda package: "3.16.0.dev2026010203")
    assert "mlx" in keras_backends()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("tf", "tensorflow"),
        ("Tensorflow", "tensorflow"),
        ("pytorch", "torch"),
        ("PyTorch", "torch"),
        ("JAX", "jax"),
        ("tensorfow", "tensorflow"),
        ("theano", None),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(wrong, meant, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", wrong)
    end = f"Received {wrong!r}" + (f": did you mean {meant!r}?" if meant else ".")
    with pytest.raises(BackendError) as error:
        choose_backend()
    assert str(error.value) == f"KERAS_BACKEND must be one of jax, torch, tensorflow. {end}"
    (tmp_path / "model.keras").write_text("")
    model = str(tmp_path / "model.keras")
    for command in (
        ["demo"],
        ["explain", model],
        ["agree", model],
        ["export", model, "--format=onnx", f"--out={tmp_path / 'a.onnx'}"],
        ["migrate", model, f"--out={tmp_path / 'new.keras'}"],
        ["port", model, f"--out={tmp_path / 'w.safetensors'}"],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, result.output
        assert "KERAS_BACKEND must be one of jax, torch, tensorflow" in result.output
        assert end in result.output


def test_layers_and_models_need_nothing_of_the_command_line():
    code = (
        "import sys\n"
        "for name in ('click', 'matplotlib', 'jinja2', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import numpy as np\n"
        "from multibackend_lstm import LSTM, agreement, build_model, porting, upgrade\n"
        "model = build_model((5, 2, 3), units=2)\n"
        "print(model.predict(np.zeros((2, 5, 2, 3), 'float32'), verbose=0).shape)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "(2, 1)", process.stderr


def test_doctor_names_the_backend_and_a_wrong_one(monkeypatch):
    monkeypatch.setattr(probe, "probe", lambda name: {"devices": [], "precision": {}})
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    result = CliRunner().invoke(main, ["doctor"])
    assert "Keras runs on numpy" in result.output
    monkeypatch.setenv("KERAS_BACKEND", "tf")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 2
    assert "Received 'tf': did you mean 'tensorflow'?" in result.output


def test_a_late_choice_is_told_once_with_both_names(monkeypatch, recwarn):
    warnings.simplefilter("always")  # `recwarn` puts the filters back
    other = next(name for name in BACKENDS if name != BACKEND)
    monkeypatch.setenv("KERAS_BACKEND", other)
    for access in (
        lambda: multibackend_lstm.LSTM,
        lambda: porting.from_torch,
        keras_import.prepare_keras_import,  # `import multibackend_lstm` after keras
    ):
        monkeypatch.setattr(keras_import, "_told", False)
        for _ in range(2):
            access()
        warning = recwarn.pop(UserWarning)
        assert f"KERAS_BACKEND is {other!r}" in str(warning.message)
        assert f"runs on {BACKEND!r}" in str(warning.message)
        assert not recwarn.list
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    monkeypatch.setattr(keras_import, "_told", False)
    assert multibackend_lstm.LSTM
    assert not recwarn.list


def test_the_late_choice_is_told_of_the_users_line(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", next(name for name in BACKENDS if name != BACKEND))
    monkeypatch.setattr(keras_import, "_told", False)
    with pytest.warns(UserWarning, match="runs on") as caught:
        from multibackend_lstm import GRU  # noqa: F401
    assert caught[0].filename == __file__

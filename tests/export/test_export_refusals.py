"""What an export refuses, and how it judges: no process is started here."""

import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from unit.tools import no_file_beyond

import multibackend_lstm
from export.conftest import BUILDERS
from multibackend_lstm import porting
from multibackend_lstm.cli import main
from multibackend_lstm.export import export_runtime, exports
from multibackend_lstm.export.formats import FORMATS, missing
from multibackend_lstm.files import WriteError
from multibackend_lstm.porting import ModelFileError


@pytest.mark.parametrize(
    ("format", "path", "remedy"),
    [
        ("onnx", "model.keras", "model.onnx"),
        ("litert", "model", "model.tflite"),
        ("openvino", "model.bin", "model.xml"),
        ("torch", "model.pt", "model.pt2"),
        ("saved_model", "model.pb", "model."),
    ],
)
def test_a_wrong_suffix(format, path, remedy, saved, tmp_path):
    with pytest.raises(ValueError, match=rf"`path` must .* for {format}.*Write .*{remedy}"):
        porting.export(saved("known"), tmp_path / path, format)


def _failing(request, backend, timeout):
    Path(request["artefact"]).write_bytes(b"half")
    return exports.Attempt(backend, f"{backend}: the process was ended.\nIts last line"), []


def test_a_full_disk_is_no_fault_of_the_exporter(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "_attempt", _failing)
    path = tmp_path / "model.onnx"
    path.write_text("old")
    model = saved("known")
    with no_file_beyond(1000), pytest.raises(WriteError, match=r"model\.onnx: File too large$"):
        porting.export(model, path, "onnx", overwrite=True)
    with pytest.raises(porting.ExportError) as error:
        porting.export(model, path, "onnx", overwrite=True)
    assert len(str(error.value.report).splitlines()) == len(error.value.report.attempts)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_bad_names(saved, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"`format` must be one of onnx, .*Received 'tflite'"):
        porting.export(saved("known"), path, "tflite")
    with pytest.raises(ValueError, match=r"`backend` must be one of .*Received 'mxnet'"):
        porting.export(saved("known"), path, "onnx", backend="mxnet")
    with pytest.raises(ValueError, match="onnx cannot be exported from jax, only from torch, t"):
        porting.export(saved("known"), path, "onnx", backend="jax")


def test_paths_that_are_not_there_or_are_the_model(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        porting.export(tmp_path / "absent.keras", tmp_path / "m.onnx", "onnx")
    with pytest.raises(FileNotFoundError, match="no artefact"):
        porting.check_export(saved("known"), tmp_path / "m.onnx", "onnx")
    (tmp_path / "m.h5").touch()
    with pytest.raises(ValueError, match=r"must be a \.keras file"):
        porting.export(tmp_path / "m.h5", tmp_path / "m.onnx", "onnx")
    # A model under the artefact's name, as a link.
    link = tmp_path / "link.onnx"
    link.symlink_to(saved("known"))
    with pytest.raises(ValueError, match="must not be the model itself"):
        porting.export(saved("known"), link, "onnx", overwrite=True)


def test_what_stands_at_the_path(saved, tmp_path):
    model = saved("known")
    weights = tmp_path / "model.bin"
    weights.write_text("someone's")
    with pytest.raises(ValueError, match=r"model\.bin exists.*overwrite=True"):
        porting.export(model, tmp_path / "model.xml", "openvino")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "precious").touch()
    with pytest.raises(ValueError, match="is a folder and no saved_model"):
        porting.export(model, folder, "saved_model", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, and a saved_model a folder"):
        porting.export(model, tmp_path / "file", "saved_model", overwrite=True)
    assert weights.read_text() == "someone's"


def test_a_pair_and_a_folder_are_replaced_whole(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    for place, text in ((new, "new"), (old, "old")):
        (place / "saved").mkdir(parents=True)
        for name in ("model.xml", "model.bin", "saved/saved_model.pb"):
            (place / name).write_text(text)
    (old / "saved" / "stale").touch()
    exports._move(new, old)
    assert {p.read_text() for p in old.rglob("*") if p.is_file()} == {"new"}
    assert sorted(p.name for p in old.iterdir()) == ["model.bin", "model.xml", "saved"]


def test_missing_packages_name_the_extra(saved, tmp_path, monkeypatch):
    def absent(*names):
        monkeypatch.setattr(exports, "missing", lambda modules: [m for m in modules if m in names])

    path = tmp_path / "model.onnx"
    absent("onnxruntime")
    line = r"onnxruntime is not installed: pip install 'multibackend-lstm\[onnx\]'"
    with pytest.raises(ValueError, match=line):
        porting.export(saved("known"), path, "onnx")
    artefact = tmp_path / "there.onnx"
    artefact.touch()
    with pytest.raises(ValueError, match=line):
        porting.check_export(saved("known"), artefact, "onnx")
    absent("onnx", "tf2onnx")
    with pytest.raises(ValueError, match=r"onnx is not installed: .*\[onnx\]"):
        porting.export(saved("known"), path, "onnx")
    absent("onnx")
    assert exports._candidates("onnx", FORMATS["onnx"], None) == ["tensorflow"]
    monkeypatch.setattr(exports, "installed_backends", lambda: ["jax"])
    with pytest.raises(ValueError, match=r"exported from torch, tensorflow: torch is not inst"):
        porting.export(saved("known"), path, "onnx")
    assert missing(("math", "surely_absent")) == ["surely_absent"]


def test_models_that_cannot_be_exported(tmp_path):
    path = tmp_path / "model.keras"

    def refusal(model):
        model.save(path)
        with pytest.raises(export_runtime.ModelError) as caught:
            export_runtime._load(str(path))
        return str(caught.value)

    inputs = keras.Input(batch_shape=(2, 5, 3))
    stateful = multibackend_lstm.LSTM(2, stateful=True, name="memory")(inputs)
    assert "memory is stateful" in refusal(keras.Model(inputs, stateful))
    inputs = keras.Input((5, 3))
    half = multibackend_lstm.LSTM(2, dtype="mixed_float16", name="half")(inputs)
    assert "half computes in float16" in refusal(keras.Model(inputs, half))
    model = BUILDERS["known"]()
    weights = model.get_weights()
    weights[1][0, 0] = np.nan
    model.set_weights(weights)
    assert "recurrent_kernel holds NaN" in refusal(model)


def test_sizes_that_do_not_fit_the_model():
    model = BUILDERS["known"]()
    with pytest.raises(export_runtime.ModelError, match=r"has time=6\. Received --time 7\."):
        export_runtime._specs(model, None, 7)
    (spec,) = export_runtime._specs(model, 4, 6)
    assert spec["shape"] == [4, 6, 3, 2]
    open_image = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(export_runtime.ModelError, match="neither batch nor time"):
        export_runtime._specs(open_image, None, None)


@pytest.mark.parametrize("content", [b"", b"no zip", None, "function"])
def test_a_file_that_cannot_be_loaded(content, saved, tmp_path):
    """Damaged, or with a function, which is not run."""
    path = tmp_path / "model.keras"
    if content == "function":
        inputs = keras.Input((5, 3))
        keras.Model(inputs, keras.layers.Lambda(lambda x: x[:, -1])(inputs)).save(path)
    else:
        path.write_bytes(saved("known").read_bytes()[:3000] if content is None else content)
    with pytest.raises(ModelFileError, match=r"cannot be loaded|is empty"):
        export_runtime._load(str(path))


def test_a_damaged_file_ends_the_command_with_status_2(tmp_path):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    arguments = ["export", str(path), "--format", "torch", "--out", str(tmp_path / "m.pt2")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "cannot be loaded" in result.output
    assert list(tmp_path.iterdir()) == [path]


def test_the_masks_that_are_drawn():
    """No step, steps at both ends, a hole, and all steps are masked."""
    x = np.ones((5, 4, 2), "float32")
    exports._mask_steps([x], 0.0)
    valid = x.any(-1).astype(int).tolist()
    assert valid == [[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_help_imports_no_backend():
    code = (
        "import sys\nfrom click.testing import CliRunner\n"
        "from multibackend_lstm.cli import main\n"
        "import multibackend_lstm.porting\n"
        "assert 'status 0' in CliRunner().invoke(main, ['export', '--help']).output\n"
        "print(sorted({'keras', 'numpy', 'torch', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "[]", process.stderr

"""A bundle: small, shows the fault by itself, and replays."""

import errno
import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from keras import layers
from zoo.graded import Graded

from multibackend_lstm import agreement
from multibackend_lstm.agreement.bundle import replayed
from multibackend_lstm.agreement.fewer_units import _cut
from multibackend_lstm.cli.agree import agree
from multibackend_lstm.files import WriteError
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.loading import ModelFileError

from . import cases
from .conftest import BACKEND, TARGET, repro

MODULE = "zoo.graded"


def model(way="channel"):
    graded = Graded(way, 0.01, BACKEND, name="graded")
    return keras.Sequential([keras.Input((12, 6)), layers.Dense(6), graded, layers.Dense(3)])


@pytest.fixture(scope="module")
def out(workers, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles")
    report = agreement.check(model(), workers=workers, steps=0, bundle=out, modules=[MODULE])
    assert report.disagreeing == [TARGET]
    (line,) = report.bundles
    assert str(out / "finding-1") in line
    return out / "finding-1"


def copied(folder, to, **changes):
    """A bundle with other entries of case.json."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    header = json.loads((to / "case.json").read_text())
    (to / "case.json").write_text(json.dumps({**header, **changes}))
    return to


def test_it_holds_the_least_inputs(out):
    assert {file.name for file in out.iterdir()} == {
        "arrays.npz",
        "case.json",
        "issue.md",
        "repro.py",
    }
    with np.load(out / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["tensor0"].shape == (1, 1, 6)  # as wide as the weights are
        np.testing.assert_array_equal(arrays["tensor0"], arrays["tensor0"].round(2))
        right, wrong = arrays["expected"], arrays["received"]
    np.testing.assert_allclose(wrong[..., 0], 1.01 * right[..., 0], rtol=1e-5)
    np.testing.assert_allclose(wrong[..., 1:], right[..., 1:], rtol=1e-5)
    issue = (out / "issue.md").read_text()
    assert "Graded" in issue
    assert f"KERAS_BACKEND={BACKEND} python repro.py" in issue


def test_its_script_fails_where_the_layer_is_wrong_and_passes_elsewhere(out, tmp_path):
    ran = repro(out)
    assert ran.returncode == 1, ran.stderr
    assert "wrong by up to" in ran.stderr
    layer = json.loads((out / "case.json").read_text())["layer"]
    layer["config"]["backend"] = None
    ran = repro(copied(out, tmp_path / "healthy", layer=layer))
    assert ran.returncode == 0, ran.stderr
    assert "right" in ran.stdout


def test_it_replays(out, workers):
    layer, inputs = replayed(out, [MODULE])
    report = agreement.check(layer, inputs, workers=workers, steps=None, modules=[MODULE])
    off = [f for f in report.findings if f.verdict == "disagrees"]
    assert (off[0].layer, off[0].group) == ("Graded", "layers alone")


def test_a_gradient_has_a_bundle_too(workers, tmp_path):
    """Its script takes gradients on any backend by what Keras has in public alone."""
    out = tmp_path / "out"
    report = agreement.check(
        model("gradient"), workers=workers, steps=0, bundle=out, modules=[MODULE]
    )
    assert [f.layer for f in report.findings] == ["Graded"]
    folder = out / "finding-1"
    header = json.loads((folder / "case.json").read_text())
    assert "gradient" in header["kind"]
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["tensor0"].shape == (1, 1, 6)
    ran = repro(folder)
    assert ran.returncode == 1, ran.stderr
    assert "wrong by up to" in ran.stderr
    header["layer"]["config"]["backend"] = None
    ran = repro(copied(folder, tmp_path / "healthy", layer=header["layer"]))
    assert ran.returncode == 0, ran.stderr


def test_units_and_weights_are_cut_too(workers, tmp_path):
    inputs = keras.Input((7, 6))
    model = keras.Model(inputs, cases.OffDense(16, name="off")(inputs))
    model.set_weights([x + 0.125 for x in model.get_weights()])
    out = tmp_path / "out"
    agreement.check(model, workers=workers, steps=None, bundle=out, modules=["agreement.cases"])
    folder = out / "finding-1"
    header = json.loads((folder / "case.json").read_text())
    assert header["layer"]["config"]["units"] == 1
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        assert [arrays[f"weight{i}"].shape for i in (0, 1)] == [(6, 1), (1,)]
        np.testing.assert_array_equal(arrays["weight0"], model.get_weights()[0][:, :1])
        assert arrays["expected"].shape == (1, 1, 1)
    ran = repro(folder)
    assert ran.returncode == 1, ran.stderr
    assert "wrong by up to" in ran.stderr


def test_gates_are_cut_each_by_itself():
    lstm = layers.LSTM(4)
    lstm.build((None, 5, 3))
    kernel, recurrent, bias = lstm.get_weights()
    cut = _cut(
        dict(zip("krb", (kernel, recurrent, bias), strict=True)), [(3, 8), (2, 8), (8,)], 4, 2
    )
    columns = [0, 1, 4, 5, 8, 9, 12, 13]
    np.testing.assert_array_equal(cut["k"], kernel[:, columns])
    np.testing.assert_array_equal(cut["r"], recurrent[:2][:, columns])
    np.testing.assert_array_equal(cut["b"], bias[columns])
    with pytest.raises(ValueError, match="is not made of 4 units"):
        _cut({"k": kernel}, [(2, 16)], 4, 2)


@pytest.mark.slow
def test_updates_loss_optimizer_and_operations_have_bundles_too(workers, tmp_path):
    inputs = keras.Input((12, 6))
    x = layers.Dense(6)(inputs)
    x = Graded("update", 0.01, BACKEND, name="moving")(cases.OffAdd(1.0, name="off_add")(x))
    out, modules = tmp_path / "out", [MODULE, "agreement.cases"]
    report = agreement.check(
        keras.Model(inputs, layers.Dense(3)(x)), workers=workers, steps=1, bundle=out,
        modules=modules, loss=cases.OffLoss(), optimizer=cases.OffSGD(0.01),
    )  # fmt: skip
    found = {}
    for number, finding in enumerate(report.findings, 1):
        folder = out / f"finding-{number}"
        assert folder.is_dir(), report.bundles
        header = json.loads((folder / "case.json").read_text())
        found[finding.layer] = header["kind"]
        ran = repro(folder)
        assert ran.returncode == 1, (finding, ran.stdout, ran.stderr)
        assert "wrong by up to" in ran.stderr
        if header["what"] == "optimizer":
            with pytest.raises(CaseError, match=r"run its repro\.py"):
                replayed(folder, modules)
            continue
        again, given = replayed(folder, modules)
        report = agreement.check(again, given, workers=workers, steps=1, modules=modules)
        assert report.disagreeing == [TARGET], report.table()
    assert {*found} == {"Graded", "OffAdd", "OffLoss", "OffSGD"}
    assert found["Graded"] == found["OffSGD"] == "update alone"


def test_a_folder_that_holds_something_is_refused_first(workers, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match="is not empty"):
        agreement.check("no such model", workers=workers, bundle=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        agreement.check("no such model", workers=workers, bundle=tmp_path / "file")


def test_a_full_disk_leaves_no_half_of_a_bundle(workers, tmp_path, monkeypatch):
    write = Path.write_text

    def full(path, *arguments, **options):
        if path.name == "repro.py":  # the arrays and case.json are written by then
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WriteError, match=r"cannot write .*finding-1: No space left on device"):
        agreement.check(model(), workers=workers, steps=0, bundle=tmp_path, modules=[MODULE])
    assert list(tmp_path.iterdir()) == []


def test_a_class_of_a_module_that_nobody_named_is_refused(out, tmp_path):
    with pytest.raises(CaseError, match=r"--import zoo\.graded"):
        replayed(out, [])
    layer = {"module": "antigravity", "class_name": "X", "config": {}, "registered_name": None}
    changed = copied(out, tmp_path / "changed", layer=layer)
    with pytest.raises(CaseError, match="--import antigravity"):
        replayed(changed, [MODULE])
    assert "antigravity" not in sys.modules


def test_pickles_and_other_folders_are_refused(out, tmp_path):
    changed = copied(out, tmp_path / "pickled")
    np.savez(changed / "arrays.npz", tensor0=np.array([{}], object))
    with pytest.raises(ModelFileError, match="Object arrays"):
        replayed(changed, [MODULE])
    with pytest.raises(CaseError, match="is no bundle"):
        replayed(tmp_path, [])
    with pytest.raises(CaseError, match="of version 0"):
        replayed(copied(out, tmp_path / "old", version=0), [MODULE])


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (None, "describes no layer"),
        ({"actavation": "linear"}, r"Unrecognized keyword arguments.*actavation"),
        ({"units": 10**8}, r"its layers hold [\d,]+ numbers"),
    ],
)
def test_a_layer_that_cannot_be_made_is_one_line(tmp_path, layer, words):
    dense = keras.saving.serialize_keras_object(layers.Dense(2, name="dense"))
    config = None if layer is None else {**dense, "config": {**dense["config"], **layer}}
    call = {"list": [{"list": [{"tensor": 0, "mask": {"value": None}}]}, {"dict": {}}]}
    header = {"version": 1, "layer": config, "call": {"arguments": call}, "weights": ["a", "b"]}
    (tmp_path / "case.json").write_text(json.dumps(header))
    arrays = {"tensor0": np.ones((4, 3), "float32"), "weight0": np.ones((3, 2), "float32")}
    np.savez(tmp_path / "arrays.npz", weight1=np.ones(2, "float32"), **arrays)
    with pytest.raises(CaseError, match=words) as caught:
        replayed(tmp_path, [])
    assert "\n" not in str(caught.value)


def test_the_command_wants_a_model_or_a_bundle(tmp_path):
    for arguments in ([], ["m.keras", "--replay", str(tmp_path)]):
        result = CliRunner().invoke(agree, arguments)
        assert result.exit_code == 2
        assert "one of MODEL, --suite and --replay" in result.output

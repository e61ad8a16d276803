"""The suite: complete, buildable, resumed where it stopped."""

import json

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from agreement.conftest import BACKEND, TARGET
from multibackend_lstm.agreement.suite.keras_functions import LEFT_OUT_OF_TRAINING
from multibackend_lstm.agreement.suite.keras_layers import LEFT_OUT, cases
from multibackend_lstm.agreement.suite.running import built, folder_of, run_suite
from multibackend_lstm.cli import main
from multibackend_lstm.cli.agree import _print_suite, suite_status


def test_every_layer_of_keras_is_a_case_or_is_left_out_with_a_reason():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) >= 600
    classes = {}
    for name in dir(keras.layers):
        found = getattr(keras.layers, name)
        if isinstance(found, type) and issubclass(found, keras.layers.Layer):
            classes.setdefault(found, set()).add(name)
    known = {case.layer for case in cases() if case.kind == "layer"}
    assert not known & {*LEFT_OUT}
    missing = [names for names in classes.values() if not names & (known | {*LEFT_OUT})]
    assert not missing


@pytest.mark.parametrize(
    ("kind", "module", "base"),
    [("loss", keras.losses, keras.losses.Loss), ("optimizer", keras.optimizers, None)],
)
def test_every_loss_and_optimizer_is_a_case_or_is_left_out_with_a_reason(kind, module, base):
    base = base or keras.optimizers.Optimizer
    classes = {n for n in dir(module) if isinstance(getattr(module, n), type)}
    known = {case.layer for case in cases() if case.kind == kind}
    assert known <= classes
    assert not known & {*LEFT_OUT_OF_TRAINING}
    missing = classes - known - {*LEFT_OUT_OF_TRAINING}
    assert not {n for n in missing if issubclass(getattr(module, n), base)}


def test_every_activation_is_a_case():
    functions = {n for n in dir(keras.activations) if n[0] != "_"}
    known = {c.options["activation"] for c in cases() if c.layer == "Activation"}
    known |= {c.layer for c in cases() if c.kind == "op"}
    others = {"get", "serialize", "deserialize"}
    of = {getattr(keras.activations, n) for n in known & functions}
    assert not {n for n in functions - others if getattr(keras.activations, n) not in of}


@pytest.mark.parametrize("case", cases()[::40], ids=lambda case: case.name)
def test_a_case_is_built_with_weights_of_its_own(case):
    model, inputs = built(case)
    outputs = keras.tree.flatten(model(inputs))
    assert all(np.isfinite(np.asarray(keras.ops.convert_to_numpy(x))).all() for x in outputs)
    again, _ = built(case)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_goes_on_where_it_was_killed(workers, tmp_path):
    file = tmp_path / "results.jsonl"
    run = {"only": "Dense(units=5,", "results": file}
    told = []
    first = run_suite(workers, **run, progress=told.append)
    assert len(first) == len(told) > 2
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:20])  # killed while it wrote
    told.clear()
    assert run_suite(workers, **run, progress=told.append) == first
    assert len(told) == len(first) - 2
    assert [json.loads(line) for line in file.read_text().splitlines()] == first
    file.write_text(lines[0].replace(TARGET, "other@cpu"))
    with pytest.raises(ValueError, match="is of the targets other@cpu"):
        run_suite(workers, **run)
    for mine in ("nothing of the kind\n", "one line without an end", lines[0] + "my notes"):
        file.write_text(mine)
        with pytest.raises(ValueError, match="holds no results of a suite"):
            run_suite(workers, **run)
        assert file.read_text() == mine
    with pytest.raises(ValueError, match="no case of the suite has 'Conv9D'"):
        run_suite(workers, only="Conv9D")


DIFFERS = {
    "torch": "AveragePooling2D(pool_size=3,strides=2,padding=same) on 7x8x6",
    "jax": "Resizing(height=4,width=5,interpolation=bicubic) on 7x8x3",
}


@pytest.mark.skipif(BACKEND not in DIFFERS, reason="the truth is this backend's")
def test_what_disagrees_alone_has_a_bundle_in_a_folder_of_its_case(workers, tmp_path):
    bundles, case = tmp_path / "bundles", DIFFERS[BACKEND]
    run = {"results": tmp_path / "results.jsonl", "bundle": bundles}
    left = bundles / folder_of(case) / "of a run that was killed"
    for line in run_suite(workers, only=[case, "Dense(units=5) on 6"], **run):
        places = line["bundles"].values()
        assert bool(places) == (line["case"] == case)
        assert all((bundles / place / "repro.py").is_file() for place in places)
    assert [folder.name for folder in bundles.iterdir()] == [folder_of(case)]
    again = run_suite(workers, only=[case], **run)  # read, not computed
    assert again[0]["bundles"]
    (tmp_path / "results.jsonl").unlink()
    with pytest.raises(ValueError, match="must be a new or an empty folder"):
        run_suite(workers, only=[case], **run)
    run_suite(workers, only=["Dense(units=5) on 6"], results=run["results"])
    left.mkdir()
    run_suite(workers, only=[case], **run)
    assert not left.exists()


def test_every_case_has_a_folder_of_its_own_on_every_file_system():
    folders = [folder_of(case.name).lower() for case in cases()]
    assert len(set(folders)) == len(folders)
    assert max(map(len, folders)) < 200


@pytest.mark.parametrize(
    "given", [["--dtype", "float16"], ["--html", "a.html"], ["--steps", "5"], ["--twins", "8"]]
)
def test_options_that_a_suite_would_not_heed_are_refused(given):
    done = CliRunner().invoke(main, ["agree", "--suite", "keras", "--only", "Dense", *given])
    assert done.exit_code == 2
    assert f"leave out {given[0]}." in done.stderr


def test_on_the_command_line():
    arguments = ["agree", "--suite", "keras", "--only", "RepeatVector", "--targets", TARGET]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert f"1 of 1 cases agree on {TARGET}." in done.stdout
    for wrong in (
        ["agree"],
        ["agree", "m.keras", "--suite", "keras"],
        ["agree", "m", "--only", "x"],
    ):
        done = CliRunner().invoke(main, wrong)
        assert done.exit_code == 2
        assert "--suite" in done.stderr


def line(*findings, **more):
    found = [
        {"target": target, "verdict": verdict, "group": "training", "message": f"{target}: why"}
        for target, verdict in findings
    ]
    return {"case": "Dense", "targets": ["torch@cpu", "numpy@cpu"], "findings": found, **more}


NO_GRADIENTS = ("numpy@cpu", "not compared")


@pytest.mark.parametrize(
    ("lines", "status", "agreeing"),
    [
        ([line(NO_GRADIENTS), line(NO_GRADIENTS)], 0, (2, 2)),
        ([line(NO_GRADIENTS), line(("torch@cpu", "disagrees"))], 1, (1, 2)),
        ([line(("torch@cpu", "failed")), line(("torch@cpu", "disagrees"))], 1, (0, 2)),
        ([line(), line(("torch@cpu", "failed"))], 3, (1, 2)),
        ([line(), line(not_built="Keras has none")], 3, (1, 1)),
        ([line(), line(nothing_compared=["numpy@cpu"])], 3, (2, 1)),
        ([line(("torch@cpu", "suspicious"))], 0, (0, 1)),
    ],
)
def test_statuses_mean_what_they_do_for_one_model(lines, status, agreeing, capsys):
    """What a backend has no way to do is told once, and takes nothing from another target."""
    assert suite_status(lines) == status
    _print_suite(lines)
    told = capsys.readouterr().out
    for target, number in zip(("torch@cpu", "numpy@cpu"), agreeing, strict=True):
        assert f"{number} of {len(lines)} cases agree on {target}." in told
    assert told.count("numpy@cpu: why") <= 1

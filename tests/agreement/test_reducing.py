"""A model is reduced to the least part, and the least inputs, that show what is wrong with it."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from multibackend_lstm import agreement
from multibackend_lstm.agreement.bundle import replayed
from multibackend_lstm.agreement.reducing import Part, calls, reduced

from . import cases
from .conftest import BACKEND, TARGET, repro

RNG = np.random.default_rng(0)
MODULE = "agreement.cases"


def called(part):
    return part.model(keras.tree.pack_sequence_as(part.model._inputs_struct, part.inputs))


def shows(*names, least=((1, 1),)):
    """Whether a part has these calls, in which something is wrong together, and enough inputs."""

    def wrong(part):
        called(part)  # what is tried runs
        enough = all(x.shape >= size for x, size in zip(part.inputs, least, strict=False))
        return {*names} <= {*calls(part.model)} and enough

    return wrong


def stacked(*names, shape=(6, 4)):
    inputs = x = keras.Input(shape)
    for name in names:
        x = layers.Dense(4, name=name)(x)
    return Part(keras.Model(inputs, x), [RNG.normal(size=(5, *shape)).astype("float32")])


@pytest.mark.parametrize("names", [("c",), ("a",), ("f",), ("b", "e")])
def test_calls_before_after_and_between_are_left_out(names):
    part = reduced(stacked(*"abcdef"), shows(*names))
    assert [*calls(part.model)] == [*names]
    assert part.inputs[0].shape == (1, 1, 4)  # the last axis has weights
    np.testing.assert_array_equal(part.inputs[0], part.inputs[0].round(0))


def test_what_goes_into_a_part_is_what_the_model_gives_there():
    whole = stacked(*"abc")
    part = reduced(
        whole, lambda x: "c" in calls(x.model) and not _is_round(x) and len(x.inputs[0]) == 5
    )
    assert [*calls(part.model)] == ["c"]
    given, right = (keras.ops.convert_to_numpy(x) for x in (called(part), called(whole)))
    np.testing.assert_allclose(given, right[:, :1], rtol=1e-5)


def _is_round(part):
    return all(np.array_equal(x, x.round(2)) for x in part.inputs)


def test_branches_operations_and_shared_layers():
    a, b = keras.Input((6, 4), name="a"), keras.Input((6, 4), name="b")
    shared = layers.Dense(4, name="shared")
    x = keras.ops.tanh(shared(a) + layers.Dense(4, name="other")(b))
    model = keras.Model({"a": a, "b": b}, layers.Dense(2, name="end")(shared(x)))
    inputs = [RNG.normal(size=(3, 6, 4)).astype("float32") for _ in range(2)]
    part = reduced(Part(model, inputs), lambda part: [*calls(part.model)].count("shared") == 2)
    assert [*calls(part.model)].count("shared") == 2
    assert "end" not in calls(part.model)
    part = reduced(Part(model, inputs), lambda part: any("add" in x for x in calls(part.model)))
    assert len([*calls(part.model)]) == 1
    assert len(part.inputs) == 2


def test_a_nested_model_is_opened():
    inner = keras.Sequential(
        [keras.Input((6, 4)), *(layers.Dense(4, name=n) for n in "abc")], name="inner"
    )
    inputs = keras.Input((6, 4))
    model = keras.Model(
        inputs, layers.Dense(2, name="end")(inner(layers.Dense(4, name="start")(inputs)))
    )

    def wrong(part):
        names = {*calls(part.model)}
        return "inner" in names or "b" in names

    part = reduced(Part(model, [RNG.normal(size=(3, 6, 4)).astype("float32")]), wrong)
    assert [*calls(part.model)] == ["b"]


def test_what_does_not_show_again_is_nothing():
    assert reduced(stacked("a"), lambda part: False) is None


def test_of_a_model_that_is_no_graph_the_inputs_are_cut():
    model = cases.Subclassed()
    inputs = [RNG.normal(size=(5, 4)).astype("float32")]
    model(inputs[0])
    part = reduced(Part(model, inputs), lambda part: True)
    assert part.model is model
    assert part.inputs[0].shape == (1, 4)


def masked(backend):
    inputs = keras.Input((9, 4))
    x = layers.Dense(4, name="before")(layers.Masking(name="masking")(inputs))
    x = cases.LosesMask(backend, name="loses")(x)
    x = layers.LSTM(3, name="lstm")(layers.Dense(4, name="between")(x))
    return keras.Model(inputs, layers.Dense(2, name="after")(x))


@pytest.mark.slow
def test_a_mask_that_is_lost_between_layers_has_a_bundle(workers, tmp_path):
    """No layer alone is off: the LSTM has the mask of the truth there."""
    x = RNG.normal(size=(4, 9, 4)).astype("float32")
    x[1:, 5:] = 0
    out = tmp_path / "out"
    report = agreement.check(
        masked(BACKEND), x, workers=workers, steps=None, bundle=out, modules=[MODULE]
    )
    assert [(f.group, f.path) for f in report.findings] == [("layers", "lstm")], report.table()
    (line,) = report.bundles
    assert "(of masking, loses, lstm)" in line
    folder = out / "finding-1"
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["tensor0"].shape == (2, 9, 4)  # the first with a masked step
    ran = repro(folder)
    assert ran.returncode == 1, ran.stderr
    assert "wrong by up to" in ran.stderr
    model, inputs = replayed(folder, [MODULE])
    again = agreement.check(model, inputs, workers=workers, steps=None, modules=[MODULE])
    assert again.disagreeing == [TARGET]
    assert "lstm" in again.findings[0].message
    header = json.loads((folder / "case.json").read_text())
    text = json.dumps(header).replace(f'"backend": "{BACKEND}"', '"backend": null')
    (folder / "case.json").write_text(text)
    ran = repro(folder)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_an_optimizer_that_is_off_later_has_a_bundle(workers, tmp_path):
    """Alone it makes two updates."""
    model = keras.Sequential([keras.Input((4,)), *(layers.Dense(4, name=n) for n in "abc")])
    out = tmp_path / "out"
    report = agreement.check(
        model, workers=workers, steps=4, bundle=out, modules=[MODULE], optimizer=cases.LateSGD(0.1)
    )
    assert [f.group for f in report.findings] == ["training"], report.table()
    folder = out / "finding-1"
    header = json.loads((folder / "case.json").read_text())
    assert header["kind"] in ("loss", "weight")
    assert len(header["weights"]) == 2  # of one layer
    ran = repro(folder)
    assert ran.returncode == 1, ran.stderr
    assert "wrong by up to" in ran.stderr
    again, inputs = replayed(folder, [MODULE])
    report = agreement.check(again, inputs, workers=workers, steps=4, modules=[MODULE])
    assert report.disagreeing == [TARGET]

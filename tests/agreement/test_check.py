"""`agreement.check` on one backend: what it takes, what it sees, and what it says."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import multibackend_lstm
from agreement import cases
from agreement.conftest import TARGET
from multibackend_lstm import agreement
from multibackend_lstm.agreement.report import FAILED, NOT_COMPARED
from multibackend_lstm.environment import installed_backends

BACKEND = TARGET.partition("@")[0]
FLOAT64 = "tensorflow" in installed_backends()


def check(workers, model, *arguments, steps=2, **options):
    return agreement.check(model, *arguments, workers=workers, steps=steps, **options)


def paths(report, kind):
    return [c.path for c in report.results[0].comparisons if c.kind == kind]


def assert_agrees(report):
    assert report.agrees, report.table()
    assert not report.findings
    for comparison in report.results[0].comparisons:
        assert comparison.score < 30


def nested_model():
    """A nested model, a shared layer, dropout, and outputs of several forms."""
    shared = layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((6, 4)), layers.LSTM(3, name="lstm")], name="inner")
    first, second = keras.Input((6, 2, 4), name="first"), keras.Input((6, 4), name="second")
    x = multibackend_lstm.FlattenFeatures(name="flat")(first)
    x = layers.Dropout(0.5, name="dropout")(shared(layers.Dense(4, name="dense")(x)))
    y = shared(second)
    sequence, *states = layers.LSTM(
        3, return_sequences=True, return_state=True, name="states", kernel_regularizer="l2"
    )(y)
    return keras.Model(
        {"first": first, "second": second},
        {"inner": inner(x), "sequence": sequence, "state": states[1]},
        name="nested",
    )


@pytest.fixture(scope="module")
def nested_report(workers):
    return check(workers, nested_model(), loss="huber")


def test_a_healthy_model_agrees(nested_report):
    assert_agrees(nested_report)
    assert nested_report.float64 == FLOAT64
    nested_report.raise_if_disagrees()


def test_every_layer_is_recorded_by_its_path(nested_report):
    assert sorted(paths(nested_report, "layer")) == sorted(
        [
            *("flat", "dense", "shared", "shared (call 2)", "dropout", "inner/lstm", "inner"),
            *("states[0]", "states[1]", "states[2]"),
        ]
    )


def test_outputs_gradients_and_weights_are_recorded(nested_report):
    for kind in ("output", "captured output"):
        assert sorted(paths(nested_report, kind)) == ["inner", "sequence", "state"]
    assert paths(nested_report, "input gradient") == ["input 0", "input 1"]
    # dense, shared, two LSTM
    assert len(paths(nested_report, "weight gradient")) == 2 + 2 + 3 + 3
    assert len(paths(nested_report, "weight")) == 10
    assert sorted(nested_report.twins) == sorted(nested_report.results[0].distances) == [1, 2]


def test_calls_of_a_shared_layer_are_counted_not_its_outputs(workers):
    shared = layers.LSTM(3, return_state=True, name="shared")
    first, second = keras.Input((4, 2)), keras.Input((4, 2))
    model = keras.Model([first, second], [shared(first)[0], shared(second)[0]])
    report = check(workers, model, steps=None)
    assert_agrees(report)
    assert sorted(paths(report, "layer")) == sorted(
        f"shared{call}[{index}]" for call in ("", " (call 2)") for index in range(3)
    )


def test_the_report_is_plain(nested_report):
    document = json.loads(nested_report.dumps())
    assert document["agrees"] is True
    assert document["targets"][0]["worker"]["ready"] == BACKEND
    assert len(document["targets"][0]["comparisons"]) == len(nested_report.results[0].comparisons)
    assert "All targets agree" in nested_report.table()


def test_other_weights_in_the_target_are_seen(workers, monkeypatch):
    """The whole chain can fail: a model whose target gets another weight."""
    from multibackend_lstm.agreement import checking

    original = checking.Worker.ask

    def ask(worker, header, arrays):
        if header.get("do") == "run" and not header["twins"]:
            arrays = {**arrays, "weight1": arrays["weight1"] + 1e-3}
        original(worker, header, arrays)

    monkeypatch.setattr(checking.Worker, "ask", ask)
    report = check(workers, cases.small())
    assert not report.agrees
    assert report.disagreeing == [TARGET]
    (first, *_) = report.findings
    lstm = first.path  # numbered by how many this process made before
    assert (first.group, first.layer) == ("layers alone", "LSTM")
    assert lstm.startswith("lstm")
    assert lstm in first.message
    assert TARGET in first.message
    with pytest.raises(agreement.DisagreementError, match="lstm"):
        report.raise_if_disagrees()


def test_file_function_and_layer_are_taken_too(workers, tmp_path):
    model = cases.small()
    path = tmp_path / "model.keras"
    model.save(path)
    report = check(workers, path, input_shapes=[(5, 3)], batch=2)
    assert_agrees(report)
    assert report.results[0].comparisons[0].shape == (2, 2)
    report = check(workers, "agreement.cases:with_inputs")
    assert_agrees(report)
    assert report.results[0].comparisons[0].shape == (3, 2)
    assert_agrees(check(workers, layers.Dense(3), np.ones((2, 5), "float32")))


def test_custom_layers_are_found_by_their_module(workers):
    model = keras.Sequential([keras.Input((3,)), cases.Doubled(), cases.Unregistered()])
    report = check(workers, model)
    assert_agrees(report)
    assert len(paths(report, "layer")) == 2


def test_integers_embeddings_and_masks(workers):
    model = keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            layers.Embedding(5, 3, mask_zero=True),
            multibackend_lstm.LSTM(3, return_sequences=True),
            layers.Dense(2, activation="softmax"),
        ]
    )
    report = check(workers, model, loss="sparse_categorical_crossentropy", optimizer="sgd")
    assert_agrees(report)
    assert not paths(report, "input gradient")  # there is none for integers


def test_own_inputs_and_labels_are_used(workers):
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    x[0, 2] = np.nan
    report = check(workers, cases.small(), x, np.ones((2, 2), "float32"))
    found = next(c for c in report.results[0].comparisons if c.kind == "output")
    assert found.nan == (2, 2)
    assert found.verdict == "agrees"


def test_stateful_layers_keep_their_state(workers):
    model = keras.Sequential(
        [layers.Input(batch_shape=(2, 4, 3)), multibackend_lstm.GRU(3, stateful=True)]
    )
    report = check(workers, model, batch=2)
    assert_agrees(report)
    assert paths(report, "output of a second batch") == ["0"]


def test_narrow_dtypes_are_judged_by_their_own_rounding(workers):
    report = check(workers, cases.small(), dtype="mixed_bfloat16")
    assert_agrees(report)
    largest = max(c.rms for c in report.results[0].comparisons)
    # Without a float64 truth the reference rounds in the very same way.
    assert largest > 1e-5 if FLOAT64 else largest == 0


def test_a_model_without_weights_and_training_without_steps(workers):
    model = keras.Sequential([keras.Input((4, 2)), layers.Flatten()])
    assert_agrees(check(workers, model))
    report = check(workers, cases.small(), steps=0)
    assert paths(report, "weight gradient")
    assert not paths(report, "weight")
    report = check(workers, cases.small(), steps=None)
    assert not paths(report, "weight gradient")


def test_random_layers_are_not_compared_in_training(workers):
    model = keras.Sequential([keras.Input((4,)), cases.Random(), layers.Dense(2)])
    report = check(workers, model)
    assert report.agrees
    (finding,) = report.findings
    assert finding.verdict == NOT_COMPARED
    assert "random" in finding.message


@pytest.mark.parametrize(
    ("layer", "words"), [(cases.Fails, "no such luck"), (cases.Crashes, "status 3")]
)
def test_a_target_that_fails_is_a_finding(workers, layer, words):
    model = keras.Sequential([keras.Input((4,)), layer()])
    report = check(workers, model)
    assert not report.agrees
    assert TARGET in report.could_not_run
    assert not report.disagreeing
    assert words in "".join(f.message for f in report.findings if f.verdict == FAILED)
    assert_agrees(check(workers, cases.small()))  # the workers serve on


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("nowhere.keras", {}, "is no file"),
        (3, {}, "Received int"),
        (layers.Dense(2), {}, "needs `inputs`"),
        (keras.Sequential([layers.Dense(2)]), {}, "not built"),
        ("agreement.cases:not_a_model", {}, "Received int"),
        ("agreement.cases:nothing", {}, "names 'nothing', which 'agreement.cases' has not"),
        (cases.small, {}, "Received function"),
    ],
)
def test_what_is_no_model_is_refused(workers, model, arguments, message):
    with pytest.raises((agreement.CaseError, agreement.WorkerError), match=message):
        check(workers, model, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "`steps`"),
        ({"twins": 1}, "`twins`"),
        ({"batch": 0}, "`batch`"),
        ({"input_shapes": [(6, 2)]}, "does not fit"),
        ({"input_shapes": [(5, 3), (5, 3)]}, "2 shapes"),
    ],
)
def test_wrong_arguments_are_refused(workers, arguments, message):
    with pytest.raises(ValueError, match=message):
        check(workers, cases.small(), **arguments)


def test_inputs_that_are_no_numbers_are_refused(workers):
    with pytest.raises(agreement.CaseError, match="numbers"):
        check(workers, cases.small(), np.array([["a"]]))


def test_a_layer_of_a_script_is_refused(workers):
    Local = type("Local", (cases.Doubled,), {"__module__": "__main__"})  # noqa: N806
    model = keras.Sequential([keras.Input((3,)), Local()])
    with pytest.raises(agreement.CaseError, match="the script that runs"):
        check(workers, model)


def test_a_compiled_model_is_trained_as_it_was_compiled(workers):
    model = keras.Sequential([keras.Input((4, 3)), layers.LSTM(4), layers.Dense(3, "softmax")])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    report = check(workers, model)
    assert not report.findings, report.table()
    assert report.settings["training"]["loss"] == "sparse_categorical_crossentropy"
    own = report.settings["training"]["optimizer"]
    assert (own["class_name"], own["config"]["momentum"]) == ("SGD", 0.9)
    assert check(workers, model, optimizer="adam").settings["training"]["optimizer"] == "adam"


def test_several_losses_are_those_of_the_outputs(workers):
    inputs = keras.Input((3,))
    classes = layers.Dense(4, activation="softmax", name="classes")(inputs)
    outputs = [layers.Dense(2, name="numbers")(inputs), keras.ops.argmax(classes, -1), classes]
    model = keras.Model(inputs, outputs)
    of_classes = "sparse_categorical_crossentropy"
    model.compile("sgd", ["mean_absolute_error", None, of_classes])
    report = check(workers, model)
    assert not report.findings, report.table()
    assert report.settings["training"]["loss"] == ["mean_absolute_error", of_classes]
    named = keras.Model(inputs, {"b": outputs[0], "a": classes})
    named.compile("sgd", {"b": "mean_absolute_error", "a": of_classes})
    report = check(workers, named)
    assert not report.findings, report.table()
    assert report.settings["training"]["loss"] == [of_classes, "mean_absolute_error"]
    (loss,) = [c for c in report.results[0].comparisons if c.kind == "loss"]
    assert loss.values[1] > 0.5
    with pytest.raises(agreement.CaseError, match=r"of which there are 2\. Received 1"):
        check(workers, named, loss=["mae"])

"""Each entry of upstream.toml that `agree` knows still shows, and its finding is named after it."""

import keras
import pytest
from keras import layers

from multibackend_lstm import agreement
from multibackend_lstm.agreement.known import explanation, known_disagreements
from multibackend_lstm.agreement.suite.keras_layers import cases
from multibackend_lstm.agreement.suite.running import built

# A model that shows the entry of this id.
REPRODUCTIONS = {
    "average-pooling-same-torch": lambda: keras.Sequential(
        [keras.Input((5, 3)), layers.AveragePooling1D(3, padding="same"), layers.Dense(2)]
    ),
    "stateful-lstm-fit-torch": lambda: keras.Sequential(
        [layers.Input((4, 3), batch_size=4), layers.LSTM(3, stateful=True)]
    ),
}


def _far_from_zero():
    """A mean of some 90 times the standard deviation, before a normalization."""
    bias = keras.initializers.Constant(90.0)
    return keras.Sequential(
        [
            keras.Input((10, 4)),
            layers.Dense(6, bias_initializer=bias),
            layers.BatchNormalization(),
            layers.Dense(2),
        ]
    )


REPRODUCTIONS["moments-torch"] = _far_from_zero


def test_every_entry_is_reproduced_here():
    assert {entry["id"] for entry in known_disagreements()} == REPRODUCTIONS.keys()


@pytest.mark.parametrize("entry", known_disagreements(), ids=lambda entry: entry["id"])
def test_entry_still_shows(workers, entry):
    report = agreement.check(REPRODUCTIONS[entry["id"]](), workers=workers, steps=1)
    assert report.findings, f"{entry['id']} no longer shows: narrow its versions"
    assert report.agrees == entry.get("precision_only", False)
    known = [finding for finding in report.findings if finding.known is not None]
    assert {finding.known["id"] for finding in known} == {entry["id"]}
    assert {finding.target.partition("@")[0] for finding in known} == set(entry["backends"])
    assert entry["upstream"] in known[0].message


def test_another_finding_is_not_named():
    explained = explanation(
        target="torch@cpu",
        group="layers",
        failed=False,
        message="",
        layer="dense",
        layers={"dense": {"module": "keras", "class_name": "Dense", "config": {}}},
        versions={"keras": "3.15.1"},
    )
    assert explained is None


def _suite_case(name):
    (case,) = [case for case in cases() if case.name == name]
    return built(case)


@pytest.mark.parametrize("options", ["", "epsilon=1e-05,momentum=0.9"])
def test_digits_lost_by_moments_are_named_where_no_operation_is_off_alone(workers, options):
    """A batch of 4, with a mean of 11 times the standard deviation in one channel."""
    model, inputs = _suite_case(f"BatchNormalization({options}) on 6")
    report = agreement.check(model, inputs, workers=workers, steps=1, optimizer="sgd")
    assert report.agrees, report.table()
    (finding,) = [f for f in report.findings if f.known is not None]
    assert (finding.target, finding.known["id"]) == ("torch@cpu", "moments-torch")
    assert "operation 2 Moments is the farthest" in finding.message


def test_nobody_is_blamed_for_the_gradient_by_a_weight_that_the_layer_assigns(workers):
    """By the kernel before the call on JAX, by the normalized one on TensorFlow and torch."""
    model, inputs = _suite_case("SpectralNormalization(layer=Dense(units=4)) on 6")
    report = agreement.check(model, inputs, workers=workers, steps=1, optimizer="sgd")
    (finding,) = report.findings
    assert "assigns this weight" in finding.message
    assert "Who is wrong cannot be told" in finding.message

"""Each entry of upstream.toml that `agree` knows still shows, and its finding is named after it."""

import keras
import pytest
from keras import layers

from multibackend_lstm import agreement
from multibackend_lstm.agreement.known import explanation, known_disagreements

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

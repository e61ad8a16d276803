"""Does the layer give the same numbers on every backend that is installed?

    pytest examples/agreement_of_your_layer
    pytest examples/agreement_of_your_layer --agreement-targets torch@cpu,jax@gpu

The fixture `agreement` comes with this package, once it is installed: `pip install .` in a clone.
"""

import keras
import numpy as np
import pytest
from attention_pooling import AttentionPooling, HastyAttentionPooling

X = np.random.default_rng(0).normal(size=(4, 7, 5)).astype("float32")


def test_agrees(agreement):
    agreement(AttentionPooling(units=6), X)


def test_agrees_with_a_mask(agreement):
    x = X.copy()
    x[0, 3:] = 0.0
    inputs = keras.Input((7, 5))
    outputs = AttentionPooling()(keras.layers.Masking()(inputs))
    agreement(keras.Model(inputs, outputs), x)


def test_agrees_in_mixed_precision(agreement):
    agreement(AttentionPooling(), X, dtype="mixed_bfloat16", steps=1)


def test_the_mistake_is_found(agreement):
    """The test that you do not need: it shows what a disagreement looks like."""
    report = agreement(HastyAttentionPooling(name="pooling"), X, raises=False)
    if "torch@cpu" not in [result.target for result in report.results]:
        pytest.skip("the mistake shows on torch")
    assert report.disagreeing == ["torch@cpu"]
    finding = report.findings[0]
    assert (finding.path, finding.layer) == ("pooling", "HastyAttentionPooling")
    print(report.table())

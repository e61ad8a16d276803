"""The same numbers on every backend that is installed: outputs, gradients and a training step.

The fixture `agreement` comes with multibackend-lstm. Nothing here names a tolerance: how much is
rounding is measured, by a float64 run of the same layer.
"""

import keras
import numpy as np
from my_keras_library import MaskedMean

X = np.random.default_rng(0).normal(size=(4, 7, 5)).astype("float32")


def test_agrees(agreement):
    agreement(MaskedMean(), X, steps=1)


def test_agrees_with_a_mask(agreement):
    x = X.copy()
    x[0, 3:] = 0.0
    inputs = keras.Input((7, 5))
    outputs = MaskedMean()(keras.layers.Masking()(inputs))
    agreement(keras.Model(inputs, outputs), x, steps=1)

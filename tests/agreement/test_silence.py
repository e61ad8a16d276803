"""What is set to 0 before a training step is compared: Keras's random rates, and nothing else."""

import keras
import pytest

from multibackend_lstm import LSTM
from multibackend_lstm.runtimes.execution import silence


@keras.saving.register_keras_serializable("silence")
class Scaled(keras.layers.Layer):
    """Has the attributes of a random layer, and is none."""

    def __init__(self, seeded=False, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.rate, self.stddev = 1.5, 0.3, 2.0
        if seeded:
            self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x):
        return x * self.factor


class OwnDropout(keras.layers.Dropout):
    """Derived from one of Keras's."""


def model_of(*layers):
    inputs = x = keras.Input((5, 3))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def test_layers_of_others_are_left_alone():
    layer, seeded = Scaled(), Scaled(seeded=True)
    assert silence(model_of(layer, seeded)) == [seeded.path]
    for each in (layer, seeded):
        assert (each.factor, each.rate, each.stddev) == (1.5, 0.3, 2.0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: keras.layers.Dropout(0.5), "rate"),
        (lambda: keras.layers.SpatialDropout1D(0.5), "rate"),
        (lambda: keras.layers.AlphaDropout(0.5), "rate"),
        (lambda: keras.layers.GaussianDropout(0.5), "rate"),
        (lambda: keras.layers.GaussianNoise(0.5), "stddev"),
        (lambda: OwnDropout(0.5), "rate"),
    ],
)
def test_random_layers_of_keras_are_silenced(make, name):
    layer = make()
    assert silence(model_of(layer)) == []
    assert getattr(layer, name) == 0


@pytest.mark.parametrize("kind", [LSTM, keras.layers.LSTM, keras.layers.GRU])
def test_dropout_of_recurrent_layers_is_silenced(kind):
    layer = kind(2, dropout=0.4, recurrent_dropout=0.3, return_sequences=True)
    assert silence(model_of(layer)) == []
    assert layer.dropout == layer.recurrent_dropout == 0

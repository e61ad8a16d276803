"""What is set to 0 before a training step is compared: Keras's random rates, and nothing else."""

import keras
import pytest

import multibackend_lstm as ml
from multibackend_lstm.agreement import check
from multibackend_lstm.runtimes.execution import silence

from . import cases


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


def test_what_draws_alike_stays_on_and_starts_alike():
    def states():
        layers = [ml.Dropout(0.5), ml.GaussianNoise(0.3), ml.LSTM(2, dropout=0.4)]
        model = model_of(*layers)
        assert silence(model) == []
        assert (layers[0].rate, layers[1].stddev, layers[2].dropout) == (0.5, 0.3, 0.4)
        seeds = [v for v in model.variables if v.name == "seed_generator_state"]
        return [keras.ops.convert_to_numpy(seed.value).tolist() for seed in seeds]

    first = states()
    assert len({tuple(state) for state in first}) == 3
    assert states() == first


def test_an_attribute_of_a_derived_class_is_left_alone():
    """Of `Dropout` only what Keras's class is given means something random."""

    class Scaling(keras.layers.Dropout):
        factor = 1.5

    layer = Scaling(0.5)
    assert silence(model_of(layer)) == []
    assert (layer.rate, layer.factor) == (0, 1.5)


@pytest.mark.parametrize("name", ["dropout", "recurrent_dropout"])
def test_what_drops_everything_leaves_nothing_to_chance(name):
    """So that it is compared, of which some backend may make another number."""
    layer, dropout = keras.layers.LSTM(2, **{name: 1.0}), keras.layers.Dropout(1.0)
    both = keras.layers.GRU(2, dropout=0.3, recurrent_dropout=1.0)
    for each in (layer, dropout, both):
        assert silence(model_of(each)) == []
    assert (getattr(layer, name), getattr(layer.cell, name), dropout.rate) == (1, 1, 1)
    assert (both.cell.dropout, both.cell.recurrent_dropout) == (0, 1)


@pytest.mark.parametrize("kind", [keras.layers.LSTM, keras.layers.GRU])
def test_dropout_of_recurrent_layers_is_silenced(kind):
    layer = kind(2, dropout=0.4, recurrent_dropout=0.3, return_sequences=True)
    assert silence(model_of(layer)) == []
    assert layer.dropout == layer.recurrent_dropout == 0


def random_everywhere(dropout):
    inputs = x = keras.Input((6, 5))
    for layer in (
        ml.GaussianNoise(0.3, name="noise"),
        ml.LSTM(4, dropout=0.3, recurrent_dropout=0.2, return_sequences=True, name="lstm"),
        ml.SpatialDropout1D(0.3),
        dropout,
        ml.GRU(4, dropout=0.2),
        ml.GaussianDropout(0.3),
        keras.layers.Dense(2),
    ):
        x = layer(x)
    return keras.Model(inputs, x)


def test_a_model_that_drops_everywhere_agrees_in_training(workers):
    report = check(random_everywhere(ml.Dropout(0.4, name="dropout")), workers=workers, steps=3)
    report.raise_if_disagrees()
    (result,) = report.results
    alone = [c.path for c in result.comparisons if c.kind == "layer alone in training"]
    assert {"dropout", "noise", "lstm"} <= {*alone}


def test_a_dropout_that_is_off_in_training_is_found(workers):
    report = check(random_everywhere(cases.DropoutOff(0.4, name="off")), workers=workers, steps=1)
    assert [finding.layer for finding in report.findings] == ["DropoutOff"]

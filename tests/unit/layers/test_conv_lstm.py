"""ConvLSTM1D, 2D and 3D give what those of Keras give, and take the fast path where they can."""

import keras
import numpy as np
import pytest

from multibackend_lstm.layers import ConvLSTM1D, ConvLSTM2D, ConvLSTM3D

PAIRS = {
    1: (ConvLSTM1D, keras.layers.ConvLSTM1D),
    2: (ConvLSTM2D, keras.layers.ConvLSTM2D),
    3: (ConvLSTM3D, keras.layers.ConvLSTM3D),
}
SHAPES = {1: (2, 6, 5, 3), 2: (2, 4, 4, 3, 2), 3: (2, 3, 3, 2, 4, 2)}


def pair(rank, *args, **options):
    """Both layers with the same random weights, and an input."""
    x = np.random.default_rng(0).normal(size=SHAPES[rank]).astype("float32")
    ours, theirs = (kind(*args, **options) for kind in PAIRS[rank])
    rng = np.random.default_rng(1)
    for layer in (ours, theirs):
        layer.build(x.shape)
    weights = [rng.normal(size=w.shape).astype("float32") * 0.5 for w in ours.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs, x


def arrays(outputs):
    """NumPy arrays of an output or several."""
    return [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]


@pytest.fixture
def keras_path_closed(monkeypatch):
    """An error where the Keras layer would run."""

    def refuse(*args, **kwargs):
        raise AssertionError("the Keras layer ran")

    def close(layer):
        monkeypatch.setattr(type(layer).__mro__[2], "call", refuse)

    return close


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "same", "return_sequences": True},
        {"padding": "same", "return_state": True, "use_bias": False},
        {"strides": 2, "go_backwards": True, "return_sequences": True, "return_state": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", PAIRS)
def test_values_are_those_of_keras(rank, options, keras_path_closed):
    ours, theirs, x = pair(rank, 3, 2, **options)
    expected = arrays(theirs(x))
    keras_path_closed(ours)
    for mine, other in zip(arrays(ours(x)), expected, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-6)


def test_dilation():
    ours, theirs, x = pair(1, 3, 2, dilation_rate=2, padding="same")
    np.testing.assert_allclose(*(arrays(layer(x))[0] for layer in (ours, theirs)), atol=2e-6)


def test_training_is_that_of_keras():
    ours, theirs, x = pair(1, 3, 2)
    y = np.random.default_rng(2).normal(size=(2, 4, 3)).astype("float32")
    weights = []
    for layer in (ours, theirs):
        model = keras.Sequential([keras.Input((None, *x.shape[2:])), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        for _ in range(3):
            model.train_on_batch(x, y)
        weights.append(layer.get_weights())
    for mine, other in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"activation": "relu"}, {}),
        ({"recurrent_activation": "hard_sigmoid"}, {}),
        ({"padding": "same"}, {"initial_state": [np.ones((2, 5, 3), "float32")] * 2}),
    ],
    ids=str,
)
def test_keras_serves_the_rest(options, arguments):
    ours, theirs, x = pair(1, 3, 2, **options)
    for mine, other in zip(*(arrays(m(x, **arguments)) for m in (ours, theirs)), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    report = ours.implementation_report()
    assert report.path == "keras.layers.ConvLSTM1D"
    assert report.refused


def test_many_positions_are_left_to_keras(keras_path_closed):
    layer = ConvLSTM2D(8, 3, padding="same")
    layer.build((None, 3, 16, 16, 2))
    keras_path_closed(layer)
    with pytest.raises(AssertionError, match="the Keras layer ran"):
        layer(np.zeros((1, 3, 16, 16, 2), "float32"))
    assert "too many positions" in layer.implementation_report().refused


def test_dropout_is_left_to_keras_in_training_alone(keras_path_closed):
    layer = ConvLSTM1D(3, 2, dropout=0.5)
    x = np.ones(SHAPES[1], "float32")
    layer.build(x.shape)
    keras_path_closed(layer)
    layer(x, training=False)
    assert layer.implementation_report().implementation == "native"
    with pytest.raises(AssertionError, match="the Keras layer ran"):
        layer(x, training=True)


def test_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input(SHAPES[1][1:]), ConvLSTM1D(3, 2)])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is ConvLSTM1D
    x = np.ones(SHAPES[1], "float32")
    np.testing.assert_array_equal(*(m.predict(x, verbose=0) for m in (model, loaded)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    ours, theirs, x = pair(1, 3, 2, dtype=policy, return_sequences=True)
    mine, other = ours(x), theirs(x)
    assert mine.dtype == other.dtype
    for a, b in zip(arrays(mine), arrays(other), strict=True):
        np.testing.assert_allclose(a.astype("float32"), b.astype("float32"), atol=0.05)

"""Dropout and noise: the same numbers on every backend, in the place of Keras's layers."""

import keras
import numpy as np
import pytest
from keras import ops

import multibackend_lstm as ml
from multibackend_lstm import random
from unit.random.reference import reference_bits
from unit.tools import (
    BACKEND,
    assert_close,
    assert_equal,
    needs_gradients,
    normal,
    run_python,
    to_numpy,
)

LAYERS = {
    "Dropout": {"rate": 0.4},
    "SpatialDropout1D": {"rate": 0.4},
    "GaussianNoise": {"stddev": 0.3},
    "GaussianDropout": {"rate": 0.4},
}


def kept(shape, seed, rate, counter=0):
    """Which entries `random.dropout` keeps, from the reference of the generator."""
    u = (reference_bits(shape, seed, counter) >> 8).astype("float32") * np.float32(2**-24)
    return u < np.float32(1 - rate)


def test_dropout_is_that_of_the_reference_and_another_in_each_call():
    layer = ml.Dropout(0.4, seed=3)
    x = normal(4, 5, 2)
    for counter in range(3):
        expected = np.where(kept(x.shape, 3, 0.4, counter), x * np.float32(1 / 0.6), 0)
        assert_equal(layer(x, training=True), expected.astype("float32"))
        assert_equal(layer(x), x)  # and inference draws nothing


@pytest.mark.parametrize(
    ("layer", "shape", "mask_shape"),
    [
        (ml.SpatialDropout1D(0.5, seed=1), (3, 4, 5), (3, 1, 5)),
        (ml.SpatialDropout2D(0.5, seed=1, data_format="channels_last"), (3, 4, 2, 5), (3, 1, 1, 5)),
        (
            ml.SpatialDropout2D(0.5, seed=1, data_format="channels_first"),
            (3, 4, 2, 5),
            (3, 4, 1, 1),
        ),
        (ml.Dropout(0.5, noise_shape=(None, 1, None), seed=1), (3, 4, 5), (3, 1, 5)),
    ],
)
def test_a_mask_for_whole_axes(layer, shape, mask_shape):
    expected = np.broadcast_to(kept(mask_shape, 1, 0.5) * np.float32(2), shape)
    assert_equal(layer(np.ones(shape, "float32"), training=True), expected)


def test_gaussian_noise_and_dropout():
    x = normal(6, 5)
    noise = to_numpy(random.normal(x.shape, seed=(2, 0)))
    assert_close(ml.GaussianNoise(0.3, seed=2)(x, training=True), x + 0.3 * noise)
    deviation = np.sqrt(0.4 / 0.6)
    found = ml.GaussianDropout(0.4, seed=2)(x, training=True)
    assert_close(found, x * (1 + deviation * noise))


def test_gaussian_dropout_of_everything_is_refused():
    with pytest.raises(ValueError, match="`rate` must be below 1"):
        ml.GaussianDropout(1.0)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16"])
def test_dtypes(name, dtype):
    layer = getattr(ml, name)(**LAYERS[name], seed=1, dtype=dtype)
    half = keras.dtype_policies.get(dtype).compute_dtype
    if BACKEND == "numpy" and half == "bfloat16":
        pytest.skip("NumPy joins bfloat16 and Python's numbers to float32")
    for training in (False, True):
        found = layer(normal(3, 4, 2), training=training)
        assert keras.backend.standardize_dtype(found.dtype) == half


@pytest.mark.parametrize("name", LAYERS)
def test_integers_are_dropped_as_numbers(name):
    layer, again = (getattr(ml, name)(**LAYERS[name], seed=1) for _ in range(2))
    x = np.arange(24).reshape(3, 4, 2)
    expected = layer(x.astype("float32"), training=True)
    assert_equal(again(x, training=True), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_keeps_how_much_was_drawn(name, tmp_path):
    layer = getattr(ml, name)(**LAYERS[name], seed=7, name="drop")
    model = keras.Sequential([keras.Input((4, 2)), layer])
    x = normal(3, 4, 2)
    model(x, training=True)
    path = tmp_path / "model.keras"
    model.save(path)
    expected = model(x, training=True)

    loaded = keras.saving.load_model(path)
    assert type(loaded.layers[-1]) is getattr(ml, name)
    assert_equal(loaded(x, training=True), expected)


def test_recurrent_layers_keep_how_much_they_drew(tmp_path):
    model = keras.Sequential([keras.Input((4, 2)), ml.LSTM(3, dropout=0.5, seed=1)])
    x = normal(3, 4, 2)
    model(x, training=True)
    model.save_weights(tmp_path / "model.weights.h5")
    expected = model(x, training=True)
    same_seeds(model, 1)
    model.load_weights(tmp_path / "model.weights.h5")
    assert_equal(model(x, training=True), expected)


def test_a_file_of_keras_leaves_the_seeds_alone(tmp_path):
    theirs = keras.Sequential([keras.Input((4, 2)), keras.layers.Dropout(0.5, seed=1)])
    ours = keras.Sequential([keras.Input((4, 2)), ml.Dropout(0.5, seed=1)])
    theirs.save_weights(tmp_path / "model.weights.h5")
    ours(normal(3, 4, 2), training=True)
    ours.load_weights(tmp_path / "model.weights.h5")
    (state,) = ours.non_trainable_variables
    assert ops.convert_to_numpy(state.value).tolist() == [1, 1]


def test_where_this_package_is_absent_files_load_with_the_layers_of_keras(tmp_path):
    inputs = x = keras.Input((4, 2))
    for name, arguments in LAYERS.items():
        x = getattr(ml, name)(**arguments, seed=7, name=name)(x)
    keras.Model(inputs, x).save(tmp_path / "model.keras")
    run_python(f"""
import sys
sys.modules["multibackend_lstm"] = None
import keras
names = {[*LAYERS]}
objects = {{f"multibackend_lstm>{{name}}": getattr(keras.layers, name) for name in names}}
model = keras.saving.load_model({str(tmp_path / "model.keras")!r}, custom_objects=objects)
for name in names:
    layer = model.get_layer(name)
    assert type(layer) is getattr(keras.layers, name), layer
    assert layer.seed == 7, layer.get_config()
""")


@pytest.mark.parametrize("name", LAYERS)
def test_masks_of_steps_pass_on_and_shapes_may_be_unknown(name):
    inputs = keras.Input((None, 2))
    masked = keras.layers.Masking()(inputs)
    x = getattr(ml, name)(**LAYERS[name])(masked)
    assert x.shape == (None, None, 2)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
    values = normal(2, 5, 2)
    values[:, 3:] = 0
    assert_close(model(values), values[:, :3].mean(axis=1))


def same_seeds(model, seed):
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            variable.assign(np.array([seed, 0], variable.dtype))


@needs_gradients
def test_fit_draws_a_new_mask_at_each_step():
    # With a learning rate of 1 the weight is minus the sum of the masks.
    inputs = keras.Input((1,))
    dropped = ml.Dropout(0.5, seed=5)(inputs)
    outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(dropped)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(1.0), lambda y, p: p)
    model.fit(np.ones((4, 1)), np.ones((4, 1)), batch_size=1, epochs=2, verbose=0)
    masks = [kept((1, 1), 5, 0.5, counter).item() for counter in range(8)]
    assert 0 < sum(masks) < 8
    assert_equal(model.layers[-1].kernel, np.array([[-2.0 * sum(masks)]], "float32"))
    (state,) = (v for v in model.non_trainable_variables if v.name == "seed_generator_state")
    assert ops.convert_to_numpy(state.value).tolist() == [5, 8]


@pytest.mark.parametrize("kind", [ml.LSTM, ml.GRU])
def test_recurrent_layers_drop_by_the_same_masks(kind):
    x = normal(3, 6, 4)
    layer = kind(5, dropout=0.4, seed=2, return_sequences=True)
    found = layer(x, training=True)
    expected = layer(x * (kept((3, 4), 2, 0.4) / np.float32(0.6))[:, None])
    assert_close(found, expected, atol=2e-6)
    if BACKEND in ("torch", "jax"):
        assert layer.implementation_report().implementation == "native"


@pytest.mark.parametrize(
    ("kind", "options"), [(ml.LSTM, {}), (ml.GRU, {}), (ml.GRU, {"reset_after": False})]
)
def test_recurrent_dropout_is_that_of_keras_with_our_masks(kind, options):
    x = normal(3, 6, 4)
    options = {**options, "dropout": 0.4, "recurrent_dropout": 0.3, "return_sequences": True}
    layer = kind(5, seed=2, **options)
    found = layer(x, training=True)
    theirs = getattr(keras.layers, kind.__name__)(5, **options)
    theirs.build(x.shape)
    theirs.set_weights(layer.get_weights())
    count = getattr(layer.cell, "dropout_mask_count", 1)
    masks = [
        ops.convert_to_tensor(kept((3, size), 2, rate, counter) / np.float32(1 - rate))
        for counter, (size, rate) in enumerate([(4, 0.4)] * count + [(5, 0.3)] * count)
    ]
    theirs.cell.get_dropout_mask = lambda _: masks[0] if count == 1 else masks[:count]
    theirs.cell.get_recurrent_dropout_mask = lambda _: masks[-1] if count == 1 else masks[count:]
    assert_close(found, theirs(x, training=True), atol=2e-6)


@pytest.mark.parametrize("rates", [{"dropout": 0.4}, {"dropout": 0.2, "recurrent_dropout": 0.3}])
def test_conv_lstm_draws_from_our_generator(rates):
    x = normal(2, 4, 6, 3)
    layer = ml.ConvLSTM1D(2, 3, seed=9, return_sequences=True, **rates)
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.random, "dropout", None)
        found = layer(x, training=True)
        patch.setattr(random, "dropout", lambda x, rate, **_: drawn.append(rate) or x)
        layer(x, training=True)
    assert drawn == [rate for rate in rates.values() for _ in range(4)]
    same_seeds(layer, 9)
    assert_equal(layer(x, training=True), found)


def test_layers_without_a_seed_follow_the_seed_of_keras():
    import random as python_random

    def draws():
        python_random.seed(4)
        return [ml.Dropout(0.5)(np.ones((2, 3), "float32"), training=True) for _ in range(2)]

    first, second = draws()
    assert (to_numpy(first) != to_numpy(second)).any()
    assert_equal(draws(), [first, second])


def test_build_model_uses_them():
    model = ml.build_model(
        (6, 4, 3), solution="conv", units=[4, 4], outputs=2, task="multiclass", dropout=0.3
    )
    kinds = [type(layer) for layer in model.layers]
    assert kinds.count(ml.Dropout) == 2
    assert keras.layers.Dropout not in kinds

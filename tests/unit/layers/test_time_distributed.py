import inspect

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import layers, ops, tree

import multibackend_lstm as ml
from multibackend_lstm import FlattenFeatures, TimeDistributed
from unit.references import loop_over_time
from unit.tools import (
    BACKEND,
    assert_close,
    assert_equal,
    assert_gradients_close,
    gradients,
    needs_gradients,
    needs_jit,
    normal,
    only_tensorflow,
    plain,
    random_mask,
    randomise_weights,
    save_and_load,
    to_numpy,
)


def whole_model():
    inputs = keras.Input((4, 3))
    x = layers.Conv1D(4, 2, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


# Each inner layer with the shape of one step of its input.
INNER = {
    "dense": (lambda: layers.Dense(4, activation="tanh"), (3,)),
    "dense_nd": (lambda: layers.Dense(4), (2, 3, 2)),
    "flatten": (layers.Flatten, (2, 3)),
    "conv1d": (lambda: layers.Conv1D(4, 2), (5, 3)),
    "conv2d": (lambda: layers.Conv2D(3, 2, padding="same", strides=2), (4, 5, 2)),
    "max_pooling": (lambda: layers.MaxPooling1D(2), (6, 3)),
    "lstm": (lambda: layers.LSTM(3), (4, 2)),
    "bidirectional": (lambda: layers.Bidirectional(layers.GRU(2, return_sequences=True)), (4, 2)),
    "layer_normalization": (layers.LayerNormalization, (4, 3)),
    "batch_normalization": (layers.BatchNormalization, (4, 3)),
    "sequential": (
        lambda: keras.Sequential([layers.Flatten(), layers.Dense(3, activation="tanh")]),
        (4, 3),
    ),
    "functional": (whole_model, (4, 3)),
    "nested": (lambda: TimeDistributed(layers.Dense(2)), (4, 3)),
}


def pair(inner, shape, **arguments):
    """Ours and the stock wrapper around layers of the same (random) weights, both built."""
    make = INNER[inner][0] if isinstance(inner, str) else inner
    ours, stock = TimeDistributed(make(), **arguments), layers.TimeDistributed(make())
    ours.build(shape)
    stock.build(shape)
    randomise_weights(stock)
    ours.set_weights(stock.get_weights())
    return ours, stock


class MaskUser(layers.Layer):
    """Features of valid samples, negated features of masked ones, and zero without a mask."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        if mask is None:
            return ops.zeros_like(inputs)
        mask = ops.expand_dims(mask, -1) if len(mask.shape) < len(inputs.shape) else mask
        return ops.where(mask, inputs, -inputs)


class TwoInTwoOut(layers.Layer):
    """Nested inputs and outputs: `{"a", "b"}` to `(scaled sum, {"difference": ...})`.

    It has no `compute_output_shape`, as many a custom layer.
    """

    def build(self, shapes):
        self.scale = self.add_weight(shape=(shapes["a"][-1],), initializer="ones")

    def call(self, inputs):
        a, b = inputs["a"], inputs["b"]
        return (a + ops.sum(b, axis=-1)) * self.scale, {"difference": b - a[..., None]}


# --- Values, weights, gradients ---


@pytest.mark.parametrize("name", INNER)
def test_values_equal_keras(name):
    x = normal(2, 5, *INNER[name][1])
    ours, stock = pair(name, x.shape)
    output = ours(x)
    assert_close(output, stock(x))
    assert ours.compute_output_shape(x.shape) == tuple(output.shape)
    assert ours.compute_output_shape((None, None, *x.shape[2:]))[:2] == (None, None)


@pytest.mark.parametrize("name", INNER)
def test_weight_order_equals_keras(name):
    shape = (2, 5, *INNER[name][1])
    ours, stock = pair(name, shape)
    for attribute in ("weights", "trainable_weights", "non_trainable_weights", "variables"):
        described = [
            [(w.name, tuple(w.shape)) for w in getattr(layer, attribute)] for layer in (ours, stock)
        ]
        assert described[0] == described[1]


@needs_gradients
@pytest.mark.parametrize("name", [name for name in INNER if name != "max_pooling"])
@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_gradients_equal_keras(name, steps_per_call):
    x = normal(2, 5, *INNER[name][1])
    ours, stock = pair(name, x.shape, steps_per_call=steps_per_call)
    assert_gradients_close(ours, stock, x, training=False)


@given(
    shape=hnp.array_shapes(min_dims=3, max_dims=6, min_side=1, max_side=4),
    units=st.integers(1, 3),
    steps_per_call=st.sampled_from([None, 1, 2, 3]),
)
def test_property_dense_equals_numpy(shape, units, steps_per_call):
    x = normal(*shape)
    layer = TimeDistributed(layers.Dense(units), steps_per_call=steps_per_call)
    layer.build(shape)
    randomise_weights(layer)
    kernel, bias = layer.get_weights()
    expected = x.astype("float64") @ kernel.astype("float64") + bias
    assert_close(layer(x), expected)


def test_mixes_neither_samples_nor_steps():
    """Changing one step of one sample changes that step's output alone."""
    x = normal(3, 4, 5, 2)
    layer, _ = pair("conv1d", (None, None, 5, 2))
    changed = x.copy()
    changed[1, 2] += 1
    difference = to_numpy(layer(x)) != to_numpy(layer(changed))
    assert difference[1, 2].any()
    difference[1, 2] = False
    assert not difference.any()


# --- Constructor and saving ---


def test_constructor_takes_what_keras_takes():
    ours, stock = (
        inspect.signature(c).parameters for c in (TimeDistributed, layers.TimeDistributed)
    )
    assert [p for p in stock if p != "kwargs"] == ["layer"]
    assert next(iter(ours)) == "layer"
    layer = TimeDistributed(layers.Dense(2), name="steps", trainable=False, dtype="float32")
    layer.build((None, None, 3))
    assert layer.name == "steps"
    assert layer.trainable_weights == []


@pytest.mark.parametrize("saved_by", ["ours", "stock"])
@pytest.mark.parametrize("name", ["dense", "conv1d", "functional", "batch_normalization"])
def test_weights_file_loads_in_the_other(tmp_path, name, saved_by):
    shape = INNER[name][1]

    def model(wrapper):
        inputs = keras.Input((5, *shape))
        x = layers.TimeDistributed(layers.Flatten())(wrapper(INNER[name][0]())(inputs))
        return keras.Model(inputs, layers.Dense(2)(x))

    ours, stock = model(TimeDistributed), model(layers.TimeDistributed)
    saved, loaded = (ours, stock) if saved_by == "ours" else (stock, ours)
    randomise_weights(saved)
    saved.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    for a, e in zip(loaded.get_weights(), saved.get_weights(), strict=True):
        assert_equal(a, e)
    x = normal(2, 5, *shape)
    assert_close(ours.predict(x, verbose=0), stock.predict(x, verbose=0))


@pytest.mark.parametrize("name", INNER)
def test_config_round_trip(name):
    layer = TimeDistributed(INNER[name][0](), steps_per_call=3, name="steps")
    copy = TimeDistributed.from_config(layer.get_config())
    assert plain(copy.get_config()) == plain(layer.get_config())
    assert copy.steps_per_call == 3
    assert type(copy.layer) is type(layer.layer)


@pytest.mark.parametrize("steps_per_call", [None, 2])
@pytest.mark.parametrize("name", ["conv1d", "functional", "sequential", "bidirectional"])
def test_saved_model_round_trip(tmp_path, name, steps_per_call):
    shape = INNER[name][1]
    layer = TimeDistributed(INNER[name][0](), steps_per_call=steps_per_call)
    model = keras.Sequential([keras.Input((None, *shape)), layer])
    randomise_weights(model)
    loaded = save_and_load(model, tmp_path)
    assert plain(loaded.layers[-1].get_config()) == plain(layer.get_config())
    x = normal(3, 5, *shape)
    assert_close(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-7)


# --- Nested structures ---


@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_nested_inputs_and_outputs(steps_per_call):
    x = {"a": normal(2, 5, 3), "b": normal(2, 5, 3, 4, seed=1)}
    inner = TwoInTwoOut()
    layer = TimeDistributed(inner, steps_per_call=steps_per_call)
    actual = layer(x)
    randomise_weights(layer)
    assert_close(layer(x), loop_over_time(inner, x))
    specs = layer(tree.map_structure(lambda v: keras.Input((None, *v.shape[2:])), x))
    assert specs[0].shape == (None, None, 3)
    assert specs[1]["difference"].shape == (None, None, 3, 4)
    assert actual[0].shape == (2, 5, 3)


@pytest.mark.parametrize("container", [list, tuple])
def test_lists_and_tuples(container):
    x = container([normal(2, 5, 3), normal(2, 5, 3, seed=1)])
    layer = TimeDistributed(layers.Subtract())
    assert_close(layer(x), x[0] - x[1])
    assert layer.compute_output_shape(container([(2, 5, 3), (2, 5, 3)])) == (2, 5, 3)


def test_nested_in_a_functional_model(tmp_path):
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 3, 4), name="b")
    frames, features = keras.Input((3, 4), name="frames"), keras.Input((3,), name="features")
    joined = layers.Concatenate()([layers.Flatten()(frames), features])
    inner = keras.Model(
        {"frames": frames, "features": features},
        {"sum": layers.Dense(2)(joined), "tail": layers.Dense(3)(features)},
    )
    outputs = TimeDistributed(inner)({"frames": b, "features": a})
    assert outputs["sum"].shape == (None, None, 2)
    assert outputs["tail"].shape == (None, None, 3)
    model = keras.Model([a, b], outputs)
    x = [normal(2, 5, 3), normal(2, 5, 3, 4, seed=1)]
    expected = loop_over_time(inner, {"frames": x[1], "features": x[0]})
    assert_close(model.predict(x, verbose=0), expected)
    assert_close(save_and_load(model, tmp_path).predict(x, verbose=0), expected)


@needs_gradients
def test_gradients_of_nested_inputs():
    x = {"a": normal(2, 3, 3), "b": normal(2, 3, 3, 4, seed=1)}
    whole, parts = TimeDistributed(TwoInTwoOut()), TimeDistributed(TwoInTwoOut(), steps_per_call=2)
    whole(x), parts(x)
    assert_gradients_close(parts, whole, x)
    (grad_a, grad_b), (grad_scale,) = gradients(whole, x)
    assert grad_a.shape == x["a"].shape
    assert grad_b.shape == x["b"].shape
    assert grad_scale.shape == (3,)


# --- Masks ---


@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_time_mask_goes_to_the_layer_as_in_keras(steps_per_call):
    x, mask = normal(3, 5, 4), ops.convert_to_tensor(random_mask(3, 5))
    actual = TimeDistributed(MaskUser(), steps_per_call=steps_per_call)(x, mask=mask)
    assert_close(actual, layers.TimeDistributed(MaskUser())(x, mask=mask))
    assert_close(actual, np.where(np.array(mask)[..., None], x, -x))


@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_mask_with_further_axes_goes_to_the_layer(steps_per_call):
    x, mask = normal(2, 5, 4, 3), random_mask(2, 5, 4)
    lstm = layers.LSTM(3)
    actual = TimeDistributed(lstm, steps_per_call=steps_per_call)(
        x, mask=ops.convert_to_tensor(mask)
    )
    expected = [lstm(x[:, t], mask=ops.convert_to_tensor(mask[:, t])) for t in range(5)]
    assert_close(actual, np.stack(to_numpy(expected), 1))
    assert np.abs(to_numpy(actual) - to_numpy(TimeDistributed(lstm)(x))).max() > 1e-3


@pytest.mark.parametrize("name", ["lstm", "bidirectional", "functional"])
def test_time_mask_is_none_of_a_sequence_layers_business(name):
    """It has no axis for the inner sequence, so the values are those without a mask."""
    x = normal(2, 5, *INNER[name][1])
    layer, stock = pair(name, x.shape)
    mask = ops.convert_to_tensor(random_mask(2, 5))
    assert_close(layer(x, mask=mask), stock(x))
    assert_equal(layer.compute_mask(ops.convert_to_tensor(x), mask), np.array(mask))


@pytest.mark.parametrize("name", ["dense", "dense_nd", "flatten", "conv1d", "layer_normalization"])
def test_output_carries_the_time_mask(name):
    shape = (2, 5, *INNER[name][1])
    x, mask = ops.convert_to_tensor(normal(*shape)), random_mask(2, 5)
    layer, stock = pair(name, shape)
    computed = layer.compute_mask(x, ops.convert_to_tensor(mask))
    assert_equal(computed, mask)
    assert_equal(computed, stock.compute_mask(x, ops.convert_to_tensor(mask)))
    assert layer.compute_mask(x, None) is None


def test_mask_passes_to_a_following_lstm():
    x, mask = normal(2, 5, 4, 3), random_mask(2, 5)
    dense, lstm = layers.Dense(2), layers.LSTM(3)
    inputs, mask_input = keras.Input((None, 4, 3)), keras.Input((None,), dtype="bool")
    steps = TimeDistributed(keras.Sequential([layers.Flatten(), dense]))(inputs, mask=mask_input)
    model = keras.Model([inputs, mask_input], lstm(steps))
    expected = lstm(dense(x.reshape(2, 5, 12)), mask=ops.convert_to_tensor(mask))
    assert_close(model.predict([x, mask], verbose=0), expected)


@pytest.mark.parametrize("inner", ["dense", "sequence", "several"])
def test_a_model_that_uses_the_mask_is_saved(tmp_path, inner):
    """The mask is a part of the functional graph then."""
    inputs = keras.Input((None, 4, 3))
    masked = keras.layers.Masking()(inputs)
    layer = {
        "dense": keras.layers.Dense(2),
        "sequence": keras.layers.LSTM(2, return_sequences=True),
        "several": keras.layers.LSTM(2, return_state=True),
    }[inner]
    outputs = keras.tree.flatten(TimeDistributed(layer)(masked))
    merged = [FlattenFeatures()(x) for x in outputs]
    model = keras.Model(inputs, [keras.layers.LSTM(3)(x) for x in merged])
    x = normal(2, 5, 4, 3)
    x[0, 3:] = 0
    expected = model.predict(x, verbose=0)
    loaded = save_and_load(model, tmp_path)
    assert_close(loaded.predict(x, verbose=0), expected)
    loaded = save_and_load(loaded, tmp_path)
    assert_close(
        loaded.predict(x[:1], verbose=0), keras.tree.map_structure(lambda y: y[:1], expected)
    )
    shorter = x[:1, :3]  # the masked steps were no more than padding
    assert_close(
        loaded.predict(shorter, verbose=0), keras.tree.map_structure(lambda y: y[:1], expected)
    )


@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_embedding_masks_zero(steps_per_call):
    tokens = np.random.default_rng(0).integers(0, 3, (3, 5, 4))
    tokens[..., 0] = 1  # no series without a valid step
    embedding = layers.Embedding(3, 2, mask_zero=True)
    layer = TimeDistributed(embedding, steps_per_call=steps_per_call)
    assert_equal(layer.compute_mask(ops.convert_to_tensor(tokens), None), tokens != 0)

    inputs = keras.Input((None, 4), dtype="int32")
    lstm = layers.LSTM(3)
    model = keras.Model(inputs, TimeDistributed(lstm)(layer(inputs)))
    expected = [
        lstm(embedding(tokens[:, t]), mask=ops.convert_to_tensor(tokens[:, t] != 0))
        for t in range(5)
    ]
    assert_close(model.predict(tokens, verbose=0), np.stack(to_numpy(expected), 1))


def test_nested_masks():
    a, b = normal(2, 5, 3), normal(2, 5, 3, seed=1)
    masks = [ops.convert_to_tensor(random_mask(2, 5, seed=seed)) for seed in (2, 3)]
    layer = TimeDistributed(layers.Subtract())
    computed = layer.compute_mask([ops.convert_to_tensor(a), ops.convert_to_tensor(b)], masks)
    # Subtract takes no mask to reduce: a step is valid where it is valid in both inputs.
    assert_equal(computed, np.logical_and(*to_numpy(masks)))


def test_masks_of_several_outputs():
    class Two(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.supports_masking = True

        def call(self, inputs):
            return inputs, 2 * inputs

    x, mask = normal(2, 5, 3), random_mask(2, 5)
    inputs, mask_input = keras.Input((5, 3)), keras.Input((5,), dtype="bool")
    lstm = layers.LSTM(2)
    first, second = TimeDistributed(Two())(inputs, mask=mask_input)
    model = keras.Model([inputs, mask_input], [lstm(first), lstm(second)])
    mask_tensor = ops.convert_to_tensor(mask)
    expected = [lstm(x, mask=mask_tensor), lstm(2 * x, mask=mask_tensor)]
    assert_close(model.predict([x, mask], verbose=0), expected)


# --- Training ---


@pytest.mark.parametrize("inner", [layers.Dropout(0.5), keras.Sequential([layers.Dropout(0.5)])])
def test_training_flag_reaches_the_layer(inner):
    x = np.ones((4, 50, 20), "float32")
    layer = TimeDistributed(inner)
    assert_equal(layer(x, training=False), x)
    assert_equal(layer(x), x)
    dropped = to_numpy(layer(x, training=True))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert 0.4 < np.mean(dropped == 0) < 0.6
    # One mask over batch and time: the steps do not share it.
    assert not np.array_equal(dropped[:, 0], dropped[:, 1])


def test_batch_normalization_takes_statistics_over_batch_and_time_once():
    x = 3 + 2 * normal(4, 6, 5, 3)
    x[:, 3:] += 5
    layer = TimeDistributed(layers.BatchNormalization(momentum=0.9, epsilon=1e-3))
    output = layer(x, training=True)
    values = x.astype("float64")
    mean, variance = values.mean((0, 1, 2)), values.var((0, 1, 2))
    assert_close(output, (values - mean) / np.sqrt(variance + 1e-3), atol=1e-5)
    assert_close(layer.layer.moving_mean, 0.1 * mean, atol=1e-5)
    assert_close(layer.layer.moving_variance, 0.9 + 0.1 * variance, atol=1e-5)

    # Keras takes them at each step, and updates once a step.
    stock = layers.TimeDistributed(layers.BatchNormalization(momentum=0.9, epsilon=1e-3))
    stock_output = to_numpy(stock(x, training=True))
    step = values[:, 3]
    expected = (step - step.mean((0, 1))) / np.sqrt(step.var((0, 1)) + 1e-3)
    assert_close(stock_output[:, 3], expected, atol=1e-5)
    assert np.abs(stock_output - to_numpy(output)).max() > 0.1
    moved = 0.0
    for t in range(6):
        moved = 0.9 * moved + 0.1 * values[:, t].mean((0, 1))
    assert_close(stock.layer.moving_mean, moved, atol=1e-5)


def test_batch_normalization_leaves_out_masked_steps():
    x, mask = normal(4, 6, 3), random_mask(4, 6)
    layer = TimeDistributed(layers.BatchNormalization(momentum=0.9))
    layer(x, training=True, mask=ops.convert_to_tensor(mask))
    assert_close(layer.layer.moving_mean, 0.1 * x[mask].astype("float64").mean(0), atol=1e-5)


@needs_gradients
@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_fit_equals_keras(steps_per_call):
    x, y = normal(8, 5, 4, 2), normal(8, 3, seed=1)

    def model(wrapper):
        inputs = keras.Input((5, 4, 2))
        steps = wrapper(layers.Conv1D(3, 2, activation="tanh"))(inputs)
        flat = layers.TimeDistributed(layers.Flatten())(steps)
        return keras.Model(inputs, layers.LSTM(3)(flat))

    ours = model(lambda inner: TimeDistributed(inner, steps_per_call=steps_per_call))
    stock = model(layers.TimeDistributed)
    ours.set_weights(stock.get_weights())
    before = stock.get_weights()
    for m in (ours, stock):
        m.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
        m.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for a, e, b in zip(ours.get_weights(), stock.get_weights(), before, strict=True):
        assert not np.allclose(e, b, atol=1e-4)
        assert_close(a, e, atol=1e-5)


# --- Sizes of batch and time ---


@pytest.mark.parametrize(("batch", "time"), [(2, 1), (2, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("name", ["dense", "flatten", "sequential", "conv2d"])
@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_empty_and_single(name, batch, time, steps_per_call):
    x = normal(batch, time, *INNER[name][1])
    ours, stock = pair(name, (None, None, *INNER[name][1]), steps_per_call=steps_per_call)
    output = ours(x)
    if x.size:
        assert_close(output, stock(x))
    expected = ours.layer.compute_output_shape((1, *INNER[name][1]))[1:]
    assert tuple(output.shape) == (batch, time, *expected)


@pytest.mark.parametrize(("batch", "time"), [(None, 5), (3, None), (None, None)])
@pytest.mark.parametrize("name", ["dense", "conv2d", "lstm", "functional"])
def test_unknown_batch_and_time(name, batch, time):
    shape = INNER[name][1]
    inputs = keras.Input(batch_shape=(batch, time, *shape))
    layer = TimeDistributed(INNER[name][0]())
    outputs = layer(inputs)
    assert outputs.shape[:2] == (batch, time)
    model = keras.Model(inputs, outputs)
    for length in [5] if time else [5, 1, 3]:
        x = normal(3, length, *shape)
        assert_close(model.predict(x, verbose=0), loop_over_time(layer.layer, x))


@only_tensorflow
@pytest.mark.parametrize("steps_per_call", [None, 1, 2, 3, 10])
@pytest.mark.parametrize("name", ["dense", "conv1d", "functional"])
def test_unknown_sizes_in_a_tf_function(name, steps_per_call):
    import tensorflow as tf

    shape = INNER[name][1]
    layer, stock = pair(name, (None, None, *shape), steps_per_call=steps_per_call)
    call = tf.function(layer, input_signature=[tf.TensorSpec((None, None, *shape))])
    for batch, time in [(2, 5), (3, 4), (1, 1)]:
        x = normal(batch, time, *shape)
        assert_close(call(x), stock(x))
    assert tuple(call(normal(2, 0, *shape)).shape[:2]) == (2, 0)


# --- steps_per_call ---


@pytest.mark.parametrize("time", [1, 5, 6])
@pytest.mark.parametrize("steps_per_call", [1, 2, 3, 6, 100])
def test_steps_per_call_equals_one_fold(time, steps_per_call):
    x = normal(2, time, 5, 3)
    layer, _ = pair("conv1d", x.shape, steps_per_call=steps_per_call)
    whole, _ = pair("conv1d", x.shape)
    assert_close(layer(x), whole(x), atol=1e-6)


def test_steps_per_call_bounds_the_batch_of_each_call():
    sizes = []

    class Recorder(layers.Layer):
        def call(self, inputs):
            sizes.append(inputs.shape[0])
            return inputs

    layer = TimeDistributed(Recorder(), steps_per_call=2)
    layer.build((3, 5, 2))
    sizes.clear()
    layer(normal(3, 5, 2))
    assert [size for size in sizes if size is not None] == [6, 6, 3]


@only_tensorflow
def test_gradients_of_steps_per_call_with_unknown_time():
    import tensorflow as tf

    layer, stock = pair("conv1d", (None, None, 5, 3), steps_per_call=2)

    @tf.function(input_signature=[tf.TensorSpec((None, None, 5, 3))] * 2)
    def found(x, cotangent):
        weights = [w.value for w in layer.trainable_weights]
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(layer(x) * tf.reduce_mean(cotangent))
        return tape.gradient(value, [x, *weights])

    for time in (5, 1):
        x = tf.constant(normal(2, time, 5, 3))
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(stock(x) * tf.reduce_mean(x))
            expected = tape.gradient(
                tf.reduce_sum(value), [w.value for w in stock.trainable_weights]
            )
        assert_close(found(x, x)[1:], expected, atol=1e-5)


@only_tensorflow
def test_nested_steps_per_call_with_unknown_time():
    import tensorflow as tf

    inner = TwoInTwoOut()
    layer = TimeDistributed(inner, steps_per_call=2)
    layer.build({"a": (None, None, 3), "b": (None, None, 3, 4)})
    signature = {"a": tf.TensorSpec((None, None, 3)), "b": tf.TensorSpec((None, None, 3, 4))}
    call = tf.function(layer, input_signature=[signature])
    for time in (5, 2):
        x = {"a": normal(2, time, 3), "b": normal(2, time, 3, 4, seed=1)}
        actual = call(tree.map_structure(tf.constant, x))
        expected = loop_over_time(inner, x)
        for a, e in zip(tree.flatten(actual), tree.flatten(expected), strict=True):
            assert_close(a, e)


@pytest.mark.parametrize("length", [None, 5])
def test_steps_per_call_in_a_model(length):
    inputs = keras.Input((length, 5, 3))
    layer = TimeDistributed(layers.Conv1D(2, 2), steps_per_call=2)
    model = keras.Model(inputs, layer(inputs))
    for time in (5, 2) if length is None else (5,):
        x = normal(3, time, 5, 3)
        assert_close(model.predict(x, verbose=0), loop_over_time(layer.layer, x))


# --- Compilation, precision, export ---


@needs_jit
@pytest.mark.parametrize("steps_per_call", [None, 2])
@pytest.mark.parametrize("name", ["conv1d", "lstm"])
def test_jit_compile(name, steps_per_call):
    shape = INNER[name][1]
    layer = TimeDistributed(INNER[name][0](), steps_per_call=steps_per_call)
    model = keras.Sequential([keras.Input((5, *shape)), layer])
    x = normal(2, 5, *shape)
    for jit_compile in (True, False):
        model.compile(jit_compile=jit_compile)
        assert_close(model.predict(x, verbose=0), loop_over_time(layer.layer, x), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["dense", "conv1d"])
def test_mixed_precision(name, policy):
    x = normal(2, 5, *INNER[name][1])
    exact, _ = pair(name, x.shape)
    keras.config.set_dtype_policy(policy)
    mixed, stock = pair(name, x.shape)
    mixed.set_weights(exact.get_weights())
    stock.set_weights(exact.get_weights())
    output = mixed(x)
    compute_dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(output.dtype) == compute_dtype
    assert {w.dtype for w in mixed.weights} == {"float32"}
    assert mixed(keras.Input(x.shape[1:])).dtype == compute_dtype
    tolerance = 1e-2 if compute_dtype == "float16" else 0.1
    assert_close(output, exact(x), atol=tolerance)
    assert_close(output, stock(x), atol=tolerance / 4)


def test_the_wrapper_casts_nothing():
    """The layer inside decides: with its own float32 policy 1e5 does not overflow."""
    keras.config.set_dtype_policy("mixed_float16")
    x = np.full((2, 3, 4), 1e5, "float32")
    output = TimeDistributed(layers.Flatten(dtype="float32"))(x)
    assert_equal(output, x)


@pytest.mark.slow
@only_tensorflow
@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_export(tmp_path, steps_per_call):
    import tensorflow as tf

    layer = TimeDistributed(layers.Conv1D(2, 2), steps_per_call=steps_per_call)
    model = keras.Sequential([keras.Input((None, 5, 3)), layer])
    model.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")
    for time in (7, 4):
        x = normal(2, time, 5, 3)
        assert_close(saved.serve(x), layer(x))


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend is enough to show the rival")
def test_ours_is_right_where_keras_loops_over_the_batch():
    """Why a replacement: with time unknown, the stock layer unrolls the batch axis in graphs."""
    x = normal(3, 5, 4)
    inputs = keras.Input((None, 4))
    layer = TimeDistributed(layers.Dense(2))
    model = keras.Model(inputs, layer(inputs))
    for time in (5, 2):
        assert_close(model.predict(x[:, :time], verbose=0), layer.layer(x[:, :time]))


# --- Errors ---


@pytest.mark.parametrize("value", [None, "dense", 3, lambda x: x])
def test_wrong_layer(value):
    with pytest.raises(ValueError, match=r"TimeDistributed: `layer` must be .*Received .*of type"):
        TimeDistributed(value)


@pytest.mark.parametrize("value", [0, -2, 1.5, True, "all"])
def test_wrong_steps_per_call(value):
    with pytest.raises(ValueError, match=r"`steps_per_call` must be an integer.*Received"):
        TimeDistributed(layers.Dense(2), steps_per_call=value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LSTM(2, stateful=True),
        lambda: layers.Bidirectional(layers.GRU(2, stateful=True)),
        lambda: keras.Sequential([layers.LSTM(2, stateful=True)]),
        lambda: TimeDistributed(
            keras.Sequential([keras.Sequential([layers.GRU(2, stateful=True)])])
        ),
    ],
)
def test_stateful_is_refused(make):
    with pytest.raises(ValueError, match=r"has `stateful=True`.*Use `stateful=False`, or"):
        TimeDistributed(make())


@pytest.mark.parametrize("shape", [(4, 5), (4,)])
def test_wrong_rank(shape):
    with pytest.raises(ValueError, match=r"steps: the input must have at least 3 axes.*Received"):
        TimeDistributed(layers.Dense(2), name="steps")(normal(*shape))


@pytest.mark.parametrize("other", [(3, 5, 3), (2, 6, 3)])
def test_inputs_that_differ_in_batch_or_time(other):
    layer = TimeDistributed(TwoInTwoOut(), name="steps")
    layer.build({"a": (None, None, 3), "b": (None, None, 3, 4)})
    with pytest.raises(ValueError, match=r"steps: all inputs must share batch and time\. Received"):
        layer({"a": normal(2, 5, 3), "b": normal(*other, 4)})


@pytest.mark.parametrize("mask_shape", [(2,), (2, 4), (3, 5), (2, 5, 3), (2, 5, 4, 3, 1)])
def test_wrong_mask_shape(mask_shape):
    inner = MaskUser() if mask_shape == (2, 5, 3) else layers.Dense(2)
    layer = TimeDistributed(inner, name="steps")
    with pytest.raises(ValueError, match=r"steps: the mask must have .*Received a mask of shape"):
        layer(normal(2, 5, 4, 3), mask=ops.ones(mask_shape, "bool"))


def test_jax_export_with_symbolic_time_is_refused():
    """No test needs JAX for this: the function reads only the type of `time`."""
    if BACKEND != "jax":
        pytest.skip("imports the JAX file")
    from multibackend_lstm.backends.jax import JAXBackend

    with pytest.raises(ValueError, match=r"`steps_per_call=2` needs to know .*time=t"):
        JAXBackend().concatenate_steps(lambda start, stop: None, "t", 2)


# --- One mask for all steps ---


def block():
    return keras.Sequential([layers.Dense(4), ml.Dropout(0.5, seed=1), ml.GaussianNoise(0.5)])


ONES = np.ones((3, 5, 2, 4), "float32")


@pytest.mark.parametrize(
    "inner",
    [
        lambda: ml.Dropout(0.5),
        lambda: ml.SpatialDropout1D(0.5),
        lambda: ml.GaussianDropout(0.5),
        lambda: ml.LSTM(4, dropout=0.3, recurrent_dropout=0.3),
        lambda: ml.Channelwise(ml.Dropout(0.5)),
        lambda: TimeDistributed(ml.Dropout(0.5)),
        block,
    ],
    ids=["dropout", "spatial", "noise", "lstm", "channelwise", "nested", "model"],
)
def test_variational_dropout_draws_once_for_all_steps(inner):
    x = ONES[..., None] if "Channelwise" in str(type(inner())) else ONES
    layer = TimeDistributed(inner(), variational_dropout=True)
    found = to_numpy(layer(x, training=True))
    assert_close(found, np.broadcast_to(found[:, :1], found.shape))
    assert np.abs(found[0] - found[1]).max() > 1e-2  # each sample has its own
    again = to_numpy(layer(x, training=True))
    assert (again != found).any()
    anew = to_numpy(TimeDistributed(inner())(x, training=True))
    assert np.abs(anew[:, 0] - anew[:, 1]).max() > 1e-2


def test_variational_dropout_is_the_mask_of_the_samples():
    found = TimeDistributed(ml.Dropout(0.5, seed=7), variational_dropout=True)(ONES, training=True)
    expected = ml.Dropout(0.5, noise_shape=(None, 1, None, None), seed=7)(ONES, training=True)
    assert_equal(found, expected)
    whole = TimeDistributed(
        ml.Dropout(0.5, noise_shape=(1, None, None), seed=7), variational_dropout=True
    )(ONES, training=True)
    expected = ml.Dropout(0.5, noise_shape=(1, 1, None, None), seed=7)(ONES, training=True)
    assert_equal(whole, expected)


def test_variational_dropout_of_wrappers_in_each_other():
    inner = TimeDistributed(ml.GaussianNoise(0.5), variational_dropout=True)
    both = to_numpy(TimeDistributed(inner, variational_dropout=True)(ONES, training=True))
    assert_equal(both, np.broadcast_to(both[:, :1, :1], both.shape))
    inner = TimeDistributed(ml.GaussianNoise(0.5), variational_dropout=True)
    one = to_numpy(TimeDistributed(inner)(ONES, training=True))
    assert_equal(one, np.broadcast_to(one[:, :, :1], one.shape))
    assert (one[:, 0] != one[:, 1]).any()


@needs_gradients
def test_variational_dropout_in_a_compiled_step_of_unknown_sizes():
    # With a learning rate of 1 the weights are minus what was not dropped.
    inputs = keras.Input((None, 4))
    x = TimeDistributed(ml.Dropout(0.5, seed=7), variational_dropout=True)(inputs)
    outputs = layers.Dense(1, use_bias=False, kernel_initializer="zeros")(x)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(1.0), lambda y, p: ops.sum(p))
    model.fit(np.ones((1, 5, 4)), np.zeros((1, 5, 1)), verbose=0)
    dropped = ml.Dropout(0.5, seed=7)(np.ones((1, 1, 4), "float32"), training=True)
    assert_close(model.layers[-1].kernel, -5 * to_numpy(dropped)[0, 0][:, None])


def test_variational_dropout_is_saved_and_without_cases_nothing_happens(tmp_path):
    layer = TimeDistributed(block(), variational_dropout=True)
    model = keras.Sequential([keras.Input((5, 2, 4)), layer])
    assert save_and_load(model, tmp_path).layers[-1].variational_dropout
    assert tuple(layer(ONES[:0], training=True).shape) == (0, 5, 2, 4)
    assert_equal(layer(ONES), layer(ONES))  # and inference draws nothing


def test_variational_dropout_is_refused():
    stock = keras.Sequential([ml.Dropout(0.5), layers.Dropout(0.5, name="theirs")])
    with pytest.raises(ValueError, match=r"Received 'theirs', a keras.*layers.*Dropout"):
        TimeDistributed(stock, variational_dropout=True)
    with pytest.raises(ValueError, match="`variational_dropout` needs all steps in one call"):
        TimeDistributed(ml.Dropout(0.5), steps_per_call=2, variational_dropout=True)

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops, tree

from multibackend_lstm import Channelwise
from unit import references
from unit.tools import (
    assert_close,
    assert_equal,
    assert_gradients_close,
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

MERGES = ("concat", "sum", "average", "max", "stack")
INNER = {
    "lstm": lambda: layers.LSTM(3),
    "sequences": lambda: layers.LSTM(3, return_sequences=True),
    "states": lambda: layers.LSTM(3, return_sequences=True, return_state=True),
    "bidirectional": lambda: layers.Bidirectional(layers.GRU(2, return_sequences=True)),
    "model": lambda: keras.Sequential([layers.LSTM(3, return_sequences=True), layers.Dense(2)]),
    "convolution": lambda: layers.Conv1D(3, 2),
}


def merged(results, how, axes):
    """Join the results (nested arrays) of the channels."""
    return tree.map_structure(lambda *xs: references.merge(xs, how, axes), *results)


def loop_over_channels(layer, x, how, mask=None):
    """What `Channelwise` computes, a channel at a time."""
    axes = x.shape[2:-1]
    results = []
    for index in np.ndindex(*axes):
        place = (slice(None), slice(None), *index)
        arguments = {}
        if mask is not None:
            column = mask if mask.ndim == 2 else mask[place[: mask.ndim]]
            arguments["mask"] = ops.convert_to_tensor(np.array(column))
        results.append(to_numpy(layer(np.array(x[place]), **arguments)))
    return merged(results, how, axes)


def build(inner, merge, shape):
    layer = Channelwise(INNER[inner](), merge=merge)
    layer.build(shape)
    randomise_weights(layer)
    return layer


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("inner", ["lstm", "sequences", "states"])
def test_values_equal_a_loop_over_channels(inner, merge):
    x = normal(2, 5, 4, 3)
    layer = build(inner, merge, x.shape)
    outputs = layer(x)
    assert_close(outputs, loop_over_channels(layer.layer, x, merge))
    shapes = tree.map_structure(lambda v: tuple(v.shape), outputs)
    assert layer.compute_output_shape(x.shape) == shapes
    symbolic = layer(keras.Input((None, 4, 3)))
    for spec, output in zip(tree.flatten(symbolic), tree.flatten(outputs), strict=True):
        time = (None,) if output.shape[1] == x.shape[1] else ()
        assert spec.shape == (None, *time, *output.shape[1 + len(time) :])


@pytest.mark.parametrize("inner", ["convolution", "bidirectional", "model"])
def test_other_sequence_layers(inner):
    x = normal(2, 5, 4, 3)
    layer = build(inner, "concat", x.shape)
    assert_close(layer(x), loop_over_channels(layer.layer, x, "concat"))


@pytest.mark.parametrize("merge", MERGES)
def test_rank_5(merge):
    x = normal(2, 5, 2, 3, 4)
    layer = build("sequences", merge, x.shape)
    output = layer(x)
    assert_close(output, loop_over_channels(layer.layer, x, merge))
    assert layer.compute_output_shape(x.shape) == tuple(output.shape)


@pytest.mark.parametrize("inner", ["lstm", "sequences", "states"])
@pytest.mark.parametrize("further", [(), (4,)])
def test_masks_equal_a_loop_over_channels(inner, further):
    x, mask = normal(3, 6, 4, 2), random_mask(3, 6, *further, seed=1)
    layer = build(inner, "concat", x.shape)
    output = layer(x, mask=ops.convert_to_tensor(mask))
    assert_close(output, loop_over_channels(layer.layer, x, "concat", mask))
    flat = tree.flatten(to_numpy(output))[0]
    assert np.abs(flat - tree.flatten(to_numpy(layer(x)))[0]).max() > 1e-3


@pytest.mark.parametrize("further", [(), (2,), (2, 3)])
def test_masks_of_rank_5(further):
    x, mask = normal(3, 6, 2, 3, 2), random_mask(3, 6, *further, seed=1)
    layer = build("lstm", "stack", x.shape)
    spread = np.broadcast_to(mask.reshape(*mask.shape, *[1] * (4 - mask.ndim)), x.shape[:-1])
    expected = loop_over_channels(layer.layer, x, "stack", spread)
    assert_close(layer(x, mask=ops.convert_to_tensor(mask)), expected)


@settings(max_examples=6)
@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 4),
    merge=st.sampled_from(MERGES),
    data=st.data(),
)
def test_property_lstm_equals_numpy(sizes, merge, data):
    channels = sizes[2]
    x = normal(*sizes)
    seed = data.draw(st.integers(0, 100))
    # A series without a valid step is left to the layer inside.
    mask = np.random.default_rng(seed).random(sizes[:3]) < 0.6
    mask[:, 0] = True
    layer = build("sequences", merge, sizes)
    weights = [w.astype("float64") for w in layer.get_weights()]
    series = [references.lstm(x[:, :, c], *weights, mask[:, :, c]) for c in range(channels)]
    output = layer(x, mask=ops.convert_to_tensor(mask))
    assert_close(output, references.merge(series, merge), atol=1e-5)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("further", [(), (4,)])
def test_output_mask(merge, further):
    x, mask = ops.convert_to_tensor(normal(3, 6, 4, 2)), random_mask(3, 6, *further, seed=1)
    sequences = build("sequences", merge, x.shape)
    by_time = mask.any(-1) if further else mask
    expected = mask if merge == "stack" else by_time
    assert_equal(sequences.compute_mask(x, ops.convert_to_tensor(mask)), expected)
    assert sequences.compute_mask(x, None) is None
    states = build("states", merge, x.shape).compute_mask(x, ops.convert_to_tensor(mask))
    assert_equal(states[0], expected)
    assert list(states[1:]) == [None, None]
    assert build("lstm", merge, x.shape).compute_mask(x, ops.convert_to_tensor(mask)) is None


def test_masking_reaches_each_channel_and_a_second_layer():
    x = normal(3, 6, 4, 2)
    x[:, 0] += 10
    missing = ~random_mask(3, 6, 4, seed=2)
    x[missing] = -9.0
    inputs = keras.Input((None, 4, 2))
    first, second = build("sequences", "stack", x.shape), build("lstm", "concat", (3, 6, 4, 3))
    masked = layers.Masking(-9.0)(inputs)
    model = keras.Model(inputs, second(first(masked)))
    zeroed = np.where(missing[..., None], 0, x).astype("float32")
    between = loop_over_channels(first.layer, zeroed, "stack", ~missing)
    expected = loop_over_channels(second.layer, between, "concat", ~missing)
    assert_close(model.predict(x, verbose=0), expected)


@needs_gradients
@pytest.mark.parametrize("merge", MERGES)
def test_gradients_equal_a_loop_over_channels(merge):
    class Loop(layers.Layer):
        """The same in Keras operations, one channel at a time."""

        def __init__(self):
            super().__init__()
            self.layer = layers.LSTM(3)

        def build(self, shape):
            self.layer.build((None, shape[1], shape[-1]))

        def call(self, x):
            channels = [self.layer(x[:, :, c]) for c in range(x.shape[2])]
            if merge == "concat":
                return ops.concatenate(channels, -1)
            stacked = ops.stack(channels, axis=1)
            join = {"sum": ops.sum, "average": ops.mean, "max": ops.max}.get(merge)
            return stacked if join is None else join(stacked, axis=1)

    x = normal(2, 4, 3, 2)
    layer, loop = build("lstm", merge, x.shape), Loop()
    loop.build(x.shape)
    loop.set_weights(layer.get_weights())
    assert_gradients_close(layer, loop, x)


@needs_gradients
def test_fit_changes_the_shared_weights_once():
    model = keras.Sequential([keras.Input((5, 4, 2)), Channelwise(layers.LSTM(3), "average")])
    assert model.count_params() == 4 * 3 * (2 + 3 + 1)
    x, y = normal(8, 5, 4, 2), 0.1 * normal(8, 3, seed=1)
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
    losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("batch", "time"), [(None, 5), (3, None), (None, None)])
@pytest.mark.parametrize("merge", ["concat", "stack"])
def test_unknown_batch_and_time(batch, time, merge):
    inputs = keras.Input(batch_shape=(batch, time, 4, 2))
    layer = Channelwise(layers.LSTM(3, return_sequences=True), merge)
    outputs = layer(inputs)
    assert outputs.shape[:2] == (batch, time)
    model = keras.Model(inputs, outputs)
    for length in [5] if time else [5, 1]:
        x = normal(3, length, 4, 2)
        assert_close(model.predict(x, verbose=0), loop_over_channels(layer.layer, x, merge))


@only_tensorflow
def test_unknown_sizes_in_a_tf_function():
    import tensorflow as tf

    layer = build("sequences", "concat", (None, None, 4, 2))
    signature = [tf.TensorSpec((None, None, 4, 2)), tf.TensorSpec((None, None, 4), "bool")]
    call = tf.function(lambda x, m: layer(x, mask=m), input_signature=signature)
    for batch, time in [(2, 5), (3, 2)]:
        x, mask = normal(batch, time, 4, 2), random_mask(batch, time, 4)
        assert_close(call(x, mask), loop_over_channels(layer.layer, x, "concat", mask))


def test_training_flag_reaches_the_layer():
    layer = Channelwise(layers.Dropout(0.5), "stack")
    x = np.ones((4, 20, 3, 5), "float32")
    assert_equal(layer(x, training=False), x)
    dropped = to_numpy(layer(x, training=True))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert not np.array_equal(dropped[:, :, 0], dropped[:, :, 1])


@pytest.mark.parametrize("merge", MERGES)
def test_config_round_trip(merge):
    layer = Channelwise(layers.LSTM(3), merge, name="each")
    copy = Channelwise.from_config(layer.get_config())
    assert plain(copy.get_config()) == plain(layer.get_config())
    assert copy.merge == merge


@pytest.mark.parametrize("inner", ["sequences", "bidirectional", "model"])
def test_saved_model_round_trip(tmp_path, inner):
    layer = Channelwise(INNER[inner](), "stack")
    model = keras.Sequential([keras.Input((None, 4, 2)), layer])
    randomise_weights(model)
    loaded = save_and_load(model, tmp_path)
    assert plain(loaded.layers[-1].get_config()) == plain(layer.get_config())
    x = normal(3, 5, 4, 2)
    assert_close(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-7)


@needs_jit
def test_jit_compile():
    layer = Channelwise(layers.LSTM(3), "average")
    model = keras.Sequential([keras.Input((5, 4, 2)), layer])
    x = normal(2, 5, 4, 2)
    for jit_compile in (True, False):
        model.compile(jit_compile=jit_compile)
        expected = loop_over_channels(layer.layer, x, "average")
        assert_close(model.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("merge", MERGES)
def test_mixed_precision(policy, merge):
    x = normal(2, 4, 3, 2)
    exact = build("lstm", merge, x.shape)
    keras.config.set_dtype_policy(policy)
    mixed = build("lstm", merge, x.shape)
    mixed.set_weights(exact.get_weights())
    output = mixed(x)
    compute_dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(output.dtype) == compute_dtype
    assert mixed(keras.Input(x.shape[1:])).dtype == compute_dtype
    assert {w.dtype for w in mixed.weights} == {"float32"}
    assert_close(output, exact(x), atol=1e-2 if compute_dtype == "float16" else 0.05)


@pytest.mark.slow
@only_tensorflow
def test_export(tmp_path):
    import tensorflow as tf

    layer = Channelwise(layers.LSTM(3))
    model = keras.Sequential([keras.Input((None, 4, 2)), layer])
    model.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")
    x = normal(2, 7, 4, 2)
    assert_close(saved.serve(x), layer(x))


@pytest.mark.parametrize("value", [None, "lstm", layers.LSTM])
def test_wrong_layer(value):
    with pytest.raises(ValueError, match=r"Channelwise: `layer` must be .*Received .*of type"):
        Channelwise(value)


def test_wrong_merge():
    with pytest.raises(ValueError, match=r"`merge` must be one of 'concat', .*Received 'mean'"):
        Channelwise(layers.LSTM(2), merge="mean")


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((None, 5), r"at least 4 axes.*Received 2 axes"),
        ((None, 5, 6), r"each: .*at least 4 axes.*Received 3 axes.*unflatten_features"),
        ((None, 5, None, 2), r"axis 2 \(channels\) is\. Received"),
        ((None, 5, 3, None, 2), r"axis 3 \(axis_3\) is\. Received"),
    ],
)
def test_wrong_input_shape(shape, match):
    with pytest.raises(ValueError, match=match):
        Channelwise(layers.LSTM(2), name="each")(keras.Input(batch_shape=shape))


@pytest.mark.parametrize("mask_shape", [(2,), (3, 5), (2, 4), (2, 5, 3), (2, 5, 4, 2)])
def test_wrong_mask_shape(mask_shape):
    layer = Channelwise(layers.LSTM(2), name="each")
    with pytest.raises(ValueError, match=r"each: the mask must have .*Received a mask of shape"):
        layer(normal(2, 5, 4, 2), mask=ops.ones(mask_shape, "bool"))

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops

from multibackend_lstm import TimeDistributedConv
from unit import references
from unit.references import loop_over_time
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

AXES = {1: (7,), 2: (6, 5), 3: (4, 5, 6)}
CONVOLUTIONS = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}
MAX_POOLING = {1: layers.MaxPooling1D, 2: layers.MaxPooling2D, 3: layers.MaxPooling3D}
AVERAGE_POOLING = {
    1: layers.AveragePooling1D,
    2: layers.AveragePooling2D,
    3: layers.AveragePooling3D,
}

SETTINGS = {
    "defaults": {},
    "same": {"padding": "same"},
    "strides": {"strides": 2},
    "strides_same": {"strides": 2, "padding": "same"},
    "strides_3_same": {"strides": 3, "padding": "same"},
    "dilation": {"dilation_rate": 2, "kernel_size": 2},
    "dilation_same": {"dilation_rate": 2, "padding": "same"},
    "even_kernel_same": {"kernel_size": 2, "padding": "same"},
    "kernel_of_1": {"kernel_size": 1},
    "groups": {"groups": 2},
    "no_bias": {"use_bias": False},
    "relu": {"activation": "relu", "padding": "same"},
}
CASES = [(rank, name) for rank in AXES for name in SETTINGS]
CASES += [(1, {"padding": "causal"}), (1, {"padding": "causal", "dilation_rate": 2})]
CASES += [(1, {"padding": "causal", "strides": 2})]
CASES += [(2, {"kernel_size": (2, 3), "strides": (2, 1)}), (2, {"dilation_rate": (1, 2)})]
CASES += [(3, {"kernel_size": (1, 2, 3), "padding": "same"}), (3, {"strides": (2, 1, 2)})]
CASES += [(3, {"strides": (1, 2, 1), "kernel_size": (3, 2, 1), "padding": "same"})]


def pair(rank, settings):
    """Our layer and `[TimeDistributed(Conv), TimeDistributed(Flatten)]`, with equal weights."""
    settings = {"kernel_size": 3} | (SETTINGS[settings] if isinstance(settings, str) else settings)
    shape = (2, 3, *AXES[rank], 4)
    layer = TimeDistributedConv(6, **settings)
    stock = keras.Sequential(
        [
            keras.Input(shape[1:]),
            layers.TimeDistributed(CONVOLUTIONS[rank](6, **settings)),
            layers.TimeDistributed(layers.Flatten()),
        ]
    )
    layer.build(shape)
    randomise_weights(layer)
    stock.set_weights(layer.get_weights())
    return layer, stock, normal(*shape), settings


# --- Values, one block ---


@pytest.mark.parametrize(("rank", "settings"), CASES)
def test_values_equal_numpy_and_keras(rank, settings):
    layer, stock, x, settings = pair(rank, settings)
    output = layer(x)
    assert layer.compute_output_shape(x.shape) == tuple(output.shape)
    kernel, *bias = layer.get_weights()
    assert len(bias) == settings.get("use_bias", True)
    expected = references.convolve(
        x.reshape(6, *x.shape[2:]),
        kernel,
        *bias,
        strides=settings.get("strides", 1),
        padding=settings.get("padding", "valid"),
        dilation=settings.get("dilation_rate", 1),
        groups=settings.get("groups", 1),
    )
    if settings.get("activation"):
        expected = np.maximum(expected, 0)
    assert_close(output, expected.reshape(2, 3, -1), atol=2e-5)
    assert_close(output, stock(x), atol=2e-5)


@needs_gradients
@pytest.mark.parametrize(("rank", "settings"), CASES)
def test_gradients_equal_keras(rank, settings):
    layer, stock, x, _ = pair(rank, settings)
    assert_gradients_close(layer, stock, x, atol=5e-5)


def test_weight_order_equals_keras():
    layer, stock, *_ = pair(1, "defaults")
    assert [(w.name, w.shape) for w in layer.weights] == [(w.name, w.shape) for w in stock.weights]


@given(
    axes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["valid", "same"]),
    features=st.integers(1, 3),
)
def test_property_equals_numpy(axes, kernel, stride, padding, features):
    if padding == "valid":
        kernel = min(kernel, *axes)
    x = normal(2, 2, *axes, features)
    layer = TimeDistributedConv(2, kernel, strides=stride, padding=padding)
    layer.build(x.shape)
    randomise_weights(layer)
    expected = references.convolve(
        x.reshape(4, *x.shape[2:]), *layer.get_weights(), strides=stride, padding=padding
    )
    assert_close(layer(x), expected.reshape(2, 2, -1), atol=1e-5)


# --- Blocks ---


@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("rank", AXES)
def test_blocks_equal_a_sequential_model(rank, pool):
    pooling = {"max": MAX_POOLING, "average": AVERAGE_POOLING}[pool]
    layer = TimeDistributedConv(
        (4, 3),
        2,
        activation="tanh",
        normalization="layer",
        pool_size=2,
        pool=pool,
        padding="same",
    )
    x = normal(2, 3, *AXES[rank], 2)
    step = keras.Sequential(
        [
            keras.Input(x.shape[2:]),
            CONVOLUTIONS[rank](4, 2, padding="same"),
            layers.LayerNormalization(),
            layers.Activation("tanh"),
            pooling[rank](2),
            CONVOLUTIONS[rank](3, 2, padding="same"),
            layers.LayerNormalization(),
            layers.Activation("tanh"),
            layers.Flatten(),
        ]
    )
    layer.build(x.shape)
    randomise_weights(layer)
    step.set_weights(layer.get_weights())
    output = layer(x)
    assert_close(output, loop_over_time(step, x), atol=1e-5)
    assert layer.compute_output_shape(x.shape) == tuple(output.shape)


@needs_gradients
def test_gradients_of_blocks_equal_a_sequential_model():
    layer = TimeDistributedConv((4, 3), 2, activation="tanh", pool_size=2, reduce="average")
    x = normal(2, 3, 7, 2)
    stock = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            *map(
                layers.TimeDistributed,
                [
                    layers.Conv1D(4, 2, activation="tanh"),
                    layers.MaxPooling1D(2),
                    layers.Conv1D(3, 2, activation="tanh"),
                    layers.GlobalAveragePooling1D(),
                ],
            ),
        ]
    )
    layer.build(x.shape)
    randomise_weights(layer)
    stock.set_weights(layer.get_weights())
    assert_gradients_close(layer, stock, x)


def test_initial_kernels_of_equal_shape_differ():
    initializer = keras.initializers.GlorotUniform(seed=1)
    layer = TimeDistributedConv((3, 3), 1, kernel_initializer="glorot_uniform")
    layer.build((None, None, 5, 3))
    first, _, second, _ = layer.get_weights()
    assert not np.allclose(first, second)
    seeded = [TimeDistributedConv(3, kernel_initializer=initializer) for _ in range(2)]
    for x in seeded:
        x.build((None, None, 5, 3))
    assert_equal(seeded[0].get_weights()[0], seeded[1].get_weights()[0])


@pytest.mark.parametrize("rank", AXES)
@pytest.mark.parametrize("reduce", ["flatten", "average", "max"])
def test_reduce(rank, reduce):
    x = normal(2, 3, *AXES[rank], 2)
    layer = TimeDistributedConv(4, 2, reduce=reduce)
    output = layer(x)
    values = references.convolve(x.reshape(6, *x.shape[2:]), *layer.get_weights())
    axes = tuple(range(1, 1 + rank))
    expected = {
        "flatten": lambda: values.reshape(6, -1),
        "average": lambda: values.mean(axes),
        "max": lambda: values.max(axes),
    }[reduce]()
    assert_close(output, expected.reshape(2, 3, -1), atol=1e-5)
    assert layer.compute_output_shape(x.shape) == tuple(output.shape)


# --- Training ---


@pytest.mark.parametrize("further", [None, (), (5,)])
@pytest.mark.parametrize("reduction", ["any", "all"])
def test_batch_normalization_leaves_out_masked_steps(further, reduction):
    x = 2 + normal(4, 6, 5, 3)
    layer = TimeDistributedConv(2, 2, normalization="batch", mask_reduction=reduction)
    valid, arguments = np.ones((4, 6), bool), {}
    if further is not None:
        mask = random_mask(4, 6, *further, seed=7)
        mask[:2, 1] = True
        arguments["mask"] = ops.convert_to_tensor(mask)
        valid = getattr(np, reduction)(mask, axis=-1) if further else mask
    output = layer(x, training=True, **arguments)
    kernel, bias = layer.get_weights()[:2]
    values = references.convolve(x.reshape(24, 5, 3), kernel, bias).reshape(4, 6, 4, 2)
    mean, variance = values[valid].mean((0, 1)), values[valid].var((0, 1))
    expected = (values - mean) / np.sqrt(variance + 1e-3)
    assert_close(output, expected.reshape(4, 6, 8), atol=2e-5)
    (normalization,) = (s for s in layer.step_layers if isinstance(s, layers.BatchNormalization))
    assert_close(normalization.moving_mean, 0.01 * mean, atol=1e-5)
    assert_close(normalization.moving_variance, 0.99 + 0.01 * variance, atol=1e-5)


@pytest.mark.parametrize("rank", AXES)
def test_masked_statistics_of_every_block(rank):
    """A masked step changes nothing in any block's statistics, nor in the other steps."""
    x, mask = normal(4, 3, *AXES[rank], 2), random_mask(4, 3)
    changed = np.where(mask.reshape(4, 3, *[1] * (rank + 1)), x, 100 * x + 7).astype("float32")
    results = []
    for values in (x, changed):
        layer = TimeDistributedConv((3, 2), 2, normalization="batch", pool_size=2, padding="same")
        layer.build(x.shape)
        randomise_weights(layer)
        output = to_numpy(layer(values, training=True, mask=ops.convert_to_tensor(mask)))
        results.append([output[mask], *(to_numpy(w) for w in layer.weights)])
    assert len(results[0]) == 13
    assert_close(*results, atol=1e-5)
    assert not np.allclose(results[0][-1], 1)


def test_dropout_only_in_training():
    x = normal(4, 20, 6, 2)
    layer = TimeDistributedConv(8, 2, dropout=0.5)
    steady = to_numpy(layer(x))
    assert_equal(layer(x, training=False), steady)
    dropped = to_numpy(layer(x, training=True))
    kept = dropped != 0
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(dropped[kept], 2 * steady[kept], rtol=1e-5)
    assert not np.array_equal(kept[:, 0], kept[:, 1])


@needs_gradients
def test_regularizers_add_losses_of_every_block():
    layer = TimeDistributedConv((3, 2), 2, kernel_regularizer="l2", bias_regularizer="l1")
    layer.build((None, None, 5, 2))
    randomise_weights(layer)
    k1, b1, k2, b2 = layer.get_weights()
    expected = 0.01 * ((k1**2).sum() + (k2**2).sum() + abs(b1).sum() + abs(b2).sum())
    assert sum(to_numpy(layer.losses)) == pytest.approx(expected, rel=1e-5)


@needs_gradients
def test_fit_equals_keras():
    x, y = normal(8, 4, 6, 2), normal(8, 3, seed=1)
    lstm = layers.LSTM(3)
    ours = keras.Sequential(
        [keras.Input((4, 6, 2)), TimeDistributedConv(3, 2, activation="relu"), lstm]
    )
    stock = keras.Sequential(
        [
            keras.Input((4, 6, 2)),
            layers.TimeDistributed(layers.Conv1D(3, 2, activation="relu")),
            layers.TimeDistributed(layers.Flatten()),
            layers.LSTM(3),
        ]
    )
    before = ours.get_weights()
    stock.set_weights(before)
    for model in (ours, stock):
        model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for a, e, b in zip(ours.get_weights(), stock.get_weights(), before, strict=True):
        assert not np.allclose(e, b, atol=1e-4)
        assert_close(a, e, atol=1e-5)


# --- Masks ---


@pytest.mark.parametrize("reduction", ["any", "all"])
@pytest.mark.parametrize("further", [(), (4,), (4, 2)])
def test_output_carries_the_reduced_mask(reduction, further):
    x, mask = ops.convert_to_tensor(normal(3, 6, 4, 2)), random_mask(3, 6, *further, seed=1)
    layer = TimeDistributedConv(2, mask_reduction=reduction)
    axes = tuple(range(2, mask.ndim))
    expected = getattr(np, reduction)(mask, axis=axes) if axes else mask
    assert_equal(layer.compute_mask(x, ops.convert_to_tensor(mask)), expected)
    assert layer.compute_mask(x, None) is None


def test_mask_reaches_the_lstm_and_masked_steps_are_convolved():
    x, mask = normal(3, 6, 4, 2), random_mask(3, 6, seed=1)
    inputs, mask_input = keras.Input((None, 4, 2)), keras.Input((None,), dtype="bool")
    layer, lstm = TimeDistributedConv(2), layers.LSTM(3)
    model = keras.Model([inputs, mask_input], lstm(layer(inputs, mask=mask_input)))
    expected = lstm(np.array(to_numpy(layer(x))), mask=ops.convert_to_tensor(mask))
    assert_close(model.predict([x, mask], verbose=0), expected)
    assert_equal(layer(x, mask=ops.convert_to_tensor(mask)), to_numpy(layer(x)))


# --- Sizes, saving, compilation, precision ---


@pytest.mark.parametrize(("batch", "time"), [(None, 3), (2, None), (None, None)])
@pytest.mark.parametrize("rank", AXES)
def test_unknown_batch_and_time(rank, batch, time):
    inputs = keras.Input(batch_shape=(batch, time, *AXES[rank], 2))
    layer = TimeDistributedConv((3, 2), 2, padding="same", pool_size=2)
    outputs = layer(inputs)
    assert outputs.shape[:2] == (batch, time)
    model = keras.Model(inputs, outputs)
    for length in [3] if time else [3, 1]:
        x = normal(2, length, *AXES[rank], 2)
        assert_close(model.predict(x, verbose=0), layer(x), atol=1e-5)


@pytest.mark.parametrize("rank", AXES)
@pytest.mark.parametrize(("batch", "time"), [(0, 3), (2, 0), (0, 0)])
def test_empty(rank, batch, time):
    x = np.zeros((batch, time, *AXES[rank], 2), "float32")
    layer = TimeDistributedConv(3, padding="same")
    assert tuple(layer(x).shape) == (batch, time, 3 * np.prod(AXES[rank]))


@only_tensorflow
def test_unknown_sizes_in_a_tf_function():
    import tensorflow as tf

    layer = TimeDistributedConv((3, 2), 2, normalization="batch", activation="relu")
    layer.build((None, None, 5, 2))
    signature = [tf.TensorSpec((None, None, 5, 2)), tf.TensorSpec((None, None), "bool")]
    call = tf.function(lambda x, m: layer(x, mask=m, training=True), input_signature=signature)
    for batch, time in [(2, 3), (4, 1)]:
        x = normal(batch, time, 5, 2)
        mask = np.ones((batch, time), bool)
        assert_close(call(x, mask), layer(x, mask=tf.constant(mask), training=True))


EVERYTHING = {
    "filters": (4, 3),
    "kernel_size": 2,
    "strides": 1,
    "padding": "same",
    "dilation_rate": 1,
    "groups": 1,
    "activation": "tanh",
    "use_bias": False,
    "normalization": "batch",
    "pool_size": 2,
    "pool": "average",
    "dropout": 0.25,
    "reduce": "average",
    "mask_reduction": "all",
    "kernel_initializer": "he_normal",
    "kernel_regularizer": "l2",
}


def test_config_round_trip():
    layer = TimeDistributedConv(**EVERYTHING, name="convolutions")
    config = layer.get_config()
    copy = TimeDistributedConv.from_config(config)
    assert plain(copy.get_config()) == plain(config)
    for name in EVERYTHING.keys() - {"activation", "kernel_initializer", "kernel_regularizer"}:
        assert config[name] == EVERYTHING[name]
    assert copy.activation is keras.activations.tanh
    assert isinstance(copy.kernel_initializer, keras.initializers.HeNormal)
    assert isinstance(copy.kernel_regularizer, keras.regularizers.L2)


@pytest.mark.parametrize("arguments", [{"filters": 3}, EVERYTHING])
@pytest.mark.parametrize("rank", AXES)
def test_saved_model_round_trip(tmp_path, rank, arguments):
    layer = TimeDistributedConv(**arguments)
    model = keras.Sequential([keras.Input((None, *AXES[rank], 2)), layer])
    randomise_weights(model)
    loaded = save_and_load(model, tmp_path)
    assert plain(loaded.layers[-1].get_config()) == plain(layer.get_config())
    x = normal(2, 3, *AXES[rank], 2)
    assert_close(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-7)


@needs_jit
@pytest.mark.parametrize("rank", AXES)
def test_jit_compile(rank):
    layer = TimeDistributedConv((3, 2), 2, padding="same", normalization="batch")
    model = keras.Sequential([keras.Input((3, *AXES[rank], 2)), layer])
    x = normal(2, 3, *AXES[rank], 2)
    for jit_compile in (True, False):
        model.compile(jit_compile=jit_compile)
        assert_close(model.predict(x, verbose=0), layer(x), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("rank", [1, 2])
def test_mixed_precision(rank, policy):
    x = normal(2, 3, *AXES[rank], 2)
    arguments = {"filters": (4, 3), "kernel_size": 2, "activation": "tanh"}
    exact = TimeDistributedConv(**arguments)
    exact.build(x.shape)
    keras.config.set_dtype_policy(policy)
    mixed = TimeDistributedConv(**arguments)
    mixed.build(x.shape)
    mixed.set_weights(exact.get_weights())
    output = mixed(x)
    compute_dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(output.dtype) == compute_dtype
    assert mixed(keras.Input(x.shape[1:])).dtype == compute_dtype
    assert {w.dtype for w in mixed.weights} == {"float32"}
    assert_close(output, exact(x), atol=5e-3 if compute_dtype == "float16" else 0.05)


@pytest.mark.slow
@only_tensorflow
def test_export(tmp_path):
    import tensorflow as tf

    layer = TimeDistributedConv((3, 2), 2, normalization="batch")
    model = keras.Sequential([keras.Input((None, 5, 2)), layer])
    model.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")
    x = normal(2, 7, 5, 2)
    assert_close(saved.serve(x), layer(x))


# --- Errors ---


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"filters": ()}, r"`filters` must name at least one block. Received \(\)"),
        ({"filters": 0}, r"`filters` must be an integer of at least 1. Received 0"),
        ({"filters": (4, -1)}, r"`filters` must be an integer of at least 1. Received -1"),
        ({"filters": 2.5}, r"`filters` must be an integer.*Received 2.5"),
        ({"filters": "ab"}, r"`filters` must be an integer.*Received 'a'"),
        ({"padding": "full"}, r"`padding` must be one of 'valid', 'same', 'causal'.*'full'"),
        ({"normalization": "group"}, r"`normalization` must be one of None, 'batch'.*'group'"),
        ({"pool": "min"}, r"`pool` must be one of 'max', 'average'. Received 'min'"),
        ({"reduce": "sum"}, r"`reduce` must be one of 'flatten', .*Received 'sum'"),
        ({"mask_reduction": 1}, r"`mask_reduction` must be one of 'any', 'all'. Received 1"),
        ({"pool_size": 2}, r"`pool_size` pools between blocks.*filters=4.*`reduce`"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=r"^TimeDistributedConv: " + match):
        TimeDistributedConv(**{"filters": 4} | arguments)


@pytest.mark.parametrize(
    ("shape", "arguments", "match"),
    [
        ((2, 5), {}, r"4 to 6 axes.*Received 2 axes"),
        ((2, 5, 6), {}, r"convs: .*4 to 6 axes.*Received 3 axes.*unflatten_features"),
        ((2, 5, 3, 3, 3, 3, 2), {}, r"4 to 6 axes.*Received 7 axes"),
        ((2, 5, 2, 3), {}, r"convs: `kernel_size` spans \(3,\).*\(2,\).*padding=\"same\""),
        ((2, 5, 4, 3), {"dilation_rate": 2}, r"`kernel_size` spans \(5,\) \(with its dilation"),
        ((2, 5, 4, 2, 3), {}, r"`kernel_size` spans \(3, 3\).*\(4, 2\)"),
        ((2, 5, 4, 3), {"filters": (2, 2)}, r"`kernel_size` spans \(3,\).*\(2,\) before this"),
        (
            (2, 5, 2, 3),
            {"filters": (2, 2), "pool_size": 4, "padding": "same"},
            r"`pool_size` spans \(4,\).*\(2,\) before this layer. Use a smaller one\.$",
        ),
        ((2, 5, 4, 3), {"kernel_size": (2, 2)}, r"kernel_size"),
        ((2, 5, 4, 4, 3), {"padding": "causal"}, r"causal"),
    ],
)
def test_wrong_input_shape(shape, arguments, match):
    layer = TimeDistributedConv(**{"filters": 4, "name": "convs"} | arguments)
    with pytest.raises(ValueError, match=match):
        layer(normal(*shape))
    with pytest.raises(ValueError, match=match):
        layer.compute_output_shape(shape)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((None, None, None, 3), r"axis 2 \(channels\) is\. Received"),
        ((None, None, 4, None), r"axis 3 \(features\) is\. Received"),
    ],
)
def test_unknown_axis(shape, match):
    with pytest.raises(ValueError, match=match):
        TimeDistributedConv(2)(keras.Input(batch_shape=shape))


@pytest.mark.parametrize("mask_shape", [(2,), (2, 4), (3, 5), (2, 5, 3), (2, 5, 4, 2, 1)])
@pytest.mark.parametrize("normalization", [None, "batch"])
def test_wrong_mask_shape(mask_shape, normalization):
    layer = TimeDistributedConv(2, normalization=normalization, name="convs")
    with pytest.raises(ValueError, match=r"convs: the mask must have .*Received a mask of shape"):
        layer(normal(2, 5, 4, 2), mask=ops.ones(mask_shape, "bool"))


def test_every_block_has_an_activation_layer_of_its_own(tmp_path):
    """PReLU has weights for each position, of which the blocks have different numbers."""
    activation = keras.layers.PReLU(alpha_initializer="ones")
    layer = TimeDistributedConv((2, 3), 2, activation=activation)
    model = keras.Sequential([keras.Input((4, 5, 3)), layer])
    shapes = [tuple(w.shape) for w in layer.weights if w.name == "alpha"]
    assert shapes == [(4, 2), (3, 3)]
    x = normal(2, 4, 5, 3)
    linear = TimeDistributedConv((2, 3), 2)  # what PReLU with slopes of one computes
    linear.build(x.shape)
    linear.set_weights([w for w in layer.get_weights() if not np.all(w == 1)])
    assert_close(layer(x), linear(x))
    randomise_weights(layer)
    loaded = save_and_load(model, tmp_path)
    assert_close(loaded(x), model(x))

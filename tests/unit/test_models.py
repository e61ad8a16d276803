"""build_model against the same models written in stock Keras, weights carried over."""

import keras
import numpy as np
import pytest

from multibackend_lstm import (
    SOLUTIONS,
    FlattenFeatures,
    build_deep_conv_lstm,
    build_mlstm_fcn,
    build_model,
    flatten_features,
)

BATCH, TIME, CHANNELS, FEATURES = 20, 10, 3, 5
SHAPE = (TIME, CHANNELS, FEATURES)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(BATCH, *SHAPE)).astype("float32")


def stock_reshape(batch_size):
    """What people paste today: a Lambda with a reshape."""
    inputs = keras.Input(SHAPE, batch_size=batch_size)
    merged = keras.layers.Lambda(
        lambda t: keras.ops.reshape(t, (-1, TIME, CHANNELS * FEATURES)),
        output_shape=(TIME, CHANNELS * FEATURES),
    )(inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.LSTM(64)(merged)))


def stock_pre_reshape():
    inputs = keras.Input((TIME, CHANNELS * FEATURES))
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.LSTM(64)(inputs)))


def stock_conv():
    inputs = keras.Input(SHAPE)
    convolution = keras.layers.Conv1D(16, 3, activation="relu", padding="same")
    steps = keras.layers.TimeDistributed(convolution)(inputs)
    steps = keras.layers.TimeDistributed(keras.layers.Flatten())(steps)
    assert steps.shape[1:] == (10, 48)
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.LSTM(64)(steps)))


def layer_input_shape(model, layer_type):
    (layer,) = [layer for layer in model.layers if isinstance(layer, layer_type)]
    return layer.input.shape


@pytest.mark.parametrize("batch_size", [20, None])
def test_reference_case_1_reshape(x, batch_size):
    model, stock = build_model(SHAPE, "reshape", units=64), stock_reshape(batch_size)
    stock.set_weights(model.get_weights())
    assert layer_input_shape(model, keras.layers.LSTM) == (None, 10, 15)
    predictions = model.predict(x, verbose=0)
    assert predictions.shape == (20, 1)
    np.testing.assert_allclose(predictions, stock.predict(x, verbose=0), atol=1e-6)


def test_reference_case_2_pre_reshape(x):
    if keras.backend.backend() == "numpy":
        pytest.skip("the NumPy backend does not train")
    y = np.random.default_rng(1).normal(size=(BATCH, 1)).astype("float32")
    flat = flatten_features(x)
    assert flat.shape == (20, 10, 15)
    model, stock = build_model(SHAPE, "pre_reshape", units=64), stock_pre_reshape()
    stock.set_weights(model.get_weights())
    losses = []
    for each in (model, stock):
        each.compile(optimizer="adam", loss="mse")
        history = each.fit(flat, y, epochs=2, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for ours, theirs in zip(model.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_reference_case_3_conv(x):
    model = build_model(SHAPE, "conv", units=64, filters=16, kernel_size=3)
    stock = stock_conv()
    stock.set_weights(model.get_weights())
    assert layer_input_shape(model, keras.layers.LSTM) == (None, 10, 48)
    np.testing.assert_allclose(model.predict(x, verbose=0), stock.predict(x, verbose=0), atol=5e-6)


def test_reshape_and_pre_reshape_are_the_same_model(x):
    model, flat_model = build_model(SHAPE, "reshape"), build_model((10, 15), "pre_reshape")
    flat_model.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), flat_model.predict(flatten_features(x), verbose=0)
    )


def test_channelwise_is_the_lstm_on_each_channel(x):
    model = build_model(SHAPE, "channelwise", units=8, merge="concat")
    *lstm_weights, kernel, bias = model.get_weights()
    lstm = keras.layers.LSTM(8)
    lstm.build((None, TIME, FEATURES))
    lstm.set_weights(lstm_weights)
    by_channel = [
        keras.ops.convert_to_numpy(lstm(np.ascontiguousarray(x[:, :, channel])))
        for channel in range(CHANNELS)
    ]
    expected = np.concatenate(by_channel, axis=-1) @ kernel + bias
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)


def test_conv_lstm_is_the_keras_layer(x):
    model = build_model(SHAPE, "conv_lstm", units=4)
    layer = keras.layers.ConvLSTM1D(4, 3, padding="same", data_format="channels_last")
    inputs = keras.Input(SHAPE)
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(layer(inputs)))
    stock = keras.Model(inputs, outputs)
    stock.set_weights(model.get_weights())
    np.testing.assert_allclose(model.predict(x, verbose=0), stock.predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize(("bidirectional", "units"), [(False, 4), (True, (4, 3))])
def test_options_build_a_model_that_predicts_and_saves(x, tmp_path, solution, bidirectional, units):
    model = build_model(
        (None, *SHAPE[1:]),
        solution,
        units=units,
        bidirectional=bidirectional,
        dropout=0.5,
        outputs=4,
        task="multiclass",
    )
    inputs = flatten_features(x) if solution == "pre_reshape" else x
    predictions = model.predict(inputs, verbose=0)
    assert predictions.shape == (BATCH, 4)
    assert model.compiled is False
    np.testing.assert_allclose(predictions.sum(axis=1), 1, atol=1e-5)
    last_units = units if isinstance(units, int) else units[-1]
    width = last_units * (2 if bidirectional else 1)
    width *= CHANNELS if solution in ("channelwise", "conv_lstm") else 1
    assert model.get_layer("outputs").kernel.shape == (width, 4)

    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(inputs, verbose=0), predictions)


@pytest.mark.parametrize(
    ("solution", "shape"),
    [
        ("reshape", (4, 2, 3, 2, 2)),
        ("pre_reshape", (4, 2, 3, 2)),
        ("conv", (4, 4, 3, 2)),
        ("conv", (4, 3, 4, 3, 2)),
        ("channelwise", (4, 2, 3, 2)),
        ("conv_lstm", (4, 4, 3, 2)),
        ("conv_lstm", (4, 3, 4, 3, 2)),
    ],
)
def test_longer_input_shapes(solution, shape):
    model = build_model(shape, solution, units=(3, 2))
    x = np.zeros((2, *shape), "float32")
    x = flatten_features(x) if solution == "pre_reshape" else x
    assert model.predict(x, verbose=0).shape == (2, 1)


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize(("bidirectional", "units"), [(False, 4), (False, (4, 3)), (True, (4, 3))])
def test_masked_steps_are_skipped(x, solution, units, bidirectional):
    model = build_model(
        (None, *SHAPE[1:]), solution, units=units, masking=-9.0, bidirectional=bidirectional
    )
    padded = np.concatenate([x, np.full((BATCH, 4, CHANNELS, FEATURES), -9, "float32")], axis=1)
    if solution == "pre_reshape":
        x, padded = flatten_features(x), flatten_features(padded)
    np.testing.assert_allclose(
        model.predict(padded, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )
    changed = padded.copy()
    changed[:, -4:] = 9.0  # not the mark any more
    assert np.abs(model.predict(changed, verbose=0) - model.predict(x, verbose=0)).max() > 1e-3


def test_channelwise_skips_the_missing_steps_of_one_channel(x):
    model = build_model((None, *SHAPE[1:]), "channelwise", units=4, masking=-9.0)
    *lstm_weights, kernel, bias = model.get_weights()
    lstm = keras.layers.LSTM(4)
    lstm.build((None, TIME, FEATURES))
    lstm.set_weights(lstm_weights)
    x[:, 6:, 1] = -9.0
    series = [x[:, :, 0], x[:, :6, 1], x[:, :, 2]]
    by_channel = [keras.ops.convert_to_numpy(lstm(np.ascontiguousarray(s))) for s in series]
    expected = np.concatenate(by_channel, axis=-1) @ kernel + bias
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("solution", SOLUTIONS)
def test_mixed_precision_keeps_the_output_in_float32(x, policy, solution):
    inputs = flatten_features(x) if solution == "pre_reshape" else x
    full = build_model(SHAPE, solution, units=4)
    keras.config.set_dtype_policy(policy)
    try:
        mixed = build_model(SHAPE, solution, units=4)
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(full.get_weights())
    predictions = mixed.predict(inputs, verbose=0)
    assert predictions.dtype == np.float32
    np.testing.assert_allclose(predictions, full.predict(inputs, verbose=0), atol=0.05)


def test_the_mark_of_missing_steps_is_compared_in_full_precision(x):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model((None, *SHAPE[1:]), "reshape", units=4, masking=-999.0)
    finally:
        keras.config.set_dtype_policy("float32")
    # -1000 is what -999 becomes in bfloat16: not the mark.
    near = np.concatenate([x, np.full((BATCH, 2, CHANNELS, FEATURES), -1000, "float32")], axis=1)
    marked = np.concatenate([x, np.full((BATCH, 2, CHANNELS, FEATURES), -999, "float32")], axis=1)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(model.predict(marked, verbose=0), expected, atol=1e-2)
    assert np.abs(model.predict(near, verbose=0) - expected).max() > 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solution": "flatten"}, r"`solution` must be one of 'reshape', 'pre_reshape', 'conv'"),
        ({"task": "ranking"}, r"`task` must be one of 'regression', 'binary', 'multiclass'"),
        ({"input_shape": (10, 15)}, r'\(10, 15\).*belongs to solution="pre_reshape"'),
        ({"input_shape": (10,), "solution": "pre_reshape"}, r"must be \(time, features\)"),
        ({"input_shape": (9, 2, 2, 2, 2, 2), "solution": "conv"}, "one to three axes"),
        ({"input_shape": (9, 2, 2, 2, 2, 2), "solution": "conv_lstm"}, "one to three axes"),
        ({"input_shape": (10, None, 5)}, r"axis 2 \(channels\)"),
        ({"input_shape": (10, 3, None)}, r"axis 3 \(features\)"),
        ({"input_shape": (10, 0, 5)}, "`input_shape` must be an integer of at least 1"),
        ({"units": 0}, "`units` must be an integer of at least 1. Received 0"),
        ({"units": ()}, "`units` must be"),
        ({"outputs": 0}, "`outputs` must be"),
        ({"task": "multiclass"}, 'outputs=1.*task="binary"'),
        ({"masking": float("nan")}, "nan_to_num"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(**{"input_shape": SHAPE, **arguments})


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_stateful_models_go_on_from_call_to_call(x, solution):
    x = x[:2]
    options = {"units": (4, 3), "masking": -9.0, "normalization": (np.full(5, 0.5), np.ones(5))}
    if solution == "pre_reshape":
        x, options["normalization"] = flatten_features(x), (np.full(15, 0.5), np.ones(15))
    x[1, 3:5] = -9.0
    shape = (None, *SHAPE[1:])
    model = build_model(shape, solution, **options)
    live = build_model(shape, solution, **options, stateful=True, batch_size=2)
    live.set_weights(model.get_weights())
    whole = model.predict(x, verbose=0)
    for _ in range(2):
        for start in range(0, TIME, 5):
            part = live.predict(x[:, start : start + 5], batch_size=2, verbose=0)
        np.testing.assert_allclose(part, whole, atol=1e-5)
        live.reset_states()


@pytest.mark.parametrize("method", ["fit", "predict"])
def test_3d_data_for_a_4d_model_and_the_reverse(x, method):
    if keras.backend.backend() == "numpy" and method == "fit":
        pytest.skip("the NumPy backend does not train")

    def call(model, inputs):
        model.compile(optimizer="adam", loss="mse")
        arguments = (inputs, np.zeros((BATCH, 1))) if method == "fit" else (inputs,)
        getattr(model, method)(*arguments, verbose=0)

    with pytest.raises(ValueError, match=r"channels=3, features=5.*10, 15.*unflatten_features"):
        call(build_model(SHAPE, "reshape"), flatten_features(x))
    with pytest.raises(ValueError, match=r"features=15.*10, 3, 5.* `multibackend_lstm.flatten"):
        call(build_model(SHAPE, "pre_reshape"), x)


def test_solutions_say_when_to_choose_them():
    assert list(SOLUTIONS) == ["reshape", "pre_reshape", "conv", "channelwise", "conv_lstm"]
    for solution, words in {
        "reshape": "independent",
        "conv": "neighbouring",
        "channelwise": "same kind",
        "conv_lstm": "images",
    }.items():
        assert words in SOLUTIONS[solution]


def test_deep_conv_lstm_is_the_papers_network():
    model = build_deep_conv_lstm((24, 113, 1), outputs=18)
    kernels = [w.shape for w in model.trainable_weights if w.name in ("kernel", "recurrent_kernel")]
    assert kernels == [
        (5, 1, 1, 64),
        *3 * [(5, 1, 64, 64)],
        (113 * 64, 4 * 128),
        (128, 4 * 128),
        (128, 4 * 128),
        (128, 4 * 128),
        (128, 18),
    ]
    assert layer_input_shape(model, FlattenFeatures) == (None, 8, 113, 64)  # 24 steps less 4 * 4


def test_deep_conv_lstm_convolves_each_channel_alone(x):
    model = build_deep_conv_lstm(
        (None, CHANNELS, FEATURES), outputs=2, filters=4, kernel_size=3, convolutions=2, units=5
    )
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    (lstm,) = [layer for layer in model.layers if isinstance(layer, keras.layers.LSTM)]
    channels = []
    for channel in range(CHANNELS):
        series = np.ascontiguousarray(x[:, :, channel])
        for layer in convolutions:
            kernel, bias = layer.get_weights()
            series = keras.ops.convert_to_numpy(keras.ops.conv(series, kernel[:, 0])) + bias
            series = np.maximum(series, 0)
        channels.append(series)
    stock = keras.layers.LSTM(5)
    flat = np.stack(channels, axis=2).reshape(BATCH, TIME - 4, -1)
    stock.build(flat.shape)
    stock.set_weights(lstm.get_weights())
    kernel, bias = model.get_layer("outputs").get_weights()
    logits = keras.ops.convert_to_numpy(stock(flat)) @ kernel + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)


def test_deep_conv_lstm_saves(x, tmp_path):
    model = build_deep_conv_lstm(SHAPE, outputs=1, task="regression", kernel_size=3, units=4)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (16, 3, 5)}, r"at least 17 time steps.*\(16, 3, 5\)"),
        ({"input_shape": (30, 15)}, r"must have 4 axes.*\(batch=None, time=30, features=15\)"),
        ({"input_shape": (30, None, 5)}, r"axis 2 \(channels\)"),
        ({"outputs": 1}, 'outputs=1.*task="binary"'),
        ({"units": (8, 0)}, "`units` must be an integer of at least 1. Received 0"),
        ({"kernel_size": 0}, "`kernel_size` must be"),
        ({"convolutions": 0}, "`convolutions` must be"),
        ({"filters": 0}, "`filters` must be"),
    ],
)
def test_deep_conv_lstm_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_deep_conv_lstm(**{"input_shape": (30, 3, 5), "outputs": 4, **arguments})


def test_mlstm_fcn_is_the_papers_network():
    model = build_mlstm_fcn((100, 2, 3), outputs=4)
    names = ("kernel", "recurrent_kernel")
    kernels = [tuple(w.shape) for w in model.trainable_weights if w.name in names]
    # The LSTM sees the 100 steps of one variable after the other; its weights may stand anywhere.
    assert sorted(kernels) == sorted(
        [
            (100, 4 * 8),
            (8, 4 * 8),
            (8, 6, 128),
            (128, 8),
            (8, 128),
            (5, 128, 256),
            (256, 16),
            (16, 256),
            (3, 256, 128),
            (8 + 128, 4),
        ]
    )
    assert layer_input_shape(model, keras.layers.LSTM) == (None, 6, 100)


def squeezed_and_excited(x, squeeze, excite):
    gates = np.maximum(x.mean(axis=1) @ squeeze, 0) @ excite
    return x / (1 + np.exp(-gates[:, None]))


@pytest.mark.parametrize("dimension_shuffle", [True, False])
def test_mlstm_fcn_in_numpy(x, dimension_shuffle):
    model = build_mlstm_fcn(
        (TIME if dimension_shuffle else None, CHANNELS, FEATURES),
        outputs=2,
        task="regression",
        units=5,
        filters=(6, 4),
        kernel_size=(3, 5),
        reduction=2,
        dimension_shuffle=dimension_shuffle,
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # else no more than the identity
            layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.get_weights()])
    of = {
        kind: [
            [w.astype("float64") for w in layer.get_weights()]
            for layer in model.layers
            if isinstance(layer, getattr(keras.layers, kind))
        ]
        for kind in ("Conv1D", "BatchNormalization", "Dense")
    }
    (squeeze,), (excite,), (output_kernel, output_bias) = of["Dense"]
    flat = x.reshape(BATCH, TIME, -1)
    y = flat.astype("float64")
    for position, ((kernel, bias), (gamma, beta, mean, variance)) in enumerate(
        zip(of["Conv1D"], of["BatchNormalization"], strict=True)
    ):
        side = len(kernel) // 2
        padded = np.pad(y, ((0, 0), (side, side), (0, 0)))
        y = bias + sum(padded[:, i : i + TIME] @ taps for i, taps in enumerate(kernel))
        y = np.maximum((y - mean) / np.sqrt(variance + 1e-3) * gamma + beta, 0)
        if position == 0:
            y = squeezed_and_excited(y, squeeze, excite)
    (lstm,) = [layer for layer in model.layers if isinstance(layer, keras.layers.LSTM)]
    stock = keras.layers.LSTM(5)
    series = np.ascontiguousarray(flat.swapaxes(1, 2)) if dimension_shuffle else flat
    stock.build(series.shape)
    stock.set_weights(lstm.get_weights())
    both = np.concatenate([keras.ops.convert_to_numpy(stock(series)), y.mean(axis=1)], axis=1)
    expected = both @ output_kernel + output_bias
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)


def test_mlstm_fcn_saves(x, tmp_path):
    model = build_mlstm_fcn(SHAPE, outputs=1, task="binary", filters=(4, 4), kernel_size=(3, 3))
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_shape": (None, 3, 5)}, ValueError, "dimension_shuffle=False"),
        ({"input_shape": (30, 15)}, ValueError, r"must have 4 axes"),
        ({"input_shape": (30, None, 5)}, ValueError, r"axis 2 \(channels\)"),
        ({"input_shape": (0, 3, 5)}, ValueError, "`input_shape` must be .*Received 0"),
        ({"outputs": 1}, ValueError, 'outputs=1.*task="binary"'),
        ({"units": 0}, ValueError, "`units` must be"),
        ({"reduction": 0}, ValueError, "`reduction` must be"),
        ({"filters": (4, 0, 4)}, ValueError, "`filters` must be .*Received 0"),
        ({"filters": ()}, ValueError, "`filters` must be"),
        ({"kernel_size": 3}, TypeError, r"`kernel_size` must be a sequence.*kernel_size=\(3,\)"),
        ({"filters": (4, 4)}, ValueError, r"filters=\(4, 4\) and kernel_size=\(8, 5, 3\)"),
    ],
)
def test_mlstm_fcn_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        build_mlstm_fcn(**{"input_shape": (30, 3, 5), "outputs": 4, **arguments})

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from multibackend_lstm import FlattenFeatures
from unit.tools import (
    BACKEND,
    assert_close,
    assert_equal,
    assert_gradients_close,
    needs_gradients,
    needs_jit,
    normal,
    only_tensorflow,
    random_mask,
    save_and_load,
)

DTYPES = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
]
HAVE_64_BIT = BACKEND != "jax"  # JAX truncates to 32 bits unless it is told otherwise
AXES = [(5,), (3, 5), (2, 3, 5), (2, 3, 2, 5)]

shapes = hnp.array_shapes(min_dims=3, max_dims=6, min_side=1, max_side=4)


def flattened(x):
    return x.reshape(*x.shape[:2], -1)


@pytest.mark.parametrize("axes", AXES)
def test_values_by_rank(axes):
    x = normal(2, 4, *axes)
    output = FlattenFeatures()(x)
    assert_equal(output, flattened(x))


@given(shape=shapes, dtype=st.sampled_from(["int32", "float32", "bool", "float16"]))
def test_property_values(shape, dtype):
    x = (10 * normal(*shape)).astype(dtype)
    layer = FlattenFeatures()
    output = layer(x)
    assert_equal(output, flattened(x))
    assert layer.compute_output_shape(shape) == tuple(output.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_dtype_is_unchanged(dtype, policy):
    if not HAVE_64_BIT and dtype.endswith("64"):
        pytest.skip("no 64 bit numbers")
    x = ops.cast(np.arange(24).reshape(2, 2, 2, 3), dtype)
    output = FlattenFeatures(dtype=policy)(x)
    assert keras.backend.standardize_dtype(output.dtype) == dtype
    assert_equal(ops.cast(output, "float32"), flattened(np.array(ops.cast(x, "float32"))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_unchanged_in_a_functional_model(dtype):
    if not HAVE_64_BIT and dtype.endswith("64"):
        pytest.skip("no 64 bit numbers")
    inputs = keras.Input((2, 2, 3), dtype=dtype)
    output = FlattenFeatures(dtype="mixed_float16")(inputs)
    assert output.dtype == dtype
    assert output.shape == (None, 2, 6)


def test_no_overflow_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    x = np.full((1, 2, 3, 4), 1e5, "float32")
    output = FlattenFeatures()(x)
    assert_equal(output, np.full((1, 2, 12), 1e5, "float32"))


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(("batch", "time"), [(None, 4), (2, None), (None, None), (2, 4)])
def test_unknown_batch_and_time(axes, batch, time):
    inputs = keras.Input(batch_shape=(batch, time, *axes))
    output = FlattenFeatures()(inputs)
    assert output.shape == (batch, time, np.prod(axes))
    model = keras.Model(inputs, output)
    for length in {time, 4, time or 3}:
        if length is not None:
            x = normal(2, length, *axes)
            assert_equal(model.predict(x, verbose=0), flattened(x))


@only_tensorflow
def test_unknown_batch_and_time_in_a_tf_function():
    import tensorflow as tf

    layer = FlattenFeatures()
    call = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 3, 5))])
    for batch, time in [(2, 4), (3, 1), (1, 0), (0, 2)]:
        x = normal(batch, time, 3, 5)
        assert_equal(call(x), x.reshape(batch, time, 15))


@pytest.mark.parametrize(("batch", "time"), [(0, 4), (2, 0), (0, 0), (2, 1)])
def test_empty_and_single(batch, time):
    x = np.zeros((batch, time, 3, 5), "float32")
    assert_equal(FlattenFeatures()(x), x.reshape(batch, time, 15))


@pytest.mark.parametrize("reduction", ["any", "all"])
@pytest.mark.parametrize("further", [(), (3,), (3, 5)])
def test_mask(reduction, further):
    layer = FlattenFeatures(mask_reduction=reduction)
    x, mask = normal(4, 6, 3, 5), random_mask(4, 6, *further, seed=3)
    mask[0, 1], mask[0, 2] = True, False
    axes = tuple(range(2, mask.ndim))
    expected = getattr(np, reduction)(mask, axis=axes) if axes else mask
    assert_equal(
        layer.compute_mask(ops.convert_to_tensor(x), ops.convert_to_tensor(mask)), expected
    )


@given(
    shape=hnp.array_shapes(min_dims=4, max_dims=6, min_side=1, max_side=3),
    data=st.data(),
    reduction=st.sampled_from(["any", "all"]),
)
def test_property_mask(shape, data, reduction):
    rank = data.draw(st.integers(2, len(shape)))
    mask = data.draw(hnp.arrays(bool, shape[:rank]))
    layer = FlattenFeatures(mask_reduction=reduction)
    actual = layer.compute_mask(ops.zeros(shape), ops.convert_to_tensor(mask))
    rows = mask.reshape(*shape[:2], -1)
    assert_equal(actual, rows.any(-1) if reduction == "any" else rows.all(-1))


def test_no_mask_stays_no_mask():
    assert FlattenFeatures().compute_mask(ops.zeros((1, 2, 3, 4)), None) is None


@pytest.mark.parametrize("reduction", ["any", "all"])
def test_masking_on_4d_input_reaches_the_lstm(reduction):
    x = normal(4, 6, 3, 5)
    missing = ~random_mask(4, 6, 3, seed=5)
    x[missing] = -9.0
    inputs = keras.Input((None, 3, 5))
    masked = keras.layers.Masking(-9.0)(inputs)
    lstm = keras.layers.LSTM(3)
    model = keras.Model(inputs, lstm(FlattenFeatures(mask_reduction=reduction)(masked)))

    step_is_valid = getattr(np, reduction)(~missing, axis=-1)
    zeroed = np.where(missing[..., None], 0, x).astype("float32")
    expected = lstm(flattened(zeroed), mask=ops.convert_to_tensor(step_is_valid))
    assert_close(model.predict(x, verbose=0), expected)
    unmasked = ops.convert_to_numpy(lstm(flattened(zeroed)))
    assert np.abs(unmasked - model.predict(x, verbose=0)).max() > 1e-3


def test_mask_argument_of_the_call_reaches_the_next_layer():
    x, mask = normal(3, 5, 2, 2), random_mask(3, 5, 2, seed=2)
    inputs, mask_input = keras.Input((5, 2, 2)), keras.Input((5, 2), dtype="bool")
    lstm = keras.layers.LSTM(3)
    model = keras.Model([inputs, mask_input], lstm(FlattenFeatures()(inputs, mask=mask_input)))
    expected = lstm(flattened(x), mask=ops.convert_to_tensor(mask.any(-1)))
    assert_close(model.predict([x, mask], verbose=0), expected)


@pytest.mark.skipif(BACKEND == "numpy", reason="NumPy arrays carry no mask")
@pytest.mark.parametrize("further", [(), (4,)])
def test_rank_3_input_keeps_its_own_mask(further):
    """The output of rank 3 has the values of its input, and a mask of its own."""
    x = ops.convert_to_tensor(normal(2, 5, 4))
    mask = random_mask(2, 5, *further, seed=1)
    output = FlattenFeatures()(x, mask=ops.convert_to_tensor(mask))
    assert_equal(output, x)
    lstm = keras.layers.LSTM(3)
    assert_close(lstm(x), lstm(np.array(x)))
    step_is_valid = mask.any(-1) if further else mask
    assert_close(lstm(output), lstm(np.array(x), mask=ops.convert_to_tensor(step_is_valid)))


@needs_gradients
def test_gradients_pass():
    reshape = keras.layers.Reshape((4, 15))
    assert_gradients_close(FlattenFeatures(), reshape, normal(2, 4, 3, 5), atol=0)


def test_config_round_trip(tmp_path):
    layer = FlattenFeatures("all", name="flat", dtype="mixed_bfloat16")
    copy = FlattenFeatures.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert copy.mask_reduction == "all"

    model = keras.Sequential([keras.Input((None, 3, 5)), layer])
    loaded = save_and_load(model, tmp_path)
    assert loaded.layers[-1].get_config() == layer.get_config()
    x = normal(2, 4, 3, 5)
    assert_equal(loaded.predict(x, verbose=0), flattened(x))


@needs_jit
@pytest.mark.parametrize("jit_compile", [True, False])
def test_jit_compile(jit_compile):
    model = keras.Sequential([keras.Input((None, 3, 5)), FlattenFeatures()])
    model.compile(jit_compile=jit_compile)
    x = normal(2, 4, 3, 5)
    assert_equal(model.predict(x, verbose=0), flattened(x))


@pytest.mark.slow
@only_tensorflow
def test_export(tmp_path):
    import tensorflow as tf

    model = keras.Sequential([keras.Input((None, 3, 5)), FlattenFeatures()])
    model.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    x = normal(2, 7, 3, 5)
    assert_equal(tf.saved_model.load(tmp_path / "saved").serve(x), flattened(x))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((None, 5), r"flat: the input must have at least 3 axes, .*Received 2 axes.*features=5"),
        ((None,), r"at least 3 axes.*Received 1 axes"),
        ((None, 4, None, 5), r"only batch and time may be unknown.*axis 2 \(channels\).*Received"),
        ((None, 4, 3, None), r"only batch and time.*axis 3 \(features\).*features=None"),
        ((None, 4, None), r"only batch and time.*axis 2 \(features\)"),
        ((None, 4, None, 3, None), r"axis 2 \(axis_2\) and axis 4 \(features\)"),
    ],
)
def test_wrong_input_shape(shape, match):
    with pytest.raises(ValueError, match=match):
        FlattenFeatures(name="flat")(keras.Input(batch_shape=shape))


def test_wrong_rank_eagerly():
    with pytest.raises(ValueError, match=r"at least 3 axes.*Received 2 axes.*features=5"):
        FlattenFeatures()(normal(4, 5))


def test_wrong_mask_reduction():
    with pytest.raises(ValueError, match=r"`mask_reduction` must be one of 'any', 'all'.*'most'"):
        FlattenFeatures(mask_reduction="most")


@pytest.mark.parametrize("mask_shape", [(2,), (2, 5), (3, 4), (2, 4, 5), (2, 4, 3, 5, 1)])
def test_wrong_mask_shape(mask_shape):
    mask = ops.ones(mask_shape, "bool")
    with pytest.raises(
        ValueError, match=r"flat: the mask must have the first axes .*Received a mask"
    ):
        FlattenFeatures(name="flat")(normal(2, 4, 3, 5), mask=mask)

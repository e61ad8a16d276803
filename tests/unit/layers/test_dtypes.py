"""Inputs of every dtype, and the float64 policy, in every layer that computes."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import multibackend_lstm as m
from unit import recurrent_reference as reference
from unit.tools import BACKEND, needs_gradients, run_python, to_numpy

UNFLOATING = ["bool", "int8", "uint8", "int16", "int32", "uint32", "int64"]
# A layer, and its input's shape without the batch.
LAYERS = {
    "lstm": (lambda **k: m.LSTM(3, **k), (4, 5)),
    "lstm_4d": (lambda **k: m.LSTM(3, implementation="ops", **k), (4, 3, 2)),
    "gru": (lambda **k: m.GRU(3, **k), (4, 5)),
    "gru_reset_before": (lambda **k: m.GRU(3, reset_after=False, **k), (4, 5)),
    "bidirectional": (lambda **k: m.Bidirectional(m.LSTM(3, **k), **k), (4, 3, 2)),
    "channelwise": (lambda **k: m.Channelwise(m.GRU(2, **k), **k), (4, 3, 2)),
    "time_distributed": (lambda **k: m.TimeDistributed(m.LSTM(2, **k), **k), (3, 4, 2)),
    "conv_lstm": (lambda **k: m.ConvLSTM1D(2, 2, **k), (4, 5, 3)),
    "conv_lstm_cell": (lambda **k: m.ConvLSTM1D(2, 2, unroll=True, **k), (3, 5, 3)),
    "conv": (lambda **k: m.TimeDistributedConv(2, 2, **k), (4, 5, 3)),
    "conv_normalized": (
        lambda **k: m.TimeDistributedConv(2, normalization="batch", **k),
        (4, 5, 3),
    ),
}


def numbers(shape, dtype, seed=0):
    """Numbers of a dtype; of integers, some that float16 does not hold and some below zero."""
    values = np.random.default_rng(seed).normal(size=(2, *shape))
    if dtype == "bool":
        return values > 0
    if "int" in dtype:
        return np.abs(3 * values).astype(dtype) if dtype[0] == "u" else (3 * values).astype(dtype)
    return values.astype(dtype)


@pytest.mark.parametrize("name", LAYERS)
@given(dtype=st.sampled_from([*UNFLOATING, "float16", "float64"]), seed=st.integers(0, 99))
def test_inputs_of_any_dtype_are_their_values(name, dtype, seed):
    make, shape = LAYERS[name]
    layer, x = make(), numbers(shape, dtype, seed)
    got, expected = to_numpy(layer(x)), to_numpy(layer(x.astype("float32")))
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.abs(expected).max() > 0 or not x.any()


@pytest.mark.parametrize("dtype", ["bool", "int32"])
@pytest.mark.parametrize("name", LAYERS)
def test_inputs_of_any_dtype_in_predict(name, dtype):
    make, shape = LAYERS[name]
    inputs = keras.Input((None, *shape[1:]), dtype=dtype)
    model = keras.Model(inputs, make()(inputs))
    x = numbers(shape, dtype)
    expected = to_numpy(model.layers[-1](x.astype("float32")))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)


def test_weights_are_not_truncated_to_integers():
    """What went wrong: with integer inputs the weights were cast to their dtype."""
    layer, x = m.GRU(2), numbers((4, 5), "int32")
    states = [np.zeros((2, 2))]
    layer.build(x.shape)
    weights = layer.get_weights()
    truth = reference.run(reference.gru_step, x, states, weights)[1]
    np.testing.assert_allclose(to_numpy(layer(x)), truth, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "conv_lstm", "conv"])
def test_complex_numbers_are_refused(name):
    make, shape = LAYERS[name]
    with pytest.raises(ValueError, match=r"must hold real numbers\. Received dtype complex64"):
        make()(ops.convert_to_tensor(numbers(shape, "float32").astype("complex64")))


# float64

FLOAT64 = """
from unit.layers.test_dtypes import check_float64_values
check_float64_values()
"""


def check_float64_values():
    """Every path against NumPy, or against the same layer in one step more exact."""
    x = np.random.default_rng(0).normal(size=(2, 5, 6))
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1]], bool)
    for cls, step, options in (
        (m.LSTM, reference.lstm_step, {}),
        (m.GRU, reference.gru_step, {}),
        (m.GRU, reference.gru_step, {"reset_after": False}),
    ):
        for path in ("auto", "ops"):
            layer = cls(4, dtype="float64", implementation=path, return_sequences=True, **options)
            got = layer(x, mask=mask)
            assert keras.backend.standardize_dtype(got.dtype) == "float64"
            states = [np.zeros((2, 4))] * len(layer._state_names)
            weights = [ops.convert_to_numpy(w.value) for w in layer.weights]
            assert weights[0].dtype == "float64"
            truth = reference.run(step, x, states, weights, mask)[0]
            np.testing.assert_allclose(ops.convert_to_numpy(got), truth, rtol=0, atol=1e-13)
    # The kernel and Keras's cell in a loop compute the same, so neither rounds to float32.
    x = x.reshape(2, 5, 3, 2)
    pair = [m.ConvLSTM1D(2, 2, dtype="float64", unroll=unroll) for unroll in (False, True)]
    try:
        outputs = [ops.convert_to_numpy(layer(x)) for layer in pair[:1]]
    except ValueError as refused:
        assert "float64" in str(refused)  # noqa: PT017 - JAX's tanh
        assert BACKEND == "jax"
        return
    pair[1](x)
    pair[1].set_weights(pair[0].get_weights())
    outputs = [ops.convert_to_numpy(layer(x, mask=mask)) for layer in pair]
    assert [layer.implementation_report().implementation for layer in pair] == ["native", "ops"]
    np.testing.assert_allclose(*outputs, rtol=0, atol=1e-14)


@pytest.mark.skipif(BACKEND == "jax", reason="needs jax_enable_x64, see the next test")
def test_float64_is_float64():
    check_float64_values()


@pytest.mark.skipif(BACKEND != "jax", reason="about JAX's 64-bit types")
def test_float64_is_float64_where_jax_has_it():
    import pathlib

    tests = str(pathlib.Path(__file__).parents[2])
    run_python(f"import sys; sys.path.insert(0, {tests!r})\n{FLOAT64}", JAX_ENABLE_X64="1")


@pytest.mark.skipif(BACKEND != "jax", reason="the others here have float64")
@pytest.mark.parametrize("name", ["lstm", "gru", "conv_lstm", "conv"])
def test_a_float64_policy_that_cannot_be_kept_is_refused(name):
    make, shape = LAYERS[name]
    with pytest.raises(ValueError, match=r"policy float64 cannot be kept.*jax_enable_x64"):
        make(dtype="float64").build((2, *shape))


@pytest.mark.skipif(BACKEND == "tensorflow", reason="normalises in float64")
@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_float64_normalisation_is_refused_where_it_would_be_float32(normalization):
    layer = m.TimeDistributedConv(2, 2, normalization=normalization, dtype="float64")
    with pytest.raises(ValueError, match="policy float64 cannot be kept"):
        layer.build((2, 4, 5, 3))


@pytest.mark.skipif(BACKEND == "jax", reason="needs jax_enable_x64")
def test_averages_in_float64():
    """Keras's mean computes in float32 on torch."""
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    conv = m.TimeDistributedConv(2, 5, reduce="average", use_bias=False, dtype="float64")
    conv.build(x.shape)
    kernel = ops.convert_to_numpy(conv.weights[0].value)
    truth = np.einsum("btkf,kfo->bto", x, kernel)
    np.testing.assert_allclose(ops.convert_to_numpy(conv(x)), truth, rtol=0, atol=1e-13)
    joined, apart = (
        m.Channelwise(m.LSTM(2, dtype="float64"), merge) for merge in ("average", "stack")
    )
    for layer in (joined, apart):
        layer.build(x.shape)
    apart.set_weights([w.value for w in joined.weights])
    got, channels = (ops.convert_to_numpy(layer(x)) for layer in (joined, apart))
    np.testing.assert_allclose(got, channels.mean(1), rtol=0, atol=1e-14)


# Half precision and the state


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["lstm", "gru", "conv_lstm", "bidirectional"])
def test_state_in_every_precision_is_that_of_the_unbroken_series(name, policy):
    def make(**options):
        if name == "bidirectional":  # backwards nothing goes on from call to call
            inner = m.LSTM(3, dtype=policy, return_state=True, **options)
            return m.Bidirectional(inner, merge_mode=None, dtype=policy)
        cls = {"lstm": m.LSTM, "gru": m.GRU}.get(name)
        if cls is None:
            return m.ConvLSTM1D(2, 2, dtype=policy, unroll=True, **options)
        return cls(3, dtype=policy, **options)

    x = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype("float32")
    whole, parts = make(), make(stateful=True)
    whole.build(x.shape)
    parts.build(x.shape)
    whole.set_weights(parts.get_weights())
    for _ in range(2):
        first, second = parts(x[:, :2]), parts(x[:, 2:])
        expected = whole(x)
        if name == "bidirectional":
            first, second, expected = first[0], second[0], expected[0]
        got, truth = (ops.convert_to_numpy(ops.cast(v, "float32")) for v in (second, expected))
        np.testing.assert_array_equal(got, truth)
        assert np.abs(got - ops.convert_to_numpy(ops.cast(first, "float32"))).max() > 1e-3
        for direction in getattr(parts, "_directions", [parts]):
            direction.reset_state()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["lstm", "gru", "conv_lstm"])
def test_state_goes_on_in_predict(name, policy):
    """On JAX and in mixed precision on torch Keras 3.15 forgets it."""
    cls, arguments = {"lstm": (m.LSTM, [3]), "gru": (m.GRU, [3])}.get(name, (m.ConvLSTM1D, [2, 2]))
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype("float32")
    layer = cls(*arguments, dtype=policy, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(2, None, 5, 3)), layer])
    whole = cls(*arguments, dtype=policy)
    whole.build(x.shape)
    whole.set_weights(layer.get_weights())
    model.predict(x[:, :5], batch_size=2, verbose=0)
    got = model.predict(x[:, 5:], batch_size=2, verbose=0).astype("float32")
    expected = to_numpy(ops.cast(whole(x), "float32"))
    tolerance = 1e-6 if policy == "float32" else 4e-3 if policy == "mixed_float16" else 3e-2
    np.testing.assert_allclose(got, expected, atol=tolerance)
    layer.reset_state()
    fresh = model.predict(x[:, 5:], batch_size=2, verbose=0).astype("float32")
    assert np.abs(fresh - got).max() > 2 * tolerance


@needs_gradients
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["lstm", "gru", "conv_lstm"])
def test_state_goes_on_in_fit(name, policy):
    cls, arguments = {"lstm": (m.LSTM, [3]), "gru": (m.GRU, [3])}.get(name, (m.ConvLSTM1D, [2, 2]))
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 3)).astype("float32")
    layer = cls(*arguments, dtype=policy, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 5, 3)), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, np.zeros(model.output_shape), batch_size=2, epochs=2, shuffle=False, verbose=0)
    whole = cls(*arguments, dtype=policy, return_state=True)
    whole.build(x.shape)
    whole.set_weights(layer.get_weights())
    _, *states = whole(np.concatenate([x, x], axis=1))
    for variable, state in zip(layer.states, states, strict=True):
        got, expected = to_numpy(variable.value), to_numpy(ops.cast(state, "float32"))
        np.testing.assert_allclose(got, expected, atol=1e-6 if policy == "float32" else 3e-2)
        assert np.abs(got).max() > 0.05

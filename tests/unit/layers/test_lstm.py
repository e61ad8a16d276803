"""LSTM and GRU against NumPy in float64 and against the Keras layers, on the active backend."""

import itertools
import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import multibackend_lstm
from multibackend_lstm import GRU, LSTM, Channelwise, upgrade
from multibackend_lstm.environment import BACKENDS
from unit import recurrent_reference as reference
from unit.tools import run_python

# Keras 3.15 on torch and jax: Variable.__array__ lacks the `copy` argument of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = keras.backend.backend()
BATCH, TIME, FEATURES, UNITS = 6, 7, 5, 4
CELLS = {
    "lstm": (LSTM, keras.layers.LSTM, reference.lstm_step, {}),
    "gru": (GRU, keras.layers.GRU, reference.gru_step, {}),
    "gru_reset_before": (GRU, keras.layers.GRU, reference.gru_step, {"reset_after": False}),
}
NATIVE = {
    "tensorflow": {"lstm": "tf.while_loop", "gru": "tf.while_loop"},
    "torch": {"lstm": "torch.lstm", "gru": "torch.gru"},
    "jax": {"lstm": "lax.scan", "gru": "lax.scan"},
}.get(BACKEND, {})
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}

HAS_GRADIENTS = BACKEND in BACKENDS
needs_gradients = pytest.mark.skipif(not HAS_GRADIENTS, reason="the backend has no gradients")


def mask_of(kind, batch=BATCH, time=TIME):
    """Masks with lengths from 1 to all; "rows" has a fully masked sample."""
    if kind == "none":
        return None
    steps, lengths = np.arange(time), 1 + np.arange(batch) % time
    right = steps < lengths[:, None]
    holes = (steps * 3 + np.arange(batch)[:, None]) % 4 != 0
    rows = holes & (np.arange(batch)[:, None] != 2)
    return {"right": right, "left": right[:, ::-1].copy(), "holes": holes, "rows": rows}[kind]


def data(seed=0, shape=(BATCH, TIME, FEATURES), states=2, units=UNITS):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype("float32")
    return x, [rng.normal(size=(shape[0], units)).astype("float32") for _ in range(states)]


def make(cell, implementation="auto", shape=(BATCH, TIME, FEATURES), **kwargs):
    """Ours with random weights, biases too."""
    cls, _, _, options = CELLS[cell]
    layer = cls(UNITS, implementation=implementation, **options, **kwargs)
    layer.build(shape)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=w.shape) * 0.5 for w in layer.get_weights()])
    return layer


def weights_of(layer):
    kernel, recurrent_kernel, *bias = layer.get_weights()
    return [kernel, recurrent_kernel, *(bias or [np.zeros(kernel.shape[1])])]


def to_numpy(outputs):
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    return [ops.convert_to_numpy(ops.cast(output, "float32")) for output in outputs]


def gradients_of(function, variables, arrays):
    """Gradients of a scalar `function(*tensors)` for the arrays and the layer's variables."""
    if BACKEND == "torch":
        import torch

        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        wanted = [*tensors, *(v.value for v in variables)]
        loss = function(*tensors)
        return [ops.convert_to_numpy(g) for g in torch.autograd.grad(loss, wanted)]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            loss = function(*tensors)
        return [
            ops.convert_to_numpy(g)
            for g in tape.gradient(loss, [*tensors, *variables_of(variables)])
        ]
    import jax

    def stateless(values, tensors):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*tensors)

    values = [v.value for v in variables]
    for_values, for_arrays = jax.grad(stateless, argnums=(0, 1))(values, list(arrays))
    return [np.asarray(g) for g in [*for_arrays, *for_values]]


def variables_of(variables):
    return [v.value for v in variables]


def expected_path(cell, implementation):
    native = implementation == "auto" and cell in NATIVE
    return ("native", NATIVE[cell]) if native else ("ops", "keras.ops")


@pytest.mark.parametrize("implementation", ["auto", "ops"])
@pytest.mark.parametrize("mask_kind", ["none", "right", "left", "holes", "rows"])
@pytest.mark.parametrize("cell", CELLS)
def test_values_of_all_options(cell, mask_kind, implementation):
    x, states = data()
    mask = mask_of(mask_kind)
    _, _, step, _ = CELLS[cell]
    flags = list(itertools.product((False, True), repeat=4))
    if implementation == "ops":
        flags = flags[::5]  # a loop of its own at each call, which JAX compiles each time
    for go_backwards, return_sequences, zero_output_for_mask, with_states in flags:
        layer = make(
            cell,
            implementation,
            go_backwards=go_backwards,
            return_sequences=return_sequences,
            zero_output_for_mask=zero_output_for_mask,
            return_state=True,
        )
        count = len(layer._state_names)
        given_states = states[:count] if with_states else None
        output, *final = to_numpy(layer(x, mask=mask, initial_state=given_states))
        sequence, last, truth = reference.run(
            step,
            x,
            given_states or [np.zeros_like(s) for s in states[:count]],
            weights_of(layer),
            mask,
            go_backwards,
            zero_output_for_mask,
        )
        np.testing.assert_allclose(output, sequence if return_sequences else last, **TOLERANCE)
        for state, true_state in zip(final, truth, strict=True):
            np.testing.assert_allclose(state, true_state, **TOLERANCE)
        report = layer.implementation_report()
        assert (report.implementation, report.path) == expected_path(cell, implementation)


@needs_gradients
@pytest.mark.parametrize("implementation", ["auto", "ops"])
@pytest.mark.parametrize(
    ("mask_kind", "go_backwards"), [("none", False), ("left", True), ("rows", False)]
)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell, mask_kind, implementation, go_backwards):
    batch, time = 3, 4
    x, states = data(shape=(batch, time, 2))
    mask = mask_of(mask_kind, batch, time)
    if mask_kind == "rows":
        mask[0] = False
    layer = make(
        cell,
        implementation,
        shape=(batch, time, 2),
        return_sequences=True,
        return_state=True,
        go_backwards=go_backwards,
    )
    step, count = CELLS[cell][2], len(layer._state_names)
    rng = np.random.default_rng(5)
    factors = [rng.normal(size=(batch, time, UNITS)).astype("float32")]
    factors += [rng.normal(size=(batch, UNITS)).astype("float32") for _ in range(count)]

    def loss(x, *states):
        outputs = layer(x, initial_state=list(states), mask=mask)
        return sum(ops.sum(ops.multiply(y, f)) for y, f in zip(outputs, factors, strict=True))

    def true_loss(x, *rest):
        sequence, _, final = reference.run(step, x, rest[:count], rest[count:], mask, go_backwards)
        outputs = [sequence, *final]
        return sum(np.sum(y * f) for y, f in zip(outputs, factors, strict=True))

    arrays = [x, *states[:count]]
    got = gradients_of(loss, layer.trainable_variables, arrays)
    exact = [a.astype("float64") for a in [*arrays, *layer.get_weights()]]
    for gradient, truth in zip(got, reference.central_differences(true_loss, exact), strict=True):
        np.testing.assert_allclose(gradient, truth, rtol=1e-4, atol=1e-5)
    assert layer.implementation_report().path == expected_path(cell, implementation)[1]


@needs_gradients
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chunks_of_the_backward_pass(cell, monkeypatch):
    """Chunks with and without a remainder give what one chunk gives."""
    from multibackend_lstm.backends import recurrence

    x, _ = data(shape=(3, 11, 2))
    mask = mask_of("holes", 3, 11)
    layer = make(cell, shape=(3, 11, 2), return_sequences=True)

    def gradients(size):
        monkeypatch.setattr(recurrence, "chunk_size", lambda *_: size)
        return gradients_of(
            lambda x: ops.sum(ops.sin(layer(x, mask=mask))), layer.trainable_variables, [x]
        )

    whole = gradients(11)
    for size in (1, 3, 4, 10):
        for got, expected in zip(gradients(size), whole, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_chunk_size():
    from multibackend_lstm.backends.recurrence import CHUNK_BYTES, chunk_size

    def steps(time, batch, width):
        return chunk_size(keras.KerasTensor((time, batch, 1)), width)

    assert steps(100, 32, 4) == 100
    assert steps(500, 32, 1024) in range(10, 30)
    assert 500 % steps(500, 32, 1024) == 0
    assert steps(10**6, 1, CHUNK_BYTES) == 1
    assert steps(None, 32, 4) is None


@pytest.mark.parametrize("mask_kind", ["none", "right"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_keras_layer_gives_the_same(cell, mask_kind):
    _, keras_cls, _, options = CELLS[cell]
    x, states = data()
    mask = mask_of(mask_kind)
    layer = make(cell, return_sequences=True, return_state=True)
    rival = keras_cls(UNITS, return_sequences=True, return_state=True, **options)
    rival.build(x.shape)
    rival.set_weights(layer.get_weights())
    states = states[: len(layer._state_names)]
    outputs = layer(x, mask=mask, initial_state=states)
    for got, expected in zip(
        to_numpy(outputs), to_numpy(rival(x, mask=mask, initial_state=states)), strict=True
    ):
        np.testing.assert_allclose(got, expected, **TOLERANCE)


def adam_model(cls, cell, masked, **flags):
    """A compiled model of one layer, and the values of all its variables before training."""
    inputs = keras.Input((TIME, FEATURES))
    masked_inputs = keras.layers.Masking()(inputs) if masked else inputs
    model = keras.Model(inputs, cls(UNITS, **CELLS[cell][3], **flags)(masked_inputs))
    model.set_weights(make(cell).get_weights())
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    return model, [(v, ops.convert_to_numpy(v)) for v in variables]


@needs_gradients
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("mask_kinds", [["none"], ["right", "left", "holes", "rows"]], ids=str)
@pytest.mark.parametrize(
    "cell", ["lstm", "gru", pytest.param("gru_reset_before", marks=pytest.mark.slow)]
)
def test_20_adam_steps_as_the_keras_layer(cell, mask_kinds, go_backwards, return_sequences):
    batch, steps = 8, 20
    flags = {"go_backwards": go_backwards, "return_sequences": return_sequences}
    shape = (steps * batch, *([TIME] if return_sequences else []), UNITS)
    y = np.random.default_rng(3).normal(size=shape).astype("float32")
    models = [adam_model(cls, cell, mask_kinds != ["none"], **flags) for cls in CELLS[cell][:2]]
    for mask_kind in mask_kinds:
        x, _ = data(shape=(steps * batch, TIME, FEATURES))
        if mask_kind != "none":
            x[~np.tile(mask_of(mask_kind, batch), (steps, 1))] = 0
        trained = []
        for model, start in models:
            for variable, value in start:
                variable.assign(value)
            model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
            assert int(ops.convert_to_numpy(model.optimizer.iterations)) == steps
            trained.append(model.get_weights())
        report = models[0][0].layers[-1].implementation_report()
        assert report.implementation == expected_path(cell, "auto")[0]
        for got, expected, before in zip(*trained, make(cell).get_weights(), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
            assert np.abs(got - before).max() > 0.01


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    # Few shapes, since JAX compiles for each of them.
    sizes=st.sampled_from([(1, 5, 2), (3, 4, 1), (5, 5, 3)]),
    units=st.sampled_from([1, 3]),
    cell=st.sampled_from(sorted(CELLS)),
    bits=st.integers(0, 2**25 - 1),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_shape_and_mask(sizes, units, cell, bits, flags):
    batch, time, features = sizes
    cls, _, step, options = CELLS[cell]
    mask = np.array([bits >> n & 1 for n in range(batch * time)], bool).reshape(batch, time)
    x, states = data(shape=(batch, time, 1, features), units=units)
    layer = cls(
        units,
        return_sequences=True,
        return_state=True,
        go_backwards=flags[0],
        zero_output_for_mask=flags[1],
        use_bias=flags[2],
        **options,
    )
    states = states[: len(layer._state_names)]
    output, *final = to_numpy(layer(x, mask=mask, initial_state=states))
    weights = weights_of(layer)
    if not flags[2] and cell == "gru":
        weights[2] = np.zeros((2, 3 * units))
    sequence, _, truth = reference.run(step, x, states, weights, mask, *flags[:2])
    np.testing.assert_allclose(output, sequence, **TOLERANCE)
    for state, true_state in zip(final, truth, strict=True):
        np.testing.assert_allclose(state, true_state, **TOLERANCE)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("rank", [4, 5])
def test_inputs_of_higher_rank_are_flattened(cell, rank):
    shape = (*(BATCH, TIME, 3, 2, 2)[: rank - 1], 5)
    x, _ = data(shape=shape)
    flat = x.reshape(BATCH, TIME, -1)
    layer = make(cell, shape=shape, return_sequences=True)
    np.testing.assert_array_equal(to_numpy(layer(x)), to_numpy(layer(flat)))
    mask = np.ones(shape[:3], bool)
    mask[1, 4:] = False
    mask[2, 1, 1] = False  # another channel is valid there
    time_mask = mask.any(axis=2)
    np.testing.assert_array_equal(
        to_numpy(layer(x, mask=mask)), to_numpy(layer(flat, mask=time_mask))
    )


def test_the_question_everyone_asks():
    assert LSTM(64)(np.zeros((20, 10, 3, 5), "float32")).shape == (20, 64)
    assert LSTM(64)(keras.Input((10, 3, 5))).shape == (None, 64)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("axes", [(5,), (2, 5)])
def test_lengths_are_a_mask(cell, axes):
    x, _ = data(shape=(BATCH, TIME, *axes))
    lengths = np.array([0, 1, 3, 5, 7, 7])
    mask = np.arange(TIME) < lengths[:, None]
    for go_backwards in (False, True):
        layer = make(
            cell, shape=x.shape, return_sequences=True, return_state=True, go_backwards=go_backwards
        )
        for got, expected in zip(
            to_numpy(layer(x, lengths=lengths)), to_numpy(layer(x, mask=mask)), strict=True
        ):
            np.testing.assert_array_equal(got, expected)


def traced(function, jit):
    """The function as the backend traces it, in which values are not known."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        spec = [tf.TensorSpec((None, None, FEATURES)), tf.TensorSpec((None,), tf.int32)]
        return tf.function(function, jit_compile=jit, input_signature=None if jit else spec)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import torch

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    return lambda x, lengths: compiled(torch.tensor(x), torch.tensor(lengths))


@needs_gradients
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("jit", [False, *([True] if BACKEND == "tensorflow" else [])])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_lengths_out_of_range_give_nan_where_no_error_can_be_raised(cell, jit):
    x, _ = data()
    lengths = np.array([0, 1, TIME, -1, TIME + 1, 3], "int32")
    fit = np.array([True, True, True, False, False, True])
    layer = make(cell, shape=(None, None, FEATURES), return_sequences=True, return_state=True)
    outputs = to_numpy(traced(lambda x, lengths: layer(x, lengths=lengths), jit)(x, lengths))
    expected = to_numpy(layer(x[fit], lengths=lengths[fit]))
    for output, truth in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output[fit], truth, **TOLERANCE)
        assert np.isnan(output[~fit]).all()


def test_lengths_in_a_functional_model():
    inputs = keras.Input((None, FEATURES))
    lengths = keras.Input((), dtype="int32")
    layer = LSTM(UNITS)
    model = keras.Model([inputs, lengths], layer(inputs, lengths=lengths))
    x, _ = data()
    values = np.array([1, 2, 3, 4, 5, 7], "int32")
    np.testing.assert_allclose(
        model.predict([x, values], verbose=0), to_numpy(layer(x, lengths=values))[0], **TOLERANCE
    )


@pytest.mark.parametrize("implementation", ["auto", "ops"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_nan_in_masked_steps_reaches_nothing(cell, implementation):
    x, _ = data()
    mask = mask_of("rows")
    dirty = np.where(mask[..., None], x, np.nan).astype("float32")
    layer = make(cell, implementation, return_sequences=True, return_state=True)
    for got, expected in zip(
        to_numpy(layer(dirty, mask=mask)), to_numpy(layer(x, mask=mask)), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    if not HAS_GRADIENTS:
        return

    def loss(x):
        return sum(ops.sum(y * y) for y in layer(x, mask=mask))

    clean = gradients_of(loss, layer.trainable_variables, [x])
    for got, expected in zip(
        gradients_of(loss, layer.trainable_variables, [dirty]), clean, strict=True
    ):
        np.testing.assert_allclose(got, expected, **TOLERANCE)


@pytest.mark.parametrize("implementation", ["auto", "ops"])
@pytest.mark.parametrize("mask_kind", ["none", "holes"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_nan_in_a_valid_step_is_not_hidden(cell, mask_kind, implementation):
    x, _ = data()
    mask = mask_of(mask_kind)
    x[1, 2] = np.nan
    assert mask is None or mask[1, 2]
    layer = make(cell, implementation, return_sequences=True, return_state=True)
    sequence, *states = to_numpy(layer(x, mask=mask))
    others = np.arange(BATCH) != 1
    assert np.isnan(sequence[1, 2:]).all()
    assert not np.isnan(sequence[1, :2]).any()
    assert not np.isnan(sequence[others]).any()
    for state in states:
        assert np.isnan(state[1]).all()
        assert not np.isnan(state[others]).any()


@pytest.mark.parametrize("implementation", ["auto", "ops"])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("cell", CELLS)
def test_empty_and_single(cell, time, batch, implementation):
    x, states = data(shape=(batch, time, FEATURES))
    for mask in (None, np.ones((batch, time), bool)):
        layer = make(cell, implementation, return_sequences=True, return_state=True)
        states = states[: len(layer._state_names)]
        sequence, *final = to_numpy(layer(x, mask=mask, initial_state=states))
        truth, _, true_states = reference.run(CELLS[cell][2], x, states, weights_of(layer), mask)
        np.testing.assert_allclose(sequence, truth, **TOLERANCE)
        for state, true_state in zip(final, true_states, strict=True):
            np.testing.assert_allclose(state, true_state, **TOLERANCE)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_half_precision(cell, dtype):
    cls, _, step, options = CELLS[cell]
    layer = cls(UNITS, dtype=dtype, return_sequences=True, return_state=True, **options)
    x, _ = data()
    mask = mask_of("holes")
    outputs = layer(x, mask=mask)
    for output in outputs:
        assert keras.backend.standardize_dtype(output.dtype) == layer.compute_dtype
    weights = [to_numpy(w)[0] for w in layer.weights]
    states = [np.zeros((BATCH, UNITS))] * len(layer._state_names)
    truth = reference.run(step, x, states, weights, mask)[0]
    tolerance = 3e-2 if "b" in dtype.removeprefix("mixed_") else 4e-3
    np.testing.assert_allclose(to_numpy(outputs)[0], truth, atol=tolerance)
    assert "float32" in str(layer.implementation_report())


@pytest.mark.skipif(BACKEND == "jax", reason="JAX computes in float32 unless x64 is on")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_float64(cell):
    layer = CELLS[cell][0](UNITS, dtype="float64")
    output = layer(data()[0].astype("float64"))
    tolerance = 1e-12 if keras.backend.standardize_dtype(output.dtype) == "float64" else 1e-5
    states = [np.zeros((BATCH, UNITS))] * len(layer._state_names)
    weights = [ops.convert_to_numpy(w) for w in layer.weights]
    truth = reference.run(CELLS[cell][2], data()[0], states, weights)[1]
    np.testing.assert_allclose(ops.convert_to_numpy(output), truth, atol=tolerance)


@needs_gradients
@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_10_000_steps(cell):
    x, _ = data(shape=(2, 10_000, 2))
    layer = make(cell, shape=(None, None, 2))
    mask = np.ones(x.shape[:2], bool)
    mask[0, 5000:] = False
    gradients = gradients_of(lambda x: ops.sum(layer(x, mask=mask)), layer.trainable_variables, [x])
    assert all(np.isfinite(g).all() for g in gradients)
    assert layer.implementation_report().implementation == "native"


# State


@pytest.mark.parametrize("implementation", ["auto", "ops"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_stateful_calls_continue(cell, implementation):
    x, _ = data()
    whole = make(cell, return_sequences=True)
    parts = make(cell, implementation, return_sequences=True, stateful=True)
    expected = to_numpy(whole(x))[0]
    for _ in range(2):
        got = np.concatenate([to_numpy(parts(x[:, :3]))[0], to_numpy(parts(x[:, 3:]))[0]], axis=1)
        np.testing.assert_allclose(got, expected, **TOLERANCE)
        parts.reset_state()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_stateful_in_predict(cell):
    x, _ = data()
    layer = CELLS[cell][0](UNITS, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(BATCH, None, FEATURES)), layer])
    whole = make(cell)
    whole.set_weights(layer.get_weights())
    model.predict(x[:, :3], batch_size=BATCH, verbose=0)
    got = model.predict(x[:, 3:], batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(got, to_numpy(whole(x))[0], **TOLERANCE)


@needs_gradients
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_stateful_in_fit(cell):
    x, _ = data()
    y = np.zeros((BATCH, UNITS), "float32")
    layer = CELLS[cell][0](UNITS, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(BATCH, TIME, FEATURES)), layer])
    model.compile("sgd", "mse")
    weights = layer.get_weights()
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(layer.get_weights(), weights, strict=True))
    # With a rate of 0 the state after three epochs is that of three times the series.
    model.compile(keras.optimizers.SGD(0.0), "mse")
    layer.reset_state()
    model.fit(x, y, batch_size=BATCH, epochs=3, shuffle=False, verbose=0)
    states = [np.zeros((BATCH, UNITS))] * len(layer._state_names)
    truth = reference.run(
        CELLS[cell][2], np.concatenate([x] * 3, axis=1), states, weights_of(layer)
    )[2]
    for state, true_state in zip(layer.states, truth, strict=True):
        np.testing.assert_allclose(to_numpy(state.value)[0], true_state, **TOLERANCE)


def test_the_state_is_no_weight():
    layer = LSTM(UNITS, stateful=True)
    layer.build((BATCH, TIME, FEATURES))
    assert len(layer.weights) == len(layer.get_weights()) == 3
    assert [v is s for v, s in zip(layer.variables[-2:], layer.states, strict=True)] == [True] * 2


def test_a_stateful_layer_refuses_another_batch_size():
    layer = LSTM(UNITS, stateful=True)
    layer(data()[0])
    with pytest.raises(ValueError, match=r"Expected 6, received 5"):
        layer(data()[0][:5])


# Dropout, paths and refusals


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_draws_one_mask_for_all_steps(cell):
    x = np.ones((BATCH, TIME, 50), "float32")
    layer = make(cell, shape=x.shape, dropout=0.5, seed=1)
    rival = make(cell, "ops", shape=x.shape, dropout=0.5, seed=1)
    np.testing.assert_allclose(
        to_numpy(layer(x, training=True)), to_numpy(rival(x, training=True)), **TOLERANCE
    )
    assert np.abs(to_numpy(layer(x))[0] - to_numpy(layer(x, training=True))[0]).max() > 1e-3
    expected = expected_path(cell, "auto")[0]
    assert layer.implementation_report().implementation == expected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activation": "relu"}, "activation is relu"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation is hard_sigmoid"),
        ({"recurrent_dropout": 0.5}, "recurrent_dropout"),
        ({"unroll": True}, "unroll"),
    ],
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_refusals_are_reported_and_native_is_an_error(cell, options, reason):
    x, _ = data()
    layer = make(cell, **options)
    layer(x, training=True)
    report = layer.implementation_report()
    assert report.implementation == "ops"
    assert reason in report.refused
    assert reason in str(report)
    with pytest.raises(ValueError, match="cannot be had.*" + reason):
        make(cell, "native", **options)(x, training=True)


@pytest.mark.parametrize("gate", ["hard_sigmoid", "softmax"])  # softmax sees all units of a gate
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_other_activations_and_unroll(cell, unroll, gate):
    _, keras_cls, _, options = CELLS[cell]
    x, _ = data()
    mask = mask_of("right")
    kwargs = {**options, "activation": "softsign", "recurrent_activation": gate}
    layer = CELLS[cell][0](UNITS, unroll=unroll, **kwargs)
    rival = keras_cls(UNITS, **kwargs)
    layer.build(x.shape)
    rival.build(x.shape)
    rival.set_weights(layer.get_weights())
    np.testing.assert_allclose(
        to_numpy(layer(x, mask=mask)), to_numpy(rival(x, mask=mask)), **TOLERANCE
    )
    assert ("unrolled" in layer.implementation_report().path) == unroll


def test_reset_before_has_no_kernel():
    layer = make("gru_reset_before")
    layer(data()[0])
    assert "reset_after=False" in layer.implementation_report().refused


def test_native_and_use_cudnn():
    if NATIVE:
        layer = make("lstm", "native")
        layer(data()[0])
        assert layer.implementation_report().path == NATIVE["lstm"]
    assert LSTM(3, use_cudnn=True).implementation == "native"
    with pytest.raises(ValueError, match="use_cudnn"):
        LSTM(3, use_cudnn=True, implementation="ops")


def test_the_report_needs_a_call():
    with pytest.raises(ValueError, match="has not been called"):
        LSTM(3).implementation_report()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"implementation": "ops"},
        {"dropout": 0.5},
        {"recurrent_dropout": 0.5},
        {"use_cudnn": False},
        {"unroll": True},
        {"dtype": "mixed_bfloat16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
def test_the_report_is_known_before_the_call(cell, options, training):
    layer = CELLS[cell][0](UNITS, **CELLS[cell][3], **options)
    for shape in ((BATCH, TIME, FEATURES), (2, 3, 5, 1), (2, 0, FEATURES)):
        before = layer.implementation_report(shape, training=training)
        layer(np.zeros(shape, "float32"), training=training)
        assert layer.implementation_report() == before


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.ones((BATCH, TIME + 1), bool)}, "mask must have the first axes"),
        ({"mask": np.ones((BATCH,), bool)}, "mask must have the first axes"),
        ({"mask": np.ones((BATCH, TIME), "float32")}, "`mask` must hold booleans.*float32"),
        ({"lengths": np.full(BATCH, TIME + 1)}, r"each in \[0, time\], here \[0, 7\].*8"),
        ({"lengths": np.full(BATCH, -1)}, r"Received lengths from -1"),
        ({"lengths": np.ones((BATCH, 1), "int32")}, r"shape \(batch,\).*lengths\[:, 0\]"),
        ({"lengths": np.ones(BATCH, "float32")}, "`lengths` must hold integers"),
        ({"lengths": np.ones(BATCH, "int32"), "mask": np.ones((BATCH, TIME), bool)}, "Leave one"),
        ({"initial_state": [np.zeros((BATCH, 3), "float32")] * 2}, r"`h`.*\(6, 3\)"),
        ({"initial_state": [np.zeros((BATCH, UNITS), "float32")]}, "list of 2 tensor"),
        ({"initial_state": [np.zeros((2, UNITS), "float32")] * 2}, r"batch=6.*\(2, 4\)"),
    ],
)
def test_errors_of_a_call(arguments, message):
    layer = make("lstm")
    with pytest.raises(ValueError, match=message):
        layer(data()[0], **arguments)


@pytest.mark.parametrize("units", [0, -1, 2.5, True, "4"])
def test_errors_of_units(units):
    with pytest.raises(ValueError, match="`units` must be an integer of at least 1"):
        LSTM(units)


@pytest.mark.parametrize("implementation", [0, 1, 2])
@pytest.mark.parametrize("cls", [LSTM, GRU])
def test_implementations_of_keras_2_are_taken(cls, implementation):
    layer = cls(3, implementation=implementation)
    assert layer.implementation == layer.get_config()["implementation"] == "auto"
    assert cls.from_config({**layer.get_config(), "implementation": 2}).implementation == "auto"


def test_errors_of_the_constructor_and_shapes():
    assert LSTM(np.int64(3)).units == 3
    with pytest.raises(ValueError, match="`implementation` must be one of"):
        LSTM(3, implementation=3)
    with pytest.raises(ValueError, match="at least 3 axes"):
        LSTM(3)(np.zeros((4, 5), "float32"))
    with pytest.raises(ValueError, match="only batch and time may be unknown"):
        LSTM(3)(keras.Input((5, None, 2)))


# Saving, wrappers, tracing


@pytest.mark.parametrize("cell", CELLS)
def test_config_and_weights_go_both_ways(cell, tmp_path):
    cls, keras_cls, _, _ = CELLS[cell]
    ours = make(cell, go_backwards=True, dropout=0.25)
    assert cls.from_config(ours.get_config()).get_config() == ours.get_config()
    json.dumps(ours.get_config(), default=str)
    theirs = keras_cls.from_config(ours.get_config())
    theirs.build((None, TIME, FEATURES))
    theirs.set_weights(ours.get_weights())
    x, _ = data()
    np.testing.assert_allclose(to_numpy(theirs(x)), to_numpy(ours(x)), **TOLERANCE)
    again = cls.from_config(theirs.get_config())
    again.build((None, TIME, FEATURES))
    again.set_weights(theirs.get_weights())
    np.testing.assert_allclose(to_numpy(again(x)), to_numpy(ours(x)), **TOLERANCE)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_saved_files(cell, tmp_path):
    cls, keras_cls, _, _ = CELLS[cell]
    x, _ = data()

    def model_of(layer_class):
        return keras.Sequential(
            [
                keras.Input((None, FEATURES)),
                layer_class(UNITS, return_sequences=True),
                layer_class(3),
            ]
        )

    ours, theirs = model_of(cls), model_of(keras_cls)
    ours.save(tmp_path / "ours.keras")
    loaded = keras.models.load_model(tmp_path / "ours.keras")
    assert type(loaded.layers[0]) is cls
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), ours.predict(x, verbose=0))
    # Weights of either load into the other.
    for a, b in ((ours, theirs), (theirs, ours)):
        a.set_weights([w + 0.1 for w in a.get_weights()])
        a.save_weights(tmp_path / "a.weights.h5")
        b.load_weights(tmp_path / "a.weights.h5")
        np.testing.assert_allclose(b.predict(x, verbose=0), a.predict(x, verbose=0), **TOLERANCE)
    # Keras looks its own layers up by module: `custom_objects` puts nothing in their place.
    theirs.save(tmp_path / "theirs.keras")
    loaded = keras.models.load_model(
        tmp_path / "theirs.keras", custom_objects={keras_cls.__name__: cls}
    )
    assert [type(layer) for layer in loaded.layers] == [keras_cls, keras_cls]
    upgraded = upgrade(loaded).model
    assert [type(layer) for layer in upgraded.layers] == [cls, cls]
    np.testing.assert_allclose(
        upgraded.predict(x, verbose=0), theirs.predict(x, verbose=0), **TOLERANCE
    )


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_files_load_as_layers_of_keras_where_the_package_is_missing(cell, tmp_path):
    cls, *_ = CELLS[cell]
    model = keras.Sequential([keras.Input((None, FEATURES)), cls(UNITS)])
    model.save(tmp_path / "ours.keras")
    x, _ = data()
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys\nsys.modules['multibackend_lstm'] = None  # importing it fails\n"
        f"import keras, numpy as np\nlayer = keras.layers.{cls.__name__}\n"
        f"objects = {{'multibackend_lstm>{cls.__name__}': layer}}\n"
        f"model = keras.models.load_model({str(tmp_path / 'ours.keras')!r}, objects)\n"
        "assert type(model.layers[0]) is layer\n"
        f"y = model(np.load({str(tmp_path / 'x.npy')!r}))\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, keras.ops.convert_to_numpy(y))"
    )
    run_python(code)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), to_numpy(model(x))[0], **TOLERANCE)


@pytest.mark.parametrize("axes", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize(
    "wrapper", [keras.layers.TimeDistributed, multibackend_lstm.TimeDistributed]
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_time_distributed(cell, wrapper, return_sequences, axes):
    """A series of its own in every outer step, its mask of shape (batch, outer, time)."""
    cls, _, step, _ = CELLS[cell]
    outer, batch = 2, 3
    x, _ = data(shape=(batch, outer, TIME, *axes))
    layer = wrapper(cls(UNITS, return_sequences=return_sequences))
    masks = np.stack([mask_of("right", batch), mask_of("rows", batch)], axis=1)
    for mask in (None, masks):
        got = to_numpy(layer(x, mask=mask))[0]
        states = [np.zeros((batch, UNITS))] * len(layer.layer._state_names)
        for n in range(outer):
            step_mask = None if mask is None else mask[:, n]
            truth = reference.run(step, x[:, n], states, weights_of(layer.layer), step_mask)
            np.testing.assert_allclose(got[:, n], truth[not return_sequences], **TOLERANCE)
    assert layer.layer.implementation_report().path == expected_path(cell, "auto")[1]


@needs_gradients
@pytest.mark.parametrize(
    "wrapper", [keras.layers.TimeDistributed, multibackend_lstm.TimeDistributed]
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_training_in_time_distributed(cell, wrapper):
    """As a model of the same layer with the outer steps as samples."""
    cls = CELLS[cell][0]
    x, _ = data(shape=(4, 3, TIME, 2))
    x[:, 1:, 5:] = 0
    y = np.random.default_rng(3).normal(size=(4, 3, UNITS)).astype("float32")
    weights = make(cell, shape=(None, TIME, 2)).get_weights()
    trained = []
    for shape, wrap in (((3, TIME, 2), wrapper), ((TIME, 2), lambda layer: layer)):
        inputs = keras.Input(shape)
        outputs = wrap(cls(UNITS))(keras.layers.Masking()(inputs))
        # Times one, to drop the mask: Keras's wrapper passes the series' mask on to the loss.
        model = keras.Model(inputs, outputs * 1.0)
        model.set_weights(weights)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        flat = (x.reshape(-1, *shape), y.reshape(-1, *y.shape[len(y.shape) - len(shape) + 1 :]))
        model.fit(*flat, batch_size=len(flat[0]), epochs=3, shuffle=False, verbose=0)
        trained.append(model.get_weights())
    for got, expected, before in zip(*trained, weights, strict=True):
        np.testing.assert_allclose(got, expected, **TOLERANCE)
        assert np.abs(got - before).max() > 1e-3


def test_a_mask_of_outer_steps_says_nothing_of_the_series_inside():
    """keras.layers.TimeDistributed hands the layer a mask of rank 1; ours keeps it outside."""
    x, _ = data(shape=(2, 3, 5, 4))
    mask = np.array([[True, True, False], [True, False, False]])
    with pytest.raises(ValueError, match="mask must have the first axes"):
        keras.layers.TimeDistributed(LSTM(UNITS))(x, mask=mask)
    layer = multibackend_lstm.TimeDistributed(LSTM(UNITS))
    np.testing.assert_array_equal(to_numpy(layer(x, mask=mask)), to_numpy(layer(x)))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_channelwise(cell):
    cls, _, step, _ = CELLS[cell]
    x, _ = data(shape=(BATCH, TIME, 3, 4))
    layer = Channelwise(cls(UNITS), merge="stack")
    mask = np.stack([mask_of(kind) for kind in ("right", "left", "rows")], axis=2)
    states = [np.zeros((BATCH, UNITS))] * len(layer.layer._state_names)
    for given_mask in (None, mask):
        got = to_numpy(layer(x, mask=given_mask))[0]
        for channel in range(3):
            channel_mask = None if given_mask is None else mask[:, :, channel]
            truth = reference.run(
                step, x[:, :, channel], states, weights_of(layer.layer), channel_mask
            )[1]
            np.testing.assert_allclose(got[:, channel], truth, **TOLERANCE)
    assert layer.layer.implementation_report().path == expected_path(cell, "auto")[1]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_masks_pass_through_a_model(cell):
    cls = CELLS[cell][0]
    inputs = keras.Input((None, 3, 2))
    masked = keras.layers.Masking()(inputs)  # a mask of shape (batch, time, channels)
    hidden = cls(UNITS, return_sequences=True)(masked)
    model = keras.Model(inputs, cls(3)(hidden))
    x, _ = data(shape=(BATCH, TIME, 3, 2))
    mask = mask_of("right")
    x[~mask] = 0
    first, second = (layer for layer in model.layers if isinstance(layer, cls))
    expected = second(first(x, mask=mask), mask=mask)
    np.testing.assert_allclose(model.predict(x, verbose=0), to_numpy(expected)[0], **TOLERANCE)
    # Another length, with batch and time unknown.
    assert model.predict(x[:4, :3], verbose=0).shape == (4, 3)


@needs_gradients
@pytest.mark.parametrize(
    "jit_compile", ["auto", *([False, True] if BACKEND == "tensorflow" else [])]
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fit_with_and_without_jit(cell, jit_compile):
    cls = CELLS[cell][0]
    inputs = keras.Input((TIME, 3, 2))
    model = keras.Model(inputs, cls(UNITS)(keras.layers.Masking()(inputs)))
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit_compile)
    x, _ = data(shape=(8, TIME, 3, 2))
    x[:, 5:] = 0
    y = np.full((8, UNITS), 0.3, "float32")
    losses = model.fit(x, y, epochs=15, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    layer = model.layers[-1]
    expected = NATIVE[cell] + (", XLA" if BACKEND == "tensorflow" else "")
    assert layer.implementation_report().path == expected


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_regularizers_and_trainable(cell):
    layer = CELLS[cell][0](
        UNITS,
        kernel_regularizer="l2",
        recurrent_regularizer="l2",
        bias_regularizer="l2",
        activity_regularizer="l2",
    )
    layer(data()[0])
    assert len(layer.losses) == 4
    layer.trainable = False
    assert layer.trainable_variables == []


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("use_bias", "all_outputs", "dynamic"), [(True, True, False), (False, False, True)]
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_torch_compile(cell, use_bias, all_outputs, dynamic):
    """One graph, with the values and gradients of the eager call."""
    import torch

    torch._dynamo.reset()
    x, states = data()
    mask = torch.tensor(mask_of("rows"))
    flags = {"use_bias": use_bias, "return_sequences": all_outputs, "return_state": all_outputs}
    layer = make(cell, shape=(None, None, FEATURES), **flags)
    weights = [v.value for v in layer.trainable_variables]

    def call(x, mask, *states):
        outputs = layer(x, mask=mask, initial_state=list(states))
        outputs = outputs if all_outputs else [outputs]
        return sum((output * (1 + n + output)).sum() for n, output in enumerate(outputs))

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for given_mask, count in ((None, BATCH), (mask, BATCH), (mask, 3)):
        part = None if given_mask is None else given_mask[:count]
        given_states = states[: len(layer._state_names)]
        tensors = [torch.tensor(a[:count], requires_grad=True) for a in (x, *given_states)]
        values = []
        for function in (compiled, call):
            value = function(tensors[0], part, *tensors[1:])
            values.append([value, *torch.autograd.grad(value, [*tensors, *weights])])
        for got, expected in zip(*values, strict=True):
            np.testing.assert_allclose(to_numpy(got)[0], to_numpy(expected)[0], **TOLERANCE)
    with torch.no_grad():
        assert torch.allclose(compiled(tensors[0], part, *tensors[1:]), values[0][0])


@pytest.mark.skipif(BACKEND != "torch", reason="torch's operations")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_operation_for_torch_compile(cell):
    """What torch asks of an operation: schema, shapes, gradients, all of it traced too."""
    import torch

    x, states = data()
    gates = {"lstm": 4, "gru": 3}[cell] * UNITS
    rng = np.random.default_rng(1)
    sizes = [(gates, FEATURES), (gates, UNITS), (gates,), (gates,)]

    def tensor(array):
        return torch.tensor(array, dtype=torch.float32, requires_grad=True)

    given_states = [tensor(s[None]) for s in states[: {"lstm": 2, "gru": 1}[cell]]]
    for count in (2, 4):  # without and with a bias
        weights = [tensor(rng.normal(size=size)) for size in sizes[:count]]
        torch.library.opcheck(
            torch.ops.multibackend_lstm.rnn, (cell, tensor(x), given_states, weights)
        )


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fit_with_torch_compile(cell):
    """As without, if a compiler for what torch.compile writes is there."""
    import torch

    x, _ = data(shape=(8, TIME, 3, 2))
    x[:, 5:] = 0
    y = np.full((8, UNITS), 0.3, "float32")
    trained = []
    for jit_compile in (False, True):
        torch._dynamo.reset()
        inputs = keras.Input((TIME, 3, 2))
        model = keras.Model(inputs, CELLS[cell][0](UNITS)(keras.layers.Masking()(inputs)))
        model.set_weights(make(cell, shape=(None, TIME, 6)).get_weights())
        model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit_compile)
        try:
            model.fit(x, y, epochs=3, batch_size=8, verbose=0)
        except torch._inductor.exc.InvalidCxxCompiler:
            pytest.skip("no C++ compiler")
        trained.append(model.get_weights())
    for got, expected in zip(*trained, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def model_to_export(cell, time):
    """A model and two inputs of different batch sizes, and of different lengths if it may."""
    inputs = keras.Input((time, 3, 2))
    model = keras.Model(inputs, CELLS[cell][0](UNITS)(keras.layers.Masking()(inputs)))
    x, _ = data(shape=(BATCH, TIME, 3, 2))
    x[1, 5:] = 0
    x[2, :2] = 0
    return model, [x, x[:3] if time else x[:3, :6]]


@pytest.mark.slow
@pytest.mark.skipif(BACKEND not in ("tensorflow", "jax"), reason="Keras needs torch_xla for torch")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_export_as_saved_model(cell, tmp_path):
    """Batch and time unknown; from JAX through jax2tf."""
    tf = pytest.importorskip("tensorflow", reason="a SavedModel is TensorFlow's")
    model, inputs = model_to_export(cell, None)
    model.export(tmp_path / "model", format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    for x in inputs:
        got = loaded.serve(x).numpy()
        np.testing.assert_allclose(got, model.predict(x, verbose=0), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="torch.export")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_export_as_torch_program(cell, tmp_path):
    """Unknown batch alone: of time torch.export asks the number of steps, torch.nn.LSTM's too."""
    import torch

    model, inputs = model_to_export(cell, TIME)
    dims = {0: torch.export.Dim("batch", min=1)}
    path = str(tmp_path / "model.pt2")
    model.export(path, format="torch", verbose=False, dynamic_shapes=dims)
    program = torch.export.load(path)
    assert f"torch.ops.aten.{cell}.input" in program.graph_module.code  # and not step by step
    for x in inputs:
        got = program.module()(torch.tensor(x)).detach().numpy()
        np.testing.assert_allclose(got, model.predict(x, verbose=0), rtol=0, atol=1e-6)

    model, _ = model_to_export(cell, None)
    dims[1] = torch.export.Dim("time", min=1)
    with pytest.raises(RuntimeError, match=r"Constraints violated \(time\)"):
        model.export(path, format="torch", verbose=False, dynamic_shapes=dims)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND not in ("torch", "jax"), reason="torch.export, jax.export")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_export_of_the_call(cell):
    model, (x, _) = model_to_export(cell, TIME)
    expected = model.predict(x, verbose=0)
    if BACKEND == "torch":
        import torch

        program = torch.export.export(model.eval(), (torch.tensor(x),))
        got = program.module()(torch.tensor(x)).detach().numpy()
    else:
        import jax
        from jax import export

        exported = export.export(jax.jit(lambda x: model(x)))(
            jax.ShapeDtypeStruct(x.shape, "float32")
        )
        got = np.asarray(export.deserialize(exported.serialize()).call(x))
    np.testing.assert_allclose(got, expected, **TOLERANCE)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
def test_tf_function_with_unknown_batch_and_time():
    import tensorflow as tf

    for cell in ("lstm", "gru"):
        layer = make(cell, shape=(None, None, FEATURES), return_sequences=True)

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, None, FEATURES)),
                tf.TensorSpec((None, None), tf.bool),
            ]
        )
        def call(x, mask, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, mask=mask)
            return y, tape.gradient(y, x)

        for batch, time in ((BATCH, TIME), (2, 3), (2, 0), (0, 2)):
            x, _ = data(shape=(batch, time, FEATURES))
            mask = np.ones((batch, time), bool)
            y, gradient = call(tf.constant(x), tf.constant(mask))
            np.testing.assert_allclose(y.numpy(), to_numpy(layer(x, mask=mask))[0], **TOLERANCE)
            assert gradient.shape == x.shape
        assert layer.implementation_report().path == "tf.while_loop"


@pytest.mark.skipif(BACKEND != "jax", reason="cuDNN through JAX")
@pytest.mark.parametrize("mask_kind", ["none", "right", "left", "rows"])
def test_jax_cudnn_path(mask_kind, monkeypatch):
    """JAX's own reference in place of cuDNN, which takes lengths and knows no masks.

    Keras 3.15 returns sequences of `go_backwards=True` in the opposite order here:
    https://github.com/keras-team/keras/blob/v3.15.0/keras/src/backend/jax/rnn.py
    """
    import jax
    from jax.experimental import rnn

    from multibackend_lstm.backends import jax as backend

    def lstm(x, h_0, c_0, weights, seq_lengths, input_size, hidden_size, num_layers, **options):
        sizes = (input_size, hidden_size, num_layers, options["bidirectional"])
        parts = rnn.unpack_lstm_weights(weights, *sizes)
        assert (np.asarray(seq_lengths) >= 1).all()  # cuDNN refuses samples without a step
        return rnn.lstm_ref(x, h_0, c_0, *parts, seq_lengths, *sizes[:3], 0.0, False)

    monkeypatch.setattr(rnn, "lstm", lstm)
    monkeypatch.setattr(backend, "_sees_cuda", lambda: True)
    # Which branch a platform gets is tests/unit/gpu_dry_run's question.
    monkeypatch.setattr(
        backend.lax, "platform_dependent", lambda *arguments, cuda, default: cuda(*arguments)
    )
    x, states = data()
    mask = mask_of(mask_kind)
    for go_backwards, return_sequences in itertools.product((False, True), repeat=2):
        layer = make(
            "lstm",
            return_sequences=return_sequences,
            return_state=True,
            go_backwards=go_backwards,
        )
        with jax.disable_jit():  # or what is traced here would serve later calls too
            output, *final = to_numpy(layer(x, mask=mask, initial_state=states))
        sequence, last, truth = reference.run(
            reference.lstm_step, x, states, weights_of(layer), mask, go_backwards
        )
        np.testing.assert_allclose(output, sequence if return_sequences else last, **TOLERANCE)
        for state, true_state in zip(final, truth, strict=True):
            np.testing.assert_allclose(state, true_state, **TOLERANCE)
        assert layer.implementation_report().path == "cuDNN"
    forbidden = make("lstm", use_cudnn=False)
    forbidden(x, mask=mask)
    assert forbidden.implementation_report().path == "lax.scan"


@pytest.mark.skipif(BACKEND != "tensorflow", reason="cuDNN through TensorFlow")
@pytest.mark.parametrize("mask_kind", ["none", "left", "rows"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_tensorflow_cudnn_path(cell, mask_kind, monkeypatch):
    """The NumPy reference in place of cuDNN's operation, with its layout of the weights."""
    import tensorflow as tf

    from multibackend_lstm.backends import tensorflow as backend

    gates, order = {"lstm": (4, [0, 1, 2, 3]), "gru": (3, [1, 0, 2])}[cell]

    def operation(input, input_h, input_c, params, sequence_lengths, rnn_mode, **options):
        assert options == {"is_training": True, "time_major": False}
        lengths = sequence_lengths.numpy()
        assert (lengths >= 1).all()  # cuDNN refuses samples without a step
        sizes = [UNITS * FEATURES] * gates + [UNITS * UNITS] * gates + [UNITS] * (2 * gates)
        parts = np.split(params.numpy(), np.cumsum(sizes)[:-1])
        assert rnn_mode == cell
        assert sum(sizes) == params.shape[0]

        def joined(first, rows):
            matrices = [part.reshape(UNITS, rows).T for part in parts[first : first + gates]]
            return np.concatenate([matrices[gate] for gate in order], axis=1)

        biases = [
            np.concatenate([parts[first + gate] for gate in order])
            for first in (2 * gates, 3 * gates)
        ]
        bias = sum(biases) if cell == "lstm" else np.stack(biases)
        weights = [joined(0, FEATURES), joined(gates, UNITS), bias]
        states = [state.numpy()[:, 0] for state in (input_h, input_c) if state.shape.rank]
        mask = np.arange(input.shape[1]) < lengths[:, None]
        sequence, _, states = reference.run(
            CELLS[cell][2], input.numpy(), states, weights, mask, False, True
        )
        outputs = [tf.constant(x, input.dtype) for x in (sequence, *(s[:, None] for s in states))]
        return (*outputs, *[None] * (5 - len(outputs)))

    monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", operation)
    monkeypatch.setattr(backend, "_on_gpu", lambda: True)
    x, states = data()
    mask = mask_of(mask_kind)
    for go_backwards in (False, True):
        layer = make(cell, return_sequences=True, return_state=True, go_backwards=go_backwards)
        given = states[: len(layer._state_names)]
        output, *final = to_numpy(layer(x, mask=mask, initial_state=given))
        sequence, _, truth = reference.run(
            CELLS[cell][2], x, given, weights_of(layer), mask, go_backwards
        )
        np.testing.assert_allclose(output, sequence, **TOLERANCE)
        for state, true_state in zip(final, truth, strict=True):
            np.testing.assert_allclose(state, true_state, **TOLERANCE)
        assert layer.implementation_report().path == "cuDNN"
        assert not layer.supports_jit


@pytest.mark.skipif(BACKEND != "torch", reason="torch")
def test_torch_nn_gives_the_same():
    import torch

    x, _ = data()
    layer = make("lstm", return_sequences=True)
    native = torch.nn.LSTM(FEATURES, UNITS, batch_first=True)
    kernel, recurrent_kernel, bias = (torch.tensor(w) for w in layer.get_weights())
    with torch.no_grad():
        native.weight_ih_l0.copy_(kernel.T)
        native.weight_hh_l0.copy_(recurrent_kernel.T)
        native.bias_ih_l0.copy_(bias)
        native.bias_hh_l0.zero_()
    np.testing.assert_allclose(
        to_numpy(layer(x))[0], native(torch.tensor(x))[0].detach().numpy(), atol=1e-6
    )

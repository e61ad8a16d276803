"""Masks that every layer takes and passes on, whatever else it is given, on every Keras."""

import keras
import numpy as np
import pytest
from keras import ops

import multibackend_lstm as m
from unit.tools import BACKEND, normal, only_tensorflow, to_numpy

RECURRENT = {
    "lstm": (lambda **k: m.LSTM(3, **k), (5, 6), (3,)),
    "lstm_ops": (lambda **k: m.LSTM(3, implementation="ops", **k), (5, 6), (3,)),
    "gru": (lambda **k: m.GRU(3, **k), (5, 3, 2), (3,)),
    "conv_lstm": (lambda **k: m.ConvLSTM1D(2, 2, padding="same", **k), (5, 3, 2), (3, 2)),
    "conv_lstm_ops": (
        lambda **k: m.ConvLSTM1D(2, 2, padding="same", unroll=True, **k),
        (5, 3, 2),
        (3, 2),
    ),
}
MASK = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 0, 0]], bool)


def states_of(layer, shape):
    return [normal(2, *shape, seed=seed) for seed in range(len(layer._state_names))]


@pytest.mark.parametrize("solution", ["reshape", "pre_reshape", "conv", "channelwise", "conv_lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padded_is_cut_in_every_model(solution, bidirectional):
    model = m.build_model(
        (None, 3, 5), solution, units=(6, 5), masking=-9.0, bidirectional=bidirectional
    )
    shape = model.input_shape[2:]
    short = normal(2, 4, *shape)
    padded = np.concatenate([short, np.full((2, 3, *shape), -9.0, "float32")], axis=1)
    got, expected = (model.predict(x, verbose=0) for x in (padded, short))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.abs(expected - model.predict(0 * short, verbose=0)).max() > 1e-3


@pytest.mark.parametrize("name", RECURRENT)
def test_the_mask_of_the_input_counts_beside_initial_states(name):
    """Keras gives it to no argument called `mask` if the input is not the only tensor."""
    make, shape, state_shape = RECURRENT[name]
    layer = make(return_sequences=True)
    layer.build((2, *shape))
    states = states_of(layer, state_shape)
    x = np.where(MASK.reshape(2, 5, *[1] * (len(shape) - 1)), normal(2, *shape), 0)
    x = x.astype("float32")
    expected = to_numpy(layer(x, mask=MASK, initial_state=states))
    masked = keras.layers.Masking()(x)
    masked = m.FlattenFeatures()(masked) if name == "gru" else masked
    np.testing.assert_allclose(to_numpy(layer(masked, initial_state=states)), expected, atol=1e-6)
    assert np.abs(expected - to_numpy(layer(x, initial_state=states))).max() > 1e-3

    inputs = keras.Input(shape)
    given = [keras.Input(state.shape[1:]) for state in states]
    outputs = layer(keras.layers.Masking()(inputs), initial_state=given)
    model = keras.Model([inputs, *given], outputs)
    np.testing.assert_allclose(model.predict([x, *states], verbose=0), expected, atol=1e-6)
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    np.testing.assert_allclose(again.predict([x, *states], verbose=0), expected, atol=1e-6)


def test_lengths_beside_the_mask_of_the_input_are_refused():
    masked = keras.layers.Masking()(np.ones((2, 5, 6), "float32"))
    with pytest.raises(ValueError, match="`lengths` stands in place of a mask"):
        m.LSTM(3)(masked, lengths=np.array([3, 2]))


LAYERS = {
    **{name: (make, shape) for name, (make, shape, _) in RECURRENT.items()},
    "bidirectional": (lambda **k: m.Bidirectional(m.GRU(3, **k)), (5, 3, 2)),
    "time_distributed": (lambda **k: m.TimeDistributed(keras.layers.Dense(2)), (5, 6)),
    "time_distributed_lstm": (lambda **k: m.TimeDistributed(m.LSTM(2)), (5, 3, 2)),
    "channelwise": (lambda **k: m.Channelwise(m.LSTM(2, **k), "stack"), (5, 3, 2)),
    "flatten": (lambda **k: m.FlattenFeatures(), (5, 3, 2)),
    "conv": (lambda **k: m.TimeDistributedConv(2, 2, normalization="batch"), (5, 3, 2)),
}


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_one_entry_a_step_masks_the_step(name, axes):
    """A mask of shape (batch, time, 1), which Keras takes for inputs of more features."""
    make, shape = LAYERS[name]
    layer, x = make(return_sequences=True), normal(2, *shape)
    axes = min(axes, len(shape) - (2 if name == "channelwise" else 1))
    finer = MASK.reshape(*MASK.shape, *[1] * axes)
    got, expected = (to_numpy(layer(x, mask=mask)) for mask in (finer, MASK))
    np.testing.assert_array_equal(got, expected)
    output_mask = layer.compute_mask(ops.convert_to_tensor(x), ops.convert_to_tensor(finer))
    output_mask = to_numpy(output_mask)
    np.testing.assert_array_equal(output_mask.reshape(2, 5), MASK)


def test_a_mask_of_other_axes_for_a_layer_that_takes_none():
    """As in the test of Keras's own TimeDistributed."""
    layer = m.TimeDistributed(keras.layers.Dense(2))
    mask = np.stack([MASK, MASK & False], axis=2)
    x = ops.convert_to_tensor(normal(2, 5, 3))
    assert layer(x, mask=mask).shape == (2, 5, 2)
    np.testing.assert_array_equal(
        to_numpy(layer.compute_mask(x, ops.convert_to_tensor(mask))), MASK
    )


# No steps, no samples


@only_tensorflow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("zero_output_for_mask", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_graph_that_meets_no_step(name, return_sequences, zero_output_for_mask, masked):
    """The output is zeros and the states are the initial ones, as where it is known before."""
    import tensorflow as tf

    if RECURRENT[name][0]().unroll:
        pytest.skip("unroll needs a known number of steps")
    make, shape, state_shape = RECURRENT[name]
    layer = make(
        return_sequences=return_sequences,
        return_state=True,
        zero_output_for_mask=zero_output_for_mask,
    )
    layer.build((None, None, *shape[1:]))
    states = states_of(layer, state_shape)
    signature = [
        tf.TensorSpec((None, None, *shape[1:])),
        tf.TensorSpec((None, None), "bool"),
        *[tf.TensorSpec((None, *state_shape)) for _ in states],
    ]

    @tf.function(input_signature=signature)
    def call(x, mask, *states):
        return layer(x, mask=mask if masked else None, initial_state=list(states))

    for time in (0, 2):
        x, mask = normal(2, time, *shape[1:]), np.ones((2, time), bool)
        graph = to_numpy(call(x, mask, *states))
        eager = to_numpy(layer(x, mask=mask if masked else None, initial_state=states))
        for got, expected in zip(graph, eager, strict=True):
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=1e-6)
        if time == 0:
            assert not graph[0].any()
            for got, expected in zip(graph[1:], states, strict=True):
                np.testing.assert_array_equal(got, expected)


EMPTY = {
    **LAYERS,
    "channelwise_max": (lambda **k: m.Channelwise(m.LSTM(2, **k), "max"), (5, 3, 2)),
    "channelwise_gru": (lambda **k: m.Channelwise(m.GRU(2, **k)), (5, 3, 2)),
    "distributed_conv": (lambda **k: m.TimeDistributed(keras.layers.Conv1D(2, 2)), (5, 3, 2)),
    "conv": (lambda **k: m.TimeDistributedConv(3, 2), (5, 3, 2)),
    "conv_max": (lambda **k: m.TimeDistributedConv(2, 2, reduce="max"), (5, 3, 2)),
    "conv_layer": (lambda **k: m.TimeDistributedConv(2, normalization="layer"), (5, 3, 2)),
    "conv_blocks": (
        lambda **k: m.TimeDistributedConv((2, 3), 2, pool_size=2, normalization="batch"),
        (5, 8, 2),
    ),
}


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=only_tensorflow)])
@pytest.mark.parametrize(("batch", "time"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("name", EMPTY)
def test_no_samples_and_no_steps_give_the_right_shape(name, return_sequences, batch, time, traced):
    make, shape = EMPTY[name]
    layer = make(return_sequences=return_sequences)
    x = np.zeros((batch, time, *shape[1:]), "float32")
    layer.build((None, None if BACKEND == "tensorflow" else time, *shape[1:]))
    if traced:
        import tensorflow as tf

        if getattr(layer, "unroll", False):
            pytest.skip("unroll needs a known number of steps")
        spec = tf.TensorSpec((None, None, *shape[1:]))

        @tf.function(input_signature=[spec])
        def run(x):
            weights = [v.value for v in layer.trainable_variables]
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            return y, tape.gradient(y, [x, *weights], unconnected_gradients="zero")

        got, (by_x, *by_weights) = run(x)
        assert by_x.shape == x.shape
        assert not any(np.any(gradient) for gradient in by_weights)
    else:
        got = layer(x)
    assert tuple(got.shape) == layer.compute_output_shape(x.shape)
    assert not to_numpy(got).any()

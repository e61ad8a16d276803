"""Bidirectional against both directions in NumPy, and against keras.layers.Bidirectional."""

import keras
import numpy as np
import pytest
from keras import ops

import multibackend_lstm as m
from unit import recurrent_reference as reference
from unit.tools import BACKEND, needs_gradients, normal, save_and_load, to_numpy

CELLS = {"lstm": (m.LSTM, keras.layers.LSTM), "gru": (m.GRU, keras.layers.GRU)}
STEPS = {"lstm": reference.lstm_step, "gru": reference.gru_step}
MASK = np.array([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


def truth_of(layer, cell, x, mask, return_sequences, states=None):
    """Output and final states of each direction, the output in the input's order of time."""
    results = []
    for direction, inner in enumerate((layer.forward_layer, layer.backward_layer)):
        count, units = len(inner._state_names), inner.units
        zeros = [np.zeros((len(x), units))] * count
        given = zeros if states is None else states[direction * count : (direction + 1) * count]
        sequence, last, final = reference.run(
            STEPS[cell], x, given, inner.get_weights(), mask, direction == 1, return_sequences
        )
        sequence = sequence[:, ::-1] if direction else sequence
        results.append((sequence if return_sequences else last, final))
    return results


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("merge_mode", ["concat", "sum", "ave", "mul", None])
@pytest.mark.parametrize("cell", CELLS)
def test_values(cell, merge_mode, return_sequences, masked):
    x, mask = normal(3, 5, 3, 2), MASK if masked else None
    inner = CELLS[cell][0](4, return_sequences=return_sequences, return_state=True)
    layer = m.Bidirectional(inner, merge_mode=merge_mode)
    got = to_numpy(layer(x, mask=mask))
    (forward, forward_states), (backward, backward_states) = truth_of(
        layer, cell, x, mask, return_sequences
    )
    merged = {
        "concat": [np.concatenate([forward, backward], -1)],
        "sum": [forward + backward],
        "ave": [(forward + backward) / 2],
        "mul": [forward * backward],
        None: [forward, backward],
    }[merge_mode]
    expected = [*merged, *forward_states, *backward_states]
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == tuple(a.shape for a in got)


@pytest.mark.parametrize("cell", CELLS)
def test_states_and_lengths(cell):
    """With states Keras itself gives the input's mask to no layer."""
    x = normal(3, 5, 6)
    layer = m.Bidirectional(CELLS[cell][0](4, return_sequences=True))
    layer.build(x.shape)
    count = 2 * len(layer.forward_layer._state_names)
    states = [normal(3, 4, seed=seed) for seed in range(count)]
    lengths = np.array([5, 2, 0])
    mask = np.arange(5) < lengths[:, None]
    truth = [out for out, _ in truth_of(layer, cell, x, mask, True, states)]
    marked = np.where(mask[..., None], x, 0.0).astype("float32")
    for got in (
        layer(x, initial_state=states, mask=mask),
        layer(x, initial_state=states, lengths=lengths),
        layer(keras.layers.Masking()(marked), initial_state=states),
    ):
        np.testing.assert_allclose(to_numpy(got), np.concatenate(truth, -1), atol=1e-5)
    with pytest.raises(ValueError, match=r"`lengths` needs `multibackend_lstm\.LSTM` or `GRU`"):
        m.Bidirectional(CELLS[cell][1](4))(x, lengths=lengths)


@pytest.mark.parametrize("cell", CELLS)
def test_masks_go_through_stacks(cell, recwarn):
    inputs = keras.Input((None, 3, 2))
    x = keras.layers.Masking(-9.0)(inputs)
    x = m.FlattenFeatures()(x)
    for _ in range(2):
        x = m.Bidirectional(CELLS[cell][0](4, return_sequences=True), merge_mode="sum")(x)
    model = keras.Model(inputs, m.Bidirectional(CELLS[cell][0](3))(x))
    short = normal(2, 4, 3, 2)
    padded = np.concatenate([short, np.full((2, 3, 3, 2), -9, "float32")], axis=1)
    np.testing.assert_allclose(
        model.predict(padded, verbose=0), model.predict(short, verbose=0), atol=1e-6
    )
    assert not [w for w in recwarn if "mask" in str(w.message)]


@pytest.mark.parametrize("merge_mode", ["concat", None])
@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_mask_of_each_output(return_sequences, return_state, merge_mode):
    inner = m.GRU(2, return_sequences=return_sequences, return_state=return_state)
    layer = m.Bidirectional(inner, merge_mode=merge_mode)
    x = ops.convert_to_tensor(normal(3, 5, 2, 2))
    finer = ops.convert_to_tensor(np.stack([MASK, MASK & False], axis=2))
    masks = keras.tree.flatten(layer.compute_mask(x, finer))
    masks = [None if mask is None else ops.convert_to_numpy(mask) for mask in masks]
    outputs = 1 if merge_mode else 2
    assert len(masks) == outputs + (2 if return_state else 0)
    for mask in masks[:outputs]:
        assert (mask is not None) == return_sequences
        if mask is not None:
            np.testing.assert_array_equal(mask, MASK)
    assert masks[outputs:] == [None] * len(masks[outputs:])


@pytest.mark.parametrize("cell", CELLS)
def test_config_weights_and_files_go_both_ways(cell, tmp_path):
    ours, theirs = CELLS[cell]
    x = normal(2, 5, 6)
    layer = m.Bidirectional(ours(4, return_sequences=True), merge_mode="ave")
    rival = keras.layers.Bidirectional(theirs(4, return_sequences=True), merge_mode="ave")
    for each in (layer, rival):
        each.build(x.shape)
    assert [w.path.split("/")[2:] for w in layer.weights] == [
        w.path.split("/")[2:] for w in rival.weights
    ]
    layer.set_weights(rival.get_weights())
    np.testing.assert_allclose(to_numpy(layer(x)), to_numpy(rival(x)), atol=1e-6)

    config = rival.get_config()
    again = m.Bidirectional.from_config({**config, "name": "again"})
    assert again.merge_mode == "ave"
    assert type(again.forward_layer) is theirs
    assert set(config) == set(layer.get_config())

    models = [keras.Sequential([keras.Input((None, 6)), each]) for each in (layer, rival)]
    for one, other in (models, models[::-1]):
        one.save_weights(tmp_path / "model.weights.h5")
        other.set_weights([0 * w for w in other.get_weights()])
        other.load_weights(tmp_path / "model.weights.h5")
        np.testing.assert_allclose(
            other.predict(x, verbose=0), one.predict(x, verbose=0), atol=1e-6
        )
    loaded = save_and_load(models[0], tmp_path)
    assert type(loaded.layers[-1]) is m.Bidirectional
    assert type(loaded.layers[-1].backward_layer) is ours
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), models[0].predict(x, verbose=0))


def test_backward_layer_of_other_units():
    layer = m.Bidirectional(m.LSTM(3), backward_layer=m.GRU(5, go_backwards=True))
    assert layer(normal(2, 4, 6)).shape == layer.compute_output_shape((2, 4, 6)) == (2, 8)
    layer = m.Bidirectional(m.LSTM(3), "sum", backward_layer=m.LSTM(5, go_backwards=True))
    with pytest.raises(ValueError, match=r"Received 3 forwards and 5 backwards"):
        layer(normal(2, 4, 6))


def test_kernels_and_use_cudnn_in_both_directions():
    layer = m.Bidirectional(m.LSTM(3, use_cudnn=False))
    layer(normal(2, 4, 3, 2))
    for direction in (layer.forward_layer, layer.backward_layer):
        assert direction.use_cudnn is False
        report = direction.implementation_report()
        assert report.implementation == ("ops" if BACKEND == "numpy" else "native")
    layer = m.Bidirectional(m.LSTM(3))
    assert [layer.forward_layer.use_cudnn, layer.backward_layer.use_cudnn] == ["auto", "auto"]
    layer = m.Bidirectional(m.LSTM(3, implementation="ops"))
    layer(normal(2, 4, 3, 2))
    assert layer.backward_layer.implementation_report().path == "keras.ops"


@pytest.mark.parametrize("value", ["auto", True, False])
def test_use_cudnn_reads_as_it_was_given(value):
    assert m.LSTM(3, use_cudnn=value).use_cudnn is value
    # But not to a wrapper that would call a kernel past the layer's flattening.
    wrapped = keras.layers.Bidirectional(m.LSTM(3, use_cudnn=value))
    assert wrapped.forward_layer.use_cudnn is False
    assert wrapped.forward_layer.implementation == ("native" if value is True else "auto")


@needs_gradients
def test_stateful_in_predict_and_fit():
    x = normal(2, 6, 3)
    layer = m.Bidirectional(m.GRU(2, stateful=True), merge_mode=None)
    model = keras.Sequential([keras.Input(batch_shape=(2, None, 3)), layer])
    whole = m.GRU(2)
    whole.build(x.shape)
    whole.set_weights(layer.forward_layer.get_weights())
    model.predict(x[:, :4], batch_size=2, verbose=0)
    got, _ = model.predict(x[:, 4:], batch_size=2, verbose=0)
    np.testing.assert_allclose(got, to_numpy(whole(x)), atol=1e-6)


def test_keras_bidirectional_around_our_lstm_is_right_or_refused():
    """Keras 3.16 drops the mask behind its Bidirectional (keras#23235)."""
    layer = keras.layers.Bidirectional(m.LSTM(3, return_sequences=True))
    x = normal(3, 5, 3, 2)
    if layer.supports_masking:
        got = layer(x, mask=MASK)
        truth = [out for out, _ in truth_of(layer, "lstm", x, MASK, True)]
        np.testing.assert_allclose(to_numpy(got), np.concatenate(truth, -1), atol=1e-5)
    else:
        with pytest.raises(ValueError, match=r"Use `multibackend_lstm\.Bidirectional`"):
            layer(x, mask=MASK)
        assert layer(x).shape == (3, 5, 6)

"""ConvLSTM1D, 2D and 3D give what those of Keras give, and take the fast path where they can."""

import keras
import numpy as np
import pytest

from multibackend_lstm.layers import ConvLSTM1D, ConvLSTM2D, ConvLSTM3D
from unit import recurrent_reference, references
from unit.tools import gradients, needs_gradients, only_tensorflow

PAIRS = {
    1: (ConvLSTM1D, keras.layers.ConvLSTM1D),
    2: (ConvLSTM2D, keras.layers.ConvLSTM2D),
    3: (ConvLSTM3D, keras.layers.ConvLSTM3D),
}
SHAPES = {1: (2, 6, 5, 3), 2: (2, 4, 4, 3, 2), 3: (2, 3, 3, 2, 4, 2)}


def pair(rank, *args, **options):
    """Both layers with the same random weights, and an input."""
    x = np.random.default_rng(0).normal(size=SHAPES[rank]).astype("float32")
    ours, theirs = (kind(*args, **options) for kind in PAIRS[rank])
    rng = np.random.default_rng(1)
    for layer in (ours, theirs):
        layer.build(x.shape)
    weights = [rng.normal(size=w.shape).astype("float32") * 0.5 for w in ours.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs, x


def arrays(outputs):
    """NumPy arrays of an output or several."""
    return [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]


@pytest.fixture
def keras_path_closed(monkeypatch):
    """An error where the Keras layer would run."""

    def refuse(*args, **kwargs):
        raise AssertionError("the Keras layer ran")

    def close(layer):
        monkeypatch.setattr(type(layer).__bases__[1], "call", refuse)

    return close


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "same", "return_sequences": True},
        {"padding": "same", "return_state": True, "use_bias": False},
        {"strides": 2, "go_backwards": True, "return_sequences": True, "return_state": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", PAIRS)
def test_values_are_those_of_keras(rank, options, keras_path_closed):
    ours, theirs, x = pair(rank, 3, 2, **options)
    expected = arrays(theirs(x))
    keras_path_closed(ours)
    for mine, other in zip(arrays(ours(x)), expected, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-6)


def test_dilation():
    ours, theirs, x = pair(1, 3, 2, dilation_rate=2, padding="same")
    np.testing.assert_allclose(*(arrays(layer(x))[0] for layer in (ours, theirs)), atol=2e-6)


def test_training_is_that_of_keras():
    ours, theirs, x = pair(1, 3, 2)
    y = np.random.default_rng(2).normal(size=(2, 4, 3)).astype("float32")
    weights = []
    for layer in (ours, theirs):
        model = keras.Sequential([keras.Input((None, *x.shape[2:])), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        for _ in range(3):
            model.train_on_batch(x, y)
        weights.append(layer.get_weights())
    for mine, other in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"activation": "relu"}, {}),
        ({"recurrent_activation": "hard_sigmoid"}, {}),
        ({"padding": "same"}, {"initial_state": [np.ones((2, 5, 3), "float32")] * 2}),
    ],
    ids=str,
)
def test_a_loop_of_the_cell_serves_the_rest(options, arguments):
    ours, theirs, x = pair(1, 3, 2, **options)
    for mine, other in zip(*(arrays(m(x, **arguments)) for m in (ours, theirs)), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    report = ours.implementation_report()
    assert report.path == "the cell of keras.layers.ConvLSTM1D in a loop"
    assert report.refused


def test_many_positions_are_left_to_keras(keras_path_closed):
    layer = ConvLSTM2D(8, 3, padding="same")
    layer.build((None, 3, 16, 16, 2))
    keras_path_closed(layer)
    with pytest.raises(AssertionError, match="the Keras layer ran"):
        layer(np.zeros((1, 3, 16, 16, 2), "float32"))
    assert "too many positions" in layer.implementation_report().refused


def test_dropout_is_left_to_keras_in_training_alone(keras_path_closed):
    layer = ConvLSTM1D(3, 2, dropout=0.5)
    x = np.ones(SHAPES[1], "float32")
    layer.build(x.shape)
    keras_path_closed(layer)
    layer(x, training=False)
    assert layer.implementation_report().implementation == "native"
    with pytest.raises(AssertionError, match="the Keras layer ran"):
        layer(x, training=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.5}, {"activation": "relu"}, {"stateful": True}], ids=str
)
def test_the_report_is_known_before_the_call(options, training):
    layer = ConvLSTM1D(2, 3, **options)
    for time in (4, 0):
        before = layer.implementation_report((2, time, 5, 3), training=training)
        layer(np.zeros((2, time, 5, 3), "float32"), training=training)
        assert layer.implementation_report() == before


@pytest.mark.parametrize("rank", PAIRS)
def test_kept_matrices_are_those_of_the_first_call(rank):
    """Nothing is computed from the weights after it, as an export needs it."""
    layer, _, x = pair(rank, 2, 2, padding="same", use_bias=False)
    expected = arrays(layer(x))[0]
    layer.keep_matrices()
    np.testing.assert_array_equal(arrays(layer(x))[0], expected)
    layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    kept = layer.implementation_report().implementation == "native"
    np.testing.assert_array_equal(arrays(layer(x))[0], expected if kept else 0 * expected)


def test_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input(SHAPES[1][1:]), ConvLSTM1D(3, 2)])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is ConvLSTM1D
    x = np.ones(SHAPES[1], "float32")
    np.testing.assert_array_equal(*(m.predict(x, verbose=0) for m in (model, loaded)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    ours, theirs, x = pair(1, 3, 2, dtype=policy, return_sequences=True)
    mine, other = ours(x), theirs(x)
    assert mine.dtype == other.dtype
    for a, b in zip(arrays(mine), arrays(other), strict=True):
        np.testing.assert_allclose(a.astype("float32"), b.astype("float32"), atol=0.05)


# Masks. Keras 3.15 fails with one on JAX, or gives other numbers there, so the truth is NumPy's.


def mask_for(shape):
    """A left-padded sample and one with a hole, or a hole and a fully masked sample."""
    mask = np.ones(shape[:2], bool)
    mask[0, 1] = False
    mask[1] = False
    return {"left": np.flip(np.tri(*shape[:2], dtype=bool), 1), "rows": mask}


def truth_of(layer, x, mask, states=None):
    """Sequence, last output and states in float64; everything per step and position."""
    kernel, recurrent_kernel, *bias = layer.get_weights()
    positions = layer.compute_output_shape(x.shape)
    positions = positions[0] if layer.return_state else positions
    positions = positions[2 if layer.return_sequences else 1 :]

    def step(flat_x, flat_states, weights):
        h, c = (state.reshape(len(x), *positions) for state in flat_states)
        z = references.convolve(
            flat_x.reshape(len(x), *x.shape[2:]),
            kernel,
            bias[0] if bias else 0,
            layer.strides,
            layer.padding,
            layer.dilation_rate,
        )
        z = z + references.convolve(h, recurrent_kernel, padding="same")
        i, f, g, o = np.split(z, 4, axis=-1)
        c = references.sigmoid(f) * c + references.sigmoid(i) * np.tanh(g)
        h = references.sigmoid(o) * np.tanh(c)
        return [state.reshape(len(x), -1) for state in (h, c)]

    width = int(np.prod(positions))
    states = states or [np.zeros((len(x), width))] * 2
    sequence, last, states = recurrent_reference.run(
        step, x, states, [], mask, layer.go_backwards, layer.zero_output_for_mask
    )
    leading = x.shape[: 2 if layer.return_sequences else 1]
    output = sequence if layer.return_sequences else last
    return [
        output.reshape(*leading, *positions),
        *(state.reshape(len(x), *positions) for state in states),
    ]


# Dropout with a rate of almost 0 sends the layer to Keras's cell and leaves the numbers.
PATHS = {"native": {}, "ops": {"dropout": 1e-9}}


@pytest.mark.parametrize("kind", ["left", "rows"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same", "return_sequences": True},
        {"use_bias": False, "go_backwards": True},
        {"strides": 2, "return_sequences": True, "zero_output_for_mask": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rank", PAIRS)
def test_masked_values(rank, path, options, kind):
    layer, _, x = pair(rank, 3, 2, return_state=True, **options, **PATHS[path])
    mask = mask_for(x.shape)[kind]
    dirty = x.copy()
    dirty[~mask] = np.nan
    outputs = arrays(layer(dirty, mask=mask, training=path == "ops"))
    for output, truth in zip(outputs, truth_of(layer, x, mask), strict=True):
        np.testing.assert_allclose(output, truth, atol=2e-6)
    assert layer.implementation_report().implementation == path


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras is right there alone")
@pytest.mark.parametrize("rank", PAIRS)
def test_masked_values_are_those_of_keras_on_tensorflow(rank):
    ours, theirs, x = pair(rank, 3, 2, return_sequences=True, return_state=True)
    for mask in mask_for(x.shape).values():
        outputs = (arrays(layer(x, mask=mask)) for layer in (ours, theirs))
        for mine, other in zip(*outputs, strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-6)


@pytest.mark.parametrize("unroll", [False, True])
def test_masked_with_an_initial_state(unroll):
    layer, _, x = pair(1, 3, 2, padding="same", return_state=True, unroll=unroll)
    mask = mask_for(x.shape)["rows"]
    states = [np.random.default_rng(n).normal(size=(2, 5, 3)).astype("float32") for n in (2, 3)]
    outputs = arrays(layer(x, mask=mask, initial_state=states))
    for output, truth in zip(
        outputs, truth_of(layer, x, mask, [s.reshape(2, -1) for s in states]), strict=True
    ):
        np.testing.assert_allclose(output, truth, atol=2e-6)


def test_a_mask_with_more_axes_is_valid_where_any_entry_is():
    layer, _, x = pair(1, 3, 2, return_sequences=True)
    mask = mask_for(x.shape)["rows"]
    finer = np.zeros(x.shape[:3], bool)
    finer[:, :, 1] = mask
    np.testing.assert_array_equal(*(arrays(layer(x, mask=m))[0] for m in (mask, finer)))
    assert layer.compute_mask(x, keras.ops.convert_to_tensor(finer)).shape == mask.shape
    with pytest.raises(ValueError, match="mask must have the first axes"):
        layer(x, mask=mask[:, 1:])


@needs_gradients
def test_masked_gradients_of_both_paths_agree():
    native, _, x = pair(1, 2, 2, padding="same", return_sequences=True)
    looped, _, _ = pair(1, 2, 2, padding="same", return_sequences=True, unroll=True)
    mask = mask_for(x.shape)["rows"]
    found = [gradients(layer, x, mask=mask) for layer in (native, looped)]
    for got, expected in zip(*(keras.tree.flatten(f) for f in found), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert np.any(expected)
    assert [layer.implementation_report().implementation for layer in (native, looped)] == [
        "native",
        "ops",
    ]


@needs_gradients
@pytest.mark.parametrize("options", [{}, {"activation": "softsign"}], ids=str)
def test_training_with_padding_is_training_without(options):
    """In one graph with an unknown number of steps, on either path."""
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")
    padded = np.concatenate([x, np.zeros((2, 3, 5, 3), "float32")], axis=1)
    y = np.random.default_rng(2).normal(size=(2, 4, 3)).astype("float32")
    inputs = keras.Input((None, 5, 3))
    masked = keras.layers.Masking()(inputs)
    hidden = ConvLSTM1D(3, 2, padding="same", return_sequences=True, **options)(masked)
    model = keras.Model(inputs, ConvLSTM1D(3, 2, **options)(hidden))
    start, trained = model.get_weights(), []
    model.compile(keras.optimizers.SGD(0.1), "mse")
    for data in (x, padded):
        model.set_weights(start)
        for _ in range(3):
            model.train_on_batch(data, y)
        trained.append(model.get_weights())
    for mine, other, before in zip(*trained, start, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
        assert np.abs(mine - before).max() > 1e-4


def test_a_call_without_steps_keeps_the_states_it_is_given():
    layer = ConvLSTM1D(2, 3, stateful=True, return_state=True)
    layer.build((1, None, 5, 1))
    given = [np.full((1, 3, 2), value, "float32") for value in (0.5, -0.25)]
    nothing = np.zeros((1, 0, 5, 1), "float32")
    layer(nothing, initial_state=given)
    output, *states = arrays(layer(nothing))
    assert not output.any()
    for got, expected in zip(states, given, strict=True):
        np.testing.assert_array_equal(got, expected)


@only_tensorflow
@pytest.mark.parametrize("options", [{}, {"activation": "silu"}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_graph_whose_batch_turns_out_empty(options, masked):
    import tensorflow as tf

    layer = ConvLSTM1D(2, 3, return_sequences=True, return_state=True, **options)
    layer.build((None, None, 5, 3))

    @tf.function(input_signature=[tf.TensorSpec((None, None, 5, 3)), tf.TensorSpec((None, 4))])
    def run(x, valid):
        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            outputs = layer(x, mask=tf.cast(valid, "bool") if masked else None)
            loss = tf.add_n([tf.reduce_sum(y) for y in outputs])
        return outputs, tape.gradient(loss, variables)

    for batch in (0, 2):
        x = np.random.default_rng(0).normal(size=(batch, 4, 5, 3)).astype("float32")
        outputs, by_weights = run(x, np.ones((batch, 4), "float32"))
        shapes = [(batch, 4, 3, 2), (batch, 3, 2), (batch, 3, 2)]
        assert [tuple(y.shape) for y in outputs] == shapes
        assert all((np.abs(g).max() > 0) == (batch > 0) for g in by_weights)
        for got, expected in zip(outputs, arrays(layer(x)), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)

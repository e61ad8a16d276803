"""to_step_model: step by step it comes to what the model returns for the series so far."""

import keras
import numpy as np
import pytest
from keras import ops

from multibackend_lstm import (
    GRU,
    LSTM,
    SOLUTIONS,
    Bidirectional,
    Channelwise,
    FlattenFeatures,
    TimeDistributed,
    build_deep_conv_lstm,
    build_model,
    flatten_features,
    to_step_model,
)
from multibackend_lstm.runtimes.backend_runtime import active
from unit.tools import assert_close, normal, to_numpy

L = keras.layers
MARK = -9.0
STEPS = 9


def samples(masked=True):
    """A batch of 3 series of 4 channels with 5 features; with missing steps and channels."""
    x = normal(3, STEPS, 4, 5)
    if masked:
        x[0, 3:5] = x[1, :2] = x[2, -1] = MARK
        x[2, 5, 1] = MARK
    return x


def advance(step, x, **given):
    """What the step model gives after each step, by name, without the states."""
    state = {k.name: np.zeros((len(x), *k.shape[1:]), k.dtype) for k in step.inputs}
    example = {n: ops.convert_to_tensor(v) for n, v in {**state, **given}.items()}
    run = compiled(step, example)
    (name,) = [name for name in state if f"next_{name}" not in step.output and name not in given]
    found = []
    for t in range(x.shape[1]):
        inputs = {**state, **given, name: x[:, t]}
        outputs = run(inputs)
        state |= {n: outputs[f"next_{n}"] for n in state if f"next_{n}" in outputs}
        found.append({n: v for n, v in outputs.items() if not n.startswith("next_")})
    return found


def compiled(model, example):
    """The model as a compiled function, quicker on JAX, that returns arrays."""
    run = active().compiled_inference(model, example)
    output = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    pack, flatten = keras.tree.pack_sequence_as, keras.tree.flatten
    return lambda inputs: pack(output, to_numpy(run(*flatten(inputs))))


def predict(model, inputs):
    """The model's outputs as arrays."""
    inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
    return compiled(model, inputs)(inputs)


def check(model, x, first=1, **given):
    """All of `advance` against the model on the series so far, of which `first` is the shortest."""
    found = advance(to_step_model(model), x, **given)
    for t in (first, x.shape[1]):
        inputs = [x[:, :t] if k.name not in given else given[k.name] for k in model.inputs]
        expected = predict(model, inputs[0] if len(inputs) == 1 else inputs)
        if len(model.output_shape) > 2 and model.output_shape[1] is None:
            expected = expected[:, -1]
        (actual,) = found[t - 1].values()
        assert_close(actual, expected)
    for outputs in found[: first - 1]:
        assert np.isnan([*outputs.values()]).all()
    return found


def sequential(*layers, shape=(None, 4, 5)):
    return keras.Sequential([keras.Input(shape), *layers])


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_every_solution_stacked_masked_and_normalised(solution):
    options = {"units": (4, 3), "normalization": (0.5, 2.0), "masking": MARK, "dropout": 0.3}
    x = samples()
    if solution == "pre_reshape":
        x = flatten_features(x)
    check(build_model((None, *x.shape[2:]), solution, outputs=2, **options), x)


def test_deep_conv_lstm_says_nothing_until_its_convolutions_have_seen_enough():
    options = {"filters": 3, "units": (4, 3), "kernel_size": 3, "convolutions": 2}
    check(build_deep_conv_lstm((None, 4, 5), outputs=3, **options), samples(False), first=5)


MODELS = {
    "causal_and_valid_convolutions": lambda: sequential(
        FlattenFeatures(),
        L.Conv1D(4, 3, padding="causal", dilation_rate=2),
        L.BatchNormalization(),
        L.Conv1D(3, 2, activation="relu"),
        L.Conv1D(3, 2, padding="causal"),
        L.LSTM(4, return_sequences=True),
        L.GRU(3),
    ),
    "keras_layers_in_a_row": lambda: sequential(
        FlattenFeatures(),
        L.LSTM(4, return_sequences=True, unroll=False),
        L.GRU(3, return_sequences=True, reset_after=False),
        L.RNN(L.GRUCell(3), return_sequences=True),
        L.SimpleRNN(3, return_sequences=True),
        L.LayerNormalization(),
        L.TimeDistributed(L.Dense(2, "tanh")),
    ),
    "zeros_before_the_series": lambda: sequential(
        L.ZeroPadding2D(((4, 0), (1, 1))),
        L.Conv2D(3, (3, 3), dilation_rate=(2, 1)),
        L.MaxPooling2D((1, 2)),
        L.AveragePooling2D((1, 2)),
        L.Reshape((-1, 3)),
        L.GlobalMaxPooling1D(),
    ),
    "means_of_all_steps": lambda: sequential(
        L.ConvLSTM1D(3, 2, return_sequences=True), L.GlobalAveragePooling2D(), L.Dense(2)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_layers(name):
    first = 2 if name == "causal_and_valid_convolutions" else 1
    model = MODELS[name]()
    for weight in model.weights:  # biases and moving statistics too
        weight.assign(np.abs(normal(*weight.shape)) * 0.5 + 0.1)
    check(model, samples(False), first)


MASKED = {
    "outputs_of_missing_steps_are_zeros": lambda: sequential(
        L.Masking(MARK),
        FlattenFeatures(),
        LSTM(4, return_sequences=True, zero_output_for_mask=True),
        TimeDistributed(L.Dense(3)),
        GRU(3, return_sequences=True),
    ),
    "the_mean_of_what_is_there": lambda: sequential(
        L.Masking(MARK), FlattenFeatures(), L.Dropout(0.5), L.GlobalAveragePooling1D()
    ),
    "a_mask_of_each_channel": lambda: sequential(
        L.Masking(MARK),
        Channelwise(GRU(3, return_sequences=True), merge="stack"),
        Channelwise(LSTM(2), merge="max"),
    ),
}


@pytest.mark.filterwarnings("ignore:Layer .* does not support masking")
@pytest.mark.parametrize("name", MASKED)
def test_masked_layers(name):
    x = samples()
    x[1, 0] = 1.0  # the mean of no step at all is NaN
    check(MASKED[name](), x)


def graph():
    """Branches, operations, a layer that is called twice, a model in the model, an input a step."""
    inputs, about = keras.Input((None, 4, 5), name="x"), keras.Input((2,), name="about")
    shared = L.LSTM(4, return_sequences=True)
    first = shared(L.Dense(4)(FlattenFeatures()(inputs)))
    second = shared(first) * 0.5 + ops.tanh(first)
    inner = sequential(L.GRU(3, return_sequences=True), L.Dense(2), shape=(None, 4))
    joined = L.Concatenate()([inner(second), first])
    ends = [joined[:, -1], ops.mean(joined, axis=1), ops.max(joined, axis=1), L.Dense(2)(about)]
    return keras.Model([inputs, about], L.Concatenate()([LSTM(3)(joined), *ends]), name="graph")


def test_a_graph():
    check(graph(), samples(False), about=normal(3, 2))


def swish(x):
    return x * ops.sigmoid(1.7 * x)


def test_an_activation_of_the_users_own():
    layers = FlattenFeatures(), L.Dense(2, activation=swish), L.Activation(ops.abs), L.LSTM(2)
    check(sequential(*layers), samples(False))


def test_what_follows_the_whole_series_runs_whole_at_each_step():
    inputs = keras.Input((None, 4, 5))
    repeated = L.Masking(0.0)(L.RepeatVector(3)(LSTM(4)(inputs)))
    outputs = L.TimeDistributed(L.Dense(2))(L.GRU(3, return_sequences=True)(repeated))
    check(keras.Model(inputs, outputs), samples(False))


def test_it_saves_and_loads_in_safe_mode_and_keeps_names(tmp_path):
    step = to_step_model(build_model((None, 4, 5), "channelwise", units=3, masking=MARK))
    step.save(tmp_path / "step.keras")
    loaded = keras.models.load_model(tmp_path / "step.keras")
    assert [x.shape for x in loaded.inputs] == [x.shape for x in step.inputs]
    assert_close(advance(loaded, samples())[-1], advance(step, samples())[-1])


def test_it_is_made_of_a_loaded_model_too(tmp_path):
    model = build_model((None, 4, 5), "reshape", units=3, masking=MARK, normalization=(0.0, 2.0))
    model.save(tmp_path / "model.keras")
    check(keras.models.load_model(tmp_path / "model.keras"), samples())


def test_the_model_is_left_as_it_was():
    model = build_model((None, 4, 5), "conv", units=3)
    before = [w.value for w in model.weights]
    step = to_step_model(model)
    step.weights[0].assign(np.zeros(step.weights[0].shape))
    assert_close([w.value for w in model.weights], before, atol=0, rtol=0)
    assert model.layers[-1].output is model.outputs[0]


def test_lengths_fall_away():
    model = build_model((None, 4, 5), "reshape", units=3, lengths=True)
    step = to_step_model(model)
    assert "lengths" not in [x.name for x in step.inputs]
    x = samples(False)
    expected = model([x, np.full(3, STEPS, "int32")])
    assert_close([*advance(step, x)[-1].values()], [expected])


def test_half_precision_computes_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    model = build_model((None, 4, 5), "reshape", units=3)
    keras.config.set_dtype_policy("float32")
    single = build_model((None, 4, 5), "reshape", units=3)
    single.set_weights([ops.convert_to_numpy(w.value) for w in model.weights])
    step = to_step_model(model)
    assert {x.dtype for x in step.outputs} == {"float32"}
    x = samples(False)
    assert_close([*advance(step, x)[-1].values()], [single(x)])


def test_embedded_categories_and_a_dict_of_outputs():
    inputs = keras.Input((None,), dtype="int32", name="words")
    x = L.Embedding(5, 3, mask_zero=True)(inputs)
    model = keras.Model(inputs, {"end": LSTM(2)(x), "all": L.Dense(2)(x)})
    given = np.array([[1, 2, 0], [0, 3, 4]], "int32")
    found, expected = advance(to_step_model(model), given)[-1], to_numpy(model(given))
    assert_close(found, {"all": expected["all"][:, -1], "end": expected["end"]})


def test_names_are_those_that_artefacts_have():
    """So that a state goes from the Keras backend to any of them."""
    inputs = keras.Input((None, 3), name="my input")
    x = L.LSTM(2, name="my lstm", return_sequences=True)(inputs)
    step = to_step_model(keras.Model(inputs, {"end-1": x[:, -1], "end 2": L.Dense(1)(x)}))
    assert [x.name for x in step.inputs] == ["my_input", "my_lstm_c", "my_lstm_h"]
    assert {*step.output} == {"end_1", "end_2", "next_my_lstm_h", "next_my_lstm_c"}


REFUSED = {
    "backward half": lambda x: Bidirectional(LSTM(2))(x),
    "go_backwards=True": lambda x: L.LSTM(2, go_backwards=True)(x),
    "reads all steps": lambda x: L.Attention()([x, x]),
    "later ones too": lambda x: L.MultiHeadAttention(1, 2)(x, x),
    "is centred: each step reads 1 later": lambda x: L.Conv1D(2, 3, padding="same")(x),
    "strides of 2": lambda x: L.Conv1D(2, 2, strides=2)(x),
    "strides of 3 along": lambda x: L.AveragePooling1D(3)(x),
    "channels_first": lambda x: L.MaxPooling1D(2, data_format="channels_first")(x),
    "one vector of all steps": lambda x: L.Flatten()(x),
    "mean and variance": lambda x: L.GroupNormalization(1)(x),
    "axis=[1] runs along time": lambda x: L.LayerNormalization(axis=1)(x),
    "axis=-2 runs along": lambda x: L.Concatenate(axis=-2)([x, x]),
    "a slope for each step": lambda x: L.PReLU()(x),
    "several steps of one": lambda x: L.UpSampling1D(2)(x),
    "moves the axis of time": lambda x: L.Permute((2, 1))(x),
    "from step to step": lambda x: L.Reshape((10, 3))(x),
    "behind the series": lambda x: L.Conv1D(2, 3)(L.ZeroPadding1D(1)(x)),
    "only go to a convolution": lambda x: L.Dense(2)(L.ZeroPadding1D((2, 0))(x)),
    "more zeros": lambda x: L.Conv1D(2, 2)(L.ZeroPadding1D((2, 0))(x)),
    "starts from states": lambda x: L.GRU(3)(x, initial_state=L.GRU(3)(x)),
    "training=True": lambda x: L.Dense(2)(L.Dropout(0.5)(x, training=True)),
    "change every earlier step": lambda x: x * L.RepeatVector(6)(L.LSTM(5)(x)),
    "takes 0": lambda x: x[:, 0],
    "differs from step to step": lambda x: x + np.arange(30.0).reshape(1, 6, 5),
    "not known whether it treats": lambda x: ops.flip(x, axis=1),
    "output of its StackedRNNCells": lambda x: L.RNN([L.LSTMCell(2), L.LSTMCell(2)])(x),
    "its activation `<lambda>` reads other steps": lambda x: L.Dense(
        2, activation=lambda y: y - ops.mean(y, axis=1, keepdims=True)
    )(x),
    "its activation `tolist` may do anything": lambda x: L.Activation(np.ndarray.tolist)(x),
    "takes all steps together": lambda x: ops.softmax(x, axis=None),
    "with `initial`": lambda x: ops.max(x, axis=1, initial=2.0),
    "constant of it differs": L.Rescaling(np.ones((6, 5)).tolist()),
    "function may do anything": lambda x: L.Lambda(lambda y: y, output_shape=(6, 5))(x),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_stream_is_refused_with_the_reason(reason):
    inputs = keras.Input((6, 5))
    outputs = REFUSED[reason](inputs)
    with pytest.raises(ValueError, match="cannot run step by step") as raised:
        to_step_model(keras.Model(inputs, outputs))
    assert reason in str(raised.value)


class Reversed(L.Dense):
    """A subclass may do anything."""

    def call(self, inputs):
        return super().call(ops.flip(inputs, axis=1))


class Hidden(keras.Model):
    """Its layers cannot be seen."""

    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sequential(Reversed(2), shape=(6, 5)), "Reversed cannot run step by step"),
        (Hidden, "has a `call` of its own"),
        (lambda: keras.Sequential([L.Dense(2)]), "is not built"),
        (lambda: L.Dense(2), "must be a keras.Model. Received Dense"),
        (lambda: sequential(L.Dense(2), shape=(5,)), "no input that is a series"),
    ],
)
def test_what_is_no_model_of_series_is_refused(make, words):
    with pytest.raises(ValueError, match="to_step_model") as raised:
        to_step_model(make())
    assert words in str(raised.value)

"""upgrade: by class, by weights, and by numbers, against the model of Keras's layers."""

import json
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import multibackend_lstm
from multibackend_lstm import upgrade
from multibackend_lstm.layers.dropout import drawing_otherwise
from multibackend_lstm.layers.wrapping import accepts, sublayers
from multibackend_lstm.upgrading import UPGRADED
from unit.tools import (
    BACKEND,
    normal,
    only_tensorflow,
    plain,
    randomise_weights,
    save_and_load,
    to_numpy,
)

X = normal(4, 6, 5)
KERAS_LOSES_MASKS = not layers.LSTM(1, name="any").supports_masking
if not KERAS_LOSES_MASKS:
    X[:2, 4:] = 0.0  # what Masking masks
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not support masking"),
    pytest.mark.filterwarnings("ignore:upgrade. Keras 3.16.* loses the mask"),
]


class OwnLSTM(layers.LSTM):
    """A subclass of the user's, not registered."""


class Doubling(layers.Layer):
    """A layer of the user's, not registered."""

    def call(self, inputs):
        return 2 * inputs

    def compute_output_shape(self, input_shape):
        return input_shape


class Subclassed(keras.Model):
    """A model whose code makes its layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.lstm = layers.LSTM(2)

    def call(self, inputs):
        return self.lstm(inputs)

    def build(self, input_shape):
        self.lstm.build(input_shape)


class Block(layers.Layer):
    """A layer of the user's that holds a layer of Keras."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs)

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        config["inner"] = keras.saving.deserialize_keras_object(config["inner"])
        return cls(**config)


def sequential(*stack, shape=(6, 5)):
    return keras.Sequential([keras.Input(shape), *stack])


def masked():
    return sequential(
        layers.Masking(name="masking"),
        layers.GRU(3, return_sequences=True, name="gru"),
        layers.TimeDistributed(layers.Dense(2, name="dense"), name="steps"),
        layers.LSTM(2, name="lstm"),
    )


def functional_masked():
    inputs = keras.Input((6, 5), name="series")
    x = layers.Masking()(inputs)
    x = layers.LSTM(4, return_sequences=True, name="first")(x)
    x = layers.TimeDistributed(layers.Dense(3), name="steps")(x)
    x, *_ = layers.LSTM(2, return_sequences=True, return_state=True, name="second")(x)
    return keras.Model(inputs, keras.ops.tanh(layers.LSTM(2, name="third")(x)))


def states():
    """Final states that start another layer."""
    inputs = keras.Input((6, 5))
    x, *states = layers.LSTM(3, return_sequences=True, return_state=True, name="encoder")(inputs)
    return keras.Model(inputs, layers.LSTM(3, name="decoder")(x, initial_state=states))


def masked_states():
    """States beside a mask, which Keras's layers lose where they are given states."""
    inputs = keras.Input((6, 5))
    x = layers.Masking()(inputs)
    x, *states = layers.LSTM(3, return_sequences=True, return_state=True, name="encoder")(x)
    return keras.Model(inputs, layers.LSTM(3, name="decoder")(x, initial_state=states))


def shared():
    """Two named inputs, a layer called twice, two outputs in a dict."""
    left, right = keras.Input((6, 5), name="left"), keras.Input((6, 5), name="right")
    lstm = layers.LSTM(3, name="shared")
    a, b = lstm(left), lstm(right)
    return keras.Model(
        {"left": left, "right": right},
        {"sum": layers.Add()([a, b]), "dense": layers.Dense(2, name="dense")(a)},
    )


def nested():
    """An encoder called twice, a Sequential within, a model inside of TimeDistributed."""
    encoder = sequential(layers.LSTM(3, return_sequences=True, name="lstm"), layers.Dense(2))
    encoder.name = "encoder"
    step = keras.Sequential([keras.Input((2,)), layers.Reshape((2, 1)), layers.GRU(3, name="gru")])
    step.name = "step"
    inputs = keras.Input((6, 5))
    x = layers.Concatenate()([encoder(inputs), encoder(2 * inputs)])
    inner = keras.Input((6, 4))
    y = layers.Conv1D(2, 3, padding="same")(inner)
    middle = keras.Model(inner, layers.TimeDistributed(step, name="steps")(y), name="middle")
    return keras.Model(inputs, layers.LSTM(2, name="last")(middle(x)))


def wrapped():
    return sequential(
        layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="one"), name="both"),
        layers.Bidirectional(
            layers.GRU(2, name="onwards"),
            backward_layer=layers.LSTM(2, go_backwards=True, name="back"),
            merge_mode="sum",
            name="mixed",
        ),
    )


def ours_around():
    return sequential(
        layers.Reshape((6, 5, 1)),
        multibackend_lstm.Channelwise(layers.LSTM(2, name="lstm"), name="channelwise"),
    )


def options():
    return sequential(
        layers.LSTM(3, return_sequences=True, go_backwards=True, use_bias=False, name="a"),
        layers.GRU(3, return_sequences=True, reset_after=False, activation="relu", name="b"),
        layers.LSTM(2, recurrent_regularizer="l2", kernel_constraint="max_norm", name="c"),
    )


def dropping():
    """Dropout and noise, in a wrapper too."""
    return sequential(
        layers.Dropout(0.3, noise_shape=(None, 1, None), seed=4, name="a"),
        layers.SpatialDropout1D(0.2, name="b"),
        layers.TimeDistributed(layers.GaussianNoise(0.1, name="noise"), name="steps"),
        layers.GaussianDropout(0.1, name="c"),
        layers.Reshape((6, 5, 1)),
        layers.SpatialDropout2D(0.2, data_format="channels_first", name="d"),
    )


def lambdas():
    """Functions with globals and closures, which a file does not hold."""
    factor = np.float32(3.0)

    def scale(t):
        return factor * t

    return sequential(
        layers.Lambda(lambda t: keras.ops.reshape(t, (-1, 6, 5)), output_shape=(6, 5)),
        layers.Lambda(scale, output_shape=lambda shape: shape),
        layers.LSTM(2, name="lstm"),
    )


def conv(rank):
    def build():
        cls = getattr(layers, f"ConvLSTM{rank}D")
        shape = (3, *[4, 3, 2][:rank], 2)
        return sequential(cls(2, 2, name="conv", recurrent_dropout=0.1), shape=shape)

    build.__name__ = f"conv_lstm_{rank}d"
    return build


BOTH = {f"both > {way}_one": "LSTM" for way in ("forward", "backward")}
MIXED = {"mixed > forward_onwards": "GRU", "mixed > back": "LSTM"}
OUTER = dict.fromkeys(("both", "mixed"), "Bidirectional")
# Each model, and the class that each place must have.
MODELS = [
    (masked, {"gru": "GRU", "steps": "TimeDistributed", "lstm": "LSTM"}),
    (
        functional_masked,
        {"first": "LSTM", "steps": "TimeDistributed", "second": "LSTM", "third": "LSTM"},
    ),
    (states, {"encoder": "LSTM", "decoder": "LSTM"}),
    (shared, {"shared": "LSTM"}),
    (
        nested,
        {
            "encoder > lstm": "LSTM",
            "middle > steps": "TimeDistributed",
            "middle > steps > step > gru": "GRU",
            "last": "LSTM",
        },
    ),
    (wrapped, {**OUTER, **BOTH, **MIXED}),
    (ours_around, {"channelwise > lstm": "LSTM"}),
    (options, {"a": "LSTM", "b": "GRU", "c": "LSTM"}),
    (lambdas, {"lstm": "LSTM"}),
    (
        dropping,
        {
            "a": "Dropout",
            "b": "SpatialDropout1D",
            "steps": "TimeDistributed",
            "steps > noise": "GaussianNoise",
            "c": "GaussianDropout",
            "d": "SpatialDropout2D",
        },
    ),
    *((conv(rank), {"conv": f"ConvLSTM{rank}D"}) for rank in (1, 2, 3)),
]
IDS = [build.__name__ for build, _ in MODELS]


def made(build):
    """A model with weights that are neither zero nor one."""
    model = build()
    randomise_weights(model)
    return model


def inputs_of(model):
    """Input for a model, with masked steps."""
    if len(model.inputs) > 1:
        return {tensor.name: X + position for position, tensor in enumerate(model.inputs)}
    shape = model.inputs[0].shape[1:]
    return X if shape == X.shape[1:] else normal(2, *shape)


def assert_same_predictions(new, old):
    x = inputs_of(old)
    expected = to_numpy(old(x))
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), to_numpy(new(x)), expected
    )


def assert_same_weights(new, old):
    assert len(new.weights) == len(old.weights)
    for a, b in zip(new.get_weights(), old.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    assert [w.trainable for w in new.weights] == [w.trainable for w in old.weights]


def assert_classes(new, old, replaced):
    """Layer by layer: ours where one was replaced, the same class elsewhere, the same names."""
    count = 0
    for a, b in zip(sublayers(new), sublayers(old), strict=True):
        assert a is not b
        assert a.name == b.name
        assert a.trainable == b.trainable
        assert a.dtype_policy == b.dtype_policy
        if type(b) is getattr(layers, type(b).__name__, None) and type(b).__name__ in UPGRADED:
            assert type(a) is UPGRADED[type(b).__name__]
            count += 1
        else:
            assert type(a) is type(b)
    assert count >= len(replaced)


@pytest.mark.parametrize(("build", "replaced"), MODELS, ids=IDS)
def test_the_same_model_of_our_layers(build, replaced):
    model = made(build)
    before = plain(json.loads(model.to_json())) if build is not lambdas else None
    kept = [type(layer) for layer in sublayers(model)], model.get_weights()
    result = upgrade(model)
    assert result.replaced == {k: f"multibackend_lstm.{v}" for k, v in replaced.items()}
    assert result.left == {}
    assert_classes(result.model, model, replaced)
    assert_same_weights(result.model, model)
    assert_same_predictions(result.model, model)
    # The one given is as it was.
    assert [type(layer) for layer in sublayers(model)] == kept[0]
    for a, b in zip(model.get_weights(), kept[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert before is None or plain(json.loads(model.to_json())) == before
    # A second time there is nothing to replace.
    again = upgrade(result.model)
    assert again.replaced == {}
    assert again.model is result.model


def test_dropout_keeps_its_arguments_and_draws_alike():
    new = upgrade(dropping()).model
    first = new.get_layer("a")
    assert (first.rate, first.noise_shape, first.seed) == (0.3, (None, 1, None), 4)
    assert new.get_layer("d").data_format == "channels_first"
    assert not [*drawing_otherwise(new)]
    result = upgrade(sequential(layers.GaussianDropout(1.0, name="all"), layers.LSTM(2)))
    assert "infinite" in result.left["all"]


@pytest.mark.parametrize(
    ("ending", "build", "count"), [("keras", functional_masked, 4), ("h5", masked, 3)]
)
def test_models_from_files(ending, build, count, tmp_path):
    model = made(build)
    path = tmp_path / f"model.{ending}"
    model.save(path)
    loaded = keras.saving.load_model(path)
    result = upgrade(loaded)
    assert len(result.replaced) == count
    assert_classes(result.model, loaded, result.replaced)
    assert_same_weights(result.model, model)
    assert_same_predictions(result.model, model)
    again = save_and_load(result.model, tmp_path)
    assert_classes(again, loaded, result.replaced)
    assert_same_predictions(again, model)


def test_the_model_given_stays_compiled_and_independent():
    model = made(masked)

    def own_loss(y, z):
        return keras.ops.mean(keras.ops.abs(y - z))

    model.compile(keras.optimizers.Adam(0.1), own_loss)
    y = normal(4, 2)
    model.fit(X, y, verbose=0)
    optimizer, iterations = model.optimizer, int(model.optimizer.iterations)
    before = model.get_weights()
    new = upgrade(model).model
    assert not new.compiled
    new.compile("sgd", "mse")
    new.fit(X, y, verbose=0)
    assert model.compiled
    assert model.optimizer is optimizer
    assert int(model.optimizer.iterations) == iterations
    for a, b, c in zip(model.get_weights(), before, new.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    model.fit(X, y, verbose=0)


def test_masks_are_kept():
    model = made(masked)
    new = upgrade(model).model
    other = X.copy()
    other[:2, 4:] = 0.0
    cut = model(other[:2, :4])
    # Masked steps at the end count for nothing: what the mask is there for.
    np.testing.assert_allclose(to_numpy(new(other))[:2], to_numpy(cut), **TOLERANCE)


@pytest.mark.parametrize("build", [shared, masked, masked_states])
def test_lost_masks_are_told(build):
    model = made(build)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        new = upgrade(model).model
        upgrade(new)
    told = [str(w.message) for w in told if "loses the mask on its way to" in str(w.message)]
    expected = []
    if build is not shared and KERAS_LOSES_MASKS:
        expected = ["what comes after 'masking"]
    elif build is masked_states and accepts(new.get_layer("decoder"), "sequences_mask"):
        expected = ["to 'decoder', and"]
    assert len(told) == len(expected)
    assert all(part in told[0] for part in expected)
    x = normal(4, 6, 5)
    x[:2, 4:] = 0.0
    inputs = x if build is not shared else {"left": x, "right": x}
    same = [
        np.allclose(a, b, **TOLERANCE)
        for a, b in zip(
            keras.tree.flatten(to_numpy(new(inputs))),
            keras.tree.flatten(to_numpy(model(inputs))),
            strict=True,
        )
    ]
    # Told where the numbers differ, and nowhere else.
    assert all(same) == (not told)


def test_trainable_flags_and_dtypes():
    keras.config.set_dtype_policy("mixed_bfloat16")
    inner = layers.Dense(2, dtype="float32", name="dense")
    model = sequential(
        layers.LSTM(3, return_sequences=True, trainable=False, name="frozen"),
        layers.GRU(3, return_sequences=True, dtype="float32", name="gru"),
        layers.TimeDistributed(inner, name="steps"),
    )
    keras.config.set_dtype_policy("float32")
    inner.trainable = False
    randomise_weights(model)
    result = upgrade(model)
    assert_classes(result.model, model, result.replaced)
    assert_same_weights(result.model, model)
    assert result.model.get_layer("frozen").compute_dtype == "bfloat16"
    assert result.model.get_layer("gru").compute_dtype == "float32"
    model.trainable = False
    inner.trainable = True
    assert_classes(upgrade(model).model, model, result.replaced)


LEFT = [
    (lambda: OwnLSTM(2), "own", "OwnLSTM is a subclass of keras.layers.LSTM"),
    (lambda: layers.RNN(layers.LSTMCell(2)), "own", "an RNN around LSTMCell"),
    (lambda: layers.RNN([layers.GRUCell(2), layers.LSTMCell(2)]), "own", "GRUCell and LSTMCell"),
    (lambda: Block(layers.LSTM(2, name="lstm")), "own > lstm", "inside Block, a class of your own"),
    (lambda: Subclassed(), "own", "Subclassed is a subclassed model"),
    (
        lambda: layers.TimeDistributed(layers.BatchNormalization()),
        "own",
        "BatchNormalization 'batch_normalization' in it trains otherwise",
    ),
    (lambda: layers.TimeDistributed(Doubling()), "own", "Doubling 'doubling' in it might not"),
    (
        lambda: layers.TimeDistributed(layers.Lambda(lambda t: 2 * t, output_shape=(5,))),
        "own",
        "Lambda 'lambda' in it might not",
    ),
    (
        lambda: layers.TimeDistributed(
            keras.Sequential(
                [
                    keras.Input((5,)),
                    layers.Dense(2),
                    layers.BatchNormalization(),
                ]
            )
        ),
        "own",
        "trains otherwise in one call",
    ),
]


@pytest.mark.parametrize(("layer", "place", "reason"), LEFT)
def test_what_is_left_and_why(layer, place, reason):
    keras.utils.clear_session()
    inner = layer()
    inner.name = "own"
    model = sequential(
        layers.LSTM(5, return_sequences=True, name="first"),
        inner,
    )
    randomise_weights(model)
    result = upgrade(model)
    assert result.replaced == {"first": "multibackend_lstm.LSTM"}
    assert list(result.left) == [place]
    assert reason in result.left[place]
    assert type(result.model.layers[1]) is type(inner)
    assert_same_weights(result.model, model)
    assert_same_predictions(result.model, model)
    text = str(result).splitlines()
    assert text[0] == "1 replaced, 1 left"
    assert text[1] == "replaced first: multibackend_lstm.LSTM"
    assert text[2] == f"left {place}: {result.left[place]}"


def test_a_stateful_layer_in_time_distributed():
    step = keras.Sequential([layers.LSTM(2, stateful=True, name="memory")], name="step")
    inputs = keras.Input(batch_shape=(4, 6, 3, 5))
    model = keras.Model(inputs, layers.TimeDistributed(step, name="steps")(inputs))
    result = upgrade(model)
    assert "'memory' in it is stateful" in result.left["steps"]
    assert result.replaced == {"steps > step > memory": "multibackend_lstm.LSTM"}
    assert type(result.model.get_layer("steps")) is layers.TimeDistributed


def test_functional_models_of_the_users_own_class():
    class Own(keras.Model):
        """A functional model with a method of its own."""

        def meaning(self):
            return 42

    inputs = keras.Input((6, 5))
    model = Own(inputs, layers.LSTM(2, name="lstm")(inputs), name="own")
    result = upgrade(model)
    assert result.replaced == {"lstm": "multibackend_lstm.LSTM"}
    assert type(result.model) is Own
    assert result.model.meaning() == 42
    assert_same_predictions(result.model, model)


def test_a_class_of_the_users_with_the_name_of_a_layer_of_keras():
    namesake = type("LSTM", (OwnLSTM,), {})
    model = sequential(namesake(3, return_sequences=True, name="own"), layers.LSTM(2, name="stock"))
    result = upgrade(model)
    assert result.replaced == {"stock": "multibackend_lstm.LSTM"}
    assert "a subclass of keras.layers.LSTM" in result.left["own"]
    assert [type(x) for x in result.model.layers] == [namesake, multibackend_lstm.LSTM]


def test_subclassed_models_and_models_without_such_layers_come_back_as_they_are():
    model = Subclassed(name="mine")
    result = upgrade(model)
    assert result.model is model
    assert result.left == {
        "mine": "Subclassed is a subclassed model, whose own code makes its layers"
    }
    dense = sequential(layers.Dense(2))
    result = upgrade(dense)
    assert result.model is dense
    assert str(result) == "0 replaced, 0 left"


def test_a_model_that_is_not_built_yet():
    model = keras.Sequential([layers.LSTM(2, name="lstm")])
    result = upgrade(model)
    assert type(result.model.layers[0]) is multibackend_lstm.LSTM
    assert not result.model.built


def test_functions_of_the_users_own_are_found_in_a_scope():
    def squash(x):
        return keras.ops.tanh(x)

    model = sequential(layers.LSTM(2, activation=squash))
    with pytest.raises(ValueError, match=r"upgrade: the model .* must be one that Keras can save"):
        upgrade(model)
    with keras.saving.custom_object_scope({"squash": squash}):
        result = upgrade(model)
    assert_same_predictions(result.model, model)


def test_a_layer_shared_by_two_models_is_refused():
    shared = layers.LSTM(3, name="shared")
    inputs, inner = keras.Input((6, 5)), keras.Input((6, 5))
    nested = keras.Model(inner, shared(inner))
    model = keras.Model(inputs, layers.Add()([shared(inputs), nested(inputs)]))
    with pytest.raises(ValueError, match="must be one that Keras can save and load"):
        upgrade(model)


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match=r"`model` must be a `keras\.Model`.*load_model"):
        upgrade("model.keras")
    with pytest.raises(ValueError, match="of type LSTM"):
        upgrade(layers.LSTM(2))


@only_tensorflow
def test_vocabularies_are_carried():
    words = layers.TextVectorization(output_sequence_length=4)
    words.adapt(["a b c", "b c d"])
    model = keras.Sequential(
        [keras.Input((1,), dtype="string"), words, layers.Embedding(9, 3), layers.LSTM(2)]
    )
    result = upgrade(model)
    import tensorflow as tf

    x = tf.constant([["c b a"], ["d d x"]])
    np.testing.assert_allclose(to_numpy(result.model(x)), to_numpy(model(x)), **TOLERANCE)


@pytest.mark.skipif(BACKEND not in ("tensorflow", "torch", "jax"), reason="trains")
def test_an_upgraded_model_trains_as_the_old_one():
    model = made(masked)
    new = upgrade(model).model
    y = normal(4, 2)
    losses = []
    for each in (model, new):
        each.compile(keras.optimizers.SGD(0.1), "mse")
        losses.append(each.fit(X, y, epochs=3, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

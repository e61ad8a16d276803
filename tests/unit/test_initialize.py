"""`initialize` and `fit_order`: what is drawn, what it depends on, and errors."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from multibackend_lstm import SOLUTIONS, Channelwise, TimeDistributedConv, build_model
from multibackend_lstm.agreement import fit_order, initialize
from unit.tools import assert_equal, needs_gradients, normal, run_python

initializers = keras.initializers


def weights_of(model, seed=0, **arguments):
    initialize(model, seed, **arguments)
    return [np.array(w) for w in model.get_weights()]


def same(actual, expected):
    """Two lists of weights are equal, bit for bit."""
    return len(actual) == len(expected) and all(map(np.array_equal, actual, expected))


def same_in_any_order(actual, expected):
    """Two lists hold the same weights."""
    return sorted(str(w.tolist()) for w in actual) == sorted(str(w.tolist()) for w in expected)


def one_weight(initializer, shape, seed=0):
    """A layer's only weight, drawn by its initializer."""
    return weights_of(built(Weight(shape, initializer)), seed)[0]


def built(layer, *shape):
    layer.build((None, *shape))
    return layer


class Weight(layers.Layer):
    """A layer with one weight."""

    def __init__(self, shape, initializer, **kwargs):
        super().__init__(**kwargs)
        self.shape, self.initializer = shape, initializer

    def build(self, input_shape):
        self.w = self.add_weight(shape=self.shape, initializer=self.initializer, name="w")

    def get_config(self):
        return {**super().get_config(), "shape": self.shape, "initializer": self.initializer}


class Mine(initializers.Initializer):
    """An initializer of one's own."""

    def __call__(self, shape, dtype=None):
        return ops.full(shape, 7.0, dtype=dtype)


RANDOM = [
    initializers.RandomNormal(0.5, 2.0),
    initializers.RandomUniform(-1.0, 3.0),
    initializers.TruncatedNormal(1.0, 0.5),
    initializers.GlorotUniform(),
    initializers.GlorotNormal(),
    initializers.HeUniform(),
    initializers.HeNormal(),
    initializers.LecunUniform(),
    initializers.LecunNormal(),
    initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
    initializers.VarianceScaling(2.0, "fan_out", "truncated_normal"),
    initializers.VarianceScaling(0.5, "fan_avg", "uniform"),
    initializers.Orthogonal(2.0),
]


@pytest.mark.parametrize("shape", [(3, 60, 200), (100, 240), (24000,)], ids=str)
@pytest.mark.parametrize("initializer", RANDOM, ids=lambda i: type(i).__name__)
def test_draws_the_distribution_of_keras(initializer, shape):
    if isinstance(initializer, initializers.Orthogonal) and len(shape) < 2:
        pytest.skip("no orthogonal vector")
    ours = one_weight(initializer, shape).ravel()
    theirs = ops.convert_to_numpy(initializer.clone()(shape)).ravel()
    levels = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    quantiles = np.quantile(ours, levels), np.quantile(theirs, levels)
    np.testing.assert_allclose(*quantiles, atol=0.13 * theirs.std())
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.05)


@pytest.mark.parametrize(
    ("initializer", "bound"),
    [
        (initializers.GlorotUniform(), np.sqrt(6 / (120 + 360))),
        (initializers.LecunNormal(), 2 * np.sqrt(1 / 120) / 0.87962566103423978),
        (initializers.TruncatedNormal(0.0, 0.5), 1.0),
        (initializers.RandomUniform(-0.2, 0.2), 0.2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_draws_up_to_the_bound(initializer, bound):
    values = np.abs(one_weight(initializer, (3, 40, 120)))
    assert 0.99 * bound < values.max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (2, 3, 5), (2, 2, 5, 3)], ids=str)
def test_orthogonal(shape):
    w = one_weight(initializers.Orthogonal(gain=2.0), shape).reshape(-1, shape[-1])
    product = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-5)


@pytest.mark.parametrize(
    "initializer",
    [
        initializers.Zeros(),
        initializers.Ones(),
        initializers.Constant(0.1),
        initializers.Identity(3.0),
        initializers.Constant([[1.0, 2.0], [3.0, 4.0]]),
    ],
    ids=lambda i: type(i).__name__,
)
def test_what_is_not_random_stays(initializer):
    assert_equal(one_weight(initializer, (2, 2)), ops.convert_to_numpy(initializer((2, 2))))


def test_an_array_is_an_initializer():
    array = normal(3, 2)
    layer = built(layers.Dense(2, kernel_initializer=array), 3)
    layer.kernel.assign(ops.zeros((3, 2)))
    assert_equal(weights_of(layer)[0], array)


def test_numbers_are_these():
    """In any release of NumPy and on any backend."""
    drawn = one_weight(initializers.RandomUniform(0.0, 1.0), (3,))
    assert [float(x).hex() for x in drawn] == NUMBERS


NUMBERS = ["0x1.9a91de0000000p-2", "0x1.64759c0000000p-7", "0x1.2754fe0000000p-1"]


def test_layer_with_every_kind_of_start():
    lstm = built(layers.LSTM(3, bias_initializer="random_normal"), 4, 2)
    kernel, recurrent, bias = weights_of(lstm)
    input_gate, forget_gate, *others = np.split(bias, 4)
    assert (forget_gate == 1).all()
    assert (np.stack([input_gate, *others]) != 0).all()
    assert np.unique(kernel).size == kernel.size
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(3), atol=1e-6)
    normalization = built(layers.BatchNormalization(gamma_initializer="he_normal"), 5)
    gamma, beta, mean, variance = weights_of(normalization)
    assert (gamma != 1).all()
    assert not beta.any()
    assert not mean.any()
    assert (variance == 1).all()


def branches(reverse=False, name=None, dropout=0.0):
    """A model of two branches of the same shapes, created in either order."""
    inputs = keras.Input((3,))
    branch = {}
    for key in "ba" if reverse else "ab":
        branch[key] = layers.Dense(3, name=name and f"{name}_{key}")(inputs)
    x = layers.Concatenate()([branch["a"], branch["b"]])
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, layers.Dense(2)(x))


def test_depends_on_the_position_alone():
    expected = weights_of(branches())
    for other in (branches(reverse=True), branches(name="z"), branches(dropout=0.5)):
        assert same(weights_of(other), expected)
    assert not np.array_equal(expected[0], expected[2])


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_depends_on_the_seed(solution):
    first, again, other = (
        weights_of(build_model((4, 3, 2), solution, units=3, bidirectional=True), seed)
        for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert all(
        np.array_equal(a, b) == (np.unique(a).size < 3) for a, b in zip(first, other, strict=True)
    )


def test_same_layers_have_same_weights():
    flattened = [
        weights_of(build_model((4, 3, 2), solution, units=3))
        for solution in ("reshape", "pre_reshape")
    ]
    assert same(*flattened)


def test_layers_of_one_shape_differ():
    layer = built(layers.Bidirectional(layers.LSTM(3)), 4, 2)
    weights = weights_of(layer)
    assert not np.array_equal(weights[0], weights[3])
    blocks = built(TimeDistributedConv((4, 4), 1, padding="same"), 3, 5, 4)
    kernels = weights_of(blocks)[::2]
    assert not np.array_equal(*kernels)


def test_shared_and_nested_layers():
    shared = layers.Dense(3)
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3), shared])
    inputs = keras.Input((3,))
    nested = keras.Model(inputs, inner(shared(inner(inputs))))
    flat = keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(3)])
    assert len(weights_of(nested)) == 4
    assert same_in_any_order(weights_of(nested), weights_of(flat))


def test_wrapped_and_composed_layers():
    inputs = keras.Input((4, 3, 5))
    x = Channelwise(layers.GRU(3, return_sequences=True))(inputs)
    x = layers.TimeDistributed(layers.Dense(4))(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.SpectralNormalization(layers.Dense(4))(x)
    x = layers.RNN(layers.StackedRNNCells([layers.LSTMCell(2), layers.GRUCell(2)]))(x)
    model = keras.Model(inputs, x)
    before = model.get_weights()
    for old, new in zip(before, weights_of(model), strict=True):
        assert old.shape == new.shape
        assert np.array_equal(old, new) == (np.unique(new).size < 3)


def test_subclassed_model_without_configuration():
    class Block(layers.Layer):
        def __init__(self, activation):
            super().__init__()
            self.dense = layers.Dense(3, activation=activation)

        def call(self, x):
            return self.dense(x)

    class Model(keras.Model):
        def __init__(self, blocks):
            super().__init__()
            self.blocks = [Block(lambda x: x * 2) for _ in range(blocks)]

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model = Model(2)
    model(normal(2, 3))
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(3)])
    assert same_in_any_order(weights_of(model), weights_of(plain))


def test_states_and_seed_generators():
    inputs = keras.Input((4, 2), batch_size=3)
    lstm = layers.LSTM(3, stateful=True)
    dropouts = [layers.Dropout(0.5), layers.Dropout(0.5)]
    model = keras.Model(inputs, dropouts[1](dropouts[0](lstm(inputs))))
    states = []
    for seed in (0, 0, 1):
        initialize(model, seed)
        assert not any(ops.convert_to_numpy(state).any() for state in lstm.states)
        states += [tuple(layer.seed_generator.state.numpy().tolist()) for layer in dropouts]
        model(normal(3, 4, 2), training=True)
        assert all(ops.convert_to_numpy(state).any() for state in lstm.states)
    assert states[:2] == states[2:4]
    assert len(set(states)) == 4


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX makes float64 weights float32")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5, dtype=dtype)])
    expected = one_weight(initializers.GlorotUniform(), (6, 5))
    initialize(model, 0)
    weight = model.weights[0]
    assert weight.dtype == dtype
    assert_equal(weight.value, ops.cast(expected, dtype))


def test_initializers_of_ones_own():
    layer = built(layers.LSTM(3, bias_initializer=Mine(), kernel_initializer=Mine()), 4, 2)
    seen = []

    def draw(initializer, shape, random):
        seen.append((type(initializer), shape))
        return random.uniform(1, 2, shape)

    kernel, _, bias = weights_of(layer, initializers={Mine: draw})
    assert seen == [(Mine, (2, 12)), (Mine, (3,)), (Mine, (6,))]
    assert ((kernel >= 1) & (kernel <= 2)).all()
    assert np.unique(kernel).size == kernel.size
    assert (bias[3:6] == 1).all()


def uncallable(initializer, shape, random):
    return np.zeros(2)


@keras.saving.register_keras_serializable(package="test_initialize")
def a_function(shape, dtype=None):
    return ops.ones(shape, dtype=dtype)


class MadeFromAValue(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.w = keras.Variable(normal(2))


class NoConfiguration(layers.Layer):
    def __init__(self, something):
        super().__init__()
        self.w = self.add_weight(shape=(2,))


class Changing(layers.Layer):
    size = 0

    def build(self, input_shape):
        Changing.size += 1
        self.w = self.add_weight(shape=(Changing.size,))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda: layers.Dense(2), {}, "must be built.*`keras.Input"),
        (lambda: built(layers.Dense(2), 2), {"seed": -1}, "`seed` must be.*Received -1"),
        (lambda: built(layers.Dense(2), 2), {"seed": 1.0}, "`seed` must be.*Received 1.0"),
        (
            lambda: built(layers.Dense(2, kernel_initializer=Mine(), name="d"), 2),
            {},
            "weight d/kernel_initializer starts from Mine.*`initializers=",
        ),
        (
            lambda: built(layers.LSTM(2, bias_initializer=a_function), 3, 2),
            {},
            "lstm_cell/bias_initializer starts from a_function",
        ),
        (
            lambda: built(Weight((2,), lambda shape, dtype=None: ops.ones(shape)), 2),
            {},
            "starts from .*lambda",
        ),
        (lambda: built(MadeFromAValue(), 2), {}, "made from a value.*Constant"),
        (
            lambda: built(NoConfiguration(object()), 2),
            {},
            "cannot be built a second time.*`get_config`",
        ),
        (lambda: built(Changing(), 2), {}, "has the weights .*built a second time"),
        (
            lambda: built(layers.Dense(2, kernel_initializer=Mine()), 2),
            {"initializers": {Mine: uncallable}},
            r"draws for Mine must return an array of shape \(2, 2\)",
        ),
    ],
)
def test_errors(make, arguments, message):
    layer = make()
    before = layer.get_weights()
    calls = [kind.__call__ for kind in (initializers.RandomNormal, initializers.Orthogonal, Mine)]
    with pytest.raises(ValueError, match=message):
        initialize(layer, **{"seed": 0, **arguments})
    assert same(layer.get_weights(), before)
    after = [kind.__call__ for kind in (initializers.RandomNormal, initializers.Orthogonal, Mine)]
    assert calls == after


def test_error_of_a_path():
    with pytest.raises(TypeError, match=r"must be a `keras.Model`.*type str"):
        initialize("model.keras", 0)


@needs_gradients
def test_a_used_optimizer_is_refused():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile(optimizer="adam", loss="mse")
    initialize(model, 0)
    model.fit(normal(4, 3), normal(4, 2), verbose=0)
    with pytest.raises(ValueError, match=r"optimizer of .* must be new.*Compile"):
        initialize(model, 0)
    model.compile(optimizer="adam", loss="mse")
    initialize(model, 0)
    assert_equal(model.get_weights()[0], one_weight(initializers.GlorotUniform(), (3, 2)))


def test_fit_order():
    orders = {(s, e): fit_order(50, s, e) for s in (0, 1) for e in (0, 1)}
    for order in orders.values():
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order) for order in orders.values()}) == 4
    assert fit_order(8, 0, 0).tolist() == [4, 5, 2, 6, 1, 3, 0, 7]  # in any release of NumPy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 0), "`n` must be an integer of at least 1. Received 0. .*len"),
        ((3, -1, 0), "`seed` must be an integer of at least 0. Received -1"),
        ((3, 0, True), "`epoch` must be an integer of at least 0. Received True"),
        (([1, 2], 0, 0), "`n` must be an integer"),
    ],
)
def test_fit_order_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_order(*arguments)


def test_importing_agreement_loads_no_keras():
    code = (
        "import sys, multibackend_lstm.agreement as agreement\n"
        "print({*agreement.__all__} <= {*dir(agreement)}, 'keras' in sys.modules)\n"
        "agreement.fit_order; print('keras' in sys.modules)"
    )
    assert run_python(code).splitlines() == ["True False", "True"]

"""check_port: passes for what is ported, and fails for what is not."""

import copy

import keras
import numpy as np
import pytest

from multibackend_lstm import GRU, LSTM
from multibackend_lstm.agreement import DisagreementError
from multibackend_lstm.porting import PortingError, check_port, from_torch, to_torch
from multibackend_lstm.torch_weights.rules import RULES, rule_of
from unit.tools import BACKEND, needs_gradients, randomise_weights

torch = pytest.importorskip("torch")
nn = torch.nn
layers = keras.layers

pytestmark = needs_gradients


class Net(nn.Module):
    """(batch, features, time, channels) to (batch, 3)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, (3, 1))
        self.norm = nn.BatchNorm2d(3)
        self.rnn = nn.GRU(12, 5, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).transpose(1, 2).flatten(2)
        _, hidden = self.rnn(x)
        return self.fc(torch.cat(list(hidden), dim=-1))


def net():
    torch.manual_seed(0)
    return Net().eval()


def keras_net():
    model = keras.Sequential(
        [
            keras.Input((None, 4, 2)),
            layers.Conv2D(3, (3, 1)),
            layers.BatchNormalization(epsilon=1e-5),
            layers.ReLU(),
            layers.Bidirectional(GRU(5)),
            layers.Dense(3),
        ]
    )
    randomise_weights(model)
    return model


def off(check):
    """The layers, or "model", of which a tensor disagrees."""
    return {
        comparison.path.split("/")[0]
        for result in check.results
        for comparison in result.comparisons
        if comparison.verdict == "disagrees"
    }


def test_a_ported_model_passes_and_says_what_was_compared():
    module, model = net(), keras_net()
    from_torch(module, model)
    before = [copy.deepcopy(module.state_dict()), model.get_weights()]
    check = check_port(module, model)
    check.raise_if_disagrees()
    dtypes = ["float32", "float64"] if BACKEND == "tensorflow" else ["float32"]
    assert [result.target for result in check.results] == [f"{BACKEND} in {d}" for d in dtypes]
    for result in check.results:
        layers_compared = {c.path for c in result.group("layers")}
        assert layers_compared == {layer.name for layer in model.layers if layer.weights}
        whole = {c.path for c in result.comparisons if c.path.startswith("model")}
        assert {"model", "model/input 0"} < whole
        assert len(whole) == 2 + len(model.trainable_weights)
        assert max(c.floor for c in result.comparisons) < 1e-5
        assert max(c.score for c in result.comparisons) < 20
    assert "float32" in check.table()
    assert check.to_json()["agrees"] is True
    for a, b in zip(model.get_weights(), before[1], strict=True):
        np.testing.assert_array_equal(a, b)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[0][name])


def test_a_state_dict_is_compared_layer_by_layer():
    module, model = net(), keras_net()
    from_torch(module, model)
    check = check_port(module.state_dict(), model)
    assert check.agrees
    assert not any(c.path.startswith("model") for r in check.results for c in r.comparisons)


@pytest.mark.parametrize("position", [0, 5, 7, -1])
def test_a_wrong_weight_is_found(position):
    module, model = net(), keras_net()
    from_torch(module, model)
    weight = model.weights[position]
    changed = np.array(keras.ops.convert_to_numpy(weight))
    changed.flat[0] += 1e-3
    weight.assign(changed)
    check = check_port(module.state_dict(), model)
    assert not check.agrees
    assert off(check) == {x.name for x in model.layers if any(w is weight for w in x.weights)}
    with pytest.raises(DisagreementError, match="disagrees from"):
        check.raise_if_disagrees()


def test_a_wrong_flatten_order_is_found_by_the_whole_model_alone():
    module, model = net(), keras_net()
    from_torch(module, model, flatten_order="channels_last")
    check = check_port(module, model, flatten_order="channels_last")
    assert off(check) == {"model"}


def test_forward_says_how_to_call_the_module():
    module = nn.Sequential(nn.Linear(2, 3))
    model = keras.Sequential([keras.Input((5, 2)), layers.Dense(3, activation="softmax")])
    from_torch(module, model)
    assert not check_port(module, model).agrees
    check_port(
        module,
        model,
        forward=lambda m, x: m(x).softmax(-1),
        inputs=np.random.default_rng(0).normal(size=(2, 5, 2)).astype("float32"),
    ).raise_if_disagrees()
    with pytest.raises(PortingError, match=r"has the shape \(3, 5, 3\) in Keras.*Give `forward`"):
        check_port(module, model, forward=lambda m, x: m(x)[:, 0])


class TimeFirst(nn.Module):
    """(time, batch, features), with the states beside the outputs."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 4)

    def forward(self, x):
        return self.rnn(x)


class ChannelsFirst(nn.Module):
    """A linear layer before the convolution, so that the axes cannot be told."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 2)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.conv(self.fc(x.movedim(1, 2)).movedim(2, 1))


def test_a_wrong_call_names_forward():
    module = TimeFirst().eval()
    model = keras.Sequential([keras.Input((7, 4)), LSTM(4, return_sequences=True)])
    from_torch(module, model)
    with pytest.raises(DisagreementError, match=r"Each layer alone agrees.*see `forward`"):
        check_port(module, model).raise_if_disagrees()
    with pytest.raises(PortingError, match=r"returns a tuple with a tuple.*Give `forward`.*\[0\]"):
        check_port(module, model, forward=lambda m, x: m(x))

    def forward(module, x):
        return module(x.transpose(0, 1))[0].transpose(0, 1)

    check_port(module, model, forward=forward).raise_if_disagrees()
    with pytest.raises(
        PortingError, match=r"`forward` failed on inputs of shape \(3, 7, 4\): shape"
    ):
        check_port(module, model, forward=lambda m, x: m(x.reshape(-1, 5)))

    module = ChannelsFirst().eval()
    inputs = keras.Input((7, 4))
    hidden = layers.Dense(4)(inputs)
    model = keras.Model(inputs, layers.Conv1D(3, 2)(hidden))
    from_torch(module, model)
    with pytest.raises(
        PortingError, match=r"`ChannelsFirst`, called as the Keras model is, failed"
    ):
        check_port(module, model)
    check_port(
        module, model, forward=lambda m, x: m(x.movedim(2, 1)).movedim(1, 2)
    ).raise_if_disagrees()


def test_nan_would_agree_with_anything():
    module, model = net(), keras_net()
    from_torch(module, model)
    inputs = np.full((1, 4, 4, 2), np.nan, "float32")
    with pytest.raises(PortingError, match=r"finite numbers\. Input 0 of shape \(1, 4, 4, 2\)"):
        check_port(module, model, inputs=inputs)


class Attention(nn.Module):
    """Softmax over time, of which the bias before it has no gradient: mathematically it is 0."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 1)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out((self.score(x).softmax(1) * x).sum(1))


def test_a_gradient_that_is_zero_is_judged_by_what_cancels():
    torch.manual_seed(0)
    module = Attention().eval()
    inputs = keras.Input((12, 4))
    weights = layers.Softmax(axis=1)(layers.Dense(1, name="score")(inputs))
    context = keras.ops.sum(weights * inputs, axis=1)
    model = keras.Model(inputs, layers.Dense(2, name="out")(context))
    pairs = {"score": "score", "out": "out"}
    from_torch(module, model, pairs)
    report = check_port(module, model, pairs)
    report.raise_if_disagrees()
    found = [c for c in report.results[0].comparisons if c.path == "model/score/bias"]
    assert found[0].floor > 0
    model.get_layer("score").bias.assign([1e-2])
    model.get_layer("out").bias.assign(model.get_layer("out").bias + 1e-3)
    assert not check_port(module, model, pairs).agrees


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("kind", "layer", "shape"),
    [(nn.LSTM, LSTM, (7, 3, 2)), (nn.RNN, layers.SimpleRNN, (7, 6))],
)
def test_a_recurrent_module_itself(kind, layer, shape, batch_first):
    module = kind(6, 4, 2, batch_first=batch_first)
    model = keras.Sequential([keras.Input(shape), layer(4, return_sequences=True), layer(4)])
    from_torch(module, model)
    check_port(module, model).raise_if_disagrees()


class Cells(nn.Module):
    """Two cells that are called step by step."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first(3, 4), second(4, 5)

    def forward(self, x):
        a = b = None
        for step in x.unbind(1):
            a = self.first(step, a)
            b = self.second(a[0] if isinstance(a, tuple) else a, b)
        return b[0] if isinstance(b, tuple) else b


@pytest.mark.parametrize(
    ("module", "stack"),
    [
        (lambda: Cells(nn.LSTMCell, nn.GRUCell), lambda: (LSTM(4, return_sequences=True), GRU(5))),
        (
            lambda: Cells(nn.GRUCell, nn.RNNCell),
            lambda: (
                layers.RNN(layers.GRUCell(4), return_sequences=True),
                layers.RNN(layers.SimpleRNNCell(5)),
            ),
        ),
        (
            lambda: Cells(nn.RNNCell, nn.LSTMCell),
            lambda: (
                layers.SimpleRNN(4, return_sequences=True),
                layers.RNN(layers.LSTMCell(5)),
            ),
        ),
    ],
)
def test_cells(module, stack):
    torch.manual_seed(0)
    module, model = module(), keras.Sequential([keras.Input((7, 3)), *stack()])
    from_torch(module, model)
    check_port(module, model).raise_if_disagrees()
    randomise_weights(model)
    to_torch(model, module)
    check_port(module, model).raise_if_disagrees()
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    check_port(state, model).raise_if_disagrees()


def test_a_cell_of_another_nonlinearity():
    model = keras.Sequential([keras.Input((7, 3)), layers.SimpleRNN(4)])
    with pytest.raises(PortingError, match="nonlinearity: torch relu, Keras tanh"):
        from_torch(nn.RNNCell(3, 4, nonlinearity="relu"), model)
    both = keras.Sequential([keras.Input((7, 3)), layers.Bidirectional(layers.SimpleRNN(4))])
    with pytest.raises(PortingError, match="no tensors fit the Keras layers bidirectional"):
        from_torch(nn.RNNCell(3, 4), both)


LAYERS = [
    ((6, 4), layers.RNN(layers.LSTMCell(3), return_sequences=True)),
    ((6, 4), layers.Bidirectional(layers.RNN(layers.GRUCell(3)))),
    ((12, 4), layers.Conv1D(6, 3, 2, "same", groups=2, activation="relu")),
    ((12, 4), layers.Conv1D(6, 3, padding="causal", dilation_rate=2)),
    ((8, 6, 2), layers.Conv2D(3, 2, data_format="channels_last")),
    ((8, 6, 2), layers.Conv2DTranspose(3, 3, 2, "same")),
    ((12, 4), layers.DepthwiseConv1D(3, 1, "same", 2)),
    ((5,), layers.Embedding(7, 3)),
    ((6, 4), layers.GroupNormalization(2, epsilon=1e-5)),
    ((6, 4), layers.LayerNormalization(axis=[1, 2], epsilon=1e-5)),
    ((6, 4), layers.BatchNormalization(epsilon=1e-5)),
    ((6, 4), layers.PReLU(shared_axes=[1])),
    ((6, 4), layers.Bidirectional(LSTM(3, return_sequences=True), merge_mode="sum")),
    ((6, 4), LSTM(3, return_state=True, stateful=False)),
    ((6, 4), GRU(3)),
    ((6, 4), layers.SimpleRNN(3)),
    ((6, 4), layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True))),
    ((6, 4), layers.Dense(3, activation="softmax")),
    ((6, 4), layers.MultiHeadAttention(2, 2)),
    ((6, 4), layers.MultiHeadAttention(4, 1, use_bias=False)),
]


@pytest.mark.parametrize(("shape", "layer"), LAYERS, ids=lambda x: getattr(x, "name", None))
def test_every_kind_of_layer_is_compared_with_a_torch_module(shape, layer):
    attention = isinstance(layer, layers.MultiHeadAttention)
    layer.build(*[(None, *shape)] * (2 if attention else 1))
    randomise_weights(layer)
    state = to_torch(layer)
    check_port(state, layer).raise_if_disagrees()
    weight = layer.weights[0]
    weight.assign(keras.ops.convert_to_numpy(weight) + 1e-2)
    assert not check_port(state, layer).agrees


def test_the_cases_above_are_of_every_kind():
    kinds = {type(rule) for rule in RULES.values()}
    assert {type(rule_of(layer)) for _, layer in LAYERS} == kinds


def test_a_module_without_parameters():
    module = nn.BatchNorm1d(4, affine=False).eval()
    norm = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, center=False, scale=False)
    model = keras.Sequential([keras.Input((4,)), norm])
    randomise_weights(model)
    to_torch(model, module)
    check_port(module, model).raise_if_disagrees()

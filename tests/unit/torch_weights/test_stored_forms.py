"""Weights that PyTorch stores in another form: weight normalisation, attention's projections."""

import copy

import keras
import numpy as np
import pytest

from multibackend_lstm.porting import PortingError, check_port, from_torch, to_torch
from multibackend_lstm.torch_weights.state_dict import read_state_dict
from unit.tools import needs_gradients, normal, randomise_weights
from unit.torch_weights.test_conversion import assert_ports, assert_same, randomise

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional
layers = keras.layers

NORMS = {
    "new": nn.utils.parametrizations.weight_norm,
    "old": lambda *args, **options: old_weight_norm(*args, **options),
}


def old_weight_norm(module, name="weight", dim=0):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(module, name, dim)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_removed_on_reading(norm, dim):
    module = randomise(NORMS[norm](nn.Conv1d(2, 3, 4), dim=dim))
    layer = layers.Conv1D(3, 4)
    layer.build((None, 9, 2))
    for source in (module, module.state_dict()):
        from_torch(source, layer)
        wide = copy.deepcopy(module.eval()) if norm == "new" else module
        x = normal(2, 9, 2)
        expected = wide(torch.tensor(x).movedim(-1, 1)).movedim(1, -1).detach().numpy()
        actual = keras.ops.convert_to_numpy(layer(x))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_weights_go_back_into_magnitude_and_direction(norm):
    module = NORMS[norm](nn.Linear(3, 4))
    layer = layers.Dense(4)
    layer.build((None, 3))
    randomise_weights(layer)
    to_torch(layer, module)
    x = normal(5, 3)
    assert_same(layer, module.double(), x)
    new = to_torch(layer, module.float().state_dict())
    assert new.keys() == module.state_dict().keys()


@pytest.mark.parametrize("norm", NORMS)
def test_weight_norm_of_one_matrix_of_an_lstm(norm):
    module = randomise(NORMS[norm](nn.LSTM(2, 3, batch_first=True), name="weight_hh_l0"))
    layer = layers.LSTM(3)
    layer.build((None, 5, 2))
    from_torch(module.state_dict(), layer)
    x = normal(2, 5, 2)
    expected = module(torch.tensor(x))[0][:, -1].detach().numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), expected, atol=1e-6)


def test_a_direction_of_zero_is_refused_by_name():
    module = NORMS["new"](nn.Linear(3, 4))
    module.parametrizations.weight.original1.data[1] = 0
    layer = layers.Dense(4)
    layer.build((None, 3))
    with pytest.raises(PortingError, match="weight holds 3 of 12 values that are NaN"):
        from_torch(module, layer)


class TemporalBlock(nn.Module):
    """Of a temporal convolutional network (Bai et al. 2018): causal by `F.pad`, or by cutting."""

    def __init__(self, inputs, outputs, dilation, norm, cut):
        super().__init__()
        self.cut, self.pad = cut, 2 * dilation
        padding = self.pad if cut else 0
        self.conv1 = norm(nn.Conv1d(inputs, outputs, 3, padding=padding, dilation=dilation))
        self.conv2 = norm(nn.Conv1d(outputs, outputs, 3, padding=padding, dilation=dilation))
        self.down = nn.Conv1d(inputs, outputs, 1)

    def causal(self, conv, x):
        if self.cut:
            return torch.relu(conv(x)[..., : -self.pad])
        return torch.relu(conv(F.pad(x, (self.pad, 0))))

    def forward(self, x):
        y = self.causal(self.conv2, self.causal(self.conv1, x))
        return torch.relu(y + self.down(x))


class TCN(nn.Module):
    def __init__(self, norm, cut):
        super().__init__()
        self.blocks = nn.ModuleList(
            [TemporalBlock(2, 4, 1, norm, cut), TemporalBlock(4, 5, 2, norm, cut)]
        )
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.fc(x[..., -1])


def keras_tcn():
    inputs = x = keras.Input((12, 2))
    for i, filters in enumerate((4, 5)):
        y = x
        for j in (1, 2):
            y = layers.Conv1D(filters, 3, padding="causal", dilation_rate=i + 1, activation="relu",
                              name=f"block{i}_conv{j}")(y)  # fmt: skip
        down = layers.Conv1D(filters, 1, name=f"block{i}_down")(x)
        x = layers.ReLU()(layers.Add()([y, down]))
    return keras.Model(inputs, layers.Dense(3, name="fc")(x[:, -1]))


@needs_gradients
@pytest.mark.parametrize(("norm", "cut"), [("new", False), ("old", True), (None, True)])
def test_a_temporal_convolutional_network(norm, cut):
    torch.manual_seed(0)
    module, model = TCN(NORMS[norm] if norm else lambda x: x, cut).eval(), keras_tcn()
    module(torch.zeros(1, 2, 12)).sum().backward()  # as after training
    before = {name: value.clone() for name, value in module.state_dict().items()}
    from_torch(module, model)
    check_port(module, model).raise_if_disagrees()
    assert module.state_dict().keys() == before.keys()
    module(torch.zeros(1, 2, 12))
    randomise_weights(model)
    to_torch(model, module)
    assert_same(model, lambda x: module.double()(x.movedim(-1, 1)), normal(2, 12, 2))


def test_zeros_on_both_sides_that_are_not_cut_are_seen_in_the_whole_model():
    conv = nn.Conv1d(2, 3, 3, padding=2)
    model = keras.Sequential([keras.Input((9, 2)), layers.Conv1D(3, 3, padding="causal")])
    from_torch(nn.Sequential(conv), model)
    with pytest.raises(PortingError, match=r"\(3, 9, 3\) in Keras and \(3, 11, 3\) in PyTorch"):
        check_port(nn.Sequential(conv), model)
    conv.padding = (1,)
    with pytest.raises(PortingError, match="zeros on each side"):
        from_torch(conv, model)


class Encoder(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 3, bias=bias, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.fc(x.mean(1))


def keras_encoder(bias=True):
    inputs = keras.Input((5, 6))
    x = layers.MultiHeadAttention(3, 2, use_bias=bias, name="attention")(inputs, inputs)
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(layers.Add()([inputs, x]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, name="fc")(x))


@needs_gradients
@pytest.mark.parametrize("bias", [True, False])
def test_multi_head_attention(bias):
    module, model = randomise(Encoder(bias)), keras_encoder(bias)
    assert_ports(module, model, normal(3, 5, 6))
    from_torch(module, model)
    check_port(module, model).raise_if_disagrees()
    new = to_torch(model)
    assert new.keys() == module.state_dict().keys()
    with pytest.warns(UserWarning, match="num_heads=3, which a state dict does not hold"):
        from_torch(new, model)


class Cross(nn.Module):
    """Attention of one sequence to another, whose keys and values may be of other widths."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.batch_first = options.get("batch_first", False)

    def forward(self, query, key, value):
        given = [x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)]
        found = self.attention(*given)[0]
        return found if self.batch_first else found.transpose(0, 1)


@needs_gradients
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"kdim": 3, "vdim": 6},
        {"kdim": 9, "bias": False, "batch_first": True},
        {"vdim": 2},
    ],
    ids=str,
)
def test_attention_between_sequences(options):
    widths = (4, options.get("kdim", 4), options.get("vdim", 4))
    query, key, value = (keras.Input((n, w)) for n, w in zip((5, 7, 7), widths, strict=True))
    layer = layers.MultiHeadAttention(2, 2, use_bias=options.get("bias", True), name="attention")
    model = keras.Model([query, key, value], layer(query, value, key))
    module = randomise(Cross(**options))
    from_torch(module, model)
    xs = [normal(3, *x.shape[1:], seed=i) for i, x in enumerate(model.inputs)]
    assert_same(model, copy.deepcopy(module).double(), *xs)
    if "kdim" in options:
        check_port(module, model).raise_if_disagrees()
    new = to_torch(model)
    assert {name: x.shape for name, x in new.items()} == {
        name: x.shape for name, x in module.state_dict().items()
    }
    randomise_weights(model)
    to_torch(model, module)
    assert_same(model, copy.deepcopy(module).double(), *xs)


@pytest.mark.parametrize(
    ("module", "layer", "message"),
    [
        (nn.MultiheadAttention(6, 2), layers.MultiHeadAttention(3, 2), "num_heads: torch 2, Ker"),
        (nn.MultiheadAttention(6, 3), layers.MultiHeadAttention(3, 4), "num_heads . key_dim = 12"),
        (nn.MultiheadAttention(6, 3), layers.MultiHeadAttention(3, 2, 4), "value_dim=4 is not"),
        (nn.MultiheadAttention(6, 3, add_bias_kv=True), layers.MultiHeadAttention(3, 2),
         "made with `add_bias_kv`, which puts a key and a value"),
        (nn.MultiheadAttention(6, 3, add_zero_attn=True), layers.MultiHeadAttention(3, 2),
         "add_zero_attn: torch True"),
        (nn.MultiheadAttention(6, 3, kdim=4), layers.MultiHeadAttention(3, 2), "no Keras layer"),
        (nn.MultiheadAttention(6, 3, vdim=4), layers.MultiHeadAttention(3, 2), "v_proj_weight"),
    ],
)  # fmt: skip
def test_attention_that_differs_is_refused(module, layer, message):
    layer.build((None, 5, 6), (None, 5, 6))
    with pytest.raises(PortingError, match=message):
        from_torch(module, layer)


def test_an_embedding_bag_is_refused_by_name():
    layer = layers.Embedding(7, 3)
    layer.build((None, 4))
    with pytest.raises(PortingError, match=r"EmbeddingBag.*GlobalAveragePooling1D"):
        from_torch(nn.EmbeddingBag(7, 3), layer)


def test_tied_modules_under_weight_norm():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = NORMS["new"](nn.Linear(3, 3))
            self.b = self.a

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    dense = layers.Dense(3, name="dense")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, dense(keras.ops.tanh(dense(inputs))))
    module = randomise(Twice())
    assert read_state_dict(module).ties == {"b.weight": "a.weight", "b.bias": "a.bias"}
    from_torch(module, model)
    assert_same(model, module.double(), normal(4, 3))

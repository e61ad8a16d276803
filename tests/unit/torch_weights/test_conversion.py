"""Weights from torch.nn modules and back, against what the modules compute themselves."""

import copy
from functools import partial

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibackend_lstm import (
    GRU,
    LSTM,
    Bidirectional,
    Channelwise,
    TimeDistributed,
    TimeDistributedConv,
)
from multibackend_lstm.porting import PortingError, from_torch, to_torch
from unit.tools import normal, randomise_weights, to_numpy

torch = pytest.importorskip("torch")
nn = torch.nn
layers = keras.layers


def randomise(module, seed=0):
    """Weights, running statistics too, that are neither zero nor one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(0.5 * torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return module.eval()


def in_torch(function, *xs):
    """What a function of float64 tensors gives, as an array."""
    with torch.no_grad():
        return function(*(torch.tensor(x) if x.dtype.kind == "i" else torch.tensor(x).double()
                          for x in xs)).numpy()  # fmt: skip


def assert_same(layer, function, *xs):
    """A Keras layer gives what a function of torch tensors does, to 1e-6 of the largest value."""
    expected = in_torch(function, *xs)
    actual = to_numpy(layer(xs[0] if len(xs) == 1 else list(xs), training=False))
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-6 * max(1.0, np.abs(expected).max())


def assert_ports(module, layer, x, function=None):
    """Port there and back; both sides compute the same, and a fresh module gets equal tensors."""
    module = randomise(module)
    if not layer.built:
        layer.build(x.shape)
    assert from_torch(module, layer) is layer
    function = function or (lambda module, x: module(x))
    assert_same(layer, partial(function, copy.deepcopy(module).double()), x)
    back = randomise(copy.deepcopy(module), seed=1)
    to_torch(layer, back)
    assert_same(layer, partial(function, copy.deepcopy(back).double()), x)
    for name, tensor in module.state_dict().items():
        if "bias_ih" not in name and "bias_hh" not in name:
            assert torch.equal(back.state_dict()[name], tensor), name


recurrent_cases = {
    "kind": st.sampled_from(["LSTM", "GRU"]),
    "ours": st.booleans(),
    "sizes": st.tuples(st.integers(1, 4), st.integers(1, 5)),
    "count": st.integers(1, 3),
    "bias": st.booleans(),
    "bidirectional": st.booleans(),
    "batch_first": st.booleans(),
    "return_sequences": st.booleans(),
}


@given(**recurrent_cases)
def test_recurrent_modules(
    kind, ours, sizes, count, bias, bidirectional, batch_first, return_sequences
):
    module = getattr(nn, kind)(
        *sizes, count, bias=bias, batch_first=batch_first, bidirectional=bidirectional
    )
    layer_type = {"LSTM": LSTM, "GRU": GRU}[kind] if ours else getattr(layers, kind)
    wrapper = Bidirectional if ours else layers.Bidirectional
    assert_recurrent_ports(module, layer_type, wrapper, return_sequences)


@given(
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    **{name: recurrent_cases[name] for name in recurrent_cases if name not in ("kind", "ours")},
)
def test_simple_rnn(nonlinearity, sizes, count, bias, bidirectional, batch_first, return_sequences):
    module = nn.RNN(*sizes, count, nonlinearity, bias, batch_first, bidirectional=bidirectional)
    layer_type = partial(layers.SimpleRNN, activation=nonlinearity)
    assert_recurrent_ports(module, layer_type, layers.Bidirectional, return_sequences)


def assert_recurrent_ports(module, layer_type, wrapper, return_sequences):
    """A recurrent module against a stack of Keras layers."""
    bidirectional, batch_first, count = module.bidirectional, module.batch_first, module.num_layers
    stack = [keras.Input((5, module.input_size))]
    for number in range(count):
        sequences = return_sequences or number < count - 1
        layer = layer_type(module.hidden_size, use_bias=module.bias, return_sequences=sequences)
        stack.append(wrapper(layer) if bidirectional else layer)

    def call(module, x):
        outputs, states = module(x if batch_first else x.transpose(0, 1))
        hidden = states[0] if isinstance(module, nn.LSTM) else states
        if return_sequences:
            return outputs if batch_first else outputs.transpose(0, 1)
        return torch.cat(list(hidden[-2:]), -1) if bidirectional else hidden[-1]

    assert_ports(module, keras.Sequential(stack), normal(3, 5, module.input_size), call)


def test_a_simple_rnn_whose_nonlinearity_only_the_caller_knows():
    module = nn.RNN(2, 3, nonlinearity="relu")
    layer = layers.SimpleRNN(3, activation="relu")
    layer.build((None, 5, 2))
    with pytest.warns(UserWarning, match="activation='relu', where torch.nn.RNN has nonlinearity="):
        from_torch(module.state_dict(), layer)


def test_a_recurrent_layer_alone():
    module = randomise(nn.GRU(3, 4, batch_first=True))
    layer = layers.GRU(4)
    layer.build((None, 5, 3))
    from_torch(module, layer)
    wide = randomise(nn.GRU(3, 4, batch_first=True)).double()
    assert_same(layer, lambda x: wide(x)[0][:, -1], normal(2, 5, 3))


def test_lstm_biases_are_added_and_go_back_as_one():
    module = randomise(nn.LSTM(2, 3))
    layer = LSTM(3)
    layer.build((None, 4, 2))
    from_torch(module, layer)
    total = (module.bias_ih_l0 + module.bias_hh_l0).detach().numpy()
    np.testing.assert_array_equal(to_numpy(layer.cell.bias), total)
    back = to_torch(layer, module.state_dict())
    np.testing.assert_array_equal(back["bias_ih_l0"], total)
    assert not back["bias_hh_l0"].any()


@given(
    rank=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 2),
    size=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    same=st.booleans(),
    bias=st.booleans(),
)
def test_convolutions(rank, channels, groups, size, stride, dilation, same, bias):
    inputs, outputs = (groups * count for count in channels)
    stride, dilation = (stride, 1) if stride > 1 else (1, dilation)
    # PyTorch has no other, and warns where it pads more on one side.
    same = same and stride == 1 and (size - 1) * dilation % 2 == 0
    module = getattr(nn, f"Conv{rank}d")(
        inputs, outputs, size, stride, "same" if same else 0, dilation, groups, bias
    )
    layer = getattr(layers, f"Conv{rank}D")(
        outputs, size, stride, "same" if same else "valid", "channels_last", dilation, groups,
        use_bias=bias,
    )  # fmt: skip
    x = normal(2, *(6, 7, 5)[:rank], inputs)
    assert_ports(module, layer, x, lambda module, x: module(x.movedim(-1, 1)).movedim(1, -1))


@given(
    rank=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.integers(1, 4),
    stride=st.integers(1, 2),
    same=st.booleans(),
    bias=st.booleans(),
)
def test_transposed_convolutions(rank, channels, size, stride, same, bias):
    inputs, outputs = channels
    same = same and (size - stride) % 2 == 0  # PyTorch cuts as much on both sides
    padding, behind = (max(size - stride, 0) // 2, max(stride - size, 0)) if same else (
        0, max(stride - size, 0)
    )  # fmt: skip
    module = getattr(nn, f"ConvTranspose{rank}d")(
        inputs, outputs, size, stride, padding, behind, bias=bias
    )
    layer = getattr(layers, f"Conv{rank}DTranspose")(
        outputs, size, stride, "same" if same else "valid", data_format="channels_last",
        use_bias=bias,
    )  # fmt: skip
    x = normal(2, *(4, 3, 3)[:rank], inputs)
    assert_ports(module, layer, x, lambda module, x: module(x.movedim(-1, 1)).movedim(1, -1))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolutions(rank, multiplier):
    module = getattr(nn, f"Conv{rank}d")(3, 3 * multiplier, 2, groups=3)
    layer = getattr(layers, f"DepthwiseConv{rank}D")(
        2, depth_multiplier=multiplier, data_format="channels_last"
    )
    x = normal(2, *(6, 7)[:rank], 3)
    assert_ports(module, layer, x, lambda module, x: module(x.movedim(-1, 1)).movedim(1, -1))


def test_strided_same_padding_is_compared_with_what_keras_pads():
    # Of 7 steps, Keras pads one on each side as PyTorch does; of 6 only one behind.
    for steps, fits in ((7, True), (6, False)):
        model = keras.Sequential([keras.Input((steps, 2)), layers.Conv1D(3, 3, 2, "same")])
        module = nn.Sequential(nn.Conv1d(2, 3, 3, 2, padding=1))
        if fits:
            assert_ports(module, model, normal(2, steps, 2), lambda m, x: m(x.mT).mT)
            continue
        with pytest.raises(PortingError, match=r"zeros on each side: torch \[\(1, 1\)\], Keras"):
            from_torch(module, model)


def test_zero_padding_before_a_convolution_counts():
    model = keras.Sequential([keras.Input((6, 2)), layers.ZeroPadding1D(1), layers.Conv1D(3, 3, 2)])
    module = nn.Sequential(nn.Conv1d(2, 3, 3, 2, padding=1))
    assert_ports(module, model, normal(2, 6, 2), lambda m, x: m(x.mT).mT)


@given(
    features=st.integers(1, 6),
    rank=st.integers(0, 3),
    affine=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3]),
)
def test_batch_normalisation(features, rank, affine, eps):
    module = getattr(nn, f"BatchNorm{max(rank, 1)}d")(features, eps=eps, affine=affine)
    layer = layers.BatchNormalization(epsilon=eps, center=affine, scale=affine)
    x = normal(4, *(3, 2, 2)[:rank], features)
    assert_ports(module, layer, x, lambda module, x: module(x.movedim(-1, 1)).movedim(1, -1))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("axes", [[-1], [2, 3], [1, 2, 3]])
def test_layer_normalisation(axes, affine):
    x = normal(2, 3, 4, 5)
    shape = [x.shape[axis] for axis in axes]
    module = nn.LayerNorm(shape, elementwise_affine=affine)
    layer = layers.LayerNormalization(axis=axes, epsilon=1e-5, center=affine, scale=affine)
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    assert_ports(nn.Sequential(module), model, x)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_normalisation(groups):
    model = keras.Sequential(
        [keras.Input((20, 6)), layers.GroupNormalization(groups, epsilon=1e-5)]
    )
    module = nn.Sequential(nn.GroupNorm(groups, 6))
    assert_ports(module, model, normal(2, 20, 6), lambda m, x: m(x.mT).mT)


def test_embedding():
    x = np.array([[0, 3, 1], [4, 4, 2]], "int32")
    layer = layers.Embedding(5, 3)
    assert_ports(nn.Embedding(5, 3, padding_idx=0), layer, x, lambda m, x: m(x.long()))


@pytest.mark.parametrize(
    ("slopes", "shape", "shared"),
    [(1, (4, 3), [1, 2]), (3, (4, 3), [1]), (3, (5, 4, 3), [1, 2]), (3, (3,), None)],
)
def test_prelu(slopes, shape, shared):
    x = normal(2, *shape)
    module = nn.PReLU(slopes)
    layer = layers.PReLU(shared_axes=shared)
    assert_ports(module, layer, x, lambda m, x: m(x.movedim(-1, 1)).movedim(1, -1))


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    assert_ports(nn.Linear(3, 4, bias=bias), layers.Dense(4, use_bias=bias), normal(2, 5, 3))


class PerStep(nn.Module):
    """A convolution in every time step, flattened; (batch, time, channels, features)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.rnn = nn.LSTM(9, 4, batch_first=True)

    def forward(self, x):
        steps = self.norm(self.conv(x.flatten(0, 1).mT)).flatten(1)
        return self.rnn(steps.unflatten(0, x.shape[:2]))[0][:, -1]


@pytest.mark.parametrize("wrapper", [layers.TimeDistributed, TimeDistributed])
def test_time_distributed(wrapper):
    step = keras.Sequential(
        [layers.Conv1D(3, 2), layers.BatchNormalization(epsilon=1e-5), layers.Flatten()]
    )
    model = keras.Sequential([keras.Input((5, 4, 2)), wrapper(step), LSTM(4)])
    assert_ports(PerStep(), model, normal(2, 5, 4, 2))


def test_time_distributed_conv():
    conv = TimeDistributedConv(3, 2, normalization="batch")
    model = keras.Sequential([keras.Input((5, 4, 2)), conv, LSTM(4)])
    model.layers[0].step_layers[1].epsilon = 1e-5
    assert_ports(PerStep(), model, normal(2, 5, 4, 2))


def test_channelwise():
    class PerChannel(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(2, 3, batch_first=True)
            self.fc = nn.Linear(12, 1)

        def forward(self, x):
            series = [self.rnn(x[:, :, channel])[0][:, -1] for channel in range(4)]
            return self.fc(torch.cat(series, dim=-1))

    model = keras.Sequential([keras.Input((5, 4, 2)), Channelwise(LSTM(3)), layers.Dense(1)])
    assert_ports(PerChannel(), model, normal(2, 5, 4, 2))


class Flattening(nn.Module):
    """Convolution, pooling, flatten, and what may stand between it and the weights behind."""

    def __init__(self, rank, size, last):
        super().__init__()
        self.conv = getattr(nn, f"Conv{rank}d")(2, 3, 2)
        self.pool = getattr(nn, f"MaxPool{rank}d")(2)
        self.norm = nn.BatchNorm1d(size)
        self.norm2 = nn.LayerNorm(size)
        self.prelu = nn.PReLU(size)
        self.fc = nn.Linear(size, 4)
        self.last = last

    def forward(self, x):
        x = self.pool(self.conv(x.movedim(-1, 1)))
        x = x.movedim(1, -1).flatten(1) if self.last else x.flatten(1)
        return self.fc(self.prelu(self.norm2(self.norm(x))))


@pytest.mark.parametrize("flatten_order", ["channels_first", "channels_last"])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("reshape", [False, True])
def test_flattening_permutes_everything_behind(rank, reshape, flatten_order):
    shape = (9, 7)[:rank]
    size = 3 * int(np.prod([(n - 1) // 2 for n in shape]))
    module = randomise(Flattening(rank, size, flatten_order == "channels_last"))
    model = keras.Sequential(
        [
            keras.Input((*shape, 2)),
            getattr(layers, f"Conv{rank}D")(3, 2),
            getattr(layers, f"MaxPooling{rank}D")(2),
            layers.Reshape((size,)) if reshape else layers.Flatten(),
            layers.BatchNormalization(epsilon=1e-5),
            layers.Dropout(0.5),
            layers.LayerNormalization(epsilon=1e-5),
            layers.PReLU(),
            layers.Dense(4),
        ]
    )
    x = normal(3, *shape, 2)
    from_torch(module, model, flatten_order=flatten_order)
    wide = randomise(Flattening(rank, size, flatten_order == "channels_last")).double()
    assert_same(model, wide, x)
    other = "channels_last" if flatten_order == "channels_first" else "channels_first"
    from_torch(module, model, flatten_order=other)
    with pytest.raises(AssertionError):
        assert_same(model, wide, x)
    back = to_torch(model, randomise(Flattening(rank, size, True), seed=3), flatten_order=other)
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name])


class RandomNet(nn.Module):
    """Convolutions over (time, channels), each with what may follow it, then LSTM or Linear."""

    def __init__(self, blocks, recurrent, channels_last):
        super().__init__()
        self.steps = nn.ModuleList()
        filters, sizes = 2, [12, 9]
        for count, size, norm, pool in blocks:
            self.steps.append(nn.Conv2d(filters, count, size))
            sizes = [n - size + 1 for n in sizes]
            self.steps.append({"batch": nn.BatchNorm2d(count), "group": nn.GroupNorm(1, count),
                               "none": nn.PReLU(count)}[norm])  # fmt: skip
            if pool:
                self.steps.append(nn.AvgPool2d(2))
                sizes = [n // 2 for n in sizes]
            filters = count
        self.rnn = nn.LSTM(filters * sizes[1], 3, batch_first=True) if recurrent else None
        self.fc = nn.Linear(3 if recurrent else filters * sizes[0] * sizes[1], 2)
        self.channels_last = channels_last

    def forward(self, x):
        x = x.movedim(-1, 1)
        for step in self.steps:
            x = step(x)
        if self.channels_last:
            x = x.movedim(1, -1)
        elif self.rnn is not None:
            x = x.transpose(1, 2)
        if self.rnn is None:
            return self.fc(x.flatten(1))
        return self.fc(self.rnn(x.flatten(2))[0][:, -1])


def keras_random_net(blocks, recurrent):
    parts = [keras.Input((12, 9, 2))]
    for count, size, norm, pool in blocks:
        parts.append(layers.Conv2D(count, size))
        if norm == "batch":
            parts.append(layers.BatchNormalization(epsilon=1e-5))
        elif norm == "group":
            parts.append(layers.GroupNormalization(1, epsilon=1e-5))
        else:
            parts.append(layers.PReLU(shared_axes=[1, 2]))
        if pool:
            parts.append(layers.AveragePooling2D(2))
    parts += [LSTM(3)] if recurrent else [layers.Flatten()]
    return keras.Sequential([*parts, layers.Dense(2)])


@given(
    blocks=st.lists(
        st.tuples(
            st.integers(1, 3),
            st.integers(1, 2),
            st.sampled_from(["batch", "group", "none"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=2,
    ),
    recurrent=st.booleans(),
    channels_last=st.booleans(),
)
def test_random_cnn_lstms(blocks, recurrent, channels_last):
    order = "channels_last" if channels_last else "channels_first"
    module = randomise(RandomNet(blocks, recurrent, channels_last))
    model = keras_random_net(blocks, recurrent)
    x = normal(2, 12, 9, 2)
    from_torch(module, model, flatten_order=order)
    wide = copy.deepcopy(module).double()
    expected = in_torch(wide, x)
    # Activations grow through the layers, and what is rounded of them stays.
    scale = max(1.0, np.abs(expected).max())
    # Keras takes a group's variance for E[x^2] - E[x]^2, of which few digits may be left.
    tolerance = 1e-3 if any(norm == "group" for _, _, norm, _ in blocks) else 3e-6
    assert np.abs(to_numpy(model(x, training=False)) - expected).max() <= tolerance * scale
    back = RandomNet(blocks, recurrent, channels_last).eval()
    to_torch(model, back, flatten_order=order)
    assert np.abs(in_torch(back.double(), x) - expected).max() <= 1e-6 * scale


def test_a_convolution_over_time_needs_no_permutation():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 2)
            self.rnn = nn.GRU(3, 4, batch_first=True)

        def forward(self, x):
            return self.rnn(self.conv(x.mT).mT)[0][:, -1]

    model = keras.Sequential([keras.Input((6, 2)), layers.Conv1D(3, 2), GRU(4)])
    assert_ports(Net(), model, normal(2, 6, 2))


def test_the_lstm_that_flattens_itself_and_filters_kept_first_in_keras():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, (2, 1))
            self.rnn = nn.LSTM(12, 4, batch_first=True)

        def forward(self, x):  # (batch, time, channels, features)
            return self.rnn(self.conv(x.movedim(-1, 1)).transpose(1, 2).flatten(2))[0][:, -1]

    for between in ([], [layers.Permute((1, 3, 2))]):
        model = keras.Sequential(
            [keras.Input((6, 4, 2)), layers.Conv2D(3, (2, 1)), *between, LSTM(4)]
        )
        assert_ports(Net(), model, normal(2, 6, 4, 2))


def test_raw_input_is_flattened_alike():
    model = keras.Sequential([keras.Input((6, 4, 2)), LSTM(3)])
    module = nn.Sequential()
    module.rnn = nn.LSTM(8, 3, batch_first=True)
    assert_ports(module, model, normal(2, 6, 4, 2), lambda m, x: m.rnn(x.flatten(2))[0][:, -1])


def two_branches():
    """Two convolutions of one shape side by side, concatenated, flattened."""
    inputs = keras.Input((6, 2))
    a = layers.Conv1D(3, 2, name="a")(inputs)
    b = layers.Conv1D(3, 2, name="b")(inputs)
    joined = layers.Concatenate()([a, b])
    return keras.Model(inputs, layers.Dense(4, name="out")(layers.Flatten()(joined)))


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Conv1d(2, 3, 2)
        self.right = nn.Conv1d(2, 3, 2)
        self.fc = nn.Linear(30, 4)

    def forward(self, x):
        x = x.mT
        return self.fc(torch.cat([self.left(x), self.right(x)], dim=1).flatten(1))


def test_mapping_settles_branches():
    module, model = randomise(TwoBranches()), two_branches()
    with pytest.raises(PortingError, match="left, right fit a, b in more than one way") as error:
        from_torch(module, model)
    assert "do not run one after the other" in str(error.value)
    assert "out (Dense)" in str(error.value)
    from_torch(module, model, {"left": "a", "right": "b"})
    wide = randomise(TwoBranches()).double()
    assert_same(model, wide, normal(2, 6, 2))
    from_torch(module, model, {"left": "b"})  # what is left fits one way
    np.testing.assert_array_equal(
        to_numpy(model.get_layer("b").kernel),
        module.left.weight.detach().numpy().transpose(2, 1, 0),
    )


def test_skip_connections_and_nested_models():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv1d(2, 3, 3, padding=1)
            self.conv2 = nn.Conv1d(3, 3, 3, padding=1)
            self.fc = nn.Linear(18, 4)

        def forward(self, x):
            x = self.conv1(x.mT)
            return self.fc((x + torch.relu(self.conv2(x))).flatten(1))

    block_input = keras.Input((6, 3))
    x = layers.Conv1D(3, 3, padding="same", name="conv")(block_input)
    block = keras.Model(block_input, layers.Add()([block_input, keras.ops.relu(x)]), name="block")
    inputs = keras.Input((6, 2))
    x = block(layers.Conv1D(3, 3, padding="same", name="first")(inputs))
    model = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))
    assert_ports(Net(), model, normal(2, 6, 2))
    assert "block.conv.weight" in to_torch(model)


def test_an_operation_that_is_not_known_is_refused_behind_a_convolution():
    inputs = keras.Input((6, 2))
    x = layers.Conv1D(3, 2)(inputs)
    x = keras.ops.diff(x, axis=1)
    model = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))
    module = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4))
    before = model.get_weights()
    with pytest.raises(PortingError, match=r"\(Diff\) does is not known.*flatten_order"):
        from_torch(module, model)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    from_torch(module, model, flatten_order="channels_last")


@pytest.mark.parametrize(
    ("module", "layer", "shape", "message"),
    [
        (nn.LSTM(2, 4, proj_size=3), LSTM(4), (5, 2), "`proj_size`, which no Keras layer has"),
        (nn.GRU(2, 4), GRU(4, reset_after=False), (5, 2), "reset_after=True"),
        (nn.LSTM(2, 4), LSTM(4, activation="relu"), (5, 2), "activation='relu'"),
        (nn.LSTM(2, 4), LSTM(4, go_backwards=True), (5, 2), "go_backwards=True"),
        (nn.LSTM(2, 4), LSTM(5), (5, 2), r"weight_ih \(16, 2\).*weight_ih \(20, 2\)"),
        (nn.LSTM(2, 4, bias=False), LSTM(4), (5, 2), "no Keras layer fits .root., layer 0"),
        (nn.LSTM(2, 4, 2), LSTM(4), (5, 2), "no Keras layer fits .root., layer 1"),
        (nn.RNN(2, 4), layers.SimpleRNN(4, activation="relu"), (5, 2),
         "nonlinearity: torch tanh, Keras relu"),
        (nn.RNN(2, 4), layers.SimpleRNN(4, activation="elu"), (5, 2), "torch.nn has tanh and relu"),
        (nn.RNN(2, 4, bidirectional=True),
         layers.Bidirectional(layers.SimpleRNN(4), backward_layer=layers.SimpleRNN(
             4, activation="relu", go_backwards=True)),
         (5, 2), "tanh in one direction and relu in the other"),
        (nn.Bilinear(2, 2, 4), LSTM(4), (5, 2),
         "type Bilinear.*not supported. Supported: LSTM, LSTMCell, GRU, GRUCell, RNN"),
        (nn.Linear(2, 4), layers.ConvLSTM1D(4, 2), (5, 6, 2), "ConvLSTM1D has weights and is not"),
        (nn.Linear(2, 4), layers.Embedding(4, 2), (5,), "no tensors fit the Keras layers embed"),
        (nn.Conv1d(2, 3, 2, 2), layers.Conv1D(3, 2), (5, 2), r"stride: torch \(2,\), Keras \(1,"),
        (nn.Conv1d(2, 2, 2, padding_mode="circular"), layers.Conv1D(2, 2), (5, 2), "padding_mode"),
        (nn.BatchNorm1d(2), layers.BatchNormalization(), (2,), "eps: torch 1e-05, Keras 0.001"),
        (nn.BatchNorm1d(2, track_running_stats=False), layers.BatchNormalization(), (2,),
         "moving|running_mean"),
        (nn.BatchNorm1d(4), layers.Conv1D(4, 2), (5, 3), r"no tensors fit the Keras layers conv1d"),
        (nn.PReLU(3), layers.PReLU(), (4, 3), r"set shared_axes=\[1\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_and_changes_nothing(module, layer, shape, message):
    layer.build((None, *shape))
    before = layer.get_weights()
    with pytest.raises(PortingError, match=f"(?s){message}"):
        from_torch(module, layer)
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(PortingError):
        to_torch(layer, module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_the_order_of_definition_is_not_trusted_where_numbers_say_otherwise():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv2 = nn.Conv1d(2, 2, 3)
            self.conv1 = nn.Conv1d(2, 2, 3)

    model = keras.Sequential([keras.Input((9, 2)), layers.Conv1D(2, 3), layers.Conv1D(2, 3)])
    with pytest.raises(PortingError, match="their numbers and their order differ"):
        from_torch(Net(), model)


def test_weights_that_other_weights_make_are_explained():
    module = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3))
    layer = layers.Dense(3)
    layer.build((None, 2))
    with pytest.raises(PortingError, match="remove_parametrizations"):
        from_torch(module, layer)


def test_half_precision_is_widened_and_double_is_not_cut():
    layer = layers.Dense(3)
    layer.build((None, 2))
    for dtype in (torch.bfloat16, torch.float16):
        module = randomise(nn.Linear(2, 3)).to(dtype)
        from_torch(module, layer)
        np.testing.assert_array_equal(
            to_numpy(layer.kernel), module.weight.detach().float().numpy().T
        )
        back = to_torch(layer, nn.Linear(2, 3).to(dtype))
        assert back.weight.dtype == dtype
        assert torch.equal(back.weight, module.weight)
    with pytest.raises(PortingError, match="weight has the dtype float64, whose digits float32"):
        from_torch(randomise(nn.Linear(2, 3).double()), layer)
    randomise_weights(layer)
    with pytest.raises(PortingError, match="whose digits float16 in PyTorch cannot hold"):
        to_torch(layer, nn.Linear(2, 3).half())


def test_the_other_way_round_is_explained():
    layer = layers.Dense(3)
    layer.build((None, 2))
    with pytest.raises(PortingError, match="which is which"):
        from_torch(layer, nn.Linear(2, 3))
    with pytest.raises(PortingError, match="`layer_or_model` must be a Keras layer"):
        from_torch(nn.Linear(2, 3), 3)

"""check_port: passes for what is ported, and fails for what is not."""

import copy

import keras
import numpy as np
import pytest

from multibackend_lstm import GRU, LSTM
from multibackend_lstm.porting import PortingError, check_port, from_torch, to_torch
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


def twin():
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


def test_a_ported_model_passes_and_says_what_was_compared():
    module, model = net(), twin()
    from_torch(module, model)
    before = [copy.deepcopy(module.state_dict()), model.get_weights()]
    check = check_port(module, model)
    check.raise_if_different()
    dtypes = {d.dtype for d in check.differences}
    assert dtypes == ({"float32", "float64"} if BACKEND == "tensorflow" else {"float32"})
    assert {d.where for d in check.differences} == {
        "model", *(layer.name for layer in model.layers if layer.weights)
    }  # fmt: skip
    tensors = {d.tensor for d in check.differences if d.where == "model"}
    assert {"output 0", "gradient of input 0"} < tensors
    assert len(tensors) == 2 + len(model.trainable_weights)
    assert all(d.tolerance < 1e-5 for d in check.differences)
    assert "float64" in check.table()
    assert check.as_dict()["ok"] is True
    for a, b in zip(model.get_weights(), before[1], strict=True):
        np.testing.assert_array_equal(a, b)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[0][name])


def test_a_state_dict_is_compared_layer_by_layer():
    module, model = net(), twin()
    from_torch(module, model)
    check = check_port(module.state_dict(), model)
    assert check.ok
    assert "model" not in {d.where for d in check.differences}


@pytest.mark.parametrize("position", [0, 5, 7, -1])
def test_a_wrong_weight_is_found(position):
    module, model = net(), twin()
    from_torch(module, model)
    weight = model.weights[position]
    changed = np.array(keras.ops.convert_to_numpy(weight))
    changed.flat[0] += 1e-3
    weight.assign(changed)
    check = check_port(module.state_dict(), model)
    assert not check.ok
    assert len({d.where for d in check.differences if not d.ok}) == 1
    assert all(d.tolerance < 1e-5 for d in check.differences)
    with pytest.raises(PortingError, match="DIFFERS"):
        check.raise_if_different()


def test_a_wrong_flatten_order_is_found_by_the_whole_model_alone():
    module, model = net(), twin()
    from_torch(module, model, flatten_order="channels_last")
    check = check_port(module, model, flatten_order="channels_last")
    assert {d.where for d in check.differences if not d.ok} == {"model"}


def test_forward_says_how_to_call_the_module():
    module = nn.Sequential(nn.Linear(2, 3))
    model = keras.Sequential([keras.Input((5, 2)), layers.Dense(3, activation="softmax")])
    from_torch(module, model)
    assert not check_port(module, model).ok
    check_port(
        module,
        model,
        forward=lambda m, x: m(x).softmax(-1),
        inputs=np.random.default_rng(0).normal(size=(2, 5, 2)).astype("float32"),
    ).raise_if_different()
    with pytest.raises(PortingError, match=r"has the shape \(3, 5, 3\) in Keras.*Give `forward`"):
        check_port(module, model, forward=lambda m, x: m(x)[:, 0])


def test_nan_is_no_agreement():
    module, model = net(), twin()
    from_torch(module, model)
    inputs = np.full((1, 4, 4, 2), np.nan, "float32")
    check = check_port(module, model, inputs=inputs)
    assert any(d.value == float("inf") for d in check.differences if d.where == "model")
    assert not check.ok


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_recurrent_module_itself(batch_first):
    module = nn.LSTM(6, 4, 2, batch_first=batch_first)
    model = keras.Sequential([keras.Input((7, 3, 2)), LSTM(4, return_sequences=True), LSTM(4)])
    from_torch(module, model)
    check_port(module, model).raise_if_different()


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((12, 4), layers.Conv1D(6, 3, 2, "same", groups=2, activation="relu")),
        ((12, 4), layers.Conv1D(6, 3, padding="causal", dilation_rate=2)),
        ((8, 6, 2), layers.Conv2D(3, 2, data_format="channels_last")),
        ((8, 6, 2), layers.Conv2DTranspose(3, 3, 2, "same")),
        ((12, 4), layers.DepthwiseConv1D(3, 1, "same", 2)),
        ((5,), layers.Embedding(7, 3)),
        ((6, 4), layers.GroupNormalization(2, epsilon=1e-5)),
        ((6, 4), layers.LayerNormalization(axis=[1, 2], epsilon=1e-5)),
        ((6, 4), layers.PReLU(shared_axes=[1])),
        ((6, 4), layers.Bidirectional(LSTM(3, return_sequences=True), merge_mode="sum")),
        ((6, 4), LSTM(3, return_state=True, stateful=False)),
        ((6, 4), layers.Dense(3, activation="softmax")),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_kind_of_layer_has_a_twin(shape, layer):
    layer.build((None, *shape))
    randomise_weights(layer)
    state = to_torch(layer)
    check_port(state, layer).raise_if_different()
    weight = layer.weights[0]
    weight.assign(keras.ops.convert_to_numpy(weight) + 1e-2)
    assert not check_port(state, layer).ok

"""Tied weights: equal on both sides is fine, diverged is refused by name."""

import copy

import keras
import numpy as np
import pytest

from multibackend_lstm import LSTM
from multibackend_lstm.porting import PortingError, check_port, from_torch, to_torch
from multibackend_lstm.torch_weights.state_dict import read_state_dict
from unit.tools import needs_gradients, randomise_weights

torch = pytest.importorskip("torch")
nn = torch.nn
layers = keras.layers

NAMES = {"encoder": "encoder", "decoder": "decoder"}


class LanguageModel(nn.Module):
    """The weight is tied, the decoder's bias is its own."""

    def __init__(self, tied=True):
        super().__init__()
        self.encoder = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.decoder = nn.Linear(4, 7)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.rnn(self.encoder(x))[0])


class Twice(nn.Module):
    """One layer under two names, another of the same shape."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.again(torch.tanh(self.first(x))))


class Apart(nn.Module):
    """As `Twice`, with three layers."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = (nn.Linear(3, 3) for _ in range(3))

    forward = Twice.forward


def language_model():
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(7, 4, name="encoder"),
            LSTM(4, return_sequences=True, name="rnn"),
            layers.Dense(7, name="decoder"),
        ]
    )
    randomise_weights(model)
    return model


def keras_twice(shared=True):
    first = layers.Dense(3, name="first")
    again = first if shared else layers.Dense(3, name="again")
    inputs = keras.Input((3,))
    x = again(keras.ops.tanh(first(inputs)))
    return keras.Model(inputs, layers.Dense(3, name="last")(x))


def seeded(kind, *args):
    torch.manual_seed(0)
    return kind(*args).eval()


@needs_gradients
def test_tied_weights_become_equal_ones():
    module, model = seeded(LanguageModel), language_model()
    from_torch(module, model)
    kernel = keras.ops.convert_to_numpy(model.get_layer("decoder").kernel)
    np.testing.assert_array_equal(kernel.T, module.encoder.weight.detach().numpy())
    report = check_port(module, model)
    report.raise_if_disagrees()
    paths = {c.path for c in report.results[0].comparisons}
    assert {"model/encoder.weight and decoder.weight", "model/decoder/bias"} < paths
    back = to_torch(model, seeded(LanguageModel))
    assert back.decoder.weight is back.encoder.weight
    assert torch.equal(back.decoder.weight, module.decoder.weight)


class Translator(nn.Module):
    """One embedding under two names, and its weight in the last layer too."""

    def __init__(self):
        super().__init__()
        self.source = self.target = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.source.weight

    def forward(self, x):
        return self.head(self.rnn(self.source(x) + self.target(x))[0])


@needs_gradients
def test_a_module_of_two_names_is_one_layer_and_a_weight_tied_to_it_another():
    module = seeded(Translator)
    embed = layers.Embedding(7, 4, name="embedding")
    inputs = keras.Input((5,), dtype="int32")
    x = LSTM(4, return_sequences=True, name="rnn")(embed(inputs) + embed(inputs))
    model = keras.Model(inputs, layers.Dense(7, use_bias=False, name="head")(x))
    from_torch(module, model)
    check_port(module, model).raise_if_disagrees()
    back = to_torch(model, seeded(Translator))
    assert back.head.weight is back.target.weight
    randomise_weights(model)
    with pytest.raises(PortingError, match=r"head\.weight and source\.weight are tied"):
        to_torch(model, module)


@needs_gradients
def test_a_tie_that_pytorch_does_not_use_is_found():
    module, model = seeded(LanguageModel), language_model()
    from_torch(module, model)

    def forward(module, x):  # no gradient through the encoder
        return module.decoder(module.rnn(module.encoder(x).detach())[0])

    report = check_port(module, model, forward=forward)
    wrong = {c.path for c in report.results[0].comparisons if c.verdict == "disagrees"}
    assert wrong == {"model/encoder.weight and decoder.weight"}


@pytest.mark.parametrize("as_state_dict", [False, True])
def test_diverged_weights_are_refused_by_name(as_state_dict):
    module, model = seeded(LanguageModel), language_model()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(PortingError, match=r"decoder\.weight and encoder\.weight are tied"):
        to_torch(model, module.state_dict() if as_state_dict else module)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_memory_that_is_shared_transposed():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)
            self.decoder.weight = nn.Parameter(self.encoder.weight.data.T)

    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2, name="encoder"), layers.Dense(3, name="decoder")]
    )
    module = seeded(Autoencoder)
    before = copy.deepcopy(module.state_dict())
    randomise_weights(model)
    with pytest.raises(PortingError, match=r"encoder\.weight.* share memory.*other values"):
        to_torch(model, module)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    from_torch(module, model)
    to_torch(model, module)


@needs_gradients
def test_a_shared_keras_layer_for_one_module_under_two_names():
    module, model = seeded(Twice), keras_twice()
    from_torch(module, model)
    check_port(module, model).raise_if_disagrees()
    randomise_weights(model)
    state = to_torch(model, module.state_dict())
    assert state["again.weight"] is state["first.weight"]
    to_torch(model, module)
    check_port(module, model).raise_if_disagrees()


@needs_gradients
def test_two_keras_layers_for_one_module_under_two_names():
    module, model = seeded(Twice), keras_twice(shared=False)
    from_torch(module, model)
    check_port(module, model).raise_if_disagrees()
    randomise_weights(model)
    with pytest.raises(PortingError, match=r"again\.weight and first\.weight, .* are tied"):
        to_torch(model, module)


@needs_gradients
def test_a_shared_keras_layer_for_two_modules():
    module, model = seeded(Apart), keras_twice()
    mapping = {"first": "first", "again": "first", "last": "last"}
    with pytest.raises(PortingError, match="no Keras layer fits"):
        from_torch(module, model)
    before = model.get_weights()
    with pytest.raises(PortingError, match=r"first\.weight and again\.weight differ"):
        from_torch(module, model, mapping)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    randomise_weights(model)
    to_torch(model, module, mapping)
    assert torch.equal(module.first.weight, module.again.weight)
    from_torch(module, model, mapping)
    check_port(module, model, mapping).raise_if_disagrees()


def test_two_modules_for_a_layer_that_is_called_once():
    module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="only")])
    with pytest.raises(
        PortingError, match="'only' twice, for a and b, and the model calls it once"
    ):
        from_torch(module, model, {"a": "only", "b": "only"})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_ties_of_a_file(tmp_path, suffix):
    module, model = seeded(LanguageModel), language_model()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(module.state_dict(), path)
        state = read_state_dict(path)
    else:
        pytest.importorskip("safetensors.torch").save_model(module, str(path))
        with pytest.warns(
            UserWarning, match=r"says that encoder\.weight is decoder\.weight: taken"
        ):
            state = read_state_dict(path)
    assert len(state.ties) == 1
    assert set(state.ties) < {"encoder.weight", "decoder.weight"}
    if suffix == ".pt":
        from_torch(path, model)
        to_torch(model, path)
        randomise_weights(model)
        with pytest.raises(PortingError, match="are tied"):
            to_torch(model, path)


def test_a_key_that_is_absent_is_refused_by_name(tmp_path):
    state = seeded(LanguageModel).state_dict()
    del state["decoder.weight"]
    with pytest.raises(PortingError, match=r"decoder\.weight is missing.*state\[.decoder\.weight"):
        from_torch(state, language_model())
    del state["decoder.bias"]
    with pytest.raises(PortingError, match="no tensors fit the Keras layers decoder"):
        from_torch(state, language_model())

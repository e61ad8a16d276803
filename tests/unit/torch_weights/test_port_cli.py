"""`multibackend-lstm port`."""

import json
import re
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from multibackend_lstm import GRU
from multibackend_lstm.cli import main
from multibackend_lstm.environment import BACKENDS, installed_backends
from multibackend_lstm.torch_weights.state_dict import read_state_dict, write_state_dict
from unit.tools import BACKEND, normal

if BACKEND not in BACKENDS:
    pytest.skip("the command line runs on the training backends", allow_module_level=True)
layers = keras.layers
HAS_TORCH = "torch" in installed_backends()


def port(*arguments):
    return CliRunner().invoke(main, ["port", *map(str, arguments), "--backend", BACKEND])


@pytest.fixture
def files(tmp_path):
    """A Keras model, and weights for it as PyTorch names them."""
    model = keras.Sequential([keras.Input((6, 4, 2)), layers.Conv2D(3, (2, 1)), GRU(4)])
    model.save(tmp_path / "model.keras")
    state = {
        "conv.weight": normal(3, 2, 2, 1, seed=1),
        "conv.bias": normal(3, seed=2),
        "rnn.weight_ih_l0": 0.3 * normal(12, 12, seed=3),
        "rnn.weight_hh_l0": 0.3 * normal(12, 4, seed=4),
        "rnn.bias_ih_l0": normal(12, seed=5),
        "rnn.bias_hh_l0": normal(12, seed=6),
    }
    write_state_dict(state, tmp_path / "weights.safetensors")
    return tmp_path, state


def test_to_keras_and_back(files):
    folder, state = files
    before = {path: path.read_bytes() for path in folder.iterdir()}
    weights, model, out = (
        folder / name for name in ("weights.safetensors", "model.keras", "ported.keras")
    )
    result = port(weights, model, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["direction"] == "to_keras"
    assert [row["permuted"] for row in document["layers"]] == [False, True]
    if HAS_TORCH:
        assert document["check"]["agrees"]
        compared = document["check"]["targets"][0]["comparisons"]
        assert {c["kind"] for c in compared} == {"layer", "input gradient", "weight gradient"}
    else:
        assert "multibackend-lstm[torch]" in document["notes"][0]
    loaded = keras.saving.load_model(out)
    kernel = loaded.layers[1].get_weights()[0].reshape(4, 3, 12)  # (channel, filter, gates)
    gates = np.split(state["rnn.weight_ih_l0"].reshape(12, 3, 4), 3)  # (gates, filter, channel)
    expected = np.concatenate([gates[1], gates[0], gates[2]]).transpose(2, 1, 0)
    np.testing.assert_array_equal(kernel, expected)

    back = folder / "back.safetensors"
    result = port(out, "--like", weights, "--out", back)
    assert result.exit_code == 0, result.output
    assert "back.safetensors written." in result.output
    assert ("compared" in result.output.lower()) is True
    tensors = read_state_dict(back).tensors
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(tensors[name], value)
    for path, content in before.items():
        assert path.read_bytes() == content
    assert {path.name for path in folder.iterdir()} == {
        *(path.name for path in before), "ported.keras", "back.safetensors"
    }  # fmt: skip


@pytest.mark.skipif(not HAS_TORCH, reason="about the comparison with PyTorch")
def test_nothing_is_written_where_the_comparison_fails(files, monkeypatch):
    folder, _ = files
    from multibackend_lstm.torch_weights import checking

    of_keras = checking.of_keras

    def off(*arguments):
        values = of_keras(*arguments)
        values.outputs[0] = values.outputs[0] + np.float32(1e-3)
        return values

    monkeypatch.setattr(checking, "of_keras", off)
    result = port(
        folder / "weights.safetensors", folder / "model.keras", "--out", folder / "o.keras"
    )
    assert result.exit_code == 1
    assert "disagrees from layer" in result.output
    assert "Nothing was written." in result.output
    assert not (folder / "o.keras").exists()


def test_weights_that_do_not_fit_have_status_1(files):
    folder, state = files
    wrong = folder / "wrong.npz"
    write_state_dict({**state, "fc.weight": normal(2, 2)}, wrong)
    result = port(wrong, folder / "model.keras", "--out", folder / "o.keras")
    assert result.exit_code == 1, result.output
    assert "no Keras layer fits fc" in result.output
    assert not (folder / "o.keras").exists()


def test_wrong_use_has_status_2(files):
    folder, _ = files
    weights, model = folder / "weights.safetensors", folder / "model.keras"
    mapping = folder / "mapping.json"
    mapping.write_text('{"conv": 3}')
    unknown = folder / "unknown.json"
    unknown.write_text('{"nothing": "conv2d"}')
    broken = folder / "broken.keras"
    broken.write_bytes(model.read_bytes()[:100])
    for arguments, message in [
        ((weights, model, "--out", model), "--out must not be an input file"),
        ((weights, model, "--out", folder / "o.npz"), "--out must end in .keras"),
        ((model, "--out", folder / "o.keras"), "--out must end in .safetensors"),
        ((weights, "--out", folder / "o.npz"), "a .keras file is needed"),
        ((model, weights, "--out", folder / "o.keras"), "SOURCE must end in .safetensors"),
        ((weights, model, "--out", folder / "o.keras", "--mapping", mapping), "--mapping must be"),
        ((weights, model, "--out", folder / "o.keras", "--mapping", unknown), "names 'nothing'"),
        ((model, "--out", folder / "o.npz", "--mapping", mapping), "add --like"),
        ((weights, broken, "--out", folder / "o.keras"), "broken.keras cannot be loaded"),
    ]:
        result = port(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.output.replace("\n", " "), result.output
    assert not list(folder.glob("o.*"))
    assert not list(folder.glob(".*"))


def test_without_torch_it_says_what_is_not_compared(files, monkeypatch):
    if BACKEND == "torch":
        pytest.skip("Keras needs torch here")
    folder, _ = files
    from multibackend_lstm.cli import port as command

    module = sys.modules[command.callback.__module__]
    find = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else find(name))
    result = port(
        folder / "weights.safetensors", folder / "model.keras", "--out", folder / "o.keras"
    )
    assert result.exit_code == 0, result.output
    assert "pip install 'multibackend-lstm[torch]'" in result.output
    assert (folder / "o.keras").exists()


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A module with tied weights in a file of Python, its weights, and the Keras model."""
    torch = pytest.importorskip("torch")
    (tmp_path / "ported_network.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.encoder = torch.nn.Embedding(7, 4)\n"
        "        self.rnn = torch.nn.GRU(4, 4, batch_first=True)\n"
        "        self.decoder = torch.nn.Linear(4, 7)\n"
        "        self.decoder.weight = self.encoder.weight\n"
        "    def forward(self, x):\n"
        "        return self.decoder(self.rnn(self.encoder(x))[0])\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return Net()\n"
        "def shifted(module, x):\n"
        "    return module(x) + 1\n"
        "nothing = dict\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "ported_network", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    import ported_network

    monkeypatch.delitem(sys.modules, "ported_network")
    module = ported_network.build()
    state = {f"model.{name}": x + 0.1 for name, x in module.state_dict().items()}
    del state["model.decoder.weight"]  # as tied weights are left out
    torch.save({"epoch": 1, "state_dict": state, "ema": state}, tmp_path / "last.ckpt")
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(7, 4),
            layers.GRU(4, return_sequences=True),
            layers.Dense(7),
        ]
    )
    model.save(tmp_path / "model.keras")
    return tmp_path


def test_the_whole_model_is_compared_with_a_module(network):
    module = ("--module", "ported_network:build", "--key", "state_dict")
    result = port("last.ckpt", "model.keras", "--out", "ported.keras", *module, "--json")
    assert result.exit_code == 0, result.output
    compared = json.loads(result.stdout)["check"]["targets"][0]["comparisons"]
    assert {"model", "model/encoder.weight and decoder.weight"} <= {c["path"] for c in compared}

    result = port(
        "last.ckpt", "model.keras", "--out", "other.keras", *module,
        "--forward", "ported_network:shifted",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    assert not (network / "other.keras").exists()

    result = port("ported.keras", "--out", "back.pt", "--module", "ported_network:build")
    assert result.exit_code == 0, result.output
    assert len(read_state_dict(network / "back.pt").ties) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--module", "ported_network:build"), 1, "'state_dict', 'ema'.*--key"),
        (("--module", "ported_network:nothing", "--key", "ema"), 1, "must return a torch.nn.Modu"),
        (("--module", "ported_network:other", "--key", "ema"), 2, "names 'other', which"),
        (("--module", "no_such_module:build", "--key", "ema"), 2, "no module 'no_such_module'"),
        (("--module", "ported_network"), 2, "must be PACKAGE.MODULE:FUNCTION"),
        (("--forward", "ported_network:shifted"), 2, "needs --module"),
        (("--key", "ema"), 1, "decoder.weight is missing. If it is tied, add it"),
        (("--key", "no"), 1, "Received 'no'"),
    ],
)
def test_what_is_wrong_about_a_module_is_said(network, arguments, status, message):
    result = port("last.ckpt", "model.keras", "--out", "ported.keras", *arguments)
    assert result.exit_code == status, result.output
    assert re.search(message, " ".join(result.output.split()))
    assert not (network / "ported.keras").exists()


def test_weights_of_another_module_are_refused_by_name(network):
    torch = pytest.importorskip("torch")
    saved = torch.load("last.ckpt", weights_only=True)["ema"]
    saved["model.decoder.weight"] = saved["model.encoder.weight"] + 1
    torch.save(saved, "diverged.pt")
    del saved["model.rnn.bias_hh_l0"]
    torch.save({**saved, "model.more": torch.ones(2)}, "odd.pt")
    for file, message in (
        ("diverged.pt", "weight share memory .*other values"),
        ("odd.pt", "rnn.bias_hh_l0 is missing; more is not the module's"),
    ):
        arguments = ("--out", "ported.keras", "--module", "ported_network:build")
        result = port(file, "model.keras", *arguments)
        assert result.exit_code == 1, result.output
        assert re.search(message, " ".join(result.output.split()))

"""State dicts of NumPy arrays and files; nothing here needs PyTorch."""

import pathlib
import sys
import zipfile

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibackend_lstm import GRU, LSTM
from multibackend_lstm.porting import PortingError, from_torch, to_torch
from multibackend_lstm.torch_weights.axes import Axis, UnknownOrder, join, merge, reshape
from multibackend_lstm.torch_weights.conversion import named_state_dict
from multibackend_lstm.torch_weights.graph import read_graph
from multibackend_lstm.torch_weights.state_dict import read_state_dict, write_state_dict
from unit.tools import normal, randomise_weights, to_numpy

layers = keras.layers


def cnn_lstm(filters=3):
    model = keras.Sequential(
        [
            keras.Input((9, 4, 2)),
            layers.Conv2D(filters, (2, 1)),
            layers.Conv2D(filters, (2, 1)),
            layers.BatchNormalization(epsilon=1e-5),
            LSTM(5, return_sequences=True),
            layers.Bidirectional(GRU(4)),
            layers.Dense(2),
        ]
    )
    randomise_weights(model)
    return model


def arrays_of(model):
    return named_state_dict(read_graph(model, "channels_first"))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_numpy_state_dict_computes_what_its_equations_say():
    # The equations of torch.nn.Conv1d and torch.nn.GRU, from their documentation, in float64.
    state = {
        "conv.weight": normal(3, 2, 2, seed=1),
        "conv.bias": normal(3, seed=2),
        "rnn.weight_ih_l0": normal(12, 3, seed=3),
        "rnn.weight_hh_l0": normal(12, 4, seed=4),
        "rnn.bias_ih_l0": normal(12, seed=5),
        "rnn.bias_hh_l0": normal(12, seed=6),
    }
    model = keras.Sequential([keras.Input((6, 2)), layers.Conv1D(3, 2), GRU(4)])
    from_torch(state, model)
    wide = {name: value.astype("float64") for name, value in state.items()}
    x = normal(2, 6, 2).astype("float64")
    windows = np.stack([x[:, step : step + 2] for step in range(5)], axis=1)
    features = np.einsum("btkc,fck->btf", windows, wide["conv.weight"]) + wide["conv.bias"]
    h = np.zeros((2, 4))
    for step in range(5):
        i = features[:, step] @ wide["rnn.weight_ih_l0"].T + wide["rnn.bias_ih_l0"]
        s = h @ wide["rnn.weight_hh_l0"].T + wide["rnn.bias_hh_l0"]
        r, z = sigmoid(i[:, :4] + s[:, :4]), sigmoid(i[:, 4:8] + s[:, 4:8])
        h = (1 - z) * np.tanh(i[:, 8:] + r * s[:, 8:]) + z * h
    np.testing.assert_allclose(to_numpy(model(x.astype("float32"))), h, atol=1e-6)


@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    place=st.integers(0, 2),
)
def test_merged_axes_are_those_of_a_transposed_array(sizes, place):
    # The filters stand at `place` in Keras, and first in PyTorch.
    values = np.arange(np.prod(sizes)).reshape(sizes)
    axes = [Axis(size, filters=i == place) for i, size in enumerate(sizes)]
    merged = merge(axes)
    in_torch = np.moveaxis(values, place, 0).ravel()
    order = merged.order or range(values.size)
    np.testing.assert_array_equal(in_torch[list(order)], values.ravel())


def test_axes_that_are_joined_split_or_unknown():
    merged = merge([Axis(2), Axis(3, filters=True)])
    assert merged.order == (0, 2, 4, 1, 3, 5)
    assert join([Axis(2), merged]).order == (0, 1, 2, 4, 6, 3, 5, 7)
    assert merge([Axis(5), merged]).order[6:8] == (6, 8)
    steps = [Axis(2, steps=True), Axis(2), Axis(2, filters=True)]
    assert merge(steps).order == (0, 2, 1, 3, 4, 6, 5, 7)
    assert reshape([Axis(4), Axis(6)], (4, 2, 3)) == [Axis(4), Axis(2), Axis(3)]
    assert reshape([Axis(None), Axis(2), Axis(3)], (None, 6)) == [Axis(None), Axis(6)]
    assert reshape([Axis(4), Axis(1), Axis(3, filters=True)], (4, 3))[1].filters
    with pytest.raises(UnknownOrder, match="is split"):
        reshape([Axis(4), Axis(6, filters=True)], (4, 2, 3))
    with pytest.raises(UnknownOrder, match="unknown size"):
        merge([Axis(None), Axis(3, filters=True)])


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_there_and_back(tmp_path, suffix):
    model, path = cnn_lstm(), tmp_path / f"weights{suffix}"
    state = arrays_of(model)
    write_state_dict(state, path)
    expected = model.get_weights()
    randomise_weights(model, seed=7)
    from_torch(path, model)
    for weight, value in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, value)
    new = to_torch(model, path)
    assert new.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(new[name], value)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_another_model_is_matched_by_numbers_in_names(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    state = arrays_of(cnn_lstm())
    # As a PyTorch module may call its parts; no name is that of a Keras layer.
    titles = dict.fromkeys(name.split(".")[0] for name in state)
    named = dict(zip(titles, ("conv1", "conv2", "norm", "lstm1", "gru", "fc"), strict=True))
    state = {f"{named[key.split('.')[0]]}.{key.split('.')[1]}": v for key, v in state.items()}
    write_state_dict(state, path)
    model = cnn_lstm()
    from_torch(path, model)
    for layer, name in zip(model.layers[:2], ("conv1", "conv2"), strict=True):
        np.testing.assert_array_equal(
            to_numpy(layer.kernel).transpose(3, 2, 0, 1), state[f"{name}.weight"]
        )


def test_a_file_without_an_order_is_ambiguous_where_names_have_no_numbers(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), layers.Dense(3)])
    state = {}
    for name in ("hidden", "again"):
        state |= {f"{name}.weight": normal(3, 3), f"{name}.bias": normal(3)}
    path = tmp_path / "weights.safetensors"
    write_state_dict(state, path)
    from_torch(state, model)  # which has an order
    with pytest.raises(PortingError, match="the file does not keep the order") as error:
        from_torch(path, model)
    assert "mapping" in str(error.value)
    first, second = (layer.name for layer in model.layers)
    from_torch(path, model, mapping={"hidden": first, "again": second})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"(?s)no Keras layer fits 0; no tensors fit.*0 +weight \(4, 3"),
        (lambda s: s.update({"scale": normal(2)}), r"(?s)fits \(root\).*\(root\) +scale \(2,\) +-"),
        (lambda s: s.update({"0.weight": normal(3, 4)}), r"weight \(3, 4\), bias \(4,\)"),
        (lambda s: s.update({"0.bias": np.arange(4)}), "0.bias has the dtype int64"),
        (lambda s: s.update({"0.bias": normal(4) + 0j}), "0.bias has the dtype complex"),
        (lambda s: s.update({"0.bias": normal(4, dtype="float64")}), "whose digits float32"),
        (lambda s: s.update({"0.bias": np.full(4, np.nan, "float32")}), "4 of 4 values that are N"),
        (lambda s: s.update({"0.bias": [1.0, 2.0]}), "0.bias must be a torch tensor or a NumPy"),
        (lambda s: s.update({"model": {}}), "choose the one that holds.*key='model'"),
    ],
)
def test_what_is_wrong_in_a_state_dict_is_said_and_changes_nothing(change, message):
    layer = keras.Sequential([keras.Input((3,)), layers.Dense(4)])
    before = layer.get_weights()
    state = {"0.weight": normal(4, 3), "0.bias": normal(4)}
    from_torch(state, keras.models.clone_model(layer))
    change(state)
    with pytest.raises(PortingError, match=message):
        from_torch(state, layer)
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"none": "dense"}, r"no tensors 'none\.\*'\. There are: '0'"),
        ({"0": "none"}, "names the Keras layer 'none', which must be one of"),
        ({"0": ["dense", "dense"]}, r"gives 2 Keras layer\(s\) for '0', which has 1"),
    ],
)
def test_a_wrong_mapping_is_explained(mapping, message):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="dense")])
    state = {"0.weight": normal(4, 3), "0.bias": normal(4)}
    with pytest.raises(PortingError, match=message):
        from_torch(state, model, mapping)
    from_torch(state, model, {"0": "dense"})


def test_settings_that_weights_do_not_tell_are_warned_of():
    model = keras.Sequential([keras.Input((3,)), layers.BatchNormalization()])
    state = arrays_of(model)
    with pytest.warns(UserWarning, match=r"epsilon=0\.001, where torch\.nn\.BatchNorm1d has 1e-05"):
        from_torch(state, model)


def test_models_that_cannot_be_seen_through():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    model(normal(2, 3))
    with pytest.raises(PortingError, match="is a subclassed model"):
        to_torch(model)
    with pytest.raises(PortingError, match="has no weights yet"):
        to_torch(layers.Dense(2))


def test_files_that_are_no_weights(tmp_path):
    layer = layers.Dense(4)
    layer.build((None, 3))
    with pytest.raises(PortingError, match="there is no file"):
        from_torch(tmp_path / "none.npz", layer)
    for name, message in {
        "a.safetensors": "no whole safetensors file",
        "a.npz": "is no .npz file",
        "a.bin": "weights are read from",
    }.items():
        path = tmp_path / name
        path.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
        with pytest.raises(PortingError, match=message):
            from_torch(path, layer)
    whole = tmp_path / "whole.safetensors"
    write_state_dict({"weight": normal(4, 3)}, whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-3])
    with pytest.raises(PortingError, match="no whole safetensors file"):
        from_torch(cut, layer)
    pickled = tmp_path / "pickled.npz"
    with zipfile.ZipFile(pickled, "w") as archive, archive.open("weight.npy", "w") as file:
        np.lib.format.write_array(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(PortingError, match=r"is no \.npz file of numbers"):
        from_torch(pickled, layer)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="writes to /dev/full")
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_a_full_disk_is_an_os_error(tmp_path, suffix):
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write_state_dict({"weight": normal(300, 300)}, path)


def test_a_pt_file_runs_no_code(tmp_path):
    torch = pytest.importorskip("torch")
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (marker.write_text, ("ran",))

    layer = layers.Dense(4)
    layer.build((None, 3))
    path = tmp_path / "weights.pt"
    torch.save({"weight": Hostile()}, path)
    with pytest.raises(PortingError, match="weights_only=True"):
        from_torch(path, layer)
    assert not marker.exists()
    write_state_dict({"weight": normal(4, 3), "bias": normal(4)}, path)
    from_torch(path, layer)
    np.testing.assert_array_equal(to_numpy(layer.kernel), normal(4, 3).T)


def test_bfloat16_in_safetensors_is_widened(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "weights.safetensors"
    weight = torch.randn(4, 3).bfloat16()
    save_file({"weight": weight}, path)
    np.testing.assert_array_equal(read_state_dict(path).tensors["weight"], weight.float().numpy())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    layer = layers.Dense(4)
    layer.build((None, 3))
    path = tmp_path / "weights.safetensors"
    write_state_dict(arrays_of(layer), path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(PortingError, match=r"pip install 'multibackend-lstm\[safetensors\]'"):
        from_torch(path, layer)
    if keras.backend.backend() != "torch":
        monkeypatch.setitem(sys.modules, "torch", None)
        path.rename(tmp_path / "weights.pt")
        with pytest.raises(PortingError, match=r"pip install 'multibackend-lstm\[torch\]'"):
            from_torch(tmp_path / "weights.pt", layer)
        assert all(isinstance(value, np.ndarray) for value in to_torch(layer).values())

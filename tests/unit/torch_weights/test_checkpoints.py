"""Training checkpoints: dicts and files that hold a state dict besides other things."""

import keras
import numpy as np
import pytest

from multibackend_lstm.porting import PortingError, check_port, from_torch, to_torch
from unit.tools import needs_gradients

torch = pytest.importorskip("torch")
nn = torch.nn
layers = keras.layers


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).eval()


def keras_net():
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(3, "tanh", name="0"), layers.Dense(3, name="2")]
    )


def assert_ported(model, module):
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    expected = module(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), expected, atol=1e-6)


def training(module):
    """As the PyTorch tutorial saves it, with the state of an optimizer."""
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "loss": torch.tensor(0.5),
        "optimizer_state_dict": optimizer.state_dict(),
        "model_state_dict": module.state_dict(),
    }


def lightning(module):
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": x for name, x in module.state_dict().items()},
        "optimizer_states": [torch.optim.Adam(module.parameters()).state_dict()],
        "hyper_parameters": {"units": 3},
        "callbacks": {},
    }


def data_parallel(module):
    return {f"module.{name}": x for name, x in module.state_dict().items()}


@pytest.mark.parametrize("checkpoint", [training, lightning, data_parallel])
@pytest.mark.parametrize("as_file", [False, True])
def test_the_only_state_dict_is_taken(checkpoint, as_file, tmp_path):
    module, model = net(), keras_net()
    source = saved = checkpoint(module)
    if as_file:
        source = tmp_path / "last.ckpt"
        torch.save(saved, source)
    from_torch(source, model)
    assert_ported(model, module)
    new = to_torch(model, source)
    assert len(new) == 4
    from_torch(new, model)


@needs_gradients
def test_key_chooses(tmp_path):
    module, other, model = net(), net(1), keras_net()
    saved = {
        "model": module.state_dict(),
        "ema": {"decay": 0.9, "module": other.state_dict()},
        "state_dict": {
            **{f"model.{name}": x for name, x in module.state_dict().items()},
            "loss.weight": torch.ones(5),
        },
    }
    path = tmp_path / "last.pt"
    torch.save(saved, path)
    with pytest.raises(PortingError, match=r"'model', 'ema', 'state_dict'.*by `key` \(--key\)"):
        from_torch(path, model)
    for key, expected in (
        ("model", module), ("ema", other), ("ema.module", other), ("state_dict.model", module)
    ):  # fmt: skip
        from_torch(path, model, key=key)
        assert_ported(model, expected)
        check_port(saved, model, key=key).raise_if_disagrees()
        assert to_torch(model, path, key=key).keys() == module.state_dict().keys()
    with pytest.raises(PortingError, match="Received 'net', and there are: 'model', 'ema', 'state"):
        from_torch(path, model, key="net")
    with pytest.raises(PortingError, match=r"Received 'state_dict.net'.*'model', 'loss'"):
        from_torch(path, model, key="state_dict.net")
    with pytest.raises(PortingError, match="no Keras layer fits loss"):
        from_torch(path, model, key="state_dict")
    with pytest.raises(PortingError, match="`key` chooses from a checkpoint"):
        from_torch(module, model, key="0")


def test_weights_beside_a_dict_are_not_guessed():
    source = {**net().state_dict(), "more": net(1).state_dict()}
    with pytest.raises(PortingError, match="further dicts, 'more'"):
        from_torch(source, keras_net())


def test_a_mapping_may_leave_out_what_all_names_begin_with():
    module, model = net(), keras_net()
    from_torch(lightning(module), model, {"0": "2", "model.2": "0"})
    np.testing.assert_array_equal(model.layers[0].get_weights()[0].T, module[2].weight.detach())

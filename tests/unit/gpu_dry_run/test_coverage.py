"""The dry runs see all of the public API: each layer with each of its options, and each builder."""

import inspect
import typing

import keras
import pytest
from zoo import layers as zoo

import multibackend_lstm as m
from multibackend_lstm import layers

# Options that another test of these folders gives, or that no GPU can see.
ELSEWHERE = {
    "use_cudnn": "test_jax.py and test_tensorflow.py call layers without cuDNN",
    "unroll": "the layers of this package have no loop to unroll",
    "trainable": "of all layers",
    "unit_forget_bias": "decides what the bias starts from",
}


def choices(layer):
    """The values of each option of a layer that has some: True and False, or literals."""
    found = {}
    for owner in reversed(layer.__mro__):
        if not issubclass(owner, keras.layers.Layer) or "__init__" not in vars(owner):
            continue
        hints = typing.get_type_hints(owner.__init__) if is_ours(owner) else {}
        for name, parameter in inspect.signature(owner.__init__).parameters.items():
            kinds = [hints.get(name), *typing.get_args(hints.get(name))]
            values = [v for kind in kinds for v in literals(kind)]
            if isinstance(parameter.default, bool):
                values = [True, False]
            if values and values != [None]:
                found[name] = values
    return {name: values for name, values in found.items() if name not in ELSEWHERE}


def is_ours(owner):
    return owner.__module__.startswith("multibackend_lstm")


def literals(kind):
    if kind is type(None):
        return [None]
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else []


@pytest.fixture(scope="module")
def seen():
    """Of each class of layers in the zoo, the configurations."""
    found = {}
    for make in zoo.CASES.values():
        for layer in make()._flatten_layers():
            if is_ours(type(layer)):
                found.setdefault(type(layer).__name__, []).append(layer.get_config())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", layers.__all__)
def test_each_option_of_each_layer(seen, name):
    assert name in seen, "no model of it in tests/zoo/layers.py"
    # Those of one to three axes share their code.
    family = name.removesuffix("D").rstrip("123")
    configs = [c for kind, found in seen.items() if kind.startswith(family) for c in found]
    missing = [
        (option, value)
        for option, values in choices(getattr(layers, name)).items()
        for value in values
        if value not in [config.get(option, value) for config in configs]
    ]
    assert missing == []


@pytest.mark.parametrize("name", [n for n in m.__all__ if n.startswith("build_")])
def test_each_builder(name, monkeypatch):
    """And each solution, by the names of the cases."""
    used = []
    monkeypatch.setattr(zoo, name, lambda *_, **__: used.append(name))
    for case, make in zoo.CASES.items():
        if case.startswith(("model-", "solution-")):
            make()
    assert used
    assert {f"solution-{solution}" for solution in m.SOLUTIONS} <= zoo.CASES.keys()


def test_a_missing_option_is_seen():
    assert choices(m.Channelwise)["merge"] == ["concat", "sum", "average", "max", "stack"]
    assert choices(m.LSTM)["go_backwards"] == [True, False]

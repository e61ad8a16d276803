"""Layers on tensors that say they are on a GPU and hold nothing, on a machine that has none.

`FakeTensorMode` computes shapes, dtypes and devices alone. A tensor made on another device meets
those on the GPU and fails, and so does whatever reads a value: on a GPU that would wait for all
that was started before it.

Without a driver no build of torch knows these devices, not one for CUDA: `_no_driver` lends what
is missing, and the kernels of ATen, which ask the driver what cuDNN takes, are checked for what
they are given. PyTorch differentiates no such tensors without a driver (2.13: "Cannot access
accelerator device", in a build for CUDA "hasPrimaryContext"), and Keras cuts the graph on the
device "meta": gradients need a GPU.
"""

import ctypes
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("about PyTorch", allow_module_level=True)

import torch
from torch._subclasses import FakeTensorMode
from zoo import layers as zoo

import multibackend_lstm as m
from multibackend_lstm.backends import torch as backend

GPU = "cuda:0"
QUICK = ("lstm-dropout", "gru-sequence", "conv-full", "solution-conv-lengths", "random-Dropout")

if not sys.platform.startswith("linux"):
    pytest.skip("the table of devices has this name on Linux", allow_module_level=True)


def check_given(kernel, inputs, states, weights, train):
    """As `_call_aten`, but for the shapes alone."""
    for x in (inputs, *states, *weights):
        assert x.device == torch.device(GPU)
        assert x.dtype == inputs.dtype
    # In one block of memory: cuDNN copies all weights at each call where they are not.
    place = weights[0].storage_offset()
    for weight in weights:
        assert weight.is_contiguous()
        assert weight.untyped_storage()._cdata == weights[0].untyped_storage()._cdata
        assert weight.storage_offset() == place
        place += weight.numel()
    assert all(state.is_contiguous() for state in states)
    return backend._rnn_shapes(kernel, inputs, states, weights)


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch):
    """The guard of the device "meta", which does nothing, serves for CUDA."""
    monkeypatch.setattr(backend, "_call_aten", check_given)
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    kind = torch._C._autograd.DeviceType
    guards = (ctypes.c_void_p * (int(kind.Meta) + 1)).in_dll(
        library, "_ZN3c104impl26device_guard_impl_registryE"
    )
    of_cuda = guards[int(kind.CUDA)]
    guards[int(kind.CUDA)] = guards[int(kind.Meta)]
    yield
    guards[int(kind.CUDA)] = of_cuda


def move(variables):
    """Give variables values on the GPU, whose generator the initializers cannot have here."""
    for variable in variables:
        old = variable._value
        new = torch.empty(tuple(old.shape), dtype=old.dtype, device=GPU)
        variable._value = torch.nn.Parameter(new, requires_grad=old.requires_grad)


def check(model, *inputs):
    """Call a model in training and inference."""
    move(model.variables)
    given = inputs if len(inputs) > 1 else inputs[0]
    for training in (False, True):
        with torch.set_grad_enabled(training):
            outputs = keras.tree.flatten(model(given, training=training))
        assert {y.device for y in outputs} == {torch.device(GPU)}


def on_gpu(x):
    return torch.empty(x.shape, dtype=getattr(torch, str(x.dtype)), device=GPU)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.CASES],
)
def test_each_layer_and_solution(name, policy):
    keras.config.set_dtype_policy(policy)
    model = zoo.CASES[name]()
    x = zoo.draw(model)
    inputs = list(x) if isinstance(x, list) else [x]
    with FakeTensorMode(), keras.device(GPU):
        check(model, *map(on_gpu, inputs))


def test_faults_are_seen():
    """A tensor on the processor, and values that are read."""
    with FakeTensorMode(), keras.device(GPU):
        x = on_gpu(np.zeros((4, 3), "float32"))
        with pytest.raises(RuntimeError, match="device"):
            x + torch.ones(4, 3, device="cpu")
        for read in (lambda: float(x.sum()), lambda: bool(x.any()), lambda: x.cpu().numpy()):
            with pytest.raises(Exception, match=r"_local_scalar_dense|numpy"):
                read()


def test_lengths_are_not_read_back():
    """What is outside of the sequence is NaN then, as in a traced function."""
    layer = m.LSTM(3)
    layer.build((4, 5, 3))
    with FakeTensorMode(), keras.device(GPU):
        move(layer.variables)
        lengths = on_gpu(np.zeros(4, "int32"))
        assert layer(on_gpu(np.zeros((4, 5, 3), "float32")), lengths=lengths).shape == (4, 3)
    with pytest.raises(ValueError, match="lengths from 1 to 9"):  # on the processor an error
        layer(np.zeros((4, 5, 3), "float32"), lengths=np.array([9, 1, 1, 1]))

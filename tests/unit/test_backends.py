"""The classes of backends and runtimes: each is complete, and layers use what the base has."""

import ast
import contextlib
import inspect
import pathlib
from importlib import import_module

import keras
import pytest

import multibackend_lstm
from multibackend_lstm import backends
from multibackend_lstm.runtimes import backend_runtime

PACKAGE = pathlib.Path(multibackend_lstm.__file__).parent


RUNNING = keras.backend.backend()
BASES = {
    backends.Backend: (backends, {n: (n, cls) for n, cls in backends._SUBCLASSES.items()}),
    backend_runtime.BackendRuntime: (backend_runtime, backend_runtime._SUBCLASSES),
}


def running_class(base):
    """The class of the running backend, from the file it has, or the base."""
    owner, subclasses = BASES[base]
    if RUNNING not in subclasses:
        return base
    module, name = subclasses[RUNNING]
    package = owner.__name__ if hasattr(owner, "__path__") else owner.__package__
    return getattr(import_module(f"{package}.{module}"), name)


def differences(base, cls):
    """Public methods of a subclass that the base lacks or that take other parameters."""
    found = []
    for name, function in vars(cls).items():
        if name.startswith("_") or not callable(function):
            continue
        if not hasattr(base, name):
            found.append(f"{name} is not in {base.__name__}")
            continue
        ours, theirs = (
            [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
            for f in (function, getattr(base, name))
        )
        if ours != theirs:
            found.append(f"{name}{ours} is {theirs} in {base.__name__}")
    return found


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_the_running_class_has_the_methods_of_the_base(base):
    cls = running_class(base)
    assert issubclass(cls, base)
    assert differences(base, cls) == []


def test_the_check_of_subclasses_can_fail():
    class Other(backends.Backend):
        def scan(self, step, states, xs, backwards=False):
            return states, xs

        def loop(self, step):
            return step

    found = differences(backends.Backend, Other)
    assert len(found) == 2
    assert "backwards" in found[0]
    assert found[1] == "loop is not in Backend"


def names_used(source):
    """Names that a file takes from `backends.active()`, or a variable `backend` that is it."""
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in (
            "backends.active()",
            "backend",
        ):
            used.add(node.attr)
    return used


def test_layers_use_what_the_base_has():
    used = set()
    for path in sorted((PACKAGE / "layers").rglob("*.py")):
        used |= names_used(path.read_text(encoding="utf-8"))
    assert used >= {"scan", "lstm", "gru", "kernel_path", "convolve", "concrete"}
    assert sorted(name for name in used if not hasattr(backends.Backend, name)) == []


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_active_is_one_instance_of_the_running_class(base):
    owner, _ = BASES[base]
    assert owner.active() is owner.active()
    assert type(owner.active()) is running_class(base)


@pytest.mark.parametrize("name", ["numpy", "openvino", "one to come"])
def test_backends_without_a_file_are_the_base(name, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: name)
    backend = backends.active()
    assert type(backend) is backends.Backend
    assert backend.kernel_refusal("lstm") == "this backend has no LSTM kernel"
    with pytest.raises(NotImplementedError, match="no GRU kernel"):
        backend.kernel_path("gru", (2, 3, 4), "float32", cudnn=True)


@pytest.mark.skipif(RUNNING != "tensorflow", reason="about TensorFlow's graphs")
def test_portable_graphs_end():
    backend = backends.active()
    assert backend.supports_jit(5)
    with contextlib.suppress(KeyError), backend.portable_graphs("onnx"):
        assert not backend.supports_jit(5)
        raise KeyError
    assert backend.supports_jit(5)

"""Rules of the package's structure."""

import ast
import os
import pathlib
import sys

import keras
import pytest

import multibackend_lstm
from unit.tools import run_python

PACKAGE = pathlib.Path(multibackend_lstm.__file__).parent
BACKENDS = {"tensorflow", "torch", "jax", "jaxlib"}


def imports(tree, everywhere):
    """Dotted names that a module imports, within functions too if `everywhere`."""
    nodes = list(ast.iter_child_nodes(tree))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        if everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            nodes.extend(ast.iter_child_nodes(node))


def keras_only_violations(source):
    """What files under `layers/` and `models.py` must not import."""
    found = []
    for name in imports(ast.parse(source), everywhere=True):
        top, *rest = name.split(".")
        allowed = {*sys.stdlib_module_names, "keras", "multibackend_lstm"}
        if top not in allowed or (top == "keras" and rest[:1] == ["src"]):
            found.append(name)
    return found


def backend_violations(source):
    """Backends that are imported at module level."""
    names = imports(ast.parse(source), everywhere=False)
    return [name for name in names if name.split(".")[0] in BACKENDS]


KERAS_ONLY = [*sorted((PACKAGE / "layers").rglob("*.py")), PACKAGE / "models.py"]
NEAR_BACKENDS = {PACKAGE / "backends", PACKAGE / "runtimes"}
OTHERS = [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent not in NEAR_BACKENDS]


@pytest.mark.parametrize("path", KERAS_ONLY, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers_and_models_import_only_keras(path):
    assert keras_only_violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", OTHERS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_backends_and_runtimes_import_backends_at_module_level(path):
    assert backend_violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import numpy",
        "from keras.src import backend",
        "from keras import src",
        "import keras.src.ops as o",
        "def f():\n    import torch",
        "if True:\n    from jax import numpy",
        "from . import folding",
    ],
)
def test_the_check_of_layers_can_fail(line):
    assert keras_only_violations(line)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("import torch", 1),
        ("try:\n    import jax.numpy as jnp\nexcept ImportError:\n    pass", 1),
        ("class A:\n    from tensorflow import function", 1),
        ("def f():\n    import torch", 0),
        ("import torchlike", 0),
    ],
)
def test_the_check_of_backends_can_fail(line, count):
    assert len(backend_violations(line)) == count


def test_import_loads_neither_keras_nor_a_backend():
    code = (
        "import sys, multibackend_lstm\n"
        "dir(multibackend_lstm)\n"
        "print(sorted({'keras', 'tensorflow', 'torch', 'jax', 'numpy'} & set(sys.modules)))"
    )
    assert run_python(code).strip() == "[]"


def test_backend_may_be_chosen_after_the_import():
    code = (
        "import os, multibackend_lstm\n"
        f"os.environ['KERAS_BACKEND'] = {keras.backend.backend()!r}\n"
        "multibackend_lstm.FlattenFeatures\n"
        "import keras; print(keras.backend.backend())"
    )
    assert run_python(code, KERAS_BACKEND="none").strip() == keras.backend.backend()


def test_public_names():
    for name in multibackend_lstm.__all__:
        assert getattr(multibackend_lstm, name) is not None
        assert name in dir(multibackend_lstm)
    with pytest.raises(AttributeError, match="no attribute 'Flatten'"):
        _ = multibackend_lstm.Flatten


@pytest.mark.parametrize(
    "order", [("multibackend_lstm", "keras"), ("keras", "multibackend_lstm")], ids="-".join
)
def test_saved_model_loads_with_plain_keras(tmp_path, order):
    path = tmp_path / "model.keras"
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((5, 4, 3)),
            multibackend_lstm.TimeDistributed(layers.Dense(2)),
            multibackend_lstm.Channelwise(layers.LSTM(2, return_sequences=True), "stack"),
            multibackend_lstm.TimeDistributedConv(2, 2),
            layers.Reshape((5, 3, 2)),
            multibackend_lstm.FlattenFeatures(),
        ]
    )
    model.save(path)
    code = (
        f"import {order[0]}\nimport {order[1]}\n"
        f"model = keras.saving.load_model({os.fspath(path)!r}, safe_mode=True)\n"
        "print(*[type(layer).__module__.split('.')[0] for layer in model.layers])\n"
        "print(sum(float(w.sum()) for w in model.get_weights()))"
    )
    modules, total = run_python(code).splitlines()
    ours, stock = "multibackend_lstm", "keras"
    assert modules.split() == [ours, ours, ours, stock, ours]
    assert float(total) == pytest.approx(sum(float(w.sum()) for w in model.get_weights()), rel=1e-4)

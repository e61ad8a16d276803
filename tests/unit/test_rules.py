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
    """Dotted names that a module imports, within functions too if `everywhere`.

    Not those for a type checker alone, which are never imported.
    """
    nodes = list(ast.iter_child_nodes(tree))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes.extend(node.orelse)
            continue
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
        allowed = {*sys.stdlib_module_names, "keras", "multibackend_lstm"}
        if name.split(".")[0] not in allowed:
            found.append(name)
    return found + private_keras(source)


def private_keras(source):
    """Modules of Keras that are not public: they move from version to version."""
    names = imports(ast.parse(source), everywhere=True)
    return [name for name in names if name.split(".")[:2] == ["keras", "src"]]


def backend_violations(source):
    """Backends that are imported at module level."""
    names = imports(ast.parse(source), everywhere=False)
    return [name for name in names if name.split(".")[0] in BACKENDS]


KERAS_ONLY = [
    *sorted((PACKAGE / "layers").rglob("*.py")),
    *sorted((PACKAGE / "random").rglob("*.py")),
    *sorted((PACKAGE / "streaming").glob("step_*.py")),
    PACKAGE / "models.py",
]
NEAR_BACKENDS = {PACKAGE / "backends", PACKAGE / "runtimes"}
OTHERS = [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent not in NEAR_BACKENDS]


# Folders and files of the package, each floor on those before it, from which alone it imports.
FLOORS = [
    {"backends"},
    {"random"},
    {"layers"},
    {"distribution"},
    {"runtimes"},
    {"agreement"},
    {"training"},
    {"export", "migration", "torch_weights", "demo", "demo_page"},
    {"porting", "streaming"},
    {"cli"},
]


def modules(package):
    """Each module's path, by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def module_of(name, names):
    """The module that an imported dotted name is or is in; None if it is another package's."""
    while name and name not in names:
        name = name.rpartition(".")[0]
    return name or None


def floor_violations(source, folder, names):
    """Modules of higher floors that a module of `folder` imports, in functions too."""
    (floor,) = (index for index, floor in enumerate(FLOORS) if folder in floor)
    above = set().union(*FLOORS[floor + 1 :])
    found = []
    for name in imports(ast.parse(source), everywhere=True):
        parts = (module_of(name, names) or "").split(".")
        if {*parts[1:2]} & above:
            found.append(name)
    return found


def circles(graph):
    """Nodes that can be reached from themselves, of a dictionary of sets."""
    found = []
    for start in graph:
        seen, ahead = set(), [*graph[start]]
        while ahead:
            node = ahead.pop()
            if node not in seen:
                seen.add(node)
                ahead.extend(graph[node])
        if start in seen:
            found.append(start)
    return found


def import_graph(sources):
    """For each module, by dotted name, those that it imports when it is itself imported."""
    graph = {}
    for module, source in sources.items():
        found = {module_of(n, sources) for n in imports(ast.parse(source), everywhere=False)}
        graph[module] = found - {None, module}
    return graph


SOURCES = {name: path.read_text(encoding="utf-8") for name, path in modules(PACKAGE).items()}


@pytest.mark.parametrize("folder", sorted(set().union(*FLOORS)))
def test_each_floor_imports_only_from_lower_ones(folder):
    mine = {n: s for n, s in SOURCES.items() if n.split(".")[1:2] == [folder]}
    assert mine
    found = {name: floor_violations(source, folder, SOURCES) for name, source in mine.items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_no_import_circle():
    assert circles(import_graph(SOURCES)) == []


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("backends", "from multibackend_lstm.layers import LSTM"),
        ("backends", "def f():\n    from multibackend_lstm import layers"),
        ("layers", "import multibackend_lstm.runtimes.backend_runtime"),
        ("layers", "from multibackend_lstm.agreement.case import draw_inputs"),
        ("layers", "from multibackend_lstm import cli"),
    ],
)
def test_the_check_of_floors_can_fail(folder, line):
    assert floor_violations(line, folder, SOURCES)


def test_the_check_of_circles_can_fail():
    sources = {
        "p": "",
        "p.a": "from p import b",
        "p.b": "import p.c as c",
        "p.c": "if True:\n    from p.a import f",
        "p.d": "from p.a import f\ndef g():\n    import p.e",
        "p.e": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.e2\nimport p.d",
    }
    assert circles(import_graph(sources)) == ["p.a", "p.b", "p.c"]


@pytest.mark.parametrize("path", KERAS_ONLY, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers_and_models_import_only_keras(path):
    assert keras_only_violations(path.read_text(encoding="utf-8")) == []


def test_nothing_imports_private_modules_of_keras():
    assert {name: private_keras(source) for name, source in SOURCES.items()} == {
        name: [] for name in SOURCES
    }


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
    assert {*multibackend_lstm.layers.__all__} <= {*multibackend_lstm.__all__}
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

"""The pytest plugin, in projects of its users."""

import importlib.metadata
import os
import pathlib

import keras
import pytest
from unit.tools import run_python

from multibackend_lstm.environment import BACKENDS

pytest_plugins = "pytester"

BACKEND = keras.backend.backend()
if BACKEND not in BACKENDS:
    pytest.skip("the plugin compares the training backends", allow_module_level=True)
HERE = f"{BACKEND}@cpu"
ROOT = pathlib.Path(__file__).parents[2]
INSTALLED = importlib.metadata.entry_points(group="pytest11", name="multibackend_lstm")


@pytest.fixture
def project(pytester, monkeypatch):
    """Runs the tests of a project in which every warning is an error."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    pytester.makepyprojecttoml(
        """
        [tool.pytest.ini_options]
        addopts = ["--strict-markers"]
        filterwarnings = ["error"]
        """
    )

    def run(source, *arguments):
        pytester.makepyfile(test_layers=source)
        plugin = () if INSTALLED else ("-p", "multibackend_lstm.pytest_plugin")
        return pytester.runpytest_subprocess(*plugin, *arguments)

    return run


LAYERS = """
import os

import keras
import numpy as np
import pytest


class Snake(keras.layers.Layer):
    def call(self, x):
        return x + keras.ops.square(keras.ops.sin(x))


class Odd(keras.layers.Layer):
    "Another one in every process."

    def call(self, x):
        return x * os.getpid()


X = np.linspace(-3, 3, 24, dtype="float32").reshape(2, 4, 3)
"""


def test_importing_the_plugin_imports_no_backend():
    code = (
        "import sys, multibackend_lstm.pytest_plugin\n"
        "print(sorted({'keras', 'tensorflow', 'torch', 'jax', 'numpy'} & set(sys.modules)))"
    )
    assert run_python(code).strip() == "[]"


def test_the_fixture(project):
    result = project(
        LAYERS
        + """
def test_agrees(agreement):
    report = agreement(Snake(), X, steps=1, twins=2)
    assert [result.target for result in report.results] == ["HERE"]

def test_disagrees(agreement):
    agreement(Odd(), X, steps=None, twins=2)

def test_is_told_without_an_error(agreement):
    report = agreement(Odd(), X, steps=None, twins=2, raises=False)
    assert report.disagreeing == ["HERE"]
    with pytest.raises(TypeError, match="set it by --agreement-targets"):
        agreement(Snake(), X, targets=["HERE"])

def test_a_class_of_a_function(agreement):
    class Local(Snake):
        pass
    agreement(Local(), X)

@pytest.mark.agreement(skip={"HERE": "upstream#1"})
def test_skipped(agreement):
    agreement(Odd(), X)

@pytest.mark.agreement(skip={"theano@cpu": "upstream#1"})
def test_wrong_target(agreement):
    pass

@pytest.mark.agreement("HERE")
def test_wrong_marker(agreement):
    pass
""".replace("HERE", HERE),
        "--agreement-targets",
        HERE,
        "-rs",
    )
    result.assert_outcomes(passed=2, failed=2, skipped=1, errors=2)
    result.stdout.fnmatch_lines_random(
        [
            "*DisagreementError: odd*: backends do not agree*",
            f"*{HERE} disagrees in layer alone 'odd*' (Odd)*",
            "*Local is not a name of the module 'test_layers'*Define it at the top*",
            f"SKIPPED*{HERE}: upstream#1",
            "*UsageError: the marker agreement: a target is backend@device*",
            '*UsageError: the marker is agreement(skip={"torch@cpu": "why"})*',
        ]
    )
    assert "Warning" not in result.stdout.str()


def test_a_module_that_workers_cannot_import(project):
    source = LAYERS + "\ndef test_agrees(agreement):\n    agreement(Snake(), X)\n"
    folder = "--import-mode=importlib"
    result = project(source, folder, "--agreement-targets", HERE, "--rootdir=/", "-c/dev/null")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*which a worker cannot import: it is not on sys.path*pythonpath*"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--agreement-targets", "torch@tpu"], "a target is backend@device"),
        (["--agreement-interpreter", "torch"], "such as torch=/path/python"),
        (["-o", "agreement_targets=torch@moon"], "Received 'torch@moon'"),
        (["-o", "agreement_precision=exact"], "must be strict or default"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_wrong_options(project, arguments, words):
    result = project("def test_it(agreement):\n    pass\n", *arguments)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*UsageError: agreement: *{words}*"])


@pytest.mark.slow
def test_each_process_of_xdist_has_its_workers(project):
    source = LAYERS + (
        "@pytest.mark.parametrize('scale', [1, 2, 3, 4])\n"
        "def test_agrees(agreement, scale):\n"
        "    agreement(Snake(), scale * X, steps=1, twins=2)\n"
    )
    result = project(source, "-n", "2", "-o", f"agreement_targets={HERE}")
    result.assert_outcomes(passed=4)

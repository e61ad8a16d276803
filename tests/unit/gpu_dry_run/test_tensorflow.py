"""Graphs of the layers for a GPU, traced on a machine that has none.

A graph names cuDNN's operation whatever runs it. Where the package asks whether there is a GPU, it
is told yes here; what cuDNN computes is not checked.
"""

import re

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("about TensorFlow", allow_module_level=True)

import tensorflow as tf
from zoo import layers as zoo

import multibackend_lstm as m
from multibackend_lstm.backends import tensorflow as backend

FORWARD, BACKWARD = "CudnnRNNV3", "CudnnRNNBackpropV3"
BATCH, TIME, FEATURES, UNITS = 4, 7, 3, 6
QUICK = ("lstm-dropout", "lstm-backwards", "gru-sequence", "solution-reshape-lengths")
WITHOUT_CUDNN = re.compile(
    "gru-reset_before|.*(portable|activation|dropout)|channelwise-gru|conv-|random-"
    "|steps-(dense|per_call|norm|variational)|conv_lstm-stateful"
)


@pytest.fixture(autouse=True)
def _there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(backend, "_on_gpu", lambda: True)


def graph_of(call, inputs, variables):
    """The graph of `call` and its gradients for a GPU, that of what it calls included."""

    @tf.function(autograph=False)
    def run(*given):
        with tf.device("/GPU:0"), tf.GradientTape() as tape:
            outputs = keras.tree.flatten(call(*given))
            loss = sum(tf.reduce_mean(tf.cast(y, tf.float32) ** 2) for y in outputs)
            return tape.gradient(loss, [v.value for v in variables])

    return run.get_concrete_function(*(tf.TensorSpec(x.shape, x.dtype) for x in inputs)).graph


def nodes(graph):
    definition = graph.as_graph_def()
    functions = [node for f in definition.library.function for node in f.node_def]
    return [*definition.node, *functions]


def names(graph):
    return {node.op for node in nodes(graph) if node.op.startswith("Cudnn")}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.CASES],
)
def test_each_layer_and_solution(name):
    model = zoo.CASES[name]()
    x = zoo.draw(model)
    inputs = x if isinstance(x, list) else [x]

    def call(*given, training):
        return model(list(given) if len(given) > 1 else given[0], training=training)

    without = bool(WITHOUT_CUDNN.match(name))
    for training in (True, False):
        graph = graph_of(
            lambda *given: call(*given, training=training),  # noqa: B023
            inputs,
            model.trainable_variables,
        )
        refused = without and not (name.endswith("-dropout") and not training)
        assert names(graph) == (set() if refused else {FORWARD, BACKWARD})
        for node in nodes(graph):
            assert not node.op.startswith("PyFunc"), "a step back into Python"


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize(("cell", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_what_cudnn_is_given(cell, gates, masked):
    layer = getattr(m, cell)(UNITS, return_sequences=True)
    layer.build((BATCH, TIME, FEATURES))
    x = np.zeros((BATCH, TIME, FEATURES), "float32")
    mask = [np.zeros((BATCH, TIME), bool)] if masked else []
    graph = graph_of(
        lambda x, mask=None: layer(x, mask=mask), [x, *mask], layer.trainable_variables
    )
    (operation,) = [op for op in graph.get_operations() if op.type == FORWARD]
    assert {name: operation.get_attr(name) for name in ("rnn_mode", "input_mode", "direction")} == {
        "rnn_mode": cell.lower().encode(),
        "input_mode": b"linear_input",
        "direction": b"unidirectional",
    }
    assert operation.get_attr("num_proj") == 0
    assert operation.get_attr("dropout") == 0
    assert operation.get_attr("time_major") is False
    assert operation.get_attr("is_training") is True  # or there is no gradient
    assert operation.device.endswith("GPU:0")
    inputs, h, c, weights, lengths = operation.inputs
    assert inputs.shape == (BATCH, TIME, FEATURES)
    assert h.shape == (BATCH, 1, UNITS)
    assert c.shape == ((BATCH, 1, UNITS) if cell == "LSTM" else ())
    assert weights.shape == (gates * UNITS * (FEATURES + UNITS + 2),)
    assert lengths.shape == (BATCH,)
    assert lengths.dtype == tf.int32
    assert not layer.supports_jit  # cuDNN cannot be in a program of XLA's


def test_without_cudnn():
    layer = m.LSTM(UNITS, use_cudnn=False)
    layer.build((BATCH, TIME, FEATURES))
    x = np.zeros((BATCH, TIME, FEATURES), "float32")
    assert names(graph_of(layer, [x], layer.trainable_variables)) == set()
    assert layer.implementation_report().path == "tf.while_loop"

"""Programs of the layers for CUDA, lowered on a machine that has no GPU.

JAX asks cuDNN for sizes while it traces, and for a descriptor while it lowers; only a GPU has the
answers. Stand-ins answer here: a size of 1, and the arguments themselves as the descriptor. So what
is checked is which programs call cuDNN, and with what, and not what cuDNN computes.
"""

import functools
import json
import re

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("about JAX", allow_module_level=True)

import jax
import jaxlib
from jax import export
from jax.experimental import rnn
from jax.interpreters import mlir
from zoo import layers as zoo

import multibackend_lstm as m
from multibackend_lstm.backends import jax as backend

if tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 8):
    pytest.skip("the lowering of cuDNN has another form there", allow_module_level=True)
from jaxlib import gpu_rnn

CALLS = ("cudnn_rnn_ffi", "cudnn_rnn_bwd_ffi")
BATCH, TIME, FEATURES, UNITS = 4, 7, 3, 6
QUICK = ("lstm-dropout", "lstm-backwards", "solution-reshape-lengths")
# GRU, cells that are not cuDNN's, and layers without a recurrence.
WITHOUT_CUDNN = re.compile(
    "gru|.*(-gru|portable|activation|dropout)|conv-|random-|steps-(dense|per_call|norm|variational)|conv_lstm-stateful"
)
X = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype("float32")
MASK = np.arange(TIME) < np.array([7, 3, 0, 5])[:, None]


class Descriptor:
    """In place of the part of cuDNN that a machine without a GPU cannot load."""

    @staticmethod
    def build_rnn_descriptor(*arguments):
        return json.dumps(arguments)


@pytest.fixture(autouse=True)
def _cudnn_stands_by(monkeypatch):
    monkeypatch.setattr(backend, "_sees_cuda", lambda: True)
    sizes = "compute_rnn_workspace_reserve_space_sizes"
    monkeypatch.setattr(gpu_rnn, sizes, lambda *_: (1, 1), raising=False)
    for primitive, rule in (
        (rnn.rnn_fwd_p, gpu_rnn._rnn_fwd_lowering),
        (rnn.rnn_bwd_p, gpu_rnn._rnn_bwd_lowering),
    ):
        lowering = functools.partial(rule, Descriptor, "cu")
        mlir.register_lowering(primitive, lowering, platform="cuda")


@pytest.fixture(autouse=True, scope="module")
def _other_platforms():
    """As where a GPU is seen."""
    backend._allow_other_platforms()


def exported(function, *arguments, platforms=("cuda",)):
    """The program of a function; JAX promises nothing of cuDNN's calls to later versions."""
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in CALLS]
    jitted = jax.jit(function)
    return export.export(jitted, platforms=platforms, disabled_checks=checks)(*arguments)


def calls(program):
    """Of each call of cuDNN: its name, its descriptor, and the types of its operands."""
    # Those for other platforms, which nothing runs, have no descriptor.
    pattern = r'custom_call @(cudnn_\w+)\(.*?opaque = "(\[.*?\])".*?: \((.*?)\) ->'
    found = re.findall(pattern, program.mlir_module())
    return [(name, json.loads(given), types.split(", ")) for name, given, types in found]


def lstm(**options):
    layer = m.LSTM(UNITS, return_sequences=True, **options)
    layer.build(X.shape)
    return layer


def values_of(layer):
    return [
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
    ]


def loss_of(layer):
    """A function of the layer's variables, an input and a mask."""

    def loss(trainable, others, x, mask=None):
        outputs, _ = layer.stateless_call(trainable, others, x, mask=mask)
        return (outputs**2).mean()

    return loss


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.CASES],
)
def test_each_layer_and_solution(name):
    model = zoo.CASES[name]()
    x = zoo.draw(model)

    def run(trainable, others, x, training):
        outputs, new = model.stateless_call(trainable, others, x, training=training)
        return sum((y.astype("float32") ** 2).mean() for y in keras.tree.flatten(outputs)), new

    def inference(*arguments):
        return run(*arguments, training=False)[0]

    training = jax.value_and_grad(functools.partial(run, training=True), has_aux=True)
    without = bool(WITHOUT_CUDNN.match(name))
    trained = {call for call, *_ in calls(exported(training, *values_of(model), x))}
    assert trained == (set() if without else set(CALLS))
    inferred = {call for call, *_ in calls(exported(inference, *values_of(model), x))}
    # Recurrent dropout, which cuDNN lacks, is there in training alone.
    has_dropout = name in ("lstm-dropout", "conv_lstm-dropout")
    assert inferred == (set() if without and not has_dropout else {CALLS[0]})


@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
def test_what_cudnn_is_given(mask):
    layer = lstm()
    program = exported(jax.value_and_grad(loss_of(layer)), *values_of(layer), X, mask)
    (name, descriptor, types), (backward, same, _) = calls(program)
    assert (name, backward) == CALLS
    # Sizes, one layer, batch before time, no dropout, one direction, TF32 as JAX has it by default.
    assert descriptor == same == [FEATURES, UNITS, 1, BATCH, TIME, 0.0, False, True, 1, 1]
    state = f"tensor<1x{BATCH}x{UNITS}xf32>"
    count = 4 * UNITS * (FEATURES + UNITS + 2)
    assert types == [
        f"tensor<{BATCH}x{TIME}x{FEATURES}xf32>",
        state,
        state,
        f"tensor<{count}xf32>",
        f"tensor<{BATCH}xi32>",  # lengths, of all samples where there is no mask
    ]


def plain(cell, **options):
    return getattr(m, cell)(UNITS, return_sequences=True, **options)


def both_ways(cell, **options):
    return m.Bidirectional(plain(cell, **options))


def both_ways_of_keras(cell, **options):
    return keras.layers.Bidirectional(plain(cell, **options))


def channelwise(cell, **options):
    return m.Channelwise(plain(cell, **options))


LENGTHS = MASK.sum(1).astype("int32")
HOLES = np.random.default_rng(1).random((BATCH, TIME)) < 0.6
# How a layer is made, its options, and what it is called with.
USES = {
    "plain": (plain, {}, {}),
    "masked": (plain, {}, {"mask": MASK}),
    "left-padded": (plain, {}, {"mask": MASK[:, ::-1]}),
    "holes": (plain, {}, {"mask": HOLES}),
    "no step at all": (plain, {}, {"mask": np.zeros_like(MASK)}),
    "lengths": (plain, {}, {"lengths": LENGTHS}),
    "backwards": (plain, {"go_backwards": True}, {}),
    "backwards, masked": (plain, {"go_backwards": True}, {"mask": HOLES}),
    "backwards, lengths": (plain, {"go_backwards": True}, {"lengths": LENGTHS}),
    "zeros": (plain, {"zero_output_for_mask": True}, {"mask": HOLES}),
    "both ways": (both_ways, {}, {}),
    "both ways, masked": (both_ways, {}, {"mask": HOLES}),
    "both ways, lengths": (both_ways, {}, {"lengths": LENGTHS}),
    "both ways, of Keras": (both_ways_of_keras, {}, {}),
    "channelwise": (channelwise, {}, {"x": np.stack([X, 2 * X], axis=2)}),
}
ALWAYS = ("holes", "backwards, masked")


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    "use", [use if use in ALWAYS else pytest.param(use, marks=pytest.mark.slow) for use in USES]
)
def test_the_platform_that_is_lowered_for_decides(use, cell):
    make, options, given = USES[use]
    x = given.get("x", X)
    arguments = {name: value for name, value in given.items() if name != "x"}

    def new(**more):
        layer = make(cell, **options, **more)
        layer(x[:1])
        return layer

    def gradient_of(layer):
        def loss(trainable, others, x, arguments):
            outputs, _ = layer.stateless_call(trainable, others, x, **arguments)
            return (outputs**2).mean()

        return jax.value_and_grad(loss)

    layer = new()
    run = gradient_of(layer)
    given = (*values_of(layer), x, arguments)
    assert calls(exported(run, *given, platforms=["cpu"])) == []
    alone, both = (exported(run, *given, platforms=p) for p in (["cuda"], ["cpu", "cuda"]))
    # JAX has no GRU of cuDNN's. Both directions of one shape share a function of the program.
    expected = set(CALLS) if cell == "LSTM" else set()
    for program in (alone, both):
        assert {name for name, *_ in calls(program)} == expected
    scanned = new(use_cudnn=False)
    scanned.set_weights(layer.get_weights())
    found = both.call(*given)  # on this machine's processor
    truth = gradient_of(scanned)(*values_of(scanned), x, arguments)
    for value, true in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(value, true, atol=1e-6)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    "dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16", "float32"]
)
def test_half_precision_has_the_loop(cell, dtype):
    """JAX calls cuDNN in float32; the loop is in the dtype that is asked for."""
    layer = plain(cell, dtype=dtype)
    layer.build(X.shape)
    program = exported(jax.value_and_grad(loss_of(layer)), *values_of(layer), X, MASK)
    assert {name for name, *_ in calls(program)} == (
        set(CALLS) if (cell, dtype) == ("LSTM", "float32") else set()
    )


def test_a_processor_beside_a_gpu():
    """Eager and jitted calls go where their data is; that is the processor here."""
    layer, scanned = lstm(), lstm(use_cudnn=False)
    scanned.set_weights(layer.get_weights())
    np.testing.assert_allclose(layer(X, mask=MASK), scanned(X, mask=MASK), atol=1e-6)
    assert layer.implementation_report().path == "cuDNN"
    assert scanned.implementation_report().path == "lax.scan"


@pytest.mark.parametrize(
    ("precision", "tf32"),
    [("highest", False), ("float32", False), ("bfloat16", True), (None, True)],
)
def test_precision(precision, tf32):
    """Strict float32 turns TF32 off; and there is none that JAX refuses for cuDNN."""
    layer = lstm()
    with jax.default_matmul_precision(precision):
        ((_, descriptor, _),) = calls(exported(loss_of(layer), *values_of(layer), X))
    assert descriptor[7] is tf32


def test_sizes_left_open():
    """Of cuDNN only known sizes can be asked, so a program for any batch has the loop."""
    layer = lstm()
    shape = jax.ShapeDtypeStruct(export.symbolic_shape(f"batch, {TIME}, {FEATURES}"), "float32")
    program = exported(loss_of(layer), *values_of(layer), shape)
    assert calls(program) == []
    assert "stablehlo.while" in program.mlir_module()


def test_where_no_gpu_is_seen(monkeypatch):
    """What would ask cuDNN is not even traced."""
    monkeypatch.setattr(backend, "_sees_cuda", lambda: False)
    layer = lstm()
    assert calls(exported(loss_of(layer), *values_of(layer), X)) == []
    assert layer.implementation_report().path == "lax.scan"


def test_order_of_go_backwards(monkeypatch):
    """Keras 3.15 turns cuDNN's output round once more than its own loop does: docs/gpu.md."""
    keras_rnn = pytest.importorskip("keras.src.backend.jax.rnn", reason="private: it may move")
    monkeypatch.setattr(keras_rnn, "_is_gpu_available", lambda: True)
    options = {"return_sequences": True, "go_backwards": True}
    turned = []
    for layer in (m.LSTM(UNITS, **options), keras.layers.LSTM(UNITS, **options)):
        layer.build(X.shape)
        program = exported(lambda *given: layer.stateless_call(*given)[0], *values_of(layer), X)  # noqa: B023
        assert [name for name, *_ in calls(program)] == [CALLS[0]]
        turned.append(program.mlir_module().count("stablehlo.reverse"))
    assert turned[0] == 1  # the input
    assert turned[1] == 2, "Keras no longer turns the output: say so in docs/gpu.md"

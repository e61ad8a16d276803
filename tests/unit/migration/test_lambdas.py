"""What shapes prove about a function, and what they do not."""

import base64
import marshal
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibackend_lstm.migration.lambdas import (
    Evidence,
    demands,
    judge,
    merges,
    other_operations,
    reshape_operation,
    splits,
)


def evidence(rank, **sizes):
    """What a layer demands: `evidence(3, last=15)`."""
    found = Evidence()
    axes = {"last": -1, "first": 1}
    found.add(rank, {axes[name]: size for name, size in sizes.items()}, "the layer after")
    return found


def exactly(*shape):
    return Evidence(exact=[((None, *shape), "a test")])


@pytest.mark.parametrize(
    ("shape", "known", "target"),
    [
        ((None, 10, 3, 5), evidence(3, last=15), (10, 15)),
        ((None, None, 3, 5), evidence(3, last=15), (None, 15)),
        ((2, 10, 3, 5), evidence(None, last=150), (150,)),
        ((None, 10, 15), evidence(4, last=1), (10, 15, 1)),
        ((None, 10, 15, 1), evidence(3, last=15), (10, 15)),
        ((None, 10, 15), evidence(4, last=5), (10, 3, 5)),
        ((None, None, 15), evidence(4, last=5), (None, 3, 5)),
        ((None, 10, 3, 5), exactly(30, 5), (30, 5)),
        ((None, 10, 24), exactly(10, 4, 6), (10, 4, 6)),
        # The old Keras lost the size of an axis where the function asked for it.
        ((None, 10, 3, 5), exactly(None, 15), (10, 15)),
    ],
)
def test_one_shape_fits(shape, known, target):
    assert judge(shape, known).target == target


@pytest.mark.parametrize(
    ("shape", "known", "reason"),
    [
        ((None, 10, 15), evidence(3, last=15), "could do anything"),
        ((None, 10, 3, 5), exactly(10, 3, 5), "could compute anything"),
        # x[:, :, 0] and a mean over channels fit as well as merging time and channels.
        ((None, 10, 3, 5), evidence(3, last=5), "more than one shape"),
        ((None, 10, 3, 5), exactly(None, 5), "more than one shape"),
        ((None, 10, 15), exactly(None, 15), "could compute anything"),
        ((None, 10, 24), exactly(10, None, None), "more than one shape"),
        ((None, 10, 24), evidence(4), "more than one shape"),
        ((None, 10, 3, 5), exactly(10, 5, 3), "neither a merge nor a split"),
        ((None, 10, 3, 5), exactly(10, 14), "neither a merge nor a split"),
        ((None, 10, 3, 5), evidence(3, last=14), "no merge or split"),
        ((None, 10, 3, None), evidence(3, last=15), "no merge or split"),
        ((None, 10, 3, 5), Evidence(), "nothing after it"),
        (None, evidence(3, last=15), "not known"),
        ((None, *(2,) * 40), evidence(3, last=4), "too many axes"),
        ((None, 10**12, 2), evidence(4, last=4), "too large"),
    ],
)
def test_nothing_is_proved(shape, known, reason):
    verdict = judge(shape, known)
    assert verdict.target is None
    assert reason in verdict.reason


def test_layers_that_contradict_each_other_prove_nothing():
    known = evidence(3, last=15)
    known.add(3, {-1: 30}, "another layer")
    assert "different shapes" in judge((None, 10, 3, 5), known).reason


SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@given(shape=SHAPES, data=st.data())
def test_a_verdict_is_never_another_reshape_than_the_true_one(shape, data):
    options = [*merges(shape), *splits(shape, len(shape) + 1)]
    truth = data.draw(st.sampled_from(options))
    known = evidence(len(truth) + 1, last=truth[-1])
    target = judge((None, *shape), known).target
    assert target in (None, truth)
    if truth == shape:
        assert target is None


@given(shape=SHAPES, axis=st.integers(0, 3))
def test_a_slice_is_never_taken_for_a_reshape(shape, axis):
    axis %= len(shape)
    rest = shape[:axis] + shape[axis + 1 :]
    if rest and shape[axis] > 1:
        assert judge((None, *shape), evidence(len(rest) + 1, last=rest[-1])).target is None


@given(shape=SHAPES)
def test_merges_and_splits_keep_the_number_of_entries(shape):
    assert shape in set(merges(shape))
    for other in [*merges(shape), *splits(shape, len(shape)), *splits(shape, len(shape) + 2)]:
        assert math.prod(other) == math.prod(shape)


def layer(name, module="keras.layers", **config):
    return {"class_name": name, "module": module, "config": config}


def test_demands_of_layers():
    assert demands(layer("LSTM"), (15, 8))[:2] == (3, {-1: 15})
    assert demands(layer("Bidirectional", layer=layer("GRU")), (15, 6))[:2] == (3, {-1: 15})
    conv = layer("Conv2D", groups=2, data_format="channels_first")
    assert demands(conv, (3, 3, 4, 8))[:2] == (4, {1: 8})
    wrapped = layer("TimeDistributed", layer=conv)
    assert demands(wrapped, (3, 3, 4, 8))[:2] == (5, {2: 8})
    assert demands(layer("TimeDistributed", layer=layer("Dense")), (5, 2))[:2] == (None, {-1: 5})
    # This package's LSTM takes any rank, so it tells nothing.
    assert demands(layer("LSTM", module="multibackend_lstm.layers.lstm"), (15, 8)) is None
    assert demands(layer("Flatten"), None) is None


def stored(function):
    """A Lambda as Keras 2 stores it."""
    code = base64.encodebytes(marshal.dumps(function.__code__)).decode()
    return layer("Lambda", function=[code, None, None])


def test_names_of_other_operations_are_found_without_unmarshalling():
    import numpy as tf

    assert other_operations(stored(lambda t: tf.reshape(t, (-1, 10, 15)))) == []
    named = other_operations(stored(lambda t: tf.reshape(tf.transpose(t), (-1, 10, 15))))
    assert named == ["transpose"]
    assert other_operations(stored(lambda t: tf.mean(t, axis=2))) == ["mean"]
    broken = layer("Lambda", function={"class_name": "__lambda__", "config": {"code": 3}})
    assert other_operations(broken) == ["an unreadable function"]
    assert other_operations(layer("Lambda", function=["%%%", None, None])) == []


@pytest.mark.parametrize(
    ("function", "kwargs", "target"),
    [
        ("reshape", {"shape": [-1, 10, 15]}, (10, 15)),
        ("reshape", {"shape": [-1, 5, 30], "name": None}, (5, 30)),
        ("reshape", {"shape": [-1, 15]}, None),  # folds time into the batch
        ("reshape", {"shape": [10, -1, 15]}, None),
        ("reshape", {"shape": ["x", 0, 0]}, None),
        ("expand_dims", {"axis": -1}, (10, 3, 5, 1)),
        ("expand_dims", {"axis": 1}, (1, 10, 3, 5)),
        ("expand_dims", {"axis": 0}, None),
        ("squeeze", {"axis": [2]}, None),
        ("math.multiply", {"y": 2.0}, None),
        (["reshape"], {"shape": [-1, 10, 15]}, None),
    ],
)
def test_tensorflow_functions(function, kwargs, target):
    verdict = reshape_operation(layer("TFOpLambda", function=function), kwargs, (None, 10, 3, 5))
    assert verdict.target == target

"""What shapes prove about a function, and what they do not."""

import base64
import itertools
import marshal
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibackend_lstm.migration.lambdas import (
    Evidence,
    demands,
    judge,
    other_operations,
    reshape_operation,
)


def evidence(rank, **sizes):
    """What a layer demands: `evidence(3, last=15)`."""
    found = Evidence()
    axes = {"last": -1, "first": 1}
    found.add(rank, {axes[name]: size for name, size in sizes.items()}, "the layer after")
    return found


def exactly(*shape):
    found = Evidence()
    found.add_shape((None, *shape), "a test")
    return found


def merges(axes):
    """Every shape that merging neighbouring axes gives, the unchanged one included."""
    for cuts in itertools.product((False, True), repeat=len(axes) - 1):
        merged = [axes[0]]
        for cut, size in zip(cuts, axes[1:], strict=True):
            if cut:
                merged.append(size)
            else:
                merged[-1] *= size
        yield tuple(merged)


def splits(axes, rank):
    """Every shape of that many axes that splitting axes gives."""
    if not axes:
        return [()] if rank == 0 else []
    found = set()
    for parts in range(1, rank - len(axes) + 2):
        for factors in itertools.product(range(1, axes[0] + 1), repeat=parts):
            if math.prod(factors) == axes[0]:
                found |= {(*factors, *tail) for tail in splits(axes[1:], rank - parts)}
    return found


@pytest.mark.parametrize(
    ("shape", "known", "target"),
    [
        ((None, 10, 3, 5), evidence(3, last=15), (10, 15)),
        ((None, None, 3, 5), evidence(3, last=15), (None, 15)),
        ((2, 10, 3, 5), evidence(None, last=150), (150,)),
        ((None, 10, 15, 1), evidence(3, last=15), (10, 15)),
        ((None, 10, 15), evidence(4, first=10, last=5), (10, 3, 5)),
        ((None, None, 15), exactly(None, 3, 5), (None, 3, 5)),
        ((None, 10, 15), exactly(10, None, 1), (10, 15, 1)),
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
        ((None, 10, 15), evidence(3, last=15), "could compute anything"),
        ((None, 10, 3, 5), exactly(10, 3, 5), "could compute anything"),
        ((None, 10, 15), exactly(None, 15), "could compute anything"),
        ((None, 10, 3, 5), exactly(10, 5, 3), "no merge or split"),
        ((None, 10, 3, 5), exactly(10, 14), "no merge or split"),
        ((None, 10, 3, 5), evidence(3, last=14), "no merge or split"),
        ((None, 10, 3, None), evidence(3, last=15), "no merge or split"),
        ((None, None, None, 5), evidence(3, last=5), "no merge or split"),
        ((None, 10, 3, 5), evidence(3, last=0), "no merge or split"),
        ((None, 10, 3, 5), evidence(10_000, last=5), "no merge or split"),
        ((None, 10, 24), evidence(5, last=4), "more than two sizes open"),
        ((None, 10, 3, 5), Evidence(), "nothing after it"),
        (None, evidence(3, last=15), "not known"),
        ((None, *(2,) * 40), evidence(3, last=4), "too many axes"),
        ((None, 10**12, 2), evidence(4, last=4), "too large"),
    ],
)
def test_nothing_fits(shape, known, reason):
    verdict = judge(shape, known)
    assert verdict.target is None
    assert reason in verdict.reason
    assert not verdict.candidates


@pytest.mark.parametrize(
    ("shape", "known", "candidates"),
    [
        # x[:, :, 0] and a mean over channels fit as well as merging time and channels.
        ((None, 10, 3, 5), evidence(3, last=5), [(30, 5)]),
        ((None, 10, 3, 5), exactly(None, 5), [(30, 5)]),
        # Of all reshapes, (2, 15, 5) and (10, 15, 1) fit too; only one splits axes.
        ((None, 10, 15), evidence(4, last=5), [(10, 3, 5)]),
        ((None, 10, 15), evidence(4, last=1), [(10, 15, 1)]),
        ((None, None, 15), evidence(4, last=5), [(None, 3, 5)]),
        # Nothing tells the number of axes.
        ((None, 10, 3, 5), evidence(None, last=15), [(10, 15)]),
        (
            (None, 10, 24),
            exactly(10, None, None),
            [(10, n, 24 // n) for n in (1, 2, 3, 4, 6, 8, 12, 24)],
        ),
        ((None, 4, 6), evidence(4, last=3), [(4, 2, 3)]),
        ((None, 4, 6), evidence(4, last=6), [(1, 4, 6), (2, 2, 6), (4, 1, 6)]),
    ],
)
def test_what_is_not_proved_is_named(shape, known, candidates):
    verdict = judge(shape, known)
    assert verdict.target is None
    assert sorted(verdict.candidates, key=str) == sorted(candidates, key=str)
    assert "nothing proves" in verdict.reason


def test_layers_that_contradict_each_other_prove_nothing():
    known = evidence(3, last=15)
    known.add(3, {-1: 30}, "another layer")
    assert judge((None, 10, 3, 5), known).target is None
    known = exactly(10, 15)
    known.add(4, {}, "another layer")
    assert judge((None, 10, 3, 5), known).target is None


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


@given(shape=SHAPES, rank=st.integers(1, 5), data=st.data())
def test_a_proof_leaves_no_other_reshape(shape, rank, data):
    """Of all shapes with as many entries, not only of merges and splits, one alone fits."""
    last = data.draw(st.integers(1, 36))
    target = judge((None, *shape), evidence(rank + 1, last=last)).target
    if target is not None:
        rest = math.prod(shape) // last
        assert (splits((rest,), rank - 1) if rank > 1 else {()}) == {target[:-1]}


@given(shape=SHAPES, data=st.data())
def test_candidates_are_all_merges_and_splits_that_fit(shape, data):
    rank = data.draw(st.integers(1, 3))
    last = data.draw(st.integers(1, 6))
    verdict = judge((None, *shape), evidence(rank + 1, last=last))
    fitting = {
        t for t in {*merges(shape), *splits(shape, rank)} if len(t) == rank and t[-1] == last
    }
    named = {*verdict.candidates, *([] if verdict.target is None else [verdict.target])}
    assert named == (set() if shape in fitting else fitting)


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

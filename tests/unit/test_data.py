"""flatten_features, unflatten_features and the shipped data set."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from multibackend_lstm import (
    FlattenFeatures,
    flatten_features,
    load_basic_motions,
    unflatten_features,
)

DTYPES = st.sampled_from(["float32", "float64", "float16", "int32", "int8", "bool"])


def bits(x):
    """The bytes of an array, so that NaN and -0.0 are compared too."""
    return np.ascontiguousarray(x).view(np.uint8) if x.size else x


@given(DTYPES.flatmap(lambda d: arrays(d, array_shapes(min_dims=3, max_dims=6, max_side=4))))
def test_flatten_and_unflatten_are_inverse_views_bit_equal_to_numpy(x):
    flat = flatten_features(x)
    assert flat.shape == (*x.shape[:2], np.prod(x.shape[2:]))
    assert flat.dtype == x.dtype
    np.testing.assert_array_equal(bits(flat), bits(x.reshape(flat.shape)))
    assert np.shares_memory(flat, x)
    back = unflatten_features(flat, x.shape[2:])
    assert back.shape == x.shape
    np.testing.assert_array_equal(bits(back), bits(x))
    assert np.shares_memory(back, x)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (3, 0, 2, 2), (2, 3, 0, 2)])
def test_empty_arrays(shape):
    x = np.zeros(shape)
    flat = flatten_features(x)
    assert flat.shape == (*shape[:2], shape[2] * shape[3])
    assert unflatten_features(flat, shape[2:]).shape == shape


def test_an_array_in_another_memory_order_is_copied_only_as_numpy_must():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert np.shares_memory(flatten_features(x[:, ::2]), x)
    turned = x.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(flatten_features(turned), turned.reshape(2, 3, 20))


def test_rank_3_is_returned_itself():
    x = np.zeros((2, 3, 4))
    assert flatten_features(x) is x
    assert unflatten_features(x, (4,)) is x


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_tensors_of_the_backend_bit_equal_to_the_layer(dtype):
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(dtype)
    x = keras.ops.convert_to_tensor(array)
    flat = flatten_features(x)
    assert type(flat) is type(x)
    layer = FlattenFeatures()(x)
    assert keras.backend.standardize_dtype(flat.dtype) == dtype
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(flat), keras.ops.convert_to_numpy(layer)
    )
    back = unflatten_features(flat, (4, 5))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(back), array)
    if keras.backend.backend() == "torch":
        assert flat.data_ptr() == x.data_ptr() == back.data_ptr()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_unequal_lengths_are_padded_and_masked(lengths, seed):
    rng = np.random.default_rng(seed)
    sequences = [rng.normal(size=(length, 3, 2)).astype("float32") for length in lengths]
    padded, mask = flatten_features(sequences)
    assert padded.shape == (len(lengths), max(lengths), 6)
    assert padded.dtype == np.float32
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask.sum(axis=1), lengths)
    assert not padded[~mask].any()
    back = unflatten_features(padded, (3, 2), mask=mask)
    for sequence, other in zip(sequences, back, strict=True):
        np.testing.assert_array_equal(sequence, other)


def test_padded_sequences_and_their_mask_give_an_lstm_the_values_of_each_alone():
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(length, 3, 2)).astype("float32") for length in (5, 2, 4)]
    padded, mask = flatten_features(sequences)
    lstm = keras.layers.LSTM(4)
    together = keras.ops.convert_to_numpy(lstm(padded, mask=keras.ops.convert_to_tensor(mask)))
    for row, sequence in zip(together, sequences, strict=True):
        alone = lstm(flatten_features(sequence[None]))
        np.testing.assert_allclose(row, keras.ops.convert_to_numpy(alone)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: flatten_features(np.zeros((2, 3))), ValueError, r"3 axes.*\(2, 3\)"),
        (lambda: flatten_features([]), ValueError, "list of sequences is empty"),
        (
            lambda: flatten_features([np.zeros((2, 3)), np.zeros((2, 4))]),
            ValueError,
            r"share all axes but time.*\(2, 3\), \(2, 4\)",
        ),
        (lambda: flatten_features([np.zeros(3)]), ValueError, r"\(time, ..., features\)"),
        (lambda: flatten_features("x"), TypeError, "must be a NumPy array"),
        (lambda: flatten_features(keras.Input((3, 4, 5))), TypeError, "FlattenFeatures"),
        (lambda: unflatten_features(np.zeros((2, 3, 4, 5)), (4, 5)), ValueError, "must have 3"),
        (lambda: unflatten_features(np.zeros((2, 3, 6)), (4, 2)), ValueError, "product is 8"),
        (lambda: unflatten_features(np.zeros((2, 3, 6)), (-2, -3)), ValueError, "product"),
        (
            lambda: unflatten_features(np.zeros((1, 3, 6)), (3, 2), mask=[[True, False, True]]),
            ValueError,
            "True up to the end",
        ),
        (
            lambda: unflatten_features(np.zeros((1, 3, 6)), (3, 2), mask=[[True, False]]),
            ValueError,
            r"Received shape \(1, 2\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_basic_motions():
    data = load_basic_motions()
    assert data.class_names == ("Standing", "Running", "Walking", "Badminton")
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert x.shape == (40, 100, 2, 3)
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
        assert y.dtype == np.int32
        np.testing.assert_array_equal(np.bincount(y), [10, 10, 10, 10])
    assert not np.array_equal(data.x_train, data.x_test)
    # Who stands still moves least.
    movement = [data.x_train[data.y_train == label].std() for label in range(4)]
    assert np.argmin(movement) == 0


def test_the_converter_puts_every_value_in_its_place(tmp_path):
    """Sensor s, axis a, time t of case c is the number 1000 c + 100 s + 10 a + t."""
    lines = ["@classLabel true Rest Move", "@data"]
    for case in range(2):
        dimensions = [
            ",".join(str(1000 * case + 100 * sensor + 10 * axis + t) for t in range(4))
            for sensor in range(2)
            for axis in range(3)
        ]
        lines.append(":".join([*dimensions, ("Move", "Rest")[case]]))
    for name in ("TRAIN", "TEST"):
        (tmp_path / f"BasicMotions_{name}.ts").write_text("\n".join(lines) + "\n")
    script = Path(__file__).parents[2] / "tools" / "convert_basic_motions.py"
    target = tmp_path / "out.npz"
    subprocess.run([sys.executable, script, tmp_path, target], check=True)
    with np.load(target, allow_pickle=False) as arrays_:
        case, time, sensor, axis = np.indices((2, 4, 2, 3))
        np.testing.assert_array_equal(
            arrays_["x_train"], 1000 * case + 100 * sensor + 10 * axis + time
        )
        np.testing.assert_array_equal(arrays_["y_train"], [1, 0])
        assert list(arrays_["class_names"]) == ["Rest", "Move"]

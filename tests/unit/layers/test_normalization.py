"""Normalization, against means and variances of the valid steps in float64 NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from multibackend_lstm import Normalization, build_model
from unit.tools import to_numpy

SHAPE = (6, 7, 3, 2)  # (batch, time, channels, features)


def data(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * [2.0, 50.0] + [1000.0, -3.0]).astype("float32")


def statistics(x, valid, axis):
    """Mean and variance of the entries of `x` where `valid`, for each entry of `axis`."""
    x = x.astype("float64")
    kept = tuple(x.ndim + a for a in sorted(axis))
    rows = np.moveaxis(x, kept, range(-len(kept), 0)).reshape(-1, *[x.shape[a] for a in kept])
    chosen = np.moveaxis(np.broadcast_to(valid, x.shape), kept, range(-len(kept), 0))
    chosen = chosen.reshape(rows.shape)
    rows = np.ma.array(rows, mask=~chosen)
    return rows.mean(axis=0).filled(), rows.var(axis=0).filled()


@pytest.mark.parametrize("axis", [-1, (-2, -1), (-2,)], ids=str)
@pytest.mark.parametrize("masked", ["nothing", "steps", "channels"])
def test_statistics_and_values_are_those_of_valid_steps(axis, masked):
    x = data()
    rng = np.random.default_rng(1)
    mask = {
        "nothing": None,
        "steps": rng.random(SHAPE[:2]) < 0.7,
        "channels": rng.random(SHAPE[:3]) < 0.7,
    }[masked]
    valid = np.ones(SHAPE, bool)
    if mask is not None:
        valid &= mask.reshape(*mask.shape, *[1] * (4 - mask.ndim))
        x = np.where(valid, x, np.float32(np.nan))
    layer = Normalization(axis)
    layer.adapt(x, mask=mask)
    axes = (axis,) if isinstance(axis, int) else axis
    mean, variance = statistics(np.where(valid, x, 0), valid, axes)
    np.testing.assert_allclose(to_numpy(layer.mean), mean, rtol=1e-6)
    np.testing.assert_allclose(to_numpy(layer.variance), variance, rtol=1e-6)
    shape = [size if a - 4 in axes else 1 for a, size in enumerate(SHAPE)]
    expected = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape))
    got = to_numpy(layer(x, mask=None if mask is None else ops.convert_to_tensor(mask)))
    np.testing.assert_allclose(got, np.where(valid, expected, 0), atol=2e-4)


def test_parts_and_series_give_the_statistics_of_the_whole(monkeypatch):
    x = data()
    whole = Normalization((-2, -1))
    whole.adapt(x)
    lengths = (2, 7, 5, 1, 7, 3)
    series = [sample[:length] for sample, length in zip(x, lengths, strict=True)]
    ragged = Normalization((-2, -1))
    ragged.adapt(series)
    joined = np.concatenate(series)
    np.testing.assert_allclose(to_numpy(ragged.mean), joined.astype("float64").mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        to_numpy(ragged.variance), joined.astype("float64").var(0), rtol=1e-6
    )

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return x[2 * index : 2 * index + 2], np.zeros(2)

    for batches in (Batches(), [x[:1], x[1:]], ((batch, 0) for batch in (x[:4], x[4:]))):
        layer = Normalization((-2, -1))
        layer.adapt(batches)
        np.testing.assert_allclose(to_numpy(layer.mean), to_numpy(whole.mean), rtol=1e-6)
        np.testing.assert_allclose(to_numpy(layer.variance), to_numpy(whole.variance), rtol=1e-6)
    monkeypatch.setattr("multibackend_lstm.data.statistics.CHUNK", 50)
    layer = Normalization((-2, -1))
    layer.adapt(ops.convert_to_tensor(x))
    np.testing.assert_allclose(to_numpy(layer.variance), to_numpy(whole.variance), rtol=1e-6)


def test_large_offsets_lose_no_digits():
    x = (data(shape=(4, 500, 1, 2)) * 1e-3 + 1e6).astype("float64")
    layer = Normalization()
    layer.adapt(x)
    np.testing.assert_allclose(to_numpy(layer.variance), x.var(axis=(0, 1, 2)), rtol=1e-6)


def test_a_constant_feature_becomes_zero():
    x = np.full((2, 300, 1, 2), 9.81)
    layer = Normalization()
    layer.adapt(x)
    np.testing.assert_allclose(to_numpy(layer(x)), 0, atol=1e-6)
    np.testing.assert_allclose(to_numpy(layer(x + 1)), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "bool", "float64"])
def test_other_dtypes(dtype):
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, SHAPE).astype(dtype)
    layer = Normalization()
    layer.adapt(x)
    got = layer(x)
    numbers = x.astype("float64")
    expected = (numbers - numbers.mean((0, 1, 2))) / numbers.std((0, 1, 2))
    assert keras.backend.standardize_dtype(got.dtype) == "float32"
    np.testing.assert_allclose(to_numpy(got), expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_normalises_before_it_rounds(policy):
    x = data() * 1000  # out of float16's range
    layer = Normalization((-2, -1), dtype=policy)
    layer.adapt(x)
    got = layer(x)
    assert keras.backend.standardize_dtype(got.dtype) == policy.removeprefix("mixed_")
    expected = (x - x.mean((0, 1), dtype="float64")) / x.std((0, 1), dtype="float64")
    np.testing.assert_allclose(to_numpy(ops.cast(got, "float32")), expected, atol=3e-2)


@pytest.mark.parametrize("given", [False, True])
def test_saved_with_the_model_and_loaded_without_adapt(tmp_path, given):
    x = data()
    inputs = keras.Input((None, 3, 2))
    masked = keras.layers.Masking(-1e9)(inputs)
    arguments = {"mean": [1000.0, -3.0], "variance": [4.0, 2500.0]} if given else {}
    layer = Normalization(mask_value=-1e9, **arguments)
    model = keras.Model(inputs, layer(masked))
    if not given:
        layer.adapt(x)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert int(to_numpy(loaded.layers[-1].adapted)) == 1


def test_the_mark_is_left_out_of_statistics_and_numbers():
    x = data()
    marked = np.concatenate([x, np.full_like(x, -1e9)], axis=1)
    plain, other = Normalization((-2, -1)), Normalization((-2, -1), mask_value=-1e9)
    plain.adapt(x)
    other.adapt(marked)
    np.testing.assert_allclose(to_numpy(other.mean), to_numpy(plain.mean), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(other.variance), to_numpy(plain.variance), rtol=1e-6)


@pytest.mark.parametrize("solution", ["reshape", "pre_reshape", "conv", "channelwise", "conv_lstm"])
def test_padded_and_cut_series_give_the_same(solution):
    """With `keras.layers.Normalization` in front they differ by 1.2."""
    x = data()
    x = x.reshape(*x.shape[:2], -1) if solution == "pre_reshape" else x
    model = build_model((None, 3, 2), solution, units=4, masking=-1e9, normalization=True)
    padded = np.concatenate([x, np.full_like(x, -1e9)], axis=1)
    model.adapt(padded)
    np.testing.assert_allclose(
        model.predict(padded, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


def test_a_layer_given_to_build_model_leaves_the_mark_out_too():
    x = data()
    layer = Normalization()
    model = build_model((None, 3, 2), units=2, masking=-1e9, normalization=layer)
    model.adapt(np.concatenate([x, np.full_like(x, -1e9)], axis=1))
    np.testing.assert_allclose(to_numpy(layer.mean), x.mean((0, 1, 2), dtype="float64"), rtol=1e-6)
    with pytest.raises(ValueError, match="must be that of `masking`"):
        build_model((5, 3, 2), masking=-1.0, normalization=Normalization(mask_value=-2.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normalization(1), "must count from the end"),
        (lambda: Normalization(()), "must count from the end"),
        (lambda: Normalization(mean=1.0), "belong together"),
        (lambda: Normalization(mean=1.0, variance=-1.0), "must not be negative"),
        (lambda: Normalization(mean=[1, 2, 3], variance=[1, 1, 1])(data()), r"sizes \(2,\)"),
        (lambda: Normalization((-2, -1))(np.zeros((2, 3, 4))), "at least 4 axes"),
        (lambda: Normalization().adapt(np.full(SHAPE, np.nan)), r"holds nan at \(0, 0, 0, 0\)"),
        (lambda: Normalization().adapt(np.zeros((0, 3, 1, 2))), "no valid entry"),
        (lambda: Normalization().adapt(data(), np.zeros(SHAPE[:2], bool)), "no valid entry"),
        (lambda: Normalization().adapt(data(), np.ones((6, 6))), "the mask must have"),
        (lambda: Normalization().adapt([data()], np.ones(SHAPE[:2])), "belongs to one array"),
        (lambda: Normalization().adapt(np.array([["a"]])), "must hold real numbers"),
        (lambda: Normalization().adapt([data(), np.zeros((2, 3, 3))]), r"sizes \(2,\) along"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

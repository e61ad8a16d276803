"""LengthMasking, alone and in models with an input of lengths."""

import keras
import numpy as np
import pytest
from keras import ops

from multibackend_lstm import SOLUTIONS, LengthMasking, build_model, pad_sequences
from unit.tools import BACKEND, to_numpy

SERIES = [
    np.random.default_rng(length).normal(size=(length, 3, 2)).astype("float32")
    for length in (4, 7, 1, 5)
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
@pytest.mark.parametrize("lengths_dtype", ["int32", "int64", "uint8"])
def test_zeros_and_the_mask_behind_the_end(dtype, lengths_dtype):
    x, lengths = pad_sequences([s * 10 for s in SERIES], value=5, dtype=dtype)
    layer = LengthMasking()
    inputs = [ops.convert_to_tensor(x), ops.convert_to_tensor(lengths.astype(lengths_dtype))]
    got, mask = layer(inputs), layer.compute_mask(inputs)
    valid = np.arange(7) < lengths[:, None]
    np.testing.assert_array_equal(to_numpy(mask), valid)
    np.testing.assert_array_equal(to_numpy(got), np.where(valid[..., None, None], x, 0))
    assert keras.backend.standardize_dtype(got.dtype) == dtype


def test_the_mask_of_the_input_is_kept():
    x, lengths = pad_sequences(SERIES)
    given = np.random.default_rng(0).random((4, 7, 3)) < 0.5
    inputs = [ops.convert_to_tensor(x), ops.convert_to_tensor(lengths)]
    got = LengthMasking().compute_mask(inputs, [ops.convert_to_tensor(given), None])
    valid = np.arange(7) < lengths[:, None]
    np.testing.assert_array_equal(to_numpy(got), given & valid[..., None])


@pytest.mark.parametrize("normalization", [False, True])
@pytest.mark.parametrize("solution", SOLUTIONS)
def test_models_of_lengths_give_what_each_series_gives_alone(tmp_path, solution, normalization):
    series = SERIES
    if solution == "pre_reshape":
        series = [s.reshape(len(s), -1) for s in series]
    x, lengths = pad_sequences(series, value=np.nan)
    model = build_model(
        (None, 3, 2),
        solution,
        units=(4, 3),
        lengths=True,
        normalization=normalization,
        bidirectional=solution == "reshape",
    )
    if normalization:
        model.adapt(series)
        expected = model.get_layer("normalization").get_weights()
        model.adapt((x, lengths))
        for got, value in zip(
            model.get_layer("normalization").get_weights(), expected, strict=True
        ):
            np.testing.assert_allclose(got, value, rtol=1e-6)
    together = model.predict((x, lengths), verbose=0)
    assert np.isfinite(together).all()
    for row, sample in zip(together, series, strict=True):
        alone = model.predict((sample[None], np.array([len(sample)])), verbose=0)
        np.testing.assert_allclose(row, alone[0], atol=1e-5)
    y = np.zeros((4, 1))
    model.compile(optimizer="sgd", loss="mse")
    history = model.fit({"inputs": x, "lengths": lengths}, y, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for given in ((x, lengths), [x, lengths], {"inputs": x, "lengths": lengths}):
        np.testing.assert_allclose(
            loaded.predict(given, verbose=0), model.predict(given, verbose=0), atol=1e-6
        )


@pytest.mark.skipif(BACKEND == "torch", reason="torch traces nothing here")
def test_a_length_out_of_range_in_a_traced_function_is_nan():
    inputs = [keras.Input((None, 2)), keras.Input((), dtype="int32")]
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(LengthMasking()(inputs)))
    got = model.predict([np.ones((3, 4, 2)), np.array([5, 4, -1])], verbose=0)
    np.testing.assert_array_equal(np.isnan(got[:, 0]), [True, False, True])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 3, 4)), "must be `\\[x, lengths\\]`"),
        ([np.zeros((2, 3)), np.zeros(2, "int32")], "at least 3 axes"),
        ([np.zeros((2, 3, 4)), np.zeros(2)], "must hold integers"),
        ([np.zeros((2, 3, 4)), np.zeros((2, 1), "int32")], "one integer a sample"),
        ([np.zeros((2, 3, 4)), np.array([4, 1])], r"here \[0, 3\]"),
    ],
)
def test_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        LengthMasking()(inputs)


def test_adapting_to_batches_and_to_two_series():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            x, lengths = pad_sequences(SERIES[2 * index : 2 * index + 2], value=np.nan)
            return {"inputs": x, "lengths": lengths}, np.zeros(2)

    model = build_model((None, 3, 2), units=2, lengths=True, normalization=True)
    layer = model.get_layer("normalization")
    for data, series in ((Batches(), SERIES), (SERIES[:2], SERIES[:2])):
        model.adapt(data)
        joined = np.concatenate(series).astype("float64")
        np.testing.assert_allclose(to_numpy(layer.mean), joined.mean(0), rtol=1e-5)
        np.testing.assert_allclose(to_numpy(layer.variance), joined.var(0), rtol=1e-5)


def test_bad_lengths_are_refused_by_the_model():
    model = build_model((None, 3, 2), units=2, lengths=True)
    model.compile(loss="mse")
    x, lengths = pad_sequences(SERIES)
    for call in (model.predict, lambda data, **_: model.fit(data, np.zeros((4, 1)))):
        with pytest.raises(ValueError, match=r"must lie in \[0, 7\]"):
            call((x, lengths + 1), verbose=0)

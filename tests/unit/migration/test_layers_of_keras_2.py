"""Every layer of Keras 2, with the options that matter, as tf-keras writes and computes it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from multibackend_lstm.porting import ModelFileError, migrate

BATCH = 3
SEQUENCE, IMAGE, VOLUME, IDS = (6, 4), (6, 5, 4), (4, 6, 5, 4), (6,)
#: How to build one in `from tf_keras.layers import *`, and the shapes of its inputs.
LAYERS = {
    **{
        f"{name}({arguments})": (SEQUENCE,)
        for name, choices in {
            "Dropout": ("0.2", "0.2, noise_shape=(None, 1, 4)"),
            "SpatialDropout1D": ("0.2",),
            "GaussianDropout": ("0.1",),
            "GaussianNoise": ("0.1",),
            "AlphaDropout": ("0.1",),
            "ActivityRegularization": ("0.1",),
            "ThresholdedReLU": ("0.5",),
            "LeakyReLU": ("", "0.1"),
            "ELU": ("0.5",),
            "ReLU": ("1.5, 0.1, 0.2",),
            "PReLU": ("", "shared_axes=[1]"),
            "Softmax": ("", "axis=1"),
            "Activation": ("'hard_sigmoid'", "'swish'", "'gelu'", "'exponential'", "'relu6'"),
            "Dense": (
                "5, activation='hard_sigmoid'",
                "5, activation='selu', use_bias=False, kernel_initializer='orthogonal'",
                "4, kernel_initializer='identity', kernel_regularizer='l2'",
                "4, bias_constraint='nonneg', kernel_constraint='max_norm'",
                "5, activation=LeakyReLU(0.2)",
            ),
            "LSTM": (
                "5, return_sequences=True, dropout=0.2, recurrent_dropout=0.1",
                "5, go_backwards=True, recurrent_activation='hard_sigmoid', unroll=True",
                "5, activation='hard_sigmoid', unit_forget_bias=False, use_bias=False",
            ),
            "GRU": ("5", "5, reset_after=False, recurrent_activation='hard_sigmoid'"),
            "SimpleRNN": ("5, activation='relu', return_sequences=True",),
            "RNN": ("LSTMCell(5)", "[LSTMCell(5), GRUCell(3)], return_sequences=True"),
            "Bidirectional": (
                "LSTM(4, return_sequences=True), merge_mode='ave'",
                "LSTM(4), backward_layer=LSTM(3, go_backwards=True)",
                "RNN(LSTMCell(4))",
            ),
            "TimeDistributed": ("Dense(3, activation='hard_sigmoid')",),
            "Conv1D": ("3, 3, padding='causal', dilation_rate=2", "4, 3, strides=2, groups=2"),
            "SeparableConv1D": ("3, 3, depth_multiplier=2",),
            "DepthwiseConv1D": ("3",),
            "Conv1DTranspose": ("3, 3, strides=2",),
            "MaxPooling1D": ("2, padding='same'",),
            "AveragePooling1D": ("3, 1",),
            "GlobalAveragePooling1D": ("keepdims=True",),
            "GlobalMaxPooling1D": ("",),
            "UpSampling1D": ("2",),
            "ZeroPadding1D": ("1",),
            "Cropping1D": ("1",),
            "BatchNormalization": ("axis=[1]", "center=False, scale=False", "synchronized=True"),
            "LayerNormalization": ("", "axis=[1, 2]"),
            "GroupNormalization": ("2",),
            "UnitNormalization": ("",),
            "Normalization": ("mean=[1.0, 2, 3, 4], variance=[2.0, 1, 1, 3]",),
            "Rescaling": ("0.5, 1",),
            "Discretization": ("bin_boundaries=[-1.0, 0, 1]",),
            "Flatten": ("",),
            "Permute": ("(2, 1)",),
            "Reshape": ("(-1, 2)",),
            "Masking": ("0.0",),
            "EinsumDense": ("'abc,cd->abd', output_shape=(None, 3), bias_axes='d'",),
        }.items()
        for arguments in choices
    },
    "TimeDistributed(LSTM(3))": (IMAGE,),
    "TimeDistributed(Conv1D(3, 2))": (IMAGE,),
    "SpatialDropout2D(0.2)": (IMAGE,),
    "Conv2D(3, 3, padding='same', activation='hard_sigmoid')": (IMAGE,),
    "SeparableConv2D(3, 3)": (IMAGE,),
    "DepthwiseConv2D(2, depth_multiplier=2)": (IMAGE,),
    "Conv2DTranspose(3, 3, strides=2, output_padding=1)": (IMAGE,),
    "MaxPooling2D(2, padding='same')": (IMAGE,),
    "UpSampling2D(2, interpolation='bilinear')": (IMAGE,),
    "Resizing(3, 4)": (IMAGE,),
    "CenterCrop(3, 3)": (IMAGE,),
    "RandomFlip()": (IMAGE,),
    "RandomRotation(0.1)": (IMAGE,),
    "RandomZoom(0.1)": (IMAGE,),
    "RandomContrast(0.1)": (IMAGE,),
    "RandomTranslation(0.1, 0.1)": (IMAGE,),
    "ConvLSTM1D(3, 2, return_sequences=True)": (IMAGE,),
    "ConvLSTM1D(3, 2, padding='same', activation='hard_sigmoid')": (IMAGE,),
    "SpatialDropout3D(0.2)": (VOLUME,),
    "Conv3D(3, 2)": (VOLUME,),
    "Conv3DTranspose(3, 2)": (VOLUME,),
    "ConvLSTM2D(3, 2)": (VOLUME,),
    "Embedding(9, 4, mask_zero=True, input_length=6)": (IDS,),
    "Embedding(9, 4, embeddings_constraint='unit_norm')": (IDS,),
    "Add()": (SEQUENCE, SEQUENCE),
    "Concatenate(axis=1)": (SEQUENCE, SEQUENCE),
    "Dot(axes=(1, 1), normalize=True)": (SEQUENCE, SEQUENCE),
    "Attention(use_scale=True, dropout=0.1)": (SEQUENCE, SEQUENCE),
    "AdditiveAttention()": (SEQUENCE, SEQUENCE),
    "MultiHeadAttention(2, 3)": (SEQUENCE, SEQUENCE),
    "MultiHeadAttention(2, 3, use_bias=False, output_shape=5)": (SEQUENCE,) * 3,
    "LSTM(5, stateful=True)": (SEQUENCE,),
    "Bidirectional(GRU(5, stateful=True))": (SEQUENCE,),
}


def write_old_layers(folder):
    """A program of tf-keras: a model of each layer that standard input names, and what it gives."""
    import tf_keras
    from tf_keras import layers

    rng = np.random.default_rng(0)
    for number, (text, shapes) in json.load(sys.stdin).items():
        layer = eval(text, vars(layers).copy())
        ids = text.startswith("Embedding")
        inputs = [
            tf_keras.Input(batch_shape=(BATCH, *shape), dtype="int32" if ids else "float32")
            for shape in shapes
        ]
        called = (
            layer(*inputs)
            if "MultiHead" in text
            else layer(inputs[0] if len(inputs) == 1 else inputs)
        )
        model = tf_keras.Model(inputs, called)
        for weight in model.weights:
            if "Normalization(mean" not in text and weight.dtype.is_floating:
                low, high = (0.2, 1.0) if "variance" in weight.name else (-0.6, 0.6)
                weight.assign(rng.uniform(low, high, weight.shape))
        x = [
            rng.integers(1, 9, (BATCH, *shape)).astype("int32") if ids
            else rng.normal(0, 1.5, (BATCH, *shape)).astype("float32")
            for shape in shapes
        ]  # fmt: skip
        y = model.predict(x, verbose=0)
        np.savez(f"{folder}/{number}.npz", *x, y=y)
        for suffix in (".h5", ".keras"):
            model.save(f"{folder}/{number}{suffix}")


@pytest.fixture(scope="module")
def files(request, tmp_path_factory):
    """The folder of all files that tests ask for, by tf-keras."""
    if find_spec("tf_keras") is None:
        pytest.skip("needs tf-keras, see nox -s legacy")
    folder = tmp_path_factory.mktemp("old")
    names = [*LAYERS]
    tests = [item for item in request.session.items if item.path == Path(__file__)]
    wanted = {item.callspec.params["text"] for item in tests if "files" in item.fixturenames}
    tasks = {names.index(text): (text, LAYERS[text]) for text in wanted}
    subprocess.run(
        [sys.executable, __file__, folder],
        input=json.dumps(tasks),
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1"},
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("text", LAYERS)
def test_a_layer_computes_what_it_did(files, text, suffix):
    path = files / f"{[*LAYERS].index(text)}{suffix}"
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
        arrays = dict(stored)
    y = arrays.pop("y")
    x = [*arrays.values()]
    model = migrate(path).model
    found = keras.ops.convert_to_numpy(model(x if len(x) > 1 else x[0], training=False))
    np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-5)


# ---- what the tf-keras of today does not write any more


def write(path, layers, weights=None):
    """A Sequential model as the Keras of TensorFlow 2.0 wrote it."""
    config = {"name": "model", "layers": layers}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.2.4-tf"
        file.attrs["backend"] = "tensorflow"
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [layer["config"]["name"].encode() for layer in layers]
        for layer in layers:
            name = layer["config"]["name"]
            own = group.create_group(name)
            arrays = (weights or {}).get(name, {})
            own.attrs["weight_names"] = np.array(
                [f"{name}/{key}:0".encode() for key in arrays], "S"
            )
            for key, array in arrays.items():
                own.create_dataset(f"{name}/{key}:0", data=array)
    return path


def layer(kind, **config):
    """One layer, the first of its model."""
    shape = [None, *SEQUENCE]
    return {"class_name": kind, "config": {"name": "old", "batch_input_shape": shape, **config}}


X = np.random.default_rng(0).normal(0, 1.5, (BATCH, *SEQUENCE)).astype("float32")


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (
            layer("Activation", activation={"class_name": "function", "config": "hard_sigmoid"}),
            np.clip(0.2 * X + 0.5, 0, 1),
        ),
        (
            layer(
                "ReLU",
                max_value={"type": "ndarray", "value": 1.5},
                negative_slope={"type": "ndarray", "value": 0.25},
                threshold={"type": "ndarray", "value": 0.0},
            ),
            np.where(X > 0.0, np.minimum(X, 1.5), 0.25 * X),
        ),
        (layer("ThresholdedReLU", theta=float(X[0, 0, 0])), X * (X[0, 0, 0] < X)),
    ],
)
def test_functions_and_numbers_in_old_forms(tmp_path, old, expected):
    model = migrate(write(tmp_path / "old.h5", [old])).model
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(X)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "initializer",
    [
        {"class_name": "GlorotUniform", "config": {"seed": None, "dtype": "float32"}},
        {"class_name": "VarianceScaling", "config": {"distribution": "normal", "seed": None}},
        {"class_name": "Identity", "config": {"gain": 1.0, "dtype": "float32"}},
    ],
)
def test_initializers_of_tensorflow_1(tmp_path, initializer):
    rng = np.random.default_rng(1)
    weights = {"kernel": rng.normal(size=(4, 4)), "bias": rng.normal(size=4)}
    old = layer("Dense", units=4, activation="linear", kernel_initializer=initializer)
    model = migrate(write(tmp_path / "old.h5", [old], {"old": weights})).model
    expected = X @ weights["kernel"] + weights["bias"]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(X)), expected, atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["BatchNormalizationV1", "BatchNormalizationV2", "SyncBatchNormalization"]
)
def test_batch_normalization_under_its_other_names(tmp_path, kind):
    rng = np.random.default_rng(1)
    gamma, beta, mean, variance = rng.uniform(0.5, 1.5, (4, 4))
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = dict(zip(names, (gamma, beta, mean, variance), strict=True))
    old = layer(kind, axis=[2], epsilon=1e-3)
    model = migrate(write(tmp_path / "old.h5", [old], {"old": weights})).model
    expected = (X - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(X)), expected, atol=1e-5)


def test_interpolation_that_backends_compute_otherwise_is_said(tmp_path):
    shape = [None, *IMAGE]
    old = layer("UpSampling2D", size=[2, 2], interpolation="bicubic", batch_input_shape=shape)
    steps = [step.detail for step in migrate(write(tmp_path / "old.h5", [old])).steps]
    assert any("bicubic" in detail for detail in steps) == (keras.backend.backend() != "tensorflow")


def test_an_argument_that_keras_3_does_not_have_is_named(tmp_path):
    path = write(tmp_path / "old.h5", [layer("BatchNormalization", mode=0)])
    with pytest.raises(ModelFileError, match=r"old: Keras cannot build it: .*'mode': 0"):
        migrate(path)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_files_of_keras_3_with_the_same_layers(tmp_path, suffix):
    inputs = keras.Input(SEQUENCE)
    x = keras.layers.SpatialDropout1D(0.2)(keras.layers.DepthwiseConv1D(3)(inputs))
    x = keras.layers.MultiHeadAttention(2, 3)(keras.layers.SeparableConv1D(4, 2)(x), x)
    model = keras.Model(inputs, keras.layers.ReLU(threshold=0.1)(x))
    path = tmp_path / f"new{suffix}"
    model.save(path)
    migrated = migrate(path).model
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (model(X), migrated(X))))


def test_operations_outside_of_layers_have_no_weights(tmp_path):
    inputs = keras.Input(SEQUENCE)
    x = keras.layers.LSTM(5, return_sequences=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(x[:, -1] + keras.ops.mean(x, axis=1)))
    model.save(tmp_path / "new.keras")
    migrated = migrate(tmp_path / "new.keras").model
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (model(X), migrated(X))))


if __name__ == "__main__":
    write_old_layers(sys.argv[1])

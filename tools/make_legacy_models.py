"""Writes the old model files that tests/unit/migration reads, each with inputs and predictions.

Run it once in each of six environments of its own, since they cannot share one:

    pip install "tensorflow-cpu==2.21.*" "tf_keras==2.21.*"     # tf-keras
    pip install "tensorflow-cpu==2.15.*" "numpy<2"              # Keras 2.15, Python 3.11 or older
    pip install keras tensorflow-cpu                            # Keras 3
    pip install "keras==3.6.*" "tensorflow-cpu==2.18.*"         # Keras 3.3 to 3.6
    pip install "keras==1.2.2" "tensorflow==1.10.*" "h5py<3" "numpy<1.17"       # Python 3.6
    pip install "keras==2.2.4" "tensorflow==1.10.*" "h5py<3" "numpy<1.17"       # after Keras 1

    python tools/make_legacy_models.py tests/unit/migration/files

It writes the variants that belong to the Keras it finds: `NAME.h5` or `NAME.keras`, and
`NAME.h5.npz` or `NAME.keras.npz` with the inputs `x0`, `x1`, ... and the predictions `y`.
"""

import argparse
import json
import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import h5py
import numpy as np
import tensorflow as tf

try:
    import tf_keras as keras
except ImportError:
    import keras

layers = keras.layers
if keras.__version__.startswith("1"):
    FLAVOUR = "keras1"
elif keras.__version__.startswith("3"):
    FLAVOUR = "keras36" if keras.__version__.startswith(("3.3", "3.4", "3.5", "3.6")) else "keras3"
else:
    FLAVOUR = "tf_keras" if keras.__name__ == "tf_keras" else "keras2"
    if keras.__version__.startswith("2.2"):
        FLAVOUR = "keras22"
    K = keras.backend


def merge(name="merge"):
    """The Lambda of countless answers to "expected ndim=3, found ndim=4"."""
    return layers.Lambda(lambda t: tf.reshape(t, (tf.shape(t)[0], tf.shape(t)[1], 15)), name=name)


def functional(shape, *stack):
    """A model of layers in a row."""
    inputs = keras.Input(shape)
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def tf_shape():
    """The model that issue 5 names."""
    return functional((10, 3, 5), merge(), layers.LSTM(64), layers.Dense(1))


def sequential():
    """Sequential, a static reshape, a compiled model."""
    model = keras.Sequential(
        [
            layers.Lambda(
                lambda t: tf.reshape(t, (-1, 10, 15)), input_shape=(10, 3, 5), name="merge"
            ),
            layers.LSTM(4, return_sequences=True),
            layers.LSTM(3, activation="relu"),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile("adam", "mse")
    return model


def backend_reshape():
    """K.reshape with an output shape, and unknown time."""
    return functional(
        (None, 3, 5),
        layers.Lambda(
            lambda t: K.reshape(t, (-1, K.shape(t)[1], 15)), output_shape=(None, 15), name="merge"
        ),
        layers.LSTM(4),
    )


def expand_dims():
    """A channel axis for a convolution inside every time step."""
    return functional(
        (10, 15),
        layers.Lambda(lambda t: K.expand_dims(t, -1), name="expand"),
        layers.TimeDistributed(layers.Conv1D(3, 4, activation="relu")),
        layers.TimeDistributed(layers.Flatten()),
        layers.LSTM(4),
    )


def squeeze():
    """An axis of size 1 taken away."""
    return functional(
        (10, 15, 1),
        layers.Lambda(lambda t: tf.squeeze(t, axis=-1), name="squeeze"),
        layers.GRU(4, reset_after=True),
    )


def split():
    """Features split into channels and features."""
    return functional(
        (10, 15),
        layers.Lambda(lambda t: tf.reshape(t, (-1, 10, 3, 5)), name="split"),
        layers.TimeDistributed(layers.Conv1D(2, 2)),
        layers.TimeDistributed(layers.Flatten()),
        layers.LSTM(4),
    )


def tf_op_reshape():
    """tf.reshape outside of a Lambda, which Keras 2 stores as a TFOpLambda."""
    inputs = keras.Input((10, 3, 5))
    x = tf.reshape(inputs, (-1, 10, 15))
    return keras.Model(inputs, layers.LSTM(4)(x))


def tf_op_scale():
    """Arithmetic outside of a Lambda."""
    inputs = keras.Input((10, 15))
    return keras.Model(inputs, layers.LSTM(4)(inputs * 2.0))


def bidirectional():
    """Weights of two directions, a GRU of the old kind, batch normalisation."""
    return functional(
        (10, 3, 5),
        merge(),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        layers.BatchNormalization(),
        layers.GRU(3, reset_after=False),
        layers.Dense(1),
    )


def nested():
    """A nested functional model with a Lambda inside, and a nested Sequential."""
    inner = functional((10, 3, 5), merge(), layers.LSTM(4, return_sequences=True))
    tail = keras.Sequential([layers.Input((10, 4)), layers.GRU(3), layers.Dense(2)])
    inputs = keras.Input((10, 3, 5))
    return keras.Model(inputs, tail(inner(inputs)))


def shared():
    """Two inputs, a layer called twice, a nested model as the last layer."""
    left, right = keras.Input((10, 3, 5), name="left"), keras.Input((10, 3, 5), name="right")
    lstm = layers.LSTM(4)
    both = layers.Concatenate()(
        [lstm(merge("merge_left")(left)), lstm(merge("merge_right")(right))]
    )
    tail = functional((8,), layers.Dense(2, activation="tanh"))
    return keras.Model([left, right], tail(both))


def mixed_precision():
    """float16 computations on float32 weights."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = functional((10, 3, 5), merge(), layers.LSTM(4), layers.Dense(1, dtype="float32"))
    keras.mixed_precision.set_global_policy("float32")
    return model


def masked():
    """A mask, which the Lambda loses."""
    return functional((10, 3, 5), layers.Masking(), merge(), layers.LSTM(4))


def states():
    """The states of one LSTM start another one."""
    inputs = keras.Input((10, 3, 5))
    x = merge()(inputs)
    _, h, c = layers.LSTM(4, return_state=True)(x)
    return keras.Model(inputs, layers.LSTM(4)(x, initial_state=[h, c]))


def scaling():
    """A Lambda that keeps the shape."""
    return functional((10, 15), layers.Lambda(lambda t: t * 2.0, name="scale"), layers.LSTM(4))


def transposing():
    """A Lambda whose output has the shape of a merge, with columns in another order."""
    return functional(
        (10, 3, 5),
        layers.Lambda(
            lambda t: tf.reshape(tf.transpose(t, (0, 1, 3, 2)), (-1, 10, 15)), name="transpose"
        ),
        layers.LSTM(4),
    )


def slicing():
    """A Lambda that takes one channel: (30, 5), a merge of time and channels, would fit too."""
    return functional((10, 3, 5), layers.Lambda(lambda t: t[:, :, 0], name="slice"), layers.LSTM(4))


def trained():
    """Compiled, nested and fitted: Keras 2.15 stores what metrics have counted."""
    inner = functional((10, 5), layers.LSTM(3))
    inner.compile("adam", "mse", metrics=["mae"])
    inner.fit(np.ones((4, 10, 5)), np.ones((4, 3)), verbose=0)
    model = functional((10, 5), inner, layers.Dense(1, activation="sigmoid"))
    model.compile("adam", "mse", metrics=["mae", keras.metrics.AUC(num_thresholds=3)])
    model.fit(np.ones((4, 10, 5)), np.ones((4, 1)), verbose=0)
    return model


def cudnn_lstm():
    """Two directions and one, backwards."""
    lstm = tf.compat.v1.keras.layers.CuDNNLSTM
    return functional(
        (10, 5),
        layers.Bidirectional(lstm(3, return_sequences=True)),
        lstm(4, go_backwards=True),
    )


def cudnn_gru():
    """Kernels that are not square and one that is, in a nested model."""
    gru = tf.compat.v1.keras.layers.CuDNNGRU
    inner = functional((10, 5), gru(3, return_sequences=True), gru(3, return_sequences=True))
    return functional((10, 5), inner, gru(4))


def cudnn_layer(layer, x):
    """What the cuDNN kernel computes for a layer, in float64. The kernel itself needs a GPU.

    Source: the kernel takes every gate's weights as one row of numbers, of a matrix (units,
    inputs), as CuDNNLSTM._process_batch hands them over; equations of cudnnRNNMode_t in the cuDNN
    API reference.
    """
    lstm = "LSTM" in type(layer).__name__
    kernel, recurrent, bias = (w.astype("float64") for w in layer.get_weights())
    units, gates = len(recurrent), 4 if lstm else 3
    w = [block.ravel().reshape(units, -1) for block in np.split(kernel, gates, 1)]
    r = [block.ravel().reshape(units, -1) for block in np.split(recurrent, gates, 1)]
    bw, br = bias.reshape(2, gates, units)
    h = c = np.zeros((len(x), units))
    outputs = []
    for step in np.moveaxis(x[:, :: -1 if layer.go_backwards else 1], 1, 0):
        wx = [step @ w[i].T + bw[i] for i in range(gates)]
        rh = [h @ r[i].T + br[i] for i in range(gates)]
        if lstm:
            i, f, o = (1 / (1 + np.exp(-wx[k] - rh[k])) for k in (0, 1, 3))
            c = f * c + i * np.tanh(wx[2] + rh[2])
            h = o * np.tanh(c)
        else:
            z, reset = (1 / (1 + np.exp(-wx[k] - rh[k])) for k in (0, 1))
            h = (1 - z) * np.tanh(wx[2] + reset * rh[2]) + z * h
        outputs.append(h)
    return np.stack(outputs, 1) if layer.return_sequences else h


def cudnn_predictions(model, x):
    """Predictions of a model of cuDNN layers in a row, nested ones among them."""
    for layer in model.layers:
        if isinstance(layer, layers.Bidirectional):
            backward = cudnn_layer(layer.backward_layer, x)[:, ::-1]
            x = np.concatenate([cudnn_layer(layer.forward_layer, x), backward], -1)
        elif isinstance(layer, keras.Model):
            x = cudnn_predictions(layer, x)
        elif not isinstance(layer, layers.InputLayer):
            x = cudnn_layer(layer, x)
    return x


def gru_reset_before():
    """The GRU of Keras before TensorFlow 2, with and without bias."""
    old = {"reset_after": False, "recurrent_activation": "sigmoid"}
    return functional(
        (10, 5),
        layers.GRU(3, return_sequences=True, **old),
        layers.Bidirectional(layers.GRU(3, use_bias=False, **old)),
    )


def lambdas():
    """What Lambdas are used for beside reshapes, as their bytecode spells out."""
    return functional(
        (10, 3, 5),
        layers.Lambda(lambda x: x / 255 - 0.5, name="scale"),
        layers.Lambda(lambda x: K.permute_dimensions(x, (0, 1, 3, 2)), name="transpose"),
        layers.Lambda(lambda x: K.max(x, axis=-1), name="max"),
        layers.LSTM(4, return_sequences=True),
        layers.Lambda(lambda x: x[:, -1, :], output_shape=(4,), name="last"),
        layers.Lambda(lambda x: tf.expand_dims(x, axis=1), name="expand"),
        layers.Lambda(lambda x: K.squeeze(x, 1) * 2, name="squeeze"),
        layers.Dense(3),
        layers.Reshape((3, 1)),
        layers.Lambda(lambda x: tf.reduce_mean(x, axis=1), name="mean"),
    )


def lambdas_nested():
    """A Lambda before a nested model, whose weights Keras counts by class, and one at the end."""
    inner = functional((10, 5), layers.LSTM(3, return_sequences=True))
    return functional(
        (10, 5, 3),
        layers.Lambda(lambda x: K.sum(x, axis=-1), name="sum"),
        inner,
        layers.Lambda(lambda x: x[:, -1], name="last"),
    )


def lambdas_sequential():
    """A mask that a Lambda loses, and the last step."""
    return keras.Sequential(
        [
            layers.Masking(input_shape=(10, 5)),
            layers.Lambda(lambda x: 2.0 * x, name="scale"),
            layers.LSTM(4, return_sequences=True),
            layers.Lambda(lambda x: x[:, -1], name="last"),
            layers.Dense(2),
        ]
    )


def hard_sigmoid_gates():
    """The gate of Keras 2 in layers of two and of more axes, under a wrapper too."""
    gate = {"recurrent_activation": "hard_sigmoid"}
    return functional(
        (6, 5, 2),
        layers.ConvLSTM1D(3, 2, return_sequences=True),
        layers.TimeDistributed(layers.Flatten()),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True, **gate)),
        layers.GRU(3, **gate),
    )


def keras3():
    """Keras 3's own Lambda."""
    return functional(
        (10, 3, 5),
        layers.Lambda(lambda t: keras.ops.reshape(t, (-1, 10, 15)), name="merge"),
        layers.Bidirectional(layers.LSTM(4)),
        layers.Dense(1),
    )


def keras36():
    """Initializers that Keras 3.3 to 3.6 named otherwise than Keras 3.16 knows them."""
    return functional(
        (10, 5),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.TimeDistributed(layers.Dense(6, kernel_initializer="identity")),
        layers.GRU(3, recurrent_initializer="identity"),
        layers.Dense(1),
    )


def keras3_legacy():
    """An .h5 file of Keras 3."""
    return functional(
        (10, 3, 5),
        layers.Reshape((10, 15)),
        layers.Bidirectional(layers.LSTM(4)),
        layers.Dense(1, activation="hard_sigmoid"),
    )


def hard_sigmoid():
    """The gate of LSTM before TensorFlow 2, which Keras 3 computes with another slope."""
    return functional(
        (10, 3, 5),
        merge(),
        layers.LSTM(4, recurrent_activation="hard_sigmoid", return_sequences=True),
        layers.LeakyReLU(0.2),
        layers.GlobalAveragePooling1D(),
        layers.Dense(3, activation="hard_sigmoid"),
    )


VARIANTS = {
    "tf_keras": {
        "tf_shape.h5": tf_shape,
        "sequential.h5": sequential,
        "sequential_v2.keras": sequential,
        "backend_reshape.h5": backend_reshape,
        "expand_dims.h5": expand_dims,
        "squeeze_v2.keras": squeeze,
        "split.h5": split,
        "tf_op_reshape.h5": tf_op_reshape,
        "tf_op_scale.h5": tf_op_scale,
        "bidirectional_v2.keras": bidirectional,
        "bidirectional_23.h5": bidirectional,
        "hard_sigmoid.h5": hard_sigmoid,
        "nested.h5": nested,
        "nested_v2.keras": nested,
        "shared.h5": shared,
        "mixed_precision.h5": mixed_precision,
        "masked.h5": masked,
        "states.h5": states,
        "scaling.h5": scaling,
        "transposing.h5": transposing,
        "slicing.h5": slicing,
    },
    "keras2": {
        "keras215_bidirectional.keras": bidirectional,
        "keras215_trained.keras": trained,
        "cudnn_lstm.h5": cudnn_lstm,
        "cudnn_gru.h5": cudnn_gru,
        "gru_reset_before.h5": gru_reset_before,
        "hard_sigmoid_gates.h5": hard_sigmoid_gates,
        "keras215_hard_sigmoid_gates.keras": hard_sigmoid_gates,
        "lambdas.h5": lambdas,
        "lambdas_nested.h5": lambdas_nested,
        "keras215_lambdas_nested.keras": lambdas_nested,
        "keras215_lambdas_sequential.keras": lambdas_sequential,
    },
    "keras3": {"keras3.keras": keras3, "keras3_legacy.h5": keras3_legacy},
    "keras36": {"keras36.keras": keras36, "keras36.h5": keras36},
}


def as_keras_2_3(path):
    """Write the configuration as Keras 2.3 did, which stored no modules (keras#19898)."""

    def old(value):
        if isinstance(value, dict):
            return {
                key: old(item)
                for key, item in value.items()
                if key not in ("module", "registered_name", "build_config", "time_major")
                or value.get("class_name") == "Lambda"
            }
        return [old(item) for item in value] if isinstance(value, list) else value

    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        del file.attrs["model_config"]
        file.attrs["model_config"] = np.bytes_(json.dumps(old(config)))
        for group in (file, file["model_weights"]):
            group.attrs["keras_version"] = np.bytes_("2.3.1")


def write_keras_1(folder, name):
    """A file of Keras 1, whose layers have other arguments."""
    model = keras.models.Sequential()
    model.add(
        layers.LSTM(4, input_shape=(10, 5), return_sequences=True, inner_activation="sigmoid")
    )
    model.add(layers.LSTM(3))
    model.add(layers.Dense(output_dim=2, activation="tanh"))
    rng = np.random.RandomState(1)
    x = rng.normal(size=(3, 10, 5)).astype("float32")
    model.save(str(folder / name))
    np.savez_compressed(str(folder / (name + ".npz")), y=model.predict(x), x0=x)


def write_keras_22(folder, name):
    """The file of Keras 1 as Keras 2.2 saves it, with the predictions of Keras 1."""
    model = keras.models.load_model(str(folder / "keras1.h5"), compile=False)
    model.save(str(folder / name))
    (folder / (name + ".npz")).write_bytes((folder / "keras1.h5.npz").read_bytes())

    # What most old files are: of Keras itself, Python 3.6, and the defaults of then.
    model = keras.models.Sequential()
    model.add(layers.Lambda(lambda x: x / 255 - 0.5, input_shape=(10, 5), name="scale"))
    model.add(layers.Bidirectional(layers.LSTM(3, return_sequences=True)))
    model.add(layers.GRU(4, return_sequences=True))
    model.add(layers.Lambda(lambda x: x[:, -1, :], name="last"))
    rng = np.random.RandomState(2)
    model.set_weights([rng.normal(size=w.shape) * 0.5 for w in model.get_weights()])
    model.save(str(folder / "keras22_lambdas.h5"))
    x = 255 * rng.uniform(size=(3, 10, 5)).astype("float32")
    np.savez_compressed(str(folder / "keras22_lambdas.h5.npz"), y=model.predict(x), x0=x)


WRITERS = {"keras1": ("keras1.h5", write_keras_1), "keras22": ("keras22.h5", write_keras_22)}


def write(folder, name, make):
    """One file, with its inputs and predictions."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(sum(map(ord, name)))
    model = make()
    rng = np.random.default_rng(len(name))
    # Not the initial values: biases of zero and of one would hide what is exchanged.
    model.set_weights(
        [
            (np.abs(w) if w.min() > 0.5 else w) + 0.1 * rng.random(w.shape, dtype="float32")
            for w in model.get_weights()
        ]
    )
    inputs = [
        rng.normal(size=(3, *(6 if s is None else s for s in x.shape[1:]))).astype("float32")
        for x in model.inputs
    ]
    if any(isinstance(layer, layers.Masking) for layer in model.layers):
        for x in inputs:
            x[:, 7:] = 0.0
    if name.startswith("cudnn"):
        outputs = np.asarray(cudnn_predictions(model, *inputs), "float32")
    else:
        outputs = np.asarray(model(inputs if len(inputs) > 1 else inputs[0]), "float32")
    model.save(folder / name)
    if name == "bidirectional_23.h5":
        as_keras_2_3(folder / name)
    arrays = {f"x{position}": x for position, x in enumerate(inputs)}
    np.savez_compressed(folder / f"{name}.npz", y=outputs, **arrays)
    print(f"{name}: {(folder / name).stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="Default: all of this Keras.")
    arguments = parser.parse_args()
    if FLAVOUR in WRITERS:
        variant, writer = WRITERS[FLAVOUR]
        writer(arguments.folder, variant)
    for variant, maker in VARIANTS.get(FLAVOUR, {}).items():
        if not arguments.names or variant in arguments.names:
            write(arguments.folder, variant, maker)

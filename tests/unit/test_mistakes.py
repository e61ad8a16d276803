"""Plausible mistakes of a first hour, and what this package answers: one line each."""

import warnings

import keras
import numpy as np
import pytest

import multibackend_lstm as m
from unit.tools import BACKEND

X = np.random.default_rng(0).normal(size=(6, 10, 3, 5)).astype("float32")
Y = np.arange(6, dtype="float32")[:, None]
CLASSES = np.arange(6) % 3
needs_training = pytest.mark.skipif(BACKEND == "numpy", reason="the NumPy backend does not train")


def regression(*args, **options):
    model = m.build_model((10, 3, 5), *args, units=2, **options)
    model.compile(loss="mse")
    return model


def classifier(loss="sparse_categorical_crossentropy", **options):
    model = m.build_model((10, 3, 5), units=2, **{"outputs": 3, "task": "multiclass", **options})
    model.compile(loss=loss)
    return model


def fit(model, x=X, y=Y, **options):
    with warnings.catch_warnings():
        # Keras's notes on JAX and torch data are not what is asked for here.
        warnings.filterwarnings("ignore", "The structure of")
        return model.fit(x, y, verbose=0, **options)


def with_value(value, position=(2, 4, 1, 3)):
    x = X.copy()
    x[position] = value
    return x


class Table:
    """As much of a pandas DataFrame as is looked at."""

    columns = ("a", "b")
    shape = (10, 15)

    def to_numpy(self):
        return np.zeros(self.shape)


def objects(*shapes):
    array = np.empty(len(shapes), dtype=object)
    for index, shape in enumerate(shapes):
        array[index] = np.zeros(shape)
    return array


# --- build_model ---

BUILDING = {
    "units as text": (lambda: m.build_model((10, 3, 5), units="64"), "`units`.*'64'"),
    "units 0": (lambda: m.build_model((10, 3, 5), units=0), "`units`.*at least 1"),
    "no units": (lambda: m.build_model((10, 3, 5), units=()), "`units`"),
    "units as a float": (lambda: m.build_model((10, 3, 5), units=64.0), "`units`.*64.0"),
    "positional units": (lambda: m.build_model((10, 3, 5), 64), "second argument.*units=64"),
    "sizes apart": (lambda: m.build_model(10, 3, 5), r"one tuple.*build_model\(\(10, 3, 5\)"),
    "one size": (lambda: m.build_model(10), "must be a tuple"),
    "sizes apart, two": (lambda: m.build_model(10, 3), r"one tuple.*build_model\(\(10, 3\)"),
    "the data": (lambda: m.build_model(X), r"ndarray of shape.*build_model\(x.shape\[1:\]"),
    "a shape as text": (lambda: m.build_model("10,3,5"), "must be a tuple"),
    "2D data": (lambda: m.build_model((10, 15)), "pre_reshape"),
    "unknown channels": (lambda: m.build_model((10, None, 5)), "only batch and time"),
    "0 features": (lambda: m.build_model((10, 3, 0)), "at least 1"),
    "a misspelled solution": (
        lambda: m.build_model((10, 3, 5), "channelwize"),
        "Did you mean 'channelwise'",
    ),
    "another misspelled one": (
        lambda: m.build_model((10, 3, 5), "convlstm"),
        "Did you mean 'conv_lstm'",
    ),
    "an unknown solution": (lambda: m.build_model((10, 3, 5), "transformer"), "must be one of"),
    "a task of its own": (
        lambda: m.build_model((10, 3, 5), task="classification"),
        "'binary', 'multiclass'",
    ),
    "a misspelled task": (
        lambda: m.build_model((10, 3, 5), task="multi-class", outputs=3),
        "Did you mean 'multiclass'",
    ),
    "one class": (lambda: m.build_model((10, 3, 5), task="multiclass"), 'task="binary"'),
    "outputs as a list": (lambda: m.build_model((10, 3, 5), outputs=[1]), "`outputs`"),
    "masking NaN": (lambda: m.build_model((10, 3, 5), masking=np.nan), "nothing equals NaN"),
    "stateful alone": (lambda: m.build_model((10, 3, 5), stateful=True), "needs `batch_size`"),
    "batch_size 0": (lambda: m.build_model((10, 3, 5), batch_size=0), "`batch_size`"),
    "normalization by a mean": (
        lambda: m.build_model((10, 3, 5), normalization=0.5),
        r"\(mean, variance\)",
    ),
    "statistics of another size": (
        lambda: m.build_model((10, 3, 5), normalization=(np.zeros(4), np.ones(4))),
        r"sizes \(3, 5\)",
    ),
    "too many axes": (lambda: m.build_model((10, 2, 2, 2, 2, 5), "conv"), "one to three axes"),
}

# --- fit, predict ---

DATA = {
    "the batch axis counted": (
        lambda: fit(_compiled(m.build_model(X.shape, units=2))),
        r"batch axis counted.*x.shape\[1:\]",
    ),
    "one series": (lambda: regression().predict(X[0], verbose=0), r"batch axis.*x\[None\]"),
    "flattened": (
        lambda: regression().predict(X.reshape(6, 10, 15), verbose=0),
        r"unflatten_features\(x, \(3, 5\)\)",
    ),
    "not flattened": (
        lambda: regression("pre_reshape").predict(X, verbose=0),
        r"`multibackend_lstm.flatten_features\(x\)`",
    ),
    "channels first": (
        lambda: fit(regression(), np.transpose(X, (0, 2, 3, 1))),
        r"channels first.*numpy.transpose\(x, \(0, 3, 1, 2\)\)",
    ),
    "channels first, evaluate": (
        lambda: regression().evaluate(np.transpose(X, (0, 2, 1, 3)), Y, verbose=0),
        r"numpy.transpose\(x, \(0, 2, 1, 3\)\)",
    ),
    "too few channels": (lambda: fit(regression(), X[:, :, :2]), r"channels 2 \(must be 3\)"),
    "too few features": (lambda: fit(regression(), X[..., :4]), r"features 4 \(must be 5\)"),
    "another time": (lambda: fit(regression(), X[:, :7]), r"time 7 \(must be 10\)"),
    "too many axes": (lambda: fit(regression(), X[..., None]), "5 axes in place of 4"),
    "objects": (
        lambda: fit(regression(), objects((4, 3, 5), (7, 3, 5))),
        r"objects.*pad_sequences\(list\(x\)\)",
    ),
    "a list of unequal arrays": (
        lambda: fit(regression(), [X[0], X[1, :4]]),
        "unequal shapes.*pad_sequences",
    ),
    "a table": (lambda: fit(regression(), Table()), r"to_numpy\(\).*\(batch, time, channels"),
    "text": (lambda: fit(regression(), X.astype(str)), "must hold numbers"),
    "dates": (lambda: fit(regression(), X.astype("datetime64[s]")), "must hold numbers"),
    "labels as text": (
        lambda: fit(classifier(), X, np.array(["run", "walk"] * 3)),
        r"must hold numbers.*numpy.unique\(y, return_inverse=True\)",
    ),
    "NaN": (
        lambda: fit(regression(), with_value(np.nan)),
        "nan at sample 2, step 4, channel 1, feature 3.*masking=-1e9",
    ),
    "an infinity": (lambda: fit(regression(), with_value(np.inf)), "inf at sample 2, step 4"),
    "NaN beside a marker": (
        lambda: fit(regression(masking=-9.0), _marked(with_value(np.nan))),
        "nan at sample 2",
    ),
    "NaN in a data set": (
        lambda: fit(regression(), _DataSet(with_value(np.nan), Y), None),
        "nan at sample 2",
    ),
    "a NaN label": (lambda: fit(regression(), X, Y * np.nan), "`y` holds NaN, 6 times"),
    "labels from 1": (
        lambda: fit(classifier(), X, CLASSES + 1),
        "from 1: pass `y - 1`",
    ),
    "labels beyond": (
        lambda: fit(classifier(), X, CLASSES + 5),
        r"from 0 to 2.*from 5 to 7.*numpy.unique",
    ),
    "labels -1 and 1": (
        lambda: fit(
            classifier("binary_crossentropy", outputs=1, task="binary"), X, CLASSES[:, None] - 1
        ),
        r"\[0, 1\] for binary_crossentropy.*Number the two classes",
    ),
    "class numbers for one-hot": (
        lambda: fit(classifier("categorical_crossentropy"), X, np.eye(3)[CLASSES] * 2),
        "use sparse_categorical_crossentropy",
    ),
    "the task forgotten": (
        lambda: fit(classifier(outputs=4, task="regression"), X, CLASSES),
        'outputs are linear.*task="multiclass"',
    ),
    "the binary task forgotten": (
        lambda: fit(classifier("binary_crossentropy", outputs=1, task="regression"), X, Y / 5),
        'task="binary"',
    ),
    "the task forgotten, a loss object": (
        lambda: fit(
            classifier(keras.losses.CategoricalCrossentropy(), task="regression"),
            X,
            np.eye(3)[CLASSES],
        ),
        "outputs are linear",
    ),
    "logits of probabilities": (
        lambda: fit(
            classifier(keras.losses.SparseCategoricalCrossentropy(from_logits=True)), X, CLASSES
        ),
        "Leave from_logits out",
    ),
    "classes of one output": (
        lambda: fit(classifier(outputs=1, task="binary"), X, Y * 0),
        "one output is always the same",
    ),
    "not adapted": (lambda: fit(regression(normalization=True)), r"Call `model.adapt\(x\)`"),
    "nothing to adapt": (lambda: regression().adapt(X), "normalization=True"),
    "lengths in a row too many": (
        lambda: fit(regression(lengths=True), (X, np.full((6, 1), 10))),
        "one integer a sample",
    ),
    "lengths as floats": (
        lambda: fit(regression(lengths=True), (X, np.full(6, 10.0))),
        "one integer a sample",
    ),
    "lengths of the whole series": (
        lambda: fit(regression(lengths=True), (X, np.full(6, 12))),
        r"\[0, 10\]",
    ),
    "padding nothing": (lambda: m.pad_sequences([]), "is empty"),
    "padding other channels": (
        lambda: m.pad_sequences([X[0], X[0, :, :2]]),
        "share all axes but time",
    ),
    "padding text": (lambda: m.pad_sequences([["a"], ["b", "c"]]), "must hold numbers"),
    "padding to less": (lambda: m.pad_sequences([X[0]], length=4), "at least.*10"),
}

WARNED = {
    "a marker that never occurs": (
        lambda: fit(regression(masking=-999.0)),
        r"no step of `x` equals masking=-999.0.*from -",
    ),
    "a marker that occurs everywhere": (
        lambda: fit(regression(masking=0.0), np.where(np.arange(10)[:, None, None] < 2, X, 0)),
        "80% of the steps equal masking=0.0",
    ),
}

# --- layers ---

OTHER_CHANNELS, OTHER_FEATURES = np.zeros((6, 10, 4, 5)), np.zeros((6, 10, 3, 4))


def built(layer, x=X):
    layer(x)
    return layer


LAYERS = {
    "LSTM, channels": (lambda: built(m.LSTM(2))(OTHER_CHANNELS), "channels=4 in place of 3"),
    "LSTM, features": (lambda: built(m.LSTM(2))(OTHER_FEATURES), "features=4 in place of 5"),
    "LSTM, merged": (
        lambda: built(m.LSTM(2), X.reshape(6, 10, 15))(OTHER_FEATURES.reshape(6, 10, 12)),
        "features=12 in place of 15",
    ),
    "GRU, features": (lambda: built(m.GRU(2))(OTHER_FEATURES), "features=4 in place of 5"),
    "Bidirectional, features": (
        lambda: built(m.Bidirectional(m.LSTM(2)))(OTHER_FEATURES),
        "features=4 in place of 5",
    ),
    "Channelwise, features": (
        lambda: built(m.Channelwise(m.LSTM(2)))(OTHER_FEATURES),
        "channels=3, features=4.*features=4 in place of 5",
    ),
    "ConvLSTM1D, features": (
        lambda: built(m.ConvLSTM1D(2, 2))(OTHER_FEATURES),
        "features=4 in place of 5",
    ),
    "TimeDistributedConv, features": (
        lambda: built(m.TimeDistributedConv(2, 2))(OTHER_FEATURES),
        "features=4 in place of 5",
    ),
    "Normalization, channels": (
        lambda: built(m.Normalization((-2, -1)))(OTHER_CHANNELS),
        "channels=4 in place of 3",
    ),
    "TimeDistributed, features": (
        lambda: built(m.TimeDistributed(keras.layers.Dense(2)))(OTHER_FEATURES),
        "axis -1 .*value 5",  # Keras's own
    ),
    "unequal arrays, LSTM": (
        lambda: m.LSTM(2)([X[0], X[0, :4]]),
        "a list of 2.*pad_sequences",
    ),
    "unequal arrays, TimeDistributed": (
        lambda: m.TimeDistributed(keras.layers.Dense(2))([X[0], X[0, :4]]),
        "share batch and time.*pad_sequences",
    ),
    "unequal arrays, Channelwise": (
        lambda: m.Channelwise(m.LSTM(2))([X[0], X[0, :4]]),
        "a list of 2.*pad_sequences",
    ),
    "2D data, LSTM": (lambda: m.LSTM(2)(X[0, :, 0]), r"x\[None\]"),
    "3D data, Channelwise": (lambda: m.Channelwise(m.LSTM(2))(X[0]), "at least 4 axes"),
    "3D data, TimeDistributedConv": (lambda: m.TimeDistributedConv(2, 2)(X[0]), "4 to 6 axes"),
    "lengths too long": (
        lambda: m.LSTM(2)(X, lengths=np.full(6, 11)),
        r"each in \[0, time\], here \[0, 10\]",
    ),
    "a mask of the wrong samples": (
        lambda: m.LSTM(2)(X, mask=keras.ops.ones((5, 10), "bool")),
        "the mask must have",
    ),
}


def _compiled(model):
    model.compile(loss="mse")
    return model


def _marked(x):
    x[0, 8:] = -9.0
    return x


class _DataSet(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.x, self.y


@pytest.mark.parametrize("mistake", {**BUILDING, **LAYERS})
def test_building_and_calling(mistake):
    make, message = {**BUILDING, **LAYERS}[mistake]
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        make()


@needs_training
@pytest.mark.parametrize("mistake", DATA)
def test_data(mistake):
    make, message = DATA[mistake]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()


@needs_training
@pytest.mark.parametrize("mistake", WARNED)
def test_warnings(mistake):
    make, message = WARNED[mistake]
    with pytest.warns(UserWarning, match=f"(?s){message}"):
        make()


@needs_training
def test_the_checks_can_be_left_out_and_take_what_is_right():
    history = fit(regression(), with_value(np.nan), check_data=False)
    assert np.isnan(history.history["loss"]).all()
    marked = _marked(X.copy())
    marked[1, 3:] = -9.0
    for model, x, y in (
        (regression(masking=-9.0), marked, Y),
        (classifier(), X, CLASSES),
        (classifier("categorical_crossentropy"), X, np.eye(3)[CLASSES]),
        (classifier("binary_crossentropy", outputs=1, task="binary"), X, CLASSES[:, None] % 2),
        (
            classifier(
                keras.losses.SparseCategoricalCrossentropy(from_logits=True), task="regression"
            ),
            X,
            CLASSES,
        ),
        (regression(), keras.ops.convert_to_tensor(X), keras.ops.convert_to_tensor(Y)),
        (regression(), _DataSet(X, Y), None),
        (regression(), ((X, Y) for _ in range(2)), None),
        (regression(), {"inputs": X}, Y),
        (regression(), [X], Y),
    ):
        options = {} if y is not None else {"steps_per_epoch": 1, "shuffle": False}
        assert np.isfinite(fit(model, x, y, **options).history["loss"]).all()

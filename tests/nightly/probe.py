"""Whether Keras itself works here: a model of its own layers is trained, saved and loaded.

`nox -s nightly` runs it before the tests, to tell a nightly that is broken from a defect of this
package, which it does not import.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers


def main():
    """Raise an error if some of what the tests rely on does not work."""
    inputs = keras.Input((None, 3, 4))
    x = layers.TimeDistributed(layers.Conv1D(2, 2, activation="relu"))(inputs)
    x = layers.TimeDistributed(layers.Flatten())(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    x = layers.GRU(3)(layers.Dropout(0.1)(x))
    y = layers.ConvLSTM1D(2, 2)(inputs)
    x = layers.Concatenate()([x, layers.Flatten()(y)])
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))

    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 5, 3, 4)).astype("float32")
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(data, rng.integers(2, size=8), epochs=2, batch_size=4, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))
    predictions = model.predict(data, verbose=0)
    assert predictions.shape == (8, 2)
    np.testing.assert_allclose(predictions.sum(axis=1), 1, atol=1e-5)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        loaded = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_allclose(loaded.predict(data, verbose=0), predictions, atol=1e-6)
    print(f"Keras {keras.__version__} trains, saves and loads on {keras.backend.backend()}")


if __name__ == "__main__":
    main()

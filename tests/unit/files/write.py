"""Writes the files of this folder: `KERAS_BACKEND=torch python write.py`, once on each backend.

They are what Keras 3.14.0, the oldest supported, wrote on that backend without
`multibackend_lstm.compile_configs`: with torch's own optimizer class, and with what
`jit_compile="auto"` came to. `BACKEND.npz` has the model's predictions, the state of its optimizer,
and the losses of the 20 steps that followed.
"""

import pathlib

import keras
import numpy as np

from multibackend_lstm import build_model

BATCH = 4


def data():
    """Inputs and targets: two steps an epoch."""
    rng = np.random.default_rng(0)
    shapes = (2 * BATCH, 3, 2, 2), (2 * BATCH, 1)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def train(model, epochs):
    """The loss after each step."""
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    x, y = data()
    options = {"shuffle": False, "verbose": 0, "callbacks": [record]}
    model.fit(x, y, batch_size=BATCH, epochs=epochs, **options)
    return losses


def main():
    """Train, save, and train on."""
    keras.Model.get_compile_config = keras.Model.get_compile_config.__wrapped__
    backend = keras.backend.backend()
    keras.utils.set_random_seed(0)
    # With the time unknown, XLA cannot compile the model on TensorFlow.
    model = build_model((None, 2, 2), units=2)
    model.compile(keras.optimizers.Adam(1e-2), loss="mse")
    train(model, 2)
    folder = pathlib.Path(__file__).parent
    model.save(folder / f"{backend}.keras")
    arrays = {f"optimizer_{i}": v.numpy() for i, v in enumerate(model.optimizer.variables)}
    arrays["predictions"] = model.predict(data()[0], verbose=0)
    np.savez_compressed(folder / f"{backend}.npz", losses=train(model, 10), **arrays)


if __name__ == "__main__":
    main()

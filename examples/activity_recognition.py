"""Recognise what somebody does from the sensors of a smart watch.

    KERAS_BACKEND=torch python examples/activity_recognition.py

Shows the usual steps: real 4D data, a model in one call, gaps in the recording marked as missing,
and a file that loads on any backend.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np

from multibackend_lstm import build_model, load_basic_motions

MISSING = -1e9
EPOCHS = 20

keras.utils.set_random_seed(0)
data = load_basic_motions()
mean, deviation = data.x_train.mean(axis=(0, 1)), data.x_train.std(axis=(0, 1))
x_train = (data.x_train - mean) / deviation  # (batch=40, time=100, sensors=2, axes=3)
x_test = (data.x_test - mean) / deviation

model = build_model(
    (None, *x_train.shape[2:]),  # recordings of any length
    solution="conv",
    outputs=len(data.class_names),
    task="multiclass",
    dropout=0.5,
    masking=MISSING,
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, data.y_train, epochs=EPOCHS, batch_size=8, verbose=2)

# The watch lost two seconds of every test recording: those steps are skipped.
with_gap = x_test.copy()
with_gap[:, 40:60] = MISSING
for name, x in (
    ("whole recordings", x_test),
    ("with a gap", with_gap),
    ("first half", x_test[:, :50]),
):
    accuracy = (model.predict(x, verbose=0).argmax(axis=1) == data.y_test).mean()
    print(f"test accuracy, {name}: {accuracy:.2f}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "activity.keras")
    model.save(path)
    loaded = keras.saving.load_model(path)  # safe mode, on whichever backend
    np.testing.assert_array_equal(
        loaded.predict(x_test, verbose=0), model.predict(x_test, verbose=0)
    )

"""Values against NumPy, on the backend that `KERAS_BACKEND` names."""

import keras
import numpy as np
from my_keras_library import MaskedMean

X = np.random.default_rng(0).normal(size=(4, 7, 5)).astype("float32")


def test_means_valid_steps_alone():
    x, mask = X.copy(), np.ones((4, 7), bool)
    mask[0, 3:] = False
    x[0, 3:] = np.nan
    y = keras.ops.convert_to_numpy(MaskedMean()(x, mask=mask))
    np.testing.assert_allclose(y[0], X[0, :3].mean(0), atol=1e-6)
    np.testing.assert_allclose(y[1:], X[1:].mean(1), atol=1e-6)


def test_is_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((7, 5)), MaskedMean()])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))

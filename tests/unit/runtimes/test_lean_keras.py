"""Commands on torch and JAX leave TensorFlow out."""

import subprocess
import sys

import keras
import pytest

from unit.tools import BACKEND

SAVING = """
import sys
from multibackend_lstm.cli.shared import start_keras
start_keras({backend!r})
import keras
model = keras.saving.load_model({path!r}, compile=False)
model.save({path!r} + ".keras")
print("tensorflow" in sys.modules, "jax" in sys.modules and {backend!r} != "jax")
from keras.src.saving import serialization_lib
import tensorflow
print(serialization_lib.tf.available, keras.saving.serialize_keras_object(tensorflow.float32))
"""


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_is_loaded_and_saved_without_tensorflow(tmp_path, suffix):
    pytest.importorskip("tensorflow")
    if BACKEND == "tensorflow":
        pytest.skip("about the other backends")
    path = str(tmp_path / f"model{suffix}")
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(2)])
    model.compile("adam", "mse")
    model.save(path)
    code = SAVING.format(backend=BACKEND, path=path)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n") == ["False False", "True float32", ""]

"""Print the active backend's devices and precision settings as JSON, for `doctor`."""

import json

import keras

from multibackend_lstm import backends
from multibackend_lstm.runtimes import backend_runtime

if __name__ == "__main__":
    runtime = backend_runtime.active()
    precision = {
        "floatx": keras.config.floatx(),
        "dtype policy": keras.config.dtype_policy().name,
        "float64 policy": backends.active().float64_refusal() or "kept",
        **runtime.precision(),
    }
    print(json.dumps({"devices": runtime.devices(), "precision": precision}))

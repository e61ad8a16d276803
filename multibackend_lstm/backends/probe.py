"""Print the active backend's devices and precision settings as JSON, for `doctor`."""

import json

import keras

from multibackend_lstm import backends

if __name__ == "__main__":
    backend = backends.active()
    precision = {
        "floatx": keras.config.floatx(),
        "dtype policy": keras.config.dtype_policy().name,
        "float64 policy": backend.float64_refusal() or "kept",
        **backend.precision(),
    }
    print(json.dumps({"devices": backend.devices(), "precision": precision}))

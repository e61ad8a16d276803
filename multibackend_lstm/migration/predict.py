"""Predictions of an old model file, in a process of its own: `python predict.py ...`.

It runs by itself, in an environment that holds tf-keras or Keras and need not hold this package.
`model in.npz out.npz version [trust]`: reads the inputs `0_x0`, `0_x1`, `1_x0`, ... (batch, input),
and writes the predictions `0_y0`, ... `version` is that of the Keras that wrote the file, 2 or 3.
Without `trust` the file is loaded in safe mode.
"""

import builtins
import importlib
import sys
from typing import Any


def modules(version: str) -> tuple[Any, dict[str, Any]]:
    """Return tf-keras or Keras, and the modules that stored functions use by their usual names."""
    names: dict[str, Any] = {}
    try:
        import tensorflow as tf

        names |= {"tf": tf, "tensorflow": tf}
    except ImportError:
        pass
    try:
        keras = importlib.import_module("tf_keras" if version == "2" else "keras")
    except ImportError:
        keras = importlib.import_module("keras")
    import numpy as np

    names |= {"keras": keras, "layers": keras.layers, "np": np, "K": keras.backend}
    if hasattr(keras, "ops"):
        names["ops"] = keras.ops
    return keras, names


def main(model_path: str, inputs_path: str, outputs_path: str, version: str, trust: bool) -> None:
    """Load the model, and write its predictions for every batch."""
    keras, names = modules(version)
    import numpy as np

    if trust:
        # Of a stored function the globals are not stored: it finds none but these.
        vars(builtins).update({name: module for name, module in names.items() if module})
    model = keras.models.load_model(model_path, compile=False, safe_mode=not trust)
    with np.load(inputs_path, allow_pickle=False) as inputs:
        batches: dict[str, list[Any]] = {}
        for key in inputs.files:
            batches.setdefault(key.partition("_")[0], []).append(inputs[key])
    outputs: dict[str, Any] = {}
    for batch, arrays in batches.items():
        made = model(arrays if len(arrays) > 1 else arrays[0], training=False)
        if isinstance(made, dict):
            made = [made[key] for key in sorted(made)]
        for position, y in enumerate(made if isinstance(made, (list, tuple)) else [made]):
            y = y.detach().cpu() if hasattr(y, "detach") else y
            outputs[f"{batch}_y{position}"] = np.asarray(y, dtype="float32")
    np.savez(outputs_path, **outputs)


if __name__ == "__main__":
    model, inputs, outputs, version, *rest = sys.argv[1:]
    main(model, inputs, outputs, version, trust=rest == ["trust"])

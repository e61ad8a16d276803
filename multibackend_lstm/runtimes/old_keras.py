"""An old model file, run by the library that wrote it: tf-keras, or another Keras."""

import builtins
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from multibackend_lstm.runtimes.loading import load_with
from multibackend_lstm.runtimes.runtime import InferenceRuntime


class TFKeras(InferenceRuntime):
    """A file of Keras 2, run by tf-keras, or by the `keras` of an environment that has no other.

    Safe mode is left only where the user trusts the file; stored functions never run before.
    """

    modules: tuple[str, ...] = ("tf_keras", "keras")

    def start(self) -> dict[str, Any]:
        """Load the model."""
        known: dict[str, Any] = {}
        if find_spec("tensorflow") is not None:
            known["tf"] = known["tensorflow"] = import_module("tensorflow")
        keras = self._keras()
        if self.trust:
            # Of a stored function the globals are not stored: it finds none but these.
            known |= {"keras": keras, "layers": keras.layers, "np": np, "K": keras.backend}
            if hasattr(keras, "ops"):
                known["ops"] = keras.ops
            vars(builtins).update(known)
        self._model = load_with(keras, self.file, trust=self.trust)
        return {"device": "CPU", "versions": {keras.__name__: keras.__version__}}

    def _keras(self) -> Any:
        for name in self.modules:
            try:
                return import_module(name)
            except ImportError:
                continue
        raise ImportError(f"none of {', '.join(self.modules)} is installed")

    def infer(self, inputs: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """As in `InferenceRuntime`."""
        outputs = self._model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
        if isinstance(outputs, dict):
            outputs = [outputs[name] for name in sorted(outputs)]
        flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        tensors = [y.detach().cpu() if hasattr(y, "detach") else y for y in flat]
        return [np.asarray(y, dtype="float32") for y in tensors]


class KerasFile(TFKeras):
    """A file of Keras 3 with what Keras itself runs of it, stored functions among them."""

    modules = ("keras",)

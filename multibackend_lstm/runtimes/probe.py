"""Devices and precision of an installed backend, for `doctor`."""

from collections.abc import Callable, Mapping
from typing import Any

from multibackend_lstm.runtimes.runtime import Runtime
from multibackend_lstm.runtimes.targets import ANY_DEVICE, Target
from multibackend_lstm.runtimes.workers import Worker, WorkerError


def probe(backend: str) -> dict[str, Any]:
    """Devices and precision settings of a backend, or the error it starts with.

    Returns:
        `{"devices": [...], "precision": {...}}` or `{"error": message}`.
    """
    target = Target(backend, ANY_DEVICE)
    try:
        worker = Worker(target, None, "default", timeout=300, runtime=f"{__name__}:Probe")
    except WorkerError as error:
        return {"error": f"{backend} does not start: {error}"}
    worker.close()
    return {key: worker.ready[key] for key in ("devices", "precision")}


class Probe(Runtime):
    """The backend that `KERAS_BACKEND` names, as it starts on its own."""

    parts = ()

    def start(self) -> dict[str, Any]:
        """Import Keras."""
        import keras

        from multibackend_lstm import backends
        from multibackend_lstm.runtimes import backend_runtime

        runtime = backend_runtime.active()
        precision = {
            "floatx": keras.config.floatx(),
            "dtype policy": keras.config.dtype_policy().name,
            "float64 policy": backends.active().float64_refusal() or "kept",
            **runtime.precision(),
        }
        return {"devices": runtime.devices(), "precision": precision}

    @property
    def requests(self) -> Mapping[str, Callable[..., None]]:
        """None."""
        return {}

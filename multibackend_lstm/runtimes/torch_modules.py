"""A `torch.nn.Module` that a function builds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from multibackend_lstm.runtimes.imports import imported
from multibackend_lstm.runtimes.runtime import InferenceRuntime


class TorchModule(InferenceRuntime):
    """The module that `package.module:function` returns, which takes and returns Keras's axes."""

    def start(self) -> dict[str, Any]:
        """Build the module, in evaluation mode."""
        import torch

        self._module = imported(self.file)()
        if not isinstance(self._module, torch.nn.Module):
            raise TypeError(
                f"{self.file} must return a torch.nn.Module. Received "
                f"{type(self._module).__name__}."
            )
        self._module.eval()
        if self.precision == "strict":
            torch.set_float32_matmul_precision("highest")
        return {"device": "CPU", "versions": {"torch": torch.__version__}}

    def infer(self, inputs: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """As in `InferenceRuntime`."""
        import torch

        with torch.no_grad():
            outputs = self._module(*(torch.from_numpy(x) for x in inputs))
        if isinstance(outputs, dict):
            outputs = [outputs[name] for name in sorted(outputs)]
        flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return [x.numpy() for x in flat]

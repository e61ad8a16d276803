"""PyTorch as a runtime."""

from collections.abc import Callable
from typing import Any

import keras
import torch
from keras import ops

from multibackend_lstm.backends import Refused
from multibackend_lstm.runtimes.backend_runtime import BackendRuntime, Loss, TrainingStep


class TorchRuntime(BackendRuntime):
    """The devices and settings of torch, and training steps with its autograd."""

    def devices(self) -> list[str]:
        """Names of the devices the backend sees."""
        names = ["CPU"]
        names += [
            f"cuda:{index} {torch.cuda.get_device_name(index)}"
            for index in range(torch.cuda.device_count())
        ]
        if torch.backends.mps.is_available():
            names.append("mps")
        return names

    def precision(self) -> dict[str, str]:
        """Settings that decide how exactly float32 is computed."""
        return {
            "float32 matmul": torch.get_float32_matmul_precision(),
            "TF32 in CUDA matmul": str(torch.backends.cuda.matmul.allow_tf32),
            "TF32 in cuDNN": str(torch.backends.cudnn.allow_tf32),
        }

    def use_device(self, kind: str) -> str:
        """See `BackendRuntime`; Keras itself chooses a GPU wherever torch sees one."""
        device = torch.zeros(0).to(ops.zeros(()).device).device
        if (device.type == "cpu") != (kind == "cpu"):
            raise Refused(f"torch sees no {kind}: Keras computes on {device.type}")
        return "CPU" if kind == "cpu" else f"{device} {self.devices()[1]}"

    def strict_precision(self) -> dict[str, str]:
        """See `BackendRuntime`."""
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        matmul = torch.backends.cuda.matmul
        matmul.allow_bf16_reduced_precision_reduction = False
        matmul.allow_fp16_reduced_precision_reduction = False
        return {
            "float32_matmul_precision": "highest",
            "cudnn.allow_tf32": "False",
            "cuda.matmul.allow_bf16_reduced_precision_reduction": "False",
            "cuda.matmul.allow_fp16_reduced_precision_reduction": "False",
        }

    def inference(self, model: keras.Model, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """See `BackendRuntime`."""
        return torch.no_grad()(call)

    def training_step(self, model: keras.Model, optimizer: Any, loss: Loss) -> TrainingStep:
        """See `BackendRuntime`."""
        variables = model.trainable_variables

        def run(inputs: Any, labels: Any) -> Any:
            inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
            floating = [x for x in inputs if x.requires_grad]
            value = loss(inputs, labels)
            sources = [*floating, *(v.value for v in variables)]
            if value.requires_grad:
                found = torch.autograd.grad(
                    value, sources, allow_unused=True, materialize_grads=True
                )
            else:  # the loss depends on none of them, as behind an argmax
                found = tuple(torch.zeros_like(x) for x in sources)
            gradients = found[len(floating) :]
            if variables:
                with torch.no_grad():
                    optimizer.apply(gradients, variables)
            return value.detach(), list(found[: len(floating)]), list(gradients)

        return run

"""PyTorch as a runtime."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch
from keras import ops, tree

from multibackend_lstm.backends import Refused
from multibackend_lstm.runtimes.backend_runtime import (
    BackendRuntime,
    LayerFunction,
    Loss,
    LossFunction,
    PullBack,
    TrainingStep,
)


class TorchRuntime(BackendRuntime):
    """The devices and settings of torch, and training steps with its autograd."""

    trains = True

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

    def plain_inference(self, model: keras.Model, example: Any) -> Callable[..., list[Any]]:
        """See `BackendRuntime`."""
        return torch.no_grad()(super().plain_inference(model, example))

    def compiled_inference(self, model: keras.Model, example: Any) -> Callable[..., list[Any]]:
        """See `BackendRuntime`: the operations alone, by torch.export, which needs no compiler."""
        plain = super().plain_inference(model, example)

        class Flat(torch.nn.Module):
            """The model on tensors."""

            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, *leaves: Any) -> Any:
                return plain(*leaves)

        leaves = tuple(torch.empty_like(x) for x in tree.flatten(example))
        with torch.no_grad():
            exported = torch.export.export(Flat().eval(), leaves).module()

        @torch.no_grad()
        def run(*leaves: Any) -> list[Any]:
            return list(exported(*map(ops.convert_to_tensor, leaves)))

        return run

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

    def alone(self, layer: LayerFunction) -> Callable[[Sequence[Any]], list[Any]]:
        """See `BackendRuntime`."""
        return torch.no_grad()(layer.call)

    def pull_back(self, layer: LayerFunction) -> PullBack:
        """See `BackendRuntime`."""

        def run(tensors: Any, upstream: Any) -> Any:
            tensors = _leaves(tensors)
            outputs = layer.call(tensors)
            sources = [x for x in tensors if x.requires_grad]
            count = len(sources)
            sources += [v.value for v in layer.trainable]
            pairs = zip((x for x in outputs if x.is_floating_point()), upstream, strict=True)
            found = _gradients([(x, g) for x, g in pairs if x.requires_grad], sources)
            changed = [v.value.detach().clone() for v in layer.others]
            return [x.detach() for x in outputs], found[:count], found[count:], changed

        return run

    def apply_gradients(
        self, optimizer: Any, variables: Sequence[keras.Variable]
    ) -> Callable[[Sequence[Any]], None]:
        """See `BackendRuntime`."""
        return torch.no_grad()(super().apply_gradients(optimizer, variables))

    def gradients_at(self, loss: LossFunction) -> list[Any]:
        """See `BackendRuntime`."""
        value = loss.call(_leaves(loss.tensors))
        came_up = [*loss.values(), *(v.value for v in loss.trainable)]
        reached = [x for x in came_up if x.requires_grad]
        pairs = [(value, torch.ones_like(value))] if value.requires_grad else []
        found = iter(_gradients(pairs, reached))
        return [next(found) if x.requires_grad else torch.zeros_like(x) for x in came_up]


def _leaves(tensors: Sequence[Any]) -> list[Any]:
    """The tensors, those of a floating dtype as what gradients can be taken by."""
    return [x.detach().clone().requires_grad_(x.is_floating_point()) for x in tensors]


def _gradients(outputs: Sequence[tuple[Any, Any]], sources: Sequence[Any]) -> list[Any]:
    """By the sources, for outputs and the gradients by them; 0 where nothing depends on one."""
    if not outputs or not sources:
        return [torch.zeros_like(x) for x in sources]
    found = torch.autograd.grad(
        [x for x, _ in outputs],
        sources,
        [torch.as_tensor(gradient).to(x) for x, gradient in outputs],
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)

"""`Embedding` is `torch.nn.Embedding`, as it is."""

from typing import Any

from multibackend_lstm.torch_weights.axes import Features
from multibackend_lstm.torch_weights.rules.base import Call, Rule, different
from multibackend_lstm.torch_weights.weights import Moved, Weight


class Embedding(Rule):
    """`Embedding`. PyTorch's `padding_idx` is a row of weights as any other."""

    modules = ("Embedding",)
    outputs = "features"

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        return [Moved(layer.embeddings, "weight")]

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        return different({"max_norm": None}, module)

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        import torch

        module = torch.nn.Embedding(*layer.embeddings.shape)
        return module, lambda module, x: module(x.long())

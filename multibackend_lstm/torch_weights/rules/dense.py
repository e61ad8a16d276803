"""`Dense` is `torch.nn.Linear`, transposed."""

from typing import Any

from multibackend_lstm.torch_weights.axes import Features
from multibackend_lstm.torch_weights.rules.base import Call, Rule, bias_of, to_torch_order
from multibackend_lstm.torch_weights.weights import Moved, Weight


class Dense(Rule):
    """`Dense`."""

    modules = ("Linear",)
    outputs = "features"

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        kernel = Moved(layer.kernel, "weight", (1, 0), columns=inputs.axes[-1].order)
        return [kernel, *bias_of(layer)]

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        import torch

        module = torch.nn.Linear(*layer.kernel.shape, bias=layer.bias is not None)
        columns = inputs.axes[-1].order
        return module, lambda module, x: module(to_torch_order(x, columns, -1))

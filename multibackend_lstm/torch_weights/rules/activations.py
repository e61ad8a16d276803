"""`PReLU` is `torch.nn.PReLU`: alpha has the input's rank in Keras, and one axis in PyTorch."""

from typing import Any

from multibackend_lstm.torch_weights.axes import Features
from multibackend_lstm.torch_weights.rules.base import Call, Rule, to_keras_order, to_torch_order
from multibackend_lstm.torch_weights.weights import Moved, Weight


class PReLU(Rule):
    """`PReLU` with one slope, or one a feature."""

    modules = ("PReLU",)

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        sizes = [size for size in layer.alpha.shape if size != 1]
        if len(sizes) > 1:
            axes = list(range(1, len(layer.alpha.shape) + 1))
            return (
                f"its slopes have the shape {tuple(layer.alpha.shape)}, and torch.nn.PReLU has one "
                f"slope, or one a feature: set shared_axes={axes[:-1]}"
            )
        return None

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        return [self._slopes(layer, inputs)]

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        import torch

        slopes = self._slopes(layer, inputs)
        columns, axis = slopes.columns, slopes.along + 1

        def call(module: Any, x: Any) -> Any:
            y = module(to_torch_order(x.movedim(axis, 1), columns, 1))
            return to_keras_order(y, columns, 1).movedim(1, axis)

        return torch.nn.PReLU(max(layer.alpha.shape)), call

    @staticmethod
    def _slopes(layer: Any, inputs: Features) -> Moved:
        along = max(range(len(layer.alpha.shape)), key=lambda axis: layer.alpha.shape[axis])
        size = layer.alpha.shape[along]
        columns = inputs.axes[along + 1].order if size > 1 else None
        return Moved(layer.alpha, "weight", shape=(size,), columns=columns, along=along)

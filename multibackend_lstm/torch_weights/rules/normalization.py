"""Normalisations: gamma and beta are the module's weight and bias.

`BatchNormalization` is `torch.nn.BatchNorm1d/2d/3d`, `LayerNormalization` is `LayerNorm` and
`GroupNormalization` is `GroupNorm`.
"""

import math
from typing import Any

from multibackend_lstm.torch_weights.axes import Features, torch_order
from multibackend_lstm.torch_weights.rules.base import (
    Call,
    Rule,
    different,
    to_keras_order,
    to_torch_order,
)
from multibackend_lstm.torch_weights.weights import Moved, Weight

_TORCH_EPSILON = 1e-5


class Normalization(Rule):
    """What the normalisations share: an epsilon, and weights along the input's axes."""

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        columns = inputs.axes[layer.axis].order
        return [Moved(variable, name, columns=columns) for name, variable in _affine(layer)]

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        return different({"eps": layer.epsilon}, module)

    def assumption(self, layer: Any) -> str | None:
        """As in `Rule`."""
        if math.isclose(layer.epsilon, _TORCH_EPSILON, rel_tol=1e-6):
            return None
        return (
            f"epsilon={layer.epsilon:g}, where torch.nn.{self.modules[0]} has {_TORCH_EPSILON:g} "
            "by default; a state dict does not hold it"
        )


class BatchNormalization(Normalization):
    """`BatchNormalization`. The momentum is no weight: Keras's is 1 minus PyTorch's."""

    modules = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
    optional = frozenset({"num_batches_tracked"})

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        columns = inputs.axes[layer.axis].order
        return [
            *super().weights(layer, inputs),
            Moved(layer.moving_mean, "running_mean", columns=columns),
            Moved(layer.moving_variance, "running_var", columns=columns),
        ]

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        import torch

        (size,) = layer.moving_mean.shape
        module = torch.nn.BatchNorm1d(size, eps=layer.epsilon, affine=False)
        columns = inputs.axes[layer.axis].order

        def call(module: Any, x: Any) -> Any:
            x = x.movedim(layer.axis, -1)
            y = module(to_torch_order(x, columns, -1).reshape(-1, size)).reshape(x.shape)
            return to_keras_order(y, columns, -1).movedim(-1, layer.axis)

        return _with_affine(module, layer, (size,)), call


class LayerNormalization(Normalization):
    """`LayerNormalization`, over one axis or more."""

    modules = ("LayerNorm",)

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        if getattr(layer, "rms_scaling", False):
            return "rms_scaling=True divides by something else than torch.nn.LayerNorm does"
        if len(layer.axis) > 1 and any(inputs.axes[axis].order for axis in layer.axis):
            return "it normalises several axes, one of which holds merged filters"
        return None

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        order, columns = self._order(layer, inputs)
        return [Moved(variable, name, order, columns=columns) for name, variable in _affine(layer)]

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        import torch

        order, columns = self._order(layer, inputs)
        moved = [layer.axis[i] for i in order]
        sizes = tuple(int(inputs.axes[axis].size or 0) for axis in moved)
        module = torch.nn.LayerNorm(sizes, eps=layer.epsilon, elementwise_affine=False)
        last = list(range(-len(moved), 0))

        def call(module: Any, x: Any) -> Any:
            y = module(to_torch_order(x.movedim(moved, last), columns, -1))
            return to_keras_order(y, columns, -1).movedim(last, moved)

        return _with_affine(module, layer, sizes), call

    @staticmethod
    def _order(layer: Any, inputs: Features) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """PyTorch's order of the normalised axes, and of the features of a single one."""
        normalised = [inputs.axes[axis] for axis in layer.axis]
        columns = normalised[0].order if len(normalised) == 1 else None
        return tuple(torch_order(normalised)), columns


class GroupNormalization(Normalization):
    """`GroupNormalization`."""

    modules = ("GroupNorm",)

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        if inputs.axes[layer.axis].order is not None:
            return "its groups divide features that a flatten before it has put in another order"
        return None

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        return different({"eps": layer.epsilon, "num_groups": layer.groups}, module)

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        import torch

        channels = int(inputs.axes[layer.axis].size or 0)
        module = torch.nn.GroupNorm(layer.groups, channels, eps=layer.epsilon, affine=False)
        _with_affine(module, layer, (channels,))
        return module, lambda module, x: module(x.movedim(layer.axis, 1)).movedim(1, layer.axis)


def _affine(layer: Any) -> list[tuple[str, Any]]:
    """Variables by the parameter's name; a layer may have one without the other."""
    named = (("weight", layer.gamma), ("bias", layer.beta))
    return [(name, variable) for name, variable in named if variable is not None]


def _with_affine(module: Any, layer: Any, sizes: tuple[int, ...]) -> Any:
    import torch

    for name, _ in _affine(layer):
        setattr(module, name, torch.nn.Parameter(torch.ones(sizes)))
    return module

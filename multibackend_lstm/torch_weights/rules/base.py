"""What a rule is: how one kind of Keras layer corresponds to a `torch.nn` module."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from multibackend_lstm.torch_weights.axes import Features
from multibackend_lstm.torch_weights.weights import Moved, Weight

#: Calls a module on a tensor with Keras's axes, and returns such a tensor.
Call = Callable[[Any, Any], Any]


class Rule(ABC):
    """How one kind of Keras layer corresponds to a `torch.nn` module.

    Attributes:
        modules: names in `torch.nn` of the modules that it may be.
        outputs: what becomes of the axes: `"filters"` (a convolution's), `"features"` (a new last
            axis), `"sequence"` (all axes new) or `"same"`.
        optional: parameters and buffers of the module that Keras has no counterpart of.
        not_in_float64: why the layer does not compute in float64 where the rest of Keras does; None
            where it does.
        compared_with: settings of the copy of the layer that `check_port` compares with the module
            of `module_and_call`. A setting that the layer does not have is left out.
    """

    modules: tuple[str, ...] = ()
    outputs = "same"
    optional: frozenset[str] = frozenset()
    not_in_float64: str | None = None
    compared_with: ClassVar[Mapping[str, Any]] = {"activation": "linear"}

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """Why the layer cannot be ported, with the remedy; None if it can be."""
        return None

    @abstractmethod
    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """Its weights."""

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """Settings, other than weights, by which the module computes something else."""
        return []

    def assumption(self, layer: Any) -> str | None:
        """What weights alone do not tell of the module, and is not PyTorch's default."""
        return None

    def call_keras(self, layer: Any, x: Any, original: Any) -> Any:
        """What the layer gives for the tensor that it is compared on.

        Args:
            layer: a copy of the layer that is ported, which is not built.
            x: the tensor.
            original: the layer.
        """
        return layer(x)

    @abstractmethod
    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """The torch module that computes the same, and a function that calls it or a copy.

        Its weights are of no account. It computes what the layer does with the settings
        `compared_with`, so that activations after a convolution or product are left out.
        """

    def check_shape(self, layer: Any, inputs: Features, batch: int, steps: int) -> tuple[int, ...]:
        """An input shape for the layer with `compared_with`, as small as a check allows."""
        return (batch, *(size or steps for size in inputs.shape[1:]))


def bias_of(layer: Any) -> list[Weight]:
    """The bias of a layer, which is the same in PyTorch, if it has one."""
    return [] if layer.bias is None else [Moved(layer.bias, "bias")]


def different(expected: Mapping[str, Any], module: Any) -> list[str]:
    """Attributes of a module that are not as expected."""
    found = []
    for name, value in expected.items():
        theirs = getattr(module, name)
        same = theirs == value
        if isinstance(value, float) and isinstance(theirs, float):
            same = math.isclose(theirs, value, rel_tol=1e-6)
        if not same:
            found.append(f"{name}: torch {theirs}, Keras {value}")
    return found


def to_torch_order(x: Any, columns: tuple[int, ...] | None, axis: int) -> Any:
    """A tensor's features in PyTorch's order, from Keras's; `columns` as in `Moved`."""
    return x if columns is None else _select(x, np.argsort(columns), axis)


def to_keras_order(x: Any, columns: tuple[int, ...] | None, axis: int) -> Any:
    """A tensor's features in Keras's order, from PyTorch's; `columns` as in `Moved`."""
    return x if columns is None else _select(x, columns, axis)


def _select(x: Any, indices: Any, axis: int) -> Any:
    import torch

    return x.index_select(axis, torch.as_tensor(np.array(indices)))

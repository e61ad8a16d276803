"""One weight in Keras's form and in PyTorch's, converted both ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Tensors = Mapping[str, np.ndarray]


class Weight(Protocol):
    """A variable of a Keras layer, and the parameters of a torch module that hold the same.

    Attributes:
        variable: the Keras variable.
        shapes: by the parameter's name within its module.
    """

    @property
    def variable(self) -> Any: ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def to_torch(self, value: np.ndarray, gradient: bool = False) -> dict[str, np.ndarray]:
        """The parameters from the variable's value (or their gradients from its gradient)."""

    def to_keras(self, tensors: Tensors, gradient: bool = False) -> np.ndarray:
        """The variable's value from the parameters (or its gradient from their gradients)."""


@dataclass(frozen=True)
class Moved:
    """A variable whose elements stand elsewhere in PyTorch.

    Attributes:
        variable: the Keras variable.
        name: of the parameter.
        axes: Keras's axes in PyTorch's order; None for the same order.
        shape: of the parameter, where it is not that of the transposed variable.
        columns: for each index along `along` in Keras the index in PyTorch; None for the same.
        along: the Keras axis of the columns.
        gates: which of Keras's blocks along the last axis stand first, second, ... in PyTorch.
    """

    variable: Any
    name: str
    axes: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    along: int = 0
    gates: tuple[int, ...] | None = None

    @property
    def _axes(self) -> tuple[int, ...]:
        return self.axes or tuple(range(len(self.variable.shape)))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Weight`."""
        moved = tuple(self.variable.shape[axis] for axis in self._axes)
        return {self.name: self.shape or moved}

    def to_torch(self, value: np.ndarray, gradient: bool = False) -> dict[str, np.ndarray]:
        """See `Weight`."""
        if self.columns is not None:
            value = value.take(np.argsort(self.columns), axis=self.along)
        if self.gates is not None:
            value = take_gates(value, self.gates)
        value = value.transpose(self._axes)
        return {self.name: np.ascontiguousarray(value.reshape(self.shapes[self.name]))}

    def to_keras(self, tensors: Tensors, gradient: bool = False) -> np.ndarray:
        """See `Weight`."""
        moved = tuple(self.variable.shape[axis] for axis in self._axes)
        value = tensors[self.name].reshape(moved).transpose(np.argsort(self._axes))
        if self.gates is not None:
            value = take_gates(value, tuple(np.argsort(self.gates)))
        if self.columns is not None:
            value = value.take(self.columns, axis=self.along)
        return np.ascontiguousarray(value)


def take_gates(value: np.ndarray, gates: tuple[int, ...]) -> np.ndarray:
    """Blocks of the last axis in another order."""
    blocks = np.split(value, len(gates), axis=-1)
    return np.concatenate([blocks[gate] for gate in gates], axis=-1)

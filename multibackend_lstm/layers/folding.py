"""Folding a second axis into the batch, and back, whatever sizes are known."""

from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor, ops, tree


def fold(x: KerasTensor) -> KerasTensor:
    """Merge the first two axes: `(batch, time, *axes)` to `(batch * time, *axes)`."""
    shape = ops.shape(x)
    return ops.reshape(x, (shape[0] * shape[1], *shape[2:]))


def unfold(x: KerasTensor, sizes: tuple[Any, Any]) -> KerasTensor:
    """Split the first axis: `(batch * time, *axes)` to `(batch, time, *axes)`.

    Args:
        x: the folded tensor.
        sizes: `(batch, time)`, integers or scalar tensors, as `ops.shape` gives them.
    """
    return ops.reshape(x, (*sizes, *ops.shape(x)[1:]))


class TracedFunction(keras.Operation):
    """A function of tensors as one operation, inside which `ops.shape` can be read.

    In a functional graph the size of an unknown axis cannot be read, only inside an operation.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def call(self, *args: Any) -> Any:
        """Call the function."""
        return self.function(*args)


def call_for_masks(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that reads `ops.shape` and returns masks, some of which may be `None`.

    Masks are computed in the functional graph, on symbolic tensors too, see `TracedFunction`.
    """
    structure = None

    def masks_alone(*args: Any) -> list[Any]:
        nonlocal structure
        structure = function(*args)  # an operation cannot return None, so those are put aside
        return [mask for mask in tree.flatten(structure) if mask is not None]

    masks = iter(TracedFunction(masks_alone)(*args))
    return tree.map_structure(lambda mask: None if mask is None else next(masks), structure)

"""Axes: folding a second one into the batch, and back, adding and reducing; empty batches."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
from keras import KerasTensor, ops, tree

from multibackend_lstm import backends

# Batch and time of the wrappers around, outermost first, whose steps draw the same numbers.
_DRAWING_ONCE: ContextVar[tuple[tuple[Any, Any], ...]] = ContextVar("drawing_once", default=())


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


@contextmanager
def drawing_once(batch: Any, time: Any) -> Iterator[None]:
    """Within it random layers draw once for all time steps that are folded into the batch."""
    token = _DRAWING_ONCE.set((*_DRAWING_ONCE.get(), (batch, time)))
    try:
        yield
    finally:
        _DRAWING_ONCE.reset(token)


def drawing_axes(x: KerasTensor) -> tuple[KerasTensor, tuple[int | None, ...]]:
    """A folded batch with the steps that draw the same numbers as axes of their own.

    Returns:
        The tensor, and for each axis in the place of its first one 1 where all entries draw the
        same, else None. Where no wrapper asks for that, the tensor as it is and `(None,)`.
    """
    sizes: list[Any] = []
    folded: Any = 1
    for batch, time in _DRAWING_ONCE.get():
        if isinstance(batch, int) and isinstance(time, int) and batch * time == 0:
            return x, (None,)
        sizes += [batch // folded, time]  # with what others folded in between
        folded = batch * time
    if not sizes:
        return x, (None,)
    shape = ops.shape(x)
    apart = ops.reshape(x, (*sizes, shape[0] // folded, *shape[1:]))
    return apart, (*(None, 1) * (len(sizes) // 2), None)


def call_nonempty(function: Callable[..., Any], *batches: Any) -> Any:
    """Call a function of batches, with a sample of zeros where a backend cannot take none.

    Args:
        function: of structures of `(batch, ...)` tensors, to such a structure.
        batches: its arguments; None where there is none.
    """

    def nonempty(x: Any) -> Any:
        return None if x is None else backends.active().nonempty(x)

    filled = tree.map_structure(nonempty, batches)
    outputs = function(*filled)
    batch = tree.flatten(batches)[0]
    if tree.flatten(filled)[0] is batch:
        return outputs
    return tree.map_structure(lambda x: x[: ops.shape(batch)[0]], outputs)


def expand(x: Any, rank: int) -> Any:
    """Axes of size 1 added behind, up to `rank` axes."""
    # TensorFlow Lite knows expand_dims, and no indexing by `...` where sizes are unknown.
    axes = tuple(range(len(x.shape), rank))
    return ops.expand_dims(x, axes) if axes else x


def mean(x: KerasTensor, axes: tuple[int, ...]) -> KerasTensor:
    """The mean along axes of known sizes, in float64 where the tensor is.

    That of Keras computes it in float32 on torch (Keras 3.15).
    """
    if keras.backend.standardize_dtype(x.dtype) == "float64":
        return ops.sum(x, axis=axes) / math.prod(x.shape[axis] for axis in axes)
    return ops.mean(x, axis=axes)


def maximum(x: KerasTensor, axes: tuple[int, ...]) -> KerasTensor:
    """The largest along the axes; of a tensor without elements an empty one, and no error."""
    if 0 in x.shape:
        return ops.zeros([s for axis, s in enumerate(ops.shape(x)) if axis not in axes], x.dtype)
    return ops.max(x, axis=axes)


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

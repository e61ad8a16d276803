"""Calls of layers and operations, in a form that goes from the reference to every target."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from multibackend_lstm.runtimes.errors import CaseError


class Call(NamedTuple):
    """One call of a layer or an operation.

    Attributes:
        path: of what is called, as `operations` has it.
        name: of the call, which is the path and, from the second call on, its number.
        training: whether it is one in training, to be differentiated.
        arguments: the call's `[args, kwargs]`, encoded, with places in `tensors` for tensors.
        tensors: what goes in, rounded to the dtype.
        dtype: that a target gives the tensors of a floating dtype.
        upstream: the gradient of the loss by each floating output; none for a call in inference.
    """

    path: str
    name: str
    training: bool
    arguments: Any
    tensors: list[np.ndarray]
    dtype: str
    upstream: list[np.ndarray]

    def message(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Header and arrays."""
        header = {k: v for k, v in self._asdict().items() if k not in ("tensors", "upstream")}
        arrays = {f"tensor{i}": x for i, x in enumerate(self.tensors)}
        return header, arrays | {f"upstream{i}": x for i, x in enumerate(self.upstream)}

    @classmethod
    def of(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Call":
        """The call that `message` wrote."""
        lists: list[list[np.ndarray]] = []
        for name in ("tensor", "upstream"):
            count = sum(key.startswith(name) for key in arrays)
            lists.append([arrays[f"{name}{i}"] for i in range(count)])
        return cls(**header, tensors=lists[0], upstream=lists[1])


class NotAlone(NamedTuple):
    """A call that cannot be made alone, and why."""

    name: str
    reason: str


def encoded(value: Any, tensors: list[Any]) -> Any:
    """A call's arguments in plain values; tensors go into a list.

    Raises:
        CaseError: for what is neither a plain value nor a tensor.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, slice):
        return {"slice": [encoded(x, tensors) for x in (value.start, value.stop, value.step)]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encoded(x, tensors) for x in value]}
    if isinstance(value, dict):
        return {"dict": {key: encoded(x, tensors) for key, x in value.items()}}
    if isinstance(value, keras.Variable):
        value = value.value
    if not (ops.is_tensor(value) or isinstance(value, (np.ndarray, np.generic))):
        raise CaseError(f"it is called with a {type(value).__name__}, which cannot be sent")
    tensors.append(value)
    place = len(tensors) - 1
    mask = encoded(getattr(value, "_keras_mask", None), tensors)
    return {"tensor": place, "mask": mask}


def decoded(encoded: Any, tensors: Sequence[Any], *, masks: bool = True) -> Any:
    """What `encoded` was given, with other tensors in the places of its own.

    Args:
        encoded: the plain values.
        tensors: to put in.
        masks: whether a tensor gets the mask that came with it.
    """
    ((kind, value), *_) = encoded.items()
    if kind == "value":
        return value
    if kind == "ellipsis":
        return Ellipsis
    if kind == "dict":
        return {key: decoded(x, tensors, masks=masks) for key, x in value.items()}
    if kind == "tensor":
        mask = decoded(encoded["mask"], tensors) if masks else None
        return tensors[value] if mask is None else with_mask(tensors[value], mask)
    items = [decoded(x, tensors, masks=masks) for x in value]
    if kind == "slice":
        return slice(*items)
    return items if kind == "list" else tuple(items)


def with_mask(x: Any, mask: Any) -> Any:
    """A tensor with a mask, which Keras passes on to the layers inside of a layer."""
    return _Masked(mask)(x)


class _Masked(keras.layers.Layer):
    """Gives a tensor a mask by the public way: a layer's `compute_mask`."""

    def __init__(self, mask: Any) -> None:
        super().__init__(name="masked", dtype=keras.config.floatx(), autocast=False)
        self._mask = lambda: mask  # no attribute of the layer, which would track it
        self.supports_masking = True
        self.built = True

    def call(self, x: Any) -> Any:
        return x

    def compute_mask(self, x: Any, previous_mask: Any = None) -> Any:
        return self._mask()

"""Where the features of a Keras tensor stand in the PyTorch tensor that corresponds to it.

Keras puts the filters of a convolution last, PyTorch puts them first. Once they are merged with the
axes around them (by `Flatten`, or by an LSTM that takes tensors of any rank), a column of the one
is another column of the other: Keras's column `position * filters + filter` is PyTorch's column
`filter * positions + position`. An `Axis` remembers that for the layers behind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

FlattenOrder = Literal["channels_first", "channels_last"]
FLATTEN_ORDERS = ("channels_first", "channels_last")


class UnknownOrder(Exception):  # noqa: N818 - an error only for a layer with weights behind
    """The order of features in PyTorch cannot be told; the message is the reason."""


@dataclass(frozen=True)
class Axis:
    """One axis of a Keras tensor.

    Attributes:
        size: None if it is not known.
        filters: whether PyTorch keeps this axis before the others, as its convolutions do.
        steps: whether it is the time axis of a `TimeDistributed`, which stays before the filters,
            since PyTorch folds it into the batch.
        order: for each index along the axis in Keras the index in PyTorch; None for the same.
        moved: whether they are filters whose place in PyTorch is not known any more, since a
            product of matrices needs them last there too.
    """

    size: int | None
    filters: bool = False
    steps: bool = False
    order: tuple[int, ...] | None = None
    moved: bool = False


@dataclass(frozen=True)
class Features:
    """A tensor of the Keras model, seen from PyTorch.

    Attributes:
        axes: batch first.
        behind: numbers of the layers with weights that it was computed from.
        padding: the zeros around each axis that a `ZeroPadding` layer has just added.
        unknown: why the order of its features cannot be told; None where it can.
    """

    axes: tuple[Axis, ...]
    behind: frozenset[int] = frozenset()
    padding: tuple[tuple[int, int], ...] | None = None
    unknown: str | None = None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Sizes of the axes."""
        return tuple(axis.size for axis in self.axes)

    @property
    def plain(self) -> bool:
        """Whether every merge of its axes gives the same columns in PyTorch."""
        return self.unknown is None and not any(a.filters or a.order for a in self.axes)


def torch_order(axes: Sequence[Axis]) -> list[int]:
    """Positions of the axes in the order in which PyTorch has them: filters first."""
    return sorted(range(len(axes)), key=lambda i: (not axes[i].steps, not axes[i].filters))


def merge(axes: Sequence[Axis]) -> Axis:
    """The axis that merging some neighbouring axes in C order gives.

    Raises:
        UnknownOrder: if the order in PyTorch depends on a size that is not known.
    """
    kept = [axis for axis in axes if axis.size != 1]
    if len(kept) == 1:
        return kept[0]
    if any(axis.moved for axis in kept):
        raise UnknownOrder("the filters of a convolution are merged behind a product of matrices")
    if any(axis.size is None for axis in kept):
        if any(axis.filters or axis.order for axis in kept):
            raise UnknownOrder(
                "an axis of unknown size is merged with the filters of a convolution"
            )
        return Axis(None)
    sizes = [axis.size or 0 for axis in kept]
    first = torch_order(kept)
    columns = np.arange(math.prod(sizes)).reshape([sizes[i] for i in first])
    columns = columns.transpose(np.argsort(first))
    for position, axis in enumerate(kept):
        if axis.order is not None:
            columns = columns.take(axis.order, axis=position)
    order = tuple(int(column) for column in columns.ravel())
    return Axis(len(order), order=None if order == tuple(range(len(order))) else order)


def join(axes: Sequence[Axis]) -> Axis:
    """The axis that concatenating some axes gives."""
    if any(axis.size is None for axis in axes):
        if any(axis.order for axis in axes):
            raise UnknownOrder("features in another order are joined with others of unknown number")
        return Axis(None)
    order: list[int] = []
    for axis in axes:
        before = len(order)
        order += (before + index for index in axis.order or range(axis.size or 0))
    ordered = tuple(order) if any(axis.order for axis in axes) else None
    filters, moved = any(axis.filters for axis in axes), any(axis.moved for axis in axes)
    return Axis(len(order), filters=filters, order=ordered, moved=moved)


def same_axes(candidates: Sequence[Sequence[Axis]]) -> list[Axis]:
    """The axes that several tensors share.

    Raises:
        UnknownOrder: if their features are in different orders.
    """
    found = []
    for axes in zip(*candidates, strict=True):
        if len({axis.order for axis in axes}) > 1:
            raise UnknownOrder("it joins features that PyTorch has in different orders")
        filters, moved = any(axis.filters for axis in axes), any(axis.moved for axis in axes)
        found.append(replace(axes[0], filters=filters, moved=moved))
    return found


def reshape(axes: Sequence[Axis], target: Sequence[int | None]) -> list[Axis]:
    """The axes after `Reshape` to a target shape, without batch.

    Raises:
        UnknownOrder: if axes are split whose order in PyTorch differs.
    """
    left, sizes = list(axes), list(target)
    result: list[Axis] = []
    while sizes:
        # The fewest axes on either side that hold the same number of elements.
        group, parts = left[:1], [sizes.pop(0)]
        del left[:1]
        while (found := math.prod(a.size or 1 for a in group)) != (
            wanted := math.prod(size or 1 for size in parts)
        ):
            if found < wanted and left:
                group.append(left.pop(0))
            elif found > wanted and sizes:
                parts.append(sizes.pop(0))
            else:
                raise UnknownOrder(f"{axes} cannot be followed into the shape {tuple(target)}")
        # Beside the one part that holds all of the group, axes of one may come and go.
        place = next((i for i, part in enumerate(parts) if part != 1), 0)
        if group and all(part == 1 for part in parts[place + 1 :]):
            result += [merge(group) if i == place else Axis(1) for i in range(len(parts))]
        elif any(axis.filters or axis.order for axis in group):
            raise UnknownOrder("an axis that holds the filters of a convolution is split")
        else:
            result += [Axis(part) for part in parts]
    return result

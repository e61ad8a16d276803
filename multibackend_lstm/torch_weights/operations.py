"""What indexing, arithmetic and `keras.ops` do to the axes of their tensors.

An operation follows where PyTorch has the features if it keeps an axis whole: then it permutes
nothing, whichever other axes it sums, slices or reorders. A sum or a maximum over an axis does not
depend on the order along it. What does depend on it (a slice, a cumulative sum, a product with
features in another order) is followed along axes that both have in the same order, and no other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multibackend_lstm.torch_weights.axes import Axis, UnknownOrder, join, reshape, same_axes

Axes = Sequence[Axis]
# An operation, the axes of its tensors, its arguments, and the shapes of its outputs.
_Follow = Callable[[Any, list[Axes], Sequence[Any], Sequence[Any]], "list[list[Axis]] | None"]

# What leaves every element in its place, with operands of any shapes.
_ELEMENTWISE = frozenset(
    {
        "Abs", "Absolute", "Add", "Arctan", "Arctan2", "Cast", "Ceil", "Celu", "Clip", "Cos",
        "Divide", "Elu", "Equal", "Erf", "Exp", "Expm1", "Floor", "Gelu", "Greater",
        "GreaterEqual", "HardSigmoid", "HardSilu", "HardTanh", "Isfinite", "Isnan", "LeakyRelu",
        "Less", "LessEqual", "Log", "Log1p", "LogSigmoid", "LogicalAnd", "LogicalNot",
        "LogicalOr", "Maximum", "Minimum", "Mish", "Mod", "Multiply", "NanToNum", "Negative",
        "NotEqual", "OnesLike", "Power", "Reciprocal", "Relu", "Relu6", "Round", "Rsqrt", "Selu",
        "Sigmoid", "Sign", "Silu", "Sin", "Softplus", "Softsign", "Sqrt", "Square", "Subtract",
        "Tanh", "TrueDivide", "Where", "ZerosLike",
    }
)  # fmt: skip
# The same, of one operand, along an axis on whose order nothing depends.
_ALONG_ANY_ORDER = frozenset(
    {"LayerNorm", "LogSoftmax", "Normalize", "RMSNorm", "Softmax", "Sparsemax"}
)
# Over axes on whose order nothing depends.
_REDUCTIONS = frozenset(
    {
        "All", "Amax", "Amin", "Any", "CountNonzero", "Logsumexp", "Max", "Mean", "Median", "Min",
        "Moments", "Nanmax", "Nanmean", "Nanmin", "Nanprod", "Nanstd", "Nansum", "Nanvar", "Norm",
        "Prod", "Std", "Sum", "Var",
    }
)  # fmt: skip
# Along one axis, on whose order everything depends.
_ALONG = frozenset({"Argsort", "Cumprod", "Cumsum", "Flip", "Glu", "Repeat", "Roll", "Split"})


def follow(
    operation: Any, operands: list[Axes], arguments: Sequence[Any], shapes: Sequence[Any]
) -> list[list[Axis]] | None:
    """The axes of each output of an operation.

    Args:
        operation: of `keras.ops`, as a functional model holds it.
        operands: axes of all tensors that it takes, constants too, in order.
        arguments: what it is called with, in order.
        shapes: of its outputs.

    Returns:
        The axes; None for an operation of which nothing is known.

    Raises:
        UnknownOrder: where it depends on the order along an axis that PyTorch has in another one.
    """
    kind = type(operation).__name__
    if kind in _ELEMENTWISE:
        return [broadcast(operands, shapes[0])]
    if kind in _ALONG_ANY_ORDER:
        return [list(operands[0])] if len(operands) == 1 else None
    if kind in _REDUCTIONS:
        return _reduced(operation, operands[0], shapes)
    if kind in _ALONG:
        if operation.axis is None:
            return None
        touched = _positions(operation.axis, len(operands[0]))
        return [_touched(operands[0], touched, shape) for shape in shapes]
    found = _BY_NAME.get(kind)
    return None if found is None else found(operation, operands, arguments, shapes)


def broadcast(operands: Sequence[Axes], shape: Sequence[int | None]) -> list[Axis]:
    """The axes of what is computed element by element.

    Raises:
        UnknownOrder: where it joins features in different orders.
    """
    found = []
    for position, size in zip(range(-len(shape), 0), shape, strict=True):
        axes = [x[position] for x in operands if len(x) >= -position and x[position].size != 1]
        same = same_axes([(axis,) for axis in axes])[0] if axes else Axis(size)
        found.append(replace(same, size=size))
    return found


def contract(
    first: Axes, second: Axes, pairs: Sequence[tuple[int, int]], kept: Sequence[Axis]
) -> list[Axis]:
    """The kept axes of a sum of products over some axes.

    Raises:
        UnknownOrder: where the axes summed over are in different orders.
    """
    for i, j in pairs:
        same_axes([(first[i],), (second[j],)])
    return [_moved(axis) for axis in kept]


def _moved(axis: Axis) -> Axis:
    return replace(axis, moved=axis.moved or axis.filters)


def _positions(axis: Any, rank: int) -> list[int]:
    """Axes as an operation has them: None for all, a number, or several."""
    if axis is None:
        return list(range(rank))
    given = axis if isinstance(axis, (list, tuple)) else [axis]
    return [int(each) % rank for each in given]


def _touched(axes: Axes, positions: Sequence[int], shape: Sequence[int | None]) -> list[Axis]:
    """The axes where something depends on the order along some of them."""
    if any(axes[position].order for position in positions):
        raise UnknownOrder("it depends on the order of merged filters")
    return [replace(axis, size=size) for axis, size in zip(axes, shape, strict=True)]


def _reduced(operation: Any, axes: Axes, shapes: Sequence[Any]) -> list[list[Axis]]:
    name = "axes" if hasattr(operation, "axes") else "axis"
    over = _positions(getattr(operation, name), len(axes))
    if operation.keepdims:
        kept = [Axis(1) if i in over else axis for i, axis in enumerate(axes)]
    else:
        kept = [axis for i, axis in enumerate(axes) if i not in over]
    return [kept for _ in shapes]


def _average(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    """With weights, whose axes may be fewer, it is as an unknown operation."""
    if len(operands) > 1:
        return None
    over = _positions(operation.axis, len(operands[0]))
    return [[axis for i, axis in enumerate(operands[0]) if i not in over] for _ in shapes]


def _argument_of_extreme(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    if operation.axis is None:
        return None
    over = _positions(operation.axis, len(operands[0]))
    _touched(operands[0], over, [axis.size for axis in operands[0]])
    return _reduced(operation, operands[0], shapes)


def _get_item(operation: Any, operands: list[Axes], arguments: Sequence[Any], shapes: Any) -> Any:
    axes, key = list(operands[0]), arguments[1]
    keys = list(key) if isinstance(key, tuple) else [key]
    if not all(_is_plain_key(each) for each in keys):
        return None
    taken = sum(each is not None and each is not Ellipsis for each in keys)
    if Ellipsis not in keys:
        keys.append(Ellipsis)
    found: list[Axis] = []
    sizes = list(shapes[0])
    for each in keys:
        if each is Ellipsis:
            rest = len(axes) - taken
            found += axes[:rest]
            del axes[:rest]
            continue
        if each is None:
            found.append(Axis(1))
            continue
        taken -= 1
        axis = axes.pop(0)
        if isinstance(each, slice) and each == slice(None):
            found.append(axis)
            continue
        _touched([axis], [0], [axis.size])
        if isinstance(each, slice):
            found.append(replace(axis, size=sizes[len(found)]))
    return [found]


def _is_plain_key(key: Any) -> bool:
    if isinstance(key, bool):
        return False
    return key is None or key is Ellipsis or isinstance(key, (int, np.integer, slice))


def _take(operation: Any, operands: list[Axes], arguments: Sequence[Any], shapes: Any) -> Any:
    if operation.axis is None:
        return None
    axes = operands[0]
    (at,) = _positions(operation.axis, len(axes))
    _touched(axes, [at], [axis.size for axis in axes])
    added = len(shapes[0]) - (len(axes) - 1)
    indexed = [Axis(size) for size in shapes[0][at : at + added]]
    if added == 1:  # still the same axis, of another length
        indexed = [replace(axes[at], size=indexed[0].size)]
    return [[*axes[:at], *indexed, *axes[at + 1 :]]]


def _take_along_axis(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    if operation.axis is None:
        return None
    axes, indices = operands
    at = _positions(operation.axis, len(axes))
    sizes = [axis.size for axis in axes]
    both = broadcast([_touched(axes, at, sizes), _touched(indices, at, shapes[0])], shapes[0])
    return [[replace(axis, size=size) for axis, size in zip(both, shapes[0], strict=True)]]


def _unstack(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    axes = operands[0]
    (at,) = _positions(operation.axis, len(axes))
    _touched(axes, [at], [axis.size for axis in axes])
    return [[*axes[:at], *axes[at + 1 :]] for _ in shapes]


def _sort(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    if operation.axis is None:
        return None
    at = _positions(operation.axis, len(operands[0]))
    return [[replace(x, order=None) if i in at else x for i, x in enumerate(operands[0])]]


def _expand_dims(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    added = _positions(operation.axis, len(shapes[0]))
    left = iter(operands[0])
    return [[Axis(1) if i in added else next(left) for i in range(len(shapes[0]))]]


def _squeeze(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    axes = operands[0]
    if operation.axis is None:
        return [[axis for axis in axes if axis.size != 1]]
    gone = _positions(operation.axis, len(axes))
    return [[axis for i, axis in enumerate(axes) if i not in gone]]


def _transpose(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    axes = operands[0]
    order = range(len(axes))[::-1] if operation.axes is None else operation.axes
    return [[axes[i] for i in order]]


def _swap_axes(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    found = list(operands[0])
    i, j = _positions((operation.axis1, operation.axis2), len(found))
    found[i], found[j] = found[j], found[i]
    return [found]


def _move_axis(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    axes = operands[0]
    source, target = (
        _positions(each, len(axes)) for each in (operation.source, operation.destination)
    )
    found = [axis for i, axis in enumerate(axes) if i not in source]
    for at, i in sorted(zip(target, source, strict=True)):
        found.insert(at, axes[i])
    return [found]


def _stack(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    (at,) = _positions(operation.axis, len(shapes[0]))
    found = same_axes([tuple(x) for x in operands])
    found.insert(at, Axis(len(operands)))
    return [found]


def _concatenate(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    (at,) = _positions(operation.axis, len(shapes[0]))
    together = same_axes([(*x[:at], *x[at + 1 :]) for x in operands])
    together.insert(at, join([x[at] for x in operands]))
    return [together]


def _slice(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    axes, shape = operands[0], shapes[0]
    cut = [i for i, axis in enumerate(axes) if axis.size is None or axis.size != shape[i]]
    return [_touched(axes, cut, shape)]


def _pad(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    axes, shape = operands[0], shapes[0]
    return [_touched(axes, [i for i, x in enumerate(axes) if x.size != shape[i]], shape)]


def _tile(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    axes, shape = operands[0], shapes[0]
    repeats = operation.repeats
    repeats = [repeats] if isinstance(repeats, int) else list(repeats)
    if len(shape) != len(axes):
        return None
    repeats = [1] * (len(axes) - len(repeats)) + repeats
    return [_touched(axes, [i for i, count in enumerate(repeats) if count != 1], shape)]


def _broadcast_to(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    return [broadcast(operands[:1], shapes[0])]


def _one_hot(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    if operation.axis != -1:
        return None
    return [[*operands[0], Axis(shapes[0][-1])]]


def _matmul(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    first, second = operands
    if min(len(first), len(second)) < 2:
        return None
    batch = broadcast([first[:-2], second[:-2]], shapes[0][:-2])
    return [contract(first, second, [(-1, -2)], [*batch, first[-2], second[-1]])]


def _einsum(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    subscripts = operation.subscripts.replace(" ", "")
    if "." in subscripts:
        return None
    given, arrow, output = subscripts.partition("->")
    if not arrow:
        output = "".join(sorted(x for x in set(given) - {","} if given.count(x) == 1))
    of_letter: dict[str, list[tuple[Axis]]] = {}
    for letters, axes in zip(given.split(","), operands, strict=True):
        for letter, axis in zip(letters, axes, strict=True):
            of_letter.setdefault(letter, []).append((axis,))
    same = {letter: same_axes(axes)[0] for letter, axes in of_letter.items()}
    return [[_moved(same[letter]) for letter in output]]


def _reshape(operation: Any, operands: list[Axes], _: Any, shapes: Any) -> Any:
    axes, shape = list(operands[0]), list(shapes[0])
    whole: list[Axis] = []  # the last axes, which are not touched, even where batches are
    while axes and shape and axes[-1].size is not None and axes[-1].size == shape[-1]:
        whole.insert(0, axes.pop())
        shape.pop()
    if [axis.size for axis in axes] == shape:
        return [[*axes, *whole]]
    if not any(axis.filters or axis.order for axis in axes):
        return [[*map(Axis, shape), *whole]]
    axes, shape = [*axes, *whole], list(shapes[0])
    batch, *sizes = [axis.size for axis in axes]
    if batch != shape[0] or _count(sizes) != _count(shape[1:]):
        raise UnknownOrder("it merges the filters of a convolution with the batch")
    return [[axes[0], *reshape(axes[1:], shape[1:])]]


def _count(sizes: Sequence[int | None]) -> float:
    """How many elements; NaN, which equals nothing, where it is not known."""
    return math.prod(math.nan if size is None else size for size in sizes)


_BY_NAME: dict[str, _Follow] = {
    "Argmax": _argument_of_extreme,
    "Argmin": _argument_of_extreme,
    "Average": _average,
    "BroadcastTo": _broadcast_to,
    "Concatenate": _concatenate,
    "Einsum": _einsum,
    "ExpandDims": _expand_dims,
    "GetItem": _get_item,
    "Matmul": _matmul,
    "Moveaxis": _move_axis,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Sort": _sort,
    "Squeeze": _squeeze,
    "Stack": _stack,
    "Swapaxes": _swap_axes,
    "Take": _take,
    "TakeAlongAxis": _take_along_axis,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unstack": _unstack,
}

"""Checks of shapes and masks, with errors that name the axes."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import Any, Literal

from keras import KerasTensor, ops, tree

Shape = Sequence[int | None]
MaskReduction = Literal["any", "all"]


def axis_names(rank: int) -> list[str]:
    """Names of the axes of a tensor of `rank` axes, batch and time first, features last."""
    if rank == 3:
        return ["batch", "time", "features"]
    if rank == 4:
        return ["batch", "time", "channels", "features"]
    if rank < 3:
        return ["batch", "features"][:rank]
    return ["batch", "time", *(f"axis_{axis}" for axis in range(2, rank - 1)), "features"]


def describe_shape(shape: Shape) -> str:
    """A shape with its axes named, such as `(batch=None, time=10, channels=3, features=5)`."""
    named = zip(axis_names(len(shape)), shape, strict=True)
    return "(" + ", ".join(f"{name}={size}" for name, size in named) + ")"


def check_rank(owner: str, shape: Shape, minimum: int, maximum: int | None = None) -> None:
    """Raise a ValueError unless `minimum <= len(shape) <= maximum`."""
    if any(isinstance(size, Sequence) for size in shape):
        raise ValueError(
            f"{owner}: the input must be one tensor. Received a list of {len(shape)}, of shapes "
            f"{', '.join(str(tuple(s)) for s in shape[:4])}. Stack arrays of equal shape by "  # type: ignore[arg-type]
            "`numpy.stack`; pad series of unequal length by `multibackend_lstm.pad_sequences`."
        )
    rank = len(shape)
    if rank >= minimum and (maximum is None or rank <= maximum):
        return
    if maximum is None:
        rule = f"at least {minimum} axes, {describe_axes(minimum)}"
    elif maximum == minimum:
        rule = f"{minimum} axes, {describe_axes(minimum)}"
    else:
        rule = f"{minimum} to {maximum} axes, {describe_axes(minimum)} or longer"
    remedy = {
        1: "If it is an array of objects, series of unequal length, pad them by "
        "`multibackend_lstm.pad_sequences(list(x))`.",
        2: "A single time step or an unbatched series lacks an axis: add it, "
        "for instance with `x[:, None]` or `x[None]`.",
        3: "Data whose channels and features are already merged needs no such layer: "
        "pass it to the recurrent layer, or split its last axis with "
        "`multibackend_lstm.unflatten_features`.",
    }.get(rank, "Merge or split axes until the input has that form.")
    raise ValueError(
        f"{owner}: the input must have {rule}. "
        f"Received {rank} axes: {describe_shape(shape)}. {remedy}"
    )


def describe_axes(rank: int) -> str:
    """The form `(batch, time, ..., features)` of a tensor of `rank` axes."""
    return "(" + ", ".join(axis_names(rank)) + ")"


def known_sizes(owner: str, shape: Shape, axes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of `axes`; a ValueError if one of them is unknown."""
    unknown = [axis for axis in axes if shape[axis] is None]
    if unknown:
        names = axis_names(len(shape))
        listed = " and ".join(f"axis {axis} ({names[axis]})" for axis in unknown)
        raise ValueError(
            f"{owner}: only batch and time may be unknown, and the size of {listed} is. "
            f"Received {describe_shape(shape)}. Give that size in `keras.Input(shape=...)`."
        )
    return tuple(size for axis in axes if (size := shape[axis]) is not None)


def check_as_built(owner: str, built: Shape, shape: Shape, merged: bool = False) -> None:
    """Raise a ValueError unless a layer's weights are for inputs of such a shape.

    Args:
        owner: name of the layer for the message.
        built: sizes of the last axes that the layer was built for, of all axes behind time if
            they are merged; None where any size will do.
        shape: of the input.
        merged: whether only the number of values in a step counts.
    """
    sizes = shape[-len(built) :]
    if merged and None not in built and None not in shape[2:]:
        fits = math.prod(built) == math.prod(shape[2:])  # type: ignore[arg-type]
    else:
        fits = all(None in (b, s) or b == s for b, s in zip(built, sizes, strict=True))
    if fits:
        return
    names = axis_names(len(shape))[-len(built) :]
    wrong = [
        f"{name}={size} in place of {b}"
        for name, size, b in zip(names, sizes, built, strict=True)
        if None not in (b, size) and b != size
    ]
    raise ValueError(
        f"{owner}: the layer was built for inputs whose last axes have the sizes {tuple(built)}. "
        f"Received {describe_shape(shape)}: {', '.join(wrong) or 'another number of values'}. "
        "Give it inputs like those it was built for, or build a new layer."
    )


def flatten_shapes(structure: Any) -> list[Shape]:
    """The shapes in a nested structure of shapes, as `build` receives it for nested inputs."""
    shapes: list[Shape] = []
    tree.map_shape_structure(shapes.append, structure)
    return shapes


def check_mask(owner: str, mask_shape: Shape, input_shape: Shape, max_rank: int) -> None:
    """Raise a ValueError unless the mask's shape begins the input's shape.

    Behind time an axis may be 1 where the input's is not: the mask means all of that axis.

    Args:
        owner: name of the layer for the message.
        mask_shape: from `(batch, time)` up to `max_rank` axes.
        input_shape: shape of the masked input.
        max_rank: the largest number of axes the mask may have.
    """
    rank = len(mask_shape)
    fits = 2 <= rank <= max_rank and all(
        mask_size is None
        or input_size is None
        or mask_size == input_size
        or (mask_size == 1 and axis >= 2)
        for axis, (mask_size, input_size) in enumerate(zip(mask_shape, input_shape, strict=False))
    )
    if not fits:
        raise ValueError(
            f"{owner}: the mask must have the first axes of the input, (batch, time) at least "
            f"and {max_rank} axes at most. Received a mask of shape {tuple(mask_shape)} for an "
            f"input of shape {describe_shape(input_shape)}. A mask holds one boolean a time "
            "step, True where the step is valid."
        )


def check_choice(owner: str, argument: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a ValueError that lists `choices` unless `value` is one of them."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        similar = get_close_matches(str(value), map(str, choices), n=1)
        raise ValueError(
            f"{owner}: `{argument}` must be one of {listed}. Received {value!r}."
            + (f" Did you mean {similar[0]!r}?" if similar else "")
        )


def check_positive(owner: str, argument: str, value: Any) -> None:
    """Raise a ValueError unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(
            f"{owner}: `{argument}` must be an integer of at least 1. Received {value!r}."
        )


def reduce_mask(mask: KerasTensor, reduction: MaskReduction = "any") -> KerasTensor:
    """Reduce a mask of shape `(batch, time, *axes)` to a boolean `(batch, time)`.

    Args:
        mask: boolean (or zero and non-zero) tensor.
        reduction: `"any"`, a step is valid where any of its entries is; `"all"`, where all are.
    """
    mask = ops.cast(mask, "bool")
    axes = tuple(range(2, len(mask.shape)))
    if not axes:
        return mask
    return ops.any(mask, axis=axes) if reduction == "any" else ops.all(mask, axis=axes)

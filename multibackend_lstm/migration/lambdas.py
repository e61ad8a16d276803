"""Judges by shapes whether a stored function only merges or splits axes.

The function itself is never run nor unmarshalled. What is known of it is the shape of its input and
what stands around it: an output shape in its own configuration, the shapes that layers after it
were built with, and the weights of the next layer, which fix the sizes that it can take.

A reshape counts as known when exactly one shape that only merges neighbouring axes, or only splits
axes, fits all of that, and nothing else does that a function might have made of the same input: the
input's own shape (it may compute anything), or the input without some axes (a slice, a mean).
Shapes cannot tell a merge from one that also moves or scales values. So a function that names an
operation which does is left too; what remains is for a comparison of predictions to settle.
"""

import base64
import binascii
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int | None, ...]

#: Layers that keep the shape of their input and have no weights that would tell it.
_TRANSPARENT = (
    "Activation",
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "ELU",
    "GaussianDropout",
    "GaussianNoise",
    "LeakyReLU",
    "Masking",
    "ReLU",
    "Softmax",
)
_RANKS = {
    name.format(rank - 2): rank
    for rank in (3, 4, 5)
    for name in (
        "MaxPooling{}D",
        "AveragePooling{}D",
        "GlobalMaxPooling{}D",
        "GlobalAveragePooling{}D",
        "SpatialDropout{}D",
    )
}
_RANKS |= {"ZeroPadding1D": 3, "Cropping1D": 3, "UpSampling1D": 3, "UpSampling2D": 4}
_SEQUENCE_LAYERS = ("LSTM", "GRU", "SimpleRNN")
# A reshape may be written with these; any other operation that a function names may move or
# change values.
_RESHAPING = {
    "reshape", "expand_dims", "squeeze", "flatten", "ravel", "shape", "int_shape", "get_shape",
    "prod", "size", "ndim", "newaxis",
}  # fmt: skip
_OTHER_NAMES = {
    "permute_dimensions", "reverse", "gather", "concat", "reduce_sum", "reduce_mean", "reduce_max",
    "reduce_min", "l2_normalize", "batch_dot", "map_fn", "boolean_mask", "strided_slice",
    "resize_images", "repeat_elements", "temporal_padding", "unstack", "random_normal",
    "batch_flatten", "cumsum", "scatter_nd", "py_function", "numpy_function", "image", "signal",
    "system", "exec", "eval", "open", "__import__",
}  # fmt: skip
# Beyond these the ways to merge and split are too many to go through.
_MOST_AXES = 8
_LARGEST = 10**8
_SHORT_TEXT = re.compile(rb"(?=[\x5a\x7a\xda\xfa](.)([A-Za-z_]\w*))", re.DOTALL)


@dataclass
class Evidence:
    """What is known of a function's output.

    Attributes:
        exact: output shapes as they stand in the file, each with where.
        rank: number of axes that the next layer takes.
        sizes: sizes that the next layer takes, by axis, negative ones from the end.
        reasons: where rank and sizes come from.
    """

    exact: list[tuple[Shape, str]] = field(default_factory=list)
    rank: int | None = None
    sizes: dict[int, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    contradictory: bool = False

    def add(self, rank: int | None, sizes: dict[int, int], reason: str) -> None:
        """Take one more layer's demands."""
        if rank is not None and self.rank not in (None, rank):
            self.contradictory = True
        self.rank = self.rank if rank is None else rank
        for axis, size in sizes.items():
            if self.sizes.setdefault(axis, size) != size:
                self.contradictory = True
        self.reasons.append(reason)

    def fits(self, shape: Shape) -> bool:
        """Whether a shape has the rank and sizes."""
        if self.rank is not None and len(shape) != self.rank:
            return False
        return all(
            -len(shape) <= axis < len(shape) and shape[axis] == size
            for axis, size in self.sizes.items()
        )


@dataclass(frozen=True)
class Verdict:
    """A shape to reshape to, without the batch, or None; and why."""

    target: Shape | None
    reason: str


def judge(shape: Shape | None, evidence: Evidence) -> Verdict:
    """Decide what a function that gets this shape does, if it only merges or splits axes.

    Args:
        shape: `(batch, *axes)` of its input, None for an unknown size; None if nothing is known.
        evidence: what is known of its output.
    """
    if shape is None:
        return Verdict(None, "the shape of its input is not known")
    if evidence.contradictory:
        return Verdict(None, "the layers after it demand different shapes")
    axes = shape[1:]
    if len(axes) > _MOST_AXES or any((size or 0) > _LARGEST for size in axes):
        return Verdict(None, "its input has too many axes, or too large ones, to judge")
    exact = {known[1:] for known, _ in evidence.exact}
    if len(exact) > 1:
        return Verdict(None, f"its output shape is stored as both {sorted(map(str, exact))}")
    if exact:
        (target,) = exact
        places = " and ".join(dict.fromkeys(place for _, place in evidence.exact))
        reason = f"{_text(axes)} -> {_text(target)}, as stored in {places}"
        if _matches(axes, target):
            return Verdict(None, f"it keeps the shape {_text(axes)}: it could compute anything")
        options = {*merges(axes), *splits(axes, len(target))}
        matching = {t for t in options if _matches(t, target)}
        without = {t for t in _with_axes_taken(axes) if _matches(t, target)}
        if len(matching) == 1 and without <= matching:
            return Verdict(matching.pop(), reason)
        if matching:
            return Verdict(None, f"{reason}, which more than one shape fits")
        return Verdict(None, f"{reason}, is neither a merge nor a split of axes alone")
    if not evidence.reasons:
        return Verdict(None, "nothing after it tells the shape of its output")
    because = "; ".join(dict.fromkeys(evidence.reasons))
    if evidence.fits(shape):
        return Verdict(
            None, f"{because}, which its input {_text(axes)} fits as it is: it could do anything"
        )
    ranks = [len(axes) + 1, len(axes) + 2] if evidence.rank is None else [evidence.rank - 1]
    found = {*merges(axes), *itertools.chain(*(splits(axes, rank) for rank in ranks))} - {axes}
    fitting = sorted((t for t in found if evidence.fits((shape[0], *t))), key=str)
    # A shape that taking axes away also gives (other than axes of size 1) proves nothing.
    taken = [t for t in _with_axes_taken(axes) if evidence.fits((shape[0], *t))]
    if len(fitting) == 1 and not set(taken) - set(fitting):
        return Verdict(
            fitting[0], f"{because}, and {_text(axes)} -> {_text(fitting[0])} alone fits that"
        )
    if not fitting:
        return Verdict(None, f"{because}, which no merge or split of {_text(axes)} fits")
    several = ", ".join(_text(t) for t in [*fitting, *(t for t in taken if t not in fitting)])
    return Verdict(None, f"{because}, which more than one shape fits: {several}")


def merges(axes: Shape) -> Iterator[Shape]:
    """Every shape that merging neighbouring axes gives, the unchanged one included."""
    for cuts in itertools.product((False, True), repeat=max(len(axes) - 1, 0)):
        groups: list[list[int | None]] = [[*axes[:1]]]
        for cut, size in zip(cuts, axes[1:], strict=True):
            if cut:
                groups.append([size])
            else:
                groups[-1].append(size)
        merged: list[int | None] = []
        for group in groups:
            others = [size for size in group if size != 1]
            if None in others:
                if len(others) > 1:
                    break  # unknown times a number: no shape to write down
                merged.append(None)
            else:
                merged.append(math.prod(size for size in others if size is not None))
        else:
            yield tuple(merged)


def splits(axes: Shape, rank: int) -> Iterator[Shape]:
    """Every shape of that many axes that splitting axes gives."""
    if len(axes) > rank or rank > len(axes) + 3:
        return
    if not axes:
        if rank == 0:
            yield ()
        return
    first, *rest = axes
    for parts in range(1, rank - len(rest) + 1):
        for factors in _factors(first, parts):
            for tail in splits(tuple(rest), rank - parts):
                yield (*factors, *tail)


def _factors(size: int | None, parts: int) -> Iterator[Shape]:
    """Ways to write a size as an ordered product."""
    if size is None:
        for place in range(parts):
            yield (*(1,) * place, None, *(1,) * (parts - place - 1))
    elif parts == 1:
        yield (size,)
    else:
        divisors = {
            d for n in range(1, math.isqrt(size) + 1) if size % n == 0 for d in (n, size // n)
        }
        for divisor in divisors:
            for rest in _factors(size // divisor, parts - 1):
                yield (divisor, *rest)


def _matches(axes: Shape, stored: Shape) -> bool:
    """Whether a shape is the stored one, whose unknown sizes may be any."""
    return len(axes) == len(stored) and all(
        known is None or size == known for size, known in zip(axes, stored, strict=True)
    )


def _with_axes_taken(axes: Shape) -> set[Shape]:
    return {
        tuple(axes[i] for i in kept)
        for count in range(len(axes))
        for kept in itertools.combinations(range(len(axes)), count)
    }


def demands(
    layer: dict[str, Any], first_weight: tuple[int, ...] | None
) -> tuple[int | None, dict[int, int], str] | None:
    """Rank and sizes of the input that a layer takes, by its configuration and first weight.

    Returns:
        None where the layer says nothing, or `(rank, sizes by axis, reason)`.
    """
    name, config = layer["class_name"], layer["config"]
    if name in ("TimeDistributed", "Bidirectional"):
        inner = demands(config["layer"], first_weight)
        if inner is None or name == "Bidirectional":
            return inner
        rank, sizes, reason = inner
        shifted = {axis + 1 if axis > 0 else axis: size for axis, size in sizes.items()}
        return None if rank is None else rank + 1, shifted, f"TimeDistributed {reason}"
    if name in _RANKS:
        return _RANKS[name], {}, f"{name} takes rank {_RANKS[name]}"
    if not first_weight:
        return None
    if name in _SEQUENCE_LAYERS and layer["module"].startswith("keras"):
        rows = first_weight[0]
        return 3, {-1: rows}, f"{name} takes (batch, time, {rows})"
    if name == "Dense":
        return None, {-1: first_weight[0]}, f"Dense takes {first_weight[0]} features"
    match = re.fullmatch(r"(Separable|Depthwise)?Conv([123])D(Transpose)?", name)
    if match:
        rank = int(match[2]) + 2
        if len(first_weight) != rank:
            return None
        channels = first_weight[-1 if match[3] else -2] * config.get("groups", 1)
        axis = 1 if config.get("data_format") == "channels_first" else -1
        return rank, {axis: channels}, f"{name} takes rank {rank} and {channels} channels"
    if name == "BatchNormalization" and isinstance(config.get("axis"), int):
        axis, size = config["axis"], first_weight[0]
        return None, {axis: size}, f"BatchNormalization has {size} entries on axis {axis}"
    return None


def is_transparent(layer: dict[str, Any]) -> bool:
    """Whether a layer's output has the shape of its input, whatever that is."""
    return layer["class_name"] in _TRANSPARENT


def stored_shape(layer: dict[str, Any]) -> Shape | None:
    """The output shape in a Lambda's configuration, with an unknown batch put before it."""
    shape = layer["config"].get("output_shape")
    kind = layer["config"].get("output_shape_type", "raw")
    if kind != "raw" or not isinstance(shape, list) or not shape or not is_shape([None, *shape]):
        return None
    return (None, *shape)


def is_shape(value: Any) -> bool:
    """Whether a value from a file is the shape of one tensor with a batch axis."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(s is None or (type(s) is int and s > 0) for s in value)
    )


def other_operations(layer: dict[str, Any]) -> list[str]:
    """Operations beside a reshape that a Lambda's stored function names, as far as names show.

    The stored bytes are searched for names; they are not unmarshalled. Arithmetic (`x * 2`) and
    slices leave no name.
    """
    config = layer["config"]
    function = config.get("function")
    if isinstance(function, dict):
        inner = function.get("config")
        function = inner.get("code") if isinstance(inner, dict) else inner
    elif isinstance(function, list) and function:
        function = function[0]
    if not isinstance(function, str):
        return ["an unreadable function"]
    try:
        code = base64.b64decode(function, validate=False)
    except (binascii.Error, ValueError):
        return []  # the name of a function, whose code is not in the file
    names = {
        text[: length[0]].decode("ascii", "replace")
        for length, text in _SHORT_TEXT.findall(code)
        if len(text) >= length[0]
    }
    import keras

    operations = {name for name in dir(keras.ops) if not name.startswith("_")}
    return sorted(names & ((operations | _OTHER_NAMES) - _RESHAPING))


def reshape_operation(layer: dict[str, Any], kwargs: Any, shape: Shape | None) -> Verdict:
    """Judge a TensorFlow function outside of a layer, whose name and arguments are in the file.

    Args:
        layer: configuration of a `TFOpLambda`.
        kwargs: arguments of its call.
        shape: `(batch, *axes)` of its input.
    """
    function = layer["config"].get("function")
    called = f"tf.{function}" if isinstance(function, str) else layer["class_name"]
    if layer["class_name"] != "TFOpLambda" or function not in ("reshape", "expand_dims", "squeeze"):
        return Verdict(None, f"{called} is no reshape")
    if shape is None:
        return Verdict(None, "the shape of its input is not known")
    kwargs = {key: value for key, value in kwargs.items() if key != "name" and value is not None}
    target: Shape | None = None
    if function == "reshape" and set(kwargs) == {"shape"}:
        target = _reshaped(shape, kwargs["shape"])
    elif function == "expand_dims" and set(kwargs) == {"axis"} and type(kwargs["axis"]) is int:
        axis = kwargs["axis"] + (len(shape) + 1) * (kwargs["axis"] < 0)
        if 0 < axis <= len(shape):
            target = (*shape[:axis], 1, *shape[axis:])[1:]
    elif function == "squeeze" and set(kwargs) == {"axis"}:
        listed = kwargs["axis"] if isinstance(kwargs["axis"], list) else [kwargs["axis"]]
        if all(type(axis) is int and -len(shape) <= axis < len(shape) for axis in listed):
            gone = {axis % len(shape) for axis in listed}
            if 0 not in gone and all(shape[axis] == 1 for axis in gone):
                target = tuple(s for i, s in enumerate(shape) if i and i not in gone)
    if target is None:
        return Verdict(None, f"{called}({kwargs}) may change the batch axis of {_text(shape[1:])}")
    return Verdict(target, f"{called} with the arguments stored in the file")


def _reshaped(shape: Shape, target: Sequence[Any]) -> Shape | None:
    """The shape that tf.reshape gives, without the batch; None if the batch may not stay."""
    if not isinstance(target, list) or not all(type(size) is int for size in target):
        return None
    if None in shape[1:] or len(target) < 2 or target[0] != -1:
        return None
    sizes = tuple(target[1:])
    known = math.prod(size for size in shape[1:] if size is not None)
    return sizes if min(sizes) > 0 and math.prod(sizes) == known else None


def _text(axes: Shape) -> str:
    return "(" + ", ".join("None" if size is None else str(size) for size in axes) + ")"

"""Judges by shapes whether a stored function only merges or splits axes.

The function itself is never run nor unmarshalled. What is known of it is the shape of its input and
what the file stores of its output: an output shape in its own configuration, the shapes that layers
after it were built with, and the weights of the next layer, which fix the sizes that it takes.

A reshape counts as proved where all of that leaves one size open at most. The number of entries,
which no reshape changes, then gives it. The result must merge neighbouring axes or split axes, and
no other function may give such an output: one that keeps the shape (it may compute anything), or
takes axes away (a slice, a mean). Where more is open, nothing is guessed: the shapes that fit are
named, for the caller to choose from.

Shapes cannot tell a merge from one that also moves or scales values. So a function that names an
operation which does is left too; what remains is for a comparison of predictions to settle.
"""

import base64
import binascii
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int | None, ...]

#: Layers that keep the shape of their input, and do not tell its rank.
_TRANSPARENT = (
    "Activation",
    "ActivityRegularization",
    "AlphaDropout",
    "BatchNormalization",
    "Dropout",
    "ELU",
    "GaussianDropout",
    "GaussianNoise",
    "LayerNormalization",
    "LeakyReLU",
    "Masking",
    "ReLU",
    "Softmax",
)
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
_MOST_ENTRIES = 10**9
# Stands for an unknown size in products: a prime that divides no product of known ones.
_UNKNOWN = 2**61 - 1
_SHORT_TEXT = re.compile(rb"(?=[\x5a\x7a\xda\xfa](.)([A-Za-z_]\w*))", re.DOTALL)


@dataclass
class Evidence:
    """What is known of a function's output.

    Attributes:
        ranks: its number of axes, the batch among them; several contradict each other.
        sizes: axes and their sizes, negative axes from the end.
        reasons: where they come from.
    """

    ranks: set[int] = field(default_factory=set)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, rank: int | None, sizes: dict[int, int], reason: str) -> None:
        """Take what one more place tells."""
        self.ranks |= set() if rank is None else {rank}
        self.sizes += sizes.items()
        self.reasons.append(reason)

    def add_shape(self, shape: Shape, place: str) -> None:
        """Take an output shape that is stored in the file."""
        sizes = {axis: size for axis, size in enumerate(shape) if axis and size is not None}
        self.add(len(shape), sizes, f"{_text(shape[1:])} is stored in {place}")

    def pattern(self, rank: int) -> Shape | None:
        """The shape without the batch as far as it is known; None if none of that rank fits."""
        pattern: list[int | None] = [None] * rank
        for axis, size in self.sizes:
            place = axis if axis < 0 else axis - 1
            if not -rank <= place < rank or pattern[place] not in (None, size):
                return None
            pattern[place] = size
        return None if self.ranks - {rank + 1} else tuple(pattern)


@dataclass(frozen=True)
class Verdict:
    """A shape to reshape to, without the batch, or None; why; and shapes that would fit too."""

    target: Shape | None
    reason: str
    candidates: tuple[Shape, ...] = ()


def judge(shape: Shape | None, evidence: Evidence) -> Verdict:
    """Decide what a function that gets this shape does, if it only merges or splits axes.

    Args:
        shape: `(batch, *axes)` of its input, None for an unknown size; None if nothing is known.
        evidence: what is known of its output.
    """
    if shape is None:
        return Verdict(None, "the shape of its input is not known")
    axes = shape[1:]
    known = [size for size in axes if size is not None]
    if len(axes) > _MOST_AXES or math.prod(known) > _MOST_ENTRIES:
        return Verdict(None, "its input has too many axes, or too large ones, to judge")
    if not evidence.reasons:
        return Verdict(None, "nothing after it tells the shape of its output")
    because = "; ".join(dict.fromkeys(evidence.reasons))
    ranks = [rank - 1 for rank in evidence.ranks if rank <= len(axes) + 4]
    found = map(evidence.pattern, ranks if evidence.ranks else range(1, len(axes) + 2))
    patterns = [pattern for pattern in found if pattern is not None]
    if _fits(axes, patterns):
        return Verdict(
            None,
            f"{because}, which its input {_text(axes)} fits as it is: it could compute anything",
        )
    fitting = [
        target
        for pattern in patterns
        for target in _filled(pattern, axes)
        if _merges(axes, target) or _merges(target, axes)
    ]
    # A shape that taking axes away also gives (other than axes of size 1) proves nothing.
    taken = [t for t in _with_axes_taken(axes) if t not in fitting and _fits(t, patterns)]
    if len(fitting) == 1 and not taken:
        (target,) = fitting
        # With an open size, another number of axes would do as well if nothing tells it.
        if target in patterns or (evidence.ranks and patterns[0].count(None) == 1):
            return Verdict(target, f"{_text(axes)} -> {_text(target)}, as {because}")
    if fitting:
        reason = f"{because}: a reshape to {_texts(fitting)} fits"
        reason += f", and so does taking axes away, to {_texts(taken)}" if taken else ""
        return Verdict(None, f"{reason}, which nothing proves", tuple(fitting))
    if evidence.ranks and any(pattern.count(None) > 2 for pattern in patterns):
        return Verdict(None, f"{because}, which leaves more than two sizes open")
    return Verdict(None, f"{because}, which no merge or split of {_text(axes)} fits")


def _fits(axes: Shape, patterns: Iterable[Shape]) -> bool:
    """Whether a shape is one of several that are known in part."""
    return any(
        len(axes) == len(pattern)
        and all(known in (None, size) for size, known in zip(axes, pattern, strict=True))
        for pattern in patterns
    )


def _filled(pattern: Shape, axes: Shape) -> Iterator[Shape]:
    """Every shape of this pattern, of which two sizes are open at most, with as many entries."""
    known = math.prod(size for size in pattern if size is not None)
    entries = _entries(axes)
    if known < 1 or entries % known:
        return
    rest, places = entries // known, [i for i, size in enumerate(pattern) if size is None]
    choices: list[tuple[int, ...]] = []
    if len(places) == 2:
        divisors = [*_divisors(_entries(size for size in axes if size is not None)), _UNKNOWN]
        choices = [(first, rest // first) for first in divisors if rest % first == 0]
    elif len(places) < 2:
        choices = [(rest,)] if places else [()] * (rest == 1)
    for choice in choices:
        # A number of times an unknown size cannot be written down, nor can two unknown sizes.
        if all(size == _UNKNOWN or size % _UNKNOWN for size in choice):
            filled = list(pattern)
            for place, size in zip(places, choice, strict=True):
                filled[place] = None if size == _UNKNOWN else size
            if filled.count(None) < 2:
                yield tuple(filled)


def _entries(axes: Iterable[int | None]) -> int:
    return math.prod(_UNKNOWN if size is None else size for size in axes)


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _merges(fine: Shape, coarse: Shape) -> bool:
    """Whether merging neighbouring axes of one shape gives the other."""
    if not coarse:
        return not fine
    return any(
        _entries(fine[:count]) == _entries(coarse[:1]) and _merges(fine[count:], coarse[1:])
        for count in range(1, len(fine) + 1)
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


def _texts(shapes: Iterable[Shape]) -> str:
    return " or ".join(map(_text, shapes))


def _text(axes: Shape) -> str:
    return "(" + ", ".join("None" if size is None else str(size) for size in axes) + ")"

"""What a Lambda computes, as operations of Keras: read from its bytecode, or named by the caller.

A model made of `keras.ops` takes the Lambda's place, so the file that it is saved to loads wherever
Keras is.
"""

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from multibackend_lstm.migration import bytecode
from multibackend_lstm.migration.bytecode import Argument, Arithmetic, Call, Constant, Item, Slice

_REDUCTIONS = ("sum", "mean", "max")
#: How `--replace` and `replacements=` name operations.
SPELLINGS = (
    "last_step",
    "scale:FACTOR,OFFSET",
    "sum:AXIS",
    "mean:AXIS",
    "max:AXIS",
    "expand_dims:AXIS",
    "squeeze:AXIS",
    "transpose:AXES",
)


@dataclass(frozen=True)
class Operation:
    """One operation on a tensor whose first axis is the batch.

    Attributes:
        name: `last_step`, `multiply`, `divide`, `add`, `subtract`, `sum`, `mean`, `max`,
            `expand_dims`, `squeeze` or `transpose`.
        values: the number to multiply by and so on, or axes, the batch among them; for `last_step`
            the number of axes that its index names, if that is known.
        keepdims: whether axes that are summed over stay, with size 1.
    """

    name: str
    values: tuple[Any, ...] = ()
    keepdims: bool = False

    def __str__(self) -> str:
        shown = () if self.name == "last_step" else self.values
        values = [*map(str, shown), *(["keepdims"] if self.keepdims else [])]
        return f"{self.name}({', '.join(values)})" if values else self.name

    def __call__(self, x: Any) -> Any:
        """Compute it.

        Raises:
            ValueError: if it would change the batch axis, or does not fit the shape of `x`.
        """
        if self.name == "last_step":
            if len(x.shape) < max((2, *self.values)):
                raise ValueError(f"{self} of an input with {len(x.shape)} axes")
            return x[:, -1]
        if self.name in ("multiply", "divide", "add", "subtract"):
            return getattr(ops, self.name)(x, self.values[0])
        rank = len(x.shape)
        if self.name == "expand_dims":
            (axis,) = _within(self.values, rank + 1)
            return ops.expand_dims(x, axis)
        if self.name == "transpose":
            if sorted(self.values) != list(range(rank)) or self.values[0] != 0:
                raise ValueError(f"{self} of an input with {rank} axes, the batch being axis 0")
            return ops.transpose(x, self.values)
        axes = _within(self.values, rank)
        if self.name == "squeeze":
            if any(x.shape[axis] != 1 for axis in axes):
                raise ValueError(f"{self} of shape {tuple(x.shape)}: an axis that is not 1")
            return ops.squeeze(x, axes)
        return getattr(ops, self.name)(x, axis=axes, keepdims=self.keepdims)


def _within(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the start, none of them the batch."""
    found = tuple(axis + rank if axis < 0 else axis for axis in axes)
    if not found or len(set(found)) != len(found) or not all(0 < axis < rank for axis in found):
        raise ValueError(f"axes {tuple(axes)} of {rank}, of which axis 0 is the batch")
    return found


# ---- as the caller names them


def parse(text: str) -> list[Operation]:
    """The operations of a text such as `last_step`, `scale:0.5,1` or `mean:1`.

    Raises:
        ValueError: for another text.
    """
    name, _, values = text.partition(":")
    try:
        if text == "last_step":
            return [Operation("last_step")]
        if name == "scale":
            factor, offset = map(float, values.split(","))
            if math.isfinite(factor) and math.isfinite(offset):
                return [Operation("multiply", (factor,)), Operation("add", (offset,))]
        elif name in (*_REDUCTIONS, "squeeze", "transpose") or (
            name == "expand_dims" and "," not in values
        ):
            return [Operation(name, tuple(map(int, values.split(","))))]
    except ValueError:
        pass  # numbers that are none: the message below says what is wanted
    raise ValueError(
        f"a function is named by one of {', '.join(SPELLINGS)}, axis 0 being the batch, such as "
        f"scale:0.5,1 or mean:1. Received {text!r}."
    )


# ---- as bytecode spells them out

# What keras.backend, tensorflow and keras.ops are called in countless scripts.
_BACKEND = ("K", "backend", "keras.backend", "tf.keras.backend")
_TENSORFLOW = ("tf", "tf.math", "tensorflow")
_OPS = ("ops", "keras.ops")
_REDUCING = ("axis", "keepdims")
# Function, operation, and its arguments after the tensor, in order.
_FUNCTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"{k}.{name}": (name, _REDUCING) for k in (*_BACKEND, *_OPS) for name in _REDUCTIONS},
    **{f"{k}.reduce_{name}": (name, _REDUCING) for k in _TENSORFLOW for name in _REDUCTIONS},
    **{
        f"{k}.{name}": (name, ("axis",))
        for k in (*_BACKEND, *_OPS, "tf", "tensorflow")
        for name in ("expand_dims", "squeeze")
    },
    **{f"{k}.permute_dimensions": ("transpose", ("pattern",)) for k in _BACKEND},
    **{f"{k}.transpose": ("transpose", ("perm",)) for k in ("tf", "tensorflow")},
    **{f"{k}.transpose": ("transpose", ("axes",)) for k in _OPS},
}
_ARITHMETIC = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
_FULL = Slice(Constant(None), Constant(None))


def recognise(layer: dict[str, Any]) -> list[Operation] | None:
    """The operations of a Lambda whose stored bytecode spells them out, and nothing else.

    What a name such as `K` stands for is not in the file; it is taken for what scripts call so.

    Args:
        layer: configuration of a Lambda, as it stands in the file.
    """
    config = layer["config"]
    function = config.get("function")
    if config.get("arguments") or config.get("mask"):
        return None
    if isinstance(function, dict):
        stored = function.get("config")
        if function.get("class_name") != "__lambda__" or not isinstance(stored, dict):
            return None
        function = [stored.get(key) for key in ("code", "defaults", "closure")]
    elif config.get("function_type") != "lambda":
        return None
    if not isinstance(function, list) or len(function) != 3 or function[1:] != [None, None]:
        return None
    if not isinstance(function[0], str):
        return None
    try:
        content = base64.b64decode("".join(function[0].split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    operations = _operations(bytecode.read_lambda(content))
    return operations or None


def _operations(expression: Any) -> list[Operation] | None:
    """The operations from the argument to an expression; None for any other expression."""
    if isinstance(expression, Argument):
        return []
    inner, operation = None, None
    if isinstance(expression, Arithmetic):
        inner, operation = _arithmetic(expression)
    elif isinstance(expression, Item):
        index = expression.index
        items = list(index.items) if isinstance(index, bytecode.Tuple) else []
        while len(items) > 2 and items[-1] == _FULL:
            items.pop()
        if len(items) == 2 and items[0] == _FULL and _constant(items[1], int) == -1:
            inner, operation = expression.value, Operation("last_step", (len(index.items),))
    elif isinstance(expression, Call) and expression.function in _FUNCTIONS:
        inner, operation = _call(expression)
    if operation is None:
        return None
    before = _operations(inner)
    return None if before is None else [*before, operation]


def _constant(expression: Any, *kinds: type) -> Any:
    """The value of a constant that is exactly of one of these types, else None."""
    if isinstance(expression, Constant) and type(expression.value) in kinds:
        return expression.value
    return None


def _arithmetic(expression: Arithmetic) -> tuple[Any, Operation | None]:
    left, right = (_constant(side, int, float) for side in (expression.left, expression.right))
    number, inner = (right, expression.left) if right is not None else (left, expression.right)
    if number is None or not math.isfinite(number):
        return None, None
    if right is None and expression.operator not in "+*":
        return None, None  # 1 - x, 1 / x
    if expression.operator == "/" and number == 0:
        return None, None
    return inner, Operation(_ARITHMETIC[expression.operator], (number,))


def _call(expression: Call) -> tuple[Any, Operation | None]:
    name, parameters = _FUNCTIONS[expression.function]
    if not expression.args or len(expression.args) > 1 + len(parameters):
        return None, None
    given = dict(zip(parameters, expression.args[1:], strict=False))
    if set(given) & set(expression.kwargs) or set(expression.kwargs) - set(parameters):
        return None, None
    given |= expression.kwargs
    axes = given.get(parameters[0])
    value = _constant(axes, int, tuple)
    if isinstance(axes, bytecode.Tuple) or value is None:
        return None, None
    values = value if isinstance(value, tuple) else (value,)
    if not all(type(axis) is int for axis in values):
        return None, None
    if name == "expand_dims" and isinstance(value, tuple):
        return None, None
    keepdims = given.get("keepdims", Constant(False))
    if _constant(keepdims, bool) is None:
        return None, None
    return expression.args[0], Operation(name, values, keepdims.value)


# ---- as a layer


def as_model(
    operations: Sequence[Operation], shape: tuple[int | None, ...], dtype: str, name: str
) -> keras.Model:
    """A functional model of `keras.ops`, which stands as a layer where a Lambda stood.

    Args:
        operations: in the order in which they are computed.
        shape: `(batch, *axes)` of the input, None for an unknown size.
        dtype: of the input.
        name: of the Lambda.

    Raises:
        ValueError: if an operation does not fit the shape.
    """
    inputs = keras.Input(batch_shape=(None, *shape[1:]), dtype=dtype)
    x = inputs
    for operation in operations:
        x = operation(x)
    return keras.Model(inputs, x, name=name)


def text(operations: Sequence[Operation]) -> str:
    """Operations in words, in the order in which they are computed."""
    return ", ".join(map(str, operations))

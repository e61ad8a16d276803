"""What can be seen in arrays before a model computes with them: mistakes that make no error.

Keras takes a NaN, a label that no output stands for, or a marker that nothing equals, and
trains on. `SensorModel` asks these functions first.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import keras
import numpy as np

from multibackend_lstm.data.statistics import to_numpy
from multibackend_lstm.layers.validation import Shape, axis_names, describe_shape

# Numbers of an array that are looked at, its first samples: a pass over them takes some 20 ms.
LOOKED_AT = 10_000_000


def as_array(owner: str, argument: str, x: Any) -> np.ndarray:
    """A NumPy array of numbers, or an error that says what else it is.

    Args:
        owner: name of the model for messages.
        argument: name of the argument for messages.
        x: array, tensor, or anything else.

    Raises:
        ValueError: for tables, sequences of unequal arrays, strings and other objects.
    """
    if hasattr(x, "columns") and hasattr(x, "to_numpy"):
        raise ValueError(
            f"{owner}: `{argument}` is a {type(x).__name__}. Pass `{argument}.to_numpy()`, in the "
            "layout (batch, time, channels, features). A table of one recording is (time, "
            "columns): `table.to_numpy().reshape(1, len(table), channels, features)`."
        )
    if isinstance(x, (list, tuple)):
        shapes = {np.shape(item) for item in x if hasattr(item, "shape")}
        if len(shapes) > 1:
            raise ValueError(
                f"{owner}: `{argument}` is a list of {len(x)} arrays of unequal shapes, such as "
                f"{' and '.join(map(str, sorted(shapes)[:2]))}. Pad them by "
                "`multibackend_lstm.pad_sequences`, and use build_model(..., lengths=True)."
            )
    array = to_numpy(x)
    if array.dtype == object:
        raise ValueError(
            f"{owner}: `{argument}` is an array of objects, of shape {array.shape}: series of "
            f"unequal length, perhaps. Pad them by `multibackend_lstm.pad_sequences(list("
            f"{argument}))`, and use build_model(..., lengths=True)."
        )
    if array.dtype.kind in "USTmM":
        raise ValueError(
            f"{owner}: `{argument}` must hold numbers. Received dtype {array.dtype}, such as "
            f"{array.reshape(-1)[:1].tolist()}. "
            + (
                "Number the classes: `names, y = numpy.unique(y, return_inverse=True)`."
                if argument == "y"
                else "Convert it, for instance by `x.astype('float32')`."
            )
        )
    return array


def check_shape(owner: str, x: Any, expected: Shape) -> None:
    """Raise a ValueError that says what the axes seem to be, unless the shape is the expected.

    Args:
        owner: name of the model for messages.
        x: anything with a `shape`.
        expected: `(batch, time, *axes)`, None where any size will do.
    """
    shape = tuple(x.shape)

    def fits(shape: Shape) -> bool:
        return len(shape) == len(expected) and all(
            None in (e, s) or e == s for s, e in zip(shape, expected, strict=True)
        )

    if fits(shape):
        return
    message = f"{owner}: `x` must have the shape {describe_shape(expected)}. Received {shape}. "
    if fits((None, *shape)):
        remedy = "One series lacks the batch axis: pass `x[None]`."
        if len(shape) > 2 and shape == tuple(expected[1:]):
            remedy += (
                " If these are many, the model was built with the batch axis counted: use "
                "build_model(x.shape[1:], ...)."
            )
    elif (
        3 in (len(shape), len(expected))
        and math.prod(shape[2:]) == math.prod(e or 0 for e in expected[2:])
        and fits((*shape[:2], *expected[2:]))
    ):
        remedy = (
            f"Its last axes hold as many numbers: split them by "
            f"`multibackend_lstm.unflatten_features(x, {tuple(expected[2:])})`."
            if len(shape) == 3
            else "Its last axes hold as many numbers: merge them by "
            "`multibackend_lstm.flatten_features(x)`."
        )
    else:
        orders = [
            order
            for order in permutations(range(1, len(shape)))
            if fits((shape[0], *(shape[axis] for axis in order)))
        ]
        names = axis_names(len(shape))
        remedy = "Axis by axis: " + ", ".join(
            f"{name} {size} (must be {e})"
            for name, size, e in zip(names, shape, expected, strict=False)
            if e not in (None, size)
        )
        if len(shape) != len(expected):
            remedy = f"It has {len(shape)} axes in place of {len(expected)}."
        if len(orders) == 1:
            remedy = (
                "Its axes are in another order, channels first perhaps: "
                f"pass `numpy.transpose(x, {(0, *orders[0])})`."
            )
        elif "channel" in remedy or "feature" in remedy:
            remedy += ". Build the model for this number of channels and features."
    raise ValueError(message + remedy)


def check_values(owner: str, x: np.ndarray, masking: float | None) -> None:
    """Answer missing values that nothing marks, and a marker that cannot be right.

    Args:
        owner: name of the model for messages.
        x: `(batch, time, *axes)`, its first samples.
        masking: the value that marks missing steps; None where there is none.

    Raises:
        ValueError: for a NaN or an infinite value outside of masked steps.

    Warns:
        UserWarning: for a `masking` value that never occurs, or that masks most steps.
    """
    valid: Any = True
    if masking is not None:
        valid = (x != masking).any(axis=-1, keepdims=True)
        masked_steps = ~valid.reshape(*x.shape[:2], -1).any(axis=2)
        if valid.all():
            message = f"no step of `x` equals masking={masking!r}: nothing is masked"
            if x.size:
                message += f" (its values are from {x.min():.4g} to {x.max():.4g})"
            warnings.warn(f"{owner}: {message}.", stacklevel=4)
        elif masked_steps.mean() > 0.5:
            warnings.warn(
                f"{owner}: {masked_steps.mean():.0%} of the steps equal masking={masking!r} and "
                "are masked. If that is a reading, choose a value that does not occur; if it is "
                "padding, sort series of like length into batches of their own.",
                stacklevel=4,
            )
    if x.dtype.kind != "f":
        return
    bad = np.argwhere(~np.isfinite(x) & valid)
    if len(bad):
        places = {"batch": "sample", "time": "step", "channels": "channel", "features": "feature"}
        names = [places.get(name, name) for name in axis_names(x.ndim)]
        where = ", ".join(f"{name} {at}" for name, at in zip(names, bad[0], strict=True))
        raise ValueError(
            f"{owner}: `x` holds {x[tuple(bad[0])]} at {where}, and {len(bad)} such values in "
            f"{len({row[0] for row in bad.tolist()})} samples. Mark missing steps: "
            "build_model(..., masking=-1e9) and `numpy.nan_to_num(x, nan=-1e9)`; a single missing "
            "reading is better filled in. fit(..., check_data=False) leaves this check out."
        )


def check_lengths(owner: str, lengths: np.ndarray, time: int) -> None:
    """Raise a ValueError for a length that is not a whole number of steps in `[0, time]`."""
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"{owner}: `lengths` must hold one integer a sample, of shape (batch,), as "
            f"`pad_sequences` returns it. Received dtype {lengths.dtype}, shape {lengths.shape}."
        )
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= time:
        raise ValueError(
            f"{owner}: `lengths` must lie in [0, {time}], the time steps of `x`. Received "
            f"lengths from {lengths.min()} to {lengths.max()}."
        )


def check_labels(owner: str, y: np.ndarray, loss: str, outputs: int) -> None:
    """Raise a ValueError for labels that no output of the model stands for.

    Args:
        owner: name of the model for messages.
        y: the labels.
        loss: name of the loss, such as `"sparse_categorical_crossentropy"`.
        outputs: number of outputs.
    """
    if y.dtype.kind == "f" and np.isnan(y).any():
        raise ValueError(
            f"{owner}: `y` holds NaN, {int(np.isnan(y).sum())} times. Leave those samples out."
        )
    if not y.size:
        return
    lowest, highest = y.min(), y.max()
    if loss == "sparse_categorical_crossentropy" and not (lowest >= 0 and highest < outputs):
        remedy = (
            "They seem to count from 1: pass `y - 1`."
            if lowest >= 1 and highest == outputs
            else "Number the classes from 0: `names, y = numpy.unique(y, return_inverse=True)`, "
            "and build the model with outputs=len(names)."
        )
        raise ValueError(
            f"{owner}: `y` must hold classes from 0 to {outputs - 1}, of outputs={outputs}. "
            f"Received labels from {lowest} to {highest}. {remedy}"
        )
    if "crossentropy" in loss and "sparse" not in loss and not (lowest >= 0 and highest <= 1):
        raise ValueError(
            f"{owner}: `y` must lie in [0, 1] for {loss}. Received values from {lowest} to "
            f"{highest}. "
            + (
                "For classes given as numbers use sparse_categorical_crossentropy."
                if loss.startswith("categorical")
                else "Number the two classes 0 and 1: `y = (y == y.max()).astype('float32')`."
            )
        )


def check_loss(owner: str, loss: str, from_logits: bool, activation: str, outputs: int) -> None:
    """Raise a ValueError for a cross-entropy that does not fit the activation of the outputs."""
    if not loss.endswith("crossentropy"):
        return
    if activation == "linear" and not from_logits:
        task = "binary" if outputs == 1 else "multiclass"
        raise ValueError(
            f"{owner}: the loss {loss} needs probabilities, and the outputs are linear: "
            f'task="regression". Build the model with task="{task}", or give the loss '
            "from_logits=True."
        )
    if activation != "linear" and from_logits:
        raise ValueError(
            f"{owner}: the outputs are probabilities ({activation}), and the loss {loss} has "
            "from_logits=True. Leave from_logits out."
        )
    if "categorical" in loss and outputs == 1:
        raise ValueError(
            f"{owner}: the loss {loss} of one output is always the same. Use binary_crossentropy, "
            'or build the model with task="multiclass" and outputs=<number of classes>.'
        )


def is_dataset(x: Any) -> bool:
    """Whether `x` gives batches, in place of being arrays."""
    return not isinstance(x, (list, tuple, Mapping)) and not hasattr(x, "shape")


def first_batch(x: Any, y: Any) -> tuple[Any, Any]:
    """The first samples of what `fit` takes: `(x, y)`, each None where it cannot be seen.

    Of data sets only a `keras.utils.PyDataset` shows its first batch without being begun, which
    would change the order in which others shuffle.
    """
    if not is_dataset(x):
        return x, y
    if not isinstance(x, keras.utils.PyDataset):
        return None, None
    batch = x[0]
    return (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)


def first_samples(x: np.ndarray) -> np.ndarray:
    """As many samples as hold `LOOKED_AT` numbers, one at least."""
    return x[: max(1, LOOKED_AT // max(1, math.prod(x.shape[1:])))]


def by_name(names: Sequence[str], x: Any) -> dict[str, Any]:
    """What a model's inputs get, by their names; empty where `x` cannot be told apart."""
    if isinstance(x, Mapping):
        return {name: x[name] for name in names if name in x}
    if len(names) == 1:
        single = isinstance(x, (list, tuple)) and len(x) == 1 and hasattr(x[0], "shape")
        return {names[0]: x[0] if single else x}
    if isinstance(x, (list, tuple)) and len(x) == len(names):
        return dict(zip(names, x, strict=True))
    return {}

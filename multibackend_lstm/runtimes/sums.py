"""What the length of a sum adds to a noise floor: twins move its terms, not its partial sums."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multibackend_lstm.runtimes.calls import Call
from multibackend_lstm.runtimes.execution import Tensor
from multibackend_lstm.runtimes.noise_floor import ROUNDING, Key, off_one_by_one, one_by_one

#: The number of terms of a sum that the twins' own noise stands for, by dtype.
TERMS = {"float32": 256.0, "float16": 32.0, "bfloat16": 16.0}
#: A plain sum of more terms is a long one, which is looked for inside of layers too.
LONG = TERMS["float32"]
#: Runs that tell what long sums inside of a layer do to it.
DRAWS = 8
# How many times fewer terms in a plain sum of the narrow dtypes.
_PLAIN_SUM = 16


def is_looked_up(tensor: Tensor, call: Call) -> bool:
    """Whether this may be the gradient by a table, of which the call's integers name the rows."""
    return (
        len(call.tensors) == 1
        and call.tensors[0].dtype.kind in "iu"
        and tensor.values.ndim == 2
        and bool(call.tensors[0].size)
        and 0 <= int(call.tensors[0].min()) <= int(call.tensors[0].max()) < len(tensor.values)
    )


def terms(tensor: Tensor, call: Call) -> float | np.ndarray:
    """How many terms are added up for each element of what a call gives."""
    if tensor.kind == "weight gradient alone" and is_looked_up(tensor, call):
        rows = np.bincount(call.tensors[0].ravel(), minlength=len(tensor.values))
        return np.maximum(rows, 1.0)[:, None]
    given = [x for x in [*call.tensors, *call.upstream] if x.dtype.kind == "f" and x.ndim]
    if tensor.kind == "weight gradient alone":
        return max((x.size / x.shape[-1] for x in given if x.size), default=1.0)
    return max((x.size for x in given), default=1) / max(tensor.values.size, 1)


def lengthened(
    tensor: Tensor, call: Call, floor: float, elements: np.ndarray, plain: bool
) -> tuple[float, np.ndarray]:
    """The floors of a tensor and of its elements, with what the length of their sums adds.

    The twins move what is added up, not what is added up already. A plain sum, such as the
    gradient of a bias or a mean, is added up one term after the other by a healthy backend too; a
    product of matrices, such as the gradient of a kernel, in blocks.
    """
    count = terms(tensor, call)
    most = float(np.max(count))
    if plain and call.dtype == "float32" and tensor.values.dtype.kind == "f" and most > 1:
        rounding = ROUNDING[call.dtype]
        of_each = np.where(np.isfinite(tensor.values), tensor.values, 0.0)
        off = _off_alike(tensor, call)
        longer = np.hypot(one_by_one(elements, of_each, count, rounding), off)
        if np.ndim(count):
            return float(np.hypot(floor, rms(longer))), longer
        return float(np.hypot(one_by_one(floor, rms(of_each), most, rounding), rms(off))), longer
    most *= _PLAIN_SUM if plain else 1
    factor = math.sqrt(1 + most / TERMS.get(call.dtype, TERMS["float32"]))
    return floor * factor, elements * factor


def _off_alike(tensor: Tensor, call: Call) -> np.ndarray:
    """How far float32 is off a sum of just what comes back, which the gradient of a bias is."""
    shape = tensor.values.shape
    for given in call.upstream if "gradient" in tensor.kind else ():
        if shape and given.ndim and shape[-1] == tensor.values.size == given.shape[-1]:
            exact, off = off_one_by_one(given)
            if np.allclose(exact, tensor.values.ravel(), rtol=1e-6, atol=0):
                return off.reshape(shape)
    return np.zeros(shape)


def axes_of(operation: Any, tensors: Sequence[np.ndarray]) -> tuple[int, ...]:
    """The axes that an operation says that it goes along; none where they are not long."""
    named = getattr(operation, "axes", getattr(operation, "axis", None))
    floating = [x for x in tensors if x.dtype.kind == "f" and x.ndim]
    if named is None or not floating:
        return ()
    ndim = max(x.ndim for x in floating)
    axes = named if isinstance(named, (list, tuple)) else [named]
    if not all(isinstance(axis, int) and -ndim <= axis < ndim for axis in axes):
        return ()
    found = tuple(sorted({axis % ndim for axis in axes}))
    shape = next(x.shape for x in floating if x.ndim == ndim)
    return found if math.prod(shape[axis] for axis in found) > LONG else ()


def may_be_long(operation: Any, call: Call) -> bool:
    """Whether a call of an operation may add up many terms, by its axes and sizes."""
    given = [x.size for x in [*call.tensors, *call.upstream] if x.dtype.kind == "f" and x.size]
    differ = bool(given) and max(given) / min(given) > LONG
    return differ or bool(axes_of(operation, call.tensors))


def beside_their_terms(
    run: Callable[..., Sequence[Tensor]],
    call: Call,
    axes: tuple[int, ...],
    exact: Mapping[Key, Tensor],
) -> dict[Key, np.ndarray]:
    """How far long sums along some axes move each element of what is as large as their terms.

    Such as a softmax, or the gradient of a variance: an element is made of its own term and of a
    sum. To be off by the rounding of its partial sums is for the sum as if its terms were moved,
    all to one side and, where they cancel, each by itself (`one_by_one` has the sizes). So half of
    the terms are moved, and what that does to the elements of the other half is due to the sum.
    """
    first = next(x for x in call.tensors if x.dtype.kind == "f" and x.ndim > axes[-1])
    shape = first.shape
    along = tuple(n if axis in axes else 1 for axis, n in enumerate(shape))
    count = math.prod(along)
    size = ROUNDING[call.dtype] * math.sqrt(count)
    squares: dict[Key, Any] = {}
    for draw in range(DRAWS // 2):
        rng = np.random.default_rng(draw)
        half = rng.random(along) < 0.5
        # Both are of half the terms alone.
        walk = size * (2 * rng.choice([-1, 1]) / 3 + rng.uniform(-1, 1, shape) / math.sqrt(3))
        for moved in (half, ~half):
            factor = 1 + walk * moved

            def given(x: np.ndarray, factor: np.ndarray = factor) -> np.ndarray:
                return x * factor if x.shape == shape and x.dtype.kind == "f" else x

            for tensor in run(0, 0.0, given=given):
                key = (tensor.kind, tensor.path)
                if key in exact and tensor.values.shape == shape:
                    distance = np.square(tensor.values - exact[key].values)
                    squares[key] = squares.get(key, 0.0) + np.where(moved, 0.0, distance)
    return {key: np.sqrt(total / (DRAWS // 2)) for key, total in squares.items()}


def path_of(name: str, place: int, count: int) -> str:
    """The path of one of several tensors of a call."""
    return name + (f"[{place}]" if count > 1 else "")


def rms(x: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0

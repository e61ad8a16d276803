"""The noise floor of a tensor: how far the truth moves within the rounding of a dtype.

Rosinski and Williamson 1997 (doi:10.1137/S1064827594275534) ported climate models so: a port is
right when it differs from the original no more than the original does from itself after a change
in the last bit of its input. Here the perturbed runs, the twins, move inputs, weights and, in
`execution.py`, what each layer returns.
"""

import collections
import functools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

#: Half a unit in the last place of the floating dtypes, relative to the number.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
#: The float64 reference's own.
FLOAT64_ROUNDING = 2.0**-53
# The rounding of so few partial sums is within what a limit of 20 floors leaves to healthy sums;
# with more of it an error of 1e-5 in the gradient of a bias, whose terms cancel, was lost.
_FEW_TERMS = 32
# The least move that is sure to change a float64.
_FLOAT64_MOVE = 2.0**-52

Key = tuple[str, str]


class NoiseFloor:
    """How far tensors move in the twins.

    Every other twin is a fine one where the reference computes in float64: it is moved within the
    rounding of float64, and how far it moves is scaled up. Every operation inside of a layer and
    in the gradients then rounds as it does in the dtype in question, only smaller. The gradient
    of a bias before a BatchNormalization, for one, is 0 but for that: no move of inputs and
    weights shows its noise. The coarse twins have what does not scale: a maximum that changes
    places, a unit that falls silent.

    Args:
        rounding: of the dtype in question, relative to a number.
        in_float64: whether the twins compute in float64, so that there are fine ones.
        elements: whether to have a floor of every element too.
    """

    def __init__(self, rounding: float, *, in_float64: bool, elements: bool = False) -> None:
        self._rounding, self._in_float64, self._elements = rounding, in_float64, elements
        # The mean squared distance of each twin, of the coarse ones and of the fine ones.
        self._coarse: dict[Key, list[float]] = collections.defaultdict(list)
        self._fine: dict[Key, list[float]] = collections.defaultdict(list)
        # The squared distances of the elements, added, of the coarse ones and of the fine ones.
        self._sums: dict[Key, list[Any]] = collections.defaultdict(lambda: [0.0, 0.0])

    def _is_fine(self, twin: int) -> bool:
        return self._in_float64 and twin % 2 == 0

    def size(self, twin: int) -> float:
        """How far, relative to a number, to move what a twin starts from; they count from 1."""
        return _FLOAT64_MOVE if self._is_fine(twin) else self._rounding

    def add(self, twin: int, key: Key, values: np.ndarray, exact: np.ndarray) -> None:
        """Take note of a twin's tensor, beside the one of the run that is not perturbed."""
        squares, scale = self._coarse, 1.0
        if self._is_fine(twin):
            squares, scale = self._fine, self._rounding / FLOAT64_ROUNDING
        squares[key].append(_mean_square(values, exact) * scale**2)
        if self._elements:
            difference = values.astype("float64") - exact
            squared = np.square(np.where(np.isfinite(difference), difference, 0.0) * scale)
            self._sums[key][squares is self._fine] += squared

    def of(self, key: Key) -> tuple[float, float]:
        """The floor of a tensor, and the largest distance of a coarse twin."""
        rough, smooth = self._coarse[key], self._fine[key]
        # Over many steps small differences grow until they are as large as can be, which scaled
        # ones do not know: the twins' course over training is that of the coarse ones.
        kinds = (rough,) if key[0] == "trajectory" else (rough, smooth)
        floors = [(sum(squares) / len(squares)) ** 0.5 for squares in kinds if squares]
        return max(floors, default=0.0), max(rough, default=0.0) ** 0.5

    def of_elements(self, key: Key) -> np.ndarray:
        """The floor of each element of a tensor, root mean square over the twins."""
        counts = (len(self._coarse[key]), len(self._fine[key]))
        means = [x / n for x, n in zip(self._sums[key], counts, strict=True) if n]
        return np.asarray(np.sqrt(functools.reduce(np.maximum, means, 0.0)))


def _mean_square(a: np.ndarray, b: np.ndarray) -> float:
    """Over the elements that are finite in both."""
    difference = a.astype("float64") - b.astype("float64")
    finite = difference[np.isfinite(difference)]
    return float(np.mean(np.square(finite))) if finite.size else 0.0


def perturbed(
    x: np.ndarray, rng: np.random.Generator, rounding: float, fixed: Collection[float] = ()
) -> np.ndarray:
    """Floating values moved at random within their rounding; zeros and integers stay.

    Args:
        x: the values.
        rng: where the moves come from.
        rounding: the largest move, relative to a number.
        fixed: numbers that mean something by being exactly these, such as what marks masked steps.
    """
    if not np.issubdtype(x.dtype, np.floating):
        return x
    exact = x.astype("float64")
    # Not `x * (1 + ...)`, which would round the smallest moves of a float64 downwards.
    moved: np.ndarray = exact + exact * rng.uniform(-rounding, rounding, x.shape)
    return np.where(np.isin(x, list(fixed)), exact, moved) if fixed else moved


def one_by_one(
    moved: np.ndarray | float, total: np.ndarray | float, terms: np.ndarray | float, rounding: float
) -> np.ndarray:
    """The floor of a sum that a healthy backend may add up one term after the other.

    The twins move the terms; what they do not show is the rounding of each partial sum. After `k`
    of `n` terms that is about `k / n` of the total, and a random walk that ends in it. So the
    squares of the partial sums add up to `n / 3` times that of the total, and `n / 6` times what
    the squares of the terms add up to, which the twins do show.

    Args:
        moved: how far the sum moves when its terms are moved within their rounding.
        total: the sum.
        terms: their number.
        rounding: of the dtype, relative to a number.
    """
    walk = np.square(moved) * (1 + np.maximum(terms - _FEW_TERMS, 0) / 6)
    # Rounding is uniform: its square is a third of the largest one's.
    return np.asarray(np.sqrt(walk + np.square(np.multiply(total, rounding)) * terms / 9))


def off_one_by_one(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of all axes but the last, and how far float32 is off one term after the other.

    Terms that are alike, as behind a mean, are all rounded to the same side: that adds up, which
    `one_by_one` does not know.
    """
    rows = terms.reshape(-1, terms.shape[-1])
    exact = rows.sum(0, dtype="float64")
    sequential = np.zeros(rows.shape[-1], "float32")
    for start in range(0, len(rows), 4096):  # not to hold all partial sums
        block = np.concatenate([sequential[None], rows[start : start + 4096].astype("float32")])
        sequential = np.add.accumulate(block)[-1]
    return exact, np.abs(sequential - exact)


def rounding_of(dtype: str | None, layers: Mapping[str, Any], float64: bool) -> float:
    """The coarsest rounding of the dtypes that a model's layers compute in.

    Args:
        dtype: the policy that all layers are given, or None.
        layers: the layers' module, class and config by path.
        float64: whether the twins compute in float64.
    """
    named = [dtype] if dtype else [_policy(layer) for layer in layers.values()]
    narrow = [size for name in named for key, size in ROUNDING.items() if name and key in name]
    rounding = max(narrow, default=ROUNDING["float32"])
    # In the dtype itself only a move of a whole unit in the last place is sure to be one.
    return rounding if float64 else 2 * rounding


def compute_dtypes(dtype: str | None, layers: Mapping[str, Any]) -> dict[str, str]:
    """What a model's layers compute in, by path.

    Under "" is what operations without a layer do, and under "optimizer" what weights are kept in.

    Args:
        dtype: the policy that all layers are given, or None.
        layers: the layers' module, class and config by path.
    """
    policies = {path: dtype or _policy(layer) for path, layer in layers.items()}
    policies = {path: name if "float" in name else "float32" for path, name in policies.items()}
    named = {*policies.values()}
    common = named.pop() if len(named) == 1 else "float32"
    found = {path: name.removeprefix("mixed_") for path, name in policies.items()}
    kept = "float32" if common.startswith("mixed_") else common
    return {**found, "": common.removeprefix("mixed_"), "optimizer": kept}


def _policy(layer: Mapping[str, Any]) -> str:
    named = layer["config"].get("dtype") if isinstance(layer.get("config"), dict) else None
    if isinstance(named, dict):
        named = named.get("config", {}).get("name")
    return named if isinstance(named, str) else ""


def rounding_to(dtype: str, truth: np.ndarray, exact: bool) -> np.ndarray:
    """How far each element moves when it is rounded to a dtype.

    Args:
        dtype: the name of a target's dtype.
        truth: the values in float64.
        exact: whether they come from a float64 run; else they are rounded as the target's are.
    """
    if dtype not in ROUNDING:
        return np.zeros_like(truth)
    if dtype == "bfloat16" or not exact:  # the size of it, where the move itself is not known
        return truth * ROUNDING[dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = truth.astype(dtype).astype("float64") - truth
    return np.where(np.isfinite(rounded), rounded, 0.0)

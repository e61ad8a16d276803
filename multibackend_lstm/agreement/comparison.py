"""How far one tensor is from the truth, and whether that is more than rounding explains."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from multibackend_lstm.runtimes.noise_floor import rounding_to

#: The group of what each layer gives alone, and the part of a check that computes it.
ALONE = "layers alone"
#: What is judged together, in the order in which a fault spreads, and the kinds of its tensors.
GROUPS: Mapping[str, tuple[str, ...]] = {
    ALONE: (
        "layer alone",
        "layer alone in training",
        "update alone",
        "input gradient alone",
        "weight gradient alone",
    ),
    "layers": ("layer", "captured output"),
    "prediction": ("output", "output of a second batch"),
    "gradients": ("input gradient", "weight gradient"),
    "training": ("loss", "weight"),
}

#: Scores up to here agree. The largest of 300 healthy models is a sixth of it, as a rule they are
#: below 5; docs/agreement_calibration.md has them all.
AGREES_UP_TO = 50.0
#: Scores above disagree; those between are suspicious. The least of 21 injected faults scores
#: four times as much.
DISAGREES_ABOVE = 200.0

#: Scores of a layer alone up to here agree, and above disagree, by the dtype that it computes in:
#: there nothing piles up. Backends round to the narrow ones more seldom than the twins do, since
#: they add up in float32.
ALONE_UP_TO = {"float32": 20.0, "float16": 10.0, "bfloat16": 4.0}
#: Scores of healthy layers alone are up to here.
HEALTHY_ALONE = 5.0
#: The same of the worst element, over that element's own floor.
ALONE_WORST_UP_TO = {"float32": 300.0, "float16": 100.0, "bfloat16": 40.0}
# An element's floor, which few twins tell, is at least this share of its tensor's.
_LEAST_ELEMENT = 0.1

AGREES, SUSPICIOUS, DISAGREES = "agrees", "suspicious", "disagrees"


@dataclass(frozen=True)
class Comparison:
    """One tensor of one target against the truth.

    Attributes:
        kind: `"layer"`, `"weight gradient"`, ...
        path: which one.
        verdict: `"agrees"`, `"suspicious"` or `"disagrees"`.
        score: root mean square distance from the truth, over the noise floor.
        worst_score: the largest distance of an element over that element's floor; 0 where elements
            have none.
        layer: path of the layer or operation, of a layer alone.
        peers: the other targets that differ from the truth too, but not from this one.
        nondeterministic: whether the target gave something else when it was asked again, so that
            its own spread is a part of the floor.
        of_twins: of a layer alone, its score over the floor without what the length of sums adds.
        flips: how far a decision near a tie, as of a ReLU, moves a tensor of the whole model.
        assigned: whether the layer assigned the weight that this is the gradient by.
        noticed: the smallest error of the whole tensor, relative to it, that would have disagreed.
        problem: what else is wrong: a shape, a dtype, a missing tensor, a NaN on one side.
        floor: the noise floor, with the rounding of the truth itself to the target's dtype.
        rms: root mean square distance over the elements that are finite in both.
        size: root mean square of the truth, over the same.
        max_absolute: largest distance.
        max_relative: largest distance over the truth's size, where that is not 0.
        max_ulp: largest distance in units of float32's last place.
        cosine: of the angle between both; 1 is the same direction.
        argmax_changes: rows whose largest element is another one; None where that means nothing.
        nan: number of NaN here and in the truth.
        inf: number of infinities here and in the truth.
        worst: index of the element with the largest distance.
        values: that element here and in the truth.
        shape: of the tensor.
    """

    kind: str
    path: str
    verdict: str
    score: float
    problem: str | None = None
    floor: float = 0.0
    rms: float = 0.0
    size: float = 0.0
    max_absolute: float = 0.0
    max_relative: float = 0.0
    max_ulp: float = 0.0
    cosine: float = 1.0
    argmax_changes: int | None = None
    nan: tuple[int, int] = (0, 0)
    inf: tuple[int, int] = (0, 0)
    worst: tuple[int, ...] = ()
    values: tuple[float, float] = (0.0, 0.0)
    shape: tuple[int, ...] = ()
    worst_score: float = 0.0
    layer: str | None = None
    peers: tuple[str, ...] = ()
    noticed: float = 0.0
    nondeterministic: bool = False
    assigned: bool = False
    of_twins: float = 0.0
    flips: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        found = {
            key: json_number(value) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }
        found["values"] = [json_number(value) for value in self.values]
        found["peers"] = list(self.peers)
        return found


def json_number(value: float) -> float | str:
    """A number, or the name of one that JSON has not."""
    return value if np.isfinite(value) else str(float(value))


def verdict_alone(score: float, worst_score: float, dtype: str) -> str:
    """What the scores of a layer that computes in a dtype mean."""
    agrees = score <= limit_alone(dtype) and worst_score <= ALONE_WORST_UP_TO.get(
        dtype, ALONE_WORST_UP_TO["float32"]
    )
    return AGREES if agrees else DISAGREES


def limit_alone(dtype: str) -> float:
    """Up to which score a layer that computes in a dtype agrees."""
    return ALONE_UP_TO.get(dtype, ALONE_UP_TO["float32"])


def verdict_of(score: float) -> str:
    """What the score of a tensor of the whole model means."""
    if score <= AGREES_UP_TO:
        return AGREES
    return SUSPICIOUS if score <= DISAGREES_ABOVE else DISAGREES


def compare(
    kind: str,
    path: str,
    values: np.ndarray,
    truth: np.ndarray,
    *,
    floor: float,
    elements: np.ndarray | None = None,
    layer: str | None = None,
    computed_in: str = "float32",
    dtype: str = "float32",
    expected_dtype: str | None = None,
    exact: bool = True,
) -> Comparison:
    """Judge one tensor.

    Example:
        >>> truth = np.linspace(0.0, 1.0, 20)
        >>> comparison = agreement.compare("output", "dense", truth + 1e-3, truth, floor=1e-7)
        >>> comparison.verdict
        'disagrees'

    Args:
        kind: of tensor.
        path: which one.
        values: what a target computed.
        truth: what it should be.
        floor: how far the truth moves when inputs and weights are moved within their rounding.
        elements: the same of each element, for a layer alone.
        layer: its path.
        computed_in: the dtype that it computes in.
        dtype: the name of the target's dtype.
        expected_dtype: the dtype it should have; None if any floating dtype will do.
        exact: whether the truth is float64; else it is rounded as the values are.

    Returns:
        The comparison. A wrong shape or dtype disagrees, as does a NaN or infinity on one side.
    """
    problem = _form_problem(values, truth, dtype, expected_dtype)
    if problem is not None:
        return Comparison(
            kind, path, DISAGREES, math.inf, problem, floor, shape=values.shape, layer=layer
        )
    if not values.size:
        return Comparison(kind, path, AGREES, 0.0, floor=floor, shape=values.shape, layer=layer)
    wide = truth.astype("float64")
    ours = values.astype("float64")
    nan = (int(np.isnan(ours).sum()), int(np.isnan(wide).sum()))
    inf = (int(np.isinf(ours).sum()), int(np.isinf(wide).sum()))
    finite = np.isfinite(ours) & np.isfinite(wide)
    same = finite | (np.isnan(ours) & np.isnan(wide)) | (ours == wide)
    # A training that diverges leaves float32 long before it leaves float64.
    overflown = np.isnan(ours) | (np.isinf(ours) & (np.sign(ours) == np.sign(wide)))
    same |= overflown & (np.abs(wide) > _largest(dtype))
    distance = np.abs(np.where(finite, ours, 0.0) - np.where(finite, wide, 0.0))
    rms = _rms(distance[finite])
    rounding = rounding_to(dtype, wide, exact)
    floor = float(np.hypot(floor, _rms(rounding[finite])))
    score = _over(rms, floor)
    worst_score = 0.0
    if elements is not None:
        limits_of_each = np.maximum(np.hypot(elements, rounding), _LEAST_ELEMENT * floor)
        scores = _over_each(distance, limits_of_each)
        worst_score = float(np.max(scores))
    if not same.all():
        problem = "NaN or infinity on one side"
        score = math.inf
        worst = np.unravel_index(int(np.argmin(same)), same.shape)
    else:
        most = np.argmax(distance if elements is None else scores)
        worst = np.unravel_index(int(most), distance.shape)
    if elements is None:
        verdict, limit = verdict_of(score), DISAGREES_ABOVE
    else:
        verdict = verdict_alone(score, worst_score, computed_in)
        limit = limit_alone(computed_in)
    size = np.abs(np.where(finite, wide, 0.0))
    limits = np.finfo("float32")
    unit = np.spacing(np.clip(size, limits.tiny, limits.max / 2).astype("float32"))
    return Comparison(
        kind=kind,
        path=path,
        verdict=verdict,
        score=score,
        problem=problem,
        floor=floor,
        rms=rms,
        size=_rms(wide[finite]),
        max_absolute=float(distance.max()),
        max_relative=float(np.max(distance[size > 0] / size[size > 0], initial=0.0)),
        max_ulp=float(np.max(distance / unit.astype("float64"))),
        cosine=_cosine(ours[finite], wide[finite]),
        argmax_changes=_argmax_changes(kind, ours, wide),
        nan=nan,
        inf=inf,
        worst=tuple(int(i) for i in worst),
        values=(float(ours[worst]), float(wide[worst])),
        shape=tuple(values.shape),
        worst_score=worst_score,
        layer=layer,
        noticed=limit * _over(floor, _rms(wide[finite])),
    )


def missing(
    kind: str, path: str, problem: str = "the tensor is missing", layer: str | None = None
) -> Comparison:
    """A tensor that only the target or only the truth has."""
    return Comparison(kind, path, DISAGREES, math.inf, problem, layer=layer)


def _form_problem(
    values: np.ndarray, truth: np.ndarray, dtype: str, expected_dtype: str | None
) -> str | None:
    if values.shape != truth.shape:
        return f"shape {values.shape} in place of {truth.shape}"
    kinds = {"f": "floating", "i": "integer", "u": "integer", "b": "boolean"}
    found, wanted = kinds.get(values.dtype.kind), kinds.get(truth.dtype.kind)
    if found != wanted:
        return f"{found} values (dtype {dtype}) in place of {wanted} ones"
    if expected_dtype is not None and dtype != expected_dtype:
        return f"dtype {dtype} in place of {expected_dtype}"
    return None


def _over(value: float, floor: float) -> float:
    return value / floor if floor else (math.inf if value else 0.0)


def _over_each(distance: np.ndarray, floors: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance > 0, distance / floors, 0.0)


def _rms(x: np.ndarray) -> float:
    if not x.size:
        return 0.0
    largest = float(np.max(np.abs(x)))  # so that no square overflows or vanishes
    return largest * float(np.sqrt(np.mean(np.square(x / largest)))) if largest else 0.0


def _largest(dtype: str) -> float:
    """The largest number of a dtype; bfloat16's is about that of float32."""
    dtype = "float32" if dtype == "bfloat16" else dtype
    return float(np.finfo(dtype).max) if dtype.startswith("float") else np.inf


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x / np.max(np.abs(x), initial=0.0) if np.any(x) else x for x in (a, b))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a.ravel(), b.ravel()) / norms) if norms else 1.0


def _argmax_changes(kind: str, ours: np.ndarray, exact: np.ndarray) -> int | None:
    if not kind.startswith("output") or ours.ndim < 2 or ours.shape[-1] < 2:
        return None
    return int(np.sum(np.argmax(ours, -1) != np.argmax(exact, -1)))

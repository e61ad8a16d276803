"""The whole model is confirmed before it accuses: by what its healthy layers do, and by ties.

It is a check of what no layer shows alone: wiring, masks, `predict`, the trainer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multibackend_lstm.agreement.comparison import (
    AGREES,
    AGREES_UP_TO,
    ALONE,
    GROUPS,
    HEALTHY_ALONE,
    Comparison,
    verdict_of,
)
from multibackend_lstm.agreement.report import TargetResult
from multibackend_lstm.agreement.truth import Key, Truth
from multibackend_lstm.runtimes.workers import Worker, WorkerError

#: Pairs of twins that show what decisions near a tie do.
FLIP_PAIRS = 16
# A tensor that is as far off as this many times the farthest of these pairs agrees.
_FLIPS = 2.5
# What of the layers alone bears on each group of the whole model.
_BEARING: Mapping[str, tuple[str, ...]] = {
    "layers": ("layer alone", "layer alone in training"),
    "prediction": ("layer alone", "layer alone in training"),
    "gradients": tuple(kind for kind in GROUPS[ALONE] if kind != "update alone"),
    "training": GROUPS[ALONE],
}


def confirm_whole(
    results: Sequence[TargetResult],
    truth: Truth,
    reference: Worker | None,
    request: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Judge again what is off in the whole model of targets whose layers are right alone.

    Args:
        results: of the targets, with their layers alone; their comparisons are replaced.
        truth: of the case.
        reference: that computed it; None where it was loaded from a file.
        request: for the reference, to run the model.
        arrays: of the case.
    """
    for result in results:
        _in_units_of_the_layers(result)
    off = [result for result in results if any(_is_open(result, c) for c in result.comparisons)]
    if not off or reference is None or not truth.float64:
        return
    try:
        reference.ask({**request, "flips": FLIP_PAIRS}, arrays)
        answers = list(reference.answers("done"))
    except WorkerError as error:
        for result in off:
            result.not_compared["decisions near a tie"] = f"the reference failed: {error}"
        return
    flips: dict[Key, float] = {
        (header["flips"]["kind"], header["flips"]["path"]): header["flips"]["size"]
        for header, _ in answers
        if "flips" in header
    }
    for result in off:
        for place, c in enumerate(result.comparisons):
            most = flips.get((c.kind, c.path), 0.0)
            if most and _is_open(result, c):
                result.comparisons[place] = replace(_over(c, c.floor, most), flips=most)


def _is_open(result: TargetResult, c: Comparison) -> bool:
    """Whether a tensor of the whole model is off by some distance, and no layer alone is."""
    if c.kind in GROUPS[ALONE] or c.verdict == AGREES or c.problem is not None:
        return False
    return not any(other.verdict != AGREES for other in result.group(ALONE))


def _in_units_of_the_layers(result: TargetResult) -> None:
    """Let floors of the whole model know the long sums that those of its layers alone know."""
    for group, kinds in _BEARING.items():
        long = [
            c.of_twins
            for c in result.comparisons
            if c.kind in kinds and c.verdict == AGREES and c.of_twins > 2 * c.score
        ]
        factor = max(long, default=0.0) / HEALTHY_ALONE
        for place, c in enumerate(result.comparisons):
            if factor > 1 and c.kind in GROUPS[group] and _is_open(result, c):
                result.comparisons[place] = _over(c, c.floor * factor, 0.0)


def _over(c: Comparison, floor: float, flips: float) -> Comparison:
    """The same over another floor."""
    floor += flips * _FLIPS / AGREES_UP_TO
    score = c.rms / floor if floor else c.score
    return replace(c, floor=floor, score=score, verdict=verdict_of(score))

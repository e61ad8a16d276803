"""Every layer alone, on what the truth gives it: who is wrong where, and is it sure?"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multibackend_lstm.agreement.comparison import (
    AGREES,
    ALONE,
    DISAGREES,
    SUSPICIOUS,
    Comparison,
    compare,
    missing,
)
from multibackend_lstm.agreement.report import TargetResult
from multibackend_lstm.agreement.shrinking import Least, Leasts, shrink
from multibackend_lstm.agreement.truth import Key, Truth
from multibackend_lstm.runtimes.noise_floor import ROUNDING
from multibackend_lstm.runtimes.workers import Worker, WorkerError

#: Perturbed runs behind the floor of a tensor before it is accused.
CONFIRMING_TWINS = 64
#: Gives a worker that computes as the truth does, but in the dtype of the targets; None for none.
Witness = Callable[[], Worker | None]
#: The name of the worker that shows what the dtype of the targets does.
WITNESS = "witness"
# As far off as this many times another backend is what the dtype explains, up to so many times its
# rounding, relative to the tensor: as a sine is off at that number.
_AS_FAR_AS, _ROUNDINGS = 4.0, 2**13


def compare_alone(
    truth: Truth,
    reference: Worker | None,
    targets: Sequence[tuple[TargetResult, Worker]],
    twins: int,
    progress: Callable[[str], None],
    witness: Witness = lambda: None,
    leasts: Leasts | None = None,
) -> None:
    """Have every layer called alone, and add the comparisons to the targets' results.

    What is off is confirmed before it counts: the floor is taken from more twins, gradients at 0
    may be those of either side, and the target computes again. If it does not repeat itself to the
    bit, it is as far off as it may be from itself. What is off by no more than every other backend
    is, that of the truth in the same dtype too, accuses nobody: the dtype rounds what no twin
    moves, such as a constant inside of the layer. Then the layer is opened, and each of its
    operations is judged as it was.

    Args:
        truth: of the case; its tensors of the layers are filled in where there is a reference.
        reference: that computed the truth; None where it was loaded from a file.
        targets: result and worker of each that can call a layer.
        twins: perturbed runs that the noise floor is taken from.
        progress: is told what is being done.
        witness: of what the dtype does.
        leasts: gets the least call that shows each layer that is off; None for none.
    """
    for result, _ in targets:
        result.not_compared |= {f"{name} alone": why for name, why in truth.not_alone.items()}
    for number, header in enumerate(truth.calls):
        progress(f"{header['name']} alone")
        off = _compare_call(truth, reference, targets, twins, number, witness)
        if reference is None:
            continue
        if leasts is not None:
            for result, worker in off:
                progress(f"{header['name']} alone: shrinking what goes in")
                leasts.found += _least(truth, reference, result, worker, number, leasts)
        if off:
            _compare_inside(truth, reference, off, twins, number)


def _least(
    truth: Truth,
    reference: Worker,
    result: TargetResult,
    worker: Worker,
    number: int,
    leasts: Leasts,
) -> list[Least]:
    call = truth.calls[number]
    off = [
        c
        for c in result.comparisons
        if c.verdict == DISAGREES
        and c.layer == call["path"]
        and (c.kind, c.path) in truth.alone[number]
    ]
    arrays = truth.call_arrays(number)
    least = shrink(
        result.target, worker, reference, call, arrays, off, exact=truth.float64, leasts=leasts
    )
    return [] if least is None else [least]


def _compare_inside(
    truth: Truth,
    reference: Worker,
    targets: Sequence[tuple[TargetResult, Worker]],
    twins: int,
    number: int,
) -> None:
    """Open a layer, and compare its operations."""
    header, arrays = truth.calls[number], truth.call_arrays(number)
    request = {"do": "open", "call": header}
    inside = truth.inside(number)
    try:
        for answer, given in _sent(reference, request | {"record": True}, arrays):
            if "call" in answer:
                inside.add_call(answer["call"], given)
            elif "done" in answer:
                expected = answer["done"]
    except WorkerError as error:
        expected = {"refused": str(error)}
    opened = []
    for result, worker in targets:
        if "operations" in expected:
            try:
                ((answer, _),) = _sent(worker, request | {"record": False}, arrays)
            except WorkerError as error:
                answer = {"done": {"refused": str(error)}}
        else:
            answer = {"done": expected}
        if "refused" in answer["done"]:
            result.not_opened[header["path"]] = answer["done"]["refused"]
        elif answer["done"] != expected:
            result.not_opened[header["path"]] = "it consists of other operations there"
        else:
            opened.append((TargetResult(result.target, result.ready), worker, result))
    pairs = [(found, worker) for found, worker, _ in opened]
    for place in range(len(inside.calls)):
        _compare_call(inside, reference, pairs, twins, place, None)
    for found, _, result in opened:
        result.opened.setdefault(header["path"], []).extend(found.comparisons)


def _compare_call(
    truth: Truth,
    reference: Worker | None,
    targets: Sequence[tuple[TargetResult, Worker]],
    twins: int,
    number: int,
    witness: Witness | None,
) -> list[tuple[TargetResult, Worker]]:
    """Compare a call, without a witness one inside of a layer; returns the targets that are off."""
    header, arrays = truth.calls[number], truth.call_arrays(number)
    request = {"do": "alone", "call": header, "twins": 0, "inside": witness is None}
    # One that has ended is a failure already.
    targets = [(result, worker) for result, worker in targets if worker.alive]
    for _, worker in targets:
        worker.ask(request, arrays)
    if reference is not None:
        _fill(truth, reference, number, request | {"twins": twins}, arrays)
    answered = []
    for result, worker in targets:
        found = _collected(result, worker, header)
        if header["name"] in truth.not_alone:
            result.not_compared[f"{header['name']} alone"] = truth.not_alone[header["name"]]
        elif found is not None:
            answered.append((result, worker, found))
    compared = {r.target: _compared(r, truth, number, found) for r, _, found in answered}
    if any(_is_off(comparisons) for comparisons in compared.values()):
        if reference is not None:
            again = {"twins": CONFIRMING_TWINS, "kinks": True}
            _fill(truth, reference, number, request | again, arrays)
        for result, worker, found in answered:
            if _is_off(compared[result.target]):
                worker.ask(request, arrays)
                second = _collected(result, worker, header)
                compared[result.target] = _compared(result, truth, number, found, second)
        _find_peers(truth, number, compared, {r.target: found for r, _, found in answered})
        if witness is not None and truth.float64:
            _excuse(truth, number, compared, witness, request)
    for result, _, _ in answered:
        result.comparisons += compared[result.target]
    return [(r, worker) for r, worker, _ in answered if _is_off(compared[r.target])]


def _is_off(comparisons: Sequence[Comparison]) -> bool:
    return any(c.verdict == DISAGREES for c in comparisons)


def _sent(worker: Worker, request: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    if not worker.alive:
        raise WorkerError("it has ended")
    worker.ask(request, arrays)
    return worker.answers("done")


def _fill(
    truth: Truth,
    reference: Worker,
    number: int,
    request: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Have the reference make a call; what fails is in `not_alone` then."""
    try:
        if not reference.alive:
            raise WorkerError("it has ended")
        reference.ask(request, arrays)
        truth.fill(number, list(_received(reference)))
    except WorkerError as error:
        truth.not_alone[truth.calls[number]["name"]] = f"the reference failed: {error}"


def _received(worker: Worker) -> Any:
    for header, arrays in worker.answers("done"):
        if "tensor" in header:
            tensor = header["tensor"]
            yield (tensor["kind"], tensor["path"]), (tensor, arrays)


def _collected(
    result: TargetResult, worker: Worker, header: Mapping[str, Any]
) -> dict[Key, Any] | None:
    try:
        return dict(_received(worker))
    except WorkerError as error:
        result.failed.setdefault(ALONE, f"{header['name']}: {error}")
        return None


def _compared(
    result: TargetResult,
    truth: Truth,
    number: int,
    found: Mapping[Key, Any],
    second: Mapping[Key, Any] | None = None,
) -> list[Comparison]:
    """Every tensor of a call; with what the target computed when it was asked again."""
    layer = truth.calls[number]["path"]
    comparisons = []
    for key in truth.alone[number]:
        if key not in found:
            # Without gradients a target has only outputs.
            if result.ready["trains"] or key[0].startswith("layer"):
                comparisons.append(missing(*key, layer=layer))
            continue
        tensor, arrays = found[key]
        comparisons.append(_one(truth, number, key, tensor, arrays["values"], second))
    return comparisons


def _one(
    truth: Truth,
    number: int,
    key: Key,
    tensor: Mapping[str, Any],
    values: np.ndarray,
    second: Mapping[Key, Any] | None,
) -> Comparison:
    expected, exact = truth.alone[number][key], truth.alone_arrays(number, key)
    floor, elements = expected["floor"], exact["elements"]
    spread = None
    if second is not None and key in second:
        again = second[key][1]["values"]
        if again.shape == values.shape and values.dtype.kind == "f":
            spread = np.abs(again.astype("float64") - values)
            if not np.any(spread > 0):
                spread = None
    if spread is not None:
        floor = float(np.hypot(floor, np.sqrt(np.mean(np.square(spread)))))
        elements = np.hypot(elements, spread)
    compared = compare(
        *key,
        values,
        exact["values"],
        floor=floor,
        elements=elements,
        layer=truth.calls[number]["path"],
        computed_in=truth.calls[number]["dtype"],
        dtype=tensor["dtype"],
        exact=truth.float64,
    )
    assigned = bool(tensor.get("assigned") or expected.get("assigned"))
    # What is in the floor by the rounding of the truth alone, in that of the twins too.
    rounding = math.sqrt(max(compared.floor**2 - floor**2, 0.0))
    own = math.hypot(expected.get("of_twins", floor), rounding)
    return replace(
        compared,
        nondeterministic=spread is not None,
        assigned=assigned,
        of_twins=compared.rms / own if own else 0.0,
    )


def _excuse(
    truth: Truth,
    number: int,
    compared: dict[str, list[Comparison]],
    witness: Witness,
    request: Mapping[str, Any],
) -> None:
    """Take back what is off by no more than every other backend is, the truth's own too."""
    limit = _ROUNDINGS * ROUNDING.get(truth.calls[number]["dtype"], ROUNDING["float32"])
    places = [
        (target, place)
        for target, found in compared.items()
        for place, c in enumerate(found)
        if c.verdict == DISAGREES and c.problem is None and c.rms <= limit * c.size
    ]
    if not places:
        return
    beside = {**compared}
    if truth.backend not in {target.partition("@")[0] for target in compared}:
        beside[f"{truth.backend}@{WITNESS}"] = _witnessed(truth, number, witness, request)
    for target, place in places:
        c, backend = compared[target][place], target.partition("@")[0]
        others = [
            seen
            for other, found in beside.items()
            for seen in found
            if other.partition("@")[0] != backend and (seen.kind, seen.path) == (c.kind, c.path)
        ]
        as_far = all(
            seen.problem is None
            and c.rms <= _AS_FAR_AS * seen.rms
            and c.max_absolute <= _AS_FAR_AS * seen.max_absolute
            for seen in others
        )
        if others and as_far:
            alone = all(seen.verdict == AGREES for seen in others)
            verdict = AGREES if alone else SUSPICIOUS
            compared[target][place] = replace(c, verdict=verdict, peers=())


def _witnessed(
    truth: Truth, number: int, witness: Witness, request: Mapping[str, Any]
) -> list[Comparison]:
    """What a witness makes of a call."""
    worker = witness()
    if worker is None:
        return []
    try:
        worker.ask(request, truth.call_arrays(number))
        found = dict(_received(worker))
    except WorkerError:
        return []
    return _compared(TargetResult("witness", worker.ready), truth, number, found)


def _find_peers(
    truth: Truth,
    number: int,
    compared: dict[str, list[Comparison]],
    found: Mapping[str, Mapping[Key, Any]],
) -> None:
    """Note which targets that are off are so in the same way."""
    off = {
        (target, (c.kind, c.path))
        for target, comparisons in compared.items()
        for c in comparisons
        if c.verdict == DISAGREES and (c.kind, c.path) in found[target]
    }
    for target, comparisons in compared.items():
        for place, comparison in enumerate(comparisons):
            key = (comparison.kind, comparison.path)
            if (target, key) not in off:
                continue
            tensor, arrays = found[target][key]
            elements = truth.alone_arrays(number, key)["elements"]
            peers = []
            for other in (t for t in compared if t != target and (t, key) in off):
                between = compare(
                    *key,
                    arrays["values"],
                    found[other][key][1]["values"],
                    floor=comparison.floor,
                    elements=elements if elements.shape == arrays["values"].shape else None,
                    computed_in=truth.calls[number]["dtype"],
                    dtype=tensor["dtype"],
                    exact=False,
                )
                if between.verdict != DISAGREES:
                    peers.append(other)
            comparisons[place] = replace(comparison, peers=tuple(peers))

"""The least inputs with which a layer that is off alone is still off."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multibackend_lstm.agreement.comparison import DISAGREES, Comparison, compare
from multibackend_lstm.runtimes.workers import Worker, WorkerError

#: Calls tried, at most, for one layer of one target.
TRIALS = 40
#: The kinds of tensors that a call is shrunk for first: what a layer returns.
OUTPUTS = ("layer alone", "layer alone in training")
# Perturbed runs behind the floor of a call that is tried, and of the one that is kept.
_TWINS, CONFIRMING_TWINS = 16, 64


@dataclass(frozen=True)
class Least:
    """A call of a layer that shows what is wrong.

    Attributes:
        target: that is wrong.
        call: header of the call.
        tensors: what goes in.
        upstream: the gradient that comes back to each floating output, in training.
        comparison: of the tensor that is off.
        expected: that tensor in the truth.
        received: the same of the target.
        elements: the floor of each element of it; empty where its shape is wrong.
        layer: module, class and config of a smaller layer that shows it too; None for its own.
        weights: of the smaller layer.
    """

    target: str
    call: Mapping[str, Any]
    tensors: Sequence[np.ndarray]
    upstream: Sequence[np.ndarray]
    comparison: Comparison
    expected: np.ndarray
    received: np.ndarray
    elements: np.ndarray
    layer: Mapping[str, Any] | None = None
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Leasts:
    """What is shrunk in a check.

    Attributes:
        layers: module, class and config by the layer's path.
        weights: paths and values of each layer's, in the order of the layer.
        trainable: paths and values of those that the optimizer updates, in its order.
        found: the least calls, one for each layer and target that is off.
    """

    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    trainable: Mapping[str, np.ndarray] = field(default_factory=dict)
    found: list[Least] = field(default_factory=list)

    def is_fixed(self, path: str, axis: int, ndim: int) -> bool:
        """Whether a layer's weights have the size of an axis.

        Such an axis is not cut: weights broadcast over an axis of 1, where a new layer would not.
        """
        config = self.layers.get(path, {}).get("config") or {}
        if axis == 0 or not self.weights.get(path):
            return False
        axes = config.get("axis", -1)
        axes = axes if isinstance(axes, (list, tuple)) else [axes]
        channels = {ndim - 1, *(a % ndim for a in axes if isinstance(a, int))}
        return axis in channels | ({1} if config.get("data_format") == "channels_first" else set())


def shrink(
    target: str,
    worker: Worker,
    reference: Worker,
    call: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    off: Sequence[Comparison],
    *,
    exact: bool,
    leasts: Leasts,
) -> Least | None:
    """The smallest call found on which target and reference still disagree.

    A fault need not shrink steadily, as one of a window shows at some lengths alone; so each axis
    is tried at its smallest sizes first. Values are then rounded, to be read.

    Args:
        target: that is off.
        worker: of the target.
        reference: that computes the truth.
        call: header of the call, as it was made.
        arrays: that go into it.
        off: the comparisons of the call that disagree.
        exact: whether the truth is in float64.
        leasts: tells which axes are those of weights.

    Returns:
        The call; None if it is off in no run of its own.
    """
    given, upstream = (
        [arrays[f"{kind}{i}"] for i in range(sum(n.startswith(kind) for n in arrays))]
        for kind in ("tensor", "upstream")
    )
    kinds = {c.kind for c in off}
    kinds = kinds & {*OUTPUTS} or kinds

    def trial(
        header: Mapping[str, Any],
        tensors: Sequence[np.ndarray],
        twins: int,
        back: Sequence[np.ndarray] | None = None,
    ) -> Least | None:
        among = {*OUTPUTS} if kinds <= {*OUTPUTS} else kinds
        return tried(target, worker, reference, header, tensors, twins, exact, among, back)

    if call["arguments"] is None:  # the optimizer's, which takes all gradients of the model
        return trial(call, given, CONFIRMING_TWINS, upstream)
    first: Least | None = None
    if upstream and kinds <= {*OUTPUTS}:  # in inference, if it shows there
        first = trial(_in_inference(call), given, _TWINS)
    whole = first or trial(call, given, _TWINS)
    if whole is None:  # it needs just these gradients, which no smaller call has
        return trial(call, given, CONFIRMING_TWINS, upstream)
    least = whole
    left = TRIALS
    shrinking = True
    while shrinking and left > 0:
        shrinking = False
        is_fixed = functools.partial(leasts.is_fixed, call["path"])
        for tensors in smaller(least.tensors, is_fixed):
            left -= 1
            found = trial(least.call, tensors, _TWINS)
            if found is not None:
                least, shrinking = found, True
                break
            if left <= 0:
                break
    for digits in (0, 1, 2):
        rounded = [x.round(digits) if x.dtype.kind == "f" else x for x in least.tensors]
        found = trial(least.call, rounded, _TWINS)
        if found is not None:
            least = found
            break
    return trial(least.call, least.tensors, CONFIRMING_TWINS) or trial(
        whole.call, whole.tensors, CONFIRMING_TWINS
    )


def _in_inference(call: Mapping[str, Any]) -> dict[str, Any]:
    args, kwargs = (call["arguments"]["list"][i] for i in (0, 1))
    named = dict(kwargs["dict"])
    if "training" in named:
        named["training"] = {"value": False}
    return {**call, "training": False, "arguments": {"list": [args, {"dict": named}]}}


def smaller(
    tensors: Sequence[np.ndarray], is_fixed: Callable[[int, int], bool]
) -> Iterator[list[np.ndarray]]:
    """The same with an axis cut, in all tensors that are as long there; the batch first.

    Args:
        tensors: to cut.
        is_fixed: whether an axis is not to be cut, of tensors with so many axes.
    """
    for axis in range(max((x.ndim for x in tensors), default=0)):
        if any(is_fixed(axis, x.ndim) for x in tensors if x.ndim > axis):
            continue
        size = next(x.shape[axis] for x in tensors if x.ndim > axis)
        for length in sorted({1, 2, 3, size // 2}):
            if 0 < length < size:
                yield [
                    x.take(range(length), axis) if x.ndim > axis and x.shape[axis] == size else x
                    for x in tensors
                ]


def tried(
    target: str,
    worker: Worker,
    reference: Worker,
    call: Mapping[str, Any],
    tensors: Sequence[np.ndarray],
    twins: int,
    exact: bool,
    kinds: Collection[str],
    upstream: Sequence[np.ndarray] | None,
) -> Least | None:
    """A call that target and reference make, if they disagree on a tensor of these kinds."""
    arrays = {f"tensor{i}": x for i, x in enumerate(tensors)}
    request = {"do": "alone", "call": call, "twins": 0, "inside": False}
    back = [*(upstream or [])]
    try:
        if call["training"] and upstream is None:
            # A gradient for each output, which tells its shape in inference.
            outputs = _made(reference, request | {"call": {**call, "training": False}}, arrays)
            floating = [x["values"] for _, x in outputs if x["values"].dtype.kind == "f"]
            back = [_ramp(x.shape) for x in floating]
        arrays |= {f"upstream{i}": x for i, x in enumerate(back)}
        truth = _made(reference, request | {"twins": twins}, arrays)
        found = {(t["kind"], t["path"]): (t, x) for t, x in _made(worker, request, arrays)}
    except WorkerError:
        return None  # sizes that the layer does not take
    for tensor, values in truth:
        key = (tensor["kind"], tensor["path"])
        if key[0] not in kinds or key not in found:
            continue
        received, expected = found[key][1]["values"], values["values"]
        compared = compare(
            *key,
            received,
            expected,
            floor=tensor["floor"],
            elements=values["elements"],
            layer=call["path"],
            computed_in=call["dtype"],
            dtype=found[key][0]["dtype"],
            exact=exact,
        )
        if compared.verdict == DISAGREES:
            elements = values["elements"]
            return Least(target, call, tensors, back, compared, expected, received, elements)
    return None


def _ramp(shape: tuple[int, ...]) -> np.ndarray:
    """Upstream gradients that are easy to read, and not all alike: a sum of them may hide much."""
    numbers = np.arange(int(np.prod(shape, dtype=int))) % 3 + 1
    return numbers.reshape(shape).astype("float32")


def _made(
    worker: Worker, request: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    if not worker.alive:
        raise WorkerError("it has ended")
    worker.ask(request, arrays)
    answers = list(worker.answers("done"))
    return [(header["tensor"], found) for header, found in answers if "tensor" in header]

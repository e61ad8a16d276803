"""A layer that is off with fewer units, and with as much of its weights as these need."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from multibackend_lstm.agreement.case import case_of
from multibackend_lstm.agreement.shrinking import CONFIRMING_TWINS, OUTPUTS, Least, Leasts, tried
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.noise_floor import ROUNDING
from multibackend_lstm.runtimes.workers import REFERENCE, WorkerError, Workers

# Arguments of Keras's layers that say how many units they have.
_ARGUMENTS = ("units", "filters")


def with_fewer_units(
    least: Least, leasts: Leasts, workers: Workers, modules: Sequence[str], *, exact: bool
) -> Least:
    """The same call of the smallest layer found that is still off; as it is where there is none.

    Args:
        least: a call whose inputs are cut already.
        leasts: with config and weights of its layer.
        workers: of targets and reference; the model that they ran last is another one then.
        modules: where classes are that are not Keras's.
        exact: whether the truth is in float64.
    """
    path = least.call["path"]
    layer, weights = leasts.layers.get(path) or {}, leasts.weights.get(path)
    config = layer.get("config") or {}
    argument = next((name for name in _ARGUMENTS if isinstance(config.get(name), int)), None)
    # What a nested layer is called in a model of its own is another name.
    own = path == config.get("name") == least.call["name"]
    if argument is None or not own or not weights or least.comparison.kind not in OUTPUTS:
        return least
    for count in sorted({1, 2, config[argument] // 2} - {0, config[argument]}):
        if count > config[argument]:
            continue
        smaller = copy.deepcopy({**layer, "config": {**config, argument: count}})
        try:
            case = _case_of(smaller, least, modules)
            cut = _cut(weights, [x.shape for x in case.weights or []], config[argument], count)
            case.weights = [*cut.values()]
            found = _made(case, least, workers, exact=exact)
        except (CaseError, WorkerError, ValueError, TypeError):
            continue  # a size that the layer does not take
        if found is not None:
            return replace(found, call=least.call, layer=smaller, weights=cut)
    return least


def _case_of(layer: dict[str, Any], least: Least, modules: Sequence[str]) -> Any:
    """A model of the layer alone."""
    import keras

    from multibackend_lstm.agreement.bundle import custom_objects
    from multibackend_lstm.runtimes.calls import decoded

    made = keras.saving.deserialize_keras_object(layer, custom_objects(layer))
    inputs = [keras.Input(x.shape[1:], dtype=str(x.dtype)) for x in least.tensors]
    args, kwargs = decoded(least.call["arguments"], inputs, masks=False)
    kwargs.pop("training", None)
    return case_of(keras.Model(inputs, made(*args, **kwargs)), [*least.tensors], None, modules)


def _cut(
    weights: Mapping[str, np.ndarray], shapes: Sequence[Any], units: int, count: int
) -> dict[str, np.ndarray]:
    """The weights of the first units; an axis may hold those of several gates.

    Raises:
        ValueError: if a weight is not made of units so.
    """
    found = {}
    for (path, weight), shape in zip(weights.items(), shapes, strict=True):
        x = weight
        for axis, length in enumerate(shape):
            if x.shape[axis] != length:
                gates = x.shape[axis] // units
                if gates * units != x.shape[axis] or gates * count != length:
                    raise ValueError(f"{path} is not made of {units} units")
                split = x.reshape(*x.shape[:axis], gates, units, *x.shape[axis + 1 :])
                first = split.take(range(count), axis + 1)
                x = first.reshape(*x.shape[:axis], length, *x.shape[axis + 1 :])
        found[path] = np.ascontiguousarray(x)
    return found


def _made(case: Any, least: Least, workers: Workers, *, exact: bool) -> Least | None:
    """The call of the smaller layer, if target and reference disagree on it."""
    target = next(t for t in workers.targets if str(t) == least.target)
    worker = workers.worker(least.target, target)
    reference = workers.worker(REFERENCE, workers.reference)
    request = case.request({"dtype": None, "training": None, "seed": 0})
    request |= {"rounding": ROUNDING["float32"], "only_load": True}
    wide = {"dtype": "float64", "twins": 2} if exact else {}
    for each, more in ((worker, {}), (reference, wide)):
        each.ask(request | more, case.arrays)
        for _ in each.answers("done"):
            pass
    kinds = {least.comparison.kind}
    return tried(
        least.target, worker, reference, least.call, least.tensors, CONFIRMING_TWINS, exact, kinds,
        None,
    )  # fmt: skip

"""The least part of a model, and the least inputs, that still show what is wrong with the whole."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from multibackend_lstm.agreement.shrinking import smaller

#: Parts and inputs tried, at most, for one finding.
TRIALS = 40
# What a layer or an operation brings up on inputs that it does not take.
_REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError)


class Part(NamedTuple):
    """A model, and the arrays that it is given, one an input."""

    model: Any
    inputs: list[np.ndarray]


def reduced(part: Part, shows: Callable[[Part], bool]) -> Part | None:
    """The smallest part of a model found that still shows something.

    The graph is cut from its end, then from its start, each by halves; what goes into the rest is
    what the model gives there. Then single layers that keep a tensor's form are left out, a nested
    model is opened, and the inputs are cut axis by axis and rounded. Of a model that is no graph
    only the inputs are cut.

    Args:
        part: a model that no other code uses, since its layers are called again, and its inputs.
        shows: whether a part shows it.

    Returns:
        The part; None if not even the whole shows it.
    """
    left = TRIALS

    def tried(found: Part | None) -> bool:
        nonlocal left
        left -= 1
        return found is not None and left >= 0 and shows(found)

    if not tried(part):
        return None
    while True:
        steps = _steps(part.model)
        if steps:
            graph = _Graph(part, steps)
            part = _cut(graph, len(steps), tried) or part
        inner = _inner(part)
        if inner is None or not tried(inner):
            break
        part = inner
    part = _with_less_input(part, tried)
    for digits in (0, 1, 2):
        found = [x.round(digits) if x.dtype.kind == "f" else x for x in part.inputs]
        if tried(Part(part.model, found)):
            return Part(part.model, found)
    return part


def _steps(model: Any) -> list[Any]:
    """The calls of a graph in an order of computation; none of a model that is no graph."""
    graph = getattr(model, "_functional", model)  # that of a Sequential
    if not isinstance(graph, keras.Function):
        return []
    by_depth = graph._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in nodes if not node.is_input]


class _Graph:
    """The calls of a model, of which parts can be made."""

    def __init__(self, whole: Part, steps: Sequence[Any]) -> None:
        self._whole, self._steps = whole, steps
        self._values = {
            id(x): value for x, value in zip(whole.model.inputs, whole.inputs, strict=True)
        }

    def part(self, first: int, last: int, without: frozenset[int] = frozenset()) -> Part | None:
        """What the call `last` gives, from the call `first` on; None where that is no model.

        Args:
            first: place of the first call.
            last: place of the last one.
            without: places of calls that give what goes into them.
        """
        outputs = self._steps[last].outputs
        needed = {id(x) for x in outputs}
        kept = []
        for place in range(last, first - 1, -1):
            step = self._steps[place]
            if needed.intersection(map(id, step.outputs)):
                kept.append((place, step))
                needed.update(map(id, step.input_tensors))
        made = {id(x) for _, step in kept for x in step.outputs}
        given = {id(x): x for _, step in kept for x in step.input_tensors if id(x) not in made}
        values = self._of(given)
        try:
            return _called([*given.values()], values, kept[::-1], outputs, without=without)
        except _REFUSALS:
            return None

    def _of(self, given: dict[int, Any]) -> list[np.ndarray]:
        """The values of tensors of the whole model."""
        missing = {key: x for key, x in given.items() if key not in self._values}
        if missing:
            model, inputs = self._whole
            found = keras.Model(model.inputs, [*missing.values()])(
                [ops.convert_to_tensor(x) for x in inputs], training=False
            )
            self._values |= dict(zip(missing, map(_array, tree.flatten(found)), strict=True))
        return [self._values[key] for key in given]

    def can_be_left_out(self, place: int) -> bool:
        """Whether a call gives what it could have been given: one tensor of the same form."""
        step = self._steps[place]
        if len(step.input_tensors) != 1 or len(step.outputs) != 1:
            return False
        (given,), (found,) = step.input_tensors, step.outputs
        return (given.shape, given.dtype) == (found.shape, found.dtype)


def _called(
    given: Sequence[Any],
    values: Sequence[np.ndarray],
    steps: Sequence[tuple[int, Any]],
    outputs: Sequence[Any],
    without: frozenset[int] = frozenset(),
) -> Part:
    """A model of calls that are made again, on inputs of the shapes of these values."""
    inputs = [
        keras.Input(x.shape[1:], dtype=symbol.dtype)
        for x, symbol in zip(values, given, strict=True)
    ]
    now = dict(zip(map(id, given), inputs, strict=True))
    for place, step in steps:
        if place in without:
            found = [now[id(step.input_tensors[0])]]
        else:
            args, kwargs = step.arguments.fill_in(now)
            found = tree.flatten(step.operation(*args, **kwargs))
        now.update(zip(map(id, step.outputs), found, strict=True))
    model = keras.Model(inputs, [now[id(x)] for x in outputs], name="reduced")
    return Part(model, list(values))


def _array(x: Any) -> np.ndarray:
    """An array that holds a tensor; float32 holds bfloat16, which NumPy lacks."""
    narrow = keras.backend.standardize_dtype(x.dtype) == "bfloat16"
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32") if narrow else x))


def _cut(graph: _Graph, count: int, tried: Callable[[Part | None], bool]) -> Part | None:
    """The fewest calls found, of all that there are; None if it is all of them."""
    best = None
    first, last = 0, count - 1
    low = 0
    while low < last:  # an end that shows it, and all before `low` do not
        middle = (low + last) // 2
        found = graph.part(first, middle)
        if tried(found):
            best, last = found, middle
        else:
            low = middle + 1
    high = last
    while first < high:
        middle = (first + high + 1) // 2
        found = graph.part(middle, last)
        if tried(found):
            best, first = found, middle
        else:
            high = middle - 1
    without: frozenset[int] = frozenset()
    for place in range(first, last + 1):
        if first < last and graph.can_be_left_out(place):
            found = graph.part(first, last, without | {place})
            if tried(found):
                best, without = found, without | {place}
    return best


def _inner(part: Part) -> Part | None:
    """A nested model that is all that there is."""
    steps = _steps(part.model)
    inner = steps[0].operation if len(steps) == 1 else None
    if inner is None or not _steps(inner) or len(inner.inputs) != len(part.inputs):
        return None
    return Part(inner, part.inputs)


def _with_less_input(part: Part, tried: Callable[[Part | None], bool]) -> Part:
    """The same with the axes of its inputs cut, but for the last ones, which weights have."""
    shrinking = True
    while shrinking:
        shrinking = False
        for arrays in smaller(part.inputs, lambda axis, ndim: 0 < axis == ndim - 1):
            found = _on(part, arrays)
            if tried(found):
                assert found is not None
                part, shrinking = found, True
                break
    return part


def _on(part: Part, arrays: list[np.ndarray]) -> Part | None:
    """The same on other inputs; None if it does not take them."""
    model = part.model
    if all(a.shape[1:] == b.shape[1:] for a, b in zip(arrays, part.inputs, strict=True)):
        return Part(model, arrays)
    steps = _steps(model)
    if not steps:
        return Part(model, arrays)
    try:
        return _called(model.inputs, arrays, [*enumerate(steps)], model.outputs)
    except _REFUSALS:
        return None


def calls(model: Any) -> Iterator[str]:
    """The names of what a model calls, in order."""
    for step in _steps(model):
        yield step.operation.name

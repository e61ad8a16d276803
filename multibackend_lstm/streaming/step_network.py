"""The step model while it is being built: its inputs, its states, and the copied layers."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import keras
from keras import KerasTensor, ops

from multibackend_lstm.layers.folding import expand
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.runtimes.artefacts import portable
from multibackend_lstm.runtimes.execution import with_dtype
from multibackend_lstm.runtimes.loading import cause, check_copy
from multibackend_lstm.streaming.names import next_of

HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Series:
    """One step of what has an entry for each step.

    Attributes:
        x: `(batch, 1, *axes)`.
        shape: `(batch, time, *axes)`, as the model has the whole series.
        mask: booleans `(batch, 1)` or with more axes; None where every step is valid.
        delay: the number of first steps for which there is no entry.
        padding: the number of zeros that stand before the first entry.
    """

    x: KerasTensor
    shape: tuple[int | None, ...]
    mask: KerasTensor | None = None
    delay: int = 0
    padding: int = 0


@dataclass(frozen=True)
class Summary:
    """What the steps so far have come to, or what is the same at each: `(batch, *axes)`.

    Attributes:
        x: the tensor.
        delay: the number of first steps after which there is nothing yet.
    """

    x: KerasTensor
    delay: int = 0


@dataclass(frozen=True)
class Lengths:
    """The lengths of whole series, which a stream does not have."""


@dataclass(frozen=True)
class Unknown:
    """What an operation cannot come to step by step, which matters where it is used.

    Attributes:
        error: which operation, and why.
    """

    error: ValueError


Value = Series | Summary | Lengths | Unknown


class StepNetwork:
    """Inputs, states and layers of the step model."""

    def __init__(self) -> None:
        self.inputs: dict[str, KerasTensor] = {}
        self._states: dict[str, KerasTensor] = {}
        self._names: set[str] = set()
        self._path: tuple[str, ...] = ()
        self._folded: tuple[int, ...] = ()
        self._copies: dict[Any, keras.layers.Layer] = {}
        self._steps: KerasTensor | None = None
        self._longest_delay = 0

    def add_input(self, name: str, shape: tuple[int | None, ...], dtype: str) -> KerasTensor:
        """An input `(batch, *shape)`, of this name or one with a number if that is taken."""
        name = self._free(portable(name))  # the same in every artefact, and so in files of states
        self.inputs[name] = keras.Input(shape, dtype=dtype, name=name)
        return self.inputs[name]

    def add_state(self, owner: str, name: str, shape: tuple[int, ...], dtype: str) -> "State":
        """A state `(batch, *shape)` of a layer, zeros at first, such as its `"h"`."""
        name = "_".join([*self._path, owner, name])
        given = self.add_input(name, (*self._folded, *shape), dtype)
        return State(self, given.name, ops.reshape(given, (-1, *shape)) if self._folded else given)

    def keep(self, name: str, new: KerasTensor) -> None:
        """Say what a state becomes."""
        shape = self.inputs[name].shape[1:]
        self._states[name] = ops.reshape(new, (-1, *shape)) if self._folded else new

    def ready(self, delay: int) -> KerasTensor | None:
        """Booleans `(batch, 1)`: whether this step is behind the first `delay`. None: always."""
        if delay == 0:
            return None
        self._longest_delay = max(self._longest_delay, delay)
        ready = ops.greater_equal(self._count(), delay)
        return ops.repeat(ready, math.prod(self._folded), axis=0) if self._folded else ready

    @contextmanager
    def folded(self, count: int) -> Iterator[None]:
        """Within it the batch holds `count` series of each sample, whose states are kept apart."""
        before, self._folded = self._folded, (*self._folded, count)
        yield
        self._folded = before

    @contextmanager
    def inside(self, model: keras.Model) -> Iterator[None]:
        """Within it the layers of a model that is a layer of another get names behind its own."""
        before, self._path = self._path, (*self._path, model.name)
        yield
        self._path = before

    def call(
        self, layer: Any, *args: Any, changes: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """Call a copy of a layer or operation, which has its weights.

        Args:
            layer: of the model.
            *args: its arguments, tensors of the step model.
            changes: settings that are others.
            **kwargs: its arguments by name.
        """
        if not isinstance(layer, keras.layers.Layer):
            config = {name: x for name, x in layer.get_config().items() if name != "name"}
            return type(layer).from_config(config)(*args, **kwargs)
        key = (id(layer), tuple(sorted((changes or {}).items())))
        fresh = key not in self._copies
        if fresh:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about lambdas, which are not read back here
                config = layer.get_config()
            # As they are, since Keras finds no function of the user's by its name.
            config |= {
                part: getattr(layer, part, config[part])
                for part in ("activation", "recurrent_activation")
                if isinstance(getattr(layer, part, None), FunctionType)
            }
            if any(x.compute_dtype in HALF for x in sublayers(layer)):
                config = with_dtype(config, "float32")
            # No operation that Keras names by itself is called so.
            name = self._free("_".join([*self._path, layer.name, "step"]))
            try:
                self._copies[key] = type(layer).from_config(
                    {**config, **(changes or {}), "name": name}
                )
            except Exception as error:  # of whatever class a layer is
                raise ValueError(
                    f"to_step_model: '{layer.name}' of type {type(layer).__name__} cannot be made "
                    f"anew from its configuration: {cause(error)}"
                ) from error
        copy = self._copies[key]
        outputs = copy(*args, **kwargs)
        if fresh:
            check_copy(copy, layer)
            for copied, weight in zip(copy.weights, layer.weights, strict=True):
                copied.assign(weight.value)
            for inner in sublayers(copy):
                if isinstance(inner, keras.layers.Normalization):
                    inner.finalize_state()  # what it computes with, from its weights
        return outputs

    def finish(self, outputs: dict[str, Value], name: str) -> keras.Model:
        """The model, once all layers have been called."""
        results = {}
        for key, value in outputs.items():
            assert isinstance(value, (Series, Summary))
            x = value.x[:, 0] if isinstance(value, Series) else value.x
            ready = self.ready(value.delay)
            if ready is not None:
                x = ops.where(beside(ready, x), ops.cast(x, floating(x.dtype)), math.nan)
            results[key] = x
        if not self._states:
            self._count()  # by its states one tells a step model from a model of series
        if self._steps is not None:
            # Held where nothing depends on it any more, so that it never overflows.
            self.keep(self._steps.name, ops.minimum(self._steps + 1, self._longest_delay))
        nexts = {next_of(state): x for state, x in self._states.items()}
        return keras.Model(self.inputs, {**results, **nexts}, name=name)

    def _count(self) -> KerasTensor:
        """The state that counts the steps, integers `(batch, 1)`."""
        if self._steps is None:
            self._steps = self.add_input("steps", (1,), "int32")
        return self._steps

    def _free(self, wanted: str) -> str:
        number, name = 1, wanted
        while name in self._names:
            name, number = f"{wanted}_{number}", number + 1
        self._names.add(name)
        return name


@dataclass(frozen=True)
class State:
    """A state while the step model is being built: `value`, and `keep` for what it becomes."""

    network: StepNetwork
    name: str
    value: KerasTensor

    def keep(self, new: KerasTensor, where: KerasTensor | None = None) -> KerasTensor:
        """It becomes `new`, where a boolean `(batch, 1)` holds, and else stays. Returns that."""
        if where is not None:
            new = ops.where(beside(where, new), new, self.value)
        self.network.keep(self.name, new)
        return new


def beside(condition: KerasTensor, x: KerasTensor) -> KerasTensor:
    """A condition `(batch, 1)` with the axes of a tensor `(batch, ...)`."""
    rank = len(x.shape)
    return condition[:, 0] if rank == 1 else expand(condition, rank)


def both(*conditions: KerasTensor | None) -> KerasTensor | None:
    """Where all conditions hold; None is one that always does."""
    found = None
    for condition in conditions:
        if condition is not None:
            found = condition if found is None else ops.logical_and(found, condition)
    return found


def floating(dtype: str) -> str:
    """The dtype itself, or float32 for one of integers."""
    return dtype if keras.backend.is_float_dtype(dtype) else "float32"

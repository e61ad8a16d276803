"""Each layer alone: what goes into it in the truth's run, and what it makes of just that.

The reference runs the model once and notes every call of a layer, or of an operation of a
functional graph: its arguments and, in training, the gradient that comes back to what it returns.
Every worker then makes that call alone. So rounding does not pile up from layer to layer, and what
is wrong shows where it is wrong, in the forward pass, in training and in the gradients.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from multibackend_lstm.backends import Refused
from multibackend_lstm.runtimes import backend_runtime, sums
from multibackend_lstm.runtimes.backend_runtime import LayerFunction, LossFunction
from multibackend_lstm.runtimes.calls import Call, NotAlone, decoded, encoded, with_mask
from multibackend_lstm.runtimes.errors import CaseError
from multibackend_lstm.runtimes.execution import Execution, Tensor, as_tensor, named_operations
from multibackend_lstm.runtimes.loading import cause
from multibackend_lstm.runtimes.noise_floor import Key, NoiseFloor, perturbed, rounding_of

#: Paths of what is called alone beside the layers.
LOSS, OPTIMIZER = "loss", "optimizer"
#: Twins that step off the points where a gradient jumps, to confirm what is off.
KINK_TWINS = 16
# How far from 0, which no rounding moves: enough to be on one side of it.
_OFF_ZERO = 1e-30
#: Updates that the optimizer makes, with the same gradients.
UPDATES = 2


class Truth(NamedTuple):
    """A tensor of a call, its noise floor, and that of each element.

    Attributes:
        tensor: as it is to be.
        floor: of the whole.
        elements: of each element.
        of_sums: the part of that which a long plain sum adds; 0 where there is none.
        of_twins: the floor of the whole without what the length of sums adds.
    """

    tensor: Tensor
    floor: float
    elements: np.ndarray
    of_sums: np.ndarray
    of_twins: float


class _Recorded(NamedTuple):
    path: str
    name: str
    arguments: Any
    tensors: list[Any]
    outputs: list[Any]


class Isolation:
    """The layers of an execution, to be called alone.

    Args:
        execution: of the model, which has its weights.
        weights: values, in the order of `execution.weights`.
        weight_paths: what the report calls them.
    """

    def __init__(
        self, execution: Execution, weights: Sequence[np.ndarray], weight_paths: Sequence[str]
    ) -> None:
        """Find the operations; one with several names has the first."""
        self._execution = execution
        self._function: keras.Function | None = None  # of a layer that is opened
        self._taps: Iterator[Any] | None = None
        self.operations: dict[str, Any] = named_operations(execution.model)
        if execution.total_loss is not None:
            self.operations.setdefault(LOSS, execution.total_loss)
        self._start = {id(v): x for v, x in execution.snapshot()}
        self._paths = {}
        for variable, value, path in zip(execution.weights, weights, weight_paths, strict=True):
            self._start[id(variable)] = value
            self._paths[id(variable)] = path

    def record(
        self,
        inputs: list[np.ndarray],
        labels: list[np.ndarray] | None,
        dtypes: dict[str, str],
    ) -> Iterator[Call | NotAlone]:
        """Every call of the model's run, in inference and, where there are labels, in training.

        Args:
            inputs: of the model.
            labels: of the loss; None for no training.
            dtypes: that a target's layers compute in, by path; "" is that of operations.

        Returns:
            Calls, and what cannot be called alone.
        """
        execution = self._execution
        tensors = [ops.convert_to_tensor(x) for x in inputs]
        yield from self._recorded(
            lambda: execution.model(execution.arranged(tensors), training=False),
            dtypes,
            skipped=() if labels is None else self._same_in_training,
        )
        if labels is None:
            return
        ys = [ops.convert_to_tensor(y) for y in labels]
        trainable = execution.model.trainable_variables
        loss = functools.partial(execution.loss_of, labels=ys)
        by_weights = yield from self._differentiated(loss, tensors, dtypes, trainable)
        if trainable:
            kept = dtypes[OPTIMIZER]
            gradients = [_given(x, kept) for x in by_weights]
            yield Call(OPTIMIZER, OPTIMIZER, True, None, gradients, kept, [])

    @property
    def _same_in_training(self) -> set[str]:
        """Paths of what does the same in training, so that calls in training show all of it."""
        return {path for path, found in self.operations.items() if not _knows_training(found)}

    def _recorded(
        self, run: Callable[[], Any], dtypes: Mapping[str, str], skipped: Collection[str] = ()
    ) -> Iterator[Call | NotAlone]:
        """The calls of a run in inference."""
        recorded: list[_Recorded | NotAlone] = []
        with self._recording(recorded):
            run()
        for found in recorded:
            if isinstance(found, NotAlone):
                yield found
            elif found.path not in skipped:
                yield self._call(found, dtypes, None)

    def _differentiated(
        self,
        loss: Callable[[list[Any]], Any],
        tensors: Sequence[Any],
        dtypes: Mapping[str, str],
        variables: Sequence[keras.Variable] = (),
    ) -> Generator[Call | NotAlone, None, list[Any]]:
        """The calls of a run in training; returns the gradients by some variables."""
        recorded: list[_Recorded | NotAlone] = []
        with self._recording(recorded):
            function = LossFunction(
                loss, tensors, lambda: _floating_outputs(recorded), variables, self._tapped
            )
            found_gradients = backend_runtime.active().gradients_at(function)
        gradients, random = iter(found_gradients), self._random
        for found in recorded:
            if isinstance(found, _Recorded):
                upstream = [next(gradients) for x in found.outputs if _is_float(x)]
                if found.path not in random:
                    yield self._call(found, dtypes, upstream)
        return list(gradients)

    @property
    def _random(self) -> set[str]:
        drawing = {*self._execution.randomness}
        return {
            p for p, found in self.operations.items() if getattr(found, "path", None) in drawing
        }

    def _call(
        self, found: "_Recorded", dtypes: Mapping[str, str], upstream: Sequence[Any] | None
    ) -> Call:
        dtype = dtypes.get(found.path, dtypes[""])
        return Call(
            found.path,
            found.name,
            upstream is not None,
            found.arguments,
            [_given(x, dtype) for x in found.tensors],
            dtype,
            [_given(x, dtype) for x in upstream or ()],
        )

    def opened(self, call: Call) -> "Isolation":
        """The operations that a layer consists of, to be called alone as it is.

        Raises:
            Refused: if it cannot be opened.
        """
        layer = self.operations.get(call.path)
        if not isinstance(layer, keras.layers.Layer):
            raise Refused("only a layer can be opened")
        if layer.compute_dtype != layer.variable_dtype:
            raise Refused("a layer of a mixed policy cannot be opened")
        inputs = [
            keras.Input(batch_shape=x.shape, dtype=_dtype_of(x, layer.compute_dtype))
            for x in call.tensors
        ]
        args, kwargs = decoded(call.arguments, inputs, masks=False)
        try:
            with _unassigned(layer.variables):
                outputs = _Context()(
                    function=lambda: layer.call(*args, **kwargs), training=call.training
                )
            function = keras.Function(inputs, [x for x in tree.flatten(outputs) if x is not None])
        except Exception as error:  # whatever a layer does that has no symbolic form
            raise Refused(f"its operations cannot be told: {cause(error)}") from error
        inside = copy.copy(self)
        found = [x for x in function.operations if not isinstance(x, keras.layers.InputLayer)]
        inside.operations = {f"{n} {type(x).__name__}": x for n, x in enumerate(found, 1)}
        inside._function = function
        return inside

    def record_opened(self, call: Call) -> Iterator[Call | NotAlone]:
        """The calls of the operations of an opened layer, at one of its calls."""
        dtypes = {"": call.dtype}
        wide = "float64" if self._execution.noisy else call.dtype
        tensors = [ops.convert_to_tensor(x, _dtype_of(x, wide)) for x in call.tensors]
        assert self._function is not None
        function = self._function
        if not call.training:
            yield from self._recorded(lambda: function(tensors), dtypes)
            return

        def loss(given: list[Any]) -> Any:
            floating = [x for x in function(given) if _is_float(x)]
            pairs = zip(floating, call.upstream, strict=True)
            return sum(ops.sum(x * ops.cast(g, x.dtype)) for x, g in pairs)

        yield from self._differentiated(loss, tensors, dtypes)

    @contextmanager
    def _recording(self, recorded: list[Any]) -> Iterator[None]:
        counts: dict[str, int] = {}

        def wrap(path: str, call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if self._taps is not None:
                    return tree.map_structure(self._tap, call(*args, **kwargs))
                counts[path] = number = counts.get(path, 0) + 1
                name = path if number == 1 else f"{path} (call {number})"
                tensors: list[Any] = []
                try:
                    arguments = encoded([list(args), kwargs], tensors)
                except CaseError as reason:
                    recorded.append(NotAlone(name, str(reason)))
                    return call(*args, **kwargs)
                outputs = call(*args, **kwargs)
                leaves = [x for x in tree.flatten(outputs) if ops.is_tensor(x)]
                recorded.append(_Recorded(path, name, arguments, tensors, leaves))
                return outputs

            return wrapped

        with self._wrapped(wrap):
            yield

    @contextmanager
    def _wrapped(
        self, wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]
    ) -> Iterator[None]:
        """Have every operation called by way of `wrap(path, its call)`."""
        for path, operation in self.operations.items():
            vars(operation)["call"] = wrap(path, operation.call)
        try:
            yield
        finally:
            for operation in self.operations.values():
                del vars(operation)["call"]

    @contextmanager
    def _tapped(self, taps: Sequence[Any]) -> Iterator[None]:
        """Record nothing more, and add to each floating output, in order, one of these."""
        self._taps = iter(taps)
        try:
            yield
        finally:
            self._taps = None

    def _tap(self, x: Any) -> Any:
        if self._taps is None or not ops.is_tensor(x) or not _is_float(x):
            return x
        tapped = x + next(self._taps)
        mask = getattr(x, "_keras_mask", None)
        return tapped if mask is None else with_mask(tapped, mask)

    def run(self, call: Call) -> list[Tensor]:
        """What a layer makes of a call, from the start's weights."""
        return self._runner(call)(0, 0.0)

    def _runner(self, call: Call) -> Callable[..., list[Tensor]]:
        """A function that makes a call, `run(twin, size, off_zero, given)`.

        It takes the number of a twin, how far it is moved, how far zeros that go in are, and a
        function of each array that goes in or comes back.

        On a backend that has no gradients a call in training gives its outputs alone.
        """
        if call.path == OPTIMIZER:
            return functools.partial(self._updated, call)
        operation = self.operations.get(call.path)
        if operation is None:
            raise CaseError(f"the model has no layer or operation {call.path!r} here")
        execution, runtime = self._execution, backend_runtime.active()
        variables = list(getattr(operation, "variables", ()))
        trainable = [v for v in variables if v.trainable and id(v) in self._paths]
        others = [v for v in variables if not (v.trainable and id(v) in self._paths)]
        context = _Context()

        def function(tensors: Sequence[Any]) -> list[Any]:
            def called() -> Any:
                args, kwargs = decoded(call.arguments, tensors)
                return operation(*args, **kwargs)

            outputs = context(function=called, training=call.training)
            return [x for x in tree.flatten(outputs) if ops.is_tensor(x)]

        layer = LayerFunction(function, trainable, others)
        differentiated = call.training and runtime.trains
        if differentiated:
            pull_back = runtime.pull_back(layer)
        else:
            infer = runtime.alone(layer)

        def run(
            twin: int,
            size: float,
            off_zero: float = 0.0,
            given: Callable[[np.ndarray], np.ndarray] = lambda x: x,
        ) -> list[Tensor]:
            rng = np.random.default_rng(twin)

            def moved(x: np.ndarray) -> np.ndarray:
                return perturbed(x, rng, size, execution.mask_values) if twin else x

            def moved_input(x: np.ndarray) -> np.ndarray:
                if not off_zero or x.dtype.kind != "f":
                    return moved(x)
                return np.where(x == 0, off_zero * rng.choice([-1.0, 1.0], x.shape), moved(x))

            self._start_from(variables, call, moved)
            execution.round(size, twin)
            started = [np.array(ops.convert_to_numpy(v.value)) for v in trainable]
            wide = "float64" if execution.noisy else call.dtype
            tensors = [
                ops.convert_to_tensor(given(moved_input(x)), _dtype_of(x, wide))
                for x in call.tensors
            ]
            with execution.capture.recording(execution.noisy):
                if not differentiated:
                    kind = "layer alone in training" if call.training else "layer alone"
                    return list(_tensors(kind, call.name, infer(tensors)))
                upstream = [ops.convert_to_tensor(given(moved(x)), wide) for x in call.upstream]
                outputs, input_gradients, gradients, changed = pull_back(tensors, upstream)
            number = call.name.removeprefix(call.path)
            updates = [
                as_tensor("update alone", self._paths[id(variable)] + number, value)
                for variable, value in zip(others, changed, strict=True)
                if id(variable) in self._paths
            ]
            weights = [
                as_tensor(
                    "weight gradient alone", self._paths[id(variable)] + number, gradient
                )._replace(assigned=_differs(variable.value, start))
                for variable, gradient, start in zip(trainable, gradients, started, strict=True)
            ]
            return [
                *_tensors("layer alone in training", call.name, outputs),
                *updates,
                *_tensors("input gradient alone", call.name, input_gradients),
                *weights,
            ]

        return run

    def _start_from(
        self,
        variables: Sequence[keras.Variable],
        call: Call,
        moved: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """Give variables the values of the start, weights as a twin moves them."""
        for variable in variables:
            if id(variable) in self._paths:
                variable.assign(moved(self._as_used(variable, call.dtype)))
            elif id(variable) in self._start:
                variable.assign(self._start[id(variable)])

    def _updated(self, call: Call, twin: int, size: float, off_zero: float = 0.0) -> list[Tensor]:
        """The weights after updates by the optimizer."""
        execution, rng = self._execution, np.random.default_rng(twin)
        trainable = execution.model.trainable_variables

        def moved(x: np.ndarray) -> np.ndarray:
            return perturbed(x, rng, size) if twin else x

        for variable in execution.model.variables:
            if id(variable) in self._start:
                value = self._start[id(variable)]
                variable.assign(moved(value) if id(variable) in self._paths else value)
        execution.round(size, twin)
        optimizer = execution.fresh_optimizer()
        apply = backend_runtime.active().apply_gradients(optimizer, trainable)
        wide = "float64" if execution.noisy else call.dtype
        gradients = [ops.convert_to_tensor(moved(x), wide) for x in call.tensors]
        tensors = []
        for step in range(1, UPDATES + 1):
            apply(gradients)
            paths = [f"{self._paths[id(v)]} after update {step}" for v in trainable]
            pairs = zip(paths, trainable, strict=True)
            tensors += [as_tensor("update alone", path, v.value) for path, v in pairs]
        return tensors

    def _as_used(self, variable: keras.Variable, dtype: str) -> np.ndarray:
        """A weight as a layer of this dtype computes with it, which the truth knows only so."""
        value = self._start[id(variable)]
        narrow = dtype in ("bfloat16", "float16") and getattr(variable, "_autocast", True)
        if not (narrow and self._execution.noisy and value.dtype.kind == "f"):
            return value
        rounded = ops.cast(ops.cast(value, dtype), "float32")
        return np.asarray(ops.convert_to_numpy(rounded))

    def truth(self, call: Call, twins: int, *, kinks: bool = False) -> Iterator[Truth]:
        """What a layer is to make of a call, and the noise floors.

        Args:
            call: to make.
            twins: perturbed runs.
            kinks: whether gradients may be those of either side of 0. At 0 itself that of a ReLU,
                a maximum or an absolute value is a convention, which the backends do not share.
                Long sums inside of the layer are looked at then too.
        """
        noisy = self._execution.noisy
        rounding = rounding_of(call.dtype, {}, noisy)
        floor = NoiseFloor(rounding, in_float64=noisy, elements=True)
        run = self._runner(call)
        exact = {(t.kind, t.path): t for t in run(0, 0.0)}
        for twin in range(1, twins + 1):
            for tensor in run(twin, floor.size(twin)):
                key = (tensor.kind, tensor.path)
                if key in exact:
                    floor.add(twin, key, tensor.values, exact[key].values)
        for extra in range(KINK_TWINS if kinks and call.training else 0):
            twin = twins + twins % 2 + 1 + 2 * extra  # an odd one, which is moved by the rounding
            for tensor in run(twin, floor.size(twin), _OFF_ZERO):
                key = (tensor.kind, tensor.path)
                if key in exact and "gradient" in tensor.kind:
                    floor.add(twin, key, tensor.values, exact[key].values)
        more = self._moved_by_sums(run, call, exact) if kinks else {}
        for key, tensor in exact.items():
            elements = floor.of_elements(key)
            of_sums = more.get(key, np.zeros_like(elements))
            yield self._with_sums(tensor, call, floor.of(key)[0], elements, of_sums)

    def _with_sums(
        self, tensor: Tensor, call: Call, floor: float, elements: np.ndarray, more: np.ndarray
    ) -> Truth:
        """The truth with floors that know how long the sums behind each element are.

        Args:
            tensor: of the call.
            call: that was made.
            floor: of the tensor, as the twins tell it.
            elements: the same of its elements.
            more: what sums inside of the call do to the elements.
        """
        plain = self._is_plain(tensor, call)
        lengthened, longer = sums.lengthened(tensor, call, floor, elements, plain)
        of_sums = np.zeros_like(elements)
        if plain and np.max(sums.terms(tensor, call)) > sums.LONG:
            of_sums = np.sqrt(np.maximum(np.square(longer) - np.square(elements), 0.0))
        return Truth(
            tensor,
            float(np.hypot(lengthened, sums.rms(more))),
            np.hypot(longer, more),
            np.hypot(of_sums, more),
            floor,
        )

    def _is_plain(self, tensor: Tensor, call: Call) -> bool:
        """Whether elements are sums of what goes in or comes back, rather than of products."""
        is_vector = sum(length > 1 for length in tensor.values.shape) < 2
        if call.path == OPTIMIZER:
            return False
        if tensor.kind == "weight gradient alone" and sums.is_looked_up(tensor, call):
            return True
        if "gradient" in tensor.kind:
            return is_vector
        floating = [x for x in call.tensors if x.dtype.kind == "f"]
        has_weights = any(v.trainable for v in getattr(self.operations[call.path], "variables", ()))
        alone = len(floating) < 2 and not has_weights
        return tensor.values.ndim == 0 or tensor.kind == "update alone" or alone

    def _moved_by_sums(
        self, run: Callable[..., list[Tensor]], call: Call, exact: Mapping[Key, Tensor]
    ) -> dict[Key, np.ndarray]:
        """How far the long sums inside of a call move each element, as float32 adds them up."""
        operation = self.operations.get(call.path)
        if call.dtype != "float32" or not self._execution.noisy or operation is None:
            return {}
        if isinstance(operation, keras.layers.Layer):
            return self._carried(call, exact)
        axes = sums.axes_of(operation, call.tensors)
        return sums.beside_their_terms(run, call, axes, exact) if axes else {}

    def _carried(self, call: Call, exact: Mapping[Key, Tensor]) -> dict[Key, np.ndarray]:
        """What the sums of a layer's operations, each judged alone, do to all of the layer.

        Their outputs are moved within what their length explains, and so are the gradients that
        they give back: by a term of the loss that is linear in what goes into them.
        """
        layer = self.operations[call.path]
        self._start_from(layer.variables, call, lambda x: x)
        try:
            inside = self.opened(call)
            made = [x for x in inside.record_opened(call) if isinstance(x, Call)]
        except Refused:
            return {}
        noises: list[np.ndarray] = []
        places: dict[tuple[str, str], int] = {}  # of the noise of each tensor of an operation
        for inner in made:
            if not sums.may_be_long(inside.operations[inner.path], inner):
                continue
            for truth in inside.truth(inner, sums.DRAWS, kinks=True):
                if np.any(truth.of_sums > 0):
                    places[truth.tensor.kind, truth.tensor.path] = len(noises)
                    noises.append(truth.of_sums)
        if not noises:
            return {}
        run = self._noisy_runner(call, inside, places)
        squares: dict[Key, Any] = dict.fromkeys(exact, 0.0)
        for draw in range(1, sums.DRAWS + 1):
            rng = np.random.default_rng(draw)
            for tensor in run([x * rng.normal(size=x.shape) for x in noises]):
                key = (tensor.kind, tensor.path)
                if key in exact:
                    squares[key] = squares[key] + np.square(tensor.values - exact[key].values)
        return {key: np.sqrt(total / sums.DRAWS) for key, total in squares.items()}

    def _noisy_runner(
        self, call: Call, inside: "Isolation", places: Mapping[tuple[str, str], int]
    ) -> Callable[[Sequence[np.ndarray]], list[Tensor]]:
        """A function of noises that calls an opened layer with these added."""
        layer, function, count = self.operations[call.path], inside._function, len(call.tensors)
        assert function is not None
        trainable = [v for v in layer.variables if v.trainable and id(v) in self._paths]
        linear: list[Any] = []
        noise: Sequence[Any] = ()

        def noisy(kind: str, name: str, values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
            """Values, each with its noise or None."""
            for place, x in enumerate(values):
                path = sums.path_of(name, place, len(values))
                found = places.get((kind, path))
                yield x, None if found is None else noise[found]

        counts: dict[str, int] = {}

        def wrap(path: str, call_inside: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                counts[path] = number = counts.get(path, 0) + 1
                name = path if number == 1 else f"{path} (call {number})"
                given: list[Any] = []
                encoded([list(args), kwargs], given)
                floating = [x for x in given if _is_float(x)]
                for x, moved in noisy("input gradient alone", name, floating):
                    if moved is not None:
                        linear.append(ops.sum(ops.cast(x, moved.dtype) * moved))
                outputs = call_inside(*args, **kwargs)
                kind = "layer alone in training" if call.training else "layer alone"
                leaves = [x for x in tree.flatten(outputs) if ops.is_tensor(x)]
                added = [x if n is None else x + n for x, n in noisy(kind, name, leaves)]
                return tree.pack_sequence_as(outputs, added)

            return wrapped

        def called(tensors: Sequence[Any]) -> list[Any]:
            nonlocal noise
            noise = tensors[count:]
            linear.clear()
            counts.clear()
            with inside._wrapped(wrap):
                outputs = [x for x in function(tensors[:count]) if ops.is_tensor(x)]
            return [*outputs, sum(linear, ops.zeros((), "float64"))]

        made = LayerFunction(called, trainable, [])
        runtime = backend_runtime.active()
        if not call.training:
            infer = runtime.alone(made)
        else:
            pull_back = runtime.pull_back(made)
        upstream = [ops.convert_to_tensor(x, "float64") for x in call.upstream]

        def run(noises: Sequence[np.ndarray]) -> list[Tensor]:
            tensors = [ops.convert_to_tensor(x, _dtype_of(x, "float64")) for x in call.tensors]
            tensors += [ops.convert_to_tensor(x, "float64") for x in noises]
            if not call.training:
                return list(_tensors("layer alone", call.name, infer(tensors)[:-1]))
            outputs, by_inputs, by_weights, _ = pull_back(
                tensors, [*upstream, ops.ones((), "float64")]
            )
            floating = sum(x.dtype.kind == "f" for x in call.tensors)
            number = call.name.removeprefix(call.path)
            return [
                *_tensors("layer alone in training", call.name, outputs[:-1]),
                *_tensors("input gradient alone", call.name, by_inputs[:floating]),
                *(
                    as_tensor("weight gradient alone", self._paths[id(v)] + number, gradient)
                    for v, gradient in zip(trainable, by_weights, strict=True)
                ),
            ]

        return run


def _knows_training(operation: Any) -> bool:
    """Whether a call may differ in training."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    inner = operation._flatten_layers(include_self=False)
    return "training" in inspect.signature(operation.call).parameters or any(inner)


def _differs(value: Any, start: np.ndarray) -> bool:
    return not np.array_equal(ops.convert_to_numpy(value), start, equal_nan=True)


class _Context(keras.layers.Layer):
    """Calls a function as a model of this dtype would, in training or not."""

    def __init__(self) -> None:
        super().__init__(name="context", dtype=keras.config.floatx())
        self.built = True

    def call(self, *, function: Callable[[], Any], training: bool = False) -> Any:
        return function()


@contextmanager
def _unassigned(variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Have variables ignore what is assigned to them: what is symbolic cannot be."""
    for variable in variables:
        vars(variable)["assign"] = lambda value: value
    try:
        yield
    finally:
        for variable in variables:
            del vars(variable)["assign"]


def _tensors(kind: str, name: str, values: Sequence[Any]) -> Iterator[Tensor]:
    for place, x in enumerate(values):
        yield as_tensor(kind, name + (f"[{place}]" if len(values) > 1 else ""), x)


def _given(x: Any, dtype: str) -> np.ndarray:
    """A tensor as a target gets it; float32 holds what narrower dtypes hold."""
    if _is_float(x):
        wide = "float64" if dtype == "float64" else "float32"
        x = ops.cast(ops.cast(x, dtype), wide)
    return np.asarray(ops.convert_to_numpy(x))


def _floating_outputs(recorded: Sequence[Any]) -> list[Any]:
    calls = [found for found in recorded if isinstance(found, _Recorded)]
    return [x for call in calls for x in call.outputs if _is_float(x)]


def _is_float(x: Any) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)))


def _dtype_of(x: np.ndarray, floating: str) -> str:
    return floating if x.dtype.kind == "f" else str(x.dtype)

"""`check_port`: do a Keras model and its PyTorch original compute the same?"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from multibackend_lstm import backends
from multibackend_lstm.agreement.execution import with_dtype
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.porting.axes import FlattenOrder
from multibackend_lstm.porting.errors import PortingError
from multibackend_lstm.porting.graph import Graph
from multibackend_lstm.porting.matching import Mapped, Pair, part_name
from multibackend_lstm.porting.state_dict import StateDict
from multibackend_lstm.porting.torch_nn import keras_value, plan
from multibackend_lstm.porting.torch_twins import check_copy, check_shape, twin_of

#: How far two tensors may differ, relative to the largest element, by the dtype of Keras. Where
#: PyTorch's own float32 is further from its float64 than a tenth of it, ten times that: healthy
#: backends differ by up to 8.5 times their rounding (docs/agreement_calibration.md). But never more
#: than a hundredfold, since a tensor which rounding spoils so tells nothing.
TOLERANCES = {"float32": 1e-6, "float64": 1e-12}
_BATCH, _STEPS = 3, 9
_ROUNDING, _MOST = 10.0, 100.0


@dataclass(frozen=True)
class Difference:
    """The largest difference of one tensor, relative to its largest element.

    Attributes:
        where: path of the Keras layer, or "model".
        dtype: in which Keras computed. (PyTorch computes in float64.)
        tensor: `"output 0"`, `"gradient of input 0"`, or the gradient of a weight by its names.
        value: the difference; infinite where one side is no number.
        tolerance: what it may be.
    """

    where: str
    dtype: str
    tensor: str
    value: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.value <= self.tolerance


@dataclass
class PortCheck:
    """What a check found.

    Attributes:
        differences: one a tensor.
        notes: what could not be compared, and why.
    """

    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every tensor is within its tolerance."""
        return bool(self.differences) and all(each.ok for each in self.differences)

    def table(self) -> str:
        """A line a layer and dtype: its largest differences, forward and in gradients."""
        rows: list[tuple[str, ...]] = [("layer", "dtype", "output", "gradients", "allowed", "")]
        for where, dtype in dict.fromkeys((d.where, d.dtype) for d in self.differences):
            group = [d for d in self.differences if (d.where, d.dtype) == (where, dtype)]
            outputs = [d.value for d in group if d.tensor.startswith("output")]
            gradients = [d.value for d in group if d.tensor.startswith("gradient")]
            worst = max(group, key=lambda d: d.value / d.tolerance)
            verdict = "" if worst.ok else f"DIFFERS: {worst.tensor}"
            found = (max(outputs), max(gradients, default=float("nan")), worst.tolerance)
            rows.append((where, dtype, *(f"{value:.1e}" for value in found), verdict))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, which has no infinity: None stands for it."""
        return {
            "ok": self.ok,
            "differences": [
                {**asdict(d), "value": d.value if np.isfinite(d.value) else None, "ok": d.ok}
                for d in self.differences
            ],
            "notes": self.notes,
        }

    def raise_if_different(self) -> None:
        """Raise a PortingError with the table if a tensor differs by more than its tolerance."""
        if not self.ok:
            raise PortingError(
                f"porting: Keras and PyTorch do not compute the same:\n{self.table()}"
            )


def check_port(
    module_or_state_dict: Any,
    layer_or_model: Any,
    mapping: Mapped | None = None,
    *,
    flatten_order: FlattenOrder = "channels_first",
    inputs: Any = None,
    forward: Callable[..., Any] | None = None,
    tolerances: Mapping[str, float] = TOLERANCES,
    seed: int = 0,
) -> PortCheck:
    """Compare a Keras layer or model with its PyTorch original, forward and in all gradients.

    Every layer with weights is compared with a `torch.nn` module built for it, which gets its part
    of the tensors, on random input. Where a module is given, the whole model is compared with it as
    well. PyTorch computes in float64, Keras in float32, and on the TensorFlow backend, the only one
    that really computes in it, a copy of the Keras layers in float64 too. Neither the module nor
    the model is changed.

    Example:
        >>> check = check_port(module, model)
        >>> check.raise_if_different()

    Args:
        module_or_state_dict: as in `from_torch`.
        layer_or_model: as in `from_torch`.
        mapping: as in `from_torch`.
        flatten_order: as in `from_torch`.
        inputs: arrays for the whole model, one an input, as Keras takes them; drawn by default.
        forward: what PyTorch computes for the whole model, from a float64 copy of the module and
            tensors as Keras takes them, to what Keras returns:
            `lambda module, x: module(x.permute(0, 3, 1, 2)).softmax(-1)`. By default the module
            is called, with the last axis moved to the second place if a convolution comes first,
            and the outputs' second one to the last if they are filters'.
        tolerances: largest difference allowed, relative to a tensor's largest element, by dtype.
            (A float32 tensor may differ by more where PyTorch's own float32 does: by up to ten
            times as much as that is from PyTorch's float64.)
        seed: of the random input.

    Returns:
        The differences. (`raise_if_different()` makes them an error.)

    Raises:
        PortingError: as `from_torch`; or if PyTorch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise PortingError(
            "porting: a comparison with PyTorch needs it: pip install 'multibackend-lstm[torch]'"
        ) from error
    graph, state, pairs = plan(module_or_state_dict, layer_or_model, mapping, flatten_order)
    return check_pairs(
        graph, state, pairs, layer_or_model, inputs, forward, tolerances=tolerances, seed=seed
    )


def check_pairs(
    graph: Graph,
    state: StateDict,
    pairs: Sequence[Pair],
    layer_or_model: Any,
    inputs: Any = None,
    forward: Callable[..., Any] | None = None,
    *,
    tolerances: Mapping[str, float] = TOLERANCES,
    seed: int = 0,
) -> PortCheck:
    """As `check_port`, for layers that are paired already."""
    check = PortCheck()
    backend = keras.backend.backend()
    dtypes = ["float32", "float64"] if backend == "tensorflow" else ["float32"]
    if backend != "tensorflow":
        check.notes.append(f"float64 is not compared: Keras does not compute in it on {backend}.")
    generator = np.random.default_rng(seed)
    for dtype in dtypes:
        for pair in pairs:
            _check_layer(check, pair, state, dtype, tolerances[dtype], generator)
    if state.module is not None and isinstance(layer_or_model, keras.Model):
        given = _drawn(layer_or_model, generator) if inputs is None else inputs
        arrays = [np.asarray(x) for x in tree.flatten(given)]
        theirs, rounded = (
            _of_module(graph, state, arrays, forward, wide) for wide in (True, False)
        )
        for dtype in dtypes:
            model, originals = layer_or_model, layer_or_model.weights
            if dtype == "float64":
                model = _in_float64(layer_or_model)
                _assign(pairs, originals, model.weights, state)
            ours = _of_keras(check, model, originals, arrays)
            _compare(check, "model", dtype, tolerances[dtype], ours, theirs, rounded, pairs)
    elif state.module is not None:
        check.notes.append("A single layer is compared with a torch module built for it.")
    return check


def _check_layer(
    check: PortCheck,
    pair: Pair,
    state: StateDict,
    dtype: str,
    tolerance: float,
    generator: np.random.Generator,
) -> None:
    """Compare one layer with a torch module that is built for it."""
    import torch

    found = pair.layer
    shape = check_shape(found, _BATCH, _STEPS)
    layer = check_copy(found, dtype)
    if isinstance(found.layer, keras.layers.Embedding):
        x = generator.integers(0, found.layer.input_dim, shape).astype("int32")
    else:
        x = generator.normal(size=shape).astype("float32")
    inputs = keras.Input(batch_shape=shape, dtype="int32" if x.dtype.kind == "i" else dtype)
    model = keras.Model(inputs, layer(inputs))
    if dtype == "float64":
        _assign([pair], found.layer.weights, layer.weights, state)
    else:
        layer.set_weights([keras_value(weight) for weight in found.layer.weights])
    ours = _of_keras(check, model, found.layer.weights, [x])

    module, call = twin_of(found)
    tensors = pair.short_names(state.tensors)
    names = {n: part_name(n, None if pair.part.number is None else 0) for n in tensors}
    wanted = {names[name]: torch.tensor(np.array(value)) for name, value in tensors.items()}
    module.load_state_dict({**module.state_dict(), **wanted})

    def run(module: Any) -> _Values:
        theirs = _run_torch(module, lambda x: call(module, x), [x])
        full = {pair.part.names[name]: theirs.gradients.get(names[name]) for name in names}
        return replace(theirs, gradients=full)

    theirs, rounded = run(module), run(module.float())
    _compare(check, found.path, dtype, tolerance, ours, theirs, rounded, [pair])


def _assign(
    pairs: Sequence[Pair], originals: Sequence[Any], copies: Sequence[Any], state: StateDict
) -> None:
    """Give copied variables the tensors' values, not rounded to float32 on the way."""
    copy_of = {id(v): copied for v, copied in zip(originals, copies, strict=True)}
    for pair in pairs:
        tensors = pair.short_names(state.tensors)
        for weight in pair.layer.weights:
            copy_of[id(weight.variable)].assign(weight.to_keras(tensors).astype("float64"))


def _in_float64(model: keras.Model) -> keras.Model:
    config = with_dtype(keras.saving.serialize_keras_object(model), "float64")
    copied: keras.Model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    return copied


def _drawn(model: keras.Model, generator: np.random.Generator) -> list[np.ndarray]:
    """Random inputs; integers are within all the Embeddings of the model."""
    sizes = [x.input_dim for x in sublayers(model) if isinstance(x, keras.layers.Embedding)]
    drawn = []
    for x in model.inputs:
        shape = [_BATCH, *(size or 4 * _STEPS for size in x.shape[1:])]
        if keras.backend.is_float_dtype(x.dtype) and not _is_embedded(model, x):
            drawn.append(generator.normal(size=shape).astype("float32"))
        else:
            drawn.append(generator.integers(0, min(sizes, default=2), shape).astype("int32"))
    return drawn


def _is_embedded(model: keras.Model, x: Any) -> bool:
    """Whether an Embedding takes an input of the model, which Keras makes float32 by default."""
    return any(
        isinstance(layer, keras.layers.Embedding) and layer.input is x for layer in model.layers
    )


@dataclass(frozen=True)
class _Values:
    """Outputs and gradients, the last by torch's names, or by the ids of Keras's variables."""

    outputs: list[np.ndarray]
    input_gradients: list[np.ndarray]
    gradients: dict[Any, Any]


def _of_keras(
    check: PortCheck, model: keras.Model, originals: Sequence[Any], arrays: list[np.ndarray]
) -> _Values:
    """What a model computes; gradients by the ids of the variables that its own are copies of."""
    inputs = [
        ops.convert_to_tensor(x, dtype=spec.dtype)
        for x, spec in zip(arrays, model.inputs, strict=True)
    ]

    def call(inputs: list[Any]) -> list[Any]:
        structure = getattr(model, "_inputs_struct", None)  # which a Sequential model has not
        given = inputs[0] if structure is None else tree.pack_sequence_as(structure, list(inputs))
        return list(tree.flatten(model(given, training=False)))

    def loss(inputs: list[Any], factors: list[Any]) -> Any:
        return sum(ops.sum(y * f) for y, f in zip(call(inputs), factors, strict=True))

    with _uncompiled(model):
        outputs = [np.asarray(ops.convert_to_numpy(y)) for y in call(inputs)]
    factors = [ops.convert_to_tensor(f.astype(y.dtype)) for f, y in _factors(outputs)]
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(model.trainable_variables)
    try:
        step = backends.active().training_step(model, optimizer, loss)
    except backends.Refused as reason:
        check.notes = list(dict.fromkeys([*check.notes, f"Gradients are not compared: {reason}."]))
        return _Values(outputs, [], {})
    with _uncompiled(model):
        _, input_gradients, gradients = step(inputs, factors)
    original_of = {id(v): o for v, o in zip(model.weights, originals, strict=True)}
    return _Values(
        outputs,
        [np.asarray(ops.convert_to_numpy(g)) for g in input_gradients],
        {
            id(original_of[id(v)]): np.asarray(ops.convert_to_numpy(g))
            for v, g in zip(model.trainable_variables, gradients, strict=True)
        },
    )


@contextmanager
def _uncompiled(model: keras.Model) -> Iterator[None]:
    """Without graphs on TensorFlow, which take seconds a layer to compile and run once.

    (But the gradients of grouped convolutions, which it has on the CPU in graphs alone.)
    """
    grouped = any(getattr(layer, "groups", 1) > 1 for layer in sublayers(model))
    if keras.backend.backend() != "tensorflow" or grouped:
        yield
        return
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _factors(outputs: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A factor for each element in the loss, beside the outputs."""
    generator = np.random.default_rng(1)
    return [(generator.normal(size=y.shape).astype("float32"), y) for y in outputs]


def _run_torch(module: Any, call: Callable[..., Any], arrays: list[np.ndarray]) -> _Values:
    """What a module computes in its own dtype; gradients by the names of its parameters."""
    import torch

    dtype = next(module.parameters()).dtype
    inputs = [
        torch.tensor(x) if x.dtype.kind in "iub" else torch.tensor(x, dtype=dtype).requires_grad_()
        for x in arrays
    ]
    module.zero_grad()  # of an earlier run
    for parameter in module.parameters():
        parameter.requires_grad_()
    outputs = call(*inputs)
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    values = [y.detach().numpy() for y in outputs]
    pairs = zip(outputs, _factors(values), strict=True)
    loss = sum((y * torch.tensor(factor, dtype=dtype)).sum() for y, (factor, _) in pairs)
    loss.backward()
    zero = torch.zeros_like
    return _Values(
        values,
        [(zero(x) if x.grad is None else x.grad).numpy() for x in inputs if x.requires_grad],
        {
            name: (zero(p) if p.grad is None else p.grad).numpy()
            for name, p in module.named_parameters()
        },
    )


def _of_module(
    graph: Graph,
    state: StateDict,
    arrays: list[np.ndarray],
    forward: Callable[..., Any] | None,
    wide: bool,
) -> _Values:
    """What a copy of the given module computes, in float64 or float32."""
    module = copy.deepcopy(state.module).eval()
    module = module.double() if wide else module.float()
    if forward is None:
        return _run_torch(module, lambda *xs: _called(module, graph, xs), arrays)
    return _run_torch(module, lambda *xs: forward(module, *xs), arrays)


def _called(module: Any, graph: Graph, xs: Sequence[Any]) -> Any:
    """The module's outputs, with Keras's axes where those follow from the graph."""
    import torch

    first = [
        found.inputs.shape
        for found in graph.layers
        if found.rule.outputs == "filters"
        and not found.inputs.behind
        and found.layer.data_format == "channels_last"
    ]
    moved = [
        x.movedim(-1, 1) if given.shape in first else x
        for x, given in zip(xs, graph.inputs, strict=True)
    ]
    if isinstance(module, torch.nn.RNNBase):
        (x,) = moved
        x = x.flatten(2)
        sequence, states = module(x if module.batch_first else x.transpose(0, 1))
        hidden = states[0] if isinstance(states, tuple) else states
        if len(graph.outputs[0].shape) == 3:
            return sequence if module.batch_first else sequence.transpose(0, 1)
        return torch.cat(list(hidden[-2:] if module.bidirectional else hidden[-1:]), dim=-1)
    outputs = module(*moved)
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    return [
        y.movedim(1, -1) if wanted.axes[-1].filters else y
        for y, wanted in zip(outputs, graph.outputs, strict=False)
    ]


def _compare(
    check: PortCheck,
    where: str,
    dtype: str,
    tolerance: float,
    ours: _Values,
    theirs: _Values,
    rounded: _Values,
    pairs: Sequence[Pair],
) -> None:
    """Add the differences of all tensors to the check."""
    if len(ours.outputs) != len(theirs.outputs):
        raise PortingError(
            f"porting: {where} has {len(ours.outputs)} output(s) in Keras and "
            f"{len(theirs.outputs)} in PyTorch. Give `forward`, which calls the module and returns "
            "what Keras does."
        )
    compared = [
        (f"output {i}", ours.outputs[i], theirs.outputs[i], rounded.outputs[i])
        for i in range(len(ours.outputs))
    ]
    compared += [
        (f"gradient of input {i}", gradient, theirs.input_gradients[i], rounded.input_gradients[i])
        for i, gradient in enumerate(ours.input_gradients)
    ]
    for pair in pairs:
        for weight in pair.layer.weights:
            gradient = ours.gradients.get(id(weight.variable))
            if gradient is None:  # not trainable
                continue
            expected, in_float32 = (
                weight.to_keras(
                    {name: each.gradients[pair.part.names[name]] for name in weight.shapes},
                    gradient=True,
                )
                for each in (theirs, rounded)
            )
            label = f"gradient of {pair.layer.path}, {' and '.join(weight.shapes)}"
            compared.append((label, gradient, expected, in_float32))
    for tensor, a, b, c in compared:
        if a.shape != b.shape:
            raise PortingError(
                f"porting: the {tensor} of {where} has the shape {a.shape} in Keras and {b.shape} "
                "in PyTorch. Give `forward`, which calls the module and moves axes as needed."
            )
        allowed = tolerance
        if dtype == "float32" and np.isfinite(c).all():
            rounding = min(_ROUNDING * _difference(c, b), _MOST * tolerance)
            allowed = max(tolerance, rounding)
        check.differences.append(Difference(where, dtype, tensor, _difference(a, b), allowed))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype("float64"), b.astype("float64")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    scale = float(np.abs(b).max(initial=0.0)) or 1.0
    return float(np.abs(a - b).max(initial=0.0)) / scale

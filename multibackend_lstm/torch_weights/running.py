"""Outputs and gradients of a Keras model, and of a torch module, for the same inputs."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from multibackend_lstm.agreement.report import TargetResult
from multibackend_lstm.backends import Refused
from multibackend_lstm.layers.wrapping import sublayers
from multibackend_lstm.runtimes import backend_runtime
from multibackend_lstm.runtimes.loading import cause
from multibackend_lstm.runtimes.noise_floor import (
    FLOAT64_ROUNDING,
    ROUNDING,
    NoiseFloor,
    perturbed,
)
from multibackend_lstm.torch_weights.errors import PortingError
from multibackend_lstm.torch_weights.graph import Graph
from multibackend_lstm.torch_weights.state_dict import StateDict
from multibackend_lstm.torch_weights.stored_forms import split_projections

#: The gradient of each output.
Factors = list[np.ndarray]


@dataclass(frozen=True)
class Values:
    """Outputs and gradients, the last by torch's names, or by the ids of Keras's variables."""

    outputs: list[np.ndarray]
    input_gradients: list[np.ndarray]
    gradients: dict[Any, Any]


def of_keras(
    result: TargetResult, model: keras.Model, originals: Sequence[Any], arrays: list[np.ndarray]
) -> Values:
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
    factors = [
        ops.convert_to_tensor(f.astype(y.dtype))
        for f, y in zip(draw_factors(outputs), outputs, strict=True)
    ]
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(model.trainable_variables)
    try:
        step = backend_runtime.active().training_step(model, optimizer, loss)
    except Refused as reason:
        result.not_compared["gradients"] = str(reason)
        return Values(outputs, [], {})
    with _uncompiled(model):
        _, input_gradients, gradients = step(inputs, factors)
    original_of = {id(v): o for v, o in zip(model.weights, originals, strict=True)}
    return Values(
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


def draw_factors(outputs: Sequence[np.ndarray]) -> Factors:
    """A factor for each element of the outputs in the loss, their gradient."""
    generator = np.random.default_rng(1)
    return [generator.normal(size=y.shape).astype("float32") for y in outputs]


def run_torch(
    module: Any, call: Callable[..., Any], arrays: list[np.ndarray], factors: Factors | None
) -> Values:
    """What a module computes in its own dtype; gradients by the names of its parameters.

    Without `factors` the loss has those that `draw_factors` draws.
    """
    import torch

    tensors = itertools.chain(module.parameters(), module.buffers())
    dtype = next((x.dtype for x in tensors if x.is_floating_point()), torch.get_default_dtype())
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
    pairs = zip(outputs, factors or draw_factors(values), strict=True)
    loss = sum((y * torch.tensor(factor, dtype=dtype)).sum() for y, factor in pairs)
    loss.backward()
    zero = torch.zeros_like
    return Values(
        values,
        [(zero(x) if x.grad is None else x.grad).numpy() for x in inputs if x.requires_grad],
        split_projections(
            {
                name: (zero(p) if p.grad is None else p.grad).numpy()
                # Under each name of a tied one.
                for name, p in module.named_parameters(remove_duplicate=False)
            }
        ),
    )


#: The noise floor of a tensor by kind and path, and by how it is made of the values.
Floor = Callable[[str, str, Callable[[Values], np.ndarray]], float]
Run = Callable[[Any, list[np.ndarray], "Factors | None"], Values]


def of_module(
    graph: Graph, state: StateDict, forward: Callable[..., Any] | None
) -> tuple[Any, Run]:
    """A float64 copy of the given module, and a function that runs it."""
    module = _without_weight_norm(state).eval()

    def run(module: Any, arrays: list[np.ndarray], factors: Factors | None) -> Values:
        def call(*xs: Any) -> Any:
            try:
                outputs = _called(module, graph, xs) if forward is None else forward(module, *xs)
            except Exception as error:  # whatever a module raises that gets other axes
                what = (
                    f"`{type(module).__name__}`, called as the Keras model is,"
                    if (forward is None)
                    else "`forward`"
                )
                raise PortingError(
                    f"porting: {what} failed on inputs of {_shapes(xs)}: {cause(error)}. "
                    + _FORWARD
                ) from error
            return _checked(outputs)

        return run_torch(module, call, arrays, factors)

    return module, run


_FORWARD = (
    "Give `forward` (on the command line --forward), which calls the module on tensors as Keras "
    "takes them, and returns what Keras does: "
    "forward=lambda module, x: module(x.transpose(0, 1))[0]."
)


def _shapes(xs: Sequence[Any]) -> str:
    return " and ".join(f"shape {tuple(x.shape)}" for x in xs)


def _checked(outputs: Any) -> Any:
    """The outputs, if they are tensors of floating-point numbers."""
    import torch

    for each in outputs if isinstance(outputs, (list, tuple)) else [outputs]:
        if not isinstance(each, torch.Tensor) or not each.is_floating_point():
            found = each.dtype if isinstance(each, torch.Tensor) else type(each).__name__
            raise PortingError(
                f"porting: the module returns a {type(outputs).__name__} with a {found}, where "
                f"outputs are tensors of floating-point numbers, one for each of Keras. {_FORWARD}"
            )
    return outputs


def _without_weight_norm(state: StateDict) -> Any:
    """A float64 copy of the module, whose normalised weights are parameters, as they were read."""
    module = state.module
    import torch
    from torch.nn.utils import parametrize, remove_weight_norm
    from torch.nn.utils.weight_norm import WeightNorm

    hooks = [
        (name, hook)
        for name, each in module.named_modules()
        for hook in each._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm)
    ]
    computed = [(module.get_submodule(name).__dict__, hook.name) for name, hook in hooks]
    kept = [attributes[name] for attributes, name in computed]
    try:
        for (attributes, name), weight in zip(computed, kept, strict=True):
            attributes[name] = weight.detach()  # what has a history cannot be copied
        copied = copy.deepcopy(module).double()
    finally:
        for (attributes, name), weight in zip(computed, kept, strict=True):
            attributes[name] = weight
    for name, hook in hooks:
        remove_weight_norm(copied.get_submodule(name), hook.name)
    for each in list(copied.modules()):
        if not parametrize.is_parametrized(each):
            continue
        # Not by `remove_parametrizations`, which changes the class, that of the original too.
        weights = {name: getattr(each, name).detach() for name in each.parametrizations}
        each.__class__ = type(each).__bases__[0]
        del each.parametrizations
        for name, weight in weights.items():
            setattr(each, name, torch.nn.Parameter(weight))
    for weight, (sources, _) in state.sources.items():
        if len(sources) == 2:  # magnitude and direction; the product is rounded once
            copied.get_parameter(weight).data.copy_(torch.tensor(state.tensors[weight]))
    return copied


def perturbed_runs(
    run: Run, module: Any, arrays: list[np.ndarray], dtype: str, twins: int
) -> tuple[Values, Floor]:
    """A float64 module's values, and the noise floor of any array made of them.

    The twins move inputs, parameters and the gradient of the outputs within the rounding of a
    dtype; see `NoiseFloor`.

    Args:
        run: calls the module.
        module: in float64; its parameters are moved, and put back.
        arrays: inputs.
        dtype: whose rounding it is.
        twins: how many.

    Returns:
        The values, and the floor of any array made of them.
    """
    import torch

    exact = run(module, arrays, None)
    noise = NoiseFloor(ROUNDING.get(dtype, FLOAT64_ROUNDING), in_float64=True)
    factors = draw_factors(exact.outputs)
    parameters = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}

    def assign(name: str, values: np.ndarray) -> None:
        module.get_parameter(name).data.copy_(torch.from_numpy(values))

    runs = []
    for twin in range(1, twins + 1):
        rng, size = np.random.default_rng([0, twin]), noise.size(twin)
        for name, values in parameters.items():
            assign(name, perturbed(values, rng, size))
        moved = [perturbed(x, rng, size) for x in arrays]
        runs.append(run(module, moved, [perturbed(f, rng, size) for f in factors]))
    for name, values in parameters.items():
        assign(name, values)

    def floor(kind: str, path: str, of: Callable[[Values], np.ndarray]) -> float:
        for twin, values in enumerate(runs, start=1):
            noise.add(twin, (kind, path), of(values), of(exact))
        return noise.of((kind, path))[0]

    return exact, floor


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

"""to_step_model: the network of a model for one time step, with its states in and out."""

from typing import Any

import keras
from keras import KerasTensor

from multibackend_lstm.export.labels import output_names
from multibackend_lstm.layers import GRU, LSTM, LengthMasking
from multibackend_lstm.layers.validation import describe_shape
from multibackend_lstm.streaming.names import next_of
from multibackend_lstm.streaming.step_network import (
    Lengths,
    Series,
    StepNetwork,
    Summary,
    Unknown,
    Value,
)
from multibackend_lstm.streaming.step_rules import run_graph


def to_step_model(model: keras.Model) -> keras.Model:
    """Build the network of a model for one time step, with its states as inputs and outputs.

    After `n` steps it has come to what the model returns for those `n` steps: a model that
    returns one vector for a series gives that of the series so far, one that returns sequences
    their newest step. Dropout is off. `multibackend_lstm.Stream` feeds it.

    Example:
        >>> model = build_model((None, 8, 16), "reshape", units=32)
        >>> step = to_step_model(model)                        # a plain keras.Model
        >>> [x.name for x in step.inputs]
        ['inputs', 'lstm_c', 'lstm_h']
        >>> sorted(step.output)
        ['next_lstm_c', 'next_lstm_h', 'outputs']

    Args:
        model: a functional or Sequential model of series `(batch, time, *axes)`. Inputs of rank 3
            and more, and those whose second axis is open, are series, which advance together;
            others, `(batch, features)`, are given anew with each step. An input of lengths, as
            `build_model(lengths=True)` has it, falls away: every step that comes is valid.

    Returns:
        A functional `keras.Model` with copies of the weights. It takes a dict: an input of the
        same name for each series (`"inputs"` for one without), `(batch, *axes)`, and the states,
        `(batch, ...)`, which are zeros at first. It returns a dict: the outputs by the names of
        their layers, or by the keys that the model gives them, and each state by its name behind
        `"next_"`. A name that is taken gets a number, and what no artefact can have in one is `_`.

        Layers of half precision compute in float32 here. In a masked step states stay as they
        are, and the output is that of a series which ends with it. What the model gives for no
        series as short as the one so far, since its convolutions without padding consume more
        steps, is NaN.

    Raises:
        ValueError: for a model whose layers cannot be seen, or without a series; and, with the
            layer's name and the reason, for what cannot run step by step: what reads later steps
            (`Bidirectional`, `go_backwards`, attention, convolutions centred on a step), has
            fewer steps than come (strides along time), or is not known to treat each step alone.
    """
    graph = _graph(model)
    network = StepNetwork()
    given = [_input(network, graph, x) for x in graph.inputs]
    if not any(isinstance(value, Series) for value in given):
        shapes = ", ".join(describe_shape(x.shape) for x in graph.inputs)
        raise ValueError(
            f"to_step_model: '{model.name}' has no input that is a series, (batch, time, *axes). "
            f"Received {shapes}. A series of single numbers has an axis of one feature."
        )
    found = run_graph(network, model, given)
    for value in found:
        if isinstance(value, Unknown):
            raise value.error
        if isinstance(value, Lengths):
            raise ValueError(
                f"to_step_model: an output of '{model.name}' comes from the lengths of series."
            )
    # No output is called as what a state becomes: the model may forecast "next_x" of "x".
    taken = [*network.inputs, *map(next_of, [*network.inputs, "steps"])]
    names = output_names(graph, taken)
    return network.finish(dict(zip(names, found, strict=True)), f"{model.name}_step")


def is_step_model(model: Any) -> bool:
    """Whether a model is what `to_step_model` makes: some inputs are states, which come out too."""
    output = getattr(model, "output", None)
    if not isinstance(output, dict):
        return False
    states = [
        x
        for x in model.inputs
        # A forecast of the input "x" may be called "next_x" too.
        if None not in x.shape[1:]
        and tuple(getattr(output.get(next_of(x.name)), "shape", ())) == tuple(x.shape)
    ]
    return 0 < len(states) < len(model.inputs)


def embedded_inputs(step: keras.Model) -> dict[str, int]:
    """The inputs that an `Embedding` takes as they come, and how many entries the least one has.

    What is none of them gives an error on torch, NaN on JAX and zeros on TensorFlow.
    """
    nodes = [node for nodes in step._nodes_by_depth.values() for node in nodes]
    made_by = {id(x): node for node in nodes for x in node.outputs}
    found: dict[str, int] = {}
    for node in nodes:
        if not isinstance(node.operation, keras.layers.Embedding):
            continue
        x = node.arguments.keras_tensors[0]
        while type(made_by[id(x)].operation).__name__ == "ExpandDims":
            x = made_by[id(x)].arguments.keras_tensors[0]
        if any(x is given for given in step.inputs):
            entries = node.operation.input_dim
            found[x.name] = min(entries, found.get(x.name, entries))
    return found


def _graph(model: Any) -> Any:
    """The functional graph of a model."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"to_step_model: `model` must be a keras.Model. Received {type(model).__name__}. A "
            "file is loaded by `keras.models.load_model`."
        )
    graph = getattr(model, "_functional", model)  # that of a Sequential
    if graph is None:
        raise ValueError(
            f"to_step_model: the Sequential '{model.name}' is not built. Begin it with a "
            "`keras.Input`."
        )
    own_call = any(
        "call" in vars(kind) and not kind.__module__.startswith("keras.")
        for kind in type(model).__mro__
    )
    if own_call or not hasattr(graph, "_nodes_by_depth"):
        raise ValueError(
            f"to_step_model: '{model.name}' of type {type(model).__name__} has a `call` of its "
            "own, whose layers cannot be seen. Build it as a functional model."
        )
    return graph


def _input(network: StepNetwork, graph: Any, x: KerasTensor) -> Value:
    """What stands for an input of the model."""
    shape = tuple(x.shape)
    # A name that Keras made up is another one in each process.
    name = "inputs" if x.name.startswith("keras_tensor") else x.name
    if len(shape) == 1 and _is_lengths(graph, x):
        return Lengths()
    if len(shape) > 2 or (len(shape) == 2 and shape[1] is None):
        given = network.add_input(name, shape[2:], x.dtype)
        return Series(keras.ops.expand_dims(given, 1), shape)
    return Summary(network.add_input(name, shape[1:], x.dtype))


def _is_lengths(graph: Any, x: KerasTensor) -> bool:
    """Whether layers take an input for the lengths of series, and nothing else but a mask."""
    takers = [
        node.operation
        for nodes in graph._nodes_by_depth.values()
        for node in nodes
        if any(x is given for given in node.arguments.keras_tensors)
    ]
    layers = [taker for taker in takers if isinstance(taker, keras.layers.Layer)]
    return bool(layers) and all(isinstance(layer, (LengthMasking, LSTM, GRU)) for layer in layers)

"""What each kind of layer comes to when the series arrives step by step, or why it cannot.

A rule takes the layer and its arguments, in which each tensor is a `Series`, `Summary` or
`Lengths`, and returns what the layer's outputs are. A kind without a rule is refused: that a layer
treats each step alone is known, or it is not assumed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
from keras import KerasTensor, ops, tree

from multibackend_lstm import layers as own
from multibackend_lstm.layers import time_distributed as own_time_distributed
from multibackend_lstm.layers.folding import expand, maximum, mean
from multibackend_lstm.layers.validation import describe_shape, known_sizes, reduce_mask
from multibackend_lstm.layers.wrapping import accepts
from multibackend_lstm.streaming.step_network import (
    HALF,
    Lengths,
    Series,
    StepNetwork,
    Summary,
    Unknown,
    Value,
    beside,
    both,
    floating,
)

_L = keras.layers
Shape = tuple[int | None, ...]


class CannotStreamError(ValueError):
    """A layer cannot run step by step, and why."""


class Call:
    """One call of a layer or operation in a model's graph.

    Attributes:
        network: the step model.
        layer: the layer or operation.
        args: its positional arguments, with a `Value` in the place of each tensor.
        kwargs: those by name.
        shapes: of its outputs, in the model.
    """

    def __init__(
        self,
        network: StepNetwork,
        layer: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        shapes: Sequence[Shape],
    ) -> None:
        self.network, self.layer = network, layer
        self.args, self.kwargs, self.shapes = tuple(args), kwargs, list(shapes)

    @property
    def values(self) -> list[Value]:
        """What stands in the places of its tensors."""
        flat = tree.flatten((self.args, self.kwargs))
        return [x for x in flat if isinstance(x, (Series, Summary, Lengths, Unknown))]

    @property
    def series(self) -> Series:
        """The first argument, which has to be the one series among the arguments.

        Raises:
            CannotStreamError: if there is another.
        """
        first, *others = self.values
        if others or not isinstance(first, Series):
            raise CannotStreamError("beside the series it takes what another layer makes")
        return first

    def like(self, series: Series, x: KerasTensor, mask: Any = None) -> Series:
        """The one output, a series with the steps of another."""
        return Series(x, self.shapes[0], mask, series.delay)


_Rule = Callable[[Call], list[Value]]
_RULES: dict[type, _Rule] = {}
_OPERATION_RULES: dict[str, _Rule] = {}
_REASONS: dict[type, str] = {}


def run_graph(network: StepNetwork, model: keras.Model, given: Sequence[Value]) -> list[Value]:
    """What the outputs of a functional or Sequential model come to, for those of its inputs."""
    graph = getattr(model, "_functional", model)  # that of a Sequential
    known = {id(x): value for x, value in zip(graph.inputs, given, strict=True)}

    def value_of(x: Any) -> Any:
        return known[id(x)] if isinstance(x, KerasTensor) else x

    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = tree.map_structure(
                value_of, (node.arguments.args, node.arguments.kwargs)
            )
            shapes = [tuple(x.shape) for x in node.outputs]
            found = run(Call(network, node.operation, args, kwargs, shapes))
            known.update(zip(map(id, node.outputs), found, strict=True))
    return [known[id(x)] for x in graph.outputs]


def run(call: Call) -> list[Value]:
    """What the outputs of one call come to.

    Raises:
        ValueError: if a layer cannot run step by step, with the reason.
    """
    layer = call.layer
    is_layer = isinstance(layer, keras.layers.Layer)
    if not is_layer and any(isinstance(value, Lengths) for value in call.values):
        return _of_lengths(call)
    unknown = [value for value in call.values if isinstance(value, Unknown)]
    if unknown and is_layer:
        raise unknown[0].error
    if unknown:
        return [unknown[0] for _ in call.shapes]
    try:
        return _run(_with_mask(call))
    except CannotStreamError as reason:
        error = ValueError(
            f"to_step_model: '{layer.name}' of type {type(layer).__name__} cannot run step by "
            f"step: {reason}."
        )
        if is_layer:
            raise error from reason
        # It may be a part of a mask of lengths, of which nothing is needed.
        return [Unknown(error) for _ in call.shapes]


def _run(call: Call) -> list[Value]:
    layer, kind = call.layer, type(call.layer)
    if isinstance(layer, keras.Model):
        return _model(call)
    series = [value for value in call.values if isinstance(value, Series)]
    if not series:
        return _once(call)
    if any(each.padding for each in series) and kind not in _CONVOLUTIONS:
        raise CannotStreamError("zeros before a series can only go to a convolution along time")
    if call.kwargs.get("training") is True:
        raise CannotStreamError("it is called with training=True")
    if kind in _REASONS:
        raise CannotStreamError(_REASONS[kind])
    rule = _RULES.get(kind)
    if rule is None and kind.__module__.startswith("keras."):
        rule = _OPERATION_RULES.get(kind.__name__)
    if rule is None:
        raise CannotStreamError(
            "it is not known whether it treats each step alone. If it does, put it into "
            "`multibackend_lstm.TimeDistributed`"
        )
    return rule(call)


def _rule(*kinds: type | str) -> Callable[[_Rule], _Rule]:
    """Register a rule for layers by their class, operations by the name of theirs."""

    def register(rule: _Rule) -> _Rule:
        for kind in kinds:
            if isinstance(kind, str):
                _OPERATION_RULES[kind] = rule
            else:
                _RULES[kind] = rule
        return rule

    return register


def _with_mask(call: Call) -> Call:
    """The call without masks among its arguments: that of a series is a part of it.

    A layer that takes a mask has it among its arguments in the graph, since Keras puts it there;
    in a model within a model it comes with the tensor alone.
    """
    if not any(isinstance(value, Series) for value in call.values):
        return call
    names = [name for name in call.kwargs if name == "mask" or name.endswith("_mask")]
    kwargs = {name: value for name, value in call.kwargs.items() if name not in names}
    args = call.args
    for mask in tree.flatten([call.kwargs[name] for name in names]):
        if mask is None:
            continue
        first = args[0] if args else None
        if not isinstance(first, Series) or not isinstance(mask, (Series, Lengths)):
            raise CannotStreamError("its mask is not one of the steps of its first argument")
        # Within lengths are all the steps that come.
        args = (replace(first, mask=mask.x if isinstance(mask, Series) else None), *args[1:])
    return Call(call.network, call.layer, args, kwargs, call.shapes)


def _of_lengths(call: Call) -> list[Value]:
    """An operation on lengths: it makes a mask of them, in which every step that comes is valid."""
    series = [value for value in call.values if isinstance(value, Series)]
    if type(call.layer).__name__ == "LogicalAnd" and series:
        return [series[0]]
    return [Lengths() for _ in call.shapes]


def _model(call: Call) -> list[Value]:
    """A model that is a layer of another."""
    model = call.layer
    if not isinstance(model, keras.Sequential) and not hasattr(model, "_nodes_by_depth"):
        raise CannotStreamError(
            "it is a model with a `call` of its own, whose layers cannot be seen"
        )
    with call.network.inside(model):
        return run_graph(call.network, model, call.values)


def _once(call: Call) -> list[Value]:
    """What takes no series: it is called as it is, on what the steps so far have come to."""
    if any(isinstance(value, Lengths) for value in call.values):
        raise CannotStreamError("it takes the lengths of whole series")
    delay = max((x.delay for x in call.values if isinstance(x, Summary)), default=0)
    return [Summary(x, delay) for x in tree.flatten(_called(call))]


def _called(call: Call, changes: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """What the layer returns for the tensors of its arguments, and what else is given by name."""

    def tensor(value: Any) -> Any:
        return value.x if isinstance(value, (Series, Summary)) else value

    args, given = tree.map_structure(tensor, (call.args, call.kwargs))
    return call.network.call(call.layer, *args, changes=changes, **{**given, **kwargs})


def _each_step(call: Call) -> list[Value]:
    """A layer that treats each step alone is called on the step."""
    series = call.series
    _check_activation(call)
    kwargs = {}
    if series.mask is not None and accepts(call.layer, "mask"):
        kwargs["mask"] = series.mask
    mask = None
    if series.mask is not None and call.layer.supports_masking:
        mask = call.layer.compute_mask(series.x, series.mask)
    return [call.like(series, _called(call, **kwargs), mask)]


def _check_activation(call: Call) -> None:
    """Refuse a function of the user's, as an activation, that reads other steps."""
    function = getattr(call.layer, "activation", None)
    module = str(getattr(function, "__module__", None))
    if function is None or module.startswith(("keras.", "multibackend_lstm.")):
        return
    name = getattr(function, "__name__", type(function).__name__)
    sizes = call.shapes[0][2:]
    x = KerasTensor((None, None, *sizes), call.layer.compute_dtype)
    try:
        graph = keras.Function(x, function(x))
    except Exception as error:
        raise CannotStreamError(
            f"its activation `{name}` may do anything. Write it in keras.ops"
        ) from error
    network = StepNetwork()
    step = KerasTensor((None, 1, *sizes), x.dtype)
    (found,) = run_graph(network, graph, [Series(step, x.shape)])
    if not isinstance(found, Series) or network.inputs:
        raise CannotStreamError(f"its activation `{name}` reads other steps")


def _axes(axis: Any, rank: int) -> list[int]:
    """Axes, counted from the front."""
    given = axis if isinstance(axis, (list, tuple)) else [axis]
    return [a + rank if a < 0 else a for a in given if a is not None]


def _check_not_along_time(axis: Any, rank: int) -> None:
    """Refuse axes of the steps, and of the samples."""
    if {0, 1} & {*_axes(axis, rank)}:
        raise CannotStreamError(f"axis={axis} runs along time")


for _kind in (
    _L.Activation, _L.ActivityRegularization, _L.Dense, _L.ELU, _L.Identity, _L.LeakyReLU,
    _L.ReLU, own.FlattenFeatures, own.Normalization, own.TimeDistributedConv,
):  # fmt: skip
    _RULES[_kind] = _each_step


@_rule(
    _L.BatchNormalization, _L.LayerNormalization, _L.Normalization, _L.RMSNormalization,
    _L.Softmax, _L.UnitNormalization,
)  # fmt: skip
def _along_axis(call: Call) -> list[Value]:
    _check_not_along_time(call.layer.axis, len(call.series.x.shape))
    return _each_step(call)


@_rule(_L.Rescaling)
def _rescaling(call: Call) -> list[Value]:
    for constant in (call.layer.scale, call.layer.offset):
        _check_constant(ops.convert_to_tensor(constant).shape, len(call.series.x.shape))
    return _each_step(call)


@_rule(_L.PReLU)
def _prelu(call: Call) -> list[Value]:
    if 1 not in (call.layer.shared_axes or ()):
        raise CannotStreamError("it has a slope for each step. Use shared_axes=[1]")
    return _each_step(call)


@_rule(
    own.Dropout, own.GaussianDropout, own.GaussianNoise, own.SpatialDropout1D,
    own.SpatialDropout2D, _L.AlphaDropout, _L.Dropout, _L.GaussianDropout, _L.GaussianNoise,
    _L.SpatialDropout1D, _L.SpatialDropout2D, _L.SpatialDropout3D,
)  # fmt: skip
def _nothing(call: Call) -> list[Value]:
    """What does nothing in inference."""
    return [call.series]


@_rule(own.TimeDistributed, _L.TimeDistributed)
def _time_distributed(call: Call) -> list[Value]:
    series = call.series
    if series.mask is None:
        return _each_step(call)
    if len(series.mask.shape) > 2:
        raise CannotStreamError("its mask has axes behind time")
    return [call.like(series, _called(call, mask=series.mask), series.mask)]


@_rule(own_time_distributed.TimeDistributedMask)
def _time_distributed_mask(call: Call) -> list[Value]:
    # `_with_mask` has made the mask a part of the series if it came by name.
    series, mask = [*call.values, None][:2]
    assert isinstance(series, Series)
    mask = mask.x if isinstance(mask, Series) else series.mask
    if mask is None:
        raise CannotStreamError("its layer makes a mask of its own")
    return [call.like(series, reduce_mask(mask))]


@_rule(_L.Embedding)
def _embedding(call: Call) -> list[Value]:
    series = call.series
    mask = ops.not_equal(series.x, 0) if call.layer.mask_zero else None
    return [call.like(series, _called(call, changes={"mask_zero": False}), mask)]


@_rule(_L.Masking)
def _masking(call: Call) -> list[Value]:
    """As the Keras layer, with a mask that is a tensor like any other."""
    series, layer = call.series, call.layer
    x = series.x
    if layer.autocast and keras.backend.is_float_dtype(x.dtype):
        x = ops.cast(x, layer.compute_dtype)  # in which the values are compared
    valid = ops.any(ops.not_equal(x, layer.mask_value), axis=-1)
    x = ops.where(ops.expand_dims(valid, -1), x, ops.zeros_like(x))
    return [call.like(series, x, valid)]


@_rule(own.LengthMasking)
def _length_masking(call: Call) -> list[Value]:
    """Every step that comes is valid."""
    series, _ = call.values
    return [series]


def _step_size(call: Call, shape: Shape) -> int:
    return math.prod(known_sizes(call.layer.name, shape, range(2, len(shape))))


@_rule(_L.Reshape, "Reshape")
def _reshape(call: Call) -> list[Value]:
    """Row-major order keeps each step together where the axes before it stay."""
    series, (shape,) = call.series, call.shapes
    kept = len(shape) > 1 and shape[:2] == series.shape[:2]
    if not kept or _step_size(call, shape) != _step_size(call, series.shape):
        raise CannotStreamError(
            f"from {describe_shape(series.shape)} to {describe_shape(shape)} it moves values "
            "from step to step"
        )
    return [call.like(series, ops.reshape(series.x, (-1, 1, *shape[2:])))]


@_rule(_L.Permute)
def _permute(call: Call) -> list[Value]:
    if call.layer.dims[0] != 1:
        raise CannotStreamError("it moves the axis of time")
    return _each_step(call)


@_rule(
    _L.Add, _L.Average, _L.Concatenate, _L.Maximum, _L.Minimum, _L.Multiply, _L.Subtract,
)  # fmt: skip
def _merge(call: Call) -> list[Value]:
    series = _alike(call)
    if isinstance(call.layer, _L.Concatenate):
        _check_not_along_time(call.layer.axis, len(series[0].x.shape))
    mask = None
    if call.layer.supports_masking and any(each.mask is not None for each in series):
        mask = call.layer.compute_mask([x.x for x in series], [x.mask for x in series])
    return [call.like(series[0], _called(call), mask)]


def _alike(call: Call) -> list[Series]:
    """The arguments, if all are series with as many axes."""
    found = [value for value in call.values if isinstance(value, Series)]
    if len(found) < len(call.values):
        raise CannotStreamError(
            "it joins a series with something that depends on all steps so far, which would "
            "change every earlier step"
        )
    if len({len(x.x.shape) for x in found}) > 1 or len({x.delay for x in found}) > 1:
        shapes = ", ".join(describe_shape(x.shape) for x in found)
        raise CannotStreamError(f"it joins series that differ in steps or axes: {shapes}")
    return found


# What carries something from step to step.


@_rule(
    _L.SimpleRNN, _L.LSTM, _L.GRU, _L.ConvLSTM1D, _L.ConvLSTM2D, _L.ConvLSTM3D, _L.RNN,
    own.LSTM, own.GRU, own.ConvLSTM1D, own.ConvLSTM2D, own.ConvLSTM3D,
)  # fmt: skip
def _recurrent(call: Call) -> list[Value]:
    """A call with one step, from and to its states."""
    layer, network = call.layer, call.network
    series = call.args[0]
    if not isinstance(series, Series) or any(
        isinstance(x, (Series, Summary)) for x in call.values[1:]
    ):
        raise CannotStreamError("it starts from states that another layer makes")
    if layer.go_backwards:
        raise CannotStreamError("with go_backwards=True it begins at the end of the series")
    if type(layer) is _L.RNN and type(layer.cell) not in _CELLS:
        raise CannotStreamError(
            f"it is not known whether the output of its {type(layer.cell).__name__} is its state"
        )
    names = ("h",) if isinstance(layer.cell, (_L.SimpleRNNCell, _L.GRUCell)) else ("h", "c")
    # The output is the first state, and the other is as large.
    shape: Any = call.shapes[0][2:] if layer.return_sequences else call.shapes[0][1:]
    dtype = "float32" if layer.compute_dtype in HALF else layer.compute_dtype
    states = [network.add_state(layer.name, name, shape, dtype) for name in names]
    changes = {"return_sequences": False, "return_state": True, "stateful": False, "unroll": False}
    _, *new = network.call(
        layer, series.x, initial_state=[state.value for state in states], changes=changes
    )
    valid = None if series.mask is None else reduce_mask(series.mask)
    update = both(valid, network.ready(series.delay))
    kept = [state.keep(x, update) for state, x in zip(states, new, strict=True)]
    output = kept[0]
    if valid is not None and layer.zero_output_for_mask:
        output = ops.where(beside(valid, output), output, ops.zeros_like(output))
    found: list[Value] = [Summary(output, series.delay)]
    if layer.return_sequences:
        found = [call.like(series, ops.expand_dims(output, 1), valid)]
    if layer.return_state:
        found += [Summary(state, series.delay) for state in kept]
    return found


_CELLS = (_L.SimpleRNNCell, _L.LSTMCell, _L.GRUCell)


@_rule(own.Channelwise)
def _channelwise(call: Call) -> list[Value]:
    """The layer inside, on channels folded into the batch."""
    series, layer, network = call.series, call.layer, call.network
    shape = series.x.shape
    *axes, features = known_sizes(layer.name, shape, range(2, len(shape)))
    count = math.prod(axes)

    def fold(x: KerasTensor, *behind: Any) -> KerasTensor:
        return ops.reshape(x, (-1, 1, *behind))

    mask = series.mask
    if mask is not None:
        mask = ops.logical_and(expand(mask, 2 + len(axes)), ops.ones((1, 1, *axes), dtype="bool"))
    with network.folded(count):
        inner = Series(
            fold(series.x, features),
            (None, series.shape[1], features),
            None if mask is None else fold(mask),
            series.delay,
        )
        outputs = layer.layer.compute_output_shape((None, series.shape[1], features))
        if len(call.shapes) > 1:
            raise CannotStreamError("its layer returns several tensors")
        (found,) = run(Call(network, layer.layer, [inner], {}, [tuple(outputs)]))
    assert isinstance(found, (Series, Summary))
    steps = (1,) if isinstance(found, Series) else ()
    units = found.x.shape[-1]
    channels = ops.reshape(found.x, (-1, count, *steps, units))
    joined = {
        "sum": lambda: ops.sum(channels, axis=1),
        "average": lambda: mean(channels, (1,)),
        "max": lambda: maximum(channels, (1,)),
        "concat": lambda: ops.reshape(channels, (-1, *steps, count * units)),
        "stack": lambda: ops.reshape(channels, (-1, *steps, *axes, units)),
    }[layer.merge]()
    if isinstance(found, Summary):
        return [Summary(joined, found.delay)]
    if found.mask is not None:
        mask = series.mask if layer.merge == "stack" else reduce_mask(series.mask)
    return [Series(joined, call.shapes[0], mask if found.mask is not None else None, found.delay)]


# What reads some earlier steps.


_CONVOLUTIONS = (
    _L.Conv1D, _L.Conv2D, _L.Conv3D, _L.DepthwiseConv1D, _L.DepthwiseConv2D, _L.SeparableConv1D,
    _L.SeparableConv2D,
)  # fmt: skip


@_rule(
    *_CONVOLUTIONS,
    _L.AveragePooling1D, _L.AveragePooling2D, _L.AveragePooling3D,
    _L.MaxPooling1D, _L.MaxPooling2D, _L.MaxPooling3D,
)  # fmt: skip
def _window(call: Call) -> list[Value]:
    """A convolution or pooling along time: the steps before this one are a state."""
    series, layer, network = call.series, call.layer, call.network
    if layer.data_format == "channels_first":
        raise CannotStreamError(
            "with channels_first it takes the axis of time for that of channels"
        )
    sizes = getattr(layer, "kernel_size", None) or layer.pool_size
    dilation = getattr(layer, "dilation_rate", (1,))[0]
    before = (sizes[0] - 1) * dilation
    if layer.strides[0] != 1:
        raise CannotStreamError(
            f"strides of {layer.strides[0]} along time make fewer steps than come"
        )
    if before == 0:
        return _each_step(call)
    _check_activation(call)
    if layer.padding == "same":
        raise CannotStreamError(
            f'with padding="same" it is centred: each step reads {before - before // 2} later '
            'ones. Use padding="causal" (Conv1D) or "valid"'
        )
    causal = layer.padding == "causal"
    if series.padding > (0 if causal else before):
        raise CannotStreamError("more zeros stand before the series than it reads")
    x = ops.cast(series.x, "float32") if series.x.dtype in HALF else series.x
    ready = network.ready(series.delay)
    if ready is not None:
        x = ops.where(beside(ready, x), x, ops.zeros_like(x))
    state = network.add_state(layer.name, "buffer", (before, *x.shape[2:]), x.dtype)
    steps = ops.concatenate([state.value, x], axis=1)
    state.keep(steps[:, 1:])
    changes = {"padding": "valid"} if causal else None
    mask = series.mask if layer.supports_masking else None
    delay = series.delay + (0 if causal else before - series.padding)
    return [Series(network.call(layer, steps, changes=changes), call.shapes[0], mask, delay)]


@_rule(_L.ZeroPadding1D, _L.ZeroPadding2D, _L.ZeroPadding3D)
def _zero_padding(call: Call) -> list[Value]:
    """Zeros before a series, which a convolution along time takes; on other axes they are put."""
    series, layer = call.series, call.layer
    if getattr(layer, "data_format", None) == "channels_first":
        raise CannotStreamError(
            "with channels_first it takes the axis of time for that of channels"
        )
    time, *others = [layer.padding] if isinstance(layer, _L.ZeroPadding1D) else layer.padding
    if time[1]:
        raise CannotStreamError("it puts zeros behind the series, whose end a stream does not have")
    padded = series.x
    if others:
        padded = _called(call, changes={"padding": ((0, 0), *others)})
    ready = call.network.ready(series.delay)
    if ready is not None:
        padded = ops.where(beside(ready, padded), padded, ops.zeros_like(padded))
    return [Series(padded, call.shapes[0], None, series.delay, time[0])]


# What reads all earlier steps, by a statistic of them.


@_rule(
    _L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D, _L.GlobalAveragePooling3D,
    _L.GlobalMaxPooling1D, _L.GlobalMaxPooling2D, _L.GlobalMaxPooling3D,
)  # fmt: skip
def _global_pooling(call: Call) -> list[Value]:
    series, layer = call.series, call.layer
    if layer.data_format == "channels_first" or layer.keepdims:
        raise CannotStreamError("with channels_first or keepdims it is not supported")
    axes = tuple(range(2, len(series.x.shape) - 1))
    average = isinstance(
        layer, (_L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D, _L.GlobalAveragePooling3D)
    )
    takes_mask = series.mask is not None and accepts(layer, "mask")
    return [_running(call, "mean" if average else "max", axes, with_mask=takes_mask)]


@_rule("All", "Any", "Max", "Mean", "Min", "Sum")
def _reduce(call: Call) -> list[Value]:
    series, operation = call.series, call.layer
    rank = len(series.x.shape)
    axes = list(range(rank)) if operation.axis is None else _axes(operation.axis, rank)
    if 0 in axes:
        raise CannotStreamError("it joins the samples of a batch")
    if 1 not in axes:
        return [call.like(series, _called(call))]
    if operation.keepdims or type(operation).__name__ in ("All", "Any"):
        raise CannotStreamError(
            "with keepdims=True, and of booleans, it is not supported along time"
        )
    if getattr(operation, "initial", None) is not None:
        raise CannotStreamError("with `initial` it is not supported along time")
    others = tuple(axis for axis in axes if axis != 1)
    return [_running(call, type(operation).__name__.lower(), others)]


def _running(call: Call, kind: str, axes: tuple[int, ...], with_mask: bool = False) -> Summary:
    """The mean, sum, largest or smallest of all steps so far, and of `axes` in each."""
    series, network = call.series, call.network
    x = ops.cast(series.x, floating(series.x.dtype)) if kind == "mean" else series.x
    reduce = {"mean": ops.mean, "sum": ops.sum, "max": ops.max, "min": ops.min}[kind]
    x = reduce(x, axis=axes)[:, 0] if axes else x[:, 0]
    shape: Any = x.shape[1:]
    state = network.add_state(call.layer.name, kind, shape, x.dtype)
    count = network.add_state(call.layer.name, "count", (1,), "int32")
    valid = reduce_mask(series.mask) if with_mask and series.mask is not None else None
    update = both(valid, network.ready(series.delay))
    number = count.keep(count.value + 1, update)
    first = ops.equal(count.value, 0)
    if kind == "mean":
        # In place of a sum, which would lose digits over a million steps.
        new = state.value + (x - state.value) / ops.cast(beside(number, x), x.dtype)
    elif kind == "sum":
        new = state.value + x
    else:
        larger = ops.maximum if kind == "max" else ops.minimum
        new = ops.where(beside(first, x), x, larger(state.value, x))
    found = state.keep(new, update)
    if kind == "mean" and valid is not None:  # nothing valid yet
        found = ops.where(beside(ops.equal(number, 0), found), math.nan, found)
    return Summary(found, series.delay)


# Operations of keras.ops in a model's graph. They drop masks, as they do in Keras.


@_rule(
    "Abs", "Absolute", "Add", "Arctan", "Cast", "Clip", "Cos", "Divide", "Elu", "Equal", "Erf",
    "Exp", "Expm1", "Gelu", "Greater", "GreaterEqual", "HardSigmoid", "HardSilu", "HardTanh",
    "Isfinite", "Isnan", "LeakyRelu", "Less", "LessEqual", "Log", "Log1p", "LogSigmoid",
    "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Multiply", "NanToNum",
    "Negative", "NotEqual", "OnesLike", "Power", "Reciprocal", "Relu", "Relu6", "Round", "Rsqrt",
    "Selu", "Sigmoid", "Sign", "Silu", "Sin", "Softplus", "Softsign", "Sqrt", "Square", "Subtract",
    "Tanh", "TrueDivide", "Where", "ZerosLike",
)  # fmt: skip
def _elementwise(call: Call) -> list[Value]:
    series = _alike(call)
    rank = len(series[0].x.shape)
    for constant in tree.flatten((call.args, call.kwargs)):
        shape = () if isinstance(constant, Series) else getattr(constant, "shape", ())
        _check_constant(shape, rank)
    return [call.like(series[0], _called(call))]


def _check_constant(shape: Sequence[int], rank: int) -> None:
    """Refuse a constant that has an axis of the steps, which a tensor of so many axes meets."""
    if len(shape) >= rank - 1 and any(size != 1 for size in shape[: len(shape) - rank + 2]):
        raise CannotStreamError("a constant of it differs from step to step")


@_rule("Concatenate", "Softmax", "LogSoftmax")
def _operation_along_axis(call: Call) -> list[Value]:
    series = _alike(call)
    if call.layer.axis is None:
        raise CannotStreamError("without an `axis` it takes all steps together")
    _check_not_along_time(call.layer.axis, len(series[0].x.shape))
    return [call.like(series[0], _called(call))]


@_rule("ExpandDims")
def _expand_dims(call: Call) -> list[Value]:
    _check_not_along_time(call.layer.axis, len(call.series.x.shape) + 1)
    return [call.like(call.series, _called(call))]


@_rule("Squeeze")
def _squeeze(call: Call) -> list[Value]:
    if call.layer.axis is None:
        raise CannotStreamError("without an `axis` it may drop that of time")
    _check_not_along_time(call.layer.axis, len(call.series.x.shape))
    return [call.like(call.series, _called(call))]


@_rule("Transpose")
def _transpose(call: Call) -> list[Value]:
    if call.layer.axes is None or [*call.layer.axes[:2]] != [0, 1]:
        raise CannotStreamError("it moves the axis of time")
    return [call.like(call.series, _called(call))]


@_rule("GetItem")
def _get_item(call: Call) -> list[Value]:
    """`x[:, -1]` is the newest step; indices behind time are the same at each."""
    series, key = call.series, call.args[1] if len(call.args) > 1 else call.kwargs["key"]
    items = [*key] if isinstance(key, (list, tuple)) else [key]
    if Ellipsis in [item for item in items if not hasattr(item, "shape")]:
        place = items.index(Ellipsis)
        given = sum(item is not None for item in items) - 1
        items[place : place + 1] = [slice(None)] * (len(series.x.shape) - given)
    items += [slice(None)] * (2 - len(items))
    batch, time, *behind = items
    everything = slice(None)
    if batch == everything and time == everything:
        return [call.like(series, series.x[(everything, everything, *behind)])]
    if batch == everything and time == -1:
        return [Summary(series.x[(everything, 0, *behind)], series.delay)]
    if batch == everything and time == slice(-1, None):
        return [Summary(series.x[(everything, everything, *behind)], series.delay)]
    raise CannotStreamError(
        f"of the steps it takes {time}, and a stream has the newest alone, x[:, -1]"
    )


@_rule("Take")
def _take(call: Call) -> list[Value]:
    series, indices = call.series, call.args[1] if len(call.args) > 1 else call.kwargs["indices"]
    axis = None if call.layer.axis is None else _axes(call.layer.axis, len(series.x.shape))[0]
    if axis is not None and axis > 1:
        return [call.like(series, _called(call))]
    if axis == 1 and isinstance(indices, int) and indices == -1:
        return [Summary(series.x[:, 0], series.delay)]
    raise CannotStreamError("it takes other steps than the newest, -1")


_ALL_STEPS = "it reads all steps of the series, at each of them later ones too"
_REASONS.update(
    {
        **dict.fromkeys(
            (_L.Bidirectional, own.Bidirectional),
            "its backward half begins at the end of the series",
        ),
        **dict.fromkeys(
            (_L.Attention, _L.AdditiveAttention, _L.MultiHeadAttention, _L.GroupQueryAttention),
            _ALL_STEPS,
        ),
        _L.Flatten: "it makes one vector of all steps, however many there are",
        _L.GroupNormalization: "its mean and variance are those of all steps together",
        **dict.fromkeys(
            (_L.UpSampling1D, _L.UpSampling2D, _L.Conv1DTranspose, _L.Conv2DTranspose),
            "it makes several steps of one",
        ),
        _L.Lambda: "its function may do anything. Use a layer, or keras.ops in the model's graph",
    }
)

"""The layers with weights of a Keras model, and how PyTorch orders the features that each takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import tree

from multibackend_lstm.layers import (
    Channelwise,
    Dropout,
    FlattenFeatures,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout1D,
    SpatialDropout2D,
    TimeDistributed,
    TimeDistributedConv,
)
from multibackend_lstm.torch_weights.axes import (
    Axis,
    Features,
    UnknownOrder,
    join,
    merge,
    reshape,
    same_axes,
)
from multibackend_lstm.torch_weights.errors import PortingError
from multibackend_lstm.torch_weights.operations import broadcast, contract, follow
from multibackend_lstm.torch_weights.rules import SUPPORTED, rule_of
from multibackend_lstm.torch_weights.rules.base import Rule
from multibackend_lstm.torch_weights.weights import Weight

_L = keras.layers
# What leaves every element in its place.
_ELEMENTWISE = (
    Dropout, GaussianDropout, GaussianNoise, SpatialDropout1D, SpatialDropout2D,
    _L.Activation, _L.ActivityRegularization, _L.AlphaDropout, _L.Dropout, _L.ELU,
    _L.GaussianDropout, _L.GaussianNoise, _L.Identity, _L.LeakyReLU, _L.Masking, _L.ReLU,
    _L.Rescaling, _L.Softmax, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.SpatialDropout3D,
    _L.UnitNormalization,
)  # fmt: skip
_MERGING = (_L.Add, _L.Average, _L.Maximum, _L.Minimum, _L.Multiply, _L.Subtract)
_POOLING = tuple(
    getattr(_L, f"{kind}Pooling{rank}D") for kind in ("Max", "Average") for rank in (1, 2, 3)
)
_GLOBAL_POOLING = tuple(
    getattr(_L, f"Global{kind}Pooling{rank}D") for kind in ("Max", "Average") for rank in (1, 2, 3)
)
_ZERO_PADDING = (_L.ZeroPadding1D, _L.ZeroPadding2D, _L.ZeroPadding3D)
_RESIZING = (
    *_ZERO_PADDING, _L.Cropping1D, _L.Cropping2D, _L.Cropping3D,
    _L.UpSampling1D, _L.UpSampling2D, _L.UpSampling3D,
)  # fmt: skip
_ATTENTION = (_L.Attention, _L.AdditiveAttention)
_SEVERAL_INPUTS = (*_MERGING, _L.Concatenate, _L.Dot, *_ATTENTION)


@dataclass(frozen=True)
class WeightedLayer:
    """A layer of the Keras model that has weights.

    Attributes:
        layer: the Keras layer.
        path: its place in the model, `"block/conv"`.
        rule: how it corresponds to a torch module.
        inputs: the tensor that it takes, of its first call.
        weights: its weights.
        calls: how often the model calls it; more than once, it is shared.
    """

    layer: Any
    path: str
    rule: Rule
    inputs: Features
    weights: list[Weight]
    calls: int = 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the module's parameters and buffers."""
        return {name: shape for weight in self.weights for name, shape in weight.shapes.items()}


@dataclass(frozen=True)
class Graph:
    """A Keras model or layer, seen from PyTorch.

    Attributes:
        layers: those with weights, in the order in which they run.
        inputs: the model's inputs.
        outputs: its outputs; empty for a single layer.
    """

    layers: list[WeightedLayer]
    inputs: list[Features]
    outputs: list[Features]


def read_graph(layer_or_model: Any, flatten_order: str) -> Graph:
    """Walk through a model.

    Raises:
        PortingError: for a layer that is not built, not supported, or whose features cannot be
            followed.
    """
    if not isinstance(layer_or_model, keras.layers.Layer):
        raise PortingError(
            "porting: `layer_or_model` must be a Keras layer or model. Received an object of type "
            f"{type(layer_or_model).__module__}.{type(layer_or_model).__name__}."
        )
    if not layer_or_model.built:
        raise PortingError(
            f"porting: '{layer_or_model.name}' has no weights yet, since its input shape is not "
            "known. Call `build(input_shape)`, or call it once on data."
        )
    walk = _Walk(filters_first=flatten_order == "channels_first")
    inputs = [Features(tuple(map(Axis, shape))) for shape in _input_shapes(layer_or_model)]
    is_model = isinstance(layer_or_model, keras.Model)
    outputs = walk.visit(layer_or_model, "" if is_model else layer_or_model.name, inputs, None)
    return Graph(walk.layers, inputs, outputs)


def _input_shapes(layer: Any) -> list[tuple[int | None, ...]]:
    if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
        return [tuple(x.shape) for x in layer.inputs]
    config = layer.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"input_shape": config.get("input_shape")}
    shape = next(iter(shapes.values()))
    if shape is None or not all(size is None or isinstance(size, int) for size in shape):
        raise PortingError(
            f"porting: the input shape of '{layer.name}' cannot be told. Put it into a functional "
            "or Sequential model that begins with a keras.Input."
        )
    return [tuple(shape)]


class _Walk:
    """Visits layers in the order in which they run."""

    def __init__(self, filters_first: bool) -> None:
        self.layers: list[WeightedLayer] = []
        self._numbers: dict[int, int] = {}
        self._filters_first = filters_first

    def visit(
        self,
        layer: Any,
        path: str,
        inputs: list[Features],
        shapes: list[Any] | None,
        arguments: Sequence[Any] = (),
    ) -> list[Features]:
        """The outputs of a layer for its inputs.

        Args:
            layer: a Keras layer, model or operation.
            path: its place in the model.
            inputs: what it takes.
            shapes: of its outputs, where the caller knows them.
            arguments: of an operation, with `Features` in the place of tensors.
        """
        behind = frozenset[int]().union(*(x.behind for x in inputs))
        model = self._model(layer)
        if model is not None:
            return model(self, layer, path, inputs)
        if isinstance(layer, keras.layers.Layer) and type(layer) not in _SEVERAL_INPUTS:
            # What else a layer is called with is a mask, or initial states.
            if any(_ordered(x) for x in inputs[1:]):
                raise PortingError(
                    f"porting: '{path}' is called with a mask or a state whose features a flatten "
                    "has put in another order, which is not supported."
                )
            inputs = inputs[:1]
        if type(layer) in _INSIDE:
            return _INSIDE[type(layer)](self, layer, path, inputs)
        if shapes is None:
            shapes = _output_shapes(layer, inputs)
        rule = rule_of(layer)
        if rule is not None:
            behind |= self._add(layer, path, rule, inputs[0])
        elif getattr(layer, "weights", None):
            raise PortingError(
                f"porting: layer '{path}' of type {type(layer).__module__}.{type(layer).__name__} "
                f"has weights and is not supported. Supported: {', '.join(SUPPORTED)}. Port the "
                "layers around it one by one, and its own weights with `layer.set_weights`."
            )
        reason = next((x.unknown for x in inputs if x.unknown), None)
        try:
            if isinstance(layer, keras.layers.Layer):
                axes = self._axes(layer, rule, inputs, shapes)
            else:
                axes = follow(layer, _operands(arguments), arguments, shapes)
            if axes is None and all(x.plain for x in inputs):
                axes = [[Axis(size) for size in shape] for shape in shapes]
            if axes is None:
                raise UnknownOrder(f"what '{path}' ({type(layer).__name__}) does is not known")
        except UnknownOrder as unknown:
            axes = [[Axis(size) for size in shape] for shape in shapes]
            reason = reason or f"at '{path}': {unknown}"
        if not self._filters_first:
            reason, axes = None, [[Axis(axis.size) for axis in each] for each in axes]
        elif rule is not None and rule.outputs != "same":
            reason = None
        padding = _zero_padding(layer)
        return [Features(tuple(each), behind, padding, reason) for each in axes]

    def _add(self, layer: Any, path: str, rule: Rule, inputs: Features) -> set[int]:
        if inputs.unknown:
            raise PortingError(
                f"porting: which input features of '{path}' are which in PyTorch cannot be told, "
                f"{inputs.unknown}. If the PyTorch code flattens with the filters last, as Keras "
                'does, say flatten_order="channels_last".'
            )
        refusal = rule.refusal(layer, inputs)
        if refusal:
            raise PortingError(
                f"porting: layer '{path}' ({type(layer).__name__}) has no equal in torch.nn: "
                f"{refusal}."
            )
        try:
            weights = rule.weights(layer, inputs)
        except UnknownOrder as unknown:
            raise PortingError(f"porting: the input of '{path}': {unknown}.") from unknown
        if not weights and not layer.weights:
            return set()  # a normalisation without scale and offset
        own = {id(weight.variable) for weight in weights}
        strange = [v.path for v in layer.weights if id(v) not in own]
        if strange:
            raise PortingError(
                f"porting: layer '{path}' has weights that torch.nn has not (quantised, or with "
                f"LoRA?): {', '.join(strange)}."
            )
        found = WeightedLayer(layer, path, rule, inputs, weights)
        number = self._numbers.setdefault(id(layer), len(self.layers))
        if number == len(self.layers):
            self.layers.append(found)
        elif _columns(self.layers[number]) != _columns(found):
            raise PortingError(
                f"porting: layer '{path}' is called more than once, on features that PyTorch has "
                "in different orders, so that no weights serve both."
            )
        else:
            first = self.layers[number]
            self.layers[number] = replace(first, calls=first.calls + 1)
        return {number}

    def _axes(
        self, layer: Any, rule: Rule | None, inputs: list[Features], shapes: list[Any]
    ) -> list[list[Axis]] | None:
        """The axes of each output; None for a layer of which nothing is known."""
        axes, shape = inputs[0].axes if inputs else (), shapes[0]
        kind = type(layer)
        if rule is not None and rule.outputs == "features":
            return [[*axes[: len(shape) - 1], Axis(shape[-1])]]
        if rule is not None and rule.outputs == "sequence":
            return [[Axis(size) for size in each] for each in shapes]
        if (rule is not None and rule.outputs == "filters") or kind in _POOLING:
            channels = _channel_axis(layer, shape)
            _check_positions(axes, channels)
            order = axes[channels].order if kind in _POOLING else None
            return [_filters(shape, channels, order)]
        if kind in _GLOBAL_POOLING:
            channels = _channel_axis(layer, axes)
            _check_positions(axes, channels)
            kept = _channel_axis(layer, shape) if layer.keepdims else 1
            return [_filters(shape, kept, axes[channels].order)]
        if kind in _RESIZING:
            _check_positions(axes, _channel_axis(layer, axes))
            return [[replace(axis, size=size) for axis, size in zip(axes, shape, strict=True)]]
        if kind is _L.Flatten:
            if layer.data_format == "channels_first" and len(axes) > 1:
                axes = (axes[0], *axes[2:], axes[1])
            return [[axes[0], merge(axes[1:])]]
        if kind is FlattenFeatures:
            return [[*axes[:2], merge(axes[2:])]]
        if kind is _L.Reshape:
            return [[axes[0], *reshape(axes[1:], shape[1:])]]
        if kind is _L.Permute:
            return [[axes[0], *(axes[i] for i in layer.dims)]]
        if kind is _L.RepeatVector:
            return [[axes[0], Axis(shape[1]), *axes[1:]]]
        if kind is _L.Concatenate:
            along = layer.axis % len(axes)
            together = same_axes([x.axes[:along] + x.axes[along + 1 :] for x in inputs])
            joined = join([x.axes[along] for x in inputs])
            return [[*together[:along], joined, *together[along:]]]
        if kind in _MERGING:
            # Where ranks differ, Keras puts axes of size 1 behind the batch.
            missing = [len(shape) - len(x.axes) for x in inputs]
            operands = [
                (x.axes[0], *[Axis(1)] * count, *x.axes[1:])
                for x, count in zip(inputs, missing, strict=True)
            ]
            return [broadcast(operands, shape)]
        if kind is _L.Dot:
            return [_dot(layer, axes, inputs[1].axes)]
        if kind in _ATTENTION:
            return _attention([x.axes for x in inputs], len(shapes))
        if rule is not None or kind in _ELEMENTWISE:
            return [list(axes)]
        return None

    def _model(self, layer: Any) -> "_Inside | None":
        if isinstance(layer, keras.Sequential):
            return _Walk._sequential
        if isinstance(layer, keras.Model):
            if not hasattr(layer, "_nodes_by_depth"):
                raise PortingError(
                    f"porting: '{layer.name}' of type {type(layer).__name__} is a subclassed "
                    "model, so that the order of its layers cannot be seen. Port its layers one by "
                    "one, or build it as a functional model."
                )
            return _Walk._functional
        return None

    def _functional(self, model: Any, path: str, inputs: list[Features]) -> list[Features]:
        known = dict(zip(map(id, model.inputs), inputs, strict=True))
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                layer = node.operation
                given = [known[id(x)] for x in node.input_tensors if id(x) in known]
                shapes = [tuple(x.shape) for x in node.outputs]
                place = _joined(path, layer.name)
                arguments = _arguments(node, known)
                found = self.visit(layer, place, given, shapes, arguments)
                known.update(zip(map(id, node.outputs), found, strict=False))
        return [known[id(x)] for x in model.outputs]

    def _sequential(self, model: Any, path: str, inputs: list[Features]) -> list[Features]:
        for layer in model.layers:
            inputs = self.visit(layer, _joined(path, layer.name), inputs, None)
        return inputs

    def _time_distributed(self, layer: Any, path: str, inputs: list[Features]) -> list[Features]:
        steps = [_without_time(x) for x in inputs]
        inner = self.visit(layer.layer, _joined(path, layer.layer.name), steps, None)
        time = inputs[0].axes[1].size
        return [
            replace(x, axes=(x.axes[0], Axis(time, steps=True), *x.axes[1:]), padding=None)
            for x in inner
        ]

    def _channelwise(self, layer: Any, path: str, inputs: list[Features]) -> list[Features]:
        (x,) = inputs
        series = replace(x, axes=(x.axes[0], x.axes[1], x.axes[-1]))
        inner = self.visit(layer.layer, _joined(path, layer.layer.name), [series], None)
        outputs = _shapes(layer.compute_output_shape(x.shape))
        behind = frozenset[int]().union(*(each.behind for each in inner))
        return [Features(tuple(map(Axis, shape)), behind) for shape in outputs]

    def _conv_features(self, layer: Any, path: str, inputs: list[Features]) -> list[Features]:
        (x,) = inputs
        step = [_without_time(x)]
        for number, inner in enumerate(layer.step_layers):
            step = self.visit(inner, _joined(path, str(number)), step, None)
        axes = step[0].axes
        last = merge(axes[1:]) if layer.reduce == "flatten" else axes[-1]
        time = Axis(x.axes[1].size, steps=True)
        return [Features((x.axes[0], time, last), step[0].behind, None, step[0].unknown)]

    def _input(self, layer: Any, path: str, inputs: list[Features]) -> list[Features]:
        return inputs


_Inside = Callable[[_Walk, Any, str, list[Features]], list[Features]]
_INSIDE: dict[type, _Inside] = {
    _L.InputLayer: _Walk._input,
    _L.TimeDistributed: _Walk._time_distributed,
    TimeDistributed: _Walk._time_distributed,
    Channelwise: _Walk._channelwise,
    TimeDistributedConv: _Walk._conv_features,
}


def _ordered(x: Features) -> bool:
    return any(axis.order for axis in x.axes)


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _without_time(x: Features) -> Features:
    return replace(x, axes=(x.axes[0], *x.axes[2:]), padding=None)


def _shapes(structure: Any) -> list[tuple[int | None, ...]]:
    """Shapes in a nested structure of them."""
    found: list[tuple[int | None, ...]] = []
    tree.map_shape_structure(lambda shape: found.append(tuple(shape)), structure)
    return found


def _output_shapes(layer: Any, inputs: list[Features]) -> list[tuple[int | None, ...]]:
    shapes = [x.shape for x in inputs]
    if isinstance(layer, _L.MultiHeadAttention):  # alone, of a sequence to itself
        shapes *= 2
        return _shapes(layer.compute_output_shape(*shapes))
    return _shapes(layer.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes))


def _channel_axis(layer: Any, shape: Sequence[Any]) -> int:
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return 1 if first else len(shape) - 1


def _check_positions(axes: Sequence[Axis], channels: int) -> None:
    """Raise UnknownOrder where a layer would mix positions that merged filters stand in."""
    if any(axis.order for i, axis in enumerate(axes) if i != channels):
        raise UnknownOrder("it runs along an axis that holds merged filters")


def _filters(shape: Sequence[Any], channels: int, order: tuple[int, ...] | None) -> list[Axis]:
    """Axes of the output of a convolution or a pooling."""
    found = [Axis(size) for size in shape]
    found[channels] = Axis(shape[channels], filters=True, order=order)
    return found


def _arguments(node: Any, known: dict[int, Features]) -> list[Any]:
    """What a node calls its operation with, in order; `Features` in the place of tensors."""

    def seen(argument: Any) -> Any:
        return known.get(id(argument), argument)

    return [
        tree.map_structure(seen, argument)
        for argument in (*node.arguments.args, *node.arguments.kwargs.values())
    ]


def _operands(arguments: Sequence[Any]) -> list[Sequence[Axis]]:
    """The axes of all tensors in an operation's arguments, of constants that are arrays too."""
    found: list[Sequence[Axis]] = []
    for argument in arguments:
        for part in tree.flatten(argument):
            if isinstance(part, Features):
                found.append(part.axes)
            elif len(getattr(part, "shape", ())):
                found.append([Axis(size) for size in part.shape])
    return found


def _dot(layer: Any, first: Sequence[Axis], second: Sequence[Axis]) -> list[Axis]:
    """The axes of a `Dot` layer's output."""
    given = layer.axes if isinstance(layer.axes, (list, tuple)) else (layer.axes, layer.axes)
    i, j = given[0] % len(first), given[1] % len(second)
    kept = [axis for at, axis in enumerate(first) if at != i]
    kept += [axis for at, axis in enumerate(second) if at not in (0, j)]
    return contract(first, second, [(i, j)], kept if len(kept) > 1 else [*kept, Axis(1)])


def _attention(tensors: list[Sequence[Axis]], outputs: int) -> list[list[Axis]]:
    """The axes of an attention layer without weights: the values' features for every query."""
    query, value, *key = tensors
    keys = key[0] if key else value
    pair = [(len(query) - 1, len(keys) - 1)]
    found = contract(query, keys, pair, [query[0], query[1], value[2]])
    return [found, [query[0], Axis(query[1].size), Axis(keys[1].size)]][:outputs]


def _zero_padding(layer: Any) -> tuple[tuple[int, int], ...] | None:
    if type(layer) not in _ZERO_PADDING:
        return None
    given = layer.padding
    pairs = (tuple(given),) if type(layer) is _L.ZeroPadding1D else tuple(map(tuple, given))
    none = (0, 0)
    if getattr(layer, "data_format", None) == "channels_first":
        return (none, none, *pairs)
    return (none, *pairs, none)


def _columns(found: WeightedLayer) -> list[Any]:
    return [getattr(weight, "columns", None) for weight in found.weights]

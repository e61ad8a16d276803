"""For a Keras layer with weights: the `torch.nn` module that computes the same, built anew."""

from collections.abc import Callable
from typing import Any

import numpy as np

from multibackend_lstm.torch_weights import modules as rules
from multibackend_lstm.torch_weights.axes import Axis, Features, torch_order
from multibackend_lstm.torch_weights.graph import WeightedLayer

Call = Callable[[Any, Any], Any]


def twin_of(found: WeightedLayer) -> tuple[Any, Call]:
    """A float64 module, with weights of no account, and a function that calls it or a copy.

    The function takes the module and a tensor with Keras's axes, and returns such a tensor.
    Activations that a Keras layer adds to its convolution or product are left out.
    """
    for kind, build in _BUILDERS:
        if isinstance(found.rule, kind):
            module, call = build(found)
            return module.double().eval(), call
    raise NotImplementedError(f"no twin for {type(found.rule).__name__}")  # pragma: no cover


def _recurrent(found: WeightedLayer) -> tuple[Any, Call]:
    import torch

    inner = rules.directions(found.layer)
    cell = inner[0].cell
    both = len(inner) == 2
    kind = getattr(torch.nn, found.rule.modules[0])
    module = kind(
        cell.kernel.shape[0],
        cell.units,
        bias=cell.bias is not None,
        batch_first=True,
        bidirectional=both,
    )
    columns = _columns(found)

    def call(module: Any, x: Any) -> Any:
        outputs, _ = module(_take(x.flatten(2), columns, 2))
        forward, backward = outputs[..., : cell.units], outputs[..., cell.units :]
        if not inner[0].return_sequences:
            forward, backward = forward[:, -1], backward[:, 0]
        return _merged(forward, backward, found.layer.merge_mode) if both else forward

    return module, call


def _merged(forward: Any, backward: Any, mode: str | None) -> Any:
    import torch

    if mode == "concat" or mode is None:
        return torch.cat([forward, backward], dim=-1)
    merged = {"sum": forward + backward, "mul": forward * backward}
    return merged[mode] if mode in merged else (forward + backward) / 2


def _convolution(found: WeightedLayer) -> tuple[Any, Call]:
    import torch

    layer, (kernel, *_) = found.layer, found.weights
    ((outputs, inputs_of_group, *size),) = kernel.shapes.values()
    groups = found.rule._groups(layer)  # type: ignore[attr-defined]
    module = getattr(torch.nn, found.rule.modules[0])(
        inputs_of_group * groups,
        outputs,
        tuple(size),
        stride=tuple(layer.strides),
        dilation=tuple(layer.dilation_rate),
        groups=groups,
        bias=layer.bias is not None,
    )
    columns = _columns(found)

    def call(module: Any, x: Any) -> Any:
        zeros = _zeros(layer, x.shape[1:-1])
        x = _take(x.movedim(-1, 1), columns, 1)
        # The last axis comes first in `pad`.
        x = torch.nn.functional.pad(x, [n for pair in reversed(zeros) for n in pair])
        return module(x).movedim(1, -1)

    return module, call


def _zeros(layer: Any, sizes: Any) -> list[tuple[int, int]]:
    """What the Keras layer pads, for inputs of these sizes."""
    shape = (None, 1, *sizes) if layer.data_format == "channels_first" else (None, *sizes, 1)
    return rules.convolution_padding(layer, Features(tuple(map(Axis, shape)))) or []


def _transposed_convolution(found: WeightedLayer) -> tuple[Any, Call]:
    import torch

    layer = found.layer
    inputs, outputs, *size = next(iter(found.weights[0].shapes.values()))
    strides = tuple(layer.strides)
    windows = [(k - 1) * d + 1 for k, d in zip(size, layer.dilation_rate, strict=True)]
    module = getattr(torch.nn, found.rule.modules[0])(
        inputs,
        outputs,
        tuple(size),
        stride=strides,
        dilation=tuple(layer.dilation_rate),
        # With padding="valid", which the check asks of Keras.
        output_padding=tuple(max(s - w, 0) for s, w in zip(strides, windows, strict=True)),
        bias=layer.bias is not None,
    )
    columns = _columns(found)
    return module, lambda module, x: module(_take(x.movedim(-1, 1), columns, 1)).movedim(1, -1)


def _linear(found: WeightedLayer) -> tuple[Any, Call]:
    import torch

    outputs, inputs = found.shapes["weight"]
    module = torch.nn.Linear(inputs, outputs, bias="bias" in found.shapes)
    columns = _columns(found)
    return module, lambda module, x: module(_take(x, columns, -1))


def _batch_norm(found: WeightedLayer) -> tuple[Any, Call]:
    import torch

    layer = found.layer
    (size,) = found.shapes["running_mean"]
    module = torch.nn.BatchNorm1d(size, eps=layer.epsilon, affine=False)
    _add_affine(module, found, (size,))
    columns = _columns(found)

    def call(module: Any, x: Any) -> Any:
        x = x.movedim(layer.axis, -1)
        y = module(_take(x, columns, -1).reshape(-1, size)).reshape(x.shape)
        return _put(y, columns, -1).movedim(-1, layer.axis)

    return module, call


def _layer_norm(found: WeightedLayer) -> tuple[Any, Call]:
    import torch

    layer = found.layer
    axes = [found.inputs.axes[axis] for axis in layer.axis]
    order = torch_order(axes)
    sizes = tuple(int(axes[i].size or 0) for i in order)
    module = torch.nn.LayerNorm(sizes, eps=layer.epsilon, elementwise_affine=False)
    _add_affine(module, found, sizes)
    columns = _columns(found) if len(axes) == 1 else None
    moved = [layer.axis[i] for i in order]
    last = list(range(-len(moved), 0))

    def call(module: Any, x: Any) -> Any:
        y = module(_take(x.movedim(moved, last), columns, -1))
        return _put(y, columns, -1).movedim(last, moved)

    return module, call


def _add_affine(module: Any, found: WeightedLayer, sizes: tuple[int, ...]) -> None:
    """Weight and bias, one without the other too."""
    import torch

    for name in ("weight", "bias"):
        if name in found.shapes:
            setattr(module, name, torch.nn.Parameter(torch.ones(sizes)))


def _group_norm(found: WeightedLayer) -> tuple[Any, Call]:
    import torch

    layer = found.layer
    channels = int(found.inputs.axes[layer.axis].size or 0)
    module = torch.nn.GroupNorm(layer.groups, channels, eps=layer.epsilon, affine=False)
    _add_affine(module, found, (channels,))
    return module, lambda module, x: module(x.movedim(layer.axis, 1)).movedim(1, layer.axis)


def _embedding(found: WeightedLayer) -> tuple[Any, Call]:
    import torch

    module = torch.nn.Embedding(*found.shapes["weight"])
    return module, lambda module, x: module(x.long())


def _prelu(found: WeightedLayer) -> tuple[Any, Call]:
    import torch

    (weight,) = found.weights
    ((size,),) = weight.shapes.values()
    module = torch.nn.PReLU(size)
    axis = weight.along + 1  # type: ignore[attr-defined]
    columns = _columns(found)

    def call(module: Any, x: Any) -> Any:
        y = module(_take(x.movedim(axis, 1), columns, 1))
        return _put(y, columns, 1).movedim(1, axis)

    return module, call


_BUILDERS: tuple[tuple[type, Callable[[WeightedLayer], tuple[Any, Call]]], ...] = (
    (rules.Recurrent, _recurrent),
    (rules.TransposedConvolution, _transposed_convolution),
    (rules.Convolution, _convolution),
    (rules.Linear, _linear),
    (rules.BatchNorm, _batch_norm),
    (rules.LayerNorm, _layer_norm),
    (rules.GroupNorm, _group_norm),
    (rules.Embedding, _embedding),
    (rules.PReLU, _prelu),
)


def check_copy(found: WeightedLayer, dtype: str) -> Any:
    """A copy of the Keras layer, without weights, that computes what its twin does.

    Convolutions have channels_last format, since TensorFlow has no other on the CPU.
    """
    from multibackend_lstm.runtimes.execution import with_dtype

    config = _with_values(with_dtype(found.layer.get_config(), dtype), {"trainable": True})
    if isinstance(found.rule, rules.Recurrent):
        config = _with_values(config, {"stateful": False, "return_state": False})
    elif "activation" in config:
        config["activation"] = "linear"
    if isinstance(found.rule, rules.Convolution):
        config["data_format"] = "channels_last"
    if isinstance(found.rule, rules.TransposedConvolution):
        config |= {"padding": "valid", "output_padding": None}
    return type(found.layer).from_config(config)


def check_shape(found: WeightedLayer, batch: int, steps: int) -> tuple[int, ...]:
    """An input shape for the copy, as small as a check allows."""
    shape = [size or steps for size in found.inputs.shape]
    shape[0] = batch
    layer = found.layer
    if isinstance(found.rule, rules.Recurrent):
        shape[1] = min(shape[1], steps)
    elif isinstance(found.rule, rules.Convolution):
        if layer.data_format == "channels_first":
            shape = [shape[0], *shape[2:], shape[1]]
        for axis, size in enumerate(layer.kernel_size, start=1):
            window = (size - 1) * layer.dilation_rate[axis - 1] + 1
            shape[axis] = min(shape[axis], window + 2 * layer.strides[axis - 1] + 1)
    return tuple(shape)


def _with_values(config: Any, values: dict[str, Any]) -> Any:
    """A config with some values replaced, within layers inside too."""
    if isinstance(config, dict):
        return {
            key: values[key] if key in values else _with_values(value, values)
            for key, value in config.items()
        }
    return [_with_values(each, values) for each in config] if isinstance(config, list) else config


def _columns(found: WeightedLayer) -> Any:
    return getattr(found.weights[0], "columns", None)


def _take(x: Any, columns: Any, axis: int) -> Any:
    """Features in PyTorch's order, from Keras's."""
    if columns is None:
        return x
    return _select(x, np.argsort(columns), axis)


def _put(x: Any, columns: Any, axis: int) -> Any:
    """Features in Keras's order, from PyTorch's."""
    return x if columns is None else _select(x, columns, axis)


def _select(x: Any, indices: Any, axis: int) -> Any:
    import torch

    return x.index_select(axis, torch.as_tensor(np.array(indices)))

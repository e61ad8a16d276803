"""Convolutions: kernels with their axes in another order.

| Keras | torch.nn | kernel in Keras | in PyTorch |
|---|---|---|---|
| `Conv1D/2D/3D` | `Conv1d/2d/3d` | `(*size, in / groups, out)` | `(out, in / groups, *size)` |
| `DepthwiseConv1D/2D` | `Conv1d/2d`, `groups=in` | `(*size, in, m)` | `(in * m, 1, *size)` |
| `Conv1D/2D/3DTranspose` | `ConvTranspose1d/2d/3d` | `(*size, out, in)` | `(in, out, *size)` |
"""

from typing import Any, ClassVar

from multibackend_lstm.torch_weights.axes import Axis, Features
from multibackend_lstm.torch_weights.rules.base import (
    Call,
    Rule,
    bias_of,
    different,
    to_torch_order,
)
from multibackend_lstm.torch_weights.weights import Moved, Weight


class Convolution(Rule):
    """`Conv1D`, `2D` and `3D`."""

    outputs = "filters"
    # TensorFlow has no other format on the CPU.
    compared_with: ClassVar = {"activation": "linear", "data_format": "channels_last"}

    def __init__(self, rank: int, module: str = "Conv") -> None:
        """A rule for convolutions over `rank` axes."""
        self.modules = (f"{module}{rank}d",)
        self._rank = rank

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        channels = _channels(layer, inputs)
        if channels.order is not None and self._groups(layer) > 1:
            return "its groups divide features that a flatten before it has put in another order"
        if any(axis.order for axis in inputs.axes if axis is not channels):
            return "it convolves along an axis that holds merged filters"
        return None

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        return [self._kernel(layer, inputs), *bias_of(layer)]

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        found = different({**self._settings(layer), "padding_mode": "zeros"}, module)
        ours = convolution_padding(layer, inputs)
        theirs = _torch_padding(module)
        window = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        if layer.padding == "causal" and theirs in ([(0, 0)], [(window, window)]):
            return found  # the code pads by hand, or cuts off what it sees of the future
        if ours != theirs:
            ours_said = ours or f"{layer.padding!r}, which depends on the length,"
            found.append(f"zeros on each side: torch {theirs}, Keras {ours_said}")
        return found

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        import torch

        outputs, inputs_of_group, *size = self._kernel(layer, inputs).shapes["weight"]
        settings = self._settings(layer)
        channels = inputs_of_group * settings["groups"]
        module = self._module(channels, outputs, size, bias=layer.bias is not None, **settings)
        columns = _channels(layer, inputs).order

        def call(module: Any, x: Any) -> Any:
            zeros = _zeros(layer, x.shape[1:-1])
            x = to_torch_order(x.movedim(-1, 1), columns, 1)
            # The last axis comes first in `pad`.
            x = torch.nn.functional.pad(x, [n for pair in reversed(zeros) for n in pair])
            return module(x).movedim(1, -1)

        return module, call

    def check_shape(self, layer: Any, inputs: Features, batch: int, steps: int) -> tuple[int, ...]:
        """As in `Rule`."""
        shape = [*super().check_shape(layer, inputs, batch, steps)]
        if layer.data_format == "channels_first":
            shape = [shape[0], *shape[2:], shape[1]]
        for axis, size in enumerate(layer.kernel_size, start=1):
            window = (size - 1) * layer.dilation_rate[axis - 1] + 1
            shape[axis] = min(shape[axis], window + 2 * layer.strides[axis - 1] + 1)
        return tuple(shape)

    def _kernel(self, layer: Any, inputs: Features) -> Moved:
        rank, columns = self._rank, _channels(layer, inputs).order
        return Moved(layer.kernel, "weight", (rank + 1, rank, *range(rank)), None, columns, rank)

    def _groups(self, layer: Any) -> int:
        return int(layer.groups)

    def _settings(self, layer: Any) -> dict[str, Any]:
        """Attributes of the module, which are arguments to build it with as well."""
        return {
            "stride": tuple(layer.strides),
            "dilation": tuple(layer.dilation_rate),
            "groups": self._groups(layer),
        }

    def _module(self, inputs: int, outputs: int, size: list[int], **settings: Any) -> Any:
        import torch

        return getattr(torch.nn, self.modules[0])(inputs, outputs, tuple(size), **settings)


class DepthwiseConvolution(Convolution):
    """`DepthwiseConv1D` and `2D`: a convolution with as many groups as channels."""

    def _kernel(self, layer: Any, inputs: Features) -> Moved:
        rank = self._rank
        *sizes, channels, multiplier = layer.kernel.shape
        shape = (channels * multiplier, 1, *sizes)
        return Moved(layer.kernel, "weight", (rank, rank + 1, *range(rank)), shape)

    def _groups(self, layer: Any) -> int:
        return int(layer.kernel.shape[-2])


class TransposedConvolution(Convolution):
    """`Conv1DTranspose`, `2D` and `3D`. (PyTorch flips no kernel that Keras does not.)"""

    compared_with: ClassVar = {
        **Convolution.compared_with, "padding": "valid", "output_padding": None
    }  # fmt: skip

    def __init__(self, rank: int) -> None:
        """A rule for transposed convolutions over `rank` axes."""
        super().__init__(rank, "ConvTranspose")

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        paddings = [_transposed_padding(layer, axis) for axis in range(self._rank)]
        expected = {
            **self._settings(layer),
            "padding": tuple(padding for padding, _ in paddings),
            "output_padding": tuple(behind for _, behind in paddings),
        }
        found = different(expected, module)
        if any(padding and behind for padding, behind in paddings):
            found.append(
                f"padding='same' with kernel_size={layer.kernel_size}, strides={layer.strides} "
                "cuts more on one side than on the other, which torch.nn cannot: use "
                "padding='valid' and a Cropping layer"
            )
        return found

    def module_and_call(self, layer: Any, inputs: Features) -> tuple[Any, Call]:
        """As in `Rule`."""
        channels, outputs, *size = self._kernel(layer, inputs).shapes["weight"]
        windows = [(k - 1) * d + 1 for k, d in zip(size, layer.dilation_rate, strict=True)]
        # With padding="valid", which `compared_with` asks of Keras.
        behind = tuple(max(s - w, 0) for s, w in zip(layer.strides, windows, strict=True))
        settings = {**self._settings(layer), "output_padding": behind}
        module = self._module(channels, outputs, size, bias=layer.bias is not None, **settings)
        columns = _channels(layer, inputs).order

        def call(module: Any, x: Any) -> Any:
            return module(to_torch_order(x.movedim(-1, 1), columns, 1)).movedim(1, -1)

        return module, call

    def _kernel(self, layer: Any, inputs: Features) -> Moved:
        rank, columns = self._rank, _channels(layer, inputs).order
        axes = (rank + 1, rank, *range(rank))
        return Moved(layer.kernel, "weight", axes, None, columns, rank + 1)

    def _groups(self, layer: Any) -> int:
        return 1


def convolution_padding(layer: Any, inputs: Features) -> list[tuple[int, int]] | None:
    """Zeros before and behind each axis that a Keras convolution runs over.

    Those that a `ZeroPadding` layer just before it has added count as well.

    Returns:
        None if it depends on a size that is not known.
    """
    first = 2 if layer.data_format == "channels_first" else 1
    rank = len(layer.kernel_size)
    before = (inputs.padding or ((0, 0),) * (rank + 2))[first : first + rank]
    found = []
    for i, (left, right) in enumerate(before):
        stride, dilation = layer.strides[i], layer.dilation_rate[i]
        window = (layer.kernel_size[i] - 1) * dilation + 1
        size = inputs.shape[first + i]
        if layer.padding == "causal":
            zeros = (window - 1, 0)
        elif layer.padding == "valid":
            zeros = (0, 0)
        elif stride > 1 and size is None:
            return None
        else:
            steps = 0 if size is None else -(-size // stride) - 1
            total = window - 1 if size is None else max(steps * stride + window - size, 0)
            zeros = (total // 2, total - total // 2)
        found.append((zeros[0] + left, zeros[1] + right))
    return found


def _torch_padding(module: Any) -> list[tuple[int, int]]:
    """Zeros before and behind each axis that a torch convolution runs over."""
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if module.padding == "same":
        totals = [(k - 1) * d for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(zeros, zeros) for zeros in module.padding]


def _transposed_padding(layer: Any, axis: int) -> tuple[int, int]:
    """PyTorch's `padding` and `output_padding` for a transposed convolution of Keras."""
    stride = layer.strides[axis]
    window = (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis] + 1
    given = None if layer.output_padding is None else layer.output_padding[axis]
    if layer.padding == "valid":
        return 0, max(window, stride) - window if given is None else given
    surplus = window % 2 - window + (stride - window % 2 if given is None else given)
    padding = max(-(surplus // 2), 0)
    return padding, 2 * padding + surplus


def _channels(layer: Any, inputs: Features) -> Axis:
    return inputs.axes[1 if layer.data_format == "channels_first" else -1]


def _zeros(layer: Any, sizes: Any) -> list[tuple[int, int]]:
    """What the Keras layer pads, for inputs of these sizes."""
    shape = (None, 1, *sizes) if layer.data_format == "channels_first" else (None, *sizes, 1)
    return convolution_padding(layer, Features(tuple(map(Axis, shape)))) or []

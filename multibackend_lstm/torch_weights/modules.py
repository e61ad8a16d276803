"""One rule a kind of layer: which `torch.nn` module holds the same weights, and how.

| Keras | torch.nn | weights |
|---|---|---|
| `LSTM` | `LSTM`, a layer of it | transposed; gates i, f, g, o in both; `b_ih + b_hh` is one bias |
| `GRU` | `GRU`, a layer of it | transposed; gates z, r, h from r, z, n; two biases in both |
| `Bidirectional` of these | the same, `bidirectional=True` | both directions |
| `Conv1D/2D/3D` | `Conv1d/2d/3d` | `(*size, in / groups, out)` from `(out, in / groups, *size)` |
| `DepthwiseConv1D/2D` | `Conv1d/2d`, `groups=in` | `(*size, in, m)` from `(in * m, 1, *size)` |
| `Conv1D/2D/3DTranspose` | `ConvTranspose1d/2d/3d` | `(*size, out, in)` from `(in, out, *size)` |
| `Dense` | `Linear` | transposed |
| `BatchNormalization` | `BatchNorm1d/2d/3d` | the same four |
| `LayerNormalization`, `GroupNormalization` | `LayerNorm`, `GroupNorm` | gamma, beta |
| `Embedding` | `Embedding` | as it is |
| `PReLU` | `PReLU` | alpha has the input's rank in Keras, and one axis in PyTorch |
"""

import math
from typing import Any

import keras

from multibackend_lstm.layers import GRU, LSTM, Bidirectional
from multibackend_lstm.torch_weights.axes import Axis, Features, merge, torch_order
from multibackend_lstm.torch_weights.weights import Moved, SummedBias, TwoBiases, Weight

_LSTMS = (keras.layers.LSTM, LSTM)
_GRUS = (keras.layers.GRU, GRU)
# Which of Keras's gates z, r, h stand where PyTorch has r, z, n.
_GRU_GATES = (1, 0, 2)
_TORCH_EPSILON = 1e-5


class Rule:
    """How one kind of Keras layer corresponds to a `torch.nn` module.

    Attributes:
        modules: names in `torch.nn` of the modules that it may be.
        outputs: what becomes of the axes: `"filters"` (a convolution's), `"features"` (a new last
            axis), `"sequence"` (all axes new) or `"same"`.
        optional: parameters and buffers of the module that Keras has no counterpart of.
    """

    modules: tuple[str, ...] = ()
    outputs = "same"
    optional: frozenset[str] = frozenset()

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """Why the layer cannot be ported, with the remedy; None if it can be."""
        return None

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """Its weights."""
        raise NotImplementedError

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """Settings, other than weights, by which the module computes something else."""
        return []

    def assumption(self, layer: Any) -> str | None:
        """What weights alone do not tell of the module, and is not PyTorch's default."""
        return None


class Recurrent(Rule):
    """`LSTM` and `GRU`, in one direction or in both."""

    outputs = "sequence"

    def __init__(self, module: str, cells: tuple[type, ...]) -> None:
        """A rule for layers of the types `cells`."""
        self.modules = (module,)
        self._cells = cells

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        for inner in directions(layer):
            for argument, expected in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
                found = getattr(inner, argument)
                if found not in (
                    getattr(keras.activations, expected),
                    getattr(keras.ops, expected),
                ):
                    name = getattr(found, "__name__", found)
                    return f"{argument}={name!r}, and torch.nn has {expected} alone"
            if "GRU" in self.modules and not inner.reset_after:
                return (
                    "reset_after=False, and torch.nn.GRU applies the reset gate after the matrix "
                    "product: build the layer with reset_after=True"
                )
        if len(directions(layer)) == 1 and layer.go_backwards:
            return (
                "go_backwards=True, which torch.nn does not have: reverse the sequence in a layer "
                "of its own, or use Bidirectional"
            )
        return None

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`; the names are those of one layer of the module, without its number."""
        columns = merge(inputs.axes[2:]).order
        gates = _GRU_GATES if "GRU" in self.modules else None
        found: list[Weight] = []
        for inner, suffix in zip(directions(layer), ("", "_reverse"), strict=False):
            cell = inner.cell
            found += [
                Moved(cell.kernel, f"weight_ih{suffix}", (1, 0), None, columns, 0, gates),
                Moved(cell.recurrent_kernel, f"weight_hh{suffix}", (1, 0), gates=gates),
            ]
            if cell.bias is not None:
                bias = TwoBiases(cell.bias, gates, suffix) if gates else None
                found.append(bias or SummedBias(cell.bias, suffix))
        return found

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        return _different({"bidirectional": len(directions(layer)) == 2, "proj_size": 0}, module)


class Convolution(Rule):
    """`Conv1D`, `2D` and `3D`."""

    outputs = "filters"

    def __init__(self, rank: int) -> None:
        """A rule for convolutions over `rank` axes."""
        self.modules = (f"Conv{rank}d",)
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
        rank = self._rank
        columns = _channels(layer, inputs).order
        kernel = Moved(layer.kernel, "weight", (rank + 1, rank, *range(rank)), None, columns, rank)
        return [kernel, *_bias(layer)]

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        expected = {
            "stride": tuple(layer.strides),
            "dilation": tuple(layer.dilation_rate),
            "groups": self._groups(layer),
            "padding_mode": "zeros",
        }
        found = _different(expected, module)
        ours = convolution_padding(layer, inputs)
        theirs = _torch_padding(module)
        if layer.padding == "causal" and not any(map(any, theirs)):
            return found  # padded by hand, then
        if ours != theirs:
            ours_said = ours or f"{layer.padding!r}, which depends on the length,"
            found.append(f"zeros on each side: torch {theirs}, Keras {ours_said}")
        return found

    def _groups(self, layer: Any) -> int:
        return int(layer.groups)


class DepthwiseConvolution(Convolution):
    """`DepthwiseConv1D` and `2D`: a convolution with as many groups as channels."""

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        rank = self._rank
        *sizes, channels, multiplier = layer.kernel.shape
        kernel = Moved(
            layer.kernel,
            "weight",
            (rank, rank + 1, *range(rank)),
            (channels * multiplier, 1, *sizes),
        )
        return [kernel, *_bias(layer)]

    def _groups(self, layer: Any) -> int:
        return int(layer.kernel.shape[-2])


class TransposedConvolution(Convolution):
    """`Conv1DTranspose`, `2D` and `3D`. (PyTorch flips no kernel that Keras does not.)"""

    def __init__(self, rank: int) -> None:
        """A rule for transposed convolutions over `rank` axes."""
        super().__init__(rank)
        self.modules = (f"ConvTranspose{rank}d",)

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        rank = self._rank
        columns = _channels(layer, inputs).order
        kernel = Moved(
            layer.kernel, "weight", (rank + 1, rank, *range(rank)), None, columns, rank + 1
        )
        return [kernel, *_bias(layer)]

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        paddings = [_transposed_padding(layer, axis) for axis in range(self._rank)]
        expected = {
            "stride": tuple(layer.strides),
            "dilation": tuple(layer.dilation_rate),
            "groups": 1,
            "padding": tuple(padding for padding, _ in paddings),
            "output_padding": tuple(behind for _, behind in paddings),
        }
        found = _different(expected, module)
        if any(padding and behind for padding, behind in paddings):
            found.append(
                f"padding='same' with kernel_size={layer.kernel_size}, strides={layer.strides} "
                "cuts more on one side than on the other, which torch.nn cannot: use "
                "padding='valid' and a Cropping layer"
            )
        return found

    def _groups(self, layer: Any) -> int:
        return 1


class Linear(Rule):
    """`Dense`."""

    modules = ("Linear",)
    outputs = "features"

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        return [
            Moved(layer.kernel, "weight", (1, 0), columns=inputs.axes[-1].order),
            *_bias(layer),
        ]


class Normalization(Rule):
    """What the normalisations share: an epsilon, and weights along the input's axes."""

    def __init__(self, *modules: str) -> None:
        """A rule for `modules`."""
        self.modules = modules

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        columns = inputs.axes[layer.axis].order
        return [
            Moved(variable, name, columns=columns)
            for variable, name in ((layer.gamma, "weight"), (layer.beta, "bias"))
            if variable is not None
        ]

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        return _different({"eps": layer.epsilon}, module)

    def assumption(self, layer: Any) -> str | None:
        """As in `Rule`."""
        if math.isclose(layer.epsilon, _TORCH_EPSILON, rel_tol=1e-6):
            return None
        return (
            f"epsilon={layer.epsilon:g}, where torch.nn.{self.modules[0]} has {_TORCH_EPSILON:g} "
            "by default; a state dict does not hold it"
        )


class BatchNorm(Normalization):
    """`BatchNormalization`. The momentum is no weight: Keras's is 1 minus PyTorch's."""

    optional = frozenset({"num_batches_tracked"})

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        columns = inputs.axes[layer.axis].order
        return [
            *super().weights(layer, inputs),
            Moved(layer.moving_mean, "running_mean", columns=columns),
            Moved(layer.moving_variance, "running_var", columns=columns),
        ]


class LayerNorm(Normalization):
    """`LayerNormalization`, over one axis or more."""

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        if getattr(layer, "rms_scaling", False):
            return "rms_scaling=True divides by something else than torch.nn.LayerNorm does"
        if len(layer.axis) > 1 and any(inputs.axes[axis].order for axis in layer.axis):
            return "it normalises several axes, one of which holds merged filters"
        return None

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        normalised = [inputs.axes[axis] for axis in layer.axis]
        columns = normalised[0].order if len(normalised) == 1 else None
        return [
            Moved(variable, name, tuple(torch_order(normalised)), columns=columns)
            for variable, name in ((layer.gamma, "weight"), (layer.beta, "bias"))
            if variable is not None
        ]


class GroupNorm(Normalization):
    """`GroupNormalization`."""

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        if inputs.axes[layer.axis].order is not None:
            return "its groups divide features that a flatten before it has put in another order"
        return None

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        return [
            *super().differences(layer, inputs, module),
            *_different({"num_groups": layer.groups}, module),
        ]


class Embedding(Rule):
    """`Embedding`. PyTorch's `padding_idx` is a row of weights as any other."""

    modules = ("Embedding",)
    outputs = "features"

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        return [Moved(layer.embeddings, "weight")]

    def differences(self, layer: Any, inputs: Features, module: Any) -> list[str]:
        """As in `Rule`."""
        return _different({"max_norm": None}, module)


class PReLU(Rule):
    """`PReLU` with one slope, or one a feature."""

    modules = ("PReLU",)

    def refusal(self, layer: Any, inputs: Features) -> str | None:
        """As in `Rule`."""
        sizes = [size for size in layer.alpha.shape if size != 1]
        if len(sizes) > 1:
            axes = list(range(1, len(layer.alpha.shape) + 1))
            return (
                f"its slopes have the shape {tuple(layer.alpha.shape)}, and torch.nn.PReLU has one "
                f"slope, or one a feature: set shared_axes={axes[:-1]}"
            )
        return None

    def weights(self, layer: Any, inputs: Features) -> list[Weight]:
        """As in `Rule`."""
        along = max(range(len(layer.alpha.shape)), key=lambda axis: layer.alpha.shape[axis])
        size = layer.alpha.shape[along]
        columns = inputs.axes[along + 1].order if size > 1 else None
        return [Moved(layer.alpha, "weight", shape=(size,), columns=columns, along=along)]


_BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")

#: The rule of each kind of layer, by its exact type: a subclass may compute something else.
RULES: dict[type, Rule] = {
    **dict.fromkeys(_LSTMS, Recurrent("LSTM", _LSTMS)),
    **dict.fromkeys(_GRUS, Recurrent("GRU", _GRUS)),
    keras.layers.Conv1D: Convolution(1),
    keras.layers.Conv2D: Convolution(2),
    keras.layers.Conv3D: Convolution(3),
    keras.layers.DepthwiseConv1D: DepthwiseConvolution(1),
    keras.layers.DepthwiseConv2D: DepthwiseConvolution(2),
    keras.layers.Conv1DTranspose: TransposedConvolution(1),
    keras.layers.Conv2DTranspose: TransposedConvolution(2),
    keras.layers.Conv3DTranspose: TransposedConvolution(3),
    keras.layers.Dense: Linear(),
    keras.layers.BatchNormalization: BatchNorm(*_BATCH_NORMS),
    keras.layers.LayerNormalization: LayerNorm("LayerNorm"),
    keras.layers.GroupNormalization: GroupNorm("GroupNorm"),
    keras.layers.Embedding: Embedding(),
    keras.layers.PReLU: PReLU(),
}

#: Kinds of layers that a message lists as supported.
SUPPORTED = (
    *dict.fromkeys(layer.__name__ for layer in RULES),
    "Bidirectional of LSTM or GRU",
    "TimeDistributed",
    "TimeDistributedConv",
    "Channelwise",
    "functional and Sequential models of these",
)
#: Modules that a message lists as supported.
SUPPORTED_MODULES = tuple(dict.fromkeys(name for rule in RULES.values() for name in rule.modules))


def rule_of(layer: Any) -> Rule | None:
    """The rule of a Keras layer; None if there is none."""
    if type(layer) in (keras.layers.Bidirectional, Bidirectional):
        kinds = {id(RULES.get(type(inner))) for inner in directions(layer)}
        rule = RULES.get(type(layer.forward_layer))
        return rule if isinstance(rule, Recurrent) and len(kinds) == 1 else None
    return RULES.get(type(layer))


def directions(layer: Any) -> list[Any]:
    """The layers of a `Bidirectional`, forward first; or the layer itself."""
    if isinstance(layer, keras.layers.Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    return [layer]


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


def _bias(layer: Any) -> list[Weight]:
    return [] if layer.bias is None else [Moved(layer.bias, "bias")]


def _different(expected: dict[str, Any], module: Any) -> list[str]:
    """Attributes of a module that are not as expected."""
    found = []
    for name, value in expected.items():
        theirs = getattr(module, name)
        same = theirs == value
        if isinstance(value, float) and isinstance(theirs, float):
            same = math.isclose(theirs, value, rel_tol=1e-6)
        if not same:
            found.append(f"{name}: torch {theirs}, Keras {value}")
    return found

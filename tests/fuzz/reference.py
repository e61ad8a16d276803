"""Every layer in NumPy, float64, from its equations: the truth that the fuzzer holds them to.

All functions take complex numbers too and are analytic in them, piece by piece, so that
`f(x + 1e-30j * d).imag / 1e-30` is the exact derivative of `f` along `d` (the complex-step method,
Squire and Trapp 1998): there is no difference that could cancel.

`compute` runs a whole layer, given as the `Spec` that `cases.py` also builds the Keras layer from.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray
States = list[Array]


def sigmoid(x: Array) -> Array:
    """Logistic function."""
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = np.exp(x - x.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _piecewise(x: Array, below: float, above: float) -> Array:
    """X between two bounds, and the bounds outside."""
    return np.where(x.real < below, below, np.where(x.real > above, above, x))


def elu(x: Array) -> Array:
    """Exponential linear unit."""
    return np.where(x.real > 0, x, np.exp(np.where(x.real > 0, 0, x)) - 1)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), which must not overflow."""
    positive = x.real > 0
    return np.log(1 + np.exp(np.where(positive, -x, x))) + np.where(positive, x, 0)


# As keras.activations names them.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda x: np.where(x.real > 0, x, 0),
    "hard_sigmoid": lambda x: _piecewise(x / 6 + 0.5, 0, 1),
    "elu": elu,
    "selu": lambda x: 1.0507009873554805 * np.where(x.real > 0, x, 1.6732632423543772 * elu(x)),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + np.where(x.real < 0, -x, x)),
    "silu": lambda x: x * sigmoid(x),
    "softmax": softmax,
    # A function that Keras does not know by name.
    "sine": np.sin,
}


def lstm_step(
    x: Array,
    states: States,
    weights: list[Array],
    activation: Callable[[Array], Array] = np.tanh,
    recurrent_activation: Callable[[Array], Array] = sigmoid,
) -> States:
    """States after one step of an LSTM; gates i, f, g, o."""
    kernel, recurrent_kernel, bias = weights
    h, c = states
    i, f, g, o = np.split(x @ kernel + h @ recurrent_kernel + bias, 4, axis=-1)
    gate = recurrent_activation
    c = gate(f) * c + gate(i) * activation(g)
    return [gate(o) * activation(c), c]


def gru_step(
    x: Array,
    states: States,
    weights: list[Array],
    activation: Callable[[Array], Array] = np.tanh,
    recurrent_activation: Callable[[Array], Array] = sigmoid,
) -> States:
    """State after one step of a GRU; gates z, r, h; `reset_after` where the bias has two rows."""
    kernel, recurrent_kernel, bias = weights
    (h,) = states
    units = h.shape[1]
    reset_after = bias.ndim == 2
    input_bias, recurrent_bias = bias if reset_after else (bias, 0 * bias)
    projected = x @ kernel + input_bias
    recurrent = h @ recurrent_kernel + recurrent_bias
    gates = projected[:, : 2 * units] + recurrent[:, : 2 * units]
    z, r = map(recurrent_activation, np.split(gates, 2, axis=-1))
    if reset_after:
        of_state = r * recurrent[:, 2 * units :]
    else:
        of_state = (r * h) @ recurrent_kernel[:, 2 * units :]
    candidate = activation(projected[:, 2 * units :] + of_state)
    return [z * h + (1 - z) * candidate]


def recur(
    step: Callable[[Array, States], States],
    x: Array,
    states: States,
    mask: Array | None = None,
    go_backwards: bool = False,
    zero_output_for_mask: bool = False,
) -> tuple[Array, Array, States]:
    """Sequence (batch, time, ...), last output, and final states.

    As Keras's loop on TensorFlow: a masked step leaves the states; its output is the one before,
    zeros at first, or zeros everywhere with zero_output_for_mask.
    """
    batch, time = x.shape[:2]
    mask = np.ones((batch, time), bool) if mask is None else mask
    output = np.zeros_like(states[0])
    outputs = []
    for t in reversed(range(time)) if go_backwards else range(time):
        valid = mask[:, t].reshape(batch, *[1] * (x.ndim - 2))
        new_states = step(np.where(valid, x[:, t], 0), states)
        valid = valid.reshape(batch, *[1] * (states[0].ndim - 1))
        states = [np.where(valid, new, old) for new, old in zip(new_states, states, strict=True)]
        output = np.where(valid, new_states[0], 0 if zero_output_for_mask else output)
        outputs.append(output)
    shape = (batch, 0, *states[0].shape[1:])
    return np.stack(outputs, 1) if outputs else np.zeros(shape), output, states


def convolve(
    x: Array,
    kernel: Array,
    bias: Any = 0.0,
    strides: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> Array:
    """Convolution of `(batch, *axes, features)` by `(*kernel_size, features / groups, filters)`."""
    rank = x.ndim - 2
    strides, dilation = np.broadcast_to(strides, rank), np.broadcast_to(dilation, rank)
    sizes = kernel.shape[:rank]
    spans = (np.array(sizes) - 1) * dilation + 1
    x = np.pad(x, [(0, 0), *_padding(x.shape[1:-1], spans, strides, padding), (0, 0)])
    positions = (np.array(x.shape[1:-1]) - spans) // strides + 1
    filters = kernel.shape[-1]
    out = np.zeros((len(x), *positions, filters), np.result_type(x, kernel))
    inside, outside = kernel.shape[-2], filters // groups
    for offset in itertools.product(*map(range, sizes)):
        values = x[(slice(None), *_places(np.array(offset) * dilation, positions, strides))]
        for group in range(groups):
            columns = slice(group * outside, (group + 1) * outside)
            out[..., columns] += (
                values[..., group * inside : (group + 1) * inside]
                @ kernel[(*offset, slice(None), columns)]
            )
    return out + bias


def pool(x: Array, window: Any, kind: str) -> Array:
    """Windows of `(batch, *axes, features)` side by side, without padding."""
    window = np.broadcast_to(window, x.ndim - 2)
    positions = np.array(x.shape[1:-1]) // window
    parts = [
        x[(slice(None), *_places(np.array(offset), positions, window))]
        for offset in itertools.product(*map(range, window))
    ]
    return np.max(parts, axis=0) if kind == "max" else np.mean(parts, axis=0)


def _places(first: Array, positions: Array, strides: Array) -> list[slice]:
    """Slices of each axis: `positions` entries from `first` on, `strides` apart."""
    return [
        slice(f, f + (n - 1) * s + 1 if n else f, s)
        for f, n, s in zip(first, positions, strides, strict=True)
    ]


def _padding(axes: Any, spans: Array, strides: Array, padding: str) -> list[tuple[int, int]]:
    axes = np.array(axes)
    before = after = np.zeros(len(axes), int)
    if padding == "same":
        needed = np.maximum((-(-axes // strides) - 1) * strides + spans - axes, 0)
        before, after = needed // 2, needed - needed // 2
    elif padding == "causal":
        before = spans - 1
    return list(zip(before, after, strict=True))


def reduce_mask(mask: Array, reduction: str = "any") -> Array:
    """`(batch, time, ...)` to a boolean `(batch, time)`."""
    mask = np.asarray(mask).astype(bool)
    axes = tuple(range(2, mask.ndim))
    return mask.any(axes) if reduction == "any" else mask.all(axes)


def merge_channels(stacked: Array, how: str) -> Array:
    """Join `(batch, [time,] channels, units)` as `Channelwise(merge=how)` does."""
    if how == "concat":
        return stacked.reshape(*stacked.shape[:-2], stacked.shape[-2] * stacked.shape[-1])
    if how == "stack":
        return stacked
    return {"sum": np.sum, "average": np.mean, "max": np.max}[how](stacked, axis=-2)


# A spec is {"class": name, **options}, with further specs in "layer" or "layers".
Spec = dict[str, Any]
# Outputs and their masks, one mask (or None) for each.
Result = tuple[list[Array], list[Array | None]]


def compute(
    spec: Spec, weights: Iterator[Array], x: Array, mask: Array | None, states: States | None
) -> Result:
    """Outputs of a layer, and their masks.

    Args:
        spec: the layer.
        weights: of the layer and those in it, in the order of Keras's `layer.weights`.
        x: input, float64 or complex128, as rounded to the compute dtype.
        mask: `(batch, time, ...)`, boolean or integer, or None.
        states: the initial ones, None for zeros.
    """
    return _LAYERS[spec["class"]](spec, weights, x, mask, states)


def state_shapes(spec: Spec, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of the states of a recurrent layer for an input of `shape`."""
    name = spec["class"]
    if name == "Bidirectional":
        return 2 * state_shapes(spec["layer"], shape)
    if name.startswith("ConvLSTM"):
        kernel = np.zeros((*spec["kernel_size"], shape[-1], spec["filters"]))
        one = convolve(
            np.zeros((shape[0], *shape[2:])),
            kernel,
            strides=spec["strides"],
            padding=spec["padding"],
            dilation=spec["dilation_rate"],
        )
        return [one.shape] * 2
    return [(shape[0], spec["units"])] * (2 if name == "LSTM" else 1)


def _recurrent(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    """LSTM, GRU and ConvLSTM."""
    name = spec["class"]
    activation = ACTIVATIONS[spec["activation"]]
    gate = ACTIVATIONS[spec["recurrent_activation"]]
    kernel, recurrent_kernel = next(weights), next(weights)
    if states is None:
        states = [np.zeros(shape) for shape in state_shapes(spec, x.shape)]
    if spec["use_bias"]:
        bias = next(weights)
    else:
        two_rows = name == "GRU" and spec["reset_after"]
        bias = np.zeros((2, kernel.shape[-1]) if two_rows else kernel.shape[-1])

    def conv_lstm(x: Array, states: States) -> States:
        h, c = states
        z = convolve(
            x, kernel, bias, spec["strides"], spec["padding"], spec["dilation_rate"]
        ) + convolve(h, recurrent_kernel, padding="same")
        i, f, g, o = np.split(z, 4, axis=-1)
        c = gate(f) * c + gate(i) * activation(g)
        return [gate(o) * activation(c), c]

    def dense(x: Array, states: States) -> States:
        step = lstm_step if name == "LSTM" else gru_step
        return step(x, states, [kernel, recurrent_kernel, bias], activation, gate)

    convolutional = name.startswith("ConvLSTM")
    if not convolutional:
        x = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    time_mask = None if mask is None else reduce_mask(mask)
    sequence, last, states = recur(
        conv_lstm if convolutional else dense,
        x,
        states,
        time_mask,
        spec["go_backwards"],
        spec["zero_output_for_mask"],
    )
    outputs = [sequence if spec["return_sequences"] else last]
    masks = [time_mask if spec["return_sequences"] else None]
    if spec["return_state"]:
        outputs, masks = [*outputs, *states], [*masks, *(None for _ in states)]
    return outputs, masks


def final_states(
    spec: Spec, weights: Iterator[Array], x: Array, mask: Array | None, states: States | None
) -> States:
    """What a recurrent layer's states are after a call."""
    if spec["class"] == "Bidirectional":
        spec = {**spec, "layer": {**spec["layer"], "return_state": True}}
    else:
        spec = {**spec, "return_state": True}
    outputs, _ = compute(spec, weights, x, mask, states)
    return outputs[2 if spec.get("merge_mode", "") is None else 1 :]


def _bidirectional(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    inside = {**spec["layer"]}
    # Keras: where sequences are returned, masked steps give zeros, or they could not be merged.
    inside["zero_output_for_mask"] = inside["return_sequences"]
    half = None if states is None else len(states) // 2
    forward, masks = compute(inside, weights, x, mask, states and states[:half])
    inside["go_backwards"] = not inside["go_backwards"]
    backward, _ = compute(inside, weights, x, mask, states and states[half:])
    y, y_back = forward[0], backward[0]
    if inside["return_sequences"]:
        y_back = y_back[:, ::-1]
    merged = {
        "concat": lambda: [np.concatenate([y, y_back], axis=-1)],
        "sum": lambda: [y + y_back],
        "mul": lambda: [y * y_back],
        "ave": lambda: [(y + y_back) / 2],
        None: lambda: [y, y_back],
    }[spec["merge_mode"]]()
    states = [*forward[1:], *backward[1:]]
    return [*merged, *states], [*(masks[:1] * len(merged)), *(None for _ in states)]


def _time_distributed(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    inside = spec["layer"]
    batch, time = x.shape[:2]

    def folded(a: Array) -> Array:
        return a.reshape(batch * time, *a.shape[2:])

    recurrent = inside["class"] in ("LSTM", "GRU")
    to_layer = None
    if recurrent and mask is not None and mask.ndim > 2:
        to_layer = folded(mask)
    outputs, inner_masks = compute(inside, weights, folded(x), to_layer, None)
    time_mask = None if mask is None else reduce_mask(mask)
    masks = [time_mask if m is None else m.reshape(batch, time, *m.shape[1:]) for m in inner_masks]
    return [y.reshape(batch, time, *y.shape[1:]) for y in outputs], masks


def _channelwise(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    inside, axes = spec["layer"], x.shape[2:-1]
    batch, time, channels = *x.shape[:2], math.prod(axes)
    series = np.moveaxis(x.reshape(batch, time, channels, x.shape[-1]), 2, 1)
    series = series.reshape(batch * channels, time, x.shape[-1])
    channel_mask = None
    if mask is not None:
        mask = mask.astype(bool)
        spread = mask.reshape(*mask.shape, *[1] * (len(axes) + 2 - mask.ndim))
        spread = np.broadcast_to(spread, (batch, time, *axes)).reshape(batch, time, channels)
        channel_mask = np.moveaxis(spread, 2, 1).reshape(batch * channels, time)
    recurrent = inside["class"] in ("LSTM", "GRU")
    outputs, _ = compute(inside, weights, series, channel_mask if recurrent else None, None)
    joined = []
    for y in outputs:
        stacked = np.moveaxis(y.reshape(batch, channels, *y.shape[1:]), 1, -2)
        y = merge_channels(stacked, spec["merge"])
        if spec["merge"] == "stack":
            y = y.reshape(*y.shape[:-2], *axes, y.shape[-1])
        joined.append(y)
    out_mask = mask
    if mask is not None and spec["merge"] != "stack":
        out_mask = reduce_mask(mask)
    return joined, [out_mask if y.ndim == 3 else None for y in outputs]


def _time_distributed_conv(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    batch, time = x.shape[:2]
    y = x.reshape(batch * time, *x.shape[2:])
    weights = list(weights)
    # Slopes of PReLU stand at the end, one array a block.
    first = len(weights) - (len(spec["filters"]) if spec["activation"] == "prelu" else 0)
    weights, slopes = iter(weights[:first]), iter(weights[first:])
    for block, _ in enumerate(spec["filters"]):
        if block and spec["pool_size"] is not None:
            y = pool(y, spec["pool_size"], spec["pool"])
        kernel = next(weights)
        bias = next(weights) if spec["use_bias"] else 0.0
        y = convolve(
            y,
            kernel,
            bias,
            spec["strides"],
            spec["padding"],
            spec["dilation_rate"],
            spec["groups"],
        )
        if spec["normalization"] == "batch":
            scale, shift, mean, variance = (next(weights) for _ in range(4))
            y = (y - mean) / np.sqrt(variance + 1e-3) * scale + shift
        elif spec["normalization"] == "layer":
            y = _layer_norm(y, next(weights), next(weights))
        if spec["activation"] == "prelu":
            y = np.where(y.real > 0, y, next(slopes) * y)
        else:
            y = ACTIVATIONS[spec["activation"]](y)
    axes = tuple(range(1, y.ndim - 1))
    if spec["reduce"] == "flatten":
        y = y.reshape(len(y), math.prod(y.shape[1:]))
    else:
        y = {"average": np.mean, "max": np.max}[spec["reduce"]](y, axis=axes)
    out_mask = None if mask is None else reduce_mask(mask, spec["mask_reduction"])
    return [y.reshape(batch, time, y.shape[-1])], [out_mask]


def _layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-3) * scale + shift


def _flatten_features(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    out_mask = None if mask is None else reduce_mask(mask, spec["mask_reduction"])
    return [x.reshape(*x.shape[:2], math.prod(x.shape[2:]))], [out_mask]


def _stack(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    """Layers one after another; the first output of each, and its mask, go on."""
    outputs, masks = [x], [mask]
    for inside in spec["layers"]:
        outputs, masks = compute(inside, weights, outputs[0], masks[0], states)
        states = None
    return outputs, masks


def _dense(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    return [ACTIVATIONS[spec["activation"]](x @ next(weights) + next(weights))], [None]


def _conv(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    kernel, bias = next(weights), next(weights)
    y = convolve(x, kernel, bias, padding=spec["padding"])
    return [ACTIVATIONS[spec["activation"]](y)], [None]


def _flatten(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    return [x.reshape(len(x), math.prod(x.shape[1:]))], [None]


def _normalization(spec: Spec, weights: Any, x: Array, mask: Any, states: Any) -> Result:
    return [_layer_norm(x, next(weights), next(weights))], [None]


_LAYERS: dict[str, Callable[..., Result]] = {
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "ConvLSTM1D": _recurrent,
    "ConvLSTM2D": _recurrent,
    "ConvLSTM3D": _recurrent,
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
    "Channelwise": _channelwise,
    "TimeDistributedConv": _time_distributed_conv,
    "FlattenFeatures": _flatten_features,
    "Stack": _stack,
    "Dense": _dense,
    "Conv1D": _conv,
    "Conv2D": _conv,
    "Flatten": _flatten,
    "LayerNormalization": _normalization,
}

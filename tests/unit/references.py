"""What the layers compute, written again in float64 NumPy."""

import itertools

import numpy as np


def convolve(x, kernel, bias=0.0, strides=1, padding="valid", dilation=1, groups=1):
    """Convolution of `(batch, *axes, features)` by `(*kernel_size, features / groups, filters)`."""
    x, kernel = np.asarray(x, "float64"), np.asarray(kernel, "float64")
    rank = x.ndim - 2
    strides, dilation = np.broadcast_to(strides, rank), np.broadcast_to(dilation, rank)
    sizes = kernel.shape[:rank]
    spans = (np.array(sizes) - 1) * dilation + 1
    axes = np.array(x.shape[1:-1])
    if padding == "same":
        needed = np.maximum((-(-axes // strides) - 1) * strides + spans - axes, 0)
        before, after = needed // 2, needed - needed // 2
    elif padding == "causal":
        before, after = spans - 1, np.zeros(rank, int)
    else:
        before = after = np.zeros(rank, int)
    x = np.pad(x, [(0, 0), *zip(before, after, strict=True), (0, 0)])
    out_axes = (np.array(x.shape[1:-1]) - spans) // strides + 1
    filters = kernel.shape[-1]
    out = np.zeros((len(x), *out_axes, filters))
    per_group_in, per_group_out = kernel.shape[-2], filters // groups
    for position in itertools.product(*map(range, out_axes)):
        for offset in itertools.product(*map(range, sizes)):
            place = np.array(position) * strides + np.array(offset) * dilation
            values = x[(slice(None), *place)]
            for group in range(groups):
                inside = slice(group * per_group_in, (group + 1) * per_group_in)
                outside = slice(group * per_group_out, (group + 1) * per_group_out)
                out[(slice(None), *position, outside)] += (
                    values[:, inside] @ kernel[(*offset, slice(None), outside)]
                )
    return out + bias


def sigmoid(x):
    """Logistic function."""
    return 1 / (1 + np.exp(-x))


def lstm(x, kernel, recurrent_kernel, bias, mask=None):
    """Outputs `(batch, time, units)` of an LSTM; masked steps repeat the output before them."""
    x = np.asarray(x, "float64")
    batch, time, _ = x.shape
    units = len(recurrent_kernel)
    h, c = np.zeros((batch, units)), np.zeros((batch, units))
    output = np.zeros((batch, time, units))
    for t in range(time):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent_kernel + bias, 4, axis=-1)
        new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        new_h = sigmoid(o) * np.tanh(new_c)
        valid = np.ones((batch, 1), bool) if mask is None else mask[:, t, None]
        h, c = np.where(valid, new_h, h), np.where(valid, new_c, c)
        output[:, t] = h
    return output


def merge(channels, how, axes=None):
    """Join `(batch, ..., units)` arrays, one a channel, as `Channelwise(merge=how)` does."""
    if how == "concat":
        return np.concatenate(channels, axis=-1)
    stacked = np.stack(channels, axis=-2)
    if how == "stack":
        return (
            stacked
            if axes is None
            else stacked.reshape((*stacked.shape[:-2], *axes, stacked.shape[-1]))
        )
    return {"sum": np.sum, "average": np.mean, "max": np.max}[how](stacked, axis=-2)


def loop_over_time(function, x):
    """Stack `function(x[:, t])` along a new time axis, nested structures too."""
    from keras import ops, tree

    time = tree.flatten(x)[0].shape[1]
    steps = [function(tree.map_structure(lambda v, t=t: v[:, t], x)) for t in range(time)]
    return tree.map_structure(
        lambda *xs: np.stack([ops.convert_to_numpy(v) for v in xs], 1), *steps
    )

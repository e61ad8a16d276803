"""What the layers compute, written again in float64 NumPy."""

import numpy as np
from fuzz import reference
from fuzz.reference import sigmoid as sigmoid


def convolve(x, kernel, bias=0.0, strides=1, padding="valid", dilation=1, groups=1):
    """Convolution of `(batch, *axes, features)` by `(*kernel_size, features / groups, filters)`."""
    x, kernel = np.asarray(x, "float64"), np.asarray(kernel, "float64")
    return reference.convolve(x, kernel, bias, strides, padding, dilation, groups)


def lstm(x, kernel, recurrent_kernel, bias, mask=None):
    """Outputs `(batch, time, units)` of an LSTM; masked steps repeat the output before them."""
    x = np.asarray(x, "float64")
    weights = [kernel, recurrent_kernel, bias]
    zeros = np.zeros((len(x), len(recurrent_kernel)))
    return reference.recur(
        lambda step, states: reference.lstm_step(step, states, weights), x, [zeros, zeros], mask
    )[0]


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

"""LSTM and GRU in NumPy, float64, step by step: the truth that the layers are held to."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(x, states, weights):
    kernel, recurrent_kernel, bias = weights
    h, c = states
    i, f, g, o = np.split(x @ kernel + h @ recurrent_kernel + bias, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru_step(x, states, weights):
    kernel, recurrent_kernel, bias = weights
    (h,) = states
    units = h.shape[1]
    reset_after = bias.ndim == 2
    input_bias, recurrent_bias = bias if reset_after else (bias, 0 * bias)
    z, r, candidate = np.split(x @ kernel + input_bias, 3, axis=-1)
    recurrent = h @ recurrent_kernel + recurrent_bias
    z = sigmoid(z + recurrent[:, :units])
    r = sigmoid(r + recurrent[:, units : 2 * units])
    if reset_after:
        candidate = np.tanh(candidate + r * recurrent[:, 2 * units :])
    else:
        candidate = np.tanh(candidate + (r * h) @ recurrent_kernel[:, 2 * units :])
    return [z * h + (1 - z) * candidate]


def run(step, x, states, weights, mask=None, go_backwards=False, zero_output_for_mask=False):
    """Sequence (batch, time, units), last output, and final states.

    As Keras's loop on TensorFlow: a masked step leaves the states; its output is the one before,
    zeros at first, or zeros everywhere with zero_output_for_mask.
    """
    x = np.asarray(x, "float64").reshape(*x.shape[:2], int(np.prod(x.shape[2:])))
    states = [np.asarray(state, "float64") for state in states]
    weights = [np.asarray(weight, "float64") for weight in weights]
    batch, time = x.shape[:2]
    mask = np.ones((batch, time), bool) if mask is None else mask
    output = np.zeros_like(states[0])
    outputs = []
    for t in reversed(range(time)) if go_backwards else range(time):
        valid = mask[:, t, None]
        new_states = step(np.where(valid, x[:, t], 0), states, weights)
        states = [np.where(valid, new, old) for new, old in zip(new_states, states, strict=True)]
        output = np.where(valid, new_states[0], 0 if zero_output_for_mask else output)
        outputs.append(output)
    sequence = np.stack(outputs, 1) if outputs else np.zeros((batch, 0, states[0].shape[1]))
    return sequence, output, states


def central_differences(function, arrays, step=1e-6):
    """Gradients of a scalar function of float64 arrays."""
    gradients = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = function(*arrays)
            array[index] = kept - step
            gradient[index] = (above - function(*arrays)) / (2 * step)
            array[index] = kept
        gradients.append(gradient)
    return gradients

"""LSTM and GRU in NumPy, float64, step by step: the truth that the layers are held to."""

import numpy as np
from fuzz.reference import gru_step, lstm_step, recur

__all__ = ["central_differences", "gru_step", "lstm_step", "run"]


def run(step, x, states, weights, mask=None, go_backwards=False, zero_output_for_mask=False):
    """Sequence (batch, time, units), last output, and final states.

    As Keras's loop on TensorFlow: a masked step leaves the states; its output is the one before,
    zeros at first, or zeros everywhere with zero_output_for_mask.
    """
    x = np.asarray(x, "float64").reshape(*x.shape[:2], int(np.prod(x.shape[2:])))
    states = [np.asarray(state, "float64") for state in states]
    weights = [np.asarray(weight, "float64") for weight in weights]
    return recur(
        lambda step_input, states: step(step_input, states, weights),
        x,
        states,
        mask,
        go_backwards,
        zero_output_for_mask,
    )


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

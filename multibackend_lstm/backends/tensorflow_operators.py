"""Recurrent layers in a TensorFlow graph that becomes one operator of another runtime.

TensorFlow has no such operator that converters keep together, so each is marked in the graph in the
way that its converter looks for.
"""

import uuid
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from multibackend_lstm.backends.base import KernelCall

#: Begins the `token` of a `PyFunc` node that stands for an operator of ONNX: `"onnx:LSTM"`.
ONNX_TOKEN = "onnx:"
# Places of Keras's gates in ONNX's order: i, f, g, o as i, o, f, c; z, r, h as they are.
_ORDERS = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2)}


def onnx_operator(kind: str, call: KernelCall) -> tuple[Any, Any, list[Any]]:
    """As the backend's `lstm` and `gru`: one `LSTM` or `GRU` of ONNX.

    The node in the graph cannot run. `export/onnx_operators.py` puts the operator in its place.

    Args:
        kind: `"LSTM"`, `"GRU"`, or `"GRU reset before"` for `reset_after=False`.
        call: with each sample's valid steps first.
    """
    order = _ORDERS[kind.partition(" ")[0]]
    kernel, recurrent_kernel, bias = call.weights
    units = recurrent_kernel.shape[0]
    sizes = tf.shape(call.inputs)

    def gates(x: Any) -> Any:
        """`(1, gates * units, ...)` in ONNX's order from Keras's `(..., gates * units)`."""
        parts = tf.split(x, len(order), axis=-1)
        return tf.transpose(tf.concat([parts[place] for place in order], axis=-1))[None]

    biases = tf.zeros((2, kernel.shape[1]), kernel.dtype)
    if bias is not None:
        biases = bias if len(bias.shape) == 2 else tf.stack([bias, tf.zeros_like(bias)])
    both = tf.concat([gates(biases[0]), gates(biases[1])], axis=1)
    arguments = [tf.transpose(call.inputs, (1, 0, 2)), gates(kernel), gates(recurrent_kernel), both]
    arguments += [state[None] for state in call.states]
    if call.valid is not None:
        lengths = tf.reduce_sum(tf.cast(call.valid, tf.int32), axis=1)
        # A sample without a step takes one, and its states are put back.
        arguments.append(tf.maximum(lengths, 1))
    results = tf.raw_ops.PyFunc(
        input=arguments,
        token=ONNX_TOKEN + kind,
        Tout=[call.inputs.dtype] * (1 + len(call.states)),
    )
    sequence = tf.ensure_shape(results[0], (call.inputs.shape[1], 1, call.inputs.shape[0], units))
    sequence = tf.transpose(tf.reshape(sequence, (sizes[1], sizes[0], units)), (1, 0, 2))
    states = [tf.reshape(state, (sizes[0], units)) for state in results[1:]]
    if call.valid is not None:
        states = [
            tf.where(lengths[:, None] > 0, new, old)
            for new, old in zip(states, call.states, strict=True)
        ]
    return sequence, states[0], states


def litert_operator(loop: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Output of each step, `(batch, time, units)`: one `UNIDIRECTIONAL_SEQUENCE_LSTM` of LiteRT.

    The converter puts it in the place of a function marked as Keras 2 marked its own, with six
    arguments and five results, of which nothing but the second is used.

    Args:
        loop: the LSTM as a function that returns the outputs and the states h and c.
        arguments: inputs, h, c, kernel, recurrent kernel and bias, as tensors.
    """

    def lstm(*arguments: Any) -> Any:
        outputs, h, c = loop(*arguments)
        return h, outputs, h, c, tf.constant(0.0)

    marks = {"api_implements": f"lstm_{uuid.uuid4()}", "time_major": False, "go_backwards": False}
    marked = tf.function(lstm, autograph=False, experimental_attributes=marks)
    return marked(*map(tf.convert_to_tensor, arguments))[1]

"""One rule a kind of layer: which `torch.nn` module holds the same weights, and how.

A family of layers has one file: its weights, its settings, the order of its features, and the
torch module that computes the same. The list of all is here.
"""

from typing import Any

import keras

from multibackend_lstm.layers import GRU, LSTM, Bidirectional
from multibackend_lstm.torch_weights.rules import (
    activations,
    attention,
    convolutions,
    dense,
    embedding,
    normalization,
    recurrent,
)
from multibackend_lstm.torch_weights.rules.base import Rule

_LSTM, _GRU, _RNN = recurrent.LSTM(), recurrent.GRU(), recurrent.SimpleRNN()

#: The rule of each kind of layer, by its exact type: a subclass may compute something else.
RULES: dict[type, Rule] = {
    keras.layers.LSTM: _LSTM,
    LSTM: _LSTM,
    keras.layers.GRU: _GRU,
    GRU: _GRU,
    keras.layers.SimpleRNN: _RNN,
    keras.layers.Conv1D: convolutions.Convolution(1),
    keras.layers.Conv2D: convolutions.Convolution(2),
    keras.layers.Conv3D: convolutions.Convolution(3),
    keras.layers.DepthwiseConv1D: convolutions.DepthwiseConvolution(1),
    keras.layers.DepthwiseConv2D: convolutions.DepthwiseConvolution(2),
    keras.layers.Conv1DTranspose: convolutions.TransposedConvolution(1),
    keras.layers.Conv2DTranspose: convolutions.TransposedConvolution(2),
    keras.layers.Conv3DTranspose: convolutions.TransposedConvolution(3),
    keras.layers.Dense: dense.Dense(),
    keras.layers.BatchNormalization: normalization.BatchNormalization(),
    keras.layers.LayerNormalization: normalization.LayerNormalization(),
    keras.layers.GroupNormalization: normalization.GroupNormalization(),
    keras.layers.Embedding: embedding.Embedding(),
    keras.layers.PReLU: activations.PReLU(),
    keras.layers.MultiHeadAttention: attention.MultiHeadAttention(),
}

# Of the cell in a `keras.layers.RNN`.
_CELLS: dict[type, Rule] = {
    keras.layers.LSTMCell: _LSTM,
    keras.layers.GRUCell: _GRU,
    keras.layers.SimpleRNNCell: _RNN,
}

_RECURRENT = dict.fromkeys(
    layer.__name__ for layer, rule in RULES.items() if isinstance(rule, recurrent.RecurrentRule)
)
#: Kinds of layers that a message lists as supported.
SUPPORTED = (
    *dict.fromkeys(layer.__name__ for layer in RULES),
    f"RNN of {', '.join(cell.__name__ for cell in _CELLS)}",
    f"Bidirectional of {' or '.join(_RECURRENT)}",
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
        forward, backward = (rule_of(x) for x in recurrent.directions(layer))
        same = forward is backward and isinstance(forward, recurrent.RecurrentRule)
        return forward if same else None
    if type(layer) is keras.layers.RNN:
        return _CELLS.get(type(layer.cell))
    return RULES.get(type(layer))

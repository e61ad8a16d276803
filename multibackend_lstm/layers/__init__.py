"""Keras layers, written only against the public API of keras."""

# Registers its function, which migrated models name.
from multibackend_lstm.layers import activations as activations
from multibackend_lstm.layers.bidirectional import Bidirectional
from multibackend_lstm.layers.channelwise import Channelwise
from multibackend_lstm.layers.conv_lstm import ConvLSTM1D, ConvLSTM2D, ConvLSTM3D
from multibackend_lstm.layers.dropout import (
    Dropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout1D,
    SpatialDropout2D,
)
from multibackend_lstm.layers.flatten_features import FlattenFeatures
from multibackend_lstm.layers.gru import GRU
from multibackend_lstm.layers.length_masking import LengthMasking
from multibackend_lstm.layers.lstm import LSTM
from multibackend_lstm.layers.normalization import Normalization
from multibackend_lstm.layers.time_distributed import TimeDistributed
from multibackend_lstm.layers.time_distributed_conv import TimeDistributedConv

__all__ = [
    "GRU",
    "LSTM",
    "Bidirectional",
    "Channelwise",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
    "Dropout",
    "FlattenFeatures",
    "GaussianDropout",
    "GaussianNoise",
    "LengthMasking",
    "Normalization",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "TimeDistributed",
    "TimeDistributedConv",
]

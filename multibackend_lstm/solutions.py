"""The solutions, by name; apart from `models.py` so that reading them does not import keras."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Solution = Literal["reshape", "pre_reshape", "conv", "channelwise", "conv_lstm"]

SOLUTIONS: Mapping[Solution, str] = MappingProxyType(
    {
        "reshape": "independent measurements: merge channels and features inside the model",
        "pre_reshape": "the same, for data that is already flattened to (batch, time, features)",
        "conv": "neighbouring positions: convolve across the channels inside every time step",
        "channelwise": "the same kind of sensor many times: one shared LSTM on each channel",
        "conv_lstm": "images and maps: convolutions inside the recurrence (ConvLSTM1D to 3D)",
    }
)
"""The solutions of `build_model`, and when to choose each.

Example:
    >>> SOLUTIONS["channelwise"]
    'the same kind of sensor many times: one shared LSTM on each channel'
"""

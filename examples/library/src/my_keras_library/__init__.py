"""Keras 3 layers with the same numbers on every backend."""

from my_keras_library.masked_mean import MaskedMean

__all__ = ["MaskedMean"]

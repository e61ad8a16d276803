"""Arrays in, batches out."""

from multibackend_lstm.data.basic_motions import BasicMotions, load_basic_motions
from multibackend_lstm.data.padding import pad_sequences
from multibackend_lstm.data.reshaping import flatten_features, unflatten_features

__all__ = [
    "BasicMotions",
    "flatten_features",
    "load_basic_motions",
    "pad_sequences",
    "unflatten_features",
]

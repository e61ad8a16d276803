"""Arrays and tables in, batches out.

What needs keras, `windows`, is loaded on first use: the rest goes without.
"""

from typing import TYPE_CHECKING

from multibackend_lstm.data.adapters import to_grain, to_tensorflow, to_torch
from multibackend_lstm.data.basic_motions import BasicMotions, load_basic_motions
from multibackend_lstm.data.layouts import Layout, layout
from multibackend_lstm.data.padding import pad_sequences
from multibackend_lstm.data.recordings import Recording
from multibackend_lstm.data.reshaping import flatten_features, unflatten_features
from multibackend_lstm.data.splits import split_windows
from multibackend_lstm.lazy_names import lazy_names

if TYPE_CHECKING:
    from multibackend_lstm.data.window_dataset import WindowDataset, windows

__all__ = [
    "BasicMotions",
    "Layout",
    "Recording",
    "WindowDataset",
    "flatten_features",
    "layout",
    "load_basic_motions",
    "pad_sequences",
    "split_windows",
    "to_grain",
    "to_tensorflow",
    "to_torch",
    "unflatten_features",
    "windows",
]

__getattr__, __dir__ = lazy_names(
    __name__, {"WindowDataset": "window_dataset", "windows": "window_dataset"}
)

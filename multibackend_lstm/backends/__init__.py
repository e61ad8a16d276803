"""All that differs among backends: one file a backend, the same function names in each.

| function | does |
|---|---|
| `concatenate_steps` | calls a function on some time steps at a time |
| `convolve` | applies a convolution layer, in the fastest of the equal formulations |
| `nonempty` | a batch, with a sample more if it has none and that cannot be convolved |
| `matmul`, `tanh` | what `keras.ops` computes in float32 on some backend though it gets float64 |
| `float64_refusal` | why the float64 policy cannot be kept |
| `concrete` | the values of a tensor, where they are known now |
| `scan` | a loop over time |
| `supports_jit` | whether Keras may compile a model with such a layer by itself |
| `valid_steps_first` | whether `lstm` and `gru` need the valid steps first |
| `lstm`, `gru` | a whole recurrent layer in the backend's fastest way, or `Refused` |

`lstm` and `gru` share one signature:

    lstm(inputs, states, valid, weights, *, options) -> sequence, last, states, path

    inputs:   (batch, time, features)
    states:   h, c for LSTM, h for GRU: each (batch, units), float32 at least
    valid:    boolean (batch, time), False for masked steps, whose inputs are zeros; or None.
              Where `valid_steps_first()` says so, each sample's valid steps come first.
    weights:  `Weights`
    options:  `Options`
    sequence: (batch, time, units), the hidden state after each step; after a masked step that
              of the step before, or with `valid_steps_first()` any finite value
    last:     (batch, units), the hidden state after each sample's last valid step; its initial
              one where it has none
    states:   the states after each sample's last valid step
    path:     the name of what ran, for `implementation_report()`

They return only what the layer can rely on, or raise `Refused` with the reason.
"""

from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import keras

# Backends without a file of their own compute like the NumPy backend: eagerly, one call at a time.
_FILES = {"tensorflow": "tensorflow", "torch": "torch", "jax": "jax"}


class Refused(Exception):  # noqa: N818 - not an error: the caller has another way
    """A backend has no kernel for this call; the message is the reason."""


class Weights(NamedTuple):
    """Weights of a recurrent layer in the form that Keras gives them, in the compute dtype.

    Attributes:
        kernel: `(features, gates * units)`; LSTM gates i, f, g, o; GRU gates z, r, h.
        recurrent_kernel: `(units, gates * units)`.
        bias: `(gates * units,)`; for a GRU with `reset_after=True` `(2, gates * units)`, the
            input's and the recurrent one; None for none.
    """

    kernel: Any
    recurrent_kernel: Any
    bias: Any


class Options(NamedTuple):
    """What a kernel may save itself.

    Attributes:
        sequence: whether `sequence` will be used.
        states: whether `states` will be used.
        cudnn: whether cuDNN may be used.
    """

    sequence: bool = True
    states: bool = True
    cudnn: bool = True


_loaded: dict[str, ModuleType] = {}


def active() -> ModuleType:
    """The file of the backend that Keras runs on."""
    name = _FILES.get(keras.backend.backend(), "numpy")
    if name not in _loaded:  # torch.compile can follow a look-up, and no import
        _loaded[name] = import_module(f"{__name__}.{name}")
    return _loaded[name]

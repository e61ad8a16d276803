"""CuDNNLSTM and CuDNNGRU of Keras 2 as the LSTM and GRU that compute the same.

Their weights are laid out for the cuDNN kernel, which takes each gate's block as one row of numbers
and reads it as a matrix of (units, inputs), and which adds two biases. The order of the gates is
that of LSTM and GRU, and cuDNN's GRU is that of `reset_after=True`. The conversion is the one of
`tf_keras/src/saving/legacy/hdf5_format.py`, which Keras 3 no longer has.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from multibackend_lstm.migration.model_files import ModelFile
from multibackend_lstm.runtimes.loading import ModelFileError

#: The layer of Keras 3 that computes the same, and the arguments that the old one does not have.
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "CuDNNLSTM": (
        "LSTM",
        {"activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True},
    ),
    "CuDNNGRU": (
        "GRU",
        {
            "activation": "tanh",
            "recurrent_activation": "sigmoid",
            "use_bias": True,
            "reset_after": True,
        },
    ),
}


def convert_weights(file: ModelFile) -> None:
    """Put the weights of a file's cuDNN layers into the layout of LSTM and GRU.

    Args:
        file: a file whose configuration is not translated yet. Its `by_layer` is changed.

    Raises:
        ModelFileError: if it is a `.keras` archive, which only releases that no longer had these
            layers write.
    """
    layers = file.config.get("config")
    layers = layers.get("layers") if isinstance(layers, dict) else layers
    for layer in layers if isinstance(layers, list) else []:
        names = sorted(set(_class_names(layer)) & set(LAYERS))
        if not names:
            continue
        if file.by_layer is None:
            raise ModelFileError(f"{names[0]} layers are migrated from .h5 files only")
        name = str(layer.get("name") or layer["config"].get("name"))
        file.by_layer[name] = _converted(file.by_layer.get(name, {}))


def _class_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("class_name"), str):
            yield value["class_name"]
        for item in value.values():
            yield from _class_names(item)
    elif isinstance(value, list):
        for item in value:
            yield from _class_names(item)


def _converted(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a layer, or of a nested model, of which other layers stay as they are."""
    converted = dict(arrays)
    for place, bias in arrays.items():
        prefix, _, end = place.rpartition("bias")
        kernel = arrays.get(f"{prefix}kernel{end}")
        recurrent = arrays.get(f"{prefix}recurrent_kernel{end}")
        if kernel is None or recurrent is None or kernel.ndim != 2 or recurrent.ndim != 2:
            continue
        units = recurrent.shape[0]
        gates = recurrent.shape[1] // max(units, 1)
        # One row of two biases: LSTM has one bias, and GRU has two rows.
        if (
            gates not in (3, 4)
            or kernel.shape[1] != gates * units
            or recurrent.shape[1] != gates * units
            or bias.shape != (2 * gates * units,)
        ):
            continue
        converted[f"{prefix}kernel{end}"] = _gates(kernel, gates)
        converted[f"{prefix}recurrent_kernel{end}"] = _gates(recurrent, gates)
        biases = bias.reshape(2, -1)
        converted[place] = biases.sum(axis=0) if gates == 4 else biases
    return converted


def _gates(kernel: np.ndarray, gates: int) -> np.ndarray:
    """Each gate's block, read as (units, inputs), as (inputs, units)."""
    inputs, columns = kernel.shape
    units = columns // gates
    blocks = (block.reshape(units, inputs).T for block in np.split(kernel, gates, axis=1))
    return np.concatenate(list(blocks), axis=1)

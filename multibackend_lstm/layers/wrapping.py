"""What a wrapper asks of the layer inside it."""

import inspect
from collections.abc import Iterator
from typing import Any

import keras
from keras import KerasTensor, tree

from multibackend_lstm.layers.folding import TracedFunction, call_nonempty

_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)


def sublayers(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The layer itself and, for models and wrappers, the layers in it."""
    yield layer
    if isinstance(layer, keras.layers.Bidirectional):
        inside = [layer.forward_layer, layer.backward_layer]
    else:
        inside = [*getattr(layer, "layers", []), getattr(layer, "layer", None)]
    for inner in inside:
        if isinstance(inner, keras.layers.Layer):
            yield from sublayers(inner)


def accepts(layer: keras.layers.Layer, argument: str) -> bool:
    """Whether `layer.call` takes `argument`."""
    return argument in inspect.signature(layer.call).parameters


def takes_sequences(layer: keras.layers.Layer) -> bool:
    """Whether a mask given to the layer must have a time axis of the layer's own input."""
    return isinstance(layer, (keras.Model, *_RECURRENT))


def call_folded(layer: keras.layers.Layer, inputs: Any, mask: Any, training: bool | None) -> Any:
    """Call the layer with the arguments that it takes on a folded batch, which may be empty."""
    arguments: dict[str, Any] = {}
    if training is not None and accepts(layer, "training"):
        arguments["training"] = training
    if mask is None or not accepts(layer, "mask"):
        return call_nonempty(lambda x: layer(x, **arguments), inputs)
    return call_nonempty(lambda x, mask: layer(x, mask=mask, **arguments), inputs, mask)


def let_masks_pass(layer: keras.layers.Layer) -> None:
    """Have the layer, and those in it, pass masks as they do up to Keras 3.15.

    From 3.16 on Keras's recurrent layers drop them, with a warning (keras#23235).
    """
    for inner in sublayers(layer):
        if isinstance(inner, (*_RECURRENT, keras.layers.TimeDistributed)):
            inner.supports_masking = True


def output_spec(layer: keras.layers.Layer, inputs: Any) -> Any:
    """What a built layer returns for symbolic inputs, shapes and dtypes."""

    def cast(x: KerasTensor) -> KerasTensor:
        if layer.autocast and keras.backend.is_float_dtype(x.dtype):
            return KerasTensor(x.shape, dtype=layer.compute_dtype)
        return x

    try:
        layer.compute_output_shape(tree.map_structure(lambda x: tuple(x.shape), inputs))
    except NotImplementedError:
        return TracedFunction(layer).compute_output_spec(inputs)
    # Not traced: a trace on PyTorch takes mixed-precision weights for float32 (Keras 3.15).
    return layer.compute_output_spec(tree.map_structure(cast, inputs))

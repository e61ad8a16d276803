"""What a wrapper asks of the layer inside it."""

import inspect
from collections.abc import Iterator

import keras

_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)


def sublayers(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The layer itself and, for models and wrappers, the layers in it."""
    yield layer
    for inner in [*getattr(layer, "layers", []), getattr(layer, "layer", None)]:
        if isinstance(inner, keras.layers.Layer):
            yield from sublayers(inner)


def accepts(layer: keras.layers.Layer, argument: str) -> bool:
    """Whether `layer.call` takes `argument`."""
    return argument in inspect.signature(layer.call).parameters


def takes_sequences(layer: keras.layers.Layer) -> bool:
    """Whether a mask given to the layer must have a time axis of the layer's own input."""
    return isinstance(layer, (keras.Model, *_RECURRENT))


def passes_mask(layer: keras.layers.Layer) -> bool:
    """Whether the layer's outputs carry a mask when its input does.

    Recurrent layers do, though Keras 3.16 no longer says so of them (keras#23235).
    """
    return layer.supports_masking or isinstance(layer, _RECURRENT)

"""Activations of Keras 2 that Keras 3 computes otherwise under the same name."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="multibackend_lstm")
def keras_2_hard_sigmoid(x: Any) -> Any:
    """`clip(0.2 * x + 0.5, 0, 1)`, what `hard_sigmoid` is in Keras 2; Keras 3 has the slope 1/6.

    Migrated models use it where the old file says `hard_sigmoid`, the default gate of recurrent
    layers before TensorFlow 2.

    Args:
        x: tensor of any shape and any floating dtype.

    Returns:
        A tensor of the same shape and dtype, with values in `[0, 1]`.
    """
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)

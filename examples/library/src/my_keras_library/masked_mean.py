"""MaskedMean: the mean over the valid steps."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="my_keras_library")
class MaskedMean(keras.layers.Layer):
    """The mean over time, of valid steps alone, times a learned scale.

    `(batch, time, features)` becomes `(batch, features)`. Without a valid step it is 0.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Only the arguments of every layer."""
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """One factor a feature."""
        self.scale = self.add_weight(name="scale", shape=input_shape[-1:], initializer="ones")

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Sum the valid steps and divide by their number."""
        if mask is None:
            return ops.mean(inputs, axis=1) * self.scale
        valid = ops.cast(mask, inputs.dtype)[..., None]
        count = ops.maximum(ops.sum(valid, axis=1), 1)
        # Selected, not multiplied: 0 times NaN would be NaN.
        inputs = ops.where(valid > 0, inputs, ops.zeros_like(inputs))
        return ops.sum(inputs, axis=1) / count * self.scale

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Time is gone, and the mask with it."""

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Without time."""
        return (input_shape[0], input_shape[-1])

"""FlattenFeatures: merge every axis after time."""

import math
from typing import Any

import keras
from keras import KerasTensor, ops

from multibackend_lstm.layers.validation import (
    MaskReduction,
    Shape,
    check_choice,
    check_mask,
    check_rank,
    known_sizes,
    reduce_mask,
)


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class FlattenFeatures(keras.layers.Layer):
    """Merges all axes after time: `(batch, time, *axes)` to `(batch, time, prod(axes))`.

    So a `(batch, time, channels, features)` tensor becomes what a recurrent layer takes. Column
    `channel * features + feature` of the output holds that channel's feature (C order), as in
    `x.reshape(batch, time, -1)` in NumPy.

    Example:
        >>> x = keras.Input((None, 3, 5))                       # (batch, time, channels, features)
        >>> keras.layers.LSTM(64)(FlattenFeatures()(x)).shape
        (None, 64)

    Args:
        mask_reduction: what makes a step valid when the input carries a mask with axes after
            time, such as the `(batch, time, channels)` mask `keras.layers.Masking` gives a 4D
            input: `"any"` valid entry (the default) or `"all"` of them.
        **kwargs: the arguments of every `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, time, *axes)`, of rank 3 (unchanged) or more. Batch and
            time may be unknown, the other axes must be known. Any dtype: values and dtype pass
            unchanged, whatever the layer's dtype policy.
        mask: boolean `(batch, time)` or `(batch, time, ...)` tensor; the output carries its
            `(batch, time)` reduction.

    Raises:
        ValueError: for an input of rank 2 or less, an unknown axis after time, or a mask whose
            shape does not begin the input's.
    """

    def __init__(self, mask_reduction: MaskReduction = "any", **kwargs: Any) -> None:
        # The values are only moved: no cast to the compute dtype, which could overflow.
        super().__init__(autocast=False, **kwargs)
        check_choice(type(self).__name__, "mask_reduction", mask_reduction, ("any", "all"))
        self.mask_reduction = mask_reduction
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        """Check the input's shape; there are no weights."""
        self.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        """Shape `(batch, time, prod(axes))`."""
        check_rank(self.name, input_shape, minimum=3)
        sizes = known_sizes(self.name, input_shape, range(2, len(input_shape)))
        return (*input_shape[:2], math.prod(sizes))

    def compute_output_spec(self, inputs: KerasTensor, mask: Any = None) -> KerasTensor:
        """Shape of the output and dtype of the input."""
        return KerasTensor(self.compute_output_shape(inputs.shape), dtype=inputs.dtype)

    def call(self, inputs: KerasTensor, mask: Any = None) -> KerasTensor:
        """Reshape; `compute_mask` carries the mask."""
        features = self.compute_output_shape(inputs.shape)[2]
        if len(inputs.shape) == 3:
            # Keras attaches the reduced mask to what is returned, so not to the input itself.
            return inputs if mask is None else ops.copy(inputs)
        # Both sizes are spelled out, since -1 is ambiguous in a tensor without elements.
        batch, time = ops.shape(inputs)[:2]
        return ops.reshape(inputs, (batch, time, features))

    def compute_mask(self, inputs: KerasTensor, previous_mask: Any = None) -> Any:
        """The `(batch, time)` mask, reduced from `previous_mask`."""
        if previous_mask is None:
            return None
        check_mask(self.name, previous_mask.shape, inputs.shape, max_rank=len(inputs.shape))
        return reduce_mask(previous_mask, self.mask_reduction)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "mask_reduction": self.mask_reduction}

"""LengthMasking: a mask from the number of valid steps of each sample."""

from typing import Any

import keras
from keras import KerasTensor, ops

from multibackend_lstm.layers.folding import expand
from multibackend_lstm.layers.lengths import not_a_number, steps_within
from multibackend_lstm.layers.validation import Shape, check_mask, check_rank


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class LengthMasking(keras.layers.Layer):
    """Masks the steps behind each sequence's end, from an input of lengths.

    `keras.layers.Masking` for series whose lengths are known, as `pad_sequences` of this package
    returns them: no value of the data has to mark what is missing.

    Example:
        >>> x, lengths = keras.Input((None, 3, 5)), keras.Input((), dtype="int32")
        >>> LSTM(64)(LengthMasking()([x, lengths])).shape
        (None, 64)

    Args:
        **kwargs: the arguments of every `keras.layers.Layer`.

    Call arguments:
        inputs: `[x, lengths]`: a tensor `(batch, time, *axes)` of any dtype, padded behind, and
            integers `(batch,)` from 0 to time. Batch and time may be unknown.
        mask: masks of both, as Keras gives them; that of `x` is kept beside the lengths.

    Returns:
        `x`, with zeros in the padding, whatever stood there, and the mask `(batch, time)` or that
        of `x`, of more axes, without the padding. In a traced function, and on a GPU with torch, a
        sample whose length is outside of `[0, time]` is NaN.

    Raises:
        ValueError: for inputs that are not two, lengths of wrong shape or dtype, and where their
            values are known for those outside of `[0, time]`.
    """

    def __init__(self, **kwargs: Any) -> None:
        # The values are only selected: no cast to the compute dtype, which could overflow.
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Check the shapes; there are no weights."""
        self.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: Any) -> Shape:
        """The shape of `x`."""
        shape, _ = self._pair(input_shape)
        check_rank(self.name, shape, minimum=3)
        return tuple(shape)

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> KerasTensor:
        """Shape and dtype of `x`."""
        x, lengths = self._pair(inputs)
        return KerasTensor(self.compute_output_shape([x.shape, lengths.shape]), dtype=x.dtype)

    def call(self, inputs: Any, mask: Any = None) -> KerasTensor:
        """Zeros in the padding."""
        x, lengths = self._pair(inputs)
        check_rank(self.name, x.shape, minimum=3)
        valid, unfit = steps_within(self.name, x, lengths)
        rank = len(x.shape)
        x = ops.where(expand(valid, rank), x, ops.zeros_like(x))
        if unfit is not None and keras.backend.is_float_dtype(x.dtype):
            x = ops.where(expand(unfit, rank), not_a_number(x), x)
        return x

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The steps within the lengths, that are valid in the mask of `x` too."""
        x, lengths = self._pair(inputs)
        valid, _ = steps_within(self.name, x, lengths)
        mask = previous_mask[0] if isinstance(previous_mask, (list, tuple)) else previous_mask
        if mask is None:
            return valid
        check_mask(self.name, mask.shape, x.shape, max_rank=len(x.shape))
        return ops.logical_and(ops.cast(mask, "bool"), expand(valid, len(mask.shape)))

    def _pair(self, inputs: Any) -> Any:
        if not isinstance(inputs, (list, tuple)) or len(inputs) != 2:
            raise ValueError(
                f"{self.name}: the input must be `[x, lengths]`. Received {type(inputs).__name__}"
                + (f" of {len(inputs)}." if isinstance(inputs, (list, tuple)) else ".")
            )
        return inputs

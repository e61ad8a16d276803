"""Normalization: zero mean and unit variance, by statistics that leave masked steps out."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, ops, tree

from multibackend_lstm.data.statistics import valid_statistics
from multibackend_lstm.layers.dtypes import check_float64
from multibackend_lstm.layers.folding import expand
from multibackend_lstm.layers.validation import (
    Shape,
    check_as_built,
    check_mask,
    check_rank,
    describe_shape,
    known_sizes,
)


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class Normalization(keras.layers.Layer):
    """Subtracts a mean and divides by a standard deviation, and leaves masked steps alone.

    `keras.layers.Normalization` for padded sequences: `adapt` takes the statistics of valid steps
    only, in float64, so that they are the same on every backend, and the mark of missing steps
    stays out of the model's numbers. The statistics are weights: they are saved with the model.

    Example:
        >>> layer = Normalization(axis=(-2, -1))          # each feature of each channel
        >>> layer.adapt(x, mask=mask)                     # (batch, time, channels, features)
        >>> y = layer(x, mask=mask)

    Args:
        axis: the axes, counted from the end, whose entries each have statistics of their own:
            -1 for each feature, `(-2, -1)` for each feature of each channel.
        mean: the means, in place of `adapt`; of the sizes of `axis`, or broadcast to them.
        variance: the variances that belong to them.
        mask_value: what marks missing values for `adapt`, as in `keras.layers.Masking`: entries
            of all features that equal it are left out.
        **kwargs: the arguments of every `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(batch, time, *axes)` of any real dtype; batch and time may be unknown.
        mask: booleans `(batch, time)` or with more axes; passed on.

    Returns:
        `(x - mean) / sqrt(variance)`, in the layer's compute dtype, computed in that of its
        weights (float32 in mixed precision). Where masked, zeros: the mean. What never varied is
        not scaled: a value that was not seen before would become huge.

    Raises:
        ValueError: for an `axis` that is not negative, `mean` without `variance` or of another
            shape, a negative variance, and shapes that do not fit.
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        mean: Any = None,
        variance: Any = None,
        mask_value: float | None = None,
        **kwargs: Any,
    ) -> None:
        # Large sensor values would overflow in half precision before they are normalised.
        super().__init__(autocast=False, **kwargs)
        axes = (axis,) if isinstance(axis, int) else tuple(axis)
        if not axes or any(isinstance(a, bool) or a >= 0 for a in axes) or len({*axes}) < len(axes):
            raise ValueError(
                f"{self.name}: `axis` must count from the end, -1 for the features and (-2, -1) "
                f"for each feature of each channel. Received {axis!r}."
            )
        if (mean is None) != (variance is None):
            raise ValueError(
                f"{self.name}: `mean` and `variance` belong together. Received "
                f"mean={mean!r}, variance={variance!r}."
            )
        self.axis = tuple(sorted(axes))
        self.input_mean = _as_lists(mean)
        self.input_variance = _as_lists(variance)
        if any(not value >= 0 for value in tree.flatten(self.input_variance or 0.0)):
            raise ValueError(f"{self.name}: `variance` must not be negative or NaN.")
        self.mask_value = mask_value
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        """Create the statistics: given ones, else mean 0 and variance 1 until `adapt`."""
        check_float64(self)
        check_rank(self.name, input_shape, minimum=2 - min(self.axis))
        sizes = known_sizes(self.name, input_shape, self.axis)

        def add(name: str, given: Any, default: str) -> Any:
            initializer: Any = default
            if given is not None:
                value = ops.convert_to_tensor(given, dtype=self.variable_dtype)
                shape = tuple(value.shape)
                pairs = zip(reversed(shape), reversed(sizes), strict=False)
                if len(shape) > len(sizes) or any(a not in (1, b) for a, b in pairs):
                    raise ValueError(
                        f"{self.name}: `{name}` must have the sizes {sizes} of axis={self.axis} "
                        f"of an input {describe_shape(input_shape)}. Received shape {shape}."
                    )
                initializer = keras.initializers.Constant(given)
            return self.add_weight(
                name=name, shape=sizes, initializer=initializer, trainable=False, autocast=False
            )

        self.mean = add("mean", self.input_mean, "zeros")
        self.variance = add("variance", self.input_variance, "ones")
        # Saved, so that a model can tell whether it has statistics.
        self.adapted = self.add_weight(
            name="adapted",
            shape=(),
            dtype="int32",
            initializer="zeros" if self.input_mean is None else "ones",
            trainable=False,
        )

    def adapt(self, data: Any, mask: Any = None) -> None:
        """Set the statistics to those of all valid entries.

        Args:
            data: `(batch, time, *axes)` array or tensor; or an iterable of such batches, or of
                series `(time, *axes)`, which may differ in length. Of a batch that is a tuple,
                as `keras.utils.PyDataset` gives it, the first item counts.
            mask: for an array, booleans `(batch, time)` or with more axes; steps that are False
                are left out, as are those that `mask_value` marks.

        Raises:
            ValueError: for axes that are not those the layer was built for, a valid entry that
                is NaN or infinite, a mask beside an iterable, and if no entry is valid.
        """
        mean, variance = valid_statistics(
            self.name,
            data,
            self.axis,
            mask=mask,
            mask_value=self.mask_value,
            sizes=tuple(self.mean.shape) if self.built else None,
        )
        if not self.built:
            behind: list[int | None] = [None] * -min(self.axis)
            for axis, size in zip(self.axis, mean.shape, strict=True):
                behind[axis] = size
            self.build((None, None, *behind))
        self.mean.assign(mean)
        self.variance.assign(variance)
        self.adapted.assign(1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The input's shape."""
        return tuple(input_shape)

    def compute_output_spec(self, inputs: KerasTensor, mask: Any = None) -> KerasTensor:
        """The input's shape in the compute dtype."""
        return KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(self, inputs: KerasTensor, mask: Any = None) -> KerasTensor:
        """Normalise what is valid."""
        check_rank(self.name, inputs.shape, minimum=2 - min(self.axis))
        x = ops.cast(inputs, self.variable_dtype)
        rank = len(x.shape)
        built: list[int | None] = [None] * -min(self.axis)
        for axis, size in zip(self.axis, self.mean.shape, strict=True):
            built[axis] = size
        check_as_built(self.name, built, x.shape)
        sizes = [x.shape[axis - rank] if axis - rank in self.axis else 1 for axis in range(rank)]
        mean = ops.reshape(ops.convert_to_tensor(self.mean), sizes)
        variance = ops.reshape(ops.convert_to_tensor(self.variance), sizes)
        deviation = ops.where(variance > 0, ops.sqrt(variance), ops.ones_like(variance))
        x = (x - mean) / deviation
        if mask is not None:
            check_mask(self.name, mask.shape, x.shape, max_rank=rank)
            x = ops.where(expand(ops.cast(mask, "bool"), rank), x, ops.zeros_like(x))
        return ops.cast(x, self.compute_dtype)

    def compute_mask(self, inputs: KerasTensor, previous_mask: Any = None) -> Any:
        """The mask as it came."""
        return previous_mask

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "axis": list(self.axis),
            "mean": self.input_mean,
            "variance": self.input_variance,
            "mask_value": self.mask_value,
        }


def _as_lists(numbers: Any) -> Any:
    """Numbers in nested lists, as a configuration holds them."""
    if hasattr(numbers, "tolist"):
        return numbers.tolist()
    if isinstance(numbers, (list, tuple)):
        return [_as_lists(number) for number in numbers]
    return None if numbers is None else float(numbers)

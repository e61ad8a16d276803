"""TimeDistributedConv: convolve inside every time step, then flatten or pool."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import KerasTensor, ops

from multibackend_lstm import backends
from multibackend_lstm.layers.dropout import Dropout
from multibackend_lstm.layers.dtypes import check_float64, to_compute_dtype
from multibackend_lstm.layers.folding import call_nonempty, fold, maximum, mean, unfold
from multibackend_lstm.layers.validation import (
    MaskReduction,
    Shape,
    check_as_built,
    check_choice,
    check_mask,
    check_positive,
    check_rank,
    known_sizes,
    reduce_mask,
)

Reduce = Literal["flatten", "average", "max"]
_CONVOLUTIONS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
_POOLS = {
    "max": {
        1: keras.layers.MaxPooling1D,
        2: keras.layers.MaxPooling2D,
        3: keras.layers.MaxPooling3D,
    },
    "average": {
        1: keras.layers.AveragePooling1D,
        2: keras.layers.AveragePooling2D,
        3: keras.layers.AveragePooling3D,
    },
}


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class TimeDistributedConv(keras.layers.Layer):
    """Convolves over the channels inside every time step, then flattens or pools.

    `(batch, time, *axes, features)` with one, two or three `axes` (a line, an image, a volume
    of sensors) becomes `(batch, time, units)`, ready for a recurrent layer. Every time step is
    convolved alone, with the same kernels (`Conv1D`, `Conv2D` or `Conv3D` by the number of
    axes). With one block and the defaults the values are those of
    `TimeDistributed(Conv1D(filters, kernel_size))` followed by `TimeDistributed(Flatten())`.

    A block is: convolution, normalisation, activation, dropout. Pooling stands between blocks.

    Example:
        >>> x = keras.Input((None, 8, 3))                       # (batch, time, channels, features)
        >>> TimeDistributedConv((16, 32), 3, padding="same", activation="relu")(x).shape
        (None, None, 256)

    Args:
        filters: number of filters, or a sequence of them for several blocks.
        kernel_size: size of the kernel along the axes: an integer, or a tuple with one integer
            an axis. The same in every block, as are the next four.
        strides: as in `keras.layers.Conv1D`.
        padding: `"valid"` or `"same"` (and `"causal"` with one axis).
        dilation_rate: as in `keras.layers.Conv1D`.
        groups: as in `keras.layers.Conv1D`.
        activation: of each block.
        use_bias: whether the convolutions add a bias.
        normalization: `None`, `"batch"` (`BatchNormalization`, statistics over batch, time and
            axes, without masked steps) or `"layer"` (`LayerNormalization` over features).
        pool_size: `None`, or the window of the pooling between blocks.
        pool: `"max"` or `"average"`.
        dropout: rate of the dropout after each block.
        reduce: what brings a step's features to one axis: `"flatten"`, or the `"average"` or
            `"max"` over the axes.
        mask_reduction: `"any"` or `"all"`, see `FlattenFeatures`.
        kernel_initializer: of the convolutions, as are the following.
        bias_initializer: as in `keras.layers.Conv1D`.
        kernel_regularizer: as in `keras.layers.Conv1D`.
        bias_regularizer: as in `keras.layers.Conv1D`.
        **kwargs: the arguments of every `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, time, *axes, features)`, rank 4 to 6. Batch and time may
            be unknown. Computed in the layer's compute dtype.
        training: for normalisation and dropout.
        mask: boolean `(batch, time)` or `(batch, time, ...)` tensor; the output carries its
            `(batch, time)` reduction. Masked steps are convolved like the others, and are left
            out of the statistics of `normalization="batch"`.

    Raises:
        ValueError: for an input of another rank, an unknown axis after time, a kernel or pooling
            window larger than its axis, a mask whose shape does not begin the input's.
    """

    def __init__(
        self,
        filters: int | Sequence[int],
        kernel_size: int | Sequence[int] = 3,
        *,
        strides: int | Sequence[int] = 1,
        padding: Literal["valid", "same", "causal"] = "valid",
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        normalization: Literal["batch", "layer"] | None = None,
        pool_size: int | Sequence[int] | None = None,
        pool: Literal["max", "average"] = "max",
        dropout: float = 0.0,
        reduce: Reduce = "flatten",
        mask_reduction: MaskReduction = "any",
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = type(self).__name__
        self.filters = tuple(filters) if isinstance(filters, Sequence) else (filters,)
        if not self.filters:
            raise ValueError(f"{owner}: `filters` must name at least one block. Received ().")
        for count in self.filters:
            check_positive(owner, "filters", count)
        check_choice(owner, "padding", padding, ("valid", "same", "causal"))
        check_choice(owner, "normalization", normalization, (None, "batch", "layer"))
        check_choice(owner, "pool", pool, tuple(_POOLS))
        check_choice(owner, "reduce", reduce, ("flatten", "average", "max"))
        check_choice(owner, "mask_reduction", mask_reduction, ("any", "all"))
        if pool_size is not None and len(self.filters) == 1:
            raise ValueError(
                f"{owner}: `pool_size` pools between blocks, and there is one block, "
                f"filters={filters!r}. Give several filters, or use `reduce` to pool at the end."
            )
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.dilation_rate = dilation_rate
        self.groups = groups
        activation = keras.activations.get(activation)
        # A layer is the pattern of those of the blocks, and has no weights itself.
        is_layer = isinstance(activation, keras.layers.Layer)
        self.activation = _copy(activation) if is_layer else activation
        self.use_bias = use_bias
        self.normalization = normalization
        self.pool_size = pool_size
        self.pool = pool
        self.dropout = dropout
        self.reduce = reduce
        self.mask_reduction = mask_reduction
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        """Create and build the layers that a time step goes through."""
        check_float64(self, statistics=self.normalization is not None)
        self.compute_output_shape(input_shape)
        self.built_for = (input_shape[-1],)
        shape = self._step_shape(input_shape)
        self.step_layers = self._make_step_layers(rank=len(shape) - 2)
        for layer in self.step_layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        """Shape `(batch, time, units)`."""
        shape = self._step_shape(input_shape)
        for layer in self._make_step_layers(rank=len(shape) - 2):
            self._check_window(layer, shape)
            shape = layer.compute_output_shape(shape)
        units = (
            math.prod(known_sizes(self.name, shape, range(1, len(shape))))
            if self.reduce == "flatten"
            else shape[-1]
        )
        return (*input_shape[:2], units)

    def compute_output_spec(
        self, inputs: KerasTensor, training: bool | None = None, mask: Any = None
    ) -> KerasTensor:
        """Shape of the output in the compute dtype."""
        return KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def call(
        self, inputs: KerasTensor, training: bool | None = None, mask: Any = None
    ) -> KerasTensor:
        """Fold time into batch, run the blocks, reduce, unfold."""
        self._step_shape(inputs.shape)
        check_as_built(self.name, self.built_for, inputs.shape)
        if mask is not None:
            check_mask(self.name, mask.shape, inputs.shape, max_rank=len(inputs.shape))
            mask = fold(reduce_mask(mask, self.mask_reduction))
        steps = fold(to_compute_dtype(self, inputs))
        x = call_nonempty(lambda x, mask: self._call_steps(x, training, mask), steps, mask)
        return unfold(x, ops.shape(inputs)[:2])

    def _call_steps(self, x: KerasTensor, training: bool | None, mask: Any) -> KerasTensor:
        """`(steps, *axes, features)` and a mask `(steps,)` to `(steps, units)`."""
        for layer in self.step_layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                # `call` alone: the mask is for the statistics, not for the layers behind.
                x = layer.call(x, training=training, mask=_position_mask(mask, x))
            elif isinstance(layer, Dropout):
                x = layer(x, training=training)
            elif isinstance(layer, tuple(_CONVOLUTIONS.values())):
                x = backends.active().convolve(layer, x)
            else:
                x = layer(x)
        axes = tuple(range(1, len(x.shape) - 1))
        if self.reduce == "average":
            return mean(x, axes)
        if self.reduce == "max":
            return maximum(x, axes)
        return ops.reshape(x, (ops.shape(x)[0], math.prod(x.shape[1:])))

    def compute_mask(self, inputs: KerasTensor, previous_mask: Any = None) -> Any:
        """The `(batch, time)` mask, reduced from `previous_mask`."""
        if previous_mask is None:
            return None
        check_mask(self.name, previous_mask.shape, inputs.shape, max_rank=len(inputs.shape))
        return reduce_mask(previous_mask, self.mask_reduction)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "normalization": self.normalization,
            "pool_size": self.pool_size,
            "pool": self.pool,
            "dropout": self.dropout,
            "reduce": self.reduce,
            "mask_reduction": self.mask_reduction,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
        }

    def _make_step_layers(self, rank: int) -> list[keras.layers.Layer]:
        layers: list[keras.layers.Layer] = []
        for block, filters in enumerate(self.filters):
            if block > 0 and self.pool_size is not None:
                layers.append(
                    _POOLS[self.pool][rank](
                        self.pool_size, data_format="channels_last", dtype=self.dtype_policy
                    )
                )
            layers.append(
                _CONVOLUTIONS[rank](
                    filters,
                    self.kernel_size,
                    strides=self.strides,
                    padding=self.padding,
                    data_format="channels_last",
                    dilation_rate=self.dilation_rate,
                    groups=self.groups,
                    use_bias=self.use_bias,
                    # One initializer object would give every block the same values.
                    kernel_initializer=_clone(self.kernel_initializer),
                    bias_initializer=_clone(self.bias_initializer),
                    kernel_regularizer=self.kernel_regularizer,
                    bias_regularizer=self.bias_regularizer,
                    dtype=self.dtype_policy,
                )
            )
            if self.normalization == "batch":
                layers.append(keras.layers.BatchNormalization(dtype=self.dtype_policy))
            elif self.normalization == "layer":
                layers.append(keras.layers.LayerNormalization(dtype=self.dtype_policy))
            if isinstance(self.activation, keras.layers.Layer):
                # Its weights are as many as its block's positions: a layer a block.
                layers.append(_copy(self.activation))
            elif self.activation is not keras.activations.linear:
                layers.append(keras.layers.Activation(self.activation, dtype=self.dtype_policy))
            if self.dropout:
                layers.append(Dropout(self.dropout, dtype=self.dtype_policy))
        return layers

    def _step_shape(self, shape: Shape) -> tuple[int | None, ...]:
        check_rank(self.name, shape, minimum=4, maximum=6)
        return (None, *known_sizes(self.name, shape, range(2, len(shape))))

    def _check_window(self, layer: keras.layers.Layer, shape: Shape) -> None:
        """Raise a ValueError if the layer's kernel or window is larger than an axis."""
        if hasattr(layer, "kernel_size"):
            if self.padding != "valid":
                return
            argument = "kernel_size"
            window = [
                (size - 1) * rate + 1
                for size, rate in zip(layer.kernel_size, layer.dilation_rate, strict=True)
            ]
        elif hasattr(layer, "pool_size"):
            argument, window = "pool_size", layer.pool_size
        else:
            return
        axes = shape[1:-1]
        if any(size > axis for size, axis in zip(window, axes, strict=True)):
            raise ValueError(
                f"{self.name}: `{argument}` spans {tuple(window)} (with its dilation), more than "
                f"the axes between time and features, {tuple(axes)} before this layer. "
                "Use a smaller one"
                + (', or `padding="same"`.' if argument == "kernel_size" else ".")
            )


def _position_mask(mask: Any, x: KerasTensor) -> Any:
    """A mask `(steps,)` repeated for every position of `x`, `(steps, *axes)`."""
    if mask is None:
        return None
    mask = ops.reshape(mask, (ops.shape(x)[0], *[1] * (len(x.shape) - 2)))
    return ops.broadcast_to(mask, ops.shape(x)[:-1])


def _copy(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A layer of the same configuration, with weights of its own."""
    return type(layer).from_config(layer.get_config())


def _clone(initializer: Any) -> Any:
    return initializer.clone() if isinstance(initializer, keras.Initializer) else initializer

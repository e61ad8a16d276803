"""Channelwise: one shared sequence layer for every channel."""

import math
from typing import Any, Literal

import keras
from keras import KerasTensor, ops, tree

from multibackend_lstm.layers.folding import fold, maximum, mean, unfold
from multibackend_lstm.layers.validation import (
    Shape,
    check_as_built,
    check_choice,
    check_mask,
    check_rank,
    known_sizes,
    reduce_mask,
)
from multibackend_lstm.layers.wrapping import call_folded, let_masks_pass, output_spec

Merge = Literal["concat", "sum", "average", "max", "stack"]
MERGES = ("concat", "sum", "average", "max", "stack")


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class Channelwise(keras.layers.Wrapper):
    """Runs one shared sequence layer on every channel alone, and joins the results.

    From `(batch, time, channels, features)` each channel's series `(batch, time, features)`
    goes through the same layer, with the same weights, all in one call: channels are folded
    into the batch. For sensors of the same kind this learns from each of them at once.

    With `units` features out of the layer, the output has this shape, where `time` stands only
    if the layer returns sequences:

    | merge | output |
    |---|---|
    | `"concat"` | `(batch, [time,] channels * units)`, channel by channel |
    | `"sum"`, `"average"`, `"max"` | `(batch, [time,] units)`, over the channels |
    | `"stack"` | `(batch, [time,] channels, units)` |

    Example:
        >>> x = keras.Input((None, 8, 3))                       # (batch, time, channels, features)
        >>> Channelwise(keras.layers.LSTM(16))(x).shape
        (None, 128)

    Args:
        layer: a `keras.layers.Layer` or model from `(batch, time, features)` to sequences
            `(batch, time, units)` or vectors `(batch, units)`, or to a nested structure of them
            (`return_state=True`), each of which is joined. `stateful` layers keep a state for
            every pair of sample and channel, so they need a fixed batch size of
            `batch * channels`.
        merge: how to join the channels' results, see above.
        **kwargs: the arguments of every `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, time, channels, features)`. Several axes between time
            and features, `(batch, time, *axes, features)`, all count as channels (`"stack"`
            keeps them apart). Batch and time may be unknown. The layer inside casts its input by
            its own dtype policy; the wrapper casts nothing.
        training: passed to the layer.
        mask: boolean tensor. `(batch, time)` masks every channel alike;
            `(batch, time, channels)` masks each channel by its own column. Where the layer
            returns a mask, the output carries it: `"stack"` for each channel if the input mask
            had channels; otherwise a step is valid where it is valid in any channel. A joined
            output is not weighted by the mask: for a channel with no valid step at all the
            layer's own output for such a series (zeros, from an LSTM) takes part.

    Raises:
        ValueError: for an input of rank 3 or less, an unknown number of channels, or a mask
            whose shape does not begin the input's.
    """

    def __init__(self, layer: keras.layers.Layer, merge: Merge = "concat", **kwargs: Any) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                "Channelwise: `layer` must be a `keras.layers.Layer` instance. "
                f"Received {layer!r} of type {type(layer).__name__}."
            )
        check_choice("Channelwise", "merge", merge, MERGES)
        super().__init__(layer, autocast=False, **kwargs)
        let_masks_pass(layer)
        self.merge = merge
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        """Build the layer for the series of one channel."""
        series_shape = self._series_shape(input_shape)
        super().build(series_shape)
        self.built_for = (input_shape[-1],)
        series_output = output_spec(self.layer, KerasTensor(series_shape))
        self._output_ranks = tree.map_structure(lambda x: len(x.shape), series_output)

    def compute_output_shape(self, input_shape: Shape) -> Any:
        """Shape of the joined results."""
        return tree.map_shape_structure(
            lambda shape: self._joined_shape(shape, input_shape),
            self.layer.compute_output_shape(self._series_shape(input_shape)),
        )

    def compute_output_spec(
        self, inputs: KerasTensor, training: bool | None = None, mask: Any = None
    ) -> Any:
        """Shapes and dtypes of the joined results."""
        self._check(inputs, mask)

        def join(x: KerasTensor) -> KerasTensor:
            dtype = ops.mean(x, axis=0).dtype if self.merge == "average" else x.dtype
            return KerasTensor(self._joined_shape(x.shape, inputs.shape), dtype=dtype)

        series = KerasTensor(self._series_shape(inputs.shape), dtype=inputs.dtype)
        return tree.map_structure(join, output_spec(self.layer, series))

    def call(self, inputs: KerasTensor, training: bool | None = None, mask: Any = None) -> Any:
        """Fold channels into batch, call the layer, join."""
        self._check(inputs, mask)
        check_as_built(self.name, self.built_for, inputs.shape)
        if mask is not None:
            mask = self._fold_mask(mask, inputs)
        outputs = call_folded(self.layer, self._fold_channels(inputs), mask, training)
        batch, axes = ops.shape(inputs)[0], tuple(inputs.shape[2:-1])
        return tree.map_structure(lambda x: self._join(x, batch, axes), outputs)

    def compute_mask(self, inputs: KerasTensor, previous_mask: Any = None) -> Any:
        """The mask of sequences that the layer returns, `None` for vectors."""
        if previous_mask is None or not self.layer.supports_masking:
            return None
        self._check(inputs, previous_mask)
        if self.merge == "stack":
            mask = ops.cast(previous_mask, "bool")
        else:
            mask = reduce_mask(previous_mask, "any")
        return tree.map_structure(lambda rank: mask if rank == 3 else None, self._output_ranks)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "merge": self.merge}

    def _fold_channels(self, x: KerasTensor) -> KerasTensor:
        """`(batch, time, *axes, features)` to `(batch * channels, time, features)`."""
        batch, time, *axes, features = ops.shape(x)
        series = ops.reshape(x, (batch, time, math.prod(axes), features))
        return fold(ops.moveaxis(series, 2, 1))

    def _fold_mask(self, mask: KerasTensor, inputs: KerasTensor) -> KerasTensor:
        """`(batch, time)` or `(batch, time, *axes)` to `(batch * channels, time)`."""
        while len(mask.shape) < len(inputs.shape):
            mask = ops.expand_dims(mask, -1)
        everywhere = ops.ones((*inputs.shape[2:-1], 1), dtype="bool")
        return ops.squeeze(self._fold_channels(ops.logical_and(mask, everywhere)), -1)

    def _join(self, x: KerasTensor, batch: Any, axes: tuple[int, ...]) -> KerasTensor:
        """`(batch * channels, ..., units)` to the output's shape, see `merge`."""
        channels = unfold(x, (batch, math.prod(axes)))
        if self.merge == "sum":
            return ops.sum(channels, axis=1)
        if self.merge == "average":
            return mean(channels, (1,))
        if self.merge == "max":
            return maximum(channels, (1,))
        joined = ops.moveaxis(channels, 1, -2)
        leading, units = ops.shape(joined)[:-2], joined.shape[-1]
        if self.merge == "stack":
            return ops.reshape(joined, (*leading, *axes, units))
        return ops.reshape(joined, (*leading, math.prod(axes) * units))

    def _joined_shape(self, shape: Shape, input_shape: Shape) -> tuple[int | None, ...]:
        """Output shape from `(batch * channels, ..., units)`."""
        axes = known_sizes(self.name, input_shape, range(2, len(input_shape) - 1))
        *time, units = shape[1:]
        if self.merge == "concat" and units is not None:
            units *= math.prod(axes)
        return (input_shape[0], *time, *(axes if self.merge == "stack" else ()), units)

    def _series_shape(self, shape: Shape) -> Shape:
        check_rank(self.name, shape, minimum=4)
        axes = known_sizes(self.name, shape, range(2, len(shape) - 1))
        batch = None if shape[0] is None else shape[0] * math.prod(axes)
        return (batch, shape[1], shape[-1])

    def _check(self, inputs: KerasTensor, mask: Any) -> None:
        self._series_shape(inputs.shape)
        if mask is not None:
            check_mask(self.name, mask.shape, inputs.shape, max_rank=len(inputs.shape) - 1)

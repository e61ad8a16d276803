"""Bidirectional: a recurrent layer in both directions of time, with masks on every Keras."""

from typing import Any, Literal

import keras
from keras import KerasTensor, ops

from multibackend_lstm.layers.recurrent import Recurrent
from multibackend_lstm.layers.validation import Shape, check_mask, reduce_mask
from multibackend_lstm.layers.wrapping import accepts, let_masks_pass

MergeMode = Literal["concat", "sum", "mul", "ave"]


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class Bidirectional(keras.layers.Bidirectional):
    """Runs a recurrent layer forwards and a copy of it backwards, and merges what they return.

    Takes the place of `keras.layers.Bidirectional` (Schuster and Paliwal 1997): the same
    constructor, weights, configuration, saved files (both ways) and values. What it adds:

    - The mask goes on to the next layer on every Keras; that of Keras drops it from 3.16 on
      (keras#23235).
    - `LSTM` and `GRU` of this package run inside it on their own kernels, with inputs of any rank
      `(batch, time, *axes)`, any mask, `lengths=`, and the `use_cudnn` that they were given.
    - The two directions may differ in units with `merge_mode="concat"` and `None`.

    Example:
        >>> x = keras.Input((None, 3, 5))                       # (batch, time, channels, features)
        >>> Bidirectional(LSTM(16, return_sequences=True))(x).shape
        (None, None, 32)

    Args:
        layer: the layer to run forwards, an `LSTM` or `GRU` or any that
            `keras.layers.Bidirectional` takes. A copy of it runs, with weights of its own.
        merge_mode: how the outputs `(batch, [time,] units)` of the directions become one:
            `"concat"` along the last axis, `"sum"`, `"mul"`, `"ave"`; `None` returns both.
        weights: as in `keras.layers.Bidirectional`.
        backward_layer: the layer to run backwards, with `go_backwards=True`; a copy of `layer`
            by default.
        **kwargs: the arguments of every `keras.layers.Layer`.

    Call arguments:
        sequences: `(batch, time, *axes)`, as the layer inside takes it; batch and time may be
            unknown.
        initial_state: the states of the forward layer, then those of the backward layer.
        mask: as in the layer inside, `(batch, time)` or with more axes. With
            `return_sequences=True` the output of a masked step is zeros, as in Keras.
        training: whether dropout is applied.
        lengths: as in `LSTM` and `GRU`, for those inside.

    Returns:
        The merged output (a tuple of both for `merge_mode=None`), in the input's order of time;
        with `return_state=True` followed by the states of both.

    Raises:
        ValueError: for what is no layer, an unknown `merge_mode`, layers that do not differ in
            `go_backwards` or differ in `return_sequences`, `return_state` or `stateful`, units
            that differ where outputs are merged one by one, `lengths` for another layer inside.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        merge_mode: MergeMode | None = "concat",
        weights: Any = None,
        backward_layer: keras.layers.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, merge_mode, weights, backward_layer, **kwargs)
        self.supports_masking = True
        for direction in self._directions:
            let_masks_pass(direction)
            if isinstance(direction, Recurrent):
                direction.in_keras_bidirectional = False

    @property
    def _directions(self) -> tuple[Any, Any]:
        return self.forward_layer, self.backward_layer

    def compute_output_shape(self, sequences_shape: Shape, initial_state_shape: Any = None) -> Any:
        """`(batch, [time,] units)`, for both directions with `merge_mode=None`; then the states."""
        outputs: list[Any] = []
        states: list[Any] = []
        for direction in self._directions:
            shape = direction.compute_output_shape(sequences_shape)
            output, *state = shape if self.return_state else (shape,)
            outputs.append(tuple(output))
            states += map(tuple, state)
        forward, backward = outputs
        self._check_units(forward[-1], backward[-1])
        if self.merge_mode is None:
            return (forward, backward, *states)
        if self.merge_mode == "concat":
            forward = (*forward[:-1], forward[-1] + backward[-1])
        return (forward, *states) if self.return_state else forward

    def call(
        self,
        sequences: KerasTensor,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
        lengths: Any = None,
        sequences_mask: Any = None,
    ) -> Any:
        """See the class; `sequences_mask` is what Keras gives if there are other tensors too."""
        mask = sequences_mask if mask is None else mask
        arguments = {"mask": mask, "training": training}
        arguments = {k: v for k, v in arguments.items() if accepts(self.forward_layer, k)}
        if lengths is not None:
            self._check_takes_lengths()
            arguments["lengths"] = lengths
        given: tuple[Any, Any] = (None, None)
        if initial_state is not None:
            half = len(initial_state) // 2
            given = initial_state[:half], initial_state[half:]

        outputs: list[Any] = []
        states: list[Any] = []
        for direction, state in zip(self._directions, given, strict=True):
            result = direction(sequences, initial_state=state, **arguments)
            output, *state = result if self.return_state else (result,)
            outputs.append(ops.cast(output, self.compute_dtype))
            states += state
        forward, backward = outputs
        if self.return_sequences:
            backward = ops.flip(backward, axis=1)
        self._check_units(forward.shape[-1], backward.shape[-1])
        if self.merge_mode is None:
            return (forward, backward, *states)
        merged = self._merge(forward, backward)
        return (merged, *states) if self.return_state else merged

    def compute_mask(self, sequences: KerasTensor, mask: Any = None) -> Any:
        """The `(batch, time)` mask for every sequence that is returned."""
        if mask is not None:
            check_mask(self.name, mask.shape, sequences.shape, max_rank=len(sequences.shape))
            mask = reduce_mask(mask) if self.return_sequences else None
        if self.merge_mode is not None and not self.return_state:
            return mask
        shapes = self.compute_output_shape(tuple(sequences.shape))
        outputs = 1 if self.merge_mode is not None else 2
        return [mask if position < outputs else None for position in range(len(shapes))]

    def _merge(self, forward: KerasTensor, backward: KerasTensor) -> KerasTensor:
        if self.merge_mode == "sum":
            return forward + backward
        if self.merge_mode == "ave":
            return (forward + backward) / 2
        if self.merge_mode == "mul":
            return forward * backward
        return ops.concatenate([forward, backward], axis=-1)

    def _check_units(self, forward: int, backward: int) -> None:
        if forward != backward and self.merge_mode in ("sum", "mul", "ave"):
            raise ValueError(
                f"{self.name}: `merge_mode={self.merge_mode!r}` merges the directions element by "
                f"element, so both must have as many units. Received {forward} forwards and "
                f'{backward} backwards. Use `merge_mode="concat"` or None.'
            )

    def _check_takes_lengths(self) -> None:
        for direction in self._directions:
            if not isinstance(direction, Recurrent):
                raise ValueError(
                    f"{self.name}: `lengths` needs `multibackend_lstm.LSTM` or `GRU` inside. "
                    f"Received a {type(direction).__module__}.{type(direction).__name__}. Give a "
                    "`mask` instead."
                )

"""TimeDistributed: one call of a layer for all time steps."""

from functools import reduce
from typing import Any

import keras
from keras import KerasTensor, ops, tree

from multibackend_lstm import backends
from multibackend_lstm.layers.dropout import drawing_otherwise
from multibackend_lstm.layers.folding import drawing_once, fold, unfold
from multibackend_lstm.layers.validation import (
    Shape,
    check_mask,
    check_positive,
    check_rank,
    describe_shape,
    flatten_shapes,
    reduce_mask,
)
from multibackend_lstm.layers.wrapping import (
    accepts,
    call_folded,
    let_masks_pass,
    output_spec,
    sublayers,
    takes_sequences,
)


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class TimeDistributed(keras.layers.Wrapper):
    """Applies a layer to every time step: `(batch, time, *axes)` to `(batch, time, *out_axes)`.

    Takes the place of `keras.layers.TimeDistributed`, with its constructor, weights and values,
    and loads its saved weights. Keras calls the layer once a step, in a Python loop; here time
    is folded into the batch, `(batch * time, *axes)`, and the layer is called once. The result
    is the same for every layer that treats the samples of a batch independently of each other.

    Three kinds of layer do not:

    - `BatchNormalization` in training takes its statistics over batch and time together, and
      updates its moving statistics once a call. (The loop takes them over the batch at each
      step, and updates once a step.)
    - Dropout draws one mask over batch and time, where the loop draws a mask at each step: the
      distribution is the same, the numbers differ. With `variational_dropout=True` there is one
      mask for all steps of a sample (Gal and Ghahramani, "A theoretically grounded application of
      dropout in recurrent neural networks", 2016).
    - A recurrent layer with `stateful=True` would carry its state from step to step in a loop.
      It is refused.

    Example:
        >>> frames = keras.Input((None, 64, 64, 3))        # (batch, time, height, width, colours)
        >>> TimeDistributed(keras.layers.Conv2D(8, 3))(frames).shape
        (None, None, 62, 62, 8)

    Args:
        layer: a `keras.layers.Layer`, or a whole model. It may take and return nested
            structures (lists, tuples, dicts) of tensors that share batch and time.
        steps_per_call: `None` folds all steps at once. An integer bounds the memory that a
            call on a long sequence needs: it folds that many steps at a time.
        variational_dropout: whether layers inside that drop or add noise draw once for all steps,
            as `LSTM(dropout=)` does, and not anew at each. They must be those of this package,
            at any depth.
        **kwargs: the arguments of every `keras.layers.Layer`.

    Call arguments:
        inputs: tensor of shape `(batch, time, *axes)`, of rank 3 or more, or a nested structure
            of such tensors. Batch and time may be unknown. Each layer inside casts its input
            by its own dtype policy; the wrapper casts nothing.
        training: passed to the layer.
        mask: boolean tensor of shape `(batch, time)` or `(batch, time, ...)` (nested as the
            inputs are). A layer whose `call` takes a mask gets it folded: one with axes after
            time as `(batch * time, ...)`, a mask of the layer's own input; a `(batch, time)`
            mask as one boolean a sample, as in Keras, except for models and recurrent layers:
            those expect a mask of their own time axis, of which it says nothing.
            The output carries the mask that the layer computes where it computes one
            (an `Embedding` with `mask_zero`), else the `(batch, time)` mask.

    Raises:
        ValueError: for an input of rank 2 or less, inputs that differ in batch or time, a mask
            whose shape does not begin its input's, a `stateful` layer; with
            `variational_dropout` layers that draw by themselves, or `steps_per_call`.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        steps_per_call: int | None = None,
        variational_dropout: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                "TimeDistributed: `layer` must be a `keras.layers.Layer` instance. "
                f"Received {layer!r} of type {type(layer).__name__}."
            )
        for inner in sublayers(layer):
            if getattr(inner, "stateful", False):
                raise ValueError(
                    f"TimeDistributed: layer '{inner.name}' has `stateful=True`, and its state "
                    "would have to pass from one time step to the next, which a single call "
                    "for all steps cannot do. Use `stateful=False`, or "
                    "`keras.layers.TimeDistributed`."
                )
        if steps_per_call is not None:
            check_positive("TimeDistributed", "steps_per_call", steps_per_call)
        super().__init__(layer, autocast=False, **kwargs)
        let_masks_pass(layer)
        self.steps_per_call = steps_per_call
        self.variational_dropout = variational_dropout
        if variational_dropout and steps_per_call is not None:
            raise ValueError(
                f"{self.name}: `variational_dropout` needs all steps in one call. Received "
                f"steps_per_call={steps_per_call}. Leave out one of the two."
            )
        self._check_drawing()
        self.supports_masking = True
        self._output_count = 1

    def build(self, input_shape: Any) -> None:
        """Build the layer for one time step."""
        self._check_shapes(flatten_shapes(input_shape))
        super().build(tree.map_shape_structure(self._step_shape, input_shape))
        self._check_drawing()  # what the layer has made by now
        if self.steps_per_call is not None and flatten_shapes(input_shape)[0][1] is None:
            # XLA has no loop over steps of unknown number whose last turn is a shorter one.
            self.supports_jit = False

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's output shape, with time put after batch."""
        time = flatten_shapes(input_shape)[0][1]
        step_shape = tree.map_shape_structure(self._step_shape, input_shape)
        return tree.map_shape_structure(
            lambda shape: (shape[0], time, *shape[1:]),
            self.layer.compute_output_shape(step_shape),
        )

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        """The layer's output for one step, with time put after batch."""
        self._check(inputs, mask)
        time = tree.flatten(inputs)[0].shape[1]
        steps = tree.map_structure(
            lambda x: KerasTensor(self._step_shape(x.shape), dtype=x.dtype), inputs
        )
        outputs = output_spec(self.layer, steps)
        self._output_count = len(tree.flatten(outputs))
        return tree.map_structure(
            lambda x: KerasTensor((x.shape[0], time, *x.shape[1:]), dtype=x.dtype), outputs
        )

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Fold time into batch, call the layer, unfold."""
        self._check(inputs, mask)
        layer_mask = self._mask_for_layer(inputs, mask)
        batch, time = ops.shape(tree.flatten(inputs)[0])[:2]

        def call_steps(start: Any, stop: Any) -> Any:
            def fold_steps(x: Any) -> Any:
                return None if x is None else fold(x[:, start:stop])

            steps, mask = tree.map_structure(fold_steps, (inputs, layer_mask))
            outputs = call_folded(self.layer, steps, mask, training)
            self._output_count = len(tree.flatten(outputs))
            return tree.map_structure(lambda x: unfold(x, (batch, stop - start)), outputs)

        if self.variational_dropout:
            with drawing_once(batch, time):
                return call_steps(0, time)
        if self.steps_per_call is None:
            return call_steps(0, time)
        return backends.active().concatenate_steps(call_steps, time, self.steps_per_call)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The mask that the layer computes for its output, or the `(batch, time)` mask."""
        self._check(inputs, previous_mask)
        operation = TimeDistributedMask(self)
        masks = iter(operation(inputs, previous_mask))
        return tree.map_structure(
            lambda mask: None if mask is None else next(masks), operation.structure
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "steps_per_call": self.steps_per_call,
            "variational_dropout": self.variational_dropout,
        }

    def _check_drawing(self) -> None:
        for layer in drawing_otherwise(self.layer) if self.variational_dropout else ():
            raise ValueError(
                f"{self.name}: with `variational_dropout` every random layer inside must be one "
                f"of `multibackend_lstm`. Received {layer.name!r}, a {type(layer).__module__}."
                f"{type(layer).__name__}, which would draw anew at each step. Put `Dropout`, "
                "`SpatialDropout1D`, ... of `multibackend_lstm` in its place."
            )

    def _output_mask(self, inputs: Any, mask: Any) -> Any:
        sizes = ops.shape(tree.flatten(inputs)[0])[:2]
        time_masks = [reduce_mask(m) for m in tree.flatten(mask) if m is not None]
        # With several inputs a step is valid where it is in each of them.
        time_mask = reduce(ops.logical_and, time_masks) if time_masks else None
        layer_mask = tree.map_structure(
            lambda m: None if m is None else fold(m), self._mask_for_layer(inputs, mask)
        )
        computed = None
        if self.layer.supports_masking:
            computed = self.layer.compute_mask(tree.map_structure(fold, inputs), layer_mask)
        if computed is None and self._output_count > 1:
            computed = [None] * self._output_count  # Keras gives masks to outputs one by one

        def output_mask(m: Any) -> Any:
            # A mask without axes after time is the time mask itself, come through the layer.
            return time_mask if m is None or len(m.shape) < 2 else unfold(m, sizes)

        return tree.map_structure(output_mask, computed)

    def _mask_for_layer(self, inputs: Any, mask: Any) -> Any:
        """The part of the mask that goes to the layer, with batch and time still apart."""
        if mask is None or not accepts(self.layer, "mask"):
            return None

        def for_layer(x: Any, m: Any) -> Any:
            if m is not None and len(m.shape) > 2 and m.shape[2] == 1 != x.shape[2]:
                m = reduce_mask(m)  # one entry for the whole axis: a mask of steps
            if m is not None and len(m.shape) == 2 and takes_sequences(self.layer):
                return None
            return m

        mask = tree.map_structure_up_to(inputs, for_layer, inputs, mask)
        return mask if any(m is not None for m in tree.flatten(mask)) else None

    def _step_shape(self, shape: Shape) -> Shape:
        check_rank(self.name, shape, minimum=3)
        return (shape[0], *shape[2:])

    def _check(self, inputs: Any, mask: Any) -> None:
        shapes: list[Shape] = [tuple(x.shape) for x in tree.flatten(inputs)]
        self._check_shapes(shapes)
        masks = [None] * len(shapes) if mask is None else tree.flatten(mask)
        for m, shape in zip(masks, shapes, strict=True):
            if m is not None:
                # Axes after time matter to a layer that takes the mask.
                known = shape if accepts(self.layer, "mask") else shape[:2]
                known = (*known, *(None for _ in shape[len(known) :]))
                check_mask(self.name, m.shape, known, max_rank=len(shape))

    def _check_shapes(self, shapes: list[Shape]) -> None:
        for shape in shapes:
            check_rank(self.name, shape, minimum=3)
        for axis in (0, 1):
            # Not the sizes that an export leaves open, which cannot be hashed.
            if len({shape[axis] for shape in shapes if isinstance(shape[axis], int)}) > 1:
                raise ValueError(
                    f"{self.name}: all inputs must share batch and time. Received "
                    + ", ".join(map(describe_shape, shapes))
                    + ". Pad series of unequal length by `multibackend_lstm.pad_sequences`."
                )


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class TimeDistributedMask(keras.Operation):
    """The masks of a `TimeDistributed` layer's outputs, as one operation of a functional graph.

    Only inside of an operation can the size of an unknown axis be read there. A layer that takes
    the mask makes it a part of the graph, so that it is saved with the model.

    Args:
        layer: the `TimeDistributed` layer.
        name: name of the operation.
    """

    def __init__(self, layer: TimeDistributed, name: str | None = None) -> None:
        """Compute nothing yet."""
        super().__init__(name=name)
        # Behind a function, or its weights would be saved and loaded a second time.
        self._layer = lambda: layer
        self.structure: Any = None

    def call(self, inputs: Any, mask: Any = None) -> list[Any]:
        """The masks in a list, without those that are None: an operation cannot return None."""
        self.structure = self._layer()._output_mask(inputs, mask)
        return [mask for mask in tree.flatten(self.structure) if mask is not None]

    def get_config(self) -> dict[str, Any]:
        """The layer's configuration, and how many outputs it has."""
        layer = self._layer()
        return {
            "name": self.name,
            "layer": keras.saving.serialize_keras_object(layer),
            "outputs": layer._output_count,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TimeDistributedMask":
        """A layer of the same configuration computes the same masks, without weights."""
        layer = keras.saving.deserialize_keras_object(config["layer"])
        layer._output_count = config["outputs"]
        return cls(layer, name=config["name"])

"""A layer as anyone may have written it: it knows nothing of multibackend_lstm."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("examples")
class AttentionPooling(keras.layers.Layer):
    """A weighted mean over time, whose weights are a softmax of a learned score.

    `(batch, time, features)` becomes `(batch, features)`. Masked steps get the weight 0.
    """

    def __init__(self, units=8, **kwargs):
        """Scores come from `units` hidden units."""
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, activation="gelu")
        self.score = keras.layers.Dense(1, use_bias=False)
        self.supports_masking = True

    def build(self, input_shape):
        """Weights for the features of the input."""
        self.hidden.build(input_shape)
        self.score.build((*input_shape[:-1], self.units))
        super().build(input_shape)

    def call(self, inputs, mask=None):
        """Pool over the steps that the mask leaves."""
        scores = self.score(self.hidden(inputs))
        if mask is not None:
            scores = ops.where(mask[..., None], scores, -1e9)
        return ops.sum(ops.softmax(scores, axis=1) * inputs, axis=1)

    def compute_mask(self, inputs, previous_mask=None):
        """Time is gone, and the mask with it."""
        return

    def compute_output_shape(self, input_shape):
        """Without time."""
        return (input_shape[0], input_shape[-1])

    def get_config(self):
        """What the layer is built from."""
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("examples")
class HastyAttentionPooling(AttentionPooling):
    """The same with a mistake: somebody tuned it for torch, and took another axis there."""

    def call(self, inputs, mask=None):
        """Right on JAX and TensorFlow, wrong on torch."""
        if keras.backend.backend() != "torch":
            return super().call(inputs, mask=mask)
        weights = ops.softmax(self.score(self.hidden(inputs)), axis=0)
        return ops.sum(weights * inputs, axis=1)

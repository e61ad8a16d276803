"""A layer that is wrong by as much as wanted, on one backend, in one way."""

import keras
from keras import ops

WAYS = ("all", "channel", "element", "gradient", "training", "update")


@keras.saving.register_keras_serializable(package="zoo")
class Graded(keras.layers.Layer):
    """Passes its input on through a weight of ones, wrong on one backend.

    Args:
        way: one of `WAYS`.
        size: how wrong, relative to the values.
        backend: where; none for a healthy layer.
        reference: whether in float64 too, where the truth is computed.
    """

    def __init__(self, way, size, backend=None, reference=False, **kwargs):
        super().__init__(**kwargs)
        self.way, self.size, self.backend, self.reference = way, size, backend, reference

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones", name="scale")
        self.moving = self.add_weight(
            shape=shape[-1:], initializer="zeros", trainable=False, name="moving"
        )

    @property
    def _size(self):
        wrong = keras.backend.backend() == self.backend
        wide = self.compute_dtype == "float64"
        return self.size if wrong and (self.reference or not wide) else 0.0

    def call(self, x, training=False):
        y = x * ops.cast(self.scale, x.dtype)
        size = self._size
        if training:
            mean = ops.mean(ops.cast(x, self.moving.dtype), tuple(range(len(x.shape) - 1)))
            new = mean * (1 + (size if self.way == "update" else 0.0))
            self.moving.assign(self.moving * 0.5 + ops.stop_gradient(new) * 0.5)
        if not size:
            return y
        if self.way == "all" or (self.way == "training" and training):
            return y * (1 + size)
        if self.way == "channel":
            return y * (1 + size * ops.one_hot(0, y.shape[-1], dtype=y.dtype))
        if self.way == "element":
            at = ops.one_hot(0, y[0].shape[0], dtype=y.dtype)[:, None]
            at = at * ops.one_hot(0, y.shape[-1], dtype=y.dtype)
            return y * (1 + size * at)
        if self.way == "gradient":
            return y * (1 + size) - ops.stop_gradient(y * size)
        return y

    def get_config(self):
        own = {name: getattr(self, name) for name in ("way", "size", "backend", "reference")}
        return {**super().get_config(), **own}

"""Dropout and noise that draw the same random numbers on every backend."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import keras
from keras import KerasTensor, ops

from multibackend_lstm import random
from multibackend_lstm.layers.dtypes import to_compute_dtype
from multibackend_lstm.layers.folding import drawing_axes
from multibackend_lstm.layers.replicas import first_entry
from multibackend_lstm.random.seeds import SavedState, checked_seed

# Each takes the arguments of the Keras layer of its name and has its configuration, so that a
# file which names it loads without this package too, with that layer in its place.


# What says how much a layer of Keras or of this package drops or adds; it draws nothing at 0.
_RATES = ("rate", "dropout", "recurrent_dropout", "stddev", "factor")


def draws_alike(layer: keras.layers.Layer) -> bool:
    """Whether the layer draws the same random numbers on every backend."""
    return any(isinstance(value, SavedState) for value in vars(layer).values())


def _save_seeds(layer: Any) -> None:
    layer.saved_seed_generator = SavedState()
    layer.saved_seed_generator.state = layer.seed_generator.state


def drawing_otherwise(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Layers, it or in it, whose random numbers in training are the backend's own."""
    for inner in layer._flatten_layers():
        draws = any(isinstance(v, keras.random.SeedGenerator) for v in vars(inner).values())
        rates = random_rates(inner)
        never = bool(rates) and not any(rates.values())
        if draws and not never and not draws_alike(inner):
            yield inner


def random_rates(layer: keras.layers.Layer) -> dict[str, Any]:
    """How much the layer drops or adds by chance, by attribute; 0 where it leaves nothing to it.

    What drops everything, at 1, does so without a draw. Only arguments of a class of Keras or of
    this package, the layer's own or one that it is derived from, are known to mean that.
    """
    arguments = {
        name
        for cls in type(layer).__mro__
        if cls.__module__.partition(".")[0] in ("keras", "multibackend_lstm")
        if "__init__" in vars(cls)
        for name in inspect.signature(vars(cls)["__init__"]).parameters
    }
    found = {name: getattr(layer, name, None) for name in _RATES if name in arguments}
    return {
        name: 0 if rate == 1 and _drops(layer, name) else rate
        for name, rate in found.items()
        if rate is not None
    }


def _drops(layer: keras.layers.Layer, name: str) -> bool:
    """Whether a rate is the share that becomes 0."""
    return "dropout" in name or isinstance(layer, keras.layers.Dropout)


class _Random:
    """Mixed into Keras's layers that have a `seed_generator`."""

    seed: int | None
    seed_generator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(super().__init__).bind(*args, **kwargs)
        seed = checked_seed(type(self).__name__, given.arguments.get("seed"))
        given.arguments["seed"] = seed
        super().__init__(*given.args, **given.kwargs)
        if hasattr(self, "seed_generator"):  # there is none for a rate of 0
            _save_seeds(self)


class _Dropout(_Random):
    """Draws by `random.dropout`."""

    name: str
    rate: float

    def _mask_shape(self) -> tuple[int | None, ...] | None:
        """Shape of the mask, None for what is the input's."""
        raise NotImplementedError

    def call(self, inputs: KerasTensor, training: bool = False) -> Any:
        """See the class."""
        inputs = to_compute_dtype(self, inputs)
        if not training or self.rate == 0:
            return inputs
        return _dropped(inputs, self.rate, self._mask_shape(), self)


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class Dropout(_Dropout, keras.layers.Dropout):
    """`keras.layers.Dropout` with the same masks on every backend.

    In training each entry becomes 0 with probability `rate`, and the others are multiplied by
    `1 / (1 - rate)`. The mask is a function of the seed, of how many masks were drawn before it,
    and of the place in the input (Srivastava et al. 2014; `multibackend_lstm.random`).

    Example:
        >>> layer = Dropout(0.5, seed=0)
        >>> tuple(layer(keras.ops.ones((2, 3)), training=True).shape)
        (2, 3)

    Args:
        rate: probability of a zero, in [0, 1].
        noise_shape: of the mask, which broadcasts to the input: `(None, 1, None)` drops a feature
            of `(batch, time, features)` in all steps or in none.
        seed: an integer from 0 to 2**31 - 1. By default one that `set_random_seed` determines.
        **kwargs: of `keras.Layer`.

    Call arguments:
        inputs: of any shape and any real dtype, integers too.
        training: whether to drop.

    Returns the shape of the input, in the compute dtype. The mask of valid steps passes on.
    """

    def _mask_shape(self) -> tuple[int | None, ...] | None:
        return self.noise_shape


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class SpatialDropout1D(_Dropout, keras.layers.SpatialDropout1D):
    """`keras.layers.SpatialDropout1D` with the same masks on every backend.

    Drops a feature of `(batch, time, features)` in all steps or in none (Tompson et al. 2015).
    Arguments and all else as in `Dropout`.

    Example:
        >>> layer = SpatialDropout1D(0.5, seed=0)
        >>> tuple(layer(keras.ops.ones((2, 7, 3)), training=True).shape)
        (2, 7, 3)
    """

    def _mask_shape(self) -> tuple[int | None, ...]:
        return (None, 1, None)


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class SpatialDropout2D(_Dropout, keras.layers.SpatialDropout2D):
    """`keras.layers.SpatialDropout2D` with the same masks on every backend.

    Drops a feature of `(batch, rows, columns, features)`, such as `(batch, time, channels,
    features)`, everywhere or nowhere (Tompson et al. 2015). With
    `data_format="channels_first"` features are the second axis. Arguments and all else as in
    `Dropout`.

    Example:
        >>> layer = SpatialDropout2D(0.5, seed=0)
        >>> tuple(layer(keras.ops.ones((2, 7, 4, 3)), training=True).shape)
        (2, 7, 4, 3)
    """

    def _mask_shape(self) -> tuple[int | None, ...]:
        return (None, None, 1, 1) if self.data_format == "channels_first" else (None, 1, 1, None)


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class GaussianNoise(_Random, keras.layers.GaussianNoise):
    """`keras.layers.GaussianNoise` with the same noise on every backend.

    In training adds normal noise: the same to 1e-6 of `stddev`, see `random.normal`.

    Example:
        >>> layer = GaussianNoise(0.1, seed=0)
        >>> tuple(layer(keras.ops.ones((2, 3)), training=True).shape)
        (2, 3)

    Args:
        stddev: standard deviation, in [0, 1].
        seed: an integer from 0 to 2**31 - 1. By default one that `set_random_seed` determines.
        **kwargs: of `keras.Layer`.

    Inputs, result and mask of valid steps are those of `Dropout`.
    """

    def call(self, inputs: KerasTensor, training: bool = False) -> Any:
        """See the class."""
        inputs = to_compute_dtype(self, inputs)
        if not training or self.stddev == 0:
            return inputs
        return inputs + _normal_like(inputs, 0.0, self.stddev, self)


@keras.saving.register_keras_serializable(package="multibackend_lstm")
class GaussianDropout(_Random, keras.layers.GaussianDropout):
    """`keras.layers.GaussianDropout` with the same noise on every backend.

    In training multiplies by normal noise of mean 1 and deviation `sqrt(rate / (1 - rate))`
    (Srivastava et al. 2014): the same to 1e-6 of it, see `random.normal`.

    Example:
        >>> layer = GaussianDropout(0.5, seed=0)
        >>> tuple(layer(keras.ops.ones((2, 3)), training=True).shape)
        (2, 3)

    Args:
        rate: in [0, 1), that of the `Dropout` with this mean and deviation.
        seed: an integer from 0 to 2**31 - 1. By default one that `set_random_seed` determines.
        **kwargs: of `keras.Layer`.

    Raises:
        ValueError: for a rate of 1, whose deviation is infinite.

    Inputs, result and mask of valid steps are those of `Dropout`.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(rate, seed=seed, **kwargs)
        if self.rate == 1:
            raise ValueError(
                f"{self.name}: `rate` must be below 1, since the deviation of the noise, "
                "sqrt(rate / (1 - rate)), is infinite there. Received 1."
            )

    def call(self, inputs: KerasTensor, training: bool = False) -> Any:
        """See the class."""
        inputs = to_compute_dtype(self, inputs)
        if not training or self.rate == 0:
            return inputs
        stddev = math.sqrt(self.rate / (1 - self.rate))
        return inputs * _normal_like(inputs, 1.0, stddev, self)


def _dropped(x: KerasTensor, rate: float, mask_shape: Any, layer: Any) -> Any:
    """`random.dropout`, with one mask for all time steps where a wrapper asks for that."""
    apart, drawing = drawing_axes(x)
    if apart is not x:
        first, *others = mask_shape or [None] * len(x.shape)
        if first == 1:
            drawing = (1,) * len(drawing)
        mask_shape = (*drawing, *others)
    start = first_entry(layer.name, ops.shape(apart), mask_shape)
    dropped = random.dropout(
        apart, rate, noise_shape=mask_shape, seed=layer.seed_generator, start=start
    )
    return dropped if apart is x else ops.reshape(dropped, ops.shape(x))


def _normal_like(x: KerasTensor, mean: float, stddev: float, layer: Any) -> Any:
    """`random.normal` of the shape of `x`, the same for all steps where a wrapper asks for that."""
    apart, drawing = drawing_axes(x)
    sizes = ops.shape(apart)
    drawn = [*drawing, *[None] * (len(sizes) - len(drawing))]
    start = first_entry(layer.name, sizes, drawn)
    drawn = [size if once is None else 1 for once, size in zip(drawn, sizes, strict=True)]
    seed = layer.seed_generator
    values = random.normal(drawn, mean, stddev, x.dtype, seed=seed, start=start)
    return values if apart is x else ops.reshape(ops.broadcast_to(values, sizes), ops.shape(x))


def draw_alike(cell: Any) -> None:
    """Have a recurrent cell of Keras draw its masks by `random.dropout`, and save its seeds.

    Keras asks the cell for a mask by these methods, keeps it for all steps, and resets it.

    Args:
        cell: that of `keras.layers.LSTM`, `GRU` or `ConvLSTM1D` to `3D`.
    """
    kept: dict[str, Any] = {}

    def of(name: str) -> tuple[Any, Any]:
        def get(step: KerasTensor) -> Any:
            rate = getattr(cell, name)
            if rate == 0:
                return None
            if name not in kept:
                count = getattr(cell, "dropout_mask_count", None)
                ones = ops.ones_like(step)
                masks = [_dropped(ones, rate, None, cell) for _ in range(count or 1)]
                kept[name] = masks[0] if count is None else masks
            return kept[name]

        return get, lambda: kept.pop(name, None)

    _save_seeds(cell)
    cell.get_dropout_mask, cell.reset_dropout_mask = of("dropout")
    cell.get_recurrent_dropout_mask, cell.reset_recurrent_dropout_mask = of("recurrent_dropout")

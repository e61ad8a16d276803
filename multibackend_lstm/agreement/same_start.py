"""The same start on every backend: the weights, and the order of the training cases.

Keras draws both with the backend's own generator, so that one seed gives other numbers on each.
"""

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any
from unittest import mock

import keras
import numpy as np

#: From an initializer, a shape and a source of randomness to the values of a weight.
Draw = Callable[[Any, tuple[int, ...], np.random.RandomState], np.ndarray]

# The first number of a stream's key, so that no two purposes share a stream.
_WEIGHTS, _SEED_GENERATORS, _ORDER = range(3)
# The deviation of a normal distribution that is cut off at two of its deviations.
_TRUNCATED_DEVIATION = 0.87962566103423978


def initialize(
    model: keras.Model, seed: int, *, initializers: Mapping[type, Draw] | None = None
) -> None:
    """Give every weight of a model the value that it also gets on every other backend.

    Each weight is drawn anew, in NumPy, by its own initializer (glorot uniform, orthogonal, ...)
    and by Keras's formulas. What is drawn depends on the seed, the shape, and the position of
    the weight among the layers that have weights: not on the backend, the names of layers, the
    order of their creation, or layers without weights, such as `Dropout`. A shared weight is
    drawn once.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> initialize(model, seed=0)

    Beside the weights, the states of `stateful` layers become zero, and the seed generators of
    dropout start from `seed` (dropout of this package then draws alike on every backend, that of
    Keras does not). Seeds of the initializers themselves are not used. Values that were loaded or
    learnt are lost.

    The values are float32 numbers in float64 weights too, so that a model in float64 starts from
    the same ones; float16 and bfloat16 weights get the nearest number they have.

    Args:
        model: a built model, functional, sequential or subclassed. Each layer that has weights
            of its own (not only those of layers inside it) is built a second time from its
            `get_config()` and `get_build_config()`, to see what its weights start from.
        seed: an integer of at least 0.
        initializers: how to draw what initializers of your own draw: a subclass of
            `keras.Initializer` to a function of the initializer, the shape and a
            `numpy.random.RandomState` that returns a NumPy array of that shape.

    Raises:
        TypeError: for something else than a Keras model or layer.
        ValueError: for a model that is not built or whose optimizer is; for a weight whose start
            cannot be known, with the remedy.
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(
            "initialize: `model` must be a `keras.Model` (or a layer). Received an object of type "
            f"{type(model).__name__}."
        )
    _check_integer("initialize", "seed", seed, 0)
    if not model.built:
        raise ValueError(
            f"initialize: `model` must be built, and {model.name} has no weights yet. Give it an "
            "input shape, with `keras.Input(shape)` or `model.build(shape)`, or call it on data."
        )
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and optimizer.built:
        raise ValueError(
            f"initialize: the optimizer of {model.name} must be new, and it holds what it learnt "
            "from earlier weights. Compile the model again, then initialize it, then train."
        )
    draws = {**_DRAWS, **(initializers or {})}
    # `_flatten_layers` is private and yet the one list of all layers at any depth, each once.
    layers = model._flatten_layers()
    drawn: list[tuple[Any, Any]] = []
    owners = [layer for layer in layers if _own_weights(layer)]
    for position, layer in enumerate(owners):
        drawn += _draw(layer, seed, position, draws)
    for weight, value in drawn:  # only now, so that an error leaves the weights as they were
        weight.assign(value)
    for layer in layers:
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
            layer.reset_state()
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    for position, state in enumerate(states):
        start = _random(seed, _SEED_GENERATORS, position).randint(2**31)
        state.assign(np.array([start, 0], dtype=state.dtype))


def fit_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `n` training cases in an epoch, the same on every backend.

    Example:
        >>> for epoch in range(40):
        ...     order = fit_order(len(x), seed=0, epoch=epoch)
        ...     history = model.fit(x[order], y[order], shuffle=False, verbose=0)

    Args:
        n: number of cases, at least 1.
        seed: an integer of at least 0.
        epoch: an integer of at least 0; each epoch has an order of its own.

    Returns:
        A random permutation of 0 to `n - 1`, int64 `(n,)`.

    Raises:
        ValueError: for an argument that is not an integer, or too small.
    """
    for name, value, least in (("n", n, 1), ("seed", seed, 0), ("epoch", epoch, 0)):
        _check_integer("fit_order", name, value, least)
    return _random(seed, _ORDER, epoch).permutation(n).astype("int64")


def _check_integer(owner: str, argument: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        remedy = " For the number of cases, pass `len(x)`." if argument == "n" else ""
        raise ValueError(
            f"{owner}: `{argument}` must be an integer of at least {least}. "
            f"Received {value!r}.{remedy}"
        )


def _random(seed: int, *key: int) -> np.random.RandomState:
    """A source of randomness that depends on nothing but the arguments.

    RandomState, since NumPy keeps its numbers the same in every release, and those of Generator
    not (NEP 19); and each backend may run in an environment of its own.
    """
    sequence = np.random.SeedSequence(int(seed), spawn_key=tuple(int(k) for k in key))
    return np.random.RandomState(np.random.MT19937(sequence))


def _own_weights(layer: Any) -> list[Any]:
    """The weights of a layer that are not those of a layer inside it."""
    inside = layer._flatten_layers(include_self=False, recursive=False)
    of_others = {id(weight) for other in inside for weight in other.weights}
    return [weight for weight in layer.weights if id(weight) not in of_others]


def _draw(layer: Any, seed: int, owner: int, draws: Mapping[type, Draw]) -> list[tuple[Any, Any]]:
    """Each weight of one layer, the `owner`-th with weights of its own, and its new value.

    A weight does not keep its initializer, and the layer's attributes do not tell all of them
    (LSTM makes the bias of the forget gate one). So the layer is built a second time.
    """
    for name, value in _initializers(layer).items():
        _check_known(f"{layer.path or layer.name}/{name}", value, draws)
    with _numpy_draws(lambda number: _random(seed, _WEIGHTS, owner, number), draws) as created:
        try:
            twin = type(layer).from_config(_config(layer))
            if not twin.built:
                twin.build_from_config(layer.get_build_config())
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"initialize: the layer {layer.name} cannot be built a second time to see what its "
                f"weights start from: {type(error).__name__}: {reason} Give "
                f"{type(layer).__name__} a `get_config` with the arguments of its constructor, and "
                "create its weights in `__init__` or `build`."
            ) from error
    own, again = _own_weights(layer), _own_weights(twin)
    starts = {id(variable): start for variable, start in created}
    # Names do not count: Keras numbers those it gives itself.
    same = [weight.shape for weight in again] == [weight.shape for weight in own]
    if not same or any(id(weight) not in starts for weight in again):
        raise ValueError(
            f"initialize: the layer {layer.name} has the weights {_describe(own)}, and what it "
            f"creates when it is built a second time is {_describe(again)}, so what they start "
            "from cannot be known. Initialize before changing a layer's weights by hand (as by "
            "quantization), and share layers, not weights."
        )
    for weight, second in zip(own, again, strict=True):
        _check_known(weight.path, starts[id(second)], draws)
    # float64 weights get numbers that float32 has too.
    return [
        (weight, keras.ops.cast(second.value, "float32") if weight.dtype == "float64" else second)
        for weight, second in zip(own, again, strict=True)
    ]


def _config(layer: Any) -> dict[str, Any]:
    """The layer's configuration, with what gets lost there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about lambdas, which are not read back here
        config = layer.get_config()
    # Functions as they are (initializers, activations, regularizers): a lambda, for one, would
    # not survive.
    config |= {
        name: value
        for name, value in vars(layer).items()
        if name in config and callable(value) and not isinstance(value, keras.Layer)
    }
    # That of keras.layers.ConvLSTMCell lacks `rank` (Keras 3.15).
    for name, parameter in inspect.signature(type(layer)).parameters.items():
        required = parameter.default is parameter.empty
        if required and name not in config and hasattr(layer, name):
            config[name] = getattr(layer, name)
    return config


def _initializers(layer: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(layer).items()
        if name.endswith("initializer") and callable(value)
    }


def _describe(weights: Sequence[Any]) -> str:
    return ", ".join(f"{weight.name} {tuple(weight.shape)}" for weight in weights) or "none"


def _check_known(path: str, start: Any, draws: Mapping[type, Draw]) -> None:
    """Raise a ValueError unless it is known how a weight's start draws."""
    if type(start) in draws or isinstance(start, str):
        return
    if not callable(start):
        raise ValueError(
            f"initialize: the weight {path} is made from a value, not by an initializer, and "
            "whether that is random cannot be known. Make it with `add_weight(shape=value.shape, "
            "initializer=keras.initializers.Constant(value))`."
        )
    is_function = hasattr(start, "__qualname__")
    code = start if is_function else type(start).__call__
    # Functions inside Keras's layers call initializers, and those are checked by themselves.
    if str(getattr(code, "__module__", None)).split(".")[0] in ("keras", "multibackend_lstm"):
        return
    name = start.__qualname__ if is_function else type(start).__qualname__
    raise ValueError(
        f"initialize: the weight {path} starts from {name}, an initializer that is not Keras's "
        "own, and what it would draw on another backend cannot be known. Make it a subclass of "
        "`keras.Initializer`, say `Mine`, and pass `initializers={Mine: draw}`, where "
        "`draw(initializer, shape, random)` returns a NumPy array drawn from `random`, a "
        "`numpy.random.RandomState`."
    )


@contextlib.contextmanager
def _numpy_draws(
    random_of: Callable[[int], np.random.RandomState], draws: Mapping[type, Draw]
) -> Iterator[list[tuple[Any, Any]]]:
    """While this is open, initializers draw in NumPy, from a source for each new variable.

    Yields:
        A list that fills with each new variable and what it starts from.
    """
    created: list[tuple[Any, Any]] = []
    random = random_of(0)
    make = keras.Variable.__init__

    def make_noted(variable: Any, initializer: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal random
        random = random_of(len(created))
        created.append((variable, initializer))
        make(variable, initializer, *args, **kwargs)

    def call_of(draw: Draw) -> Callable[..., Any]:
        def call(initializer: Any, shape: Sequence[int], dtype: Any = None) -> Any:
            values = np.asarray(draw(initializer, tuple(shape), random), dtype="float32")
            if values.shape != tuple(shape):
                raise ValueError(
                    f"what draws for {type(initializer).__name__} must return an array of shape "
                    f"{tuple(shape)}. Received {values.shape}."
                )
            return keras.ops.convert_to_tensor(values, dtype=dtype or keras.config.floatx())

        return call

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(keras.Variable, "__init__", make_noted))
        for initializer, draw in draws.items():
            stack.enter_context(mock.patch.object(initializer, "__call__", call_of(draw)))
        yield created


def _normal(
    shape: tuple[int, ...], mean: Any, deviation: Any, random: np.random.RandomState
) -> np.ndarray:
    return float(mean) + float(deviation) * random.standard_normal(shape)


def _truncated_normal(
    shape: tuple[int, ...], mean: Any, deviation: Any, random: np.random.RandomState
) -> np.ndarray:
    """Values further than two deviations from the mean are drawn again."""
    values = np.atleast_1d(random.standard_normal(shape))
    while (outside := np.abs(values) > 2).any():
        values[outside] = random.standard_normal(int(outside.sum()))
    return float(mean) + float(deviation) * values.reshape(shape)


def _fans(initializer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The numbers of input and output units, as Keras counts them."""
    axes = (getattr(initializer, "input_axes", None), getattr(initializer, "output_axes", None))
    if axes[0] is not None and axes[1] is not None:
        return math.prod(shape[a] for a in axes[0]), math.prod(shape[a] for a in axes[1])
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def _variance_scaling(
    initializer: Any, shape: tuple[int, ...], random: np.random.RandomState
) -> np.ndarray:
    fan_in, fan_out = _fans(initializer, shape)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    deviation = math.sqrt(initializer.scale / max(1.0, fan[initializer.mode]))
    if initializer.distribution == "truncated_normal":
        return _truncated_normal(shape, 0.0, deviation / _TRUNCATED_DEVIATION, random)
    if initializer.distribution == "untruncated_normal":
        return _normal(shape, 0.0, deviation, random)
    limit = math.sqrt(3) * deviation
    return random.uniform(-limit, limit, shape)


def _orthogonal(
    initializer: Any, shape: tuple[int, ...], random: np.random.RandomState
) -> np.ndarray:
    if len(shape) < 2:
        raise ValueError(f"an orthogonal weight must have at least 2 axes. Received {shape}.")
    rows, columns = math.prod(shape[:-1]), shape[-1]
    q, r = np.linalg.qr(random.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))
    return initializer.gain * (q.T if rows < columns else q).reshape(shape)


# Only what does not come out exact on each backend by itself (Zeros, Ones, Constant, Identity do).
# Glorot's, He's and Lecun's initializers are kinds of VarianceScaling.
_DRAWS: Mapping[type, Draw] = {
    keras.initializers.RandomNormal: lambda i, shape, r: _normal(shape, i.mean, i.stddev, r),
    keras.initializers.TruncatedNormal: lambda i, shape, r: _truncated_normal(
        shape, i.mean, i.stddev, r
    ),
    keras.initializers.RandomUniform: lambda i, shape, r: r.uniform(i.minval, i.maxval, shape),
    keras.initializers.VarianceScaling: _variance_scaling,
    keras.initializers.Orthogonal: _orthogonal,
}

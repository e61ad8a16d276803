"""Healthy models drawn at random over all layers of this package and the usual ones of Keras.

Any of them must give the same numbers everywhere. What Keras 3.15.1 gets wrong is left out here,
test_power.py has it: average pooling with padding "same", Keras's own ConvLSTM under a mask,
stateful layers, and gradients from the masked steps of attention.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

import multibackend_lstm as ours
from multibackend_lstm.agreement import Report, Workers, check
from multibackend_lstm.agreement.suite.running import draw_weights

L = keras.layers
BATCH = 4
ACTIVATIONS = (
    *("relu", "elu", "gelu", "selu", "softplus", "silu", "hard_sigmoid", "softmax", "leaky_relu"),
    *("tanh", "mish", "softsign", "sigmoid", "relu6", "hard_silu", "linear"),
)
OPTIMIZERS = ("adam", "adam", "sgd", "rmsprop", "adamw", "nadam", "adagrad")


@dataclass
class Drawn:
    """A model, what it is run on, and how it is trained."""

    model: keras.Model
    inputs: Any
    loss: str
    optimizer: str

    def checked(self, workers: Workers, seed: int = 0) -> Report:
        """The comparison of this model."""
        return check(
            self.model,
            self.inputs,
            loss=self.loss,
            optimizer=self.optimizer,
            workers=workers,
            seed=seed,
        )


def draw(seed: int, index: int) -> Drawn:
    """The model of this number; the same whichever backend draws it."""
    rng = np.random.default_rng([seed, index])
    keras.backend.clear_session()
    x, inputs, data = _input(rng)
    for _ in range(int(rng.integers(1, 3))):
        x = _block(rng, x)
    heads = [_head(rng, x)]
    if rng.random() < 0.2:
        heads.append(_head(rng, _block(rng, x)))
    loss = "mean_squared_error"
    if len(heads) == 1:
        activation, loss = _choice(
            rng,
            [("linear", loss)] * 4
            + [("tanh", "huber"), ("linear", "log_cosh"), ("sigmoid", "binary_crossentropy")]
            + [("softmax", "categorical_crossentropy")],
        )
        if activation != "linear":
            heads = [L.Activation(activation)(L.Dense(3)(heads[0]))]
    outputs: Any = heads[0]
    if len(heads) == 2:
        outputs = {"a": heads[0], "b": heads[1]} if rng.random() < 0.5 else heads
    model = keras.Model(inputs, outputs, name=f"model_{seed}_{index}")
    if _meets_known_defect(model):
        return draw(seed, index + 10_000)
    draw_weights(model, rng)
    return Drawn(model, data, loss, _choice(rng, OPTIMIZERS))


def _meets_known_defect(model: keras.Model) -> bool:
    """Whether a maximum lets gradients into the masked steps of attention; see test_power.py."""
    kinds = {type(layer) for layer in model.layers}
    masked = any(
        getattr(layer, "mask_zero", isinstance(layer, L.Masking)) for layer in model.layers
    )
    return masked and {L.MultiHeadAttention, L.GlobalMaxPooling1D} <= kinds


def _choice(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _bool(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def _input(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """A symbolic tensor to go on from, the model's input, and data for it."""
    kind = _choice(rng, ["sequence"] * 3 + ["array"] * 4 + ["video", "tokens", "vector"])
    time = int(rng.integers(5, 10))
    if kind == "tokens":
        tokens = rng.integers(0, 9, (BATCH, time))
        tokens[0, time // 2 :] = 0
        inputs = keras.Input((time,), dtype="int32")
        x = L.Embedding(9, int(rng.integers(2, 6)), mask_zero=_bool(rng))(inputs)
        return x, inputs, tokens.astype("int32")
    axes = {"vector": 0, "sequence": 1, "array": 2, "video": 3}[kind]
    shape = [int(size) for size in rng.integers(2, 6, axes)]
    shape = [time, *shape] if axes else [int(rng.integers(3, 9))]
    data = rng.normal(size=(BATCH, *shape)).astype("float32")
    if rng.random() < 0.2:  # as sensors that were not centred
        data = data * 3 + 5
    inputs = keras.Input(shape)
    if kind == "sequence" and _bool(rng):
        data[0, time // 2 :] = 0  # padded on the right
        if _bool(rng):
            data[1, 1:3] = 0  # a hole
        return L.Masking()(inputs), inputs, data
    return inputs, inputs, data


def _head(rng: np.random.Generator, x: Any) -> Any:
    if len(x.shape) > 3:
        x = ours.FlattenFeatures()(x)
    if len(x.shape) == 3 and rng.random() < 0.8:
        x = _summary(rng, x)
    return L.Dense(int(rng.integers(1, 4)))(x)


def _summary(rng: np.random.Generator, x: Any) -> Any:
    """A sequence as a vector."""
    kind = rng.random()
    if kind < 0.5:
        return _recurrent(rng, sequences=False)(x)
    if kind < 0.7:
        return L.GlobalAveragePooling1D()(x)
    if kind < 0.9 or getattr(x, "_keras_mask", None) is not None:
        return L.GlobalMaxPooling1D()(x)
    return L.Flatten()(x)


def _recurrent(rng: np.random.Generator, sequences: bool) -> Any:
    """A recurrent layer, ours twice as often as Keras's, alone or in both directions."""
    name = _choice(rng, ["LSTM", "LSTM", "GRU", "GRU", "SimpleRNN"])
    home = L if name == "SimpleRNN" or rng.random() < 0.33 else ours
    options: dict[str, Any] = {
        "units": int(rng.integers(2, 7)),
        "return_sequences": sequences,
        "use_bias": bool(rng.random() < 0.8),
        "activation": _choice(rng, ["tanh", "tanh", "tanh", "relu", "softsign"]),
        "dropout": _choice(rng, [0.0, 0.0, 0.3]),
    }
    if name == "LSTM":
        options["unit_forget_bias"] = _bool(rng)
    if name == "GRU":
        options["reset_after"] = _bool(rng)
    if home is L and name != "SimpleRNN":
        options["implementation"] = _choice(rng, [1, 2])
    if rng.random() < 0.3:
        layer = getattr(home, name)(**options)
        merge = _choice(rng, ["concat", "sum", "mul", "ave"])
        return L.Bidirectional(layer, merge_mode=merge)
    return getattr(home, name)(**options, go_backwards=bool(rng.random() < 0.25))


def _block(rng: np.random.Generator, x: Any) -> Any:
    rank = len(x.shape)
    draw = rng.random()
    if draw < 0.1:
        return _nested(rng, x)
    if draw < 0.2:
        return _residual(rng, x)
    if draw < 0.4:
        return _pointwise(rng, x.shape[1:])(x)
    if rank == 2:
        return _on_vector(rng, x)
    if rank == 3:
        return _on_sequence(rng, x)
    return _on_array(rng, x)


def _nested(rng: np.random.Generator, x: Any) -> Any:
    """A model inside the model, or a layer, used twice."""
    shape, width = x.shape[1:], x.shape[-1]
    layers = [_pointwise(rng, shape), L.Dense(width)]
    inner = keras.Sequential([keras.Input(shape), *layers])
    if _bool(rng):
        return inner(inner(x))
    return L.Add()([inner(x), x])


def _residual(rng: np.random.Generator, x: Any) -> Any:
    shared = L.Dense(x.shape[-1], activation=_choice(rng, ACTIVATIONS))
    kind = _choice(rng, ["Add", "Concatenate", "Multiply", "Average", "Maximum", "Subtract"])
    return getattr(L, kind)()([x, shared(shared(x))])


def _pointwise(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """A layer that keeps the shape."""
    width = shape[-1]
    groups = _choice(rng, [n for n in range(1, width + 1) if width % n == 0])
    return _choice(
        rng,
        [
            lambda: L.BatchNormalization(
                momentum=_choice(rng, [0.99, 0.9]), epsilon=_choice(rng, [1e-3, 1e-5])
            ),
            lambda: L.LayerNormalization(epsilon=_choice(rng, [1e-3, 1e-6])),
            lambda: L.GroupNormalization(groups),
            lambda: L.RMSNormalization(),
            lambda: L.UnitNormalization(),
            lambda: L.Activation(_choice(rng, ACTIVATIONS)),
            lambda: L.Activation(_choice(rng, ACTIVATIONS)),
            lambda: L.LeakyReLU(0.2),
            lambda: L.PReLU(),
            lambda: L.Dropout(0.3),
            lambda: L.GaussianNoise(0.1),
            lambda: L.Dense(width, activation=_choice(rng, ACTIVATIONS)),
            lambda: L.Rescaling(0.5, offset=0.1),
        ],
    )()


def _on_vector(rng: np.random.Generator, x: Any) -> Any:
    if rng.random() < 0.3:
        return L.RepeatVector(4)(x)
    dense = L.Dense(
        int(rng.integers(2, 9)),
        activation=_choice(rng, ACTIVATIONS),
        kernel_regularizer=_choice(rng, [None, "l2"]),
    )
    return dense(x)


def _on_sequence(rng: np.random.Generator, x: Any) -> Any:
    time, width = x.shape[1:]
    if rng.random() < 0.35:
        return _recurrent(rng, sequences=True)(x)
    if rng.random() < 0.2:
        heads = L.MultiHeadAttention(
            num_heads=int(rng.integers(1, 4)), key_dim=int(rng.integers(2, 5))
        )
        return heads(x, x, use_causal_mask=_bool(rng))
    if getattr(x, "_keras_mask", None) is not None:
        return L.TimeDistributed(L.Dense(3, activation="tanh"))(x)
    options = [
        lambda: _conv(rng, L.Conv1D, int(rng.integers(2, 6))),
        lambda: _conv(rng, L.Conv1D, int(rng.integers(2, 6))),
        lambda: L.Conv1D(width * 2, 3, padding="causal", dilation_rate=2, groups=width),
        lambda: L.SeparableConv1D(3, 3, padding="same"),
        lambda: L.DepthwiseConv1D(3, padding="same", depth_multiplier=2),
        lambda: L.Conv1DTranspose(3, 3, strides=_choice(rng, [1, 2]), padding="same"),
        lambda: L.UpSampling1D(2),
        lambda: L.ZeroPadding1D(1),
        lambda: L.Dense(4, activation=_choice(rng, ACTIVATIONS)),
        lambda: L.SpatialDropout1D(0.3),
        lambda: L.TimeDistributed(L.Dense(3)),
    ]
    if time > 3:
        options += [
            lambda: L.MaxPooling1D(2, padding=_choice(rng, ["same", "valid"])),
            lambda: L.AveragePooling1D(2),
        ]
    return _choice(rng, options)()(x)


def _conv(rng: np.random.Generator, layer: Any, filters: int) -> Any:
    strides, rate = _choice(rng, [(1, 1), (2, 1), (1, 2)])
    return layer(
        filters,
        _choice(rng, [1, 2, 3]),
        strides=strides,
        dilation_rate=rate,
        padding="same",
        activation=_choice(rng, [None, "relu", "tanh"]),
        use_bias=_bool(rng),
    )


def _on_array(rng: np.random.Generator, x: Any) -> Any:
    """`(batch, time, ..., features)`."""
    axes = len(x.shape) - 3
    if rng.random() < 0.25:
        conv_lstm = getattr(ours, f"ConvLSTM{axes}D")(
            2,
            _choice(rng, [1, 2 if min(x.shape[2:-1]) < 3 else 3]),
            padding="same",
            return_sequences=_bool(rng),
            go_backwards=bool(rng.random() < 0.25),
        )
        return conv_lstm(x)
    if axes == 2:
        return _time_distributed_conv(rng)(x)
    series = _recurrent(rng, sequences=_bool(rng))
    options = [
        lambda: ours.FlattenFeatures(),
        lambda: _time_distributed_conv(rng),
        lambda: _time_distributed_conv(rng),
        lambda: ours.Channelwise(
            series, merge=_choice(rng, ["concat", "sum", "average", "max", "stack"])
        ),
        lambda: ours.Channelwise(series),
        lambda: ours.TimeDistributed(L.Conv1D(3, 2, padding="same")),
        lambda: ours.TimeDistributed(_recurrent(rng, sequences=False)),
        lambda: L.TimeDistributed(L.Conv1D(3, 2, padding="same")),
        lambda: _conv(rng, L.Conv2D, 3),
        lambda: L.DepthwiseConv2D(3, padding="same"),
        lambda: L.SeparableConv2D(3, 2, padding="same"),
        lambda: L.Conv2DTranspose(2, 3, padding="same"),
        lambda: L.MaxPooling2D(2, padding="same"),
        lambda: L.AveragePooling2D((2, 1)),
        lambda: L.GlobalAveragePooling2D(),
        lambda: ours.LSTM(4, return_sequences=True),
        lambda: ours.GRU(4, return_sequences=True),
    ]
    return _choice(rng, options)()(x)


def _time_distributed_conv(rng: np.random.Generator) -> Any:
    two = _bool(rng)
    return ours.TimeDistributedConv(
        (4, 3) if two else 4,
        _choice(rng, [2, 3]),
        padding="same",
        activation=_choice(rng, [None, "relu", "tanh"]),
        normalization=_choice(rng, [None, "batch", "layer"]),
        pool_size=2 if two and _bool(rng) else None,
        pool=_choice(rng, ["max", "average"]),
        dropout=_choice(rng, [0.0, 0.2]),
        reduce=_choice(rng, ["flatten", "average", "max"]),
    )

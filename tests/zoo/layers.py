"""Models of every layer of the package with the options that matter, and of every solution."""

import keras
import numpy as np
from keras import layers

import multibackend_lstm
from multibackend_lstm import build_deep_conv_lstm, build_mlstm_fcn, build_model

RECURRENT_OPTIONS = {
    "last": {},
    "sequence": {"return_sequences": True},
    "backwards": {"return_sequences": True, "go_backwards": True},
    "zeros": {"return_sequences": True, "zero_output_for_mask": True},
    "no_bias": {"use_bias": False},
    "portable": {"implementation": "ops", "return_sequences": True},
    "activation": {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    "dropout": {"dropout": 0.3, "recurrent_dropout": 0.2},
    "stateful": {"stateful": True},
}


def sequential(shape, *stack, batch=None):
    return keras.Sequential([layers.Input(shape, batch_size=batch), *stack])


def recurrent(name, **options):
    """Behind Masking, which the inputs make right-padded, left-padded and with holes."""
    layer = getattr(multibackend_lstm, name)(4, **options)
    return sequential((6, 3), layers.Masking(), layer, batch=4 if layer.stateful else None)


def nd(name):
    return sequential((5, 2, 3), getattr(multibackend_lstm, name)(3), layers.Dense(2))


def with_states(name):
    inputs = keras.Input((5, 3))
    sequence, *states = getattr(multibackend_lstm, name)(
        3, return_sequences=True, return_state=True
    )(inputs)
    again = getattr(multibackend_lstm, name)(3)(sequence, initial_state=states)
    return keras.Model(inputs, [again, *states])


def bidirectional(merge):
    layer = multibackend_lstm.LSTM(3, return_sequences=True)
    return sequential((6, 3), layers.Masking(), layers.Bidirectional(layer, merge_mode=merge))


def both_ways(merge, name="LSTM", **options):
    """By the package's own `Bidirectional`; without a merge it has two outputs."""
    layer = getattr(multibackend_lstm, name)(3, return_sequences=True, **options)
    inputs = keras.Input((6, 3))
    both = multibackend_lstm.Bidirectional(layer, merge_mode=merge)(layers.Masking()(inputs))
    return keras.Model(inputs, both)


def with_lengths(name):
    """Lengths given to the layer itself, and to it in both directions."""
    inputs, lengths = keras.Input((6, 2, 3)), keras.Input((), dtype="int32")
    layer = getattr(multibackend_lstm, name)(3, return_sequences=True)
    x = multibackend_lstm.Bidirectional(layer)(inputs, lengths=lengths)
    outputs = getattr(multibackend_lstm, name)(3)(x, lengths=lengths)
    return keras.Model([inputs, lengths], outputs)


def drawing(name, axes=(3,)):
    """A layer that draws in training."""
    layer = getattr(multibackend_lstm, name)(0.3, seed=1)
    return sequential((6, *axes), layers.Dense(3), layer, layers.Dense(2))


def channelwise(merge, inner):
    layer = multibackend_lstm.Channelwise(inner, merge=merge)
    return sequential((6, 2, 3), layers.Masking(), layer)


def steps(inner, **options):
    layer = multibackend_lstm.TimeDistributed(inner, **options)
    return sequential((5, 4, 3), layer, multibackend_lstm.FlattenFeatures())


def convolved(shape=(5, 6, 3), **options):
    return sequential(shape, multibackend_lstm.TimeDistributedConv((3, 2), 2, **options))


def conv_lstm(rank, **options):
    layer = getattr(multibackend_lstm, f"ConvLSTM{rank}D")(2, 2, **options)
    if layer.return_state:
        inputs = keras.Input((4, *[3] * rank, 2))
        return keras.Model(inputs, layer(inputs))
    return sequential((4, *[3] * rank, 2), layer, batch=4 if layer.stateful else None)


def flattened(reduction):
    flatten = multibackend_lstm.FlattenFeatures(mask_reduction=reduction)
    return sequential((6, 2, 3), layers.Masking(), flatten, multibackend_lstm.LSTM(3))


CASES = {
    **{
        f"{name.lower()}-{option}": (lambda n=name, o=options: recurrent(n, **o))
        for name in ("LSTM", "GRU")
        for option, options in RECURRENT_OPTIONS.items()
    },
    "gru-reset_before": lambda: recurrent("GRU", reset_after=False),
    **{f"{n.lower()}-nd": (lambda n=n: nd(n)) for n in ("LSTM", "GRU")},
    **{f"{n.lower()}-states": (lambda n=n: with_states(n)) for n in ("LSTM", "GRU")},
    **{
        f"bidirectional-{merge}": (lambda m=merge: bidirectional(m))
        for merge in ("concat", "sum", "mul", "ave")
    },
    **{
        f"both_ways-{merge}": (lambda m=merge: both_ways(m))
        for merge in ("concat", "sum", "mul", "ave", None)
    },
    "both_ways-gru": lambda: both_ways("concat", "GRU"),
    **{f"{n.lower()}-lengths": (lambda n=n: with_lengths(n)) for n in ("LSTM", "GRU")},
    **{
        f"random-{name}": (lambda n=name, a=axes: drawing(n, a))
        for name, axes in {
            "Dropout": (3,),
            "GaussianDropout": (3,),
            "GaussianNoise": (3,),
            "SpatialDropout1D": (3,),
            "SpatialDropout2D": (4, 3),
        }.items()
    },
    **{f"flatten-{how}": (lambda h=how: flattened(h)) for how in ("any", "all")},
    "steps-dense": lambda: steps(layers.Dense(3, activation="tanh")),
    "steps-per_call": lambda: steps(layers.Conv1D(3, 2, padding="causal"), steps_per_call=2),
    "steps-norm": lambda: steps(layers.BatchNormalization()),
    "steps-variational": lambda: sequential(
        (5, 4, 3),
        layers.Dense(3),
        multibackend_lstm.TimeDistributed(
            multibackend_lstm.Dropout(0.3, seed=1), variational_dropout=True
        ),
        layers.Dense(2),
    ),
    "steps-masked": lambda: sequential(
        (6, 2, 3),
        layers.Masking(),
        multibackend_lstm.TimeDistributed(layers.Dense(2)),
        multibackend_lstm.FlattenFeatures(),
        multibackend_lstm.LSTM(3),
    ),
    "steps-lstm": lambda: steps(multibackend_lstm.LSTM(3)),
    "conv-plain": convolved,
    "conv-full": lambda: convolved(
        padding="same", activation="relu", normalization="batch", pool_size=2, reduce="max"
    ),
    "conv-layer_norm": lambda: convolved(
        normalization="layer", pool="average", pool_size=2, reduce="average"
    ),
    "masked_conv": lambda: sequential(
        (5, 6, 3),
        layers.Masking(),
        multibackend_lstm.TimeDistributedConv(
            2, 2, padding="causal", use_bias=False, dropout=0.3, mask_reduction="all"
        ),
        multibackend_lstm.LSTM(3),
    ),
    "conv-2d": lambda: convolved((4, 5, 4, 2), padding="same", strides=2),
    "conv-3d": lambda: convolved((3, 3, 4, 3, 2), padding="same"),
    **{
        f"channelwise-{merge}": (lambda m=merge: channelwise(m, multibackend_lstm.LSTM(3)))
        for merge in ("concat", "sum", "average", "max", "stack")
    },
    "channelwise-gru": lambda: channelwise("concat", layers.GRU(3, return_sequences=True)),
    **{f"conv_lstm-{r}d": (lambda r=r: conv_lstm(r)) for r in (1, 2, 3)},
    "conv_lstm-zeros": lambda: sequential(
        (4, 3, 2),
        layers.Masking(),
        multibackend_lstm.ConvLSTM1D(2, 2, return_sequences=True, zero_output_for_mask=True),
    ),
    "conv_lstm-dropout": lambda: sequential(
        (4, 3, 2),
        layers.Masking(),
        multibackend_lstm.ConvLSTM1D(2, 2, dropout=0.3, recurrent_dropout=0.2, use_bias=False),
    ),
    **{
        f"conv_lstm-{option}": (lambda r=rank, o=option: conv_lstm(r, **{o: True}))
        for rank, option in ((1, "return_state"), (2, "stateful"), (3, "return_sequences"))
    },
    "conv_lstm-sequence": lambda: conv_lstm(1, return_sequences=True, padding="same", strides=2),
    "conv_lstm-backwards": lambda: conv_lstm(1, return_sequences=True, go_backwards=True),
    "model-deep_conv_lstm": lambda: build_deep_conv_lstm(
        (9, 2, 3), outputs=2, filters=2, kernel_size=3, convolutions=2, units=(3, 3)
    ),
    "model-mlstm_fcn": lambda: build_mlstm_fcn(
        (9, 2, 3), outputs=2, units=3, filters=(4, 4, 4), kernel_size=(3, 2, 2), reduction=2
    ),
    **{
        f"solution-{name}": (lambda n=name: build_model((6, 3, 4), n, units=(4, 3), outputs=2))
        for name in multibackend_lstm.SOLUTIONS
    },
    **{
        f"solution-{name}-masked": (
            lambda n=name: build_model(
                (6, 3, 4), n, units=4, outputs=3, task="multiclass", masking=0.0, bidirectional=True
            )
        )
        for name in ("reshape", "pre_reshape", "conv", "channelwise")
    },
    **{
        f"solution-{name}-lengths": (
            lambda n=name: build_model(
                (6, 3, 4),
                n,
                units=4,
                lengths=True,
                masking=0.0,
                normalization=(np.arange(12).reshape(3, 4) / 10, np.full((3, 4), 2.0)),
            )
        )
        for name in ("reshape", "conv", "channelwise", "conv_lstm")
    },
}


def draw(model, seed=0):
    """Inputs whose zeros, which are masked, stand at the end, at the start and in between."""
    shape = model.inputs[0].shape[1:]
    x = np.random.default_rng(seed).normal(size=(4, *shape)).astype("float32")
    time = x.shape[1]
    x[0, time // 2 :] = 0
    x[1, : time // 3] = 0
    x[2, 1:-1:2] = 0
    return x if len(model.inputs) == 1 else [x, np.array([time, 2, 0, 3], "int32")]

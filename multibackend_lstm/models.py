"""build_model: a whole recurrent model for 4D (or N-D) input, in one of five ways."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras

from multibackend_lstm.layers import (
    LSTM,
    Channelwise,
    ConvLSTM1D,
    ConvLSTM2D,
    ConvLSTM3D,
    FlattenFeatures,
    TimeDistributedConv,
)
from multibackend_lstm.layers.channelwise import Merge
from multibackend_lstm.layers.validation import (
    check_choice,
    check_positive,
    known_sizes,
)
from multibackend_lstm.solutions import SOLUTIONS, Solution

Task = Literal["regression", "binary", "multiclass"]

_ACTIVATIONS = {"regression": None, "binary": "sigmoid", "multiclass": "softmax"}
_CONV_LSTMS: dict[int, Any] = {1: ConvLSTM1D, 2: ConvLSTM2D, 3: ConvLSTM3D}


def build_model(
    input_shape: Sequence[int | None],
    solution: Solution = "reshape",
    *,
    units: int | Sequence[int] = 64,
    outputs: int = 1,
    task: Task = "regression",
    bidirectional: bool = False,
    dropout: float = 0.0,
    masking: float | None = None,
    filters: int | Sequence[int] = 16,
    kernel_size: int | Sequence[int] = 3,
    merge: Merge = "concat",
    name: str | None = None,
) -> keras.Model:
    """Build an uncompiled functional model from sensor tensors to predictions.

    Example:
        >>> model = build_model((10, 3, 5), "conv", units=64)   # (time, channels, features)
        >>> model.compile(optimizer="adam", loss="mse")

    Args:
        input_shape: shape of one case, `(time, channels, features)` or longer,
            `(time, *axes, features)`; `time` may be `None`. For `"pre_reshape"` either that (the
            model then takes its flattened form) or `(time, features)` as the data comes.
        solution: one of `SOLUTIONS`, which says when to choose which.
            `"reshape"`: `FlattenFeatures`, then LSTM.
            `"pre_reshape"`: LSTM on `(batch, time, features)`, see `flatten_features`.
            `"conv"`: `TimeDistributedConv` with relu and `padding="same"`, then LSTM; one to
            three axes between time and features.
            `"channelwise"`: `Channelwise(LSTM)`.
            `"conv_lstm"`: `ConvLSTM1D`, `2D` or `3D` with `padding="same"`, then `Flatten`; one
            to three axes between time and features.
        units: LSTM units (filters of a ConvLSTM), or a sequence of them for stacked layers.
        outputs: number of outputs; for `"multiclass"` the number of classes.
        task: `"regression"` (linear output), `"binary"` (sigmoid) or `"multiclass"` (softmax).
        bidirectional: wrap every recurrent layer in `keras.layers.Bidirectional`.
        dropout: rate of the dropout after every recurrent layer.
        masking: the value that marks what is missing: a step is skipped where all its values
            equal it. (Where it fills some channels only, `"channelwise"` skips the step in those
            channels, and the other solutions see zeros there.)
        filters: of the convolutions of `"conv"`; a sequence makes several blocks.
        kernel_size: of the convolutions of `"conv"` and `"conv_lstm"`.
        merge: how `"channelwise"` joins its channels, see `Channelwise`.
        name: name of the model.

    Returns:
        A `keras.Model` from `(batch, *input_shape)` to `(batch, outputs)`. The output has the
        dtype of the weights, so float32 in mixed precision.

    Raises:
        ValueError: for an unknown solution or task (the message lists those there are); an
            `input_shape` with a length or an unknown axis that the solution cannot take; `units`
            or `outputs` below 1, or 1 output for `"multiclass"`; a `masking` value that is not
            finite.
    """
    owner = "build_model"
    check_choice(owner, "solution", solution, tuple(SOLUTIONS))
    check_choice(owner, "task", task, tuple(_ACTIVATIONS))
    check_positive(owner, "outputs", outputs)
    if task == "multiclass" and outputs == 1:
        raise ValueError(
            'build_model: task="multiclass" needs `outputs`, the number of classes, to be at '
            'least 2. Received outputs=1. For one yes-or-no output use task="binary".'
        )
    stacked_units = tuple(units) if isinstance(units, Sequence) else (units,)
    for count in stacked_units or (0,):
        check_positive(owner, "units", count)
    shape = _model_input_shape(tuple(input_shape), solution)
    _check_masking(masking)

    inputs = keras.Input(shape, name="inputs")
    x = inputs
    if masking is not None:
        # In the input's own precision: a cast to float16 could change which values are equal.
        x = keras.layers.Masking(masking, dtype=inputs.dtype)(x)
    if solution == "reshape":
        x = FlattenFeatures()(x)
    elif solution == "conv":
        x = TimeDistributedConv(filters, kernel_size, padding="same", activation="relu")(x)

    for position, count in enumerate(stacked_units):
        is_last = position == len(stacked_units) - 1
        arguments: dict[str, Any] = {"return_sequences": not is_last}
        if solution == "conv_lstm":
            arguments |= {"kernel_size": kernel_size, "padding": "same"}
            layer = _CONV_LSTMS[len(shape) - 2](count, data_format="channels_last", **arguments)
        else:
            layer = LSTM(count, **arguments)
        if bidirectional:
            layer = keras.layers.Bidirectional(layer)
        if solution == "channelwise":
            layer = Channelwise(layer, merge=merge if is_last else "stack")
        x = layer(x)
        if dropout:
            x = keras.layers.Dropout(dropout)(x)

    # (batch, units) already, but for positions or channels that are still apart.
    if len(x.shape) > 2:
        x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(
        outputs,
        activation=_ACTIVATIONS[task],
        dtype=keras.config.dtype_policy().variable_dtype,
        name="outputs",
    )(x)
    return keras.Model(inputs, x, name=name or solution)


def _model_input_shape(shape: tuple[int | None, ...], solution: str) -> tuple[int | None, ...]:
    """The input shape of the solution's model, flattened for `"pre_reshape"`."""
    longest = {"conv": 5, "conv_lstm": 5}.get(solution)
    shortest = 2 if solution == "pre_reshape" else 3
    if len(shape) < shortest or (longest is not None and len(shape) > longest):
        rule = {
            "pre_reshape": "(time, features), or (time, channels, features) or longer",
            "conv": "(time, *axes, features) with one to three axes",
            "conv_lstm": "(time, *axes, features) with one to three axes",
        }.get(solution, "(time, channels, features) or longer")
        remedy = (
            'Data that is already flattened belongs to solution="pre_reshape".'
            if len(shape) == 2
            else "Do not count the batch axis; merge or split axes with "
            "`multibackend_lstm.flatten_features` or `unflatten_features`."
        )
        raise ValueError(
            f"build_model: `input_shape` must be {rule} for solution={solution!r}. "
            f"Received {shape}. {remedy}"
        )
    sizes = known_sizes("build_model", (None, *shape), range(2, len(shape) + 1))
    for size in sizes:
        check_positive("build_model", "input_shape", size)
    if solution == "pre_reshape":
        return (shape[0], math.prod(sizes))
    return shape


def _check_masking(masking: float | None) -> None:
    if masking is not None and not math.isfinite(masking):
        raise ValueError(
            "build_model: `masking` must be a finite number, since nothing equals NaN. Received "
            f"{masking!r}. Put a number that does not occur in place of the missing values, for "
            "instance `numpy.nan_to_num(x, nan=-1e9)` with masking=-1e9."
        )

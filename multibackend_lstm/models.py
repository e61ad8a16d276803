"""Whole recurrent models for 4D (or N-D) input: `build_model` and networks of the literature."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import keras

from multibackend_lstm.layers import (
    LSTM,
    Bidirectional,
    Channelwise,
    ConvLSTM1D,
    ConvLSTM2D,
    ConvLSTM3D,
    Dropout,
    FlattenFeatures,
    LengthMasking,
    Normalization,
    TimeDistributedConv,
)
from multibackend_lstm.layers.channelwise import Merge
from multibackend_lstm.layers.validation import (
    check_choice,
    check_positive,
    check_rank,
    known_sizes,
)
from multibackend_lstm.sensor_model import SensorModel
from multibackend_lstm.solutions import SOLUTIONS, Solution

Task = Literal["regression", "binary", "multiclass"]

_ACTIVATIONS = {"regression": None, "binary": "sigmoid", "multiclass": "softmax"}
_CONV_LSTMS: dict[int, Any] = {1: ConvLSTM1D, 2: ConvLSTM2D, 3: ConvLSTM3D}


def build_model(
    input_shape: Sequence[int | None],
    solution: Solution = "reshape",
    *unnamed: Any,
    units: int | Sequence[int] = 64,
    outputs: int = 1,
    task: Task = "regression",
    bidirectional: bool = False,
    dropout: float = 0.0,
    masking: float | None = None,
    lengths: bool = False,
    normalization: bool | tuple[Any, Any] | Normalization = False,
    stateful: bool = False,
    batch_size: int | None = None,
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
        *unnamed: nothing: all other arguments go by name.
        units: LSTM units (filters of a ConvLSTM), or a sequence of them for stacked layers.
        outputs: number of outputs; for `"multiclass"` the number of classes.
        task: `"regression"` (linear output), `"binary"` (sigmoid) or `"multiclass"` (softmax).
        bidirectional: wrap every recurrent layer in `Bidirectional`.
        dropout: rate of the dropout after every recurrent layer.
        masking: the value that marks what is missing: a step is skipped where all its values
            equal it. (Where it fills some channels only, `"channelwise"` skips the step in those
            channels, and the other solutions see zeros there.)
        lengths: whether the model gets a second input, `"lengths"`, with the number of valid
            steps of each sample, integers `(batch,)`: pass both as `pad_sequences` returns them.
            The steps behind are skipped, whatever stands there.
        normalization: True for a `Normalization` layer that leaves masked steps out: call
            `model.adapt(x)` before `fit`. It takes the statistics of each feature of each channel
            where the input has one axis of channels, else of each feature. Or
            `(mean, variance)`, of each feature or of those axes; or a `Normalization`
            layer, which gets `masking` as its `mask_value`.
        stateful: whether the recurrent layers keep their states from one call to the next, for
            series that come in pieces; needs `batch_size`, and `model.reset_states()` between
            series. Weights go from one model to another: `live.set_weights(model.get_weights())`.
        batch_size: the number of samples of every batch; None leaves it open.
        filters: of the convolutions of `"conv"`; a sequence makes several blocks.
        kernel_size: of the convolutions of `"conv"` and `"conv_lstm"`.
        merge: how `"channelwise"` joins its channels, see `Channelwise`.
        name: name of the model.

    Returns:
        A `SensorModel`, a `keras.Model`, from `(batch, *input_shape)` to `(batch, outputs)`. The
        output has the dtype of the weights, so float32 in mixed precision.

    Raises:
        ValueError: for an unknown solution or task (the message lists those there are); an
            `input_shape` with a length or an unknown axis that the solution cannot take; `units`
            or `outputs` below 1, or 1 output for `"multiclass"`; a `masking` value that is not
            finite; `stateful` without a `batch_size`.
    """
    owner = "build_model"
    _check_positional(owner, input_shape, solution, unnamed)
    _check_task(owner, task, outputs)
    stacked_units = _stacked(owner, units)
    shape = _model_input_shape(_input_shape(owner, input_shape), solution)
    _check_masking(masking)
    if batch_size is not None:
        check_positive(owner, "batch_size", batch_size)
    elif stateful:
        raise ValueError(
            f"{owner}: stateful=True needs `batch_size`, the number of series that go on side by "
            "side: batch_size=1 for one."
        )

    inputs = keras.Input(shape, batch_size, name="inputs")
    model_inputs, x = [inputs], inputs
    if masking is not None:
        # In the input's own precision: a cast to float16 could change which values are equal.
        x = keras.layers.Masking(masking, dtype=inputs.dtype)(x)
    if lengths:
        model_inputs.append(keras.Input((), batch_size, dtype="int32", name="lengths"))
        x = LengthMasking()([x, model_inputs[1]])
    if normalization is not False:
        x = _normalization(owner, normalization, shape, masking)(x)
    if solution == "reshape":
        x = FlattenFeatures()(x)
    elif solution == "conv":
        x = TimeDistributedConv(filters, kernel_size, padding="same", activation="relu")(x)

    for position, count in enumerate(stacked_units):
        is_last = position == len(stacked_units) - 1
        arguments: dict[str, Any] = {"return_sequences": not is_last, "stateful": stateful}
        if solution == "conv_lstm":
            arguments |= {"kernel_size": kernel_size, "padding": "same"}
            layer = _CONV_LSTMS[len(shape) - 2](count, data_format="channels_last", **arguments)
        else:
            layer = LSTM(count, **arguments)
        if bidirectional:
            layer = Bidirectional(layer)
        if solution == "channelwise":
            layer = Channelwise(layer, merge=merge if is_last else "stack")
        x = layer(x)
        if dropout:
            x = Dropout(dropout)(x)

    # (batch, units) already, but for positions or channels that are still apart.
    if len(x.shape) > 2:
        x = keras.layers.Flatten()(x)
    # One input is not a list: that is what callers and exporters expect.
    return SensorModel(
        model_inputs if lengths else inputs,
        _output_layer(task, outputs)(x),
        name=name or solution,
    )


def build_deep_conv_lstm(
    input_shape: Sequence[int | None],
    *,
    outputs: int,
    task: Task = "multiclass",
    filters: int = 64,
    kernel_size: int = 5,
    convolutions: int = 4,
    units: int | Sequence[int] = (128, 128),
    dropout: float = 0.5,
    name: str = "deep_conv_lstm",
) -> keras.Model:
    """Build DeepConvLSTM (Ordóñez and Roggen 2016), uncompiled: convolutions over time, then LSTMs.

    Every convolution runs along time in each channel alone, with the same kernels for all
    channels, and shortens the series by `kernel_size - 1` steps; the LSTMs then see all channels
    of a step at once. The defaults are the paper's, whose input has one feature a channel.

    Example:
        >>> model = build_deep_conv_lstm((24, 113, 1), outputs=18)   # the paper's Opportunity data

    Args:
        input_shape: shape of one case, `(time, channels, features)`; `time` may be `None`.
        outputs: number of outputs; for `"multiclass"` the number of classes.
        task: `"regression"` (linear output), `"binary"` (sigmoid) or `"multiclass"` (softmax).
        filters: number of filters of each convolution.
        kernel_size: steps that a convolution spans.
        convolutions: number of convolutions.
        units: LSTM units, or a sequence of them for stacked layers.
        dropout: rate of the dropout before every LSTM.
        name: name of the model.

    Returns:
        A `keras.Model` from `(batch, time, channels, features)` to `(batch, outputs)`. The output
        has the dtype of the weights, so float32 in mixed precision. It takes no mask: a
        convolution over time has no step to skip.

    Raises:
        ValueError: for an unknown task, an `input_shape` that is not `(time, channels, features)`
            or has fewer steps than the convolutions consume, and numbers below 1.

    Source:
        F. J. Ordóñez and D. Roggen, "Deep Convolutional and LSTM Recurrent Neural Networks for
        Multimodal Wearable Activity Recognition", Sensors 16(1):115, 2016.
    """
    owner = "build_deep_conv_lstm"
    _check_task(owner, task, outputs)
    stacked_units = _stacked(owner, units)
    for argument, value in (
        ("filters", filters),
        ("kernel_size", kernel_size),
        ("convolutions", convolutions),
    ):
        check_positive(owner, argument, value)
    shape = _input_shape(owner, input_shape)
    check_rank(owner, (None, *shape), minimum=4, maximum=4)
    for size in known_sizes(owner, (None, *shape), (2, 3)):
        check_positive(owner, "input_shape", size)
    shortest = convolutions * (kernel_size - 1) + 1
    if shape[0] is not None and shape[0] < shortest:
        raise ValueError(
            f"{owner}: `input_shape` must have at least {shortest} time steps, of which "
            f"{convolutions} convolutions of {kernel_size} steps leave one. Received {shape}. "
            "Use longer windows, or a smaller `kernel_size` or `convolutions`."
        )

    inputs = keras.Input(shape, name="inputs")
    x = inputs
    for _ in range(convolutions):
        x = keras.layers.Conv2D(
            filters, (kernel_size, 1), activation="relu", data_format="channels_last"
        )(x)
    x = FlattenFeatures()(x)
    for position, count in enumerate(stacked_units):
        x = Dropout(dropout)(x)
        x = LSTM(count, return_sequences=position < len(stacked_units) - 1)(x)
    return SensorModel(inputs, _output_layer(task, outputs)(x), name=name)


def build_mlstm_fcn(
    input_shape: Sequence[int | None],
    *,
    outputs: int,
    task: Task = "multiclass",
    units: int = 8,
    dropout: float = 0.8,
    filters: Sequence[int] = (128, 256, 128),
    kernel_size: Sequence[int] = (8, 5, 3),
    reduction: int = 16,
    dimension_shuffle: bool = True,
    name: str = "mlstm_fcn",
) -> keras.Model:
    """Build MLSTM-FCN (Karim et al. 2019), uncompiled: an LSTM beside convolutions over time.

    Channels and features are merged into variables. One branch is an LSTM with dropout; the other
    is a stack of convolutions along time, each with batch normalization and relu, and all but the
    last followed by squeeze-and-excitation: a gate for every filter, from all filters' means over
    time. The output layer sees both. The defaults are the paper's.

    Example:
        >>> model = build_mlstm_fcn((100, 2, 3), outputs=4)   # (time, channels, features)

    Args:
        input_shape: shape of one case, `(time, channels, features)`; `time` may be `None` with
            `dimension_shuffle=False`.
        outputs: number of outputs; for `"multiclass"` the number of classes.
        task: `"regression"` (linear output), `"binary"` (sigmoid) or `"multiclass"` (softmax).
        units: LSTM units.
        dropout: rate of the dropout after the LSTM.
        filters: number of filters of each convolution.
        kernel_size: steps that each convolution spans.
        reduction: how many filters share one unit in the middle of a squeeze-and-excitation.
        dimension_shuffle: whether the LSTM goes from variable to variable and sees all of a
            variable's steps at once, as in the paper, which makes it fast where the series are
            longer than they are wide. Else it goes along time.
        name: name of the model.

    Returns:
        A `keras.Model` from `(batch, time, channels, features)` to `(batch, outputs)`. The output
        has the dtype of the weights, so float32 in mixed precision. It takes no mask: a
        convolution over time has no step to skip, and padded steps would count in the means.

    Raises:
        ValueError: for an unknown task, an `input_shape` that is not `(time, channels, features)`
            or has an unknown time that `dimension_shuffle` must know, numbers below 1, and
            `filters` and `kernel_size` of unequal length.

    Source:
        F. Karim, S. Majumdar, H. Darabi and S. Harford, "Multivariate LSTM-FCNs for Time Series
        Classification", Neural Networks 116:237-245, 2019.
    """
    owner = "build_mlstm_fcn"
    _check_task(owner, task, outputs)
    check_positive(owner, "units", units)
    check_positive(owner, "reduction", reduction)
    for argument, values in (("filters", filters), ("kernel_size", kernel_size)):
        if not isinstance(values, Sequence):
            raise TypeError(
                f"{owner}: `{argument}` must be a sequence, one number for each convolution. "
                f"Received {values!r}. Write {argument}=({values!r},) for one convolution."
            )
        for value in values or (0,):
            check_positive(owner, argument, value)
    if len(filters) != len(kernel_size):
        raise ValueError(
            f"{owner}: `filters` and `kernel_size` must have one number for each convolution. "
            f"Received filters={tuple(filters)} and kernel_size={tuple(kernel_size)}."
        )
    shape = _input_shape(owner, input_shape)
    check_rank(owner, (None, *shape), minimum=4, maximum=4)
    for size in known_sizes(owner, (None, *shape), (2, 3)):
        check_positive(owner, "input_shape", size)
    if shape[0] is not None:
        check_positive(owner, "input_shape", shape[0])
    elif dimension_shuffle:
        raise ValueError(
            f"{owner}: `input_shape` must have a known number of time steps with "
            "`dimension_shuffle`, which makes them the inputs of the LSTM. Received "
            f"{shape}. Give the number of steps, or dimension_shuffle=False."
        )

    inputs = keras.Input(shape, name="inputs")
    variables = FlattenFeatures()(inputs)
    x = keras.layers.Permute((2, 1))(variables) if dimension_shuffle else variables
    recurrent = Dropout(dropout)(LSTM(units)(x))
    x = variables
    for position, (count, steps) in enumerate(zip(filters, kernel_size, strict=True)):
        x = keras.layers.Conv1D(
            count,
            steps,
            padding="same",
            kernel_initializer="he_uniform",
            data_format="channels_last",
        )(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Activation("relu")(x)
        if position < len(filters) - 1:
            x = _squeeze_and_excite(x, count, reduction)
    convolved = keras.layers.GlobalAveragePooling1D(data_format="channels_last")(x)
    x = keras.layers.Concatenate()([recurrent, convolved])
    return SensorModel(inputs, _output_layer(task, outputs)(x), name=name)


def _squeeze_and_excite(x: Any, filters: int, reduction: int) -> Any:
    """Each filter of `(batch, time, filters)` times a gate from the means of all over time."""
    gates = keras.layers.GlobalAveragePooling1D(data_format="channels_last", keepdims=True)(x)
    for count, activation in ((max(1, filters // reduction), "relu"), (filters, "sigmoid")):
        gates = keras.layers.Dense(
            count, activation, use_bias=False, kernel_initializer="he_normal"
        )(gates)
    return keras.layers.Multiply()([x, gates])


def _check_positional(owner: str, input_shape: Any, solution: Any, unnamed: Any) -> None:
    if all(isinstance(value, int) for value in (input_shape, solution, *unnamed)):
        sizes = (input_shape, solution, *unnamed)
        raise TypeError(
            f"{owner}: `input_shape` must be one tuple, (time, channels, features). Received "
            f"{', '.join(map(str, sizes))}. Write build_model({sizes}, ...)."
        )
    if isinstance(solution, str) and not unnamed:
        check_choice(owner, "solution", solution, tuple(SOLUTIONS))
        return
    raise TypeError(
        f"{owner}: `solution`, the second argument, must be one of "
        f"{', '.join(map(repr, SOLUTIONS))}. Received {(solution, *unnamed)!r} "
        "behind `input_shape`. Other arguments go by name, such as units=64."
    )


def _input_shape(owner: str, input_shape: Any) -> tuple[int | None, ...]:
    if isinstance(input_shape, (Integral, str)):
        raise TypeError(
            f"{owner}: `input_shape` must be a tuple, (time, channels, features). Received "
            f"{input_shape!r}. Write build_model((10, 3, 5), ...)."
        )
    if hasattr(input_shape, "shape"):
        raise TypeError(
            f"{owner}: `input_shape` must be a tuple, (time, channels, features). Received a "
            f"{type(input_shape).__name__} of shape {tuple(input_shape.shape)}. Write "
            f"build_model(x.shape[1:], ...)."
        )
    return tuple(input_shape)


def _normalization(
    owner: str,
    given: bool | tuple[Any, Any] | Normalization,
    shape: tuple[int | None, ...],
    masking: float | None,
) -> Normalization:
    """The layer, in float32 for what a mixed policy would round."""
    if isinstance(given, Normalization):
        if masking is not None and given.mask_value not in (None, masking):
            raise ValueError(
                f"{owner}: the `mask_value` of `normalization` must be that of `masking`, "
                f"{masking!r}. Received {given.mask_value!r}."
            )
        given.mask_value = masking if masking is not None else given.mask_value
        return given
    axis: tuple[int, ...] = (-2, -1) if len(shape) == 3 else (-1,)
    statistics: dict[str, Any] = {}
    if given is not True:
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise ValueError(
                f"{owner}: `normalization` must be True, (mean, variance) or a Normalization "
                f"layer. Received {given!r}."
            )
        statistics = {"mean": given[0], "variance": given[1]}
    return Normalization(axis, mask_value=masking, name="normalization", **statistics)


def _check_task(owner: str, task: str, outputs: int) -> None:
    check_choice(owner, "task", task, tuple(_ACTIVATIONS))
    check_positive(owner, "outputs", outputs)
    if task == "multiclass" and outputs == 1:
        raise ValueError(
            f'{owner}: task="multiclass" needs `outputs`, the number of classes, to be at '
            'least 2. Received outputs=1. For one yes-or-no output use task="binary".'
        )


def _stacked(owner: str, units: Any) -> tuple[int, ...]:
    """The units of each recurrent layer."""
    stacked: tuple[Any, ...] = (units,)
    if isinstance(units, Sequence) and not isinstance(units, str):
        stacked = tuple(units)
    for count in stacked or (0,):
        check_positive(owner, "units", count)
    return stacked


def _output_layer(task: str, outputs: int) -> keras.layers.Layer:
    """The last layer, in the dtype of the weights: losses of half-precision outputs lose digits."""
    return keras.layers.Dense(
        outputs,
        activation=_ACTIVATIONS[task],
        dtype=keras.config.dtype_policy().variable_dtype,
        name="outputs",
    )


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

"""Cases from seeds: one integer says all of a case, on every backend.

A seed is `layer * 10_000_000 + number`, the layer by its place in `LAYERS`. Ten seeds in a row
share a `Structure`: the layer, its options, shapes, dtypes and mode, all that a backend compiles a
function for. They differ in `Values`: weights, inputs, masks, lengths and states. So a compiled
function runs ten times.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from fuzz import reference
from fuzz.reference import Array, Spec

LAYERS = (
    "LSTM",
    "GRU",
    "Bidirectional",
    "Channelwise",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
    "TimeDistributed",
    "TimeDistributedConv",
    "FlattenFeatures",
)
# The two that take most cases.
RECURRENT = ("LSTM", "GRU")
SEEDS_PER_LAYER = 10_000_000
CASES_PER_STRUCTURE = 10

COMPUTE_DTYPES = {
    "float32": "float32",
    "mixed_float16": "float16",
    "mixed_bfloat16": "bfloat16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float64": "float64",
}
# What marks a masked step for keras.layers.Masking; exact in every dtype that has it.
MASK_VALUE = -9.0


@dataclass(frozen=True)
class MaskForm:
    """How a mask is given.

    Attributes:
        axes: shape of the mask after `(batch, time)`.
        dtype: boolean, an integer, or a float (which layers refuse).
    """

    axes: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Structure:
    """What is compiled once.

    Attributes:
        seed: the first of the seeds that share it.
        layer: name of the layer, one of `LAYERS`.
        spec: the layer to build; around it or in it may stand others.
        shape: of the input, `(batch, time, *axes)`.
        dtype: of the input.
        policy: dtype policy of all layers.
        x64: whether JAX may compute in float64.
        mode: "eager", "jit" or "predict".
        functional: whether the layer is called in a functional model; always in "predict".
        mask: form of an explicit mask, None without one.
        masking: whether keras.layers.Masking stands in front.
        lengths: dtype of `lengths=`, None without them.
        states: whether initial states are given.
        unknown: whether batch and time are unknown where the function is traced.
        gradient: whether gradients are compared.
        calls: how many calls carry the state of a stateful layer on.
        arrays: whether the layer gets NumPy arrays and no tensors.
    """

    seed: int
    layer: str
    spec: Spec
    shape: tuple[int, ...]
    dtype: str
    policy: str
    x64: bool
    mode: str
    functional: bool
    mask: MaskForm | None
    masking: bool
    lengths: str | None
    states: bool
    unknown: bool
    gradient: bool
    calls: int
    arrays: bool

    @property
    def compute_dtype(self) -> str:
        """The dtype that the layers compute in."""
        return COMPUTE_DTYPES[self.policy]

    def __str__(self) -> str:
        """One line."""
        parts = [
            describe(self.spec),
            f"{self.dtype}{list(self.shape)}",
            self.policy + (" (x64)" if self.x64 else ""),
            self.mode,
        ]
        if self.mode != "predict" and self.functional:
            parts.append("in a model")
        if self.mask:
            parts.append(f"mask {self.mask.dtype}[batch, time{_comma(self.mask.axes)}]")
        if self.masking:
            parts.append("Masking in front")
        if self.lengths:
            parts.append(f"lengths {self.lengths}")
        parts += [
            text
            for text, said in {
                "initial states": self.states,
                "unknown batch and time": self.unknown,
                "gradients": self.gradient,
                "NumPy inputs": self.arrays,
                f"{self.calls} calls": self.calls > 1,
            }.items()
            if said
        ]
        return ", ".join(parts)


@dataclass
class Call:
    """The arguments of one call.

    Attributes:
        x: the input.
        mask: the mask or None.
        lengths: integers `(batch,)` or None.
        states: list of the initial states or None.
    """

    x: Array
    mask: Array | None = None
    lengths: Array | None = None
    states: list[Array] | None = None


@dataclass
class Values:
    """What differs among the cases of one structure.

    Attributes:
        seed: of the case.
        calls: the arguments of each call.
        mask_kind: how the mask was drawn, such as "right" or "holes".
        nan: whether NaN stands in masked steps.
    """

    seed: int
    calls: list[Call]
    mask_kind: str = ""
    nan: bool = False
    generator: np.random.Generator = field(default_factory=np.random.default_rng, repr=False)

    def weight(self, shape: tuple[int, ...], name: str) -> Array:
        """Values for a weight; variances positive."""
        scale = 0.7 / math.sqrt(max(1, shape[0] if len(shape) == 2 else 1))
        drawn = self.generator.normal(size=shape) * scale
        return abs(drawn) + 0.5 if name == "moving_variance" else drawn

    def __str__(self) -> str:
        """One line."""
        parts = [f"mask {self.mask_kind}"] if self.mask_kind else []
        parts += ["NaN in masked steps"] if self.nan else []
        lengths = [call.lengths.tolist() for call in self.calls if call.lengths is not None]
        parts += [f"lengths {lengths}"] if lengths else []
        return ", ".join(parts)


def describe(spec: Spec) -> str:
    """A spec as the call of a constructor, without the options that have their default."""
    shown = []
    for key, value in spec.items():
        if isinstance(value, dict):
            shown.append(describe(value))
        elif key == "layers":
            shown.append(", ".join(map(describe, value)))
        elif key == "activation" and "recurrent_activation" not in spec:
            shown.append(f"{key}={value!r}")  # whose default is another in each of these layers
        elif key != "class" and not (key in _DEFAULTS and _DEFAULTS[key] == value):
            shown.append(f"{key}={value!r}")
    return f"{spec['class']}({', '.join(shown)})"


_DEFAULTS = {
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "use_bias": True,
    "unit_forget_bias": True,
    "reset_after": True,
    "return_sequences": False,
    "return_state": False,
    "go_backwards": False,
    "stateful": False,
    "unroll": False,
    "zero_output_for_mask": False,
    "dropout": 0.0,
    "recurrent_dropout": 0.0,
    "implementation": "auto",
    "use_cudnn": "auto",
    "keras": False,
    "merge_mode": "concat",
    "merge": "concat",
    "steps_per_call": None,
    "mask_reduction": "any",
    "groups": 1,
    "pool_size": None,
    "normalization": None,
}


def _comma(axes: tuple[int, ...]) -> str:
    return "".join(f", {size}" for size in axes)


def first_seed(layer: str) -> int:
    """The first seed of a layer."""
    return (LAYERS.index(layer) + 1) * SEEDS_PER_LAYER


class _Draw:
    """Choices from one random stream."""

    def __init__(self, *seeds: int) -> None:
        self.rng = np.random.default_rng(seeds)

    def of(self, *choices: Any) -> Any:
        """One of the choices, with equal odds."""
        return choices[self.rng.integers(len(choices))]

    def chance(self, odds: float) -> bool:
        """True with these odds."""
        return bool(self.rng.random() < odds)

    def sometimes(self, usual: Any, odds: float, *others: Any) -> Any:
        """One of the others with these odds in all, else the usual."""
        return self.of(*others) if self.chance(odds) else usual


def draw_structure(seed: int, own_bidirectional: bool) -> Structure:
    """The structure of a case.

    Args:
        seed: of the case.
        own_bidirectional: whether the package has a `Bidirectional` of its own, which is drawn
            as often as Keras's then.
    """
    number = seed % SEEDS_PER_LAYER // CASES_PER_STRUCTURE
    layer = LAYERS[seed // SEEDS_PER_LAYER - 1]
    draw = _Draw(LAYERS.index(layer), number)
    spec, shape = _SPECS[layer](draw, layer)
    own_around = draw.chance(0.5)  # drawn in any case: the rest of the structure is the same
    keras_around = not (own_bidirectional and own_around)
    for part in parts(spec):
        if part["class"] == "Bidirectional":
            part["keras"] = keras_around
            if keras_around and part["layer"]["stateful"]:
                part["layer"]["return_state"] = False  # Keras 3.15 fails with both
    # Keras's Bidirectional hands masks on as they are, so that theirs must have no further axes.
    plain_mask = keras_around and any(part["class"] == "Bidirectional" for part in parts(spec))

    recurrent = [part for part in parts(spec) if part["class"] in (*RECURRENT, *CONV_LSTMS)]
    stateful = any(part["stateful"] for part in recurrent)
    mode = draw.of("eager", "jit", "jit", "predict", "predict")
    batch, time = draw.of(1, 2, 3), draw.of(1, 3, 5)
    if draw.chance(0.08):
        time = 0
    if draw.chance(0.06) and mode != "predict" and not stateful:
        batch = 0
    functional = mode == "predict" or spec["class"] == "Stack" or draw.chance(0.1)
    policy = draw.sometimes(
        "float32", 0.45, "mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"
    )
    dtype = _draw_dtype(draw, spec, policy)
    for part in recurrent:
        if part["recurrent_activation"] in UNBOUNDED and (
            COMPUTE_DTYPES[policy] in HALF or dtype in INTEGERS or part["activation"] not in BOUNDED
        ):
            # What such gates multiply grows step by step, and overflows or cancels most digits.
            part["recurrent_activation"] = "hard_sigmoid"
    axes = tuple(shape)
    masking = spec["class"] == "Stack" or (functional and draw.chance(0.3))
    if plain_mask and masking and spec["class"] == "Stack":
        axes = axes[-1:]
    masking = masking and not (plain_mask and len(axes) > 1)
    mask = lengths = None
    if not masking and draw.chance(0.6):
        if spec["class"] in RECURRENT and draw.chance(0.25):
            lengths = draw.of("int32", "int64", "uint8", "int8")
        else:
            mask = _draw_mask(draw, spec, axes)
            if plain_mask:
                mask = MaskForm((), mask.dtype)
    unroll = any(part["unroll"] for part in recurrent)
    states = spec["class"] in (*RECURRENT, "Bidirectional", *CONV_LSTMS) and draw.chance(0.3)
    gradient = (
        mode != "predict"
        and not stateful
        and draw.chance(0.3)
        and layer != "FlattenFeatures"
        and policy in ("float32", "float64", "mixed_bfloat16")
        # keras.layers.Conv2D in float64 has no gradient on torch ("must be contiguous").
        and not (policy == "float64" and any(part["class"] in CONVS for part in parts(spec)))
    )
    return Structure(
        seed=seed - seed % CASES_PER_STRUCTURE,
        layer=layer,
        spec=spec,
        shape=(batch, time, *axes),
        dtype=dtype,
        policy=policy,
        x64=policy == "float64" and draw.chance(0.7),
        mode=mode,
        functional=functional,
        mask=mask,
        masking=masking,
        lengths=lengths,
        states=states,
        unknown=not unroll and draw.chance(0.4),
        gradient=gradient,
        calls=2 if stateful else 1,
        arrays=mode == "eager" and not functional and draw.chance(0.5),
    )


def parts(spec: Spec) -> list[Spec]:
    """The spec and all in it."""
    inside = [spec["layer"]] if "layer" in spec else spec.get("layers", [])
    return [spec, *(part for layer in inside for part in parts(layer))]


CONVS = ("Conv1D", "Conv2D")
CONV_LSTMS = ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
HALF = ("float16", "bfloat16")
UNBOUNDED = ("linear", "relu", "softplus")
BOUNDED = ("tanh", "softsign", "sine")
FLOATS = ("float32", "float16", "bfloat16", "float64")
INTEGERS = ("int8", "int32", "int64", "uint8", "bool")
# Of Keras's own, which do not cast integers (a Dense layer multiplies them as they are).
KERAS_OWN = ("Dense", *CONVS, "LayerNormalization")


def _draw_dtype(draw: _Draw, spec: Spec, policy: str) -> str:
    dtype = draw.sometimes("float32", 0.5, *FLOATS[1:], *INTEGERS)
    if dtype in INTEGERS and any(part["class"] in KERAS_OWN for part in parts(spec)):
        return "float32"
    return dtype


def _draw_mask(draw: _Draw, spec: Spec, axes: tuple[int, ...]) -> MaskForm:
    rank = draw.sometimes(0, 0.5, *range(len(axes) + 1))
    form = axes[:rank]
    if spec["class"] == "Channelwise":
        form = form[: len(axes) - 1]
    elif _takes_a_column(spec) and draw.chance(0.2):
        form = (1,)  # as keras.layers.RNN takes it, for every number of features
    dtype = draw.sometimes("bool", 0.25, "int32", "int64", "uint8", "int8")
    if spec["class"] in RECURRENT and draw.chance(0.02):
        dtype = "float32"
    return MaskForm(form, dtype)


def _takes_a_column(spec: Spec) -> bool:
    """Whether a mask `(batch, time, 1)` goes with an input of more features."""
    if spec["class"] == "TimeDistributed":
        return spec["layer"]["class"] not in RECURRENT  # or it would be of their own time axis
    return spec["class"] in (*RECURRENT, *CONV_LSTMS, "Bidirectional")


def _draw_activations(draw: _Draw) -> Spec:
    return {
        "activation": draw.sometimes(
            "tanh", 0.3, "relu", "linear", "softsign", "elu", "softplus", "selu", "silu", "sine"
        ),
        "recurrent_activation": draw.sometimes(
            "sigmoid", 0.25, "hard_sigmoid", "tanh", "relu", "softmax", "softplus", "linear"
        ),
    }


def _draw_recurrent_options(draw: _Draw) -> Spec:
    return {
        **_draw_activations(draw),
        "use_bias": draw.chance(0.8),
        "return_sequences": draw.chance(0.6),
        "return_state": draw.chance(0.4),
        "go_backwards": draw.chance(0.3),
        "stateful": draw.chance(0.15),
        "unroll": draw.chance(0.12),
        "zero_output_for_mask": draw.chance(0.3),
        "dropout": draw.sometimes(0.0, 0.1, 0.3),
        "recurrent_dropout": draw.sometimes(0.0, 0.1, 0.2),
    }


def _draw_cell(draw: _Draw, name: str) -> Spec:
    """An LSTM or a GRU."""
    spec = {
        "class": name,
        "units": draw.of(1, 2, 4),
        **_draw_recurrent_options(draw),
        "implementation": draw.of("auto", "auto", "native", "ops"),
        "use_cudnn": draw.sometimes("auto", 0.2, True, False),
    }
    if name == "LSTM":
        spec["unit_forget_bias"] = draw.chance(0.8)
    else:
        spec["reset_after"] = draw.chance(0.7)
    # What is refused teaches little, so little of it is drawn.
    contradicts = spec["use_cudnn"] is True and spec["implementation"] == "ops"
    if (contradicts or (demands_kernel(spec) and lacks_kernel(spec))) and draw.chance(0.9):
        spec["implementation"], spec["use_cudnn"] = draw.of("auto", "ops"), "auto"
    return spec


def demands_kernel(cell: Spec) -> bool:
    """Whether an LSTM or a GRU takes nothing but a kernel of the backend."""
    return cell["implementation"] == "native" or cell["use_cudnn"] is True


def lacks_kernel(cell: Spec) -> bool:
    """Whether no backend has a kernel for the options of an LSTM or a GRU."""
    return (
        cell["activation"] != "tanh"
        or cell["recurrent_activation"] != "sigmoid"
        or cell["unroll"]
        or not cell.get("reset_after", True)
    )


def _draw_features(draw: _Draw) -> tuple[int, ...]:
    return draw.of((1,), (3,), (3,), (2, 2), (3, 1), (1, 2), (2, 1, 3))


def _inside(spec: Spec) -> Spec:
    """A layer as it may stand in another that calls it once a sample."""
    return {**spec, "stateful": False}


def _lstm_or_gru(draw: _Draw, layer: str) -> tuple[Spec, tuple[int, ...]]:
    """The layer alone, mostly, or in a wrapper, or two of them."""
    spec, axes = _draw_cell(draw, layer), _draw_features(draw)
    around = draw.sometimes(
        None, 0.4, "Bidirectional", "TimeDistributed", "Channelwise", "Stack", "Stack"
    )
    if around == "Bidirectional":
        spec = _draw_bidirectional(draw, spec)
    elif around == "TimeDistributed":
        spec = _draw_time_distributed(draw, _inside(spec))
        axes = (draw.of(1, 2, 3), *axes)
    elif around == "Channelwise":
        spec = _draw_channelwise(draw, _inside(spec))
        axes = (draw.of(1, 2), *axes[-2:]) if len(axes) > 1 else (draw.of(1, 2, 3), *axes)
    elif around == "Stack":
        first = {**_inside(spec), "return_sequences": True, "return_state": False}
        if draw.chance(0.3):
            first = _draw_bidirectional(draw, first)
            first["merge_mode"] = first["merge_mode"] or "concat"
        second = _inside(_draw_cell(draw, draw.of(*RECURRENT)))
        spec = {"class": "Stack", "layers": [first, second]}
    return spec, axes


def _draw_bidirectional(draw: _Draw, inside: Spec) -> Spec:
    return {
        "class": "Bidirectional",
        "layer": {**inside, "go_backwards": False},  # of the forward layer
        "merge_mode": draw.of("concat", "sum", "mul", "ave", None),
        "keras": True,
    }


def _draw_time_distributed(draw: _Draw, inside: Spec) -> Spec:
    return {
        "class": "TimeDistributed",
        "layer": inside,
        "steps_per_call": draw.sometimes(None, 0.3, 1, 2),
    }


def _draw_channelwise(draw: _Draw, inside: Spec) -> Spec:
    return {
        "class": "Channelwise",
        "layer": inside,
        "merge": draw.of("concat", "sum", "average", "max", "stack"),
    }


def _bidirectional(draw: _Draw, _: str) -> tuple[Spec, tuple[int, ...]]:
    if draw.chance(0.15):
        inside, axes = _conv_lstm(draw, "ConvLSTM1D")
    else:
        inside, axes = _draw_cell(draw, draw.of(*RECURRENT)), _draw_features(draw)
    return _draw_bidirectional(draw, inside), axes


def _channelwise(draw: _Draw, _: str) -> tuple[Spec, tuple[int, ...]]:
    if draw.chance(0.2):
        inside: Spec = _draw_dense(draw)
    else:
        inside = _inside(_draw_cell(draw, draw.of(*RECURRENT)))
    return _draw_channelwise(draw, inside), draw.of((2, 3), (1, 2), (3, 1), (2, 2, 1))


def _draw_dense(draw: _Draw) -> Spec:
    return {"class": "Dense", "units": draw.of(1, 3), "activation": draw.of("linear", "tanh")}


def _draw_convolution(draw: _Draw, rank: int, axes: tuple[int, ...]) -> Spec:
    """Kernel, strides, padding and dilation that fit the axes."""
    padding = draw.of("valid", "same")
    kernel = tuple(draw.of(1, 2) if size < 4 else draw.of(1, 2, 3) for size in axes)
    strides = dilation = (1,) * rank
    if draw.chance(0.3):
        strides = (2,) * rank
    elif draw.chance(0.3):
        dilation = tuple(
            2 if (k - 1) * 2 + 1 <= size else 1 for k, size in zip(kernel, axes, strict=True)
        )
    return {
        "kernel_size": kernel,
        "strides": strides,
        "padding": padding,
        "dilation_rate": dilation,
    }


def _conv_lstm(draw: _Draw, layer: str) -> tuple[Spec, tuple[int, ...]]:
    rank = int(layer[-2])
    axes = {1: draw.of((3,), (5,)), 2: draw.of((3, 2), (4, 3)), 3: draw.of((2, 3, 2), (3, 2, 2))}
    spec = {
        "class": layer,
        "filters": draw.of(1, 2),
        **_draw_convolution(draw, rank, axes[rank]),
        **_draw_recurrent_options(draw),
        "unit_forget_bias": draw.chance(0.8),
    }
    return spec, (*axes[rank], draw.of(1, 2))


def _time_distributed(draw: _Draw, _: str) -> tuple[Spec, tuple[int, ...]]:
    kind = draw.of("cell", "cell", "Dense", "Conv1D", "Conv2D", "Flatten", "LayerNormalization")
    axes: tuple[int, ...]
    if kind == "cell":
        inside = _inside(_draw_cell(draw, draw.of(*RECURRENT)))
        axes = (draw.of(1, 3), *draw.of((2,), (1,), (2, 2)))
    elif kind == "Dense":
        inside, axes = _draw_dense(draw), draw.of((3,), (2, 3))
    elif kind in ("Conv1D", "Conv2D"):
        axes = (4, 2) if kind == "Conv1D" else (3, 4, 2)
        inside = {
            "class": kind,
            "filters": draw.of(1, 3),
            "kernel_size": (2,) * (len(axes) - 1),
            "padding": draw.of("valid", "same"),
            "activation": draw.of("linear", "relu"),
        }
    else:
        inside, axes = {"class": kind}, draw.of((3,), (2, 3))
    return _draw_time_distributed(draw, inside), axes


def _time_distributed_conv(draw: _Draw, _: str) -> tuple[Spec, tuple[int, ...]]:
    axes = draw.of((4,), (6,), (3, 4), (3, 3, 2))
    rank = len(axes)
    blocks = draw.of(1, 1, 2)
    convolution = _draw_convolution(draw, rank, axes)
    pool_size = None
    if blocks == 2:
        # A second convolution has to fit what the first one leaves.
        convolution = {**convolution, "padding": "same", "strides": (1,) * rank}
        pool_size = draw.of(None, (2,) * rank) if min(axes) > 2 else None
    elif rank == 1 and draw.chance(0.2):
        convolution["padding"] = "causal"
    features, groups = draw.of((1, 1), (2, 1), (2, 2))
    spec = {
        "class": "TimeDistributedConv",
        "filters": tuple(draw.of(2, 4) for _ in range(blocks)),
        **convolution,
        "groups": groups,
        "activation": draw.of("linear", "relu", "tanh", "selu", "elu", "prelu"),
        "use_bias": draw.chance(0.7),
        "normalization": draw.sometimes(None, 0.4, "batch", "layer"),
        "pool_size": pool_size,
        "pool": draw.of("max", "average"),
        "dropout": draw.sometimes(0.0, 0.2, 0.3),
        "reduce": draw.of("flatten", "flatten", "average", "max"),
        "mask_reduction": draw.of("any", "all"),
    }
    return spec, (*axes, features)


def _flatten_features(draw: _Draw, _: str) -> tuple[Spec, tuple[int, ...]]:
    spec = {"class": "FlattenFeatures", "mask_reduction": draw.of("any", "all")}
    return spec, draw.of((3,), (2, 3), (1, 1), (2, 1, 3), (2, 2, 1, 2))


_SPECS = {
    "LSTM": _lstm_or_gru,
    "GRU": _lstm_or_gru,
    "Bidirectional": _bidirectional,
    "Channelwise": _channelwise,
    "ConvLSTM1D": _conv_lstm,
    "ConvLSTM2D": _conv_lstm,
    "ConvLSTM3D": _conv_lstm,
    "TimeDistributed": _time_distributed,
    "TimeDistributedConv": _time_distributed_conv,
    "FlattenFeatures": _flatten_features,
}

MASK_KINDS = ("right", "left", "holes", "one row masked", "all masked", "none masked")


def draw_values(structure: Structure, seed: int) -> Values:
    """The values of a case."""
    rng = np.random.default_rng([1, seed])
    values = Values(seed, [], generator=rng)
    batch, time, *axes = structure.shape
    masked = structure.mask is not None or structure.masking
    if masked:
        values.mask_kind = str(rng.choice(MASK_KINDS, p=[0.2, 0.2, 0.3, 0.15, 0.075, 0.075]))
    values.nan = (
        structure.mask is not None
        and structure.mask.dtype != "float32"
        and structure.dtype in FLOATS
        and _hides_masked_steps(structure.spec)
        and bool(rng.random() < 0.4)
    )
    for number in range(structure.calls):
        steps = time
        if structure.unknown and (structure.mode == "predict" or structure.calls > 1):
            # The same function for another number of steps; few, since JAX compiles each.
            steps = [time, (time + 2) % 6][rng.integers(2)]
        call = Call(_draw_array(rng, (batch, steps, *axes), structure.dtype))
        if structure.mode == "predict" and structure.dtype == "float64":
            call.x = call.x.astype("float32").astype("float64")  # as Keras's data adapters do
        if structure.mask is not None:
            call.mask = _draw_mask_values(
                rng, (batch, steps, *structure.mask.axes), values.mask_kind
            ).astype(structure.mask.dtype)
            if values.nan:
                masked_steps = ~reference.reduce_mask(call.mask)
                call.x[masked_steps] = np.nan
        elif structure.masking:
            keep = _draw_mask_values(rng, (batch, steps, *axes[:-1]), values.mask_kind)
            call.x[~keep] = mask_value(structure.dtype)
        elif structure.lengths is not None:
            call.lengths = rng.integers(0, steps + 1, batch).astype(structure.lengths)
            if batch and rng.random() < 0.06:
                call.lengths[0] = steps + 2
        if structure.states and (number == 0 or structure.functional):
            shapes = reference.state_shapes(structure.spec, call.x.shape)
            call.states = [0.5 * rng.normal(size=shape).astype("float32") for shape in shapes]
        values.calls.append(call)
    return values


def mask_value(dtype: str) -> float:
    """What marks a masked step of this dtype."""
    return 0.0 if dtype in ("uint8", "bool") else MASK_VALUE


def _hides_masked_steps(spec: Spec) -> bool:
    """Whether nothing computes with what stands in masked steps."""
    if spec["class"] == "Channelwise":
        return spec["layer"]["class"] in RECURRENT
    return spec["class"] in (*RECURRENT, *CONV_LSTMS, "Bidirectional")


def _draw_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype in INTEGERS:
        low = 0 if dtype.startswith("u") else -3
        return rng.integers(low, 4, shape).astype(dtype)
    return rng.normal(size=shape).astype(numpy_dtype(dtype))


def numpy_dtype(dtype: str) -> Any:
    """NumPy's dtype of that name, bfloat16 too."""
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def _draw_mask_values(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """A boolean mask; those with further axes have some masked entries in valid steps too."""
    batch, time, *axes = shape
    steps = np.arange(time)[None]
    lengths = rng.integers(0, time + 1, (batch, 1))
    valid = {
        "right": steps < lengths,
        "left": steps >= time - lengths,
        "holes": rng.random((batch, time)) < 0.6,
        "one row masked": (rng.random((batch, time)) < 0.7) & (np.arange(batch)[:, None] > 0),
        "all masked": np.zeros((batch, time), bool),
        "none masked": np.ones((batch, time), bool),
    }[kind]
    if not axes:
        return valid
    valid = np.broadcast_to(valid.reshape(batch, time, *[1] * len(axes)), shape).copy()
    partly = rng.random(shape) < 0.75
    partly[(..., *[0] * len(axes))] = True  # so that `any` leaves the step valid
    return valid & partly

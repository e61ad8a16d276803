"""The cases beside layers: `keras.ops`, losses, optimizers, and layers in mixed precision."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from multibackend_lstm.agreement.suite.suite_case import IMAGE, SEQUENCE, VECTOR, SuiteCase

#: Losses and optimizers that are no case, and why.
LEFT_OUT_OF_TRAINING: Mapping[str, str] = MappingProxyType(
    {
        "CTC": "its labels are sequences of classes, which are not drawn",
        "Circle": "its labels are classes of embeddings, which are not drawn",
        "Loss": "computes nothing of its own",
        "Optimizer": "computes nothing of its own",
        "LossScaleOptimizer": "wraps another one, for float16",
        "MultiOptimizer": "wraps others",
        "OptimizerMap": "maps variables to others",
    }
)
_POSITIVE, _INSIDE = (0.2, 2.0), (-0.9, 0.9)
# Functions of one tensor, by the numbers that they take.
_ELEMENTWISE: Mapping[tuple[float, ...], str] = MappingProxyType(
    {
        (): "abs arctan arcsinh cbrt ceil celu cos cosh deg2rad elu erf erfc exp exp2 expm1 fabs "
        "floor gelu hard_shrink hard_sigmoid hard_silu hard_tanh i0 isfinite leaky_relu "
        "log_sigmoid log_softmax logical_not nan_to_num negative rad2deg relu relu6 round selu "
        "sigmoid sign signbit silu sin sinc sinh soft_shrink softmax softplus softsign "
        "sparse_plus sparse_sigmoid sparsemax square squareplus tanh tanh_shrink trunc",
        _POSITIVE: "log log10 log1p log2 reciprocal rsqrt sqrt",
        _INSIDE: "arccos arcsin arctanh erfinv tan",
        (1.2, 3.0): "arccosh",
    }
)
_REDUCTIONS = (
    "all any logsumexp max mean median min nanmax nanmean nansum norm prod ptp std sum var"
)
_OF_TWO = (
    "add arctan2 divide divide_no_nan equal floor_divide fmax fmin fmod greater hypot less "
    "logaddexp logaddexp2 logical_and maximum minimum mod multiply not_equal subtract"
)


def cases_of_functions() -> Iterator[SuiteCase]:
    """All of them."""
    yield from _elementwise()
    yield from _of_axes()
    yield from _of_several()
    yield from _algebra()
    yield from _losses()
    yield from _optimizers()
    yield from _mixed()


def _op(name: str, options: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> SuiteCase:
    return SuiteCase(name, options, kind="op", **more)


def _elementwise() -> Iterator[SuiteCase]:
    for between, names in _ELEMENTWISE.items():
        for name in names.split():
            yield _op(name, between=between)
    yield _op("gelu", {"approximate": False})
    yield _op("clip", {"x_min": -0.5, "x_max": 0.7})
    yield _op("threshold", {"threshold": 0.3, "default_value": 0.1})
    yield _op("glu")


def _of_axes() -> Iterator[SuiteCase]:
    options: dict[str, Any]
    for name in _REDUCTIONS.split():
        yield _op(name, {"axis": 1})
        yield _op(name, {"axis": -1, "keepdims": True}, shapes=((3, 1, 5),))
    for name in ("argmax", "argmin", "argsort", "cumprod", "cumsum", "flip", "sort", "diff"):
        yield _op(name, {"axis": 1})
    for q in (0.0, 0.3, 1.0):
        yield _op("quantile", {"q": q, "axis": 1})
    yield _op("count_nonzero", {"axis": 1})
    yield _op("moments", {"axes": [1]})
    yield _op("normalize", {"axis": 1})
    yield _op("trapezoid", {"axis": 1})
    for options in ({"k": 1}, {"k": 3}):
        yield _op("top_k", options)
    for name, options in (
        ("expand_dims", {"axis": 1}),
        ("moveaxis", {"source": 1, "destination": 2}),
        ("pad", {"pad_width": [[0, 0], [1, 2], [0, 1]]}),
        ("pad", {"pad_width": [[0, 0], [1, 2], [0, 1]], "mode": "reflect"}),
        ("pad", {"pad_width": [[0, 0], [1, 2], [0, 1]], "mode": "symmetric"}),
        ("repeat", {"repeats": 2, "axis": 1}),
        ("reshape", {"newshape": [-1, 3]}),
        ("roll", {"shift": 2, "axis": 1}),
        ("rot90", {"axes": [1, 2]}),
        ("split", {"indices_or_sections": 7, "axis": 1}),
        ("swapaxes", {"axis1": 1, "axis2": 2}),
        ("tile", {"repeats": [1, 2, 1]}),
        ("transpose", {"axes": [0, 2, 1]}),
        ("unstack", {"axis": 1}),
        ("diagonal", {"axis1": 1, "axis2": 2}),
        ("trace", {"axis1": 1, "axis2": 2}),
        ("tril", {"k": 1}),
        ("triu", {"k": -1}),
    ):
        yield _op(name, options)


def _of_several() -> Iterator[SuiteCase]:
    for name in _OF_TWO.split():
        yield _op(name, shapes=(SEQUENCE, SEQUENCE))
        yield _op(name, shapes=((7, 1), (1, 6)))  # broadcast
    yield _op("power", shapes=(SEQUENCE, SEQUENCE), between=_POSITIVE)
    for name, axis in (("concatenate", 1), ("stack", 1), ("stack", -1)):
        yield _op(name, {"axis": axis}, shapes=(SEQUENCE, SEQUENCE), as_list=True)
    for name in ("hstack", "vstack", "dstack"):
        yield _op(name, shapes=(SEQUENCE, SEQUENCE), as_list=True)
    for name in ("cross", "outer", "inner"):
        yield _op(name, shapes=((3,), (3,)))
    yield _op("tensordot", {"axes": [[1, 2], [1, 2]]}, shapes=(SEQUENCE, SEQUENCE))
    yield _op("kron", shapes=((3,), (2,)))


def _algebra() -> Iterator[SuiteCase]:
    yield _op("matmul", shapes=((5, 6), (6, 4)))
    yield _op("matmul", shapes=((2, 1, 6), (1, 6, 1)))
    for name in ("det", "inv", "slogdet"):
        yield _op(name, shapes=((4, 4),))
    yield _op("qr", shapes=((5, 3),))
    yield _op("solve", shapes=((4, 4), (4, 2)))
    for options in ({}, {"is_causal": True}):
        yield _op("dot_product_attention", options, shapes=((5, 2, 4),) * 3)
    for kind in ("average_pool", "max_pool"):
        yield _op(kind, {"pool_size": 2, "padding": "same"}, shapes=(IMAGE,))
    yield _op("rms_normalization")
    yield _op("layer_normalization")
    for name in ("depth_to_space", "space_to_depth"):
        yield _op(name, {"block_size": 2}, shapes=((4, 6, 8),))


def _losses() -> Iterator[SuiteCase]:
    for name in (
        *("BinaryCrossentropy", "BinaryFocalCrossentropy", "CategoricalCrossentropy"),
        *("CategoricalFocalCrossentropy", "CategoricalGeneralizedCrossEntropy"),
        *("CategoricalHinge", "CosineSimilarity", "Dice", "Hinge", "Huber", "KLDivergence"),
        *("LogCosh", "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanSquaredError"),
        *("MeanSquaredLogarithmicError", "Poisson", "SparseCategoricalCrossentropy"),
        *("SquaredHinge", "Tversky"),
    ):
        yield SuiteCase(name, {}, (VECTOR,), kind="loss")
    for name in ("BinaryCrossentropy", "CategoricalCrossentropy"):
        yield SuiteCase(name, {"label_smoothing": 0.1}, (VECTOR,), kind="loss")
    for options in ({"from_logits": True}, {"reduction": "sum"}):
        for name in ("BinaryCrossentropy", "CategoricalCrossentropy"):
            yield SuiteCase(name, options, (VECTOR,), kind="loss")
        yield SuiteCase("SparseCategoricalCrossentropy", options, (SEQUENCE,), kind="loss")


def _optimizers() -> Iterator[SuiteCase]:
    options: dict[str, Any]
    for name in (
        *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb"),
        *("Lion", "Muon", "Nadam", "RMSprop", "SGD", "ScheduleFreeAdamW"),
    ):
        for options in ({}, {"weight_decay": 0.1}):
            yield SuiteCase(name, options, (VECTOR,), kind="optimizer")
    for options in (
        {"clipnorm": 0.1},
        {"clipvalue": 0.01},
        {"global_clipnorm": 0.1},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 2},
    ):
        yield SuiteCase("Adam", options, (VECTOR,), kind="optimizer")
    yield SuiteCase("Adam", {"amsgrad": True}, (VECTOR,), kind="optimizer")
    for options in ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}):
        yield SuiteCase("SGD", options, (VECTOR,), kind="optimizer")
    for options in ({"centered": True}, {"momentum": 0.9}):
        yield SuiteCase("RMSprop", options, (VECTOR,), kind="optimizer")


def _mixed() -> Iterator[SuiteCase]:
    for dtype in ("mixed_float16", "mixed_bfloat16"):
        for layer, options, shape in (
            ("Dense", {"units": 5}, VECTOR),
            ("EinsumDense", {"equation": "abc,cd->abd", "output_shape": [None, 5]}, SEQUENCE),
            ("Conv1D", {"filters": 4, "kernel_size": 3}, SEQUENCE),
            ("Conv2D", {"filters": 4, "kernel_size": 3}, IMAGE),
            ("Conv2DTranspose", {"filters": 4, "kernel_size": 3}, IMAGE),
            ("DepthwiseConv2D", {"kernel_size": 3}, IMAGE),
            ("SeparableConv1D", {"filters": 4, "kernel_size": 3}, SEQUENCE),
            ("LSTM", {"units": 4}, SEQUENCE),
            ("GRU", {"units": 4}, SEQUENCE),
            ("SimpleRNN", {"units": 4}, SEQUENCE),
            ("LayerNormalization", {}, SEQUENCE),
            ("BatchNormalization", {}, SEQUENCE),
            ("GroupNormalization", {"groups": 2}, SEQUENCE),
            ("GlobalAveragePooling1D", {}, SEQUENCE),
            ("MaxPooling2D", {}, IMAGE),
            ("Softmax", {}, VECTOR),
        ):
            yield SuiteCase(layer, options, (shape,), dtype=dtype)

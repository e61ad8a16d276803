"""The cases: a class of `keras.layers`, its options, and what it is called on.

Everything is plain values, so that reading the table needs no Keras. An axis of 7 stands for time
or space, one of 6 for features, as a rule; what is odd or narrow is so on purpose.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from multibackend_lstm.agreement.suite.keras_functions import cases_of_functions
from multibackend_lstm.agreement.suite.suite_case import (
    IMAGE,
    SEQUENCE,
    VECTOR,
    VOLUME,
    SuiteCase,
)

#: Shape of the input by the number of axes that a layer's name ends with, as `Conv2D`.
_BY_RANK: Mapping[int, tuple[int, ...]] = MappingProxyType({1: SEQUENCE, 2: IMAGE, 3: VOLUME})

#: Classes that are no case here, and why.
LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"),
                *("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
                *("AugMix", "AutoContrast", "CutMix", "Equalization", "MixUp", "RandAugment"),
                *("ContrastLimitedAdaptiveHistogramEqualization", "Solarization"),
                *("RandomBrightness", "RandomColorDegeneration", "RandomColorJitter"),
                *("RandomContrast", "RandomCrop", "RandomElasticTransform", "RandomErasing"),
                *("RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHue"),
                *("RandomInvert", "RandomPerspective", "RandomPosterization", "RandomRotation"),
                *("RandomSaturation", "RandomSharpness", "RandomShear", "RandomTranslation"),
                "RandomZoom",
            ),
            "draws random numbers or augments images, in training alone",
        ),
        **dict.fromkeys(
            ("HashedCrossing", "Hashing", "IntegerLookup", "StringLookup", "TextVectorization"),
            "looks up categories or strings, with TensorFlow on every backend",
        ),
        **dict.fromkeys(
            ("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"), "of one backend alone"
        ),
        **dict.fromkeys(
            ("InputLayer", "Layer", "Lambda", "Pipeline", "Wrapper", "MaxNumBoundingBoxes"),
            "computes nothing of its own",
        ),
    }
)


def cases() -> list[SuiteCase]:
    """All of them, in the order of their families."""
    return [
        *_dense(),
        *_convolutions(),
        *_pooling(),
        *_normalization(),
        *_recurrent(),
        *_attention(),
        *_activations(),
        *_merging(),
        *_shapes(),
        *_preprocessing(),
        *cases_of_functions(),
    ]


def _dense() -> Iterator[SuiteCase]:
    for options in ({}, {"use_bias": False}, {"activation": "gelu"}, {"kernel_regularizer": "l2"}):
        yield SuiteCase("Dense", {"units": 5, **options}, (VECTOR,))
    yield SuiteCase("Dense", {"units": 5, "lora_rank": 2}, (SEQUENCE,))
    yield SuiteCase("EinsumDense", {"equation": "abc,cd->abd", "output_shape": [None, 5]})
    yield SuiteCase(
        "EinsumDense",
        {"equation": "abc,cde->abde", "output_shape": [None, 2, 3], "bias_axes": "de"},
    )
    for zero in (False, True):
        yield SuiteCase(
            "Embedding",
            {"input_dim": 9, "output_dim": 4, "mask_zero": zero},
            ((7,),),
            integers=9,
        )
    for tied in (True, False):
        yield SuiteCase(
            "ReversibleEmbedding",
            {"input_dim": 9, "output_dim": 4, "tie_weights": tied},
            ((7,),),
            integers=9,
        )


def _convolutions() -> Iterator[SuiteCase]:
    for rank, shape in _BY_RANK.items():
        for options in (
            {},
            {"padding": "same"},
            {"strides": 2},
            {"strides": 2, "padding": "same"},
            {"dilation_rate": 2, "padding": "same"},
            {"groups": 2},
            {"kernel_size": 2, "padding": "same", "use_bias": False},
        ):
            yield SuiteCase(f"Conv{rank}D", {"filters": 4, "kernel_size": 3, **options}, (shape,))
        for options in (
            {},
            {"padding": "same"},
            {"strides": 2},
            {"strides": 2, "padding": "same"},
            {"kernel_size": 2, "strides": 3},
        ):
            yield SuiteCase(
                f"Conv{rank}DTranspose", {"filters": 4, "kernel_size": 3, **options}, (shape,)
            )
    yield SuiteCase("Conv1D", {"filters": 4, "kernel_size": 3, "padding": "causal"})
    yield SuiteCase(
        "Conv1D", {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}
    )
    for rank in (1, 2):
        for options in ({}, {"padding": "same"}, {"depth_multiplier": 2}, {"strides": 2}):
            yield SuiteCase(
                f"DepthwiseConv{rank}D", {"kernel_size": 3, **options}, (_BY_RANK[rank],)
            )
            yield SuiteCase(
                f"SeparableConv{rank}D",
                {"filters": 4, "kernel_size": 3, **options},
                (_BY_RANK[rank],),
            )


def _pooling() -> Iterator[SuiteCase]:
    options: dict[str, Any]
    for rank, shape in _BY_RANK.items():
        for kind in ("Average", "Max"):
            for options in (
                {},
                {"padding": "same"},
                {"pool_size": 3, "strides": 1},
                {"pool_size": 3, "strides": 2, "padding": "same"},
            ):
                yield SuiteCase(f"{kind}Pooling{rank}D", {"pool_size": 2, **options}, (shape,))
            for options in ({}, {"keepdims": True}):
                yield SuiteCase(f"Global{kind}Pooling{rank}D", options, (shape,))
            for size in (1, 3):
                yield SuiteCase(f"Adaptive{kind}Pooling{rank}D", {"output_size": size}, (shape,))
    yield SuiteCase("GlobalAveragePooling1D", masked=True)


def _normalization() -> Iterator[SuiteCase]:
    for shape in (VECTOR, SEQUENCE, IMAGE):
        for options in ({}, {"center": False, "scale": False}, {"epsilon": 1e-5, "momentum": 0.9}):
            yield SuiteCase("BatchNormalization", options, (shape,))
        for options in ({}, {"epsilon": 1e-6}, {"center": False}):
            yield SuiteCase("LayerNormalization", options, (shape,))
        yield SuiteCase("RMSNormalization", {}, (shape,))
        yield SuiteCase("UnitNormalization", {}, (shape,))
        for groups in (1, 2, 6, -1):
            yield SuiteCase("GroupNormalization", {"groups": groups}, (shape,))
    yield SuiteCase("BatchNormalization", masked=True)
    yield SuiteCase("LayerNormalization", {"axis": [1, 2]}, (IMAGE,))
    yield SuiteCase("BatchNormalization", {"axis": 1}, (IMAGE,))
    yield SuiteCase("SpectralNormalization", {"layer": {"class": "Dense", "units": 4}}, (VECTOR,))
    yield SuiteCase("Normalization", {"mean": [0.5] * 6, "variance": [2.0] * 6}, (VECTOR,))
    yield SuiteCase("ActivityRegularization", {"l2": 0.1}, (VECTOR,))


def _recurrent() -> Iterator[SuiteCase]:
    options: dict[str, Any]
    inner: dict[str, Any]
    for layer in ("SimpleRNN", "GRU", "LSTM"):
        for options in (
            {},
            {"return_sequences": True},
            {"go_backwards": True},
            {"return_sequences": True, "go_backwards": True},
            {"return_state": True},
            {"use_bias": False},
            {"unroll": True},
            {"activation": "relu"},
            {"return_sequences": True, "zero_output_for_mask": True},
        ):
            for masked in (False, True):
                yield SuiteCase(layer, {"units": 4, **options}, masked=masked)
        inner = {"class": layer, "units": 4, "return_sequences": True}
        for merge in ("concat", "sum", "mul", "ave"):
            yield SuiteCase("Bidirectional", {"layer": inner, "merge_mode": merge})
        yield SuiteCase("Bidirectional", {"layer": inner}, masked=True)
        yield SuiteCase("RNN", {"cell": {"class": f"{layer}Cell", "units": 4}})
        yield SuiteCase(f"{layer}Cell", {"units": 4}, cell=True)
        cells = [{"class": f"{layer}Cell", "units": units} for units in (4, 3)]
        yield SuiteCase("StackedRNNCells", {"cells": cells}, cell=True)
    yield SuiteCase("GRU", {"units": 4, "reset_after": False}, masked=True)
    yield SuiteCase("LSTM", {"units": 4, "recurrent_activation": "hard_sigmoid"})
    for rank in (1, 2, 3):
        shape = (4, *(5, 4, 3)[:rank], 2)
        for options in (
            {},
            {"padding": "same", "return_sequences": True},
            {"return_sequences": True, "go_backwards": True},
        ):
            yield SuiteCase(
                f"ConvLSTM{rank}D", {"filters": 3, "kernel_size": 2, **options}, (shape,)
            )
    for inner in (
        {"class": "Dense", "units": 4},
        {"class": "BatchNormalization"},
        {"class": "LayerNormalization"},
    ):
        for masked in (False, True):
            yield SuiteCase("TimeDistributed", {"layer": inner}, masked=masked)
    conv = {"class": "Conv1D", "filters": 3, "kernel_size": 3}
    yield SuiteCase("TimeDistributed", {"layer": conv}, ((4, 7, 3),))


def _attention() -> Iterator[SuiteCase]:
    options: dict[str, Any]
    two = ((5, 6), (7, 6))
    for options in ({}, {"use_scale": True}, {"score_mode": "concat"}):
        yield SuiteCase("Attention", options, two, as_list=True)
    yield SuiteCase(
        "Attention", {}, ((7, 6), (7, 6)), as_list=True, arguments={"use_causal_mask": True}
    )
    for scale in (True, False):
        yield SuiteCase("AdditiveAttention", {"use_scale": scale}, two, as_list=True)
    heads: dict[str, Any] = {"num_heads": 2, "key_dim": 3}
    for options in ({}, {"value_dim": 4}, {"use_bias": False}, {"output_shape": 5}):
        yield SuiteCase("MultiHeadAttention", {**heads, **options}, two)
    yield SuiteCase(
        "MultiHeadAttention", heads, ((7, 6), (7, 6)), arguments={"use_causal_mask": True}
    )
    yield SuiteCase("MultiHeadAttention", heads, ((7, 6), (7, 6)), masked=True)
    yield SuiteCase("MultiHeadAttention", heads, ((3, 2, 6), (3, 2, 6)))
    grouped = {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2}
    for options in ({}, {"use_bias": False}):
        yield SuiteCase("GroupQueryAttention", {**grouped, **options}, two)


def _activations() -> Iterator[SuiteCase]:
    for activation in (
        *("celu", "elu", "exponential", "gelu", "glu", "hard_shrink", "hard_sigmoid", "hard_silu"),
        *("hard_tanh", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "mish", "relu"),
        *("relu6", "selu", "sigmoid", "silu", "soft_shrink", "softmax", "softplus", "softsign"),
        *("sparse_plus", "sparse_sigmoid", "sparsemax", "squareplus", "tanh", "tanh_shrink"),
    ):
        yield SuiteCase("Activation", {"activation": activation}, (VECTOR,))
    for layer, options in (
        ("ELU", {"alpha": 0.5}),
        ("LeakyReLU", {"negative_slope": 0.1}),
        ("PReLU", {}),
        ("PReLU", {"shared_axes": [1]}),
        ("ReLU", {"max_value": 1.0, "negative_slope": 0.1, "threshold": 0.2}),
        ("Softmax", {}),
        ("Softmax", {"axis": 1}),
    ):
        yield SuiteCase(layer, options)


def _merging() -> Iterator[SuiteCase]:
    for layer in ("Add", "Average", "Maximum", "Minimum", "Multiply"):
        yield SuiteCase(layer, {}, (SEQUENCE,) * 3, as_list=True)
        yield SuiteCase(layer, {}, (SEQUENCE, VECTOR), as_list=True)
    yield SuiteCase("Subtract", {}, (SEQUENCE,) * 2, as_list=True)
    for axis in (-1, 1):
        yield SuiteCase("Concatenate", {"axis": axis}, (SEQUENCE,) * 2, as_list=True)
    for options in ({"axes": 2}, {"axes": [2, 2], "normalize": True}, {"axes": [1, 1]}):
        yield SuiteCase("Dot", options, (SEQUENCE,) * 2, as_list=True)


def _shapes() -> Iterator[SuiteCase]:
    for layer, options in (
        ("Flatten", {}),
        ("Reshape", {"target_shape": [-1, 3]}),
        ("Permute", {"dims": [2, 1]}),
        ("Identity", {}),
        ("Masking", {}),
        ("Cropping1D", {"cropping": [1, 2]}),
        ("ZeroPadding1D", {"padding": [1, 2]}),
        ("UpSampling1D", {"size": 3}),
    ):
        yield SuiteCase(layer, options)
    yield SuiteCase("RepeatVector", {"n": 3}, (VECTOR,))
    for rank in (2, 3):
        for layer in ("Cropping", "ZeroPadding", "UpSampling"):
            yield SuiteCase(f"{layer}{rank}D", {}, (_BY_RANK[rank],))
    for how in ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"):
        yield SuiteCase("UpSampling2D", {"size": 2, "interpolation": how}, (IMAGE,))


def _preprocessing() -> Iterator[SuiteCase]:
    yield SuiteCase("Rescaling", {"scale": 0.5, "offset": 0.1})
    yield SuiteCase("CenterCrop", {"height": 4, "width": 5}, (IMAGE,))
    for how in ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"):
        for size in ((14, 12), (4, 5)):
            options = {"height": size[0], "width": size[1], "interpolation": how}
            yield SuiteCase("Resizing", options, ((7, 8, 3),))
    yield SuiteCase("Discretization", {"bin_boundaries": [-1.0, 0.0, 1.0]}, (VECTOR,))
    for mode in ("one_hot", "multi_hot", "count"):
        shape = ((1,),) if mode == "one_hot" else ((5,),)
        yield SuiteCase("CategoryEncoding", {"num_tokens": 9, "output_mode": mode}, shape, 9)
    yield SuiteCase("MelSpectrogram", {"fft_length": 64, "num_mel_bins": 8}, ((256,),))
    for mode in ("log", "magnitude", "psd", "real", "imag", "angle"):
        options = {"mode": mode, "frame_length": 32, "frame_step": 16}
        yield SuiteCase("STFTSpectrogram", options, ((128, 1),))

"""Recurrent models on (batch, time, channels, features) tensors, alike on every Keras backend.

The public names are loaded on first use (PEP 562): importing this package imports neither
keras nor a backend, so `KERAS_BACKEND` may still be set afterwards.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from wrapt import register_post_import_hook

from multibackend_lstm.lazy_names import lazy_names

if TYPE_CHECKING:
    from multibackend_lstm.data import (
        flatten_features,
        load_basic_motions,
        unflatten_features,
    )

    # Not in __all__: `import *` must not need the extra `sklearn`.
    from multibackend_lstm.estimators import LSTMClassifier as LSTMClassifier
    from multibackend_lstm.estimators import LSTMRegressor as LSTMRegressor
    from multibackend_lstm.layers import (
        GRU,
        LSTM,
        Bidirectional,
        Channelwise,
        ConvLSTM1D,
        ConvLSTM2D,
        ConvLSTM3D,
        FlattenFeatures,
        TimeDistributed,
        TimeDistributedConv,
    )
    from multibackend_lstm.models import build_deep_conv_lstm, build_model
    from multibackend_lstm.solutions import SOLUTIONS
    from multibackend_lstm.upgrading import Upgrade, upgrade

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "SOLUTIONS",
    "Bidirectional",
    "Channelwise",
    "ConvLSTM1D",
    "ConvLSTM2D",
    "ConvLSTM3D",
    "FlattenFeatures",
    "TimeDistributed",
    "TimeDistributedConv",
    "Upgrade",
    "build_deep_conv_lstm",
    "build_model",
    "flatten_features",
    "load_basic_motions",
    "unflatten_features",
    "upgrade",
]

_MODULE_OF = {
    "SOLUTIONS": "solutions",
    "GRU": "layers",
    "LSTM": "layers",
    "Bidirectional": "layers",
    "ConvLSTM1D": "layers",
    "ConvLSTM2D": "layers",
    "ConvLSTM3D": "layers",
    "Channelwise": "layers",
    "FlattenFeatures": "layers",
    "TimeDistributed": "layers",
    "TimeDistributedConv": "layers",
    "build_deep_conv_lstm": "models",
    "build_model": "models",
    "flatten_features": "data",
    "load_basic_motions": "data",
    "unflatten_features": "data",
    "LSTMClassifier": "estimators",
    "LSTMRegressor": "estimators",
    "Upgrade": "upgrading",
    "upgrade": "upgrading",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)


def _follow_keras(_: object) -> None:
    import_module(f"{__name__}.layers")
    import_module(f"{__name__}.compile_configs").make_portable()


# A saved model names its layers as "multibackend_lstm>..."; Keras finds them once the module
# that registers them is imported, so that follows the import of keras, whichever comes first.
register_post_import_hook(_follow_keras, "keras")
